package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
)

// model is a tree as a map: the oracle that the index is compared with.
type model map[string]*archive.Entry

func (m model) sorted() []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return ComparePaths(clean(a), clean(b))
	})
}

func clean(path string) string {
	if path == "." {
		return ""
	}
	return path
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return dir == "." || path == dir || strings.HasPrefix(path, dir+"/")
}

// changes returns the lines that turn one tree into another one.
func changes(from, to model) []archive.Line {
	var lines []archive.Line
	paths := slices.Concat(slices.Collect(maps.Keys(from)), slices.Collect(maps.Keys(to)))
	slices.SortFunc(paths, func(a, b string) int { return ComparePaths(clean(a), clean(b)) })
	replaced := "/" // a path whose old subtree needs no lines of its own
	for _, path := range slices.Compact(paths) {
		old, now := from[path], to[path]
		covered := below(path, replaced)
		switch {
		case now == nil && !covered:
			lines = append(lines, archive.Line{Gone: path})
			replaced = path
		case now != nil && (old == nil || !reflect.DeepEqual(old, now)):
			lines = append(lines, archive.Line{Entry: now})
			if old != nil && old.Attr.Type == archive.TypeDir && now.Attr.Type != archive.TypeDir {
				replaced = path
			}
		}
	}
	return lines
}

// gardener makes random trees and the contents for them.
type gardener struct {
	rnd      *rand.Rand
	part     uint64
	clock    int64
	contents []archive.Line // of the next record
	known    []archive.Extent
}

func newGardener(seed uint64) *gardener {
	return &gardener{rnd: rand.New(rand.NewPCG(seed, 1))}
}

var names = []string{"a", "b", "b-c", "b.c", "d\n", "e\\", "\xff\xfe", "z", strings.Repeat("n", 255), "0", "é"}

func (g *gardener) name() string { return names[g.rnd.IntN(len(names))] }

// extents returns the data of a file: mostly few extents, sometimes many, with holes.
func (g *gardener) extents() (data []archive.Extent, size int64) {
	count := g.rnd.IntN(4)
	if g.rnd.IntN(20) == 0 {
		count = g.rnd.IntN(1500)
	}
	for range count {
		if g.rnd.IntN(3) == 0 {
			size += int64(g.rnd.IntN(100000))
		}
		e := g.content()
		e.Offset = size
		size += e.Len
		data = append(data, e)
	}
	if g.rnd.IntN(3) == 0 {
		size += 77
	}
	return data, size
}

// content returns a content that was stored before, or a new one.
func (g *gardener) content() archive.Extent {
	if n := len(g.known); n > 0 && g.rnd.IntN(3) > 0 {
		return g.known[g.rnd.IntN(n)]
	}
	return g.newContent()
}

func (g *gardener) newContent() archive.Extent {
	var h archive.Hash
	for i := 0; i < len(h); i += 8 {
		binary.LittleEndian.PutUint64(h[i:], g.rnd.Uint64())
	}
	e := archive.Extent{Len: int64(1 + g.rnd.IntN(5000)), Hash: h}
	if len(g.contents) == 0 {
		g.part++
		p := &archive.Part{Stored: 1000, Raw: 1 << 30, TailStored: 10}
		binary.BigEndian.PutUint64(p.Name[:], g.part)
		g.contents = append(g.contents, archive.Line{Part: p})
	}
	g.contents = append(g.contents, archive.Line{Content: &archive.Placement{Part: g.contents[0].Part.Name,
		Content: archive.Content{Hash: h, RawOffset: int64(len(g.contents)) * 8192, RawLen: e.Len}}})
	g.known = append(g.known, e)
	return e
}

func (g *gardener) attr(t archive.FileType) archive.Attr {
	g.clock++
	return archive.Attr{Type: t, Mode: uint32(g.rnd.IntN(0o10000)), UID: g.rnd.Uint32(), GID: g.rnd.Uint32(), Nlink: 1,
		Mtime: archive.Timespec{Sec: g.clock - 50, Nsec: uint32(g.rnd.IntN(1e9))},
		Ctime: archive.Timespec{Sec: g.clock, Nsec: uint32(g.rnd.IntN(1e9))}, Inode: g.rnd.Uint64()}
}

