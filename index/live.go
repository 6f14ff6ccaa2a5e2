package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/backupfs/backupfs/archive"
)

// Usage says how much of an index is of use.
type Usage struct {
	Contents   int64 // that lie in a part
	Live       int64 // of these, those that a generation needs
	Gone       int64 // contents whose part was removed
	Inodes     int64
	DeadInodes int64 // that no generation needs
}

// Live yields every content and where it lies, in the order of the hashes, and
// whether a generation needs it that was not forgotten. It ends with the first
// error of yield. The error wraps ErrDamaged where a content that a generation
// needs is not in any part.
//
// It holds a bit for each inode number that was ever given, 4 bytes for each
// directory, and about 20 for each content that is needed: 20 MB per million.
// Contents are told apart by 8 bytes of their hashes: where two have the same,
// both count as needed.
func (d *DB) Live(yield func(p archive.Part, c archive.Content, live bool) error) (Usage, error) {
	l := liveness{db: d, inos: newBitmap(d.meta.inos), owners: make([]uint32, d.meta.dirs+1),
		died: map[DirID]uint64{}, needed: map[uint64]bool{}}
	if d.tables == nil {
		return l.usage, nil
	}
	for _, step := range []func() error{l.roots, l.deaths, l.entries, l.segments, l.inodes} {
		if err := step(); err != nil {
			return l.usage, err
		}
	}
	return l.usage, l.contents(yield)
}

// liveness finds out what is needed. A directory belongs to the tree of one
// root for life, and is only seen by the generations of that root.
type liveness struct {
	db     *DB
	trees  [][]uint64       // of each root: its generations, ascending
	owners []uint32         // of each directory: 1 + the number of its tree; 0: no generation sees it
	died   map[DirID]uint64 // when a directory died
	inos   bitmap           // inodes of files that a generation has
	needed map[uint64]bool  // first 8 bytes of the hashes that those name → a place was found
	usage  Usage
}

func (l *liveness) roots() error {
	generations, err := l.db.Generations()
	for _, g := range generations {
		if uint64(g.Root) >= uint64(len(l.owners)) {
			return fmt.Errorf("%w: generation %d has the root %d", ErrDamaged, g.Number, g.Root)
		}
		owner := &l.owners[g.Root]
		if *owner == 0 {
			l.trees = append(l.trees, nil)
			*owner = uint32(len(l.trees))
		}
		l.trees[*owner-1] = append(l.trees[*owner-1], g.Number)
	}
	return err
}

// deaths finds the directories that are gone.
func (l *liveness) deaths() error {
	c := newCursor(l.db.tables, l.db.number, []byte{spaceNode}, scanOptions{})
	for more := c.seek([]byte{spaceNode}); more; more = c.next() {
		if len(c.value) > 0 && c.value[0] == kindGone {
			l.died[DirID(keyID(c.key))] = c.at
		}
	}
	return c.close()
}

// entries finds the inodes that generations have. A directory has a greater
// number than the one that it lies in, so its tree is known when its turn comes.
func (l *liveness) entries() error {
	c := newCursor(l.db.tables, l.db.number, []byte{spaceDirent}, scanOptions{allVersions: true})
	var key []byte
	var end uint64 // of the time in which the version is seen
	var err error
	for more := c.seek([]byte{spaceDirent}); more && err == nil; more = c.next() {
		dir := DirID(keyID(c.key))
		if !slices.Equal(key, c.key) {
			key = append(key[:0], c.key...)
			end = math.MaxUint64
			if at, dead := l.died[dir]; dead {
				end = at
			}
		}
		err = l.entry(dir, c.value, c.at, end)
		end = min(end, c.at)
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}

func (l *liveness) entry(dir DirID, value []byte, from, end uint64) error {
	e, err := decodeDirent(value)
	if err != nil || uint64(dir) >= uint64(len(l.owners)) || l.owners[dir] == 0 {
		return err
	}
	switch e.kind {
	case kindDir:
		if e.dir <= dir || uint64(e.dir) >= uint64(len(l.owners)) {
			return fmt.Errorf("%w: directory %d in directory %d", ErrDamaged, e.dir, dir)
		}
		l.owners[e.dir] = l.owners[dir]
	case kindLeaf:
		generations := l.trees[l.owners[dir]-1]
		i := sort.Search(len(generations), func(i int) bool { return generations[i] >= from })
		if i < len(generations) && generations[i] < end {
			l.inos.set(e.ino)
		}
	}
	return nil
}

func (l *liveness) need(e archive.Extent) bool {
	l.needed[binary.BigEndian.Uint64(e.Hash[:])] = false
	return true
}

func (l *liveness) segments() error {
	return scan(l.db.tables, l.db.number, []byte{spaceSegment}, func(key, value []byte) error {
		if !l.inos.has(Ino(keyID(key))) {
			return nil
		}
		_, extents, err := decodeSegment(value)
		if err == nil {
			_, err = decodeExtents(extents, 0, l.need)
		}
		return err
	})
}

func (l *liveness) inodes() error {
	return scan(l.db.tables, l.db.number, []byte{spaceInode}, func(key, value []byte) error {
		l.usage.Inodes++
		if !l.inos.has(Ino(keyID(key))) {
			l.usage.DeadInodes++
			return nil
		}
		i, err := decodeInode(value)
		if err == nil && !i.segmented {
			_, err = decodeExtents(i.extents, 0, l.need)
		}
		return err
	})
}

func (l *liveness) contents(yield func(archive.Part, archive.Content, bool) error) error {
	err := scan(l.db.tables, l.db.number, []byte{spaceContent}, func(key, value []byte) error {
		at, err := decodePlace(value)
		if err != nil {
			return err
		}
		part, err := l.db.part(at.part)
		if errors.Is(err, errPartGone) {
			l.usage.Gone++
			return nil
		}
		if err != nil {
			return err
		}
		short := binary.BigEndian.Uint64(key[1:])
		_, live := l.needed[short]
		l.usage.Contents++
		if live {
			l.needed[short] = true
			l.usage.Live++
		}
		return yield(part, archive.Content{Hash: archive.Hash(key[1:]), RawOffset: at.rawOffset, RawLen: at.rawLen}, live)
	})
	if err != nil {
		return err
	}
	lost := 0
	for _, found := range l.needed {
		if !found {
			lost++
		}
	}
	if lost > 0 {
		return fmt.Errorf("%w: %d contents that generations need are in no part", ErrDamaged, lost)
	}
	return nil
}

// Removals yields the names of the parts that the log removed and did not name
// again, until yield returns an error.
func (d *DB) Removals(yield func(archive.Digest) error) error {
	return scan(d.tables, d.number, []byte{spacePartName}, func(key, value []byte) error {
		if len(value) > 0 {
			return nil
		}
		return yield(archive.Digest(key[1:]))
	})
}

// LastRemoval returns the number of the newest record that removed a part, 0
// where none did.
func (d *DB) LastRemoval() uint64 { return d.meta.removal }
