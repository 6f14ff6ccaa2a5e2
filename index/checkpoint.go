package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/backupfs/backupfs/archive"
)

// Limits of the numbers that a checkpoint may say were given.
const (
	maxDirs = 1 << 38
	maxInos = 1 << 40
)

// A checkpoint is a record that states everything that is still of use of the
// records before it, as if only the generations that were not forgotten had ever
// been made: of each, how it differs from the one of its source before. The numbers
// of inodes and directories are in it, so they stay.

// Checkpoint yields the lines of a checkpoint behind the record that the index
// covers, in their order, but for the removed parts. It takes 72 bytes of memory
// for each content, and what the entries of the directories from the root to one of
// them take. Every generation is walked.
func (d *DB) Checkpoint(yield func(archive.Line) error) error {
	s := &stater{db: d, yield: yield}
	if err := s.contents(); err != nil {
		return err
	}
	if err := yield(archive.Line{Given: &archive.Given{Directories: d.meta.dirs, Inodes: d.meta.inos}}); err != nil {
		return err
	}
	generations, err := d.Generations()
	if err != nil {
		return err
	}
	newest := make(map[string]Generation)
	for _, g := range generations {
		if err := s.generation(newest[g.Source], g); err != nil {
			return fmt.Errorf("generation %d: %w", g.Number, err)
		}
		newest[g.Source] = g
	}
	return nil
}

// stater is one call of Checkpoint.
type stater struct {
	db    *DB
	yield func(archive.Line) error
	view  View // of the generation that is stated, and
	old   View // of the one before
}

// statedPlaces calls use with the places of contents that a checkpoint states: of a content
// that lies in several parts the one that counts is stated last, so that another one which
// would come behind it is left out.
func (d *DB) statedPlaces(use func(contentPlace) error) error {
	counts := uint64(0) // the part of it
	return d.eachPlace(nil, func(p contentPlace) error {
		if !p.again {
			counts = p.part
		} else if p.part >= counts {
			return nil
		}
		return use(p)
	})
}

// contents states the parts, and behind each what lies in it, in its order.
func (s *stater) contents() error {
	var list []contentPlace
	if err := s.db.statedPlaces(func(p contentPlace) error {
		list = append(list, p)
		return nil
	}); err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b contentPlace) int {
		if a.part != b.part {
			return cmp.Compare(a.part, b.part)
		}
		return cmp.Compare(a.rawOffset, b.rawOffset)
	})
	return scan(s.db.tables, s.db.number, []byte{spacePart}, func(key, value []byte) error {
		number := keyID(key)
		n := 0
		for n < len(list) && list[n].part <= number {
			n++
		}
		here := list[:n]
		list = list[n:]
		if len(value) == 0 {
			return nil
		}
		return s.part(value, here)
	})
}

func (s *stater) part(value []byte, contents []contentPlace) error {
	part, err := decodePart(value)
	if err != nil {
		return err
	}
	if err := s.yield(archive.Line{Part: &part}); err != nil {
		return err
	}
	for _, c := range contents {
		line := &archive.Placement{Part: part.Name, Record: c.record,
			Content: archive.Content{Hash: c.hash, RawOffset: c.rawOffset, RawLen: c.rawLen}}
		if err := s.yield(archive.Line{Content: line}); err != nil {
			return err
		}
	}
	return nil
}

// generation states how a generation differs from the one before, Number 0 where
// there is none.
func (s *stater) generation(old, g Generation) error {
	h := archive.Header{Kind: archive.KindGeneration, Number: g.Number, Time: g.Time, Source: g.Source, Name: g.Name}
	if old.Root == g.Root {
		h.Base = old.Number
	}
	if err := s.yield(archive.Line{Generation: &h}); err != nil {
		return err
	}
	s.view = s.db.At(g.Number)
	root, err := s.view.Resolve(g.Root, ".")
	if err != nil {
		return err
	}
	if h.Base == 0 {
		return s.tree(".", root)
	}
	s.old = s.db.At(old.Number)
	before, err := s.old.Resolve(g.Root, ".")
	if err != nil {
		return err
	}
	return s.directory(".", before, root)
}

