package index

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// TestRandomHistory compares every generation with an oracle after every record,
// with an index that is cloned for each record, and one that is built at once.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	records := 30
	if testing.Short() {
		records = 12
	}
	for seed := uint64(1); seed <= 2; seed++ {
		h := newHistory(seed, records)
		stepwise := newTestBuilder(t)
		var last *DB
		for n := range h.headers {
			h.apply(t, stepwise)
			last = finished(t, stepwise)
			if n%3 == 0 || n > records-3 {
				h.check(t, last)
			}
			stepwise = cloned(t, stepwise)
		}
		atOnce := newTestBuilder(t)
		for range h.headers {
			h.apply(t, atOnce)
		}
		db := finished(t, atOnce)
		h.check(t, db)
		if got, want := dump(t, db), dump(t, last); got != want {
			t.Fatalf("seed %d: built at once:\n%s\nstep by step:\n%s", seed, got, want)
		}
	}
}

// cloned returns a builder that goes on where a finished one ended.
func cloned(t testing.TB, b *builder) *builder {
	t.Helper()
	dir := t.TempDir()
	for _, f := range b.tables {
		if err := os.Link(filepath.Join(b.dir, f.name()), filepath.Join(dir, f.name())); err != nil {
			t.Fatal(err)
		}
	}
	next, err := newBuilder(disk.OS{}, dir, b.tables, b.number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.close() })
	return next
}

