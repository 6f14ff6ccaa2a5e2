package fs

import (
	"cmp"
	"container/list"
	"slices"
	"sync"
)

const (
	// marksEvery is how many entries of a directory there are between two
	// marks, unless the directory is very large.
	marksEvery = 32
	// marksPerDir bounds the marks of one directory: 8,192 reach 262,144
	// entries, above that they lie farther apart.
	marksPerDir = 8192
	// marksInAll bounds the marks of all directories: some 2 MiB, or 4 MiB where
	// every directory has one.
	marksInAll = 2 * marksPerDir
)

// mark is a position in a directory: the entries passed, and the last of them.
// The zero mark is the start.
type mark struct {
	passed int64
	name   string
	end    bool // no entry follows
}

// marks remembers positions in directories that are being read, those that were
// read least recently going first. Where a mark is missing, a reader passes more
// entries to find its place. It is safe for concurrent use.
type marks struct {
	mu     sync.Mutex
	dirs   map[uint64]*list.Element // of *dirMarks, by node
	recent list.List                // the most recently used first
	total  int
}

type dirMarks struct {
	node   uint64
	sorted []mark // by passed
	every  int64  // the distance of the marks that are not dropped for want of room
}

func newMarks() *marks { return &marks{dirs: make(map[uint64]*list.Element)} }

func comparePassed(m mark, passed int64) int { return cmp.Compare(m.passed, passed) }

// nearest returns the last mark that is not behind `passed` entries.
func (m *marks) nearest(node uint64, passed int64) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.dirs[node]
	if !ok {
		return mark{}
	}
	m.recent.MoveToFront(e)
	sorted := e.Value.(*dirMarks).sorted
	i, exact := slices.BinarySearchFunc(sorted, passed, comparePassed)
	switch {
	case exact:
		return sorted[i]
	case i == 0:
		return mark{}
	}
	return sorted[i-1]
}

// add adds a mark.
func (m *marks) add(node uint64, at mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.dirs[node]
	if !ok {
		e = m.recent.PushFront(&dirMarks{node: node, every: marksEvery})
		m.dirs[node] = e
	}
	m.recent.MoveToFront(e)
	d := e.Value.(*dirMarks)
	before := len(d.sorted)
	d.add(at)
	m.total += len(d.sorted) - before
	for m.total > marksInAll && m.recent.Len() > 1 {
		m.dropOldest()
	}
}

func (m *marks) dropOldest() {
	e := m.recent.Back()
	d := m.recent.Remove(e).(*dirMarks)
	delete(m.dirs, d.node)
	m.total -= len(d.sorted)
}

func (d *dirMarks) add(at mark) {
	i, exact := slices.BinarySearchFunc(d.sorted, at.passed, comparePassed)
	if exact {
		d.sorted[i] = at
		return
	}
	d.sorted = slices.Insert(d.sorted, i, at)
	if len(d.sorted) <= marksPerDir {
		return
	}
	for len(d.sorted) > marksPerDir/2 {
		d.every *= 2
		d.sorted = slices.DeleteFunc(d.sorted, func(m mark) bool { return m.passed%d.every != 0 })
	}
}