func (g *gardener) entry(path string) *archive.Entry {
	types := []archive.FileType{archive.TypeFile, archive.TypeFile, archive.TypeFile, archive.TypeDir, archive.TypeDir,
		archive.TypeSymlink, archive.TypeFIFO, archive.TypeSocket, archive.TypeChar, archive.TypeBlock}
	e := &archive.Entry{Path: path, Attr: g.attr(types[g.rnd.IntN(len(types))])}
	switch e.Attr.Type {
	case archive.TypeFile:
		e.Data, e.Attr.Size = g.extents()
		e.Changed = g.rnd.IntN(10) == 0
	case archive.TypeSymlink:
		e.Target = "../" + g.name()
	case archive.TypeChar, archive.TypeBlock:
		e.Attr.Rdev = archive.Device{Major: g.rnd.Uint32N(3), Minor: g.rnd.Uint32N(2)}
	}
	if g.rnd.IntN(8) == 0 {
		e.Xattrs = []archive.Xattr{{Name: "user.a", Value: "\x00" + g.name()}, {Name: "user.b"}}
		if g.rnd.IntN(8) == 0 {
			e.Xattrs = slices.Insert(e.Xattrs, 0, archive.Xattr{Name: LabelXattr, Value: "system_u:object_r:etc_t:s0\x00"})
		}
	}
	return e
}

// edit returns a tree that differs from m in some random ways.
func (g *gardener) edit(m model) model {
	if m == nil {
		m = model{".": {Path: ".", Attr: g.attr(archive.TypeDir)}}
	}
	m = maps.Clone(m)
	for range 1 + g.rnd.IntN(25) {
		paths := m.sorted()
		path := paths[g.rnd.IntN(len(paths))]
		switch n := g.rnd.IntN(12); {
		case n < 6:
			g.grow(m, path)
		case n < 8 && path != ".":
			remove(m, path)
		case n == 8 && path != ".": // another type, another content, another attribute
			remove(m, path)
			m[path] = g.entry(path)
		case n == 9 && path != ".":
			g.rename(m, path)
		case n == 10:
			g.link(m, path)
		case m[path].Group == "":
			e := *m[path]
			e.Attr.Mode, e.Attr.Ctime.Sec = e.Attr.Mode^0o100, e.Attr.Ctime.Sec+1
			m[path] = &e
		}
	}
	return m
}

func (g *gardener) grow(m model, path string) {
	if m[path].Attr.Type != archive.TypeDir {
		path = parentOf(path)
	}
	path = clean(path)
	if path != "" {
		path += "/"
	}
	if path += g.name(); m[path] == nil && strings.Count(path, "/") < 6 {
		m[path] = g.entry(path)
	}
}

func remove(m model, path string) {
	for p := range m {
		if below(p, path) {
			delete(m, p)
		}
	}
}

// rename moves a path, with what is below it, to another name of its directory.
func (g *gardener) rename(m model, path string) {
	to := g.name()
	if p := parentOf(path); p != "." {
		to = p + "/" + to
	}
	if m[to] != nil {
		return
	}
	for p, e := range maps.Clone(m) {
		if below(p, path) {
			moved := *e
			moved.Path = to + p[len(path):]
			delete(m, p)
			m[moved.Path] = &moved
		}
	}
}

// link gives a file a second name. All names change with the number of links.
func (g *gardener) link(m model, path string) {
	e := m[path]
	if e.Attr.Type == archive.TypeDir || e.Attr.Whiteout() {
		return
	}
	to := path + "l"
	if len(to[strings.LastIndexByte(to, '/')+1:]) > maxName || m[to] != nil {
		return
	}
	group := e.Group
	if group == "" {
		group = fmt.Sprint("group ", e.Attr.Inode)
	}
	attr := e.Attr
	attr.Nlink++
	attr.Ctime.Sec++
	for p, other := range m {
		if p == path || other.Group == group {
			changed := *other
			changed.Group, changed.Attr = group, attr
			m[p] = &changed
		}
	}
	linked := *m[path]
	linked.Path = to
	m[to] = &linked
}

// history is a log of random generations of two sources, and what they hold.
type history struct {
	headers []archive.Header // of record n at n-1
	lines   [][]archive.Line
	trees   []model // nil where the record is no generation
	places  map[archive.Hash]archive.Placement
	heads   map[string]uint64
	gone    map[uint64]bool
	g       *gardener
}

// newHistory makes n records, twelve hours apart.
func newHistory(seed uint64, n int) *history {
	h := &history{places: map[archive.Hash]archive.Placement{}, heads: map[string]uint64{}, gone: map[uint64]bool{}, g: newGardener(seed)}
	for range n {
		h.grow()
	}
	return h
}

// grow makes one more record.
func (h *history) grow() {
	g, number := h.g, uint64(len(h.headers))+1
	switch k := g.rnd.IntN(10); {
	case k == 0 && number > 3:
		h.forget(g, number)
	case k == 1 && number > 3:
		h.compact(g, number)
	default:
		h.generation(g, number)
	}
}