// TestHostileRecords applies records that are wrong. Each is refused with an error
// that names the line, and leaves the state before readable.
func TestHostileRecords(t *testing.T) {
	t.Parallel()
	part := archive.Part{Name: archive.Digest{1}, Stored: 1000, Raw: 10240, TailStored: 100}
	hash := archive.HashOf([]byte("x"))
	content := func(off, n int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: hash, RawOffset: off, RawLen: n}}}
	}
	file := func(path string, size int64, data ...archive.Extent) archive.Line {
		return entryLine(path, fileAttr(size), data...)
	}
	dir := func(path string) archive.Line { return entryLine(path, dirAttr()) }
	gone := func(path string) archive.Line { return archive.Line{Gone: path} }
	with := func(change func(e *archive.Entry)) archive.Line {
		l := file("n", 10)
		change(l.Entry)
		return l
	}
	generation := []archive.Line{{Part: &part}, content(512, 100), dir("."), dir("a"), file("a/f", 100, archive.Extent{Len: 100, Hash: hash}),
		dir("b"), dir("b/c"), file("b/c/d", 0), file("f", 0)}
	long := strings.Repeat("n", 256)
	known := archive.Extent{Len: 100, Hash: hash}
	other := archive.Part{Name: archive.Digest{2}, Stored: 1000, Raw: 10240, TailStored: 100}

	for name, c := range map[string]struct {
		kind  archive.Kind
		base  uint64
		lines []archive.Line
		want  string
	}{
		"empty name":             {lines: []archive.Line{file("a//b", 0)}, want: `entry "a//b": bad name ""`},
		"empty path":             {lines: []archive.Line{file("", 0)}, want: `entry "": bad name ""`},
		"leading slash":          {lines: []archive.Line{file("/a", 0)}, want: `bad name ""`},
		"trailing slash":         {lines: []archive.Line{file("a/", 0)}, want: `bad name ""`},
		"dot":                    {lines: []archive.Line{file("a/.", 0)}, want: `bad name "."`},
		"dot dot":                {lines: []archive.Line{file("a/../b", 0)}, want: `bad name ".."`},
		"NUL":                    {lines: []archive.Line{file("a/\x00", 0)}, want: `bad name "\x00"`},
		"long name":              {lines: []archive.Line{file(long, 0)}, want: "name of 256 bytes"},
		"long directory":         {lines: []archive.Line{file(long+"/a", 0)}, want: "name of 256 bytes"},
		"no directory":           {lines: []archive.Line{file("x/y", 0)}, want: `there is no directory "x"`},
		"below a file":           {lines: []archive.Line{file("f/y", 0)}, want: `there is no directory "f"`},
		"below a gone one":       {lines: []archive.Line{gone("a"), file("a/y", 0)}, want: `there is no directory "a"`},
		"below a replaced one":   {lines: []archive.Line{file("a", 0), file("a/y", 0)}, want: `there is no directory "a"`},
		"below a new file":       {lines: []archive.Line{file("n", 0), file("n/y", 0)}, want: `there is no directory "n"`},
		"twice":                  {lines: []archive.Line{file("n", 0), file("n", 0)}, want: `entry "n": out of order: behind "n"`},
		"gone twice":             {lines: []archive.Line{gone("f"), gone("f")}, want: "out of order"},
		"descending":             {lines: []archive.Line{file("z", 0), file("n", 0)}, want: `out of order: behind "z"`},
		"bytes for components":   {lines: []archive.Line{file("a-b", 0), file("a/n", 0)}, want: "out of order"},
		"child first":            {lines: []archive.Line{file("a/n", 0), dir("a")}, want: "out of order"},
		"root late":              {lines: []archive.Line{file("n", 0), dir(".")}, want: "out of order"},
		"root is a file":         {lines: []archive.Line{file(".", 0)}, want: "the root is a file"},
		"root gone":              {lines: []archive.Line{gone(".")}, want: "the root cannot go"},
		"gone, never there":      {lines: []archive.Line{gone("n")}, want: `gone "n": it was not there`},
		"gone below nothing":     {lines: []archive.Line{gone("n/m")}, want: "there is no directory"},
		"nothing":                {lines: []archive.Line{{}}, want: "line that says nothing"},
		"part behind entries":    {lines: []archive.Line{file("n", 0), {Part: &other}}, want: "out of order"},
		"content behind entries": {lines: []archive.Line{file("n", 0), content(0, 1)}, want: "out of order"},
		"part without size":      {lines: []archive.Line{{Part: &archive.Part{Name: other.Name}}}, want: "impossible sizes"},
		"part of another size":   {lines: []archive.Line{{Part: &archive.Part{Name: part.Name, Stored: 9, Raw: 9, TailStored: 1}}}, want: "with another size"},
		"parts too large":        {lines: []archive.Line{{Part: &archive.Part{Name: other.Name, Stored: math.MaxInt64, Raw: 9, TailStored: 1}}}, want: "overflows"},
		"content of two lengths": {lines: []archive.Line{content(512, 99), content(512, 100)}, want: "100 bytes, but it was named before with 99"},
		"unknown part":           {lines: []archive.Line{{Content: &archive.Placement{Part: other.Name, Content: archive.Content{Hash: hash, RawLen: 1}}}}, want: "which no record named"},
		"content beyond part":    {lines: []archive.Line{content(10000, 241)}, want: "outside of the part"},
		"content before part":    {lines: []archive.Line{content(-1, 10)}, want: "outside of the part"},
		"empty content":          {lines: []archive.Line{content(0, 0)}, want: "outside of the part"},
		"huge content":           {lines: []archive.Line{content(1, math.MaxInt64)}, want: "outside of the part"},
		"unknown content":        {lines: []archive.Line{file("n", 9, archive.Extent{Len: 9, Hash: archive.Hash{7}})}, want: "which no record named"},
		"content of other size":  {lines: []archive.Line{file("n", 200, archive.Extent{Len: 99, Hash: hash})}, want: "which has 100"},
		"extents overlap":        {lines: []archive.Line{file("n", 500, known, archive.Extent{Offset: 99, Len: 100, Hash: hash})}, want: "impossible extent: offset 99"},
		"extent beyond the end":  {lines: []archive.Line{file("n", 99, known)}, want: "impossible extent"},
		"extent before start":    {lines: []archive.Line{file("n", 500, archive.Extent{Offset: -1, Len: 100, Hash: hash})}, want: "impossible extent"},
		"empty extent":           {lines: []archive.Line{file("n", 500, archive.Extent{Hash: hash})}, want: "impossible extent"},
		"huge extent":            {lines: []archive.Line{file("n", 500, archive.Extent{Offset: 1, Len: math.MaxInt64, Hash: hash})}, want: "impossible extent"},
		"data in a directory":    {lines: []archive.Line{entryLine("n", dirAttr(), known)}, want: "a dir with data"},
		"negative size":          {lines: []archive.Line{file("n", -1)}, want: "impossible attributes"},
		"sizes too large":        {lines: []archive.Line{file("n", math.MaxInt64), file("o", math.MaxInt64)}, want: "overflows"},
		"no type":                {lines: []archive.Line{with(func(e *archive.Entry) { e.Attr.Type = 0 })}, want: "impossible attributes"},
		"bad type":               {lines: []archive.Line{with(func(e *archive.Entry) { e.Attr.Type = 99 })}, want: "impossible attributes"},
		"long target":            {lines: []archive.Line{with(func(e *archive.Entry) { e.Target = strings.Repeat("t", maxTarget+1) })}, want: "target of"},
		"directory in a group":   {lines: []archive.Line{with(func(e *archive.Entry) { e.Attr, e.Group = dirAttr(), "g" })}, want: "hard-link group"},
		"whiteout in a group":    {lines: []archive.Line{with(func(e *archive.Entry) { e.Attr.Type, e.Group = archive.TypeChar, "g" })}, want: "hard-link group"},
		"xattr without name":     {lines: []archive.Line{with(func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{}} })}, want: "extended attribute"},
		"xattrs unordered":       {lines: []archive.Line{with(func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "b"}, {Name: "a"}} })}, want: "extended attribute"},
		"xattr twice":            {lines: []archive.Line{with(func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "b"}, {Name: "b"}} })}, want: "extended attribute"},
		"long xattr name":        {lines: []archive.Line{with(func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: long}} })}, want: "extended attribute"},
		"long xattr": {lines: []archive.Line{with(func(e *archive.Entry) {
			e.Xattrs = []archive.Xattr{{Name: "a", Value: strings.Repeat("v", maxXattrValue+1)}}
		})}, want: "extended attribute"},
		"base of nothing":     {base: 7, want: "its base 7 is not the newest generation"},
		"complete, no root":   {base: math.MaxUint64, want: "has no root"},
		"complete, no root 2": {base: math.MaxUint64, lines: []archive.Line{file("n", 0)}, want: "the root is missing"},
		"forget the future":   {kind: archive.KindForget, lines: []archive.Line{{Forget: 9}}, want: "forget 9: no such generation"},
		"forget itself":       {kind: archive.KindForget, lines: []archive.Line{{Forget: 2}}, want: "no such generation"},
		"forget twice":        {kind: archive.KindForget, lines: []archive.Line{{Forget: 1}, {Forget: 1}}, want: "forgotten already"},
		"entry in a forget":   {kind: archive.KindForget, lines: []archive.Line{file("n", 0)}, want: "in a record that is a forget"},
		"gone in compaction":  {kind: archive.KindCompaction, lines: []archive.Line{gone("f")}, want: "in a record that is a compaction"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestBuilder(t)
			if err := applyLines(t, b, archive.KindGeneration, 0, generation...); err != nil {
				t.Fatal(err)
			}
			if c.kind == "" {
				c.kind = archive.KindGeneration
			}
			switch c.base {
			case 0:
				c.base = 1
			case math.MaxUint64:
				c.base = 0
			}
			err := applyLines(t, b, c.kind, c.base, c.lines...)
			if err == nil || !strings.HasPrefix(err.Error(), "log record 2: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if b.number != 1 {
				t.Errorf("covers record %d", b.number)
			}
			if err := b.finish(false); err != nil {
				t.Fatal(err)
			}
			db, err := newDB(b.dir, b.tables, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if g, err := db.Generations(); err != nil || len(g) != 1 || g[0].Files != 3 || g[0].Dirs != 4 || g[0].Raw != 100 {
				t.Errorf("%+v, %v", g, err)
			}
			if found := walk(t, db.At(1), 1); len(found) != 7 {
				t.Errorf("%v", found)
			}
		})
	}
}

