package fs

import (
	"slices"
	"sync"

	"github.com/backupfs/backupfs/index"
)

const (
	// seenRange is how many inode numbers share a bitmap.
	seenRange = 4096
	// maxSeenRanges bounds the bitmaps of a connection: 3 MiB, for 8 million
	// inode numbers.
	maxSeenRanges = 2048
)

// maxTold is how many lists of files may be on their way to the kernel.
const maxTold = 8

// seen remembers which files the kernel knows, because it was told of them, and
// has not forgotten; and of which it has the content. It may know less than the
// kernel, and more for a moment. It is safe for concurrent use.
type seen struct {
	mu     sync.Mutex
	ranges map[index.Ino]*seenBits // by inode number / seenRange
	told   []announcement          // the oldest first
}

// announcement is the files that were named in an answer. Until it shows that the
// kernel has read it, it may not know them.
type announcement struct {
	dir   uint64 // node
	files []index.Ino
}

type seenBits struct{ known, taken, cached bits }

type bits [seenRange / 64]uint64

func (b *bits) has(i index.Ino) bool { return b[i%seenRange/64]>>(i%64)&1 != 0 }
func (b *bits) set(i index.Ino)      { b[i%seenRange/64] |= 1 << (i % 64) }
func (b *bits) unset(i index.Ino)    { b[i%seenRange/64] &^= 1 << (i % 64) }

func newSeen() *seen { return &seen{ranges: make(map[index.Ino]*seenBits)} }

// tell says that an answer with a list of a directory's files goes to the
// kernel.
func (s *seen) tell(dir uint64, files []index.Ino) {
	if len(files) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.told) == maxTold {
		s.know(0)
	}
	s.told = append(s.told, announcement{dir, files})
}

// heard says that the kernel has read the list of a directory's files, and
// returns the first of them, 0 where there is none.
func (s *seen) heard(dir uint64) (first index.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, l := range s.told {
		if l.dir == dir {
			s.know(k)
			return slices.Min(l.files)
		}
	}
	return 0
}

// know takes the k-th list for read.
func (s *seen) know(k int) {
	for _, i := range s.told[k].files {
		b := s.ranges[i/seenRange]
		if b == nil {
			if len(s.ranges) >= maxSeenRanges {
				clear(s.ranges)
			}
			b = new(seenBits)
			s.ranges[i/seenRange] = b
		}
		b.known.set(i)
	}
	s.told = slices.Delete(s.told, k, k+1)
}

// forget says that the kernel does not know a file any more.
func (s *seen) forget(i index.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.ranges[i/seenRange]; b != nil {
		b.known.unset(i)
		b.taken.unset(i)
		b.cached.unset(i)
	}
}

// read says that the kernel has asked for the content of a file. If it was
// taken to have it, it has dropped that, and probably its neighbours'.
func (s *seen) read(i index.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, l := range s.told {
		if slices.Contains(l.files, i) {
			s.know(k)
			break
		}
	}
	b := s.ranges[i/seenRange]
	if b == nil {
		return
	}
	if b.cached.has(i) {
		b.cached, b.taken = bits{}, bits{}
	}
	b.taken.set(i)
	b.cached.set(i)
}

// lacks reports whether the kernel knows a file and has not got its content,
// and nobody is about to store it.
func (s *seen) lacks(i index.Ino) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ranges[i/seenRange]
	return b != nil && b.known.has(i) && !b.taken.has(i)
}

// take says that a file is about to be stored.
func (s *seen) take(i index.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.ranges[i/seenRange]; b != nil {
		b.taken.set(i)
	}
}

// stored says that it was.
func (s *seen) stored(i index.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.ranges[i/seenRange]; b != nil && b.taken.has(i) {
		b.cached.set(i)
	}
}