// tree states an entry and all that is below it.
func (s *stater) tree(path string, e Dirent) error {
	if err := s.entry(path, e); err != nil || e.Dir == 0 {
		return err
	}
	entries, err := listed(s.view, e.Dir)
	for i := 0; i < len(entries) && err == nil; i++ {
		err = s.tree(childPath(path, entries[i].Name), entries[i])
	}
	return err
}

// directory states how a directory, which is the same one, differs.
func (s *stater) directory(path string, before, now Dirent) error {
	if before.Ino != now.Ino {
		if err := s.entry(path, now); err != nil {
			return err
		}
	}
	old, err := listed(s.old, now.Dir)
	if err != nil {
		return err
	}
	entries, err := listed(s.view, now.Dir)
	for (len(old) > 0 || len(entries) > 0) && err == nil {
		switch {
		case len(entries) == 0 || len(old) > 0 && old[0].Name < entries[0].Name:
			err = s.yield(archive.Line{Gone: childPath(path, old[0].Name)})
			old = old[1:]
		case len(old) == 0 || entries[0].Name < old[0].Name:
			err = s.tree(childPath(path, entries[0].Name), entries[0])
			entries = entries[1:]
		default:
			err = s.change(childPath(path, old[0].Name), old[0], entries[0])
			old, entries = old[1:], entries[1:]
		}
	}
	return err
}

// change states how what is at a path differs.
func (s *stater) change(path string, old, e Dirent) error {
	switch {
	case e.Dir != 0 && e.Dir == old.Dir:
		return s.directory(path, old, e)
	case e.Dir != 0 && old.Dir != 0: // another directory: all of the old one is gone
		if err := s.yield(archive.Line{Gone: path}); err != nil {
			return err
		}
	case e.Dir == 0 && e.Ino == old.Ino:
		return nil
	}
	return s.tree(path, e)
}

func (s *stater) entry(path string, e Dirent) error {
	node, err := s.db.inode(e.Ino)
	if err != nil {
		return missing(err, "inode %d of %q", e.Ino, path)
	}
	entry := &archive.Entry{Path: path, Attr: node.Attr, Target: node.Target, Group: node.Group, Changed: node.Changed,
		Number: uint64(e.Ino), Directory: uint64(e.Dir)}
	if entry.Xattrs, err = s.db.Xattrs(e.Ino); err != nil {
		return err
	}
	if node.Attr.Type == archive.TypeFile {
		err = s.db.spans(e.Ino, node, 0, func(x archive.Extent) bool {
			entry.Data = append(entry.Data, x)
			return true
		})
	}
	if err != nil {
		return err
	}
	return s.yield(archive.Line{Entry: entry})
}

func listed(v View, dir DirID) (list []Dirent, err error) {
	err = v.List(dir, "", func(e Dirent) bool {
		list = append(list, e)
		return true
	})
	return list, err
}

func childPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// checkpoint is what an applier needs for a checkpoint only.
type checkpoint struct {
	number uint64
	given  *archive.Given
	inos   bitmap           // inodes that were written
	linked map[Ino][16]byte // of these, those of hard-link groups, with their linkPrint
}

func newCheckpoint(h archive.Header) *checkpoint {
	return &checkpoint{number: h.Number, linked: make(map[Ino][16]byte)}
}

// putAt writes a value at an earlier record.
func (a *applier) putAt(record uint64, key, value []byte) error {
	if record == 0 || record >= a.checkpoint.number {
		return fmt.Errorf("of record %d, which is not before the checkpoint", record)
	}
	now := a.b.number
	a.b.number = record
	err := a.put(key, value)
	a.b.number = now
	return err
}