// TestChain refuses records that do not follow the one before.
func TestChain(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	root := slices.Values([]archive.Line{entryLine(".", dirAttr())})
	for name, change := range map[string]func(h *archive.Header){
		"it does not follow record 0": func(h *archive.Header) { h.Number = 2 },
		"with the digest":             func(h *archive.Header) { h.Previous[0]++ },
		"its base 1":                  func(h *archive.Header) { h.Base = 1 },
		"source name":                 func(h *archive.Header) { h.Source = strings.Repeat("s", 256) },
	} {
		h := header(archive.KindGeneration, 1, 0)
		change(&h)
		if err := b.apply(newRecord(h, root)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), root)); err != nil {
		t.Error(err)
	}
}

// TestHardLinks follows a group through the ways in which its links appear.
func TestHardLinks(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	link := func(path, group string, change func(e *archive.Entry)) archive.Line {
		l := entryLine(path, fileAttr(0))
		l.Entry.Group, l.Entry.Attr.Nlink = group, 3
		if change != nil {
			change(l.Entry)
		}
		return l
	}
	changed := func(e *archive.Entry) { e.Attr.Mtime.Sec++ }
	labelled := func(e *archive.Entry) { e.Changed = true }
	tagged := func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "user.a", Value: "b"}} }
	for n, lines := range [][]archive.Line{
		{entryLine(".", dirAttr()), link("a", "g", nil), link("b", "g", nil), link("c", "other", nil), link("d", "g", changed)},
		{link("e", "g", changed), link("f", "g", nil)},
		{link("g", "g", nil), link("h", "g", labelled), link("i", "g", tagged), link("j", "g", tagged)},
	} {
		if err := applyLines(t, b, archive.KindGeneration, uint64(n), lines...); err != nil {
			t.Fatal(err)
		}
	}
	db := finished(t, b)
	found := walk(t, db.At(3), 1)
	ino := func(name string) Ino { return found[name].Ino }
	for _, same := range []string{"ab", "de", "fg", "ij"} {
		if ino(same[:1]) != ino(same[1:]) {
			t.Errorf("%s has %d, %s has %d", same[:1], ino(same[:1]), same[1:], ino(same[1:]))
		}
	}
	distinct := map[Ino]bool{}
	for _, name := range []string{"a", "c", "d", "f", "h", "i"} {
		distinct[ino(name)] = true
	}
	if len(distinct) != 6 {
		t.Errorf("not distinct: %v", distinct)
	}
}