func (h *history) add(header archive.Header, lines []archive.Line, tree model) {
	header.Time = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(12 * time.Hour * time.Duration(header.Number))
	h.headers, h.lines, h.trees = append(h.headers, header), append(h.lines, lines), append(h.trees, tree)
	for _, l := range lines {
		if l.Content != nil {
			h.places[l.Content.Hash] = *l.Content
		}
	}
}

func (h *history) generation(g *gardener, number uint64) {
	source := []string{"", "web1"}[g.rnd.IntN(2)]
	base := h.heads[source]
	var from model
	if base > 0 {
		from = h.trees[base-1]
	}
	to := g.edit(from)
	if g.rnd.IntN(10) == 0 {
		base, from = 0, nil
	}
	header := header(archive.KindGeneration, number, base)
	header.Source = source
	lines := slices.Concat(g.contents, changes(from, to))
	g.contents = nil
	h.add(header, lines, to)
	h.heads[source] = number
}

func (h *history) forget(g *gardener, number uint64) {
	var lines []archive.Line
	for n, tree := range h.trees {
		if n := uint64(n) + 1; tree != nil && !h.gone[n] && g.rnd.IntN(3) == 0 {
			lines = append(lines, archive.Line{Forget: n})
			h.gone[n] = true
		}
	}
	h.add(header(archive.KindForget, number, 0), lines, nil)
}

// compact moves some contents to a new part.
func (h *history) compact(g *gardener, number uint64) {
	g.newContent()
	part := g.contents[0].Part
	for _, e := range g.known {
		if g.rnd.IntN(3) == 0 {
			g.contents = append(g.contents, archive.Line{Content: &archive.Placement{Part: part.Name,
				Content: archive.Content{Hash: e.Hash, RawOffset: int64(len(g.contents)) * 8192, RawLen: e.Len}}})
		}
	}
	lines := g.contents
	g.contents = nil
	h.add(header(archive.KindCompaction, number, 0), lines, nil)
	h.lines[number-1] = slices.Concat(lines, h.removeParts(g))
}

// removeParts removes every second part that nothing needs which is kept, or that
// the next generation of a source is compared with.
func (h *history) removeParts(g *gardener) (lines []archive.Line) {
	needed := h.needed(func(number uint64) bool { return !h.gone[number] })
	for _, head := range h.heads {
		maps.Copy(needed, h.needed(func(number uint64) bool { return number == head }))
	}
	free := map[archive.Digest]bool{}
	for hash, p := range h.places {
		free[p.Part] = (free[p.Part] || !has(free, p.Part)) && !needed[hash]
	}
	for _, part := range slices.SortedFunc(maps.Keys(free), func(a, b archive.Digest) int { return strings.Compare(a.String(), b.String()) }) {
		if !free[part] || g.rnd.IntN(2) == 0 {
			continue
		}
		lines = append(lines, archive.Line{Removed: &part})
		maps.DeleteFunc(h.places, func(_ archive.Hash, p archive.Placement) bool { return p.Part == part })
	}
	g.known = slices.DeleteFunc(g.known, func(e archive.Extent) bool { return !has(h.places, e.Hash) })
	return lines
}

func has[K comparable, V any](m map[K]V, key K) bool { _, ok := m[key]; return ok }

// needed returns the contents of the generations that use picks.
func (h *history) needed(use func(number uint64) bool) map[archive.Hash]bool {
	set := map[archive.Hash]bool{}
	for i, tree := range h.trees {
		if tree == nil || !use(uint64(i)+1) {
			continue
		}
		for _, e := range tree {
			for _, x := range e.Data {
				set[x.Hash] = true
			}
		}
	}
	return set
}

// needs returns the contents that the kept generations need, and how long: those
// that are the newest of their source come last.
func (h *history) needs(kept []uint64) map[archive.Hash]Need {
	newest := map[string]uint64{}
	for _, number := range kept {
		newest[h.headers[number-1].Source] = number
	}
	order := slices.Clone(kept)
	current := func(number uint64) bool { return newest[h.headers[number-1].Source] == number }
	order = slices.DeleteFunc(order, current)
	set := map[archive.Hash]Need{}
	for i, number := range order {
		for hash := range h.needed(func(n uint64) bool { return n == number }) {
			set[hash] = Need(i + 1)
		}
	}
	for hash := range h.needed(func(n uint64) bool { return slices.Contains(kept, n) && current(n) }) {
		set[hash] = Need(len(order) + 1)
	}
	return set
}

