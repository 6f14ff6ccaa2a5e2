package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/backupfs/backupfs/archive"
	"github.com/zeebo/blake3"
)

// record is what apply needs of an *archive.RecordReader.
type record interface {
	Header() archive.Header
	Next() (archive.Line, error) // io.EOF behind the last line of a whole record
	Digest() (archive.Digest, error)
}

// maxRecent bounds the memory for the contents that a record has named so far.
const maxRecent = 1 << 20

// applier applies one record to a builder. It reads what the record changes at
// the state before it; of what it writes itself it only reads groups, contents
// and the directories that are open.
type applier struct {
	b      *builder
	header archive.Header
	meta   meta
	tree   tree

	begun  bool              // something was seen that parts and contents come before
	moved  bool              // an entry or a gone line was seen in the generation
	path   string            // of the last one, "" for the root
	gone   bool              // it was a gone line
	open   []openDir         // directories from the root to the one of the last line
	recent map[uint64]uint32 // first 8 bytes of a content's hash → its length
	part   archive.Part      // the last one that a line named, and
	number uint64            // its number
	alive  map[uint64]bool   // part numbers that were looked up, and whether the part is there

	checkpoint *checkpoint // what only a checkpoint needs; else nil

	key, value []byte // scratch
}

// openDir is a directory that entries are added to.
type openDir struct {
	path   string // "" for the root
	dir    DirID
	fresh  bool // the record made it: there is nothing in it from before
	loaded bool // node is known
	dirty  bool // node must be written
	node   Node
}

// apply applies the next record of the log. After an error the builder is only
// good up to the record before.
func (b *builder) apply(r record) error {
	h := r.Header()
	if err := b.follows(h); err != nil {
		return fmt.Errorf("log record %d: %w", h.Number, err)
	}
	before := b.number
	b.number = h.Number
	a := &applier{b: b, header: h, meta: b.meta, recent: map[uint64]uint32{}, alive: map[uint64]bool{}}
	if h.Kind == archive.KindCheckpoint {
		a.checkpoint = newCheckpoint(h)
	}
	if err := a.run(r); err != nil {
		b.number = before
		if errors.As(err, new(readError)) { // it names the record and the line
			return err
		}
		return fmt.Errorf("log record %d: %w", h.Number, err)
	}
	b.meta = a.meta
	return nil
}

func (b *builder) follows(h archive.Header) error {
	if h.Kind == archive.KindCheckpoint && b.number == 0 {
		return nil // whatever was before it
	}
	if h.Kind == archive.KindCheckpoint {
		return errors.New("an index begins with a checkpoint, or does not have it")
	}
	if h.Number != b.number+1 {
		return fmt.Errorf("it does not follow record %d", b.number)
	}
	if h.Previous != b.meta.digest {
		return fmt.Errorf("it follows a record %d with the digest %s, ours has %s", b.number, h.Previous, b.meta.digest)
	}
	return nil
}

func (a *applier) run(r record) error {
	if a.header.Kind == archive.KindGeneration {
		if err := a.start(); err != nil {
			return err
		}
	}
	if err := readAhead(r, a.line); err != nil {
		return err
	}
	if a.header.Kind == archive.KindGeneration {
		if err := a.finish(); err != nil {
			return err
		}
	}
	if a.checkpoint != nil {
		if err := a.finishCheckpoint(); err != nil {
			return err
		}
	}
	var err error
	if a.meta.digest, err = r.Digest(); err != nil {
		return err
	}
	a.meta.time = r.Header().Time // that of a checkpoint, not of the last generation in it
	a.value = appendMeta(a.value[:0], a.meta)
	return a.put(append(a.key[:0], spaceMeta), a.value)
}

// A record's lines are decoded ahead: at most aheadBatches batches wait. A batch
// ends when it has aheadLines lines, extents, extended attributes and further 256 bytes
// of paths, targets and values, for a line may have many.
const (
	aheadLines   = 512
	aheadBatches = 2
)