// TestSieve checks that a merge of everything drops what only forgotten
// generations saw, and nothing else.
func TestSieve(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	file := func(path string, version int64) archive.Line { return entryLine(path, fileAttr(version)) }
	apply := func(kind archive.Kind, base uint64, lines ...archive.Line) {
		h := header(kind, b.number+1, base)
		h.Time = h.Time.AddDate(0, 0, int(h.Number)*2)
		if err := b.apply(newRecord(h, slices.Values(lines))); err != nil {
			t.Fatal(err)
		}
	}
	dir := func(path string) archive.Line { return entryLine(path, dirAttr()) }
	apply(archive.KindGeneration, 0, dir("."), file("always", 1), file("changed", 1), dir("dead"), file("dead/f", 1), file("short", 1))
	apply(archive.KindGeneration, 1, file("changed", 2), archive.Line{Gone: "dead"}, archive.Line{Gone: "short"})
	if err := b.flush(); err != nil {
		t.Fatal(err)
	}
	apply(archive.KindGeneration, 2, file("changed", 3))
	apply(archive.KindGeneration, 3, file("changed", 4))
	apply(archive.KindForget, 0, archive.Line{Forget: 1}, archive.Line{Forget: 3})
	apply(archive.KindForget, 0, archive.Line{Forget: 4})
	apply(archive.KindCompaction, 0)
	if err := b.spill(); err != nil {
		t.Fatal(err)
	}
	if err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	before := countKeys(t, b.disk)
	b.close()
	if err := b.mergeRuns(1, true); err != nil {
		t.Fatal(err)
	}
	if err := b.reopen(); err != nil {
		t.Fatal(err)
	}
	after := countKeys(t, b.disk)
	want := map[byte]int{
		spaceNode:       1,     // the root; the dead directory is forgotten
		spaceDirent:     1 + 2, // always; changed, as of 2 and 4
		spaceInode:      1 + 1 + 2,
		spaceGeneration: 2, // generation 2, and 4, on which the next one will be based
		spaceSource:     1,
		spaceMeta:       1,
	}
	if fmt.Sprint(after) != fmt.Sprint(want) {
		t.Errorf("keys before %v, after %v, want %v", before, after, want)
	}
}

