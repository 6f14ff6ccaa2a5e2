package index

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
)

func testPart(name byte) archive.Part {
	return archive.Part{Name: archive.Digest{name}, Stored: 1000, Raw: 4096, TailStored: 129, Tail: archive.Digest{name, 1}}
}

// removedHistory has the contents 1 and 2 in the parts 1 and 2, a generation with
// both and one with 2 alone; the first is forgotten, and part 1 removed.
func removedHistory(t *testing.T) *builder {
	t.Helper()
	b := newTestBuilder(t)
	one, two := testPart(1), testPart(2)
	content := func(n byte, part archive.Part) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{n}, RawOffset: 512, RawLen: 5}}}
	}
	file := func(n byte) archive.Line {
		return entryLine(string('a'+rune(n)), fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{n}})
	}
	for _, r := range []struct {
		kind  archive.Kind
		base  uint64
		lines []archive.Line
	}{
		{archive.KindGeneration, 0, []archive.Line{{Part: &one}, content(1, one), {Part: &two}, content(2, two), entryLine(".", dirAttr()), file(1), file(2)}},
		{archive.KindGeneration, 1, []archive.Line{{Gone: "b"}}},
		{archive.KindForget, 0, []archive.Line{{Forget: 1}}},
		{archive.KindCompaction, 0, []archive.Line{{Removed: &one.Name}}},
	} {
		if err := applyLines(t, b, r.kind, r.base, r.lines...); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestRemovedPart(t *testing.T) {
	b := removedHistory(t)
	db := finished(t, b)
	if _, err := db.Content(archive.Hash{1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a content of the removed part: %v", err)
	}
	if p, err := db.Content(archive.Hash{2}); err != nil || p.Part != testPart(2) {
		t.Errorf("a content of the other part: %+v, %v", p, err)
	}
	var parts []archive.Part
	if err := db.Parts(func(p archive.Part) bool { parts = append(parts, p); return true }); err != nil || len(parts) != 1 || parts[0] != testPart(2) {
		t.Errorf("parts %v, %v", parts, err)
	}
	if raw, stored := db.Totals(); raw != 4096 || stored != 1000 {
		t.Errorf("%d raw, %d stored", raw, stored)
	}
	var removed []archive.Digest
	if err := db.Removals(func(p archive.Digest) error { removed = append(removed, p); return nil }); err != nil || len(removed) != 1 || removed[0] != (archive.Digest{1}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if db.LastRemoval() != 4 {
		t.Errorf("last removal %d, want 4", db.LastRemoval())
	}
	usage, err := db.Live(func(p archive.Placement, need Need, _ bool) error {
		if need == 0 || p.Hash != (archive.Hash{2}) {
			t.Errorf("%s has need %d", p.Hash, need)
		}
		return nil
	})
	if want := (Usage{Contents: 1, Live: 1, Gone: 1, Current: 1, Inodes: 3, DeadInodes: 2}); err != nil || usage != want { // the root is no file
		t.Errorf("%+v, %v, want %+v", usage, err, want)
	}
}

// TestRemovedAgain: a removed part that is named again is another one.
func TestRemovedAgain(t *testing.T) {
	b := removedHistory(t)
	one := testPart(1)
	err := applyLines(t, b, archive.KindGeneration, 2, archive.Line{Part: &one},
		archive.Line{Content: &archive.Placement{Part: one.Name, Content: archive.Content{Hash: archive.Hash{1}, RawOffset: 1024, RawLen: 5}}},
		entryLine("d", fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{1}}))
	if err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	if p, err := db.Content(archive.Hash{1}); err != nil || p.Part != one || p.RawOffset != 1024 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := db.Removals(func(p archive.Digest) error { t.Errorf("%s counts as removed", p); return nil }); err != nil {
		t.Error(err)
	}
	if raw, stored := db.Totals(); raw != 8192 || stored != 2000 {
		t.Errorf("%d raw, %d stored", raw, stored)
	}
}

func TestWrongRemovals(t *testing.T) {
	one, two, three := testPart(1), testPart(2), testPart(3)
	place := archive.Line{Content: &archive.Placement{Part: one.Name, Content: archive.Content{Hash: archive.Hash{1}, RawOffset: 512, RawLen: 5}}}
	for name, c := range map[string]struct {
		kind  archive.Kind
		base  uint64
		lines []archive.Line
		want  string
	}{
		"unknown":                    {archive.KindCompaction, 0, []archive.Line{{Removed: &three.Name}}, "no record named it"},
		"removed before":             {archive.KindCompaction, 0, []archive.Line{{Removed: &one.Name}}, "removed already"},
		"twice":                      {archive.KindCompaction, 0, []archive.Line{{Removed: &two.Name}, {Removed: &two.Name}}, "removed already"},
		"in a forget":                {archive.KindForget, 0, []archive.Line{{Removed: &two.Name}}, "in a record that is a forget"},
		"a part behind it":           {archive.KindCompaction, 0, []archive.Line{{Removed: &two.Name}, {Part: &three}}, "out of order"},
		"a content in what is gone":  {archive.KindCompaction, 0, []archive.Line{place}, "which no record named"},
		"a file of what is gone":     {archive.KindGeneration, 2, []archive.Line{entryLine("d", fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{1}})}, "which is gone"},
		"a file of what never there": {archive.KindGeneration, 2, []archive.Line{entryLine("d", fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{9}})}, "which no record named"},
	} {
		t.Run(name, func(t *testing.T) {
			b := removedHistory(t)
			if err := applyLines(t, b, c.kind, c.base, c.lines...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestLost: a content that a kept generation needs, and that is gone, or has another
// length where it lies last, is not passed over, whatever earlier lines say of it.
func TestLost(t *testing.T) {
	two, three := testPart(2), testPart(3)
	place := func(part archive.Part, length int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{2}, RawOffset: 512, RawLen: length}}}
	}
	named := archive.Line{Part: &three}
	longer := entryLine("x", fileAttr(6), archive.Extent{Len: 6, Hash: archive.Hash{2}})
	for name, c := range map[string]struct {
		records [][]archive.Line
		lost    bool
	}{
		"its part was removed":              {[][]archive.Line{{{Removed: &two.Name}}}, true},
		"the part that it moved to was":     {[][]archive.Line{{named, place(three, 5)}, {{Removed: &three.Name}}}, true},
		"the part that it lay in was":       {[][]archive.Line{{named, place(three, 5)}, {{Removed: &two.Name}}}, false},
		"it is said to be longer":           {[][]archive.Line{{place(two, 6)}}, true},
		"it is said to be shorter":          {[][]archive.Line{{place(two, 4)}}, true},
		"it is longer for another file":     {[][]archive.Line{{place(two, 6), longer}}, true},
		"it is said to be longer elsewhere": {[][]archive.Line{{named, place(three, 6)}, {{Removed: &two.Name}}}, true},
	} {
		b := removedHistory(t)
		for _, lines := range c.records {
			kind, base := archive.KindCompaction, uint64(0)
			if lines[len(lines)-1].Entry != nil {
				kind, base = archive.KindGeneration, 2
			}
			if err := applyLines(t, b, kind, base, lines...); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, merged := range []bool{false, true} {
			db := finished(t, b)
			_, err := db.Live(func(archive.Placement, Need, bool) error { return nil })
			if c.lost != (errors.Is(err, ErrDamaged) && strings.Contains(err.Error(), "1 contents that generations need")) || !c.lost && err != nil {
				t.Errorf("%s, merged %t: %v", name, merged, err)
			}
			lost, err := db.Lost()
			if err != nil || (len(lost) == 1 && lost[archive.Hash{2}] == 5) != c.lost || !c.lost && len(lost) > 0 {
				t.Errorf("%s, merged %t: %v, %v", name, merged, lost, err)
			}
			mustClose(t, db)
			if err := b.shrink(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestNeed: what is needed tells the newest generation that needs it.
func TestNeed(t *testing.T) {
	part := testPart(1)
	var contents, files []archive.Line
	for n := byte(1); n <= 4; n++ {
		contents = append(contents, archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{n}, RawOffset: int64(n) * 512, RawLen: 5}}})
		files = append(files, entryLine(string('a'+rune(n)), fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{n}}))
	}
	history := func(forgotten uint64) *DB {
		b := newTestBuilder(t)
		for _, r := range []struct {
			kind  archive.Kind
			base  uint64
			lines []archive.Line
		}{
			{archive.KindGeneration, 0, slices.Concat([]archive.Line{{Part: &part}}, contents, []archive.Line{entryLine(".", dirAttr())}, files)},
			{archive.KindGeneration, 1, []archive.Line{{Gone: "b"}}},
			{archive.KindGeneration, 2, []archive.Line{{Gone: "c"}}},
			{archive.KindForget, 0, []archive.Line{{Forget: forgotten}}},
		} {
			if err := applyLines(t, b, r.kind, r.base, r.lines...); err != nil {
				t.Fatal(err)
			}
		}
		return finished(t, b)
	}
	for forgotten, want := range map[uint64]string{ // b to e are in 1, c to e in 2, d and e in 3
		1: "0122", // 2 and 3 are kept
		2: "1122", // 1 and 3 are kept
		3: "1222", // 1 and 2 are kept, 2 is the newest
	} {
		got := ""
		usage, err := history(forgotten).Live(func(_ archive.Placement, need Need, _ bool) error {
			got += fmt.Sprint(need)
			return nil
		})
		if err != nil || got != want || usage.Current != 2 {
			t.Errorf("without %d the needs are %s, want %s; of what is current %d, %v", forgotten, got, want, usage.Current, err)
		}
	}
}

// TestNumbersClaimed: a checkpoint of some hundred bytes may say that every number there
// is was given. That takes no memory of whoever asks what is needed, or compares.
func TestNumbersClaimed(t *testing.T) {
	t.Parallel()
	generation := header(archive.KindGeneration, 1, 0)
	root, file := entryLine(".", dirAttr()), entryLine("a", fileAttr(0))
	root.Entry.Number, root.Entry.Directory = uint64(FirstIno), maxDirs-2
	file.Entry.Number = uint64(FirstIno) + 1<<40
	given := archive.Given{Directories: maxDirs - 1, Inodes: maxInos - 1}
	h := &history{}
	h.add(header(archive.KindCheckpoint, 1, 0), nil, nil)
	h.add(header(archive.KindCheckpoint, 2, 0), []archive.Line{{Given: &given}, {Generation: &generation}, root, file}, nil)
	r := newRepository(t)
	h.commit(t, r, 1)
	h.commit(t, r, 2)
	if err := os.Remove(filepath.Join(r.Dir(), archive.RecordStoreName(1))); err != nil {
		t.Fatal(err)
	}
	db := mustOpen(t, r, Options{})
	defer db.Close()
	usage, err := db.Live(func(archive.Placement, Need, bool) error { return nil })
	if err != nil || usage.Inodes != 2 || usage.DeadInodes != 1 { // that of the root is none that a generation needs
		t.Errorf("live: %+v, %v", usage, err)
	}
	if _, err := db.Digest(); err != nil {
		t.Errorf("digest: %v", err)
	}
	if err := db.VerifyCheckpoint(t.Context(), r, checkpointOf(t, r, db)); err != nil {
		t.Errorf("checkpoint: %v", err)
	}
	shrunk, err := Shrink(r, Options{})
	if err != nil {
		t.Fatalf("shrink: %v", err)
	}
	defer shrunk.Close()
	if e, err := shrunk.At(1).Resolve(maxDirs-2, "a"); err != nil || e.Ino != FirstIno+1<<40 {
		t.Errorf("shrunk: %+v, %v", e, err)
	}
}

// TestPaged compares a paged array with a map.
func TestPaged(t *testing.T) {
	t.Parallel()
	var p paged[uint32]
	var inos bitmap
	want := map[uint64]uint32{}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		i := rng.Uint64N(40 * pageLen)
		if rng.IntN(10) == 0 {
			i <<= rng.IntN(40)
		}
		if p.get(i) != want[i] || inos.has(Ino(i)<<1) != (want[i] > 0) {
			t.Fatalf("at %d: %d, %t, want %d", i, p.get(i), inos.has(Ino(i)<<1), want[i])
		}
		if rng.IntN(3) == 0 {
			want[i]++
			*p.at(i) = want[i]
			inos.set(Ino(i)<<1 | Ino(rng.IntN(2)))
		}
	}
}

// TestElsewhere: the other place of a content outlives merges, as long as its part does.
func TestElsewhere(t *testing.T) {
	b := newTestBuilder(t)
	one, two := testPart(1), testPart(2)
	content := func(part archive.Part, rawOffset int64) archive.Line {
		return archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: archive.Hash{1}, RawOffset: rawOffset, RawLen: 5}}}
	}
	apply := func(kind archive.Kind, base uint64, lines ...archive.Line) {
		t.Helper()
		if err := applyLines(t, b, kind, base, lines...); err != nil {
			t.Fatal(err)
		}
		if err := b.flush(); err != nil {
			t.Fatal(err)
		}
	}
	want := func(places ...Place) {
		t.Helper()
		b.close()
		if err := b.mergeRuns(1, true); err != nil {
			t.Fatal(err)
		}
		if err := b.reopen(); err != nil {
			t.Fatal(err)
		}
		db, err := newDB(b.dir, b.tables, b.number)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if got, err := db.Elsewhere(archive.Hash{1}); err != nil || !slices.Equal(got, places) {
			t.Errorf("%+v, %v, want %+v", got, err, places)
		}
	}
	apply(archive.KindGeneration, 0, archive.Line{Part: &one}, content(one, 512), entryLine(".", dirAttr()),
		entryLine("a", fileAttr(5), archive.Extent{Len: 5, Hash: archive.Hash{1}}))
	apply(archive.KindGeneration, 1, archive.Line{Part: &two}, content(two, 1024))
	want(Place{Part: one, RawOffset: 512, RawLen: 5})
	apply(archive.KindCompaction, 0, archive.Line{Removed: &one.Name})
	want()
}