// batch is some lines of a record, and the error that ended it.
type batch struct {
	lines []archive.Line
	err   error
}

// readAhead calls use with the lines of a record up to its end, while another
// goroutine decodes those that follow. That has ended when readAhead returns.
func readAhead(r record, use func(archive.Line) error) error {
	batches, stop := make(chan batch, aheadBatches), make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(batches)
		for more := true; more; {
			b := nextBatch(r)
			select {
			case batches <- b:
				more = b.err == nil
			case <-stop:
				return
			}
		}
	})
	err := useBatches(batches, use)
	close(stop)
	reader.Wait()
	return err
}

// readError is an error of a record's reader.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

func nextBatch(r record) batch {
	b := batch{lines: make([]archive.Line, 0, aheadLines)}
	for n := 0; n < aheadLines && b.err == nil; n++ {
		var l archive.Line
		if l, b.err = r.Next(); b.err == nil {
			b.lines = append(b.lines, l)
		}
		n += weight(l)
	}
	return b
}

// weight tells how many further lines of some hundred bytes a line is worth, which may
// have much more.
func weight(l archive.Line) int {
	e := l.Entry
	if e == nil {
		return len(l.Gone) / 256
	}
	n := len(e.Data) + (len(e.Path)+len(e.Target))/256
	for _, x := range e.Xattrs {
		n += 1 + len(x.Value)/256
	}
	return n
}

func useBatches(batches <-chan batch, use func(archive.Line) error) error {
	for b := range batches {
		for _, l := range b.lines {
			if err := use(l); err != nil {
				return err
			}
		}
		if b.err != nil && !errors.Is(b.err, io.EOF) {
			return readError{b.err}
		}
	}
	return nil
}

// put writes a value. The key is the applier's scratch.
func (a *applier) put(key, value []byte) error {
	a.key = key
	return a.b.put(key, value)
}

// start prepares a generation: its base must be the newest one of its source, and its
// name must be free.
func (a *applier) start() error {
	if err := a.b.checkName(a.header); err != nil {
		return err
	}
	h, err := a.head()
	switch {
	case err == nil && a.header.Base == h.number:
		a.tree = h.tree
		a.open = append(a.open, openDir{dir: h.root})
		return nil
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case a.header.Base != 0:
		return fmt.Errorf("its base %d is not the newest generation of source %q, which is %d", a.header.Base, a.header.Source, h.number)
	case err == nil: // a complete one, though there is one before: all of that is gone
		a.tree = h.tree
		if err := a.bury(h.root); err != nil {
			return err
		}
	}
	a.tree = tree{}
	return nil
}

func (a *applier) head() (head, error) {
	if len(a.header.Source) > maxName {
		return head{}, fmt.Errorf("source name of %d bytes", len(a.header.Source))
	}
	value, err := a.b.get(appendSourceKey(a.key[:0], a.header.Source))
	if err != nil {
		return head{}, err
	}
	return decodeHead(value)
}

func (a *applier) line(l archive.Line) error {
	switch {
	case l.Part != nil:
		return describe(a.addPart(*l.Part), "part %s", l.Part.Name)
	case l.Content != nil:
		return describe(a.addContent(*l.Content), "content %s", l.Content.Hash)
	case l.Entry != nil:
		return describe(a.addEntry(l.Entry), "entry %.300q", l.Entry.Path)
	case l.Gone != "":
		return describe(a.removePath(l.Gone), "gone %.300q", l.Gone)
	case l.Forget != 0:
		return describe(a.forget(l.Forget), "forget %d", l.Forget)
	case l.Removed != nil:
		return describe(a.removePart(*l.Removed), "removed %s", *l.Removed)
	case l.Given != nil:
		return describe(a.give(*l.Given), "numbers given")
	case l.Generation != nil:
		return describe(a.nextGeneration(*l.Generation), "generation %d", l.Generation.Number)
	}
	return errors.New("line that says nothing")
}