// TestSievePins checks that a link that appears after all else of its group was
// dropped shares the inode, as it does in an index that was never merged.
func TestSievePins(t *testing.T) {
	t.Parallel()
	for _, merge := range []bool{false, true} {
		b := newTestBuilder(t)
		apply := func(kind archive.Kind, base uint64, lines ...archive.Line) {
			h := header(kind, b.number+1, base)
			h.Time = h.Time.AddDate(0, 0, int(h.Number)*2)
			if err := b.apply(newRecord(h, slices.Values(lines))); err != nil {
				t.Fatal(err)
			}
		}
		link := func(path string) archive.Line {
			l := entryLine(path, fileAttr(7))
			l.Entry.Group = "g"
			l.Entry.Xattrs = []archive.Xattr{{Name: "user.a", Value: "b"}}
			return l
		}
		apply(archive.KindGeneration, 0, entryLine(".", dirAttr()), link("a"))
		apply(archive.KindGeneration, 1, archive.Line{Gone: "a"})
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
		apply(archive.KindForget, 0, archive.Line{Forget: 1})
		apply(archive.KindCompaction, 0)
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
		b.close()
		if merge {
			if err := b.mergeRuns(1, true); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.reopen(); err != nil {
			t.Fatal(err)
		}
		apply(archive.KindGeneration, 2, link("z"))
		db := finished(t, b)
		e, err := db.At(5).Resolve(1, "z")
		if err != nil || e.Ino != FirstIno+3 {
			t.Errorf("merged %v: %+v, %v", merge, e, err)
		}
		if x, err := db.Xattrs(e.Ino); err != nil || len(x) != 1 {
			t.Errorf("merged %v: %v, %v", merge, x, err)
		}
		if i, err := db.Inode(e.Ino); err != nil || i.Attr != fileAttr(7) {
			t.Errorf("merged %v: %v, %v", merge, i, err)
		}
	}
}

// TestMergeOfSome checks that a merge of the newest runs keeps what hides older
// values.
func TestMergeOfSome(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	if err := b.apply(newRecord(header(archive.KindGeneration, 1, 0), bigRecord(1000))); err != nil {
		t.Fatal(err)
	}
	if err := b.flush(); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 3; n++ {
		if err := applyLines(t, b, archive.KindGeneration, n, archive.Line{Gone: bigPath(int(n))}); err != nil {
			t.Fatal(err)
		}
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := applyLines(t, b, archive.KindForget, 0, archive.Line{Forget: 1}, archive.Line{Forget: 2}); err != nil {
		t.Fatal(err)
	}
	if err := b.spill(); err != nil {
		t.Fatal(err)
	}
	b.close()
	if err := b.mergeRuns(3, true); err != nil {
		t.Fatal(err)
	}
	if len(b.tables) != 2 {
		t.Fatalf("runs: %+v", b.tables)
	}
	db := finished(t, b)
	for n, want := range map[uint64]int{3: 1000 - 2, 4: 1000 - 3} {
		files := 0
		for _, e := range walk(t, db.At(n), 1) {
			if e.Dir == 0 {
				files++
			}
		}
		if files != want {
			t.Errorf("generation %d has %d files, want %d", n, files, want)
		}
	}
}

// TestBury counts out a directory whose entries are partly in tables, partly in
// memory, and partly in both.
func TestBury(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	for n, lines := range [][]archive.Line{
		{entryLine(".", dirAttr()), entryLine("d", dirAttr()), entryLine("d/a", fileAttr(1)), entryLine("d/b", fileAttr(2)),
			entryLine("d/c", fileAttr(4)), entryLine("d/e", fileAttr(8)), entryLine("x", fileAttr(64))},
		{entryLine("d/b", fileAttr(16)), archive.Line{Gone: "d/c"}, entryLine("d/d", fileAttr(32)), entryLine("d/f", fileAttr(128))},
		{archive.Line{Gone: "d"}},
	} {
		if err := applyLines(t, b, archive.KindGeneration, uint64(n), lines...); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if err := b.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	gens, err := finished(t, b).Generations()
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []Generation{{Files: 5, Dirs: 2, Raw: 79}, {Files: 6, Dirs: 2, Raw: 249}, {Files: 1, Dirs: 1, Raw: 64}} {
		if g := gens[n]; g.Files != want.Files || g.Dirs != want.Dirs || g.Raw != want.Raw {
			t.Errorf("generation %d: %+v, want %+v", n+1, g, want)
		}
	}
}

// TestListAfter lists a directory from every place in it.
func TestListAfter(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	lines := []archive.Line{entryLine(".", dirAttr())}
	sorted := slices.Sorted(slices.Values(names))
	for _, name := range sorted {
		lines = append(lines, entryLine(name, fileAttr(0)))
	}
	if err := applyLines(t, b, archive.KindGeneration, 0, lines...); err != nil {
		t.Fatal(err)
	}
	v := finished(t, b).At(1)
	list := func(after string, limit int) (got []string) {
		if err := v.List(1, after, func(e Dirent) bool { got = append(got, e.Name); return len(got) != limit }); err != nil {
			t.Error(err)
		}
		return got
	}
	for n, name := range sorted {
		if got := list(name, 0); !slices.Equal(got, sorted[n+1:]) {
			t.Errorf("behind %q: %q", name, got)
		}
		if got := list("", n+1); !slices.Equal(got, sorted[:n+1]) {
			t.Errorf("%d: %q", n, got)
		}
	}
	if got := list("b!", 0); !slices.Equal(got, sorted[slices.Index(sorted, "b-c"):]) {
		t.Errorf("behind a name that is not there: %q", got)
	}
	if err := v.List(2, "", func(Dirent) bool { return true }); !errors.Is(err, ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
}

// TestContradictions reads an index whose values are sound, but do not agree.
func TestContradictions(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	hash := archive.HashOf([]byte("x"))
	part := archive.Part{Name: archive.Digest{1}, Stored: 1000, Raw: 10240, TailStored: 100}
	content := func(n int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: hash, RawLen: n}}}
	}
	if err := applyLines(t, b, archive.KindGeneration, 0, archive.Line{Part: &part}, content(100), entryLine(".", dirAttr()), entryLine("d", dirAttr()),
		entryLine("f", fileAttr(100), archive.Extent{Len: 100, Hash: hash})); err != nil {
		t.Fatal(err)
	}
	if err := applyLines(t, b, archive.KindCompaction, 0, archive.Line{Part: &part}, content(99)); err != nil {
		t.Fatal(err)
	}
	// An entry more than the directory has, and one of a directory that is not there.
	if err := b.put(appendDirentKey(nil, 2, "more"), appendDirent(nil, dirent{kind: kindLeaf, ino: 256, attr: fileAttr(0)})); err != nil {
		t.Fatal(err)
	}
	if err := b.put(appendDirentKey(nil, 1, "lost"), appendDirent(nil, dirent{kind: kindDir, dir: 77})); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	v := db.At(2)
	if err := v.List(2, "", func(Dirent) bool { return true }); !errors.Is(err, ErrDamaged) {
		t.Errorf("list: %v", err)
	}
	if _, err := v.Lookup(1, "lost"); !errors.Is(err, ErrDamaged) {
		t.Errorf("lookup: %v", err)
	}
	e, err := v.Lookup(1, "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := extentsOf(db, e.Ino, 0, 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("extents: %v", err)
	}
}

// countKeys returns how many versions of keys there are in each space.
func countKeys(t *testing.T, in *tables) map[byte]int {
	t.Helper()
	count := map[byte]int{}
	c := newCursor(in, math.MaxUint64, nil, scanOptions{allVersions: true})
	for more := c.seek(nil); more; more = c.next() {
		count[c.key[0]]++
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	return count
}

// TestPlanMerge checks that the runs stay few and are not rewritten too often.
func TestPlanMerge(t *testing.T) {
	t.Parallel()
	b := &builder{}
	rewritten, added := int64(0), int64(0)
	for n := range 5000 {
		b.addRun(tableFile{ID: uint64(n), Stored: 1})
		added++
		level := planMerge(b.tables, maxRuns)
		if level == 0 {
			continue
		}
		var kept []tableFile
		sum := int64(0)
		for _, f := range b.tables {
			if f.Level <= level {
				sum += f.Stored
			} else {
				kept = append(kept, f)
			}
		}
		rewritten += sum
		b.tables = kept
		b.addRun(tableFile{ID: uint64(n), Stored: sum})
		for i, f := range b.tables {
			if f.Level != maxLevels-1-i {
				t.Fatalf("levels %+v", b.tables)
			}
		}
		if len(b.tables) > keptRuns+1 {
			t.Fatalf("%d runs after a merge", len(b.tables))
		}
	}
	if rewritten > 20*added {
		t.Errorf("%d values were rewritten %d times", added, rewritten)
	}
	t.Logf("%d values were rewritten %d times, %d runs", added, rewritten, len(b.tables))
}

// TestReadAhead checks that an error ends the decoding, wherever it comes from.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		lines, refused int // refused: the number of the line that is not taken; 0: none
		end            error
		want           error
		used           int
	}{
		{0, 0, io.EOF, nil, 0},
		{1, 0, io.EOF, nil, 1},
		{aheadLines, 0, io.EOF, nil, aheadLines},
		{10*aheadLines + 7, 0, io.EOF, nil, 10*aheadLines + 7},
		{3 * aheadLines, 0, broken, broken, 3 * aheadLines},
		{10 * aheadLines, 2, io.EOF, errRefused, 2},
		{10 * aheadLines, 5 * aheadLines, broken, errRefused, 5 * aheadLines},
	} {
		r := &countedRecord{lines: c.lines, end: c.end}
		used := 0
		err := readAhead(r, func(l archive.Line) error {
			if used++; l.Forget != uint64(used) {
				t.Fatalf("line %d is %d", used, l.Forget)
			}
			if used == c.refused {
				return errRefused
			}
			return nil
		})
		if !errors.Is(err, c.want) || used != c.used {
			t.Errorf("%+v: %d lines used, %v", c, used, err)
		}
		if most := used + (aheadBatches+2)*aheadLines; r.read > most {
			t.Errorf("%+v: %d lines were read for %d", c, r.read, used)
		}
	}
}

