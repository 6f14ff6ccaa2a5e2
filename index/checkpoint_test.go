package index

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
)

// stated returns the lines of a checkpoint behind what a database covers.
func stated(t testing.TB, db *DB) (lines []archive.Line) {
	t.Helper()
	if err := db.Checkpoint(func(l archive.Line) error {
		lines = append(lines, l)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return lines
}

// checkpoint adds a checkpoint to a history. What was forgotten is no base any more.
func (h *history) checkpoint(lines []archive.Line) {
	h.add(header(archive.KindCheckpoint, uint64(len(h.headers))+1, 0), lines, nil)
	for source, head := range h.heads {
		if h.gone[head] {
			delete(h.heads, source)
		}
	}
}

// answers is a dump of what must be the same behind a checkpoint.
func answers(t *testing.T, db *DB) string {
	t.Helper()
	text, _, ok := strings.Cut(dump(t, db), "\n none 0 false")
	if !ok {
		text, _, _ = strings.Cut(text, "none 0 false")
	}
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "web1 ") { // heads: forgotten ones go
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestCheckpointOfRandomHistory compares an index that is derived from a checkpoint
// with the one that it was made from, and with the trees; then the log goes on
// behind it, with further checkpoints.
func TestCheckpointOfRandomHistory(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 6; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			h := newHistory(seed, 24)
			b := newTestBuilder(t)
			for range h.headers {
				h.apply(t, b)
			}
			for round := range 3 {
				db := finished(t, b)
				lines := stated(t, db)
				h.checkpoint(lines)
				b = newTestBuilder(t)
				if err := b.apply(h.record(uint64(len(h.headers)))); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				fresh := finished(t, b)
				if err := db.sameAs(t.Context(), fresh); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if got, want := answers(t, fresh), answers(t, db); got != want {
					t.Fatalf("round %d: from the checkpoint:\n%s\nfrom the log:\n%s", round, got, want)
				}
				h.check(t, fresh)
				if again := stated(t, fresh); !reflect.DeepEqual(again, lines) {
					t.Fatalf("round %d: a checkpoint of what is derived from a checkpoint is another one", round)
				}
				if fresh.Begins() != fresh.Number() {
					t.Errorf("the log begins with %d, want %d", fresh.Begins(), fresh.Number())
				}
				if want := h.headers[fresh.Number()-1].Time; !fresh.meta.time.Equal(want) {
					t.Errorf("the time of the checkpoint is %v, want %v", fresh.meta.time, want)
				}
				b = cloned(t, b)
				for range 8 {
					h.grow()
					h.apply(t, b)
				}
				last := finished(t, b)
				h.check(t, last)
				b = cloned(t, b)
			}
		})
	}
}

// TestVerifyNotices: an index that lacks anything of a checkpoint is not the same.
func TestVerifyNotices(t *testing.T) {
	t.Parallel()
	h := newHistory(7, 24)
	b := newTestBuilder(t)
	for range h.headers {
		h.apply(t, b)
	}
	db := finished(t, b)
	lines := stated(t, db)
	kinds := map[string]int{}
	noticed := 0
	for i := range lines {
		kind := kindOf(lines[i])
		if kinds[kind]++; kinds[kind] > 25 {
			continue
		}
		without := newTestBuilder(t)
		record := newRecord(header(archive.KindCheckpoint, b.number+1, 0), slices.Values(slices.Delete(slices.Clone(lines), i, i+1)))
		err := without.apply(record)
		record.stop()
		if err == nil {
			err = db.sameAs(t.Context(), finished(t, without))
		}
		if err == nil {
			t.Errorf("line %d, which is missing, was not noticed: %s", i, kind)
		}
		noticed++
	}
	if noticed < 60 || len(kinds) < 6 {
		t.Errorf("%d lines of %d kinds only", noticed, len(kinds))
	}
}

// TestVerifyInterrupted: a comparison ends with its context, wherever it is.
func TestVerifyInterrupted(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHistory(11, 15)
	for n := range uint64(11) {
		h.commit(t, r, n+1)
	}
	db := mustOpen(t, r, Options{})
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.VerifyCheckpoint(ctx, r, checkpointOf(t, r, db)); !errors.Is(err, context.Canceled) {
		t.Errorf("derived: %v", err)
	}
	if err := db.sameAs(ctx, db); !errors.Is(err, context.Canceled) {
		t.Errorf("compared: %v", err)
	}
	generations, err := db.Generations()
	if err != nil || len(generations) == 0 {
		t.Fatal(generations, err)
	}
	for step, compare := range map[string]func(c *comparison) error{
		"inodes": (*comparison).inodes, "contents": (*comparison).contents,
		"trees": func(c *comparison) error { return c.tree(generations[0]) },
	} {
		if err := compare(&comparison{ctx: ctx, old: db, fresh: db}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", step, err)
		}
	}
}

