package crash

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// State is what is on disk after a crash.
type State struct {
	top *inode
}

// inode is a file or directory of a State.
type inode struct {
	id      int
	perm    fs.FileMode
	entries map[string]*inode // nil for a file
	data    []byte
}

// Seeds of Crash that stand for states that are chosen, not random. All smaller than
// Extremes do.
const (
	Nothing      = iota // of what was not synced is there
	Names               // are there, but no bytes
	Zeros               // are in files of the right size
	Everything          // is there
	OnlyRemovals        // have happened, of names
	NoRemovals          // have, but all else
	OnlyLast            // change of a name is there
	Extremes
)

// Crash returns what may be on disk if the machine crashes after the first n
// operations. The seed chooses what is there of that which was not synced. The syncs
// called for at the place lost, or by way of it where that is the beginning of a list as
// Syncs has, did nothing; "" means that all did something.
func (d *Disk) Crash(n int, seed uint64, lost string) State {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &chance{rng: rand.New(rand.NewPCG(seed, uint64(n)))}
	log := d.log[:n]
	sure := synced(log, lost)
	c.choose(seed, log, sure)
	s := &replay{nodes: make([]*inode, len(d.nodes)), parents: map[int]entry{}}
	for id, n := range d.nodes {
		s.nodes[id] = &inode{id: id, perm: n.perm}
		if n.entries != nil {
			s.nodes[id].entries = map[string]*inode{}
		}
	}
	for i, o := range log {
		s.apply(o, sure[i], c, i)
	}
	return State{s.nodes[0]}
}

// certainty says which halves of an operation are sure to survive.
type certainty struct {
	first  bool // the entry in dir, the bytes
	second bool // the entry in toDir
}

// synced finds out what is sure to survive.
func synced(log []operation, lost string) []certainty {
	sure := make([]certainty, len(log))
	files, dirs := map[int]bool{}, map[int]bool{}
	for i := len(log) - 1; i >= 0; i-- {
		switch o := log[i]; o.kind {
		case syncFile:
			files[o.node] = files[o.node] || !o.calledAt(lost)
		case syncDir:
			dirs[o.dir] = dirs[o.dir] || !o.calledAt(lost)
		case writeBytes, setSize:
			sure[i].first = files[o.node]
		case moveEntry, swapEntries:
			sure[i] = certainty{dirs[o.dir], dirs[o.toDir]}
		default:
			sure[i].first = dirs[o.dir]
		}
	}
	return sure
}

func (o operation) calledAt(place string) bool {
	return place != "" && (o.site == place || strings.HasPrefix(o.site, place+" "))
}

// chance decides about what is not sure.
type chance struct {
	rng      *rand.Rand
	removals int     // all removals of names are there: 1; none is: -1
	names    float64 // probability that another change of a directory is there
	bytes    float64 // that a write is there, whole
	growth   float64 // that it is there as zeros, if it is not
	torn     float64 // that a part of it is there, if it has not
	ordered  int     // names are there up to this operation and not after it; -1: each by itself
	only     int     // of names, this operation alone is there; -1: each by itself
}

func (c *chance) choose(seed uint64, log []operation, sure []certainty) {
	c.ordered, c.only = -1, -1
	switch seed {
	case Nothing:
	case Names:
		c.names = 1
	case Zeros:
		c.names, c.growth = 1, 1
	case Everything:
		c.names, c.bytes = 1, 1
	case OnlyRemovals:
		c.removals = 1
	case NoRemovals:
		c.names, c.bytes, c.removals = 1, 1, -1
	case OnlyLast:
		c.only = lastOfNames(log)
	default:
		odds := []float64{0, 0.1, 0.5, 0.9, 1}
		pick := func() float64 { return odds[c.rng.IntN(len(odds))] }
		c.names, c.bytes, c.growth, c.torn = pick(), pick(), pick(), pick()
		if c.rng.IntN(3) == 0 {
			c.journal(log, sure)
		}
	}
}

// journal makes changes of directories survive in the order in which they were made:
// all up to one of them, which is the last sure one or a later one.
func (c *chance) journal(log []operation, sure []certainty) {
	last := 0
	for i, o := range log {
		if (sure[i].first || sure[i].second) && o.kind != writeBytes && o.kind != setSize {
			last = i + 1
		}
	}
	c.ordered = last + c.rng.IntN(len(log)-last+1)
}

// lastOfNames returns the last operation that changes a directory.
func lastOfNames(log []operation) int {
	last := 0
	for i, o := range log {
		if o.kind <= swapEntries {
			last = i
		}
	}
	return last
}