// TestBatchOfLongLines: however long paths and targets are, a batch is little more than
// the longest line.
func TestBatchOfLongLines(t *testing.T) {
	t.Parallel()
	link := fileAttr(0)
	link.Type = archive.TypeSymlink
	for name, line := range map[string]archive.Line{
		"gone":   {Gone: strings.Repeat("a/", 1<<20) + "a"},
		"path":   entryLine(strings.Repeat("a/", 1<<20)+"a", fileAttr(0)),
		"target": {Entry: &archive.Entry{Path: "a", Attr: link, Target: strings.Repeat("t", maxTarget)}},
	} {
		r := newRecord(header(archive.KindGeneration, 1, 0), func(yield func(archive.Line) bool) {
			for yield(line) {
			}
		})
		n := 0
		for _, l := range nextBatch(r).lines {
			if n += len(l.Gone); l.Entry != nil {
				n += len(l.Entry.Path) + len(l.Entry.Target)
			}
		}
		if n > 3<<20 {
			t.Errorf("%s: a batch of %d bytes", name, n)
		}
		r.stop()
	}
}

var errRefused = errors.New("refused")

// countedRecord is a record of lines that say their number.
type countedRecord struct {
	record
	lines, read int
	end         error
}

func (r *countedRecord) Next() (archive.Line, error) {
	if r.read == r.lines {
		return archive.Line{}, r.end
	}
	r.read++
	return archive.Line{Forget: uint64(r.read)}, nil
}

