package index

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/backupfs/backupfs/archive"
)

// Holder is a path, and the generations in which its file has a content.
type Holder struct {
	Source      string
	Path        string // "a/b", as in the log
	Content     archive.Hash
	Generations []Generation // ordered by number, at least one
}

// Holders returns every path that has, in a generation that was not forgotten,
// a content for which wanted returns true, ordered by source and path. Content
// is one of those, even where a path has several. The whole index is read once.
// The memory it takes grows with the number of directories and of paths found.
func (d *DB) Holders(wanted func(archive.Hash) bool) ([]Holder, error) {
	gens, err := d.Generations()
	if err != nil || len(gens) == 0 {
		return nil, err
	}
	h := &holderScan{db: d, wanted: wanted, inos: map[Ino]archive.Hash{}, died: map[DirID]uint64{},
		parents: map[DirID]dirPlace{}, found: map[holderKey]*Holder{}}
	for _, pass := range []func() error{h.inodes, h.segments, h.directories, h.entries} {
		if err := pass(); err != nil {
			return nil, err
		}
	}
	h.resolve(gens)
	return h.list(), nil
}

// holderScan is one call of Holders.
type holderScan struct {
	db      *DB
	wanted  func(archive.Hash) bool
	inos    map[Ino]archive.Hash // that have a wanted content
	died    map[DirID]uint64     // when a directory died
	parents map[DirID]dirPlace
	names   []heldName
	found   map[holderKey]*Holder
}

// dirPlace is where a directory is, which is the same as long as it lives.
type dirPlace struct {
	parent DirID
	name   string
}

// heldName is an entry of a directory that is a file with a wanted content for
// the timestamps from ≤ t < end.
type heldName struct {
	dirPlace
	content   archive.Hash
	from, end uint64
}

type holderKey struct{ source, path string }

func (h *holderScan) want(ino Ino, base int64, extents []byte) error {
	_, err := decodeExtents(extents, base, func(e archive.Extent) bool {
		found := h.wanted(e.Hash)
		if found {
			h.inos[ino] = e.Hash
		}
		return !found
	})
	return err
}

func (h *holderScan) inodes() error {
	return scan(h.db.tables, h.db.number, []byte{spaceInode}, func(key, value []byte) error {
		i, err := decodeInode(value)
		if err != nil || i.segmented {
			return err
		}
		return h.want(Ino(keyID(key)), 0, i.extents)
	})
}

func (h *holderScan) segments() error {
	return scan(h.db.tables, h.db.number, []byte{spaceSegment}, func(key, value []byte) error {
		ino := Ino(keyID(key))
		if _, known := h.inos[ino]; known {
			return nil
		}
		_, extents, err := decodeSegment(value)
		if err != nil {
			return err
		}
		return h.want(ino, int64(keyID(key[8:])), extents)
	})
}

// directories notes which directories are dead.
func (h *holderScan) directories() error {
	c := newCursor(h.db.tables, h.db.number, []byte{spaceNode}, scanOptions{})
	var err error
	for more := c.seek([]byte{spaceNode}); more && err == nil; more = c.next() {
		var there bool
		if _, there, err = decodeNode(c.value); err == nil && !there {
			h.died[DirID(keyID(c.key))] = c.at
		}
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

// entries looks at every version of every entry.
func (h *holderScan) entries() (err error) {
	c := newCursor(h.db.tables, h.db.number, []byte{spaceDirent}, scanOptions{allVersions: true})
	var key []byte
	end := uint64(0)
	for more := c.seek([]byte{spaceDirent}); more && err == nil; more = c.next() {
		dir := DirID(keyID(c.key))
		if !bytes.Equal(key, c.key) {
			key = append(key[:0], c.key...)
			end = math.MaxUint64
			if died, dead := h.died[dir]; dead {
				end = died
			}
		}
		var e dirent
		e, err = direntIn(dir, c.value)
		place := dirPlace{dir, string(key[idKey:])}
		switch e.kind {
		case kindDir:
			h.parents[e.dir] = place
		case kindLeaf:
			if content, held := h.inos[e.ino]; held && c.at < end {
				h.names = append(h.names, heldName{place, content, c.at, end})
			}
		}
		end = min(end, c.at)
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

// resolve finds the path of every name, and who sees it.
func (h *holderScan) resolve(gens []Generation) {
	byRoot := map[DirID][]Generation{}
	for _, g := range gens {
		byRoot[g.Root] = append(byRoot[g.Root], g)
	}
	for _, n := range h.names {
		root, path := h.path(n.dirPlace)
		for _, g := range byRoot[root] {
			if n.from <= g.Number && g.Number < n.end {
				h.add(path, n.content, g)
			}
		}
	}
}

// path returns the root above a name and the path below that.
func (h *holderScan) path(at dirPlace) (DirID, string) {
	names := []string{at.name}
	for {
		above, ok := h.parents[at.parent]
		if !ok {
			slices.Reverse(names)
			return at.parent, strings.Join(names, "/")
		}
		names = append(names, above.name)
		at = above
	}
}

func (h *holderScan) add(path string, content archive.Hash, g Generation) {
	key := holderKey{g.Source, path}
	holder := h.found[key]
	if holder == nil {
		holder = &Holder{Source: g.Source, Path: path, Content: content}
		h.found[key] = holder
	}
	holder.Generations = append(holder.Generations, g)
}

func (h *holderScan) list() []Holder {
	var list []Holder
	for _, holder := range h.found {
		slices.SortFunc(holder.Generations, func(a, b Generation) int { return cmp.Compare(a.Number, b.Number) })
		list = append(list, *holder)
	}
	slices.SortFunc(list, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), ComparePaths(a.Path, b.Path))
	})
	return list
}
