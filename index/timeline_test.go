package index

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
)

// wantVersion is a version as the oracle finds it, by the number of its
// generations.
type wantVersion struct {
	first, last uint64
	entry       *archive.Entry
}

// kept returns the generations of a source that were not forgotten, at a number.
func (h *history) kept(source string, number uint64) []uint64 {
	var kept []uint64
	forgotten := h.forgottenAt(number)
	for n := uint64(1); n <= number; n++ {
		if h.trees[n-1] != nil && h.headers[n-1].Source == source && !forgotten[n] {
			kept = append(kept, n)
		}
	}
	return kept
}

// versions returns the versions of a path, by looking at every generation.
func (h *history) versions(kept []uint64, path string) []wantVersion {
	var list []wantVersion
	var before *archive.Entry
	for _, n := range kept {
		e := h.trees[n-1][path]
		switch {
		case e != nil && before != nil && looksLike(before, e):
			list[len(list)-1].last = n
		case e != nil:
			list = append(list, wantVersion{n, n, e})
		}
		before = e
	}
	return list
}

// looksLike reports whether a restore of two entries gives the same.
func looksLike(a, b *archive.Entry) bool {
	x, y := a.Attr, b.Attr
	if x.Type != archive.TypeFile {
		x.Size, y.Size = 0, 0
	}
	return x.Type == y.Type && x.Mode == y.Mode && x.UID == y.UID && x.GID == y.GID && x.Size == y.Size && x.Mtime == y.Mtime &&
		x.Rdev == y.Rdev && a.Target == b.Target && reflect.DeepEqual(a.Xattrs, b.Xattrs) && reflect.DeepEqual(a.Data, b.Data)
}

