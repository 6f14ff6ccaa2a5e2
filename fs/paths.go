package fs

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
)

// maxPaths bounds the paths that are remembered; each takes some 200 bytes.
const maxPaths = 16 << 10

// pathNode is a directory below ".versions". It never changes.
type pathNode struct {
	node    uint64
	listing uint64    // node of the listing that has the ".versions"
	parent  *pathNode // nil of ".versions" itself
	name    string
	recent  *list.Element
}

// path returns what the directory tells of: "etc/passwd", or "." for the root.
func (p *pathNode) path() string {
	if p.parent == nil {
		return "."
	}
	var names []string
	for ; p.parent != nil; p = p.parent {
		names = append(names, p.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// depth returns how many names the path has.
func (p *pathNode) depth() int {
	n := 0
	for ; p.parent != nil; p = p.parent {
		n++
	}
	return n
}

// paths knows the directories below ".versions" by node: those that were used
// last. A node id is a hash of the path, so it is the same when it was forgotten
// meanwhile and is looked up again, which the kernel does where it is told that
// the node is stale. It is safe for concurrent use.
type paths struct {
	seed  maphash.Seed
	limit int // of the nodes

	mu     sync.Mutex
	nodes  map[uint64]*pathNode
	recent list.List // of *pathNode, the most recently used first; parents before children
}

func newPaths(limit int) *paths {
	return &paths{seed: maphash.MakeSeed(), limit: limit, nodes: make(map[uint64]*pathNode)}
}

// root returns the directory ".versions" of a listing.
func (t *paths) root(listing uint64) (*pathNode, error) {
	return t.add(pathNode{node: t.hash(listing, ""), listing: listing})
}

// child returns the directory in another one that has the given name.
func (t *paths) child(p *pathNode, name string) (*pathNode, error) {
	return t.add(pathNode{node: t.hash(p.node, name), listing: p.listing, parent: p, name: name})
}

func (t *paths) hash(parent uint64, name string) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.Write(binary.BigEndian.AppendUint64(nil, parent)) // never fails, says hash/maphash
	h.WriteString(name)
	return pathNodeID(h.Sum64())
}

func (t *paths) add(p pathNode) (*pathNode, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.nodes[p.node]
	if known == nil {
		known = &p
		known.recent = t.recent.PushFront(known)
		t.nodes[p.node] = known
	}
	if known.path() != p.path() || known.listing != p.listing {
		return nil, fmt.Errorf("its node id is that of %q", known.path()) // one in 2^60
	}
	t.use(known)
	for len(t.nodes) > t.limit && t.recent.Back() != known.recent {
		oldest := t.recent.Remove(t.recent.Back()).(*pathNode)
		delete(t.nodes, oldest.node)
	}
	return known, nil
}

// get returns the directory that a node is, nil where it is not known any more.
func (t *paths) get(node uint64) *pathNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.nodes[node]
	if p != nil {
		t.use(p)
	}
	return p
}

// use makes a directory, and those above it, the most recently used ones.
func (t *paths) use(p *pathNode) {
	for ; p != nil; p = p.parent {
		t.recent.MoveToFront(p.recent)
	}
}