// TestLongValues: the longest values can be read again; longer ones are refused.
func TestLongValues(t *testing.T) {
	t.Parallel()
	attr := fileAttr(0)
	attr.Type, attr.Nlink = archive.TypeSymlink, 2
	line := archive.Line{Entry: &archive.Entry{Path: "link", Attr: attr, Target: strings.Repeat("t", maxTarget), Group: strings.Repeat("g", maxName),
		Xattrs: []archive.Xattr{{Name: "user.x", Value: strings.Repeat("v", maxXattrValue)}}}}
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, entryLine(".", dirAttr()), line); err != nil {
		t.Fatal(err)
	}
	if err := b.put([]byte{spaceMeta, 0}, make([]byte, maxValue)); err == nil {
		t.Error("a value that is too long was taken")
	}
	db := finished(t, b)
	e, err := db.At(1).Lookup(1, "link")
	if err != nil {
		t.Fatal(err)
	}
	if i, err := db.Inode(e.Ino); err != nil || len(i.Target) != maxTarget || len(i.Group) != maxName {
		t.Errorf("target of %d bytes, group of %d, %v", len(i.Target), len(i.Group), err)
	}
	if x, err := db.Xattrs(e.Ino); err != nil || len(x) != 1 || len(x[0].Value) != maxXattrValue {
		t.Errorf("%d attributes, %v", len(x), err)
	}
	line.Entry.Group += "g"
	if err := applyLines(t, newTestBuilder(t), archive.KindGeneration, 0, entryLine(".", dirAttr()), line); err == nil {
		t.Error("a long name of a group was taken")
	}
}

// TestNameTwice: no two generations of a source have one name, unless the first was
// forgotten.
func TestNameTwice(t *testing.T) {
	b := newTestBuilder(t)
	named := func(number uint64, source string) error {
		h := header(archive.KindGeneration, number, 0)
		h.Source, h.Name = source, "2026-11-22T03-00-00Z"
		r := newRecord(h, slices.Values([]archive.Line{entryLine(".", dirAttr())}))
		defer r.stop()
		return b.apply(r)
	}
	if err := errors.Join(named(1, ""), named(2, "web1"), applyLines(t, b, archive.KindForget, 0, archive.Line{Forget: 1}), named(4, "")); err != nil {
		t.Fatal(err)
	}
	finished(t, b)
	again, err := newBuilder(disk.OS{}, b.dir, b.tables, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	for _, b = range []*builder{b, again} {
		if err := named(5, "web1"); err == nil || !strings.Contains(err.Error(), `its name "2026-11-22T03-00-00Z" is that of generation 2`) {
			t.Errorf("%v", err)
		}
	}
}
