package index

import (
	"fmt"
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
				if err := db.sameAs(fresh); err != nil {
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
			err = db.sameAs(finished(t, without))
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