// paths returns every path that a source ever had.
func (h *history) paths(source string) []string {
	all := map[string]bool{"no/such/path": true, "no": true}
	for n, tree := range h.trees {
		if h.headers[n].Source == source {
			for path := range tree {
				all[path] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// timelines returns the generations of each source.
func timelines(t *testing.T, db *DB) map[string][]Generation {
	t.Helper()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string][]Generation{"": nil, "web1": nil}
	for _, g := range gens {
		lines[g.Source] = append(lines[g.Source], g)
	}
	return lines
}

func (h *history) checkTimelines(t *testing.T, db *DB) {
	t.Helper()
	for source, gens := range timelines(t, db) {
		line, kept := db.Timeline(gens), h.kept(source, db.Number())
		for _, path := range h.paths(source) {
			got, err := line.Versions(path)
			if err != nil {
				t.Fatalf("source %q, %q: %v", source, path, err)
			}
			want := h.versions(kept, path)
			if len(got) != len(want) {
				t.Fatalf("source %q, %q: %d versions, want %d\n%+v", source, path, len(got), len(want), got)
			}
			for i, v := range got {
				w := want[i]
				if v.First.Number != w.first || v.Last.Number != w.last || v.Attr != w.entry.Attr {
					t.Fatalf("source %q, %q: version %d is %+v, want %d to %d, %+v", source, path, i, v, w.first, w.last, w.entry)
				}
				e, err := db.At(w.first).Resolve(v.First.Root, path)
				if err != nil || e != v.Dirent {
					t.Fatalf("source %q, %q: version %d is %+v, its generation has %+v, %v", source, path, i, v.Dirent, e, err)
				}
			}
		}
	}
}

// spansOf returns when a path was there, as "first-last" numbers.
func (h *history) spansOf(kept []uint64, path string) (spans []string, kind archive.FileType) {
	first, last := uint64(0), uint64(0)
	end := func() {
		if first > 0 {
			spans = append(spans, fmt.Sprintf("%d-%d", first, last))
		}
		first = 0
	}
	for _, n := range kept {
		e := h.trees[n-1][path]
		if e == nil {
			end()
			continue
		}
		if first == 0 {
			first = n
		}
		last, kind = n, e.Attr.Type
	}
	end()
	return spans, kind
}

func (h *history) checkSearch(t *testing.T, db *DB, name string) {
	t.Helper()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	found, err := db.Search(gens, func(dir, n string) bool {
		if dir != "" && strings.HasSuffix(dir, "/") {
			t.Errorf("directory %q", dir)
		}
		return name == "" || n == name
	})
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, f := range found {
		var spans []string
		for _, s := range f.Spans {
			spans = append(spans, fmt.Sprintf("%d-%d", s.First.Number, s.Last.Number))
		}
		got = append(got, fmt.Sprintf("%q %q %v %q", f.Source, f.Path, f.Type, spans))
	}
	for _, source := range []string{"", "web1"} {
		kept, paths := h.kept(source, db.Number()), h.paths(source)
		slices.SortFunc(paths, ComparePaths)
		for _, path := range paths {
			if path == "." || name != "" && path[strings.LastIndexByte(path, '/')+1:] != name {
				continue
			}
			if spans, kind := h.spansOf(kept, path); len(spans) > 0 {
				want = append(want, fmt.Sprintf("%q %q %v %q", source, path, kind, spans))
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("search for %q gives\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestTimelines compares versions, spans and differences with what a look at
// every generation finds; generations are forgotten, begin anew, and lose their
// versions in a merge.
func TestTimelines(t *testing.T) {
	for seed := range uint64(6) {
		const records = 36
		h := newHistory(seed+100, records)
		b := newTestBuilder(t)
		for range records {
			h.apply(t, b)
			if err := b.flush(); err != nil {
				t.Fatal(err)
			}
		}
		check := func(db *DB) {
			t.Helper()
			h.checkTimelines(t, db)
			h.checkSearch(t, db, "")
			h.checkSearch(t, db, "b.c")
			h.checkDifferences(t, db)
		}
		check(finished(t, b))
		if planMerge(b.tables, 1) == 0 {
			t.Fatal("there is nothing to merge")
		}
		if err := b.mergeRuns(1, true); err != nil {
			t.Fatal(err)
		}
		check(finished(t, b))
	}
}

// checkDifferences compares neighbouring states of all paths.
func (h *history) checkDifferences(t *testing.T, db *DB) {
	t.Helper()
	for _, gens := range timelines(t, db) {
		for i := 1; i < len(gens); i++ {
			before, now := gens[i-1], gens[i]
			for path, a := range h.trees[before.Number-1] {
				b := h.trees[now.Number-1][path]
				if b == nil {
					continue
				}
				x, err := db.At(before.Number).Resolve(before.Root, path)
				if err != nil {
					t.Fatal(err)
				}
				y, err := db.At(now.Number).Resolve(now.Root, path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := db.Compare(x, y)
				want := Difference{Type: true}
				if a.Attr.Type == b.Attr.Type {
					want = Difference{Mode: a.Attr.Mode != b.Attr.Mode, Owner: a.Attr.UID != b.Attr.UID || a.Attr.GID != b.Attr.GID,
						Mtime: a.Attr.Mtime != b.Attr.Mtime, Target: a.Target != b.Target, Device: a.Attr.Rdev != b.Attr.Rdev,
						Xattrs: !reflect.DeepEqual(a.Xattrs, b.Xattrs)}
					if a.Attr.Type == archive.TypeFile {
						want.Size = a.Attr.Size != b.Attr.Size
						want.Content = want.Size || !reflect.DeepEqual(a.Data, b.Data)
					}
				}
				if err != nil || got != want {
					t.Fatalf("%q from %d to %d: %+v, %v, want %+v", path, before.Number, now.Number, got, err, want)
				}
			}
		}
	}
}

// TestVersionsOfWhatCameBack: what was deleted and comes back as it was is a new
// version, unless no generation that is kept saw the gap.
func TestVersionsOfWhatCameBack(t *testing.T) {
	b := newTestBuilder(t)
	for n, lines := range [][]archive.Line{
		{entryLine(".", dirAttr()), entryLine("dir", dirAttr()), entryLine("dir/file", fileAttr(0))},
		{{Gone: "dir/file"}},
		{entryLine("dir/file", fileAttr(0))},
		{{Gone: "dir"}},
		{entryLine("dir", dirAttr()), entryLine("dir/file", fileAttr(0))},
	} {
		if err := applyLines(t, b, archive.KindGeneration, uint64(n), lines...); err != nil {
			t.Fatal(err)
		}
	}
	db := finished(t, b)
	all, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		gens []int
		path string
		want string
	}{
		{[]int{0, 1, 2, 3, 4}, "dir/file", "1-1 3-3 5-5"},
		{[]int{0, 2, 4}, "dir/file", "1-5"},
		{[]int{0, 2, 3, 4}, "dir/file", "1-3 5-5"},
		{[]int{0, 1, 2, 3, 4}, "dir", "1-3 5-5"},
		{[]int{1, 3}, "dir/file", ""},
		{nil, "dir/file", ""},
		{nil, ".", ""},
	} {
		var gens []Generation
		for _, i := range c.gens {
			gens = append(gens, all[i])
		}
		versions, err := db.Timeline(gens).Versions(c.path)
		var got []string
		for _, v := range versions {
			got = append(got, fmt.Sprintf("%d-%d", v.First.Number, v.Last.Number))
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q in %v: %q, %v, want %q", c.path, c.gens, got, err, c.want)
		}
	}
}

func TestContentHash(t *testing.T) {
	b := newTestBuilder(t)
	part := archive.Line{Part: &archive.Part{Stored: 1000, Raw: 1 << 20, TailStored: 10}}
	content := func(text string, offset int64) (archive.Line, archive.Extent) {
		h := archive.HashOf([]byte(text))
		n := int64(len(text))
		return archive.Line{Content: &archive.Placement{Content: archive.Content{Hash: h, RawOffset: offset, RawLen: n}}}, archive.Extent{Len: n, Hash: h}
	}
	one, x := content("hello", 0)
	two, y := content("world!", 512)
	y.Offset = 5
	hole := x
	hole.Offset = 100
	err := applyLines(t, b, archive.KindGeneration, 0, part, one, two, entryLine(".", dirAttr()), entryLine("both", fileAttr(11), x, y),
		entryLine("empty", fileAttr(0)), entryLine("hole", fileAttr(9)), entryLine("late", fileAttr(105), hole), entryLine("one", fileAttr(5), x))
	if err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	// size, then offset, length and hash of each extent
	both := "\x00\x00\x00\x00\x00\x00\x00\x0b" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05" + string(x.Hash[:]) +
		"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06" + string(y.Hash[:])
	late := "\x00\x00\x00\x00\x00\x00\x00\x69" +
		"\x00\x00\x00\x00\x00\x00\x00\x64\x00\x00\x00\x00\x00\x00\x00\x05" + string(x.Hash[:])
	for _, want := range []struct {
		name   string
		whole  bool
		hashed string
	}{
		{"empty", true, ""},
		{"one", true, "hello"},
		{"both", false, both},
		{"late", false, late},
		{"hole", false, "\x00\x00\x00\x00\x00\x00\x00\x09"},
	} {
		e, err := db.At(1).Lookup(1, want.name)
		if err != nil {
			t.Fatal(err)
		}
		hash, whole, err := db.ContentHash(e.Ino)
		if err != nil || whole != want.whole || hash != archive.HashOf([]byte(want.hashed)) {
			t.Errorf("%s: %s, %t, %v, want the hash of %q, %t", want.name, hash, whole, err, want.hashed, want.whole)
		}
	}
}