func (a *applier) give(g archive.Given) error {
	if a.checkpoint == nil || a.checkpoint.given != nil {
		return errors.New("out of order: once in a checkpoint, before its generations")
	}
	if g.Directories >= maxDirs || g.Inodes >= maxInos {
		return fmt.Errorf("%d directories, %d inodes: too many", g.Directories, g.Inodes)
	}
	a.begun, a.checkpoint.given = true, &g
	a.meta.dirs, a.meta.inos = g.Directories, g.Inodes
	return nil
}

// nextGeneration ends the generation before, and begins one.
func (a *applier) nextGeneration(h archive.Header) error {
	if a.checkpoint == nil || a.checkpoint.given == nil {
		return errors.New("out of order: in a checkpoint, behind the numbers that were given")
	}
	last := uint64(0)
	if a.header.Kind == archive.KindGeneration {
		last = a.header.Number
		if err := a.finish(); err != nil {
			return fmt.Errorf("the one before: %w", err)
		}
	}
	if h.Number <= last || h.Number >= a.checkpoint.number {
		return fmt.Errorf("out of order: behind generation %d, in checkpoint %d", last, a.checkpoint.number)
	}
	a.header, a.b.number = h, h.Number
	a.moved, a.gone, a.path, a.open = false, false, "", nil
	return a.start()
}

func (a *applier) finishCheckpoint() error {
	if a.checkpoint.given == nil {
		return errors.New("it does not say how many numbers were given")
	}
	a.b.number, a.meta.begins = a.checkpoint.number, a.checkpoint.number
	return nil
}

// rememberRemoved notes a part whose file may still be there.
func (a *applier) rememberRemoved(name archive.Digest, known bool) error {
	if known || a.checkpoint.given != nil {
		return errors.New("it is a part, or the line comes too late")
	}
	a.meta.removal = a.checkpoint.number
	return a.put(appendPartNameKey(a.key[:0], name), nil)
}

func (a *applier) givenDir(parent DirID, e *archive.Entry) (DirID, error) {
	dir := DirID(e.Directory)
	if dir <= parent || e.Directory > a.checkpoint.given.Directories {
		return 0, fmt.Errorf("impossible directory number %d: it is in directory %d, and %d were given", dir, parent, a.checkpoint.given.Directories)
	}
	_, err := a.b.get(appendNodeKey(a.key[:0], dir))
	if err == nil {
		return 0, fmt.Errorf("directory number %d is taken", dir)
	}
	if !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	return dir, nil
}

// stays makes sure that a directory that was there keeps its number.
func (a *applier) stays(dir DirID, e *archive.Entry) error {
	if a.checkpoint != nil && uint64(dir) != e.Directory {
		return fmt.Errorf("it is directory %d here, and was directory %d", e.Directory, dir)
	}
	return nil
}

func (a *applier) givenIno(e *archive.Entry) (ino Ino, written bool, err error) {
	ino = Ino(e.Number)
	if ino < FirstIno || uint64(ino-FirstIno)>>1 >= a.checkpoint.given.Inodes || ino.HasXattrs() != (len(e.Xattrs) > 0) {
		return 0, false, fmt.Errorf("impossible inode number %d", ino)
	}
	if e.Group == "" {
		return ino, false, a.checkpoint.take(ino)
	}
	print := linkPrint(e)
	if old, linked := a.checkpoint.linked[ino]; linked && old == print {
		return ino, true, nil
	}
	a.checkpoint.linked[ino] = print
	return ino, false, a.checkpoint.take(ino)
}

// take makes sure that nothing else has an inode number.
func (c *checkpoint) take(ino Ino) error {
	if c.inos.has(ino) {
		return fmt.Errorf("inode number %d is taken by what is no link of it", ino)
	}
	c.inos.set(ino)
	return nil
}

// linkPrint identifies everything about an entry's inode, its hard-link group included.
func linkPrint(e *archive.Entry) [16]byte {
	print := fingerprint(e)
	hash := archive.HashOf(append(print[:], e.Group...))
	return [16]byte(hash[:])
}

// errOtherwise says that two indexes do not say the same.
var errOtherwise = errors.New("the checkpoint does not say what the log says")