// describe prefixes an error with the line that it is about.
func describe(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

func (a *applier) addPart(p archive.Part) error {
	if a.begun {
		return errors.New("out of order: it comes behind what the record changes")
	}
	if p.Raw <= 0 || p.TailStored <= 0 || p.Stored <= p.TailStored {
		return fmt.Errorf("impossible sizes: stored %d, raw %d, tail %d", p.Stored, p.Raw, p.TailStored)
	}
	known, err := a.findPart(p.Name)
	if err != nil {
		return err
	}
	if known {
		if a.part != p {
			return errors.New("named before with another size or tail")
		}
		return nil
	}
	a.part, a.number = p, a.meta.parts
	a.meta.parts++
	a.meta.raw += p.Raw
	a.meta.stored += p.Stored
	if a.meta.raw < 0 || a.meta.stored < 0 {
		return errors.New("the sum of all parts overflows")
	}
	a.value = binary.AppendUvarint(a.value[:0], a.number)
	if err := a.put(appendPartNameKey(a.key[:0], p.Name), a.value); err != nil {
		return err
	}
	a.value = appendPart(a.value[:0], p)
	return a.put(appendID(a.key[:0], spacePart, a.number), a.value)
}

// findPart makes the part of that name the current one if there is one.
func (a *applier) findPart(name archive.Digest) (bool, error) {
	if a.part.Name == name && a.part.Raw > 0 {
		return true, nil
	}
	value, err := a.b.get(appendPartNameKey(a.key[:0], name))
	if errors.Is(err, ErrNotFound) || err == nil && len(value) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if a.number, err = decodeNumber(value); err != nil {
		return false, err
	}
	if value, err = a.b.get(appendID(a.key[:0], spacePart, a.number)); err != nil {
		return false, missing(err, "part number %d", a.number)
	}
	a.part, err = decodePart(value)
	return err == nil, err
}

func (a *applier) addContent(c archive.Placement) error {
	if a.begun {
		return errors.New("out of order: it comes behind what the record changes")
	}
	known, err := a.findPart(c.Part)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("in the part %s, which no record named", c.Part)
	}
	if c.RawLen <= 0 || c.RawOffset < 0 || c.RawOffset > a.part.Raw-c.RawLen {
		return fmt.Errorf("offset %d, length %d is outside of the part %s of %d raw bytes", c.RawOffset, c.RawLen, c.Part, a.part.Raw)
	}
	if len(a.recent) >= maxRecent {
		clear(a.recent)
	}
	if err := a.notice(c.Content); err != nil {
		return err
	}
	a.value = appendPlace(a.value[:0], place{part: a.number, rawOffset: c.RawOffset, rawLen: c.RawLen})
	if a.checkpoint != nil {
		return a.putAt(c.Record, appendContentKey(a.key[:0], c.Hash), a.value)
	}
	return a.put(appendContentKey(a.key[:0], c.Hash), a.value)
}

// notice remembers a content that the record names. Where it names the content again, that
// must have the same length; of other records nobody knows without a look into the index.
func (a *applier) notice(c archive.Content) error {
	if c.RawLen > math.MaxUint32 {
		return nil
	}
	before := len(a.recent)
	a.recent[binary.BigEndian.Uint64(c.Hash[:])] = uint32(c.RawLen)
	if len(a.recent) > before {
		return nil
	}
	value, err := a.b.get(appendContentKey(a.key[:0], c.Hash))
	if errors.Is(err, ErrNotFound) { // the other one only begins with the same bytes
		return nil
	}
	if err != nil {
		return err
	}
	p, err := decodePlace(value)
	if err == nil && p.rawLen != c.RawLen {
		err = fmt.Errorf("%d bytes, but it was named before with %d", c.RawLen, p.rawLen)
	}
	return err
}