func kindOf(l archive.Line) string {
	switch {
	case l.Part != nil:
		return "part"
	case l.Content != nil:
		return "content"
	case l.Given != nil:
		return "given"
	case l.Generation != nil:
		return "generation"
	case l.Entry != nil:
		return "entry"
	}
	return "gone"
}

// TestCheckpointLines gives the lines of a small checkpoint by hand.
func TestCheckpointLines(t *testing.T) {
	t.Parallel()
	part := testPart(1)
	hash := func(n byte) archive.Hash { return archive.Hash{n} }
	content := func(n byte) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: hash(n), RawOffset: 512 * int64(n), RawLen: 5}}}
	}
	file := func(path string, n byte) archive.Line {
		return entryLine(path, fileAttr(5), archive.Extent{Len: 5, Hash: hash(n)})
	}
	linked := func(path string) archive.Line {
		l := file(path, 3)
		l.Entry.Group, l.Entry.Attr.Nlink = "8:1", 2
		return l
	}
	dir := func(path string) archive.Line { return entryLine(path, dirAttr()) }
	b := newTestBuilder(t)
	for _, r := range []struct {
		kind  archive.Kind
		base  uint64
		lines []archive.Line
	}{
		{archive.KindGeneration, 0, []archive.Line{{Part: &part}, content(1), content(2), content(3), dir("."), file("a", 1), dir("d"), file("d/x", 2), linked("l"), linked("m")}},
		{archive.KindGeneration, 1, []archive.Line{file("a", 2), {Gone: "d"}}},
		{archive.KindGeneration, 2, []archive.Line{dir("d"), file("d/y", 1), {Gone: "m"}}},
		{archive.KindForget, 0, []archive.Line{{Forget: 2}}},
	} {
		if err := applyLines(t, b, r.kind, r.base, r.lines...); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, l := range stated(t, finished(t, b)) {
		switch {
		case l.Part != nil:
			got = append(got, fmt.Sprint("part ", l.Part.Name[0]))
		case l.Content != nil:
			got = append(got, fmt.Sprint("content ", l.Content.Hash[0], " at ", l.Content.RawOffset, " since ", l.Content.Record))
		case l.Given != nil:
			got = append(got, fmt.Sprint("given ", l.Given.Directories, " ", l.Given.Inodes))
		case l.Generation != nil:
			got = append(got, fmt.Sprint("generation ", l.Generation.Number, " base ", l.Generation.Base, " ", l.Generation.Name))
		case l.Entry != nil:
			got = append(got, strings.TrimSpace(fmt.Sprint(l.Entry.Path, " ", l.Entry.Number, " ", l.Entry.Directory, " ", l.Entry.Group)))
		default:
			got = append(got, "gone "+l.Gone)
		}
	}
	want := []string{
		"part 1", "content 1 at 512 since 1", "content 2 at 1024 since 1", "content 3 at 1536 since 1",
		"given 3 8", // directories: ., d, the other d; inodes: 5, a of record 2, d and d/y of record 3
		"generation 1 base 0 2026-11-22T04-00-00Z",
		". 256 1", "a 258 0", "d 260 2", "d/x 262 0", "l 264 0 8:1", "m 264 0 8:1",
		"generation 3 base 1 2026-11-22T06-00-00Z",
		"a 266 0", "gone d", "d 268 3", "d/y 270 0", "gone m",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the checkpoint says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestOpenCheckpoint opens a real log that a checkpoint was added to, while the
// records before it are there, after they were deleted, and with one of the two
// damaged.
func TestOpenCheckpoint(t *testing.T) {
	t.Parallel()
	h := newHistory(11, 12)
	r := newRepository(t)
	for n := range h.headers {
		h.commit(t, r, uint64(n)+1)
	}
	old := mustOpen(t, r, Options{})
	h.checkpoint(stated(t, old))
	begins := uint64(len(h.headers))
	h.commit(t, r, begins)
	for n := range uint64(3) { // of which the index is not to know
		h.grow()
		h.commit(t, r, begins+1+n)
	}
	last := begins + 3
	db := mustOpen(t, r, Options{})
	if db.Begins() != begins || db.Number() != last {
		t.Fatalf("it begins with %d and ends with %d, want %d and %d", db.Begins(), db.Number(), begins, last)
	}
	h.check(t, db)
	if got := sealedIndexes(t, r); len(got) != 1 {
		t.Errorf("indexes %v: those before the checkpoint are of no use", got)
	}
	want := dump(t, db)
	digest := mustDigest(t, db)
	mustClose(t, db)
	records := func() []uint64 {
		numbers, err := r.Records()
		if err != nil {
			t.Fatal(err)
		}
		return numbers
	}
	path := func(n uint64) string { return filepath.Join(r.Dir(), archive.RecordStoreName(n)) }

	// A damaged checkpoint, and no index: what is before it can be read.
	index := filepath.Join(r.Dir(), "index")
	aside := filepath.Join(t.TempDir(), "index")
	if err := os.Rename(index, aside); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path(begins))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path(begins))
	if err != nil {
		t.Fatal(err)
	}
	cut(t, path(begins), int(info.Size())-5)
	if db, err := Open(r, Options{}); err == nil {
		db.Close()
		t.Error("a damaged checkpoint was not noticed")
	}
	var said messages
	partial := mustOpen(t, r, Options{Partial: true, Temporary: true, Log: said.log})
	if partial.Number() != begins-1 || partial.Problem() == nil || !strings.Contains(partial.Problem().Error(), fmt.Sprintf("log record %d", begins)) {
		t.Errorf("up to record %d, because of %v", partial.Number(), partial.Problem())
	}
	if got, want := answers(t, partial), answers(t, old); got != want {
		t.Errorf("instead of a damaged checkpoint:\n%s\nwant\n%s", got, want)
	}
	mustClose(t, partial)
	if err := os.WriteFile(path(begins), whole, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, n := range records() {
		if n < begins {
			if err := r.RemoveRecord(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	fresh := mustOpen(t, r, Options{})
	if got := dump(t, fresh); got != want || mustDigest(t, fresh) != digest {
		t.Errorf("without the records before it:\n%s\nwant\n%s", got, want)
	}
	mustClose(t, fresh)
	cut(t, path(begins), int(info.Size())-5)
	if err := os.RemoveAll(index); err != nil {
		t.Fatal(err)
	}
	if db, err := Open(r, Options{Partial: true}); err == nil {
		db.Close()
		t.Error("a damaged checkpoint, nothing before it, and no error")
	}
	mustClose(t, old)
}

// TestHostileCheckpointLines: a checkpoint that contradicts itself is refused.
func TestHostileCheckpointLines(t *testing.T) {
	t.Parallel()
	part := testPart(1)
	content := archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{1}, RawOffset: 512, RawLen: 5}, Record: 1}}
	given := archive.Line{Given: &archive.Given{Directories: 2, Inodes: 3}}
	generation := func(number, base uint64) archive.Line {
		h := header(archive.KindGeneration, number, base)
		return archive.Line{Generation: &h}
	}
	dir := func(path string, ino, id uint64) archive.Line {
		l := entryLine(path, dirAttr())
		l.Entry.Number, l.Entry.Directory = ino, id
		return l
	}
	file := func(path string, ino uint64) archive.Line {
		l := entryLine(path, fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{1}})
		l.Entry.Number = ino
		return l
	}
	linkOf := func(group, path string, ino uint64, uid uint32) archive.Line {
		l := file(path, ino)
		l.Entry.Group, l.Entry.Attr.Nlink, l.Entry.Attr.UID = group, 3, uid
		return l
	}
	link := func(path string, ino uint64, uid uint32) archive.Line { return linkOf("g", path, ino, uid) }
	longer := archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{1}, RawOffset: 512, RawLen: 6}, Record: 2}}
	more := []archive.Line{{Given: &archive.Given{Directories: 2, Inodes: 4}}}
	good := []archive.Line{{Part: &part}, content, {Removed: &archive.Digest{9}}, given, generation(2, 0), dir(".", 256, 1), file("a", 258),
		generation(5, 2), {Gone: "a"}, dir("d", 260, 2)}
	apply := func(lines []archive.Line) error {
		r := newRecord(header(archive.KindCheckpoint, 9, 0), slices.Values(lines))
		defer r.stop()
		return newTestBuilder(t).apply(r)
	}
	if err := apply(good); err != nil {
		t.Fatal(err)
	}
	links := slices.Concat(good[:6], []archive.Line{link("a", 258, 1), link("b", 260, 2), link("c", 258, 1)}) // as a log can have them
	if err := apply(links); err != nil {
		t.Error(err)
	}
	replaced := func(i int, lines ...archive.Line) []archive.Line {
		return slices.Concat(good[:i], lines, good[i+1:])
	}
	late := content
	lateContent := *content.Content
	lateContent.Record = 9
	late.Content = &lateContent
	for name, c := range map[string]struct {
		lines []archive.Line
		want  string
	}{
		"a content of itself":         {replaced(1, late), "record 9, which is not before the checkpoint"},
		"a part that is removed":      {replaced(2, archive.Line{Removed: &part.Name}), "it is a part"},
		"removed late":                {replaced(4, archive.Line{Removed: &archive.Digest{8}}, good[4]), "comes too late"},
		"nothing given":               {good[:3], "how many numbers were given"},
		"given twice":                 {replaced(3, given, given), "out of order"},
		"too much given":              {replaced(3, archive.Line{Given: &archive.Given{Directories: 1 << 38}}), "too many"},
		"a generation too early":      {replaced(3, good[4], given), "out of order"},
		"a generation of itself":      {replaced(7, generation(9, 2)), "out of order"},
		"generations out of order":    {replaced(7, generation(2, 0)), "out of order"},
		"another base":                {replaced(7, generation(5, 1)), "its base 1 is not the newest"},
		"no root":                     {replaced(5), "the root is missing"},
		"a generation of nothing":     {good[:5], "it is complete, but has no root"},
		"a part behind them":          {append(slices.Clone(good), good[0]), "out of order"},
		"a forget":                    {append(slices.Clone(good), archive.Line{Forget: 2}), "in a checkpoint"},
		"an inode that was not given": {replaced(6, file("a", 262)), "impossible inode number 262"},
		"an inode without attributes": {replaced(6, file("a", 259)), "impossible inode number 259"},
		"directory 0":                 {replaced(9, dir("d", 260, 0)), "impossible directory number 0"},
		"a directory not given":       {replaced(9, dir("d", 260, 3)), "impossible directory number 3"},
		"a directory in itself":       {replaced(9, dir("d", 260, 1)), "impossible directory number 1"},
		"a directory twice":           {append(slices.Clone(good), dir("e", 260, 2)), "directory number 2 is taken"},
		"another root":                {replaced(8, dir(".", 260, 2)), "directory 2 here, and was directory 1"},
		"gone twice":                  {replaced(8, good[8], good[8]), "out of order"},
		"gone, and a file again":      {replaced(8, good[8], file("a", 260)), "out of order"},
		"gone, and no directory":      {slices.Concat(good[:3], more, good[4:], []archive.Line{generation(6, 5), {Gone: "d"}, file("d", 262)}), "out of order"},
		"a number of two files":       {replaced(6, file("a", 258), file("b", 258)), "inode number 258 is taken"},
		"a number of a directory":     {replaced(6, file("a", 256)), "inode number 256 is taken"},
		"a directory with a file's":   {replaced(9, dir("d", 258, 2)), "inode number 258 is taken"},
		"two directories with one":    {replaced(9, dir("d", 256, 2)), "inode number 256 is taken"},
		"links that differ":           {replaced(6, link("a", 258, 1), link("b", 258, 2)), "inode number 258 is taken"},
		"links of two groups":         {replaced(6, link("a", 258, 1), linkOf("h", "b", 258, 1)), "inode number 258 is taken"},
		"a link, and a file":          {replaced(6, link("a", 258, 1), file("b", 258)), "inode number 258 is taken"},
		"a file, and a link":          {replaced(6, file("a", 258), link("b", 258, 1)), "inode number 258 is taken"},
		"a content with two lengths":  {replaced(1, content, longer), "6 bytes, but it was named before with 5"},
		"an entry twice":              {replaced(6, file("a", 258), file("a", 258)), "out of order"},
	} {
		if err := apply(c.lines); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	b := newTestBuilder(t)
	if err := applyLines(t, b, archive.KindGeneration, 0, entryLine(".", dirAttr())); err != nil {
		t.Fatal(err)
	}
	if err := applyLines(t, b, archive.KindCheckpoint, 0, good...); err == nil {
		t.Error("a checkpoint was applied to something")
	}
	for _, l := range []archive.Line{given, generation(1, 0)} {
		if err := applyLines(t, b, archive.KindGeneration, 1, l); err == nil {
			t.Error("a line of a checkpoint in a generation")
		}
	}
}
