package fs

import (
	"maps"
	"slices"
	"testing"

	"github.com/backupfs/backupfs/index"
)

// snapshotOf returns a snapshot that knows the generations from first to last.
func snapshotOf(first, last uint64) *snapshot {
	c := &catalog{generations: map[uint64]index.Generation{}}
	for g := first; g <= last; g++ {
		c.generations[g] = index.Generation{Number: g}
	}
	return &snapshot{catalog: c}
}

// Of the older snapshots the one that knows the most of what was dropped is kept.
func TestKeptSnapshots(t *testing.T) {
	type span struct{ first, last uint64 }
	for _, c := range []struct {
		what   string
		pinned uint64
		pushed []span
		kept   []span
	}{
		{"nothing was dropped", 0, []span{{1, 2}, {1, 3}, {1, 4}}, []span{{1, 4}}},
		{"one after another is dropped", 0, []span{{1, 7}, {2, 7}, {3, 7}, {4, 7}, {5, 7}}, []span{{5, 7}, {1, 7}}},
		{"another one comes each time", 0, []span{{1, 3}, {2, 4}, {3, 5}}, []span{{3, 5}, {1, 3}}},
		{"there is no room for the oldest", 0, []span{{1, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {6, 7}, {7, 8}}, []span{{7, 8}, {5, 6}, {3, 4}}},
		{"but for one that is shown for ever", 1, []span{{1, 2}, {3, 4}, {5, 6}, {7, 8}}, []span{{7, 8}, {5, 6}, {3, 4}, {1, 2}}},
	} {
		l := &snapshots{}
		for _, p := range c.pushed {
			l.replace(snapshotOf(p.first, p.last), c.pinned)
		}
		var kept []span
		for _, s := range l.list {
			numbers := slices.Sorted(maps.Keys(s.generations))
			kept = append(kept, span{numbers[0], numbers[len(numbers)-1]})
		}
		if !slices.Equal(kept, c.kept) {
			t.Errorf("%s: %v are kept, want %v", c.what, kept, c.kept)
		}
	}
}