// removePart makes a part no part of the repository any more. What still says
// that it lies there is gone with it.
func (a *applier) removePart(name archive.Digest) error {
	if a.header.Kind != archive.KindCompaction && a.header.Kind != archive.KindCheckpoint {
		return fmt.Errorf("in a record that is a %s", a.header.Kind)
	}
	a.begun = true
	known, err := a.findPart(name)
	if err != nil {
		return err
	}
	if a.checkpoint != nil {
		return a.rememberRemoved(name, known)
	}
	if !known {
		return errors.New("no record named it, or it was removed already")
	}
	a.meta.raw -= a.part.Raw
	a.meta.stored -= a.part.Stored
	a.meta.removal = a.header.Number
	a.part = archive.Part{}
	if err := a.put(appendPartNameKey(a.key[:0], name), nil); err != nil {
		return err
	}
	return a.put(appendID(a.key[:0], spacePart, a.number), nil)
}

// partThere reports whether the part of a number was not removed.
func (a *applier) partThere(number uint64) (bool, error) {
	there, ok := a.alive[number]
	if ok {
		return there, nil
	}
	value, err := a.b.get(appendID(a.key[:0], spacePart, number))
	if err != nil {
		return false, missing(err, "part number %d", number)
	}
	a.alive[number] = len(value) > 0
	return len(value) > 0, nil
}

func (a *applier) forget(number uint64) error {
	if a.checkpoint != nil {
		return errors.New("in a checkpoint")
	}
	key := appendID(a.key[:0], spaceGeneration, number)
	value, err := a.b.get(key)
	if errors.Is(err, ErrNotFound) {
		return errors.New("no such generation, or forgotten already")
	}
	if err != nil {
		return err
	}
	g, err := decodeGeneration(number, value)
	if err != nil {
		return err
	}
	if g.gone {
		return errors.New("no such generation, or forgotten already")
	}
	delete(a.b.names, generationName{g.Source, g.Name})
	a.value = appendForgotten(a.value[:0], a.header.Time)
	return a.put(key, a.value)
}

// generationName is what nothing but one generation may be called, unless that was
// forgotten.
type generationName struct{ source, name string }

// checkName refuses a name that another generation has.
func (b *builder) checkName(h archive.Header) error {
	if b.names == nil {
		b.names = make(map[generationName]uint64)
		err := b.scan([]byte{spaceGeneration}, func(key, value []byte) error {
			g, err := decodeGeneration(keyID(key), value)
			if err == nil && !g.gone {
				b.names[generationName{g.Source, g.Name}] = g.Number
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if other := b.names[generationName{h.Source, h.Name}]; other != 0 {
		return fmt.Errorf("its name %q is that of generation %d", h.Name, other)
	}
	return nil
}

// advance checks that path comes behind the one before, and remembers it. again allows
// a checkpoint to have the path that was just gone.
func (a *applier) advance(path string, again bool) error {
	if a.header.Kind != archive.KindGeneration {
		return fmt.Errorf("in a record that is a %s", a.header.Kind)
	}
	if path == "." {
		path = ""
	}
	order := ComparePaths(a.path, path)
	again = again && a.checkpoint != nil && a.gone && order == 0
	if a.moved && order >= 0 && !again {
		return fmt.Errorf("out of order: behind %.300q", a.path)
	}
	a.begun, a.moved, a.gone, a.path = true, true, false, path
	return nil
}

// ComparePaths orders paths depth first: by component, a directory before what
// is in it.
func ComparePaths(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	switch {
	case n == len(a) || n == len(b):
		return len(a) - len(b)
	case a[n] == '/':
		return -1
	case b[n] == '/':
		return 1
	}
	return int(a[n]) - int(b[n])
}

// parent makes the directory that path lies in the last open one and returns
// the name in it.
func (a *applier) parent(path string) (name string, err error) {
	if len(a.open) == 0 {
		return "", errors.New("the root is missing: a complete generation begins with it")
	}
	slash := strings.LastIndexByte(path, '/')
	if slash == 0 {
		return "", checkName("")
	}
	dir, name := path[:max(slash, 0)], path[slash+1:]
	for !within(dir, a.last().path) {
		if err := a.shut(); err != nil {
			return "", err
		}
	}
	for a.last().path != dir {
		if err := a.descend(dir); err != nil {
			return "", err
		}
	}
	return name, checkName(name)
}

func (a *applier) last() *openDir { return &a.open[len(a.open)-1] }

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return strings.HasPrefix(path, dir) && (len(path) == len(dir) || dir == "" || path[len(dir)] == '/')
}

// descend opens the next directory on the way from the last open one to path.
func (a *applier) descend(path string) error {
	f := a.last()
	start := len(f.path)
	if start > 0 {
		start++
	}
	end := len(path)
	if n := strings.IndexByte(path[start:], '/'); n >= 0 {
		end = start + n
	}
	name := path[start:end]
	if err := checkName(name); err != nil {
		return err
	}
	e, err := a.lookup(f, name)
	if err != nil {
		return err
	}
	if e.kind != kindDir {
		return fmt.Errorf("there is no directory %.300q", path[:end])
	}
	a.open = append(a.open, openDir{path: path[:end], dir: e.dir})
	return nil
}

// checkName refuses what no directory can hold.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("bad name %q", name)
	case len(name) > maxName:
		return fmt.Errorf("name of %d bytes", len(name))
	case strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, '/') >= 0:
		return fmt.Errorf("bad name %q", name)
	}
	return nil
}