// VerifyCheckpoint makes sure that an index that is derived from a checkpoint alone
// has all that this one has of the generations that were not forgotten, and nothing
// else: every directory, entry, inode and content, every number. It reads the record
// to its end and does not close it. It ends with the error of the context when that ends.
func (d *DB) VerifyCheckpoint(ctx context.Context, repo *archive.Repository, record *archive.RecordReader) error {
	dir, err := repo.TempDir("checkpoint-*")
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	p := &opener{Options: Options{Log: silent}, r: repo}
	need, err := p.spaceAnew()
	if err != nil {
		return err
	}
	if err := p.checkSpace(dir, need); err != nil {
		return err
	}
	b, err := newBuilder(repo.FS(), dir, nil, 0)
	if err != nil {
		return err
	}
	if err = b.apply(lineCounter{record, new(atomic.Int64), ctx.Err}); err == nil {
		err = b.finish(true)
	}
	if err != nil {
		b.close()
		return err
	}
	fresh, err := p.openTemporary(b, nil)
	if err != nil {
		return err
	}
	defer fresh.Close()
	return d.sameAs(ctx, fresh)
}

// otherwise returns the error of something that is not the same in both indexes, or
// could not be read.
func otherwise(err error, format string, args ...any) error {
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %s", errOtherwise, fmt.Sprintf(format, args...))
}

// sameAs compares what two indexes say of the generations that were not forgotten.
func (d *DB) sameAs(ctx context.Context, fresh *DB) error {
	old, err := d.Generations()
	if err != nil {
		return err
	}
	generations, err := fresh.Generations()
	if err != nil {
		return err
	}
	if !slices.EqualFunc(old, generations, func(a, b Generation) bool {
		t := a.Time
		a.Time = b.Time
		return a == b && t.Equal(b.Time)
	}) {
		return fmt.Errorf("%w: the generations are %v, not %v", errOtherwise, generations, old)
	}
	c := &comparison{ctx: ctx, old: d, fresh: fresh}
	if d.meta.dirs != fresh.meta.dirs || d.meta.inos != fresh.meta.inos {
		return fmt.Errorf("%w: how many numbers were given", errOtherwise)
	}
	for _, step := range []func() error{c.inodes, c.parts, c.contents} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, g := range generations {
		if err := c.tree(g); err != nil {
			return fmt.Errorf("generation %d: %w", g.Number, err)
		}
	}
	return nil
}

// comparison is one call of sameAs.
type comparison struct {
	ctx        context.Context
	asked      int
	old, fresh *DB
	inos       bitmap // that fresh has
}

// interrupted returns the error of the context, which it asks now and then.
func (c *comparison) interrupted() error {
	if c.asked++; c.asked%4096 != 1 {
		return nil
	}
	return c.ctx.Err()
}

// inodes compares what fresh has of inodes, and what there is about those.
func (c *comparison) inodes() error {
	for _, space := range []byte{spaceInode, spaceSegment, spaceXattr} {
		if err := c.contained(c.fresh, c.old, space, func(i Ino) bool {
			c.inos.set(i)
			return true
		}); err != nil {
			return err
		}
		if err := c.contained(c.old, c.fresh, space, c.inos.has); err != nil {
			return err
		}
	}
	return nil
}

// contained compares the values in a of some inodes with those in b.
func (c *comparison) contained(a, b *DB, space byte, wanted func(Ino) bool) error {
	return scan(a.tables, a.number, []byte{space}, func(key, value []byte) error {
		if err := c.interrupted(); err != nil || !wanted(Ino(keyID(key))) {
			return err
		}
		other, err := get(b.tables, b.number, key)
		if err != nil || !bytes.Equal(value, other) {
			return otherwise(err, "inode %d", keyID(key))
		}
		return nil
	})
}

