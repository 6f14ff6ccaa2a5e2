package fs

import (
	"sync"

	"github.com/backupfs/backupfs/index"
)

const (
	// maxSequences is how many files that are read in sequence are told apart.
	maxSequences = 16
	// sequenceSlack is how far a READ may lie from where the one before ended:
	// the kernel has several under way, and they come in any order.
	sequenceSlack = 2 * maxRead
)

// sequences tells READs that go through a large file from those at random, for
// which nothing is to be decoded ahead. It is safe for concurrent use.
type sequences struct {
	mu     sync.Mutex
	clock  uint64
	recent [maxSequences]sequence
}

type sequence struct {
	used uint64 // by the clock; 0: a free place
	ino  index.Ino
	end  int64 // of the last READ
}

// goesOn notes a READ, and reports whether it starts at the file's start or where
// another one has ended.
func (q *sequences) goesOn(ino index.Ino, offset, length int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.clock++
	place := &q.recent[0]
	for k := range q.recent {
		s := &q.recent[k]
		if s.used != 0 && s.ino == ino && max(offset-s.end, s.end-offset) <= sequenceSlack {
			s.used, s.end = q.clock, max(s.end, offset+length)
			return true
		}
		if s.used < place.used {
			place = s
		}
	}
	*place = sequence{used: q.clock, ino: ino, end: offset + length}
	return offset == 0
}