// lookup returns what is in a directory under a name; its kind is gone where
// there is nothing.
func (a *applier) lookup(f *openDir, name string) (dirent, error) {
	if f.fresh {
		return dirent{}, nil
	}
	value, err := a.b.get(appendDirentKey(a.key[:0], f.dir, name))
	if errors.Is(err, ErrNotFound) {
		return dirent{}, nil
	}
	if err != nil {
		return dirent{}, err
	}
	return direntIn(f.dir, value)
}

// load makes the node of an open directory known.
func (a *applier) load(f *openDir) error {
	if f.loaded {
		return nil
	}
	value, err := a.b.get(appendNodeKey(a.key[:0], f.dir))
	if err == nil {
		f.node, f.loaded, err = decodeNode(value)
	}
	if err != nil || !f.loaded {
		return missing(err, "directory %d", f.dir)
	}
	return nil
}

// count adds n to the number of entries of the last open directory.
func (a *applier) count(n int) error {
	f := a.last()
	if err := a.load(f); err != nil {
		return err
	}
	if f.node.Children += n; f.node.Children < 0 {
		return fmt.Errorf("%w: directory %d has less than no entries", ErrDamaged, f.dir)
	}
	f.dirty = true
	return nil
}

// shut closes the last open directory.
func (a *applier) shut() error {
	f := a.last()
	if f.dirty {
		a.value = appendNode(a.value[:0], f.node)
		if err := a.put(appendNodeKey(a.key[:0], f.dir), a.value); err != nil {
			return err
		}
	}
	a.open = a.open[:len(a.open)-1]
	return nil
}

// finish writes what is left of a generation.
func (a *applier) finish() error {
	if len(a.open) == 0 {
		return errors.New("it is complete, but has no root")
	}
	for len(a.open) > 0 {
		if err := a.shut(); err != nil {
			return err
		}
	}
	h := a.header
	g := Generation{Source: h.Source, Name: h.Name, Time: h.Time, Root: a.tree.root,
		Files: a.tree.files, Dirs: a.tree.dirs, Raw: a.tree.raw}
	a.value = appendGeneration(a.value[:0], g)
	if err := a.put(appendID(a.key[:0], spaceGeneration, h.Number), a.value); err != nil {
		return err
	}
	a.b.names[generationName{h.Source, h.Name}] = h.Number
	a.value = appendHead(a.value[:0], head{number: h.Number, tree: a.tree})
	return a.put(appendSourceKey(a.key[:0], h.Source), a.value)
}

