package index

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRandomHistory compares every generation with an oracle after every record,
// with an index that is cloned for each record, and one that is built at once.
func TestRandomHistory(t *testing.T) {
	records := 30
	if testing.Short() {
		records = 12
	}
	for seed := uint64(1); seed <= 3; seed++ {
		h := newHistory(seed, records)
		stepwise := newTestBuilder(t)
		var last *DB
		for range h.headers {
			h.apply(t, stepwise)
			last = finished(t, stepwise)
			h.check(t, last)
			stepwise = cloned(t, stepwise)
		}
		atOnce := newTestBuilder(t)
		atOnce.limit = 256 << 10 // many runs
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
	next, err := newBuilder(dir, b.tables, b.number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.close() })
	return next
}