func (c *chance) name(i int) bool {
	switch {
	case c.only >= 0:
		return i == c.only
	case c.ordered >= 0:
		return i < c.ordered
	}
	return c.rng.Float64() < c.names
}

func (c *chance) removal(i int) bool {
	return c.removals > 0 || c.removals == 0 && c.name(i)
}

// entry is where a node has a name.
type entry struct {
	dir  *inode
	name string
}

// replay does over again what survived.
type replay struct {
	nodes   []*inode      // by number
	parents map[int]entry // of directories
}

func (s *replay) apply(o operation, sure certainty, c *chance, i int) {
	switch o.kind {
	case addEntry:
		if sure.first || c.name(i) {
			s.link(o.dir, o.name, o.node)
		}
	case removeEntry:
		if sure.first || c.removal(i) {
			s.unlink(o.dir, o.name, o.node)
		}
	case moveEntry:
		s.move(o, sure, c, i)
	case swapEntries:
		if sure.first || sure.second || c.name(i) {
			s.link(o.dir, o.name, o.other)
			s.link(o.toDir, o.toName, o.node)
		}
	case writeBytes, setSize:
		s.write(o, sure.first, c)
	}
}

// move moves an entry. Whether a file is still there under its old name is a question
// of its own.
func (s *replay) move(o operation, sure certainty, c *chance, i int) {
	if !sure.first && !sure.second && !c.name(i) {
		return
	}
	s.link(o.toDir, o.toName, o.node)
	if sure.first || s.nodes[o.node].entries != nil || c.removal(i) {
		s.unlink(o.dir, o.name, o.node)
	}
}

func (s *replay) write(o operation, sure bool, c *chance) {
	n := s.nodes[o.node]
	data := o.data
	if !sure && c.rng.Float64() >= c.bytes {
		data = c.remains(data)
		if o.kind == setSize || len(data) == 0 {
			return
		}
	}
	if o.kind == setSize {
		n.data = n.data[:min(o.at, int64(len(n.data)))]
		return
	}
	if missing := o.at + int64(len(data)) - int64(len(n.data)); missing > 0 {
		n.data = append(n.data, make([]byte, missing)...)
	}
	copy(n.data[o.at:], data)
}

// remains returns what is there of a write that was not done: zeros in its place, a
// part of it, or nothing.
func (c *chance) remains(data []byte) []byte {
	switch {
	case c.rng.Float64() < c.growth:
		return make([]byte, len(data))
	case c.rng.Float64() < c.torn:
		return data[:c.rng.IntN(len(data)+1)]
	}
	return nil
}

func (s *replay) link(dir int, name string, id int) {
	parent, n := s.nodes[dir], s.nodes[id]
	if old, ok := s.parents[id]; ok && old.dir.entries[old.name] == n {
		delete(old.dir.entries, old.name) // a directory has one place
	}
	if n.entries != nil {
		s.parents[id] = entry{parent, name}
	}
	parent.entries[name] = n
}

func (s *replay) unlink(dir int, name string, id int) {
	if parent := s.nodes[dir]; parent.entries[name] == s.nodes[id] {
		delete(parent.entries, name)
	}
}

// Key returns a digest of the state: of all names as they are called, and of the bytes of
// the files that count.
func (s State) Key(called func(path string) (name string, counts bool)) [32]byte {
	h := sha256.New()
	var walk func(path string, n *inode)
	walk = func(path string, n *inode) {
		for _, name := range slices.Sorted(maps.Keys(n.entries)) {
			child, below := n.entries[name], filepath.Join(path, name)
			called, counts := called(below)
			h.Write(fmt.Appendf(nil, "%q %t ", called, child.entries != nil))
			if child.entries == nil && counts {
				h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(child.data))))
				h.Write(child.data)
			}
			walk(below, child)
		}
	}
	walk("", s.top)
	return [32]byte(h.Sum(nil))
}

// Write makes the files of the state in an empty directory.
func (s State) Write(dir string) error {
	names := map[int]string{} // of files, the first
	var walk func(dir string, n *inode) error
	walk = func(dir string, n *inode) error {
		for name, child := range n.entries {
			if err := s.write(filepath.Join(dir, name), child, names); err != nil {
				return err
			}
			if err := walk(filepath.Join(dir, name), child); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(dir, s.top)
}

func (s State) write(name string, n *inode, names map[int]string) error {
	if n.entries != nil {
		return os.Mkdir(name, 0o700)
	}
	if first, ok := names[n.id]; ok {
		return os.Link(first, name)
	}
	names[n.id] = name
	return os.WriteFile(name, n.data, n.perm)
}