func (a *applier) removePath(path string) error {
	if path == "." {
		return errors.New("the root cannot go")
	}
	if err := a.advance(path, false); err != nil {
		return err
	}
	name, err := a.parent(path)
	if err != nil {
		return err
	}
	old, err := a.lookup(a.last(), name)
	if err != nil {
		return err
	}
	if old.kind == kindGone {
		return errors.New("it was not there")
	}
	a.gone = true
	if err := a.drop(old); err != nil {
		return err
	}
	if err := a.count(-1); err != nil {
		return err
	}
	return a.putDirent(name, dirent{})
}

func (a *applier) putDirent(name string, e dirent) error {
	a.value = appendDirent(a.value[:0], e)
	return a.put(appendDirentKey(a.key[:0], a.last().dir, name), a.value)
}

// drop counts out an entry and all below it.
func (a *applier) drop(e dirent) error {
	switch e.kind {
	case kindLeaf:
		a.tree.files--
		a.tree.raw -= rawSize(e.attr)
	case kindDir:
		return a.bury(e.dir)
	}
	return nil
}

// bury counts out a directory and all below it, and marks every directory as gone.
func (a *applier) bury(dir DirID) error {
	for queue := []DirID{dir}; len(queue) > 0; {
		dir, queue = queue[len(queue)-1], queue[:len(queue)-1]
		a.tree.dirs--
		if err := a.put(appendNodeKey(a.key[:0], dir), []byte{kindGone}); err != nil {
			return err
		}
		err := a.b.scan(appendDirentKey(nil, dir, ""), func(_, value []byte) error {
			e, err := direntIn(dir, value)
			if err == nil && e.kind == kindLeaf {
				err = a.drop(e)
			}
			if e.kind == kindDir {
				queue = append(queue, e.dir)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rawSize returns what an entry adds to the raw bytes of its generation.
func rawSize(attr archive.Attr) int64 {
	if attr.Type == archive.TypeFile {
		return attr.Size
	}
	return 0
}

func (a *applier) addEntry(e *archive.Entry) error {
	if err := checkEntry(e); err != nil {
		return err
	}
	if err := a.advance(e.Path, e.Attr.Type == archive.TypeDir); err != nil {
		return err
	}
	if e.Path == "." {
		return a.addRoot(e)
	}
	name, err := a.parent(e.Path)
	if err != nil {
		return err
	}
	old, err := a.lookup(a.last(), name)
	if err != nil {
		return err
	}
	if old.kind == kindGone {
		if err := a.count(1); err != nil {
			return err
		}
	}
	if e.Attr.Type == archive.TypeDir {
		return a.addDir(name, old, e)
	}
	return a.addLeaf(name, old, e)
}

// addRoot applies the entry of the root, which comes first.
func (a *applier) addRoot(e *archive.Entry) error {
	if e.Attr.Type != archive.TypeDir {
		return fmt.Errorf("the root is a %s", e.Attr.Type)
	}
	if len(a.open) == 0 {
		var err error
		if a.tree.root, err = a.newDir(0, e); err != nil {
			return err
		}
		a.open = append(a.open, openDir{dir: a.tree.root, fresh: true, loaded: true})
	} else if err := a.stays(a.tree.root, e); err != nil {
		return err
	}
	return a.fill(e)
}

// newDir gives a directory in another one, 0 for the root, its number.
func (a *applier) newDir(parent DirID, e *archive.Entry) (DirID, error) {
	a.tree.dirs++
	if a.checkpoint != nil {
		return a.givenDir(parent, e)
	}
	a.meta.dirs++
	return DirID(a.meta.dirs), nil
}

// fill gives the last open directory the attributes of an entry.
func (a *applier) fill(e *archive.Entry) error {
	f := a.last()
	if err := a.load(f); err != nil {
		return err
	}
	ino, err := a.newInode(e)
	if err != nil {
		return err
	}
	f.node.Ino, f.node.Attr, f.dirty = ino, e.Attr, true
	return nil
}

// addDir applies the entry of a directory, which keeps its id if it was one.
func (a *applier) addDir(name string, old dirent, e *archive.Entry) error {
	if old.kind == kindDir {
		if err := a.stays(old.dir, e); err != nil {
			return err
		}
		a.open = append(a.open, openDir{path: e.Path, dir: old.dir})
		return a.fill(e)
	}
	if err := a.drop(old); err != nil {
		return err
	}
	dir, err := a.newDir(a.last().dir, e)
	if err != nil {
		return err
	}
	if err := a.putDirent(name, dirent{kind: kindDir, dir: dir}); err != nil {
		return err
	}
	a.open = append(a.open, openDir{path: e.Path, dir: dir, fresh: true, loaded: true, node: Node{Parent: a.last().dir}})
	return a.fill(e)
}

func (a *applier) addLeaf(name string, old dirent, e *archive.Entry) error {
	if err := a.drop(old); err != nil {
		return err
	}
	a.tree.files++
	if a.tree.raw += rawSize(e.Attr); a.tree.raw < 0 {
		return errors.New("the sum of all sizes overflows")
	}
	ino, err := a.leafInode(e)
	if err != nil {
		return err
	}
	return a.putDirent(name, dirent{kind: kindLeaf, ino: ino, attr: e.Attr, dataBytes: dataBytes(e.Data)})
}

// leafInode returns the inode number of an entry: a new one, or that of another
// link of its group that is the same in every way.
func (a *applier) leafInode(e *archive.Entry) (Ino, error) {
	if e.Group == "" {
		return a.newInode(e)
	}
	print := fingerprint(e)
	key := appendGroupKey(nil, a.tree.root, e.Group)
	value, err := a.b.get(key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	if err == nil {
		old, err := decodeGroup(value)
		if err != nil || old.print == print && (a.checkpoint == nil || uint64(old.ino) == e.Number) {
			return old.ino, err
		}
	}
	ino, err := a.newInode(e)
	if err != nil {
		return 0, err
	}
	a.value = appendGroup(a.value[:0], group{ino: ino, print: print})
	return ino, a.put(key, a.value)
}

// fingerprint identifies everything about an entry's inode.
func fingerprint(e *archive.Entry) (print [16]byte) {
	b := appendString(appendAttr(nil, e.Attr), e.Target)
	if e.Changed {
		b = append(b, 1)
	}
	h := blake3.New()
	h.Write(b)
	for _, x := range e.Xattrs {
		b = appendString(appendString(b[:0], x.Name), x.Value)
		h.Write(b)
	}
	for data := range slices.Chunk(e.Data, segmentExtents) {
		b = appendExtents(b[:0], 0, data)
		h.Write(b)
	}
	copy(print[:], h.Sum(nil))
	return print
}

// newInode writes an inode, its extended attributes and its segments.
func (a *applier) newInode(e *archive.Entry) (Ino, error) {
	for _, x := range e.Xattrs {
		a.meta.hasXattrs = true
		a.meta.hasLabels = a.meta.hasLabels || x.Name == LabelXattr
	}
	ino, written, err := a.nextIno(e)
	if err != nil || written {
		return ino, err
	}
	i := Inode{Attr: e.Attr, Target: e.Target, DataBytes: dataBytes(e.Data), Changed: e.Changed, Group: e.Group}
	for _, x := range e.Data {
		if err := a.checkContent(x); err != nil {
			return 0, err
		}
	}
	a.value = appendInode(a.value[:0], i, e.Data)
	if err := a.put(appendInodeKey(a.key[:0], ino), a.value); err != nil {
		return 0, err
	}
	if err := a.putXattrs(ino, e.Xattrs); err != nil {
		return 0, err
	}
	if len(e.Data) <= inlineExtents {
		return ino, nil
	}
	return ino, a.putSegments(ino, e.Data)
}

// nextIno returns the number of a new inode; written says that a checkpoint named
// it before.
func (a *applier) nextIno(e *archive.Entry) (ino Ino, written bool, err error) {
	if a.checkpoint != nil {
		return a.givenIno(e)
	}
	ino = FirstIno + Ino(a.meta.inos)<<1
	a.meta.inos++
	if len(e.Xattrs) > 0 {
		ino |= 1
	}
	return ino, false, nil
}

// dataBytes returns how many raw bytes of a file are not holes.
func dataBytes(data []archive.Extent) int64 {
	sum := int64(0)
	for _, x := range data {
		sum += x.Len
	}
	return sum
}

func (a *applier) putXattrs(ino Ino, xattrs []archive.Xattr) error {
	for _, x := range xattrs {
		if err := a.put(appendXattrKey(a.key[:0], ino, x.Name), []byte(x.Value)); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) putSegments(ino Ino, data []archive.Extent) error {
	for len(data) > 0 {
		n := min(len(data), segmentExtents)
		next := int64(0)
		if n < len(data) {
			next = data[n].Offset
		}
		a.value = appendSegment(a.value[:0], next, data[:n])
		if err := a.put(appendSegmentKey(a.key[:0], ino, data[0].Offset), a.value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// checkContent checks that an extent is a content that the log named.
func (a *applier) checkContent(e archive.Extent) error {
	if n, ok := a.recent[binary.BigEndian.Uint64(e.Hash[:])]; ok && int64(n) == e.Len {
		return nil
	}
	value, err := a.b.get(appendContentKey(a.key[:0], e.Hash))
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("offset %d: content %s, which no record named", e.Offset, e.Hash)
	}
	if err != nil {
		return err
	}
	p, err := decodePlace(value)
	if err != nil {
		return err
	}
	there, err := a.partThere(p.part)
	if err == nil && !there {
		err = fmt.Errorf("offset %d: content %s, which is gone: its part was removed", e.Offset, e.Hash)
	}
	if err == nil && p.rawLen != e.Len {
		err = fmt.Errorf("offset %d: %d bytes of content %s, which has %d", e.Offset, e.Len, e.Hash, p.rawLen)
	}
	return err
}

func checkEntry(e *archive.Entry) error {
	if !e.Attr.Type.Valid() || e.Attr.Size < 0 {
		return fmt.Errorf("impossible attributes: %+v", e.Attr)
	}
	if len(e.Target) > maxTarget {
		return fmt.Errorf("target of %d bytes", len(e.Target))
	}
	if e.Group != "" && (e.Attr.Type == archive.TypeDir || e.Attr.Whiteout()) {
		return errors.New("it cannot be in a hard-link group")
	}
	if len(e.Group) > maxName {
		return fmt.Errorf("hard-link group of %d bytes", len(e.Group))
	}
	return errors.Join(checkXattrs(e.Xattrs), checkExtents(e))
}

func checkXattrs(xattrs []archive.Xattr) error {
	previous := ""
	for _, x := range xattrs {
		if x.Name <= previous || len(x.Name) > maxName || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("bad or unordered name of an extended attribute: %q", x.Name)
		}
		if len(x.Value) > maxXattrValue {
			return fmt.Errorf("extended attribute %q of %d bytes", x.Name, len(x.Value))
		}
		previous = x.Name
	}
	return nil
}

func checkExtents(e *archive.Entry) error {
	if len(e.Data) > 0 && e.Attr.Type != archive.TypeFile {
		return fmt.Errorf("a %s with data", e.Attr.Type)
	}
	end := int64(0)
	for _, x := range e.Data {
		if x.Offset < end || x.Len <= 0 || x.Offset > e.Attr.Size-x.Len {
			return fmt.Errorf("impossible extent: offset %d, length %d, in %d bytes", x.Offset, x.Len, e.Attr.Size)
		}
		end = x.Offset + x.Len
	}
	return nil
}
