package fs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// keptSnapshots bounds how many indexes stay open: the newest, and older ones
// that know a generation which was dropped since.
const keptSnapshots = 3

// lineage is what is known of one history of the log: indexes of which each goes on
// from the one before, and what is remembered by the numbers that they give. A log that
// has lost records gives their numbers anew, and has another history then.
type lineage struct {
	snapshots snapshots
	marks     *marks
	users     atomic.Int64 // the connections that show it, and the mount where it is the current one
}

// newLineage returns a lineage that the mount uses.
func newLineage() *lineage {
	l := &lineage{marks: newMarks()}
	l.users.Store(1)
	return l
}

// leave ends a use. The last one closes the indexes.
func (l *lineage) leave() {
	if l.users.Add(-1) == 0 {
		l.snapshots.close()
	}
}

func (l *lineage) isClosed() bool { return l.users.Load() == 0 }

// snapshot is an index and the catalog that belongs to it. It is closed with
// its last reference.
type snapshot struct {
	*catalog
	db     *index.DB
	opened time.Time
	refs   atomic.Int64
}

// lacks reports whether a record, whose number is not above that of the snapshot, is
// another one than the snapshot was made from. Of what is no generation, or of one that
// was dropped, only the time tells that, unless it lies in the future: then somebody gave it.
func (s *snapshot) lacks(h archive.Header) bool {
	if g, known := s.generations[h.Number]; known {
		return h.Kind != archive.KindGeneration || h.Source != g.Source || !h.Time.Equal(g.Time)
	}
	return h.Time.After(s.opened) && h.Time.Before(time.Now())
}

// maxAhead is how far the clock of another machine that commits may be ahead of ours.
const maxAhead = 24 * time.Hour

// mayLack reports whether lacks can tell only once it is as late here as where the record
// was committed.
func (s *snapshot) mayLack(h archive.Header) bool {
	ahead := time.Until(h.Time)
	return !s.knows(h.Number) && ahead > 0 && ahead < maxAhead
}

// release gives a reference back.
func (s *snapshot) release() {
	if s.refs.Add(-1) == 0 {
		_ = s.db.Close() // it was only read from; a temporary directory that stays is removed by a later writer
	}
}

// snapshots holds the newest snapshot, and older ones so that what is open in
// a dropped generation goes on being readable. It is safe for concurrent use.
type snapshots struct {
	mu   sync.RWMutex
	list []*snapshot // newest first
}

// at returns the k-th newest snapshot, nil where there are fewer. The caller
// releases it.
func (l *snapshots) at(k int) *snapshot {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if k >= len(l.list) {
		return nil
	}
	s := l.list[k]
	s.refs.Add(1)
	return s
}

// of returns the newest snapshot that has a generation, nil where none has. The
// caller releases it.
func (l *snapshots) of(generation uint64) *snapshot {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range l.list {
		if s.knows(generation) {
			s.refs.Add(1)
			return s
		}
	}
	return nil
}

// push makes s the newest and takes over its reference. pinned is the generation that is
// always kept; 0: none.
func (l *snapshots) push(s *snapshot, pinned uint64) {
	for _, old := range l.replace(s, pinned) {
		old.release()
	}
}

// replace makes s the newest and returns those that are not kept.
func (l *snapshots) replace(s *snapshot, pinned uint64) (dropped []*snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := []*snapshot{s}
	for k, old := range l.list {
		if old.isWorthKeeping(kept, l.list[k+1:], pinned) {
			kept = append(kept, old)
		} else {
			dropped = append(dropped, old)
		}
	}
	l.list = kept
	return dropped
}

// isWorthKeeping reports whether the snapshot knows generations that none of the kept ones
// knows, there is room for it, and none of the older ones, one of which can be kept in
// its place, knows all of those generations.
func (s *snapshot) isWorthKeeping(kept, older []*snapshot, pinned uint64) bool {
	lost := s.lostWithout(kept, pinned)
	return len(lost) > 0 && !slices.ContainsFunc(older, func(o *snapshot) bool { return o.knowsAll(lost) })
}

// lostWithout returns the generations that are lost without the snapshot, as none of the kept
// ones knows them; where there are as many as there may be, only the pinned one.
func (s *snapshot) lostWithout(kept []*snapshot, pinned uint64) (lost []uint64) {
	full := len(kept) >= keptSnapshots
	for number := range s.generations {
		if full && number != pinned {
			continue
		}
		if !slices.ContainsFunc(kept, func(k *snapshot) bool { return k.knows(number) }) {
			lost = append(lost, number)
		}
	}
	return lost
}

func (s *snapshot) knows(generation uint64) bool {
	_, ok := s.generations[generation]
	return ok
}

func (s *snapshot) knowsAll(generations []uint64) bool {
	return !slices.ContainsFunc(generations, func(g uint64) bool { return !s.knows(g) })
}

// forget gives the memory of what was read of the indexes back to the kernel.
func (l *snapshots) forget() {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range l.list {
		s.db.Release()
	}
}

// close releases all.
func (l *snapshots) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.list {
		s.release()
	}
	l.list = nil
}