// checkLive compares what is needed with the trees of the kept generations.
func (h *history) checkLive(t *testing.T, db *DB, kept []uint64) {
	t.Helper()
	want, got := h.needs(kept), map[archive.Hash]Need{}
	usage, err := db.Live(func(p archive.Placement, need Need, again bool) error {
		place, err := db.Content(p.Hash)
		places := []Place{place}
		if again {
			places, err = db.Elsewhere(p.Hash)
		}
		if err != nil || !slices.ContainsFunc(places, func(at Place) bool {
			return at.Part.Name == p.Part && at.RawOffset == p.RawOffset && at.RawLen == p.RawLen
		}) {
			t.Errorf("content %s is in %s at %d, said to be at %+v, %v", p.Hash, p.Part, p.RawOffset, places, err)
		}
		if need > 0 {
			got[p.Hash] = need
		}
		return nil
	})
	if err != nil || !maps.Equal(got, want) || usage.Live != int64(len(want)) {
		t.Fatalf("at record %d, the needs are %v, want %v: %+v, %v", db.Number(), got, want, usage, err)
	}
	if db.Number() == uint64(len(h.trees)) && usage.Contents != int64(len(h.places)) {
		t.Fatalf("%d contents, want %d", usage.Contents, len(h.places))
	}
}

// record returns the record of a number, to be applied.
func (h *history) record(number uint64) *fakeRecord {
	return newRecord(h.headers[number-1], slices.Values(h.lines[number-1]))
}

func (h *history) apply(t *testing.T, b *builder) {
	t.Helper()
	if err := b.apply(h.record(b.number + 1)); err != nil {
		t.Fatal(err)
	}
}

// check compares all generations of an index with the trees.
func (h *history) check(t *testing.T, db *DB) {
	t.Helper()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	var want, got []uint64
	forgotten := h.forgottenAt(db.Number())
	for n := uint64(1); n <= db.Number(); n++ {
		if h.trees[n-1] != nil && !forgotten[n] {
			want = append(want, n)
		}
	}
	for _, g := range gens {
		got = append(got, g.Number)
		header := h.headers[g.Number-1]
		if g.Name != header.Name || g.Source != header.Source || !g.Time.Equal(header.Time) {
			t.Fatalf("generation %d is %+v, its header is %+v", g.Number, g, header)
		}
		h.checkTree(t, db, g)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("generations %v, want %v", got, want)
	}
	h.checkLive(t, db, want)
}

func (h *history) forgottenAt(number uint64) map[uint64]bool {
	gone := map[uint64]bool{}
	for _, lines := range h.lines[:number] {
		for _, l := range lines {
			if l.Forget > 0 {
				gone[l.Forget] = true
			}
		}
	}
	return gone
}

func (h *history) checkTree(t *testing.T, db *DB, g Generation) {
	t.Helper()
	tree := h.trees[g.Number-1]
	v := db.At(g.Number)
	var files, dirs, raw int64
	groups := map[string]Ino{}
	found := walk(t, v, g.Root)
	if got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(tree)); !slices.Equal(got, want) {
		t.Fatalf("generation %d has the paths %q, want %q", g.Number, got, want)
	}
	for path, want := range tree {
		e := found[path]
		if want.Attr.Type == archive.TypeDir {
			dirs++
		} else {
			files++
			raw += rawSize(want.Attr)
		}
		if e.Attr != want.Attr || e.Ino < FirstIno || (e.Dir != 0) != (want.Attr.Type == archive.TypeDir) {
			t.Fatalf("generation %d, %q: %+v, want %+v", g.Number, path, e, want.Attr)
		}
		if want.Attr.Type == archive.TypeFile && e.DataBytes != dataBytes(want.Data) || want.Attr.Type != archive.TypeFile && e.DataBytes != 0 {
			t.Fatalf("generation %d, %q: %d bytes that are no holes, want those of %+v", g.Number, path, e.DataBytes, want.Data)
		}
		if want.Group != "" {
			if other, ok := groups[want.Group]; ok && other != e.Ino {
				t.Fatalf("generation %d: links %q have the inodes %d and %d", g.Number, want.Group, e.Ino, other)
			}
			groups[want.Group] = e.Ino
		}
		if r, err := v.Resolve(g.Root, path); err != nil || r != e && path != "." {
			t.Fatalf("generation %d: resolve %q: %+v, %v, want %+v", g.Number, path, r, err, e)
		}
		h.checkInode(t, db, e.Ino, want)
	}
	if g.Files != files || g.Dirs != dirs || g.Raw != raw {
		t.Fatalf("generation %d: %+v, want %d files, %d directories, %d raw", g.Number, g, files, dirs, raw)
	}
}