func (c *comparison) parts() error {
	var lists [2][]archive.Part
	for i, db := range []*DB{c.old, c.fresh} {
		if err := db.Parts(func(p archive.Part) bool {
			lists[i] = append(lists[i], p)
			return true
		}); err != nil {
			return err
		}
	}
	if !slices.Equal(lists[0], lists[1]) {
		return fmt.Errorf("%w: the parts", errOtherwise)
	}
	return nil
}

func (c *comparison) contents() error {
	n := 0
	if err := c.old.statedPlaces(func(p contentPlace) error {
		n++
		if err := c.interrupted(); err != nil {
			return err
		}
		want, err := c.old.inPart(p.place)
		if errors.Is(err, errPartGone) {
			n--
			return nil
		}
		if err != nil {
			return err
		}
		return describe(c.placed(p, want), "content %s", p.hash)
	}); err != nil {
		return err
	}
	return c.fresh.eachPlace(nil, func(contentPlace) error {
		if n--; n < 0 {
			return fmt.Errorf("%w: it has more contents, or more places of them", errOtherwise)
		}
		return nil
	})
}

// placed makes sure that fresh has a content at a place, which counts unless it is another one.
func (c *comparison) placed(p contentPlace, want Place) error {
	if !p.again {
		got, err := c.fresh.Content(p.hash)
		if err == nil && got != want {
			err = errOtherwise
		}
		return err
	}
	others, err := c.fresh.Elsewhere(p.hash)
	if err == nil && !slices.Contains(others, want) {
		err = fmt.Errorf("%w: it lies in one part less", errOtherwise)
	}
	return err
}

// tree compares all directories of a generation, and their entries.
func (c *comparison) tree(g Generation) error {
	for queue := []DirID{g.Root}; len(queue) > 0; {
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		old, err := get(c.old.tables, g.Number, appendNodeKey(nil, dir))
		if err != nil {
			return missing(err, "directory %d", dir)
		}
		fresh, err := get(c.fresh.tables, g.Number, appendNodeKey(nil, dir))
		if err != nil || !bytes.Equal(old, fresh) {
			return otherwise(err, "directory %d", dir)
		}
		if queue, err = c.entries(dir, g.Number, queue); err != nil {
			return fmt.Errorf("directory %d: %w", dir, err)
		}
	}
	return nil
}

// entries compares the entries of a directory, and appends those to queue that are
// directories.
func (c *comparison) entries(dir DirID, number uint64, queue []DirID) ([]DirID, error) {
	prefix := appendDirentKey(nil, dir, "")
	a := newCursor(c.old.tables, number, prefix, scanOptions{})
	b := newCursor(c.fresh.tables, number, prefix, scanOptions{})
	queue, err := c.lists(a, b, prefix, queue)
	return queue, errors.Join(err, a.close(), b.close())
}

func (c *comparison) lists(a, b *cursor, prefix []byte, queue []DirID) ([]DirID, error) {
	more, too := nextThere(a, a.seek(prefix)), nextThere(b, b.seek(prefix))
	for ; more && too; more, too = nextThere(a, a.next()), nextThere(b, b.next()) {
		if err := c.interrupted(); err != nil {
			return queue, err
		}
		if !bytes.Equal(a.key, b.key) || !bytes.Equal(a.value, b.value) {
			return queue, fmt.Errorf("%w: the entries %q and %q", errOtherwise, a.key[idKey:], b.key[idKey:])
		}
		e, err := decodeDirent(b.value)
		switch {
		case err != nil:
			return queue, err
		case e.kind == kindDir:
			queue = append(queue, e.dir)
		case !c.inos.has(e.ino):
			return queue, fmt.Errorf("%w: inode %d is missing", errOtherwise, e.ino)
		}
	}
	if more || too {
		return queue, fmt.Errorf("%w: one of the two has more entries", errOtherwise)
	}
	return queue, nil
}

// nextThere moves a cursor on to an entry that is not gone.
func nextThere(c *cursor, more bool) bool {
	for more && len(c.value) > 0 && c.value[0] == kindGone {
		more = c.next()
	}
	return more
}
