package index

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
)

// TestHoldersAndDigest asks, at many points of random histories, for the paths
// that hold some of the contents, and compares with the trees that were put in.
// The digest of an index that was made record by record is that of one that was
// made at once, and of no other state.
func TestHoldersAndDigest(t *testing.T) {
	t.Parallel()
	const records = 40
	for seed := uint64(11); seed <= 13; seed++ {
		h := newHistory(seed, records)
		stepwise := newTestBuilder(t)
		digests := map[archive.Hash]uint64{}
		var last *DB
		for n := range uint64(records) {
			h.apply(t, stepwise)
			last = finished(t, stepwise)
			digest := mustDigest(t, last)
			if before, ok := digests[digest]; ok {
				t.Fatalf("seed %d: records %d and %d have the same digest", seed, before, n+1)
			}
			digests[digest] = n + 1
			if n%5 == 4 {
				h.checkHolders(t, last)
			}
			stepwise = cloned(t, stepwise)
		}
		atOnce := newTestBuilder(t)
		for range records {
			h.apply(t, atOnce)
		}
		if got, want := mustDigest(t, finished(t, atOnce)), mustDigest(t, last); got != want {
			t.Errorf("seed %d: at once %s, step by step %s", seed, got, want)
		}
	}
}

func mustDigest(t *testing.T, db *DB) archive.Hash {
	t.Helper()
	digest, err := db.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func (h *history) checkHolders(t *testing.T, db *DB) {
	t.Helper()
	wanted := func(hash archive.Hash) bool { return hash[0]%8 == 0 }
	want := map[string][]uint64{}
	forgotten := h.forgottenAt(db.Number())
	for n, tree := range h.trees[:db.Number()] {
		number := uint64(n) + 1
		for path, e := range tree {
			if !forgotten[number] && slices.ContainsFunc(e.Data, func(x archive.Extent) bool { return wanted(x.Hash) }) {
				key := h.headers[n].Source + ":" + path
				want[key] = append(want[key], number)
			}
		}
	}
	holders, err := db.Holders(wanted)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]uint64{}
	for _, holder := range holders {
		if !wanted(holder.Content) {
			t.Errorf("%q has %s, which nobody asked for", holder.Path, holder.Content)
		}
		for _, g := range holder.Generations {
			got[holder.Source+":"+holder.Path] = append(got[holder.Source+":"+holder.Path], g.Number)
		}
	}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Fatalf("record %d: holders\n%v, want\n%v", db.Number(), got, want)
	}
	if !slices.IsSortedFunc(holders, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), ComparePaths(a.Path, b.Path))
	}) {
		t.Error("holders are not sorted")
	}
}

// TestHoldersOfSegments: a content in the last of many extents is found.
func TestHoldersOfSegments(t *testing.T) {
	t.Parallel()
	b := newTestBuilder(t)
	part := archive.Part{Name: archive.Digest{1}, Stored: 1000, Raw: 1 << 20, TailStored: 100}
	lines := []archive.Line{{Part: &part}}
	var data []archive.Extent
	for i := range 2 * segmentExtents {
		hash := archive.HashOf(fmt.Append(nil, i))
		lines = append(lines, archive.Line{Content: &archive.Placement{Part: part.Name, Content: archive.Content{Hash: hash, RawOffset: 512, RawLen: 1}}})
		data = append(data, archive.Extent{Offset: int64(i), Len: 1, Hash: hash})
	}
	lines = append(lines, entryLine(".", dirAttr()), entryLine("large", fileAttr(int64(len(data))), data...))
	if err := applyLines(t, b, archive.KindGeneration, 0, lines...); err != nil {
		t.Fatal(err)
	}
	db := finished(t, b)
	for _, i := range []int{0, segmentExtents - 1, segmentExtents, len(data) - 1} {
		holders, err := db.Holders(func(hash archive.Hash) bool { return hash == data[i].Hash })
		if err != nil || len(holders) != 1 || holders[0].Path != "large" || holders[0].Content != data[i].Hash {
			t.Errorf("extent %d: %+v, %v", i, holders, err)
		}
	}
	contents := 0
	if err := db.Places(func(_ archive.Hash, p Place) error {
		contents++
		if p != (Place{Part: part, RawOffset: 512, RawLen: 1}) {
			return fmt.Errorf("%+v", p)
		}
		return nil
	}); err != nil || contents != len(data) {
		t.Errorf("%d contents, %v", contents, err)
	}
}

// TestCheckSeals: Check finds what Open would not use, in every index, and
// changes nothing; Temporary publishes nothing.
func TestCheckSeals(t *testing.T) {
	r := newRepository(t)
	l := newHistory(21, 3)
	for n := uint64(1); n <= 3; n++ {
		l.commit(t, r, n)
		mustClose(t, mustOpen(t, r, Options{}))
	}
	check := func() (found []string) {
		t.Helper()
		if err := Check(r, func(number uint64, err error) { found = append(found, fmt.Sprint(number, ": ", err)) }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := check(); len(found) != 0 {
		t.Errorf("sound, but: %q", found)
	}
	for _, n := range []string{"000000000002", "000000000003"} {
		seal := filepath.Join(r.IndexDir(), n, sealName)
		b, err := os.ReadFile(seal)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(seal, append(b, ' '), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found := check(); len(found) != 2 || !strings.HasPrefix(found[0], "3: ") || !strings.HasPrefix(found[1], "2: ") {
		t.Errorf("two seals changed: %q", found)
	}
	var damaged []uint64
	db := mustOpen(t, r, Options{Temporary: true, Damaged: func(number uint64, _ error) { damaged = append(damaged, number) }})
	if db.Number() != 3 || !slices.Equal(damaged, []uint64{3, 2}) {
		t.Errorf("covers %d, damaged %v", db.Number(), damaged)
	}
	mustClose(t, db)
	if found := check(); len(found) != 2 {
		t.Errorf("a temporary index was published: %q", found)
	}
	mustClose(t, mustOpen(t, r, Options{Damaged: func(uint64, error) {}}))
	if found := check(); len(found) != 0 {
		t.Errorf("replaced, but: %q", found)
	}
	if err := os.Remove(filepath.Join(r.Dir(), "log", "000000000003.jsonl.zst")); err != nil {
		t.Fatal(err)
	}
	beyond := 0
	if err := Check(r, func(number uint64, err error) {
		if number == 3 && errors.Is(err, ErrBeyondLog) {
			beyond++
		}
	}); err != nil || beyond != 1 {
		t.Errorf("beyond the log: %d, %v", beyond, err)
	}
}