// walk returns all entries of a tree by path.
func walk(t *testing.T, v View, root DirID) map[string]Dirent {
	t.Helper()
	n, err := v.Dir(root)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Dirent{".": {Name: ".", Dir: root, Ino: n.Ino, Attr: n.Attr}}
	var visit func(dir, parent DirID, path string)
	visit = func(dir, parent DirID, path string) {
		if n, err := v.Dir(dir); err != nil || n.Parent != parent {
			t.Fatalf("%q lies in the directory %d, want %d: %v", path, n.Parent, parent, err)
		}
		last := ""
		var dirs []Dirent
		err := v.List(dir, "", func(e Dirent) bool {
			if e.Name <= last {
				t.Fatalf("%q behind %q", e.Name, last)
			}
			last = e.Name
			found[path+e.Name] = e
			if e.Dir != 0 {
				dirs = append(dirs, e)
			}
			return true
		})
		if err != nil {
			t.Fatalf("list %q: %v", path, err)
		}
		if _, err := v.Lookup(dir, last+"x"); !errors.Is(err, ErrNotFound) && last != "" && len(last) < maxName && found[path+last+"x"].Name == "" {
			t.Fatalf("lookup of what is not there: %v", err)
		}
		for _, e := range dirs {
			visit(e.Dir, dir, path+e.Name+"/")
		}
	}
	visit(root, 0, "")
	return found
}

func (h *history) checkInode(t *testing.T, db *DB, ino Ino, want *archive.Entry) {
	t.Helper()
	i, err := db.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	if i.Attr != want.Attr || i.Target != want.Target || i.Changed != want.Changed {
		t.Fatalf("inode %d: %+v, want %+v", ino, i, want)
	}
	xattrs, err := db.Xattrs(ino)
	if err != nil || !slices.Equal(xattrs, want.Xattrs) || ino.HasXattrs() != (len(want.Xattrs) > 0) {
		t.Fatalf("inode %d: %q, %v, want %q", ino, xattrs, err, want.Xattrs)
	}
	got, err := extentsOf(db, ino, 0, want.Attr.Size)
	if err != nil {
		t.Fatal(err)
	}
	var stored int64
	for n, e := range got {
		if n >= len(want.Data) || (archive.Extent{Offset: e.Offset, Len: e.Len, Hash: e.Hash}) != want.Data[n] {
			t.Fatalf("inode %d: extent %d is %+v", ino, n, e)
		}
		if p := h.places[e.Hash]; db.Number() == uint64(len(h.trees)) && (p.Part != e.Part.Name || p.RawOffset != e.RawOffset) {
			t.Fatalf("inode %d: extent %d lies at %+v, want %+v", ino, n, e, p)
		}
		stored += e.Len
	}
	if len(got) != len(want.Data) || stored != i.DataBytes {
		t.Fatalf("inode %d: %d extents of %d bytes, want %d of %d", ino, len(got), stored, len(want.Data), i.DataBytes)
	}
}

// dump returns everything that a database answers, numbers included.
func dump(t *testing.T, db *DB) string {
	t.Helper()
	var s strings.Builder
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gens {
		fmt.Fprintf(&s, "%+v\n", g)
		found := walk(t, db.At(g.Number), g.Root)
		for _, path := range slices.Sorted(maps.Keys(found)) {
			e := found[path]
			x, err := extentsOf(db, e.Ino, 0, 1<<62)
			if err != nil {
				t.Fatal(err)
			}
			xattrs, err := db.Xattrs(e.Ino)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&s, "%q %d %d %v %q", path, e.Ino, e.Dir, e.Attr, xattrs)
			for _, e := range x {
				fmt.Fprintf(&s, " %d+%d %x %x@%d", e.Offset, e.Len, e.Hash[:4], e.Part.Name[:8], e.RawOffset)
			}
			s.WriteByte('\n')
		}
	}
	for _, source := range []string{"", "web1", "none"} {
		n, ok, err := db.Head(source)
		fmt.Fprintln(&s, source, n, ok, err)
	}
	err = db.Parts(func(p archive.Part) bool { fmt.Fprintf(&s, "%+v\n", p); return true })
	raw, stored := db.Totals()
	fmt.Fprintln(&s, err, raw, stored, db.HasXattrs(), db.HasLabels(), db.Number())
	return s.String()
}
