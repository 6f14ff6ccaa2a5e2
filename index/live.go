package index

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
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
	Current    Need  // of the contents that the newest generation of a source needs
	Inodes     int64
	DeadInodes int64 // that no generation needs
}

// Need tells how long a content is going to be needed. It is 0 where no generation
// needs it that was not forgotten. Otherwise it is the place of the newest one that
// does, from 1 on, in the order of their numbers; the newest generations of all
// sources share the last place. So contents of the same need will be of no use at
// the same time, unless they are current.
type Need uint32

// Live yields every content, where it lies, which record said so first, and who needs
// it, in the order of the hashes. again is true of each other place where a content lies
// that was yielded before: it is read there only where the first one cannot be read. Live ends with the
// first error of yield. The error wraps ErrDamaged where Lost has contents.
//
// It holds 4 bytes for each inode number that was ever given and 4 for each directory,
// but not for long stretches of numbers that are not in use, and 25 to 38 for each content that is needed: up to 38 MB per million.
// Contents are told apart by 8 bytes of their hashes: where two have the same,
// both count as needed.
func (d *DB) Live(yield func(p archive.Placement, need Need, again bool) error) (Usage, error) {
	l, lost, err := d.live(yield)
	if err == nil && len(lost) > 0 {
		err = fmt.Errorf("%w: %d contents that generations need are in no part, or have another length there", ErrDamaged, len(lost))
	}
	return l.usage, err
}

// Lost returns the contents that files of generations need and that are in no part, or
// have another length there than a file has of them, which is given. It takes the time and
// memory that Live takes.
func (d *DB) Lost() (map[archive.Hash]int64, error) {
	_, lost, err := d.live(func(archive.Placement, Need, bool) error { return nil })
	return lost, err
}

// Gone yields every content whose part was removed, needed or not. An index may have let go
// of some: only Lost is sure.
func (d *DB) Gone(yield func(archive.Hash)) error {
	return scan(d.tables, d.number, []byte{spaceContent}, func(key, value []byte) error {
		at, err := decodePlace(value)
		if err != nil {
			return err
		}
		if _, err = d.part(at.part); errors.Is(err, errPartGone) {
			yield(archive.Hash(key[1:]))
			return nil
		}
		return err
	})
}

func (d *DB) live(yield func(archive.Placement, Need, bool) error) (l *liveness, lost map[archive.Hash]int64, err error) {
	l = &liveness{db: d, died: map[DirID]uint64{}, needed: map[uint64]needed{}}
	if d.tables == nil {
		return l, nil, nil
	}
	for _, step := range []func() error{l.roots, l.deaths, l.entries, l.requirements} {
		if err := step(); err != nil {
			return l, nil, err
		}
	}
	if err := l.contents(yield); err != nil {
		return l, nil, err
	}
	lost, err = l.lost()
	return l, lost, err
}

// liveness finds out what is needed. A directory belongs to the tree of one
// root for life, and is only seen by the generations of that root.
type liveness struct {
	db     *DB
	trees  [][]generationNeed // of each root: its generations, ascending
	owners paged[uint32]      // of each directory: 1 + the number of its tree; 0: no generation sees it
	died   map[DirID]uint64   // when a directory died
	inos   paged[Need]        // of files, at half their number
	needed map[uint64]needed  // by the first 8 bytes of the hash
	usage  Usage
}

type generationNeed struct {
	number uint64
	need   Need // of what it is the newest one to need
}

type needed struct {
	need   Need
	length uint32 // raw bytes that files have of it, or one of these:
}

const (
	lengthFound   = 0              // it lies in a part, with that length
	lengthsDiffer = math.MaxUint32 // files have different lengths of it
)

func (l *liveness) roots() error {
	generations, err := l.db.Generations()
	if err != nil {
		return err
	}
	newest := make(map[string]uint64)
	for _, g := range generations {
		newest[g.Source] = g.Number
	}
	l.usage.Current = Need(len(generations) - len(newest) + 1)
	next := Need(1)
	for _, g := range generations {
		if uint64(g.Root) > l.db.meta.dirs {
			return fmt.Errorf("%w: generation %d has the root %d", ErrDamaged, g.Number, g.Root)
		}
		owner := l.owners.at(uint64(g.Root))
		if *owner == 0 {
			l.trees = append(l.trees, nil)
			*owner = uint32(len(l.trees))
		}
		need := l.usage.Current
		if newest[g.Source] != g.Number {
			need = next
			next++
		}
		l.trees[*owner-1] = append(l.trees[*owner-1], generationNeed{g.Number, need})
	}
	return nil
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
	e, err := direntIn(dir, value)
	owner := l.owners.get(uint64(dir))
	if err != nil || owner == 0 {
		return err
	}
	switch e.kind {
	case kindDir:
		if uint64(e.dir) > l.db.meta.dirs {
			return fmt.Errorf("%w: directory %d in directory %d", ErrDamaged, e.dir, dir)
		}
		*l.owners.at(uint64(e.dir)) = owner
	case kindLeaf:
		n := uint64(e.ino) >> 1
		if n > l.db.meta.inos+uint64(FirstIno)/2 {
			return fmt.Errorf("%w: inode %d in directory %d", ErrDamaged, e.ino, dir)
		}
		need := l.inos.at(n)
		*need = max(*need, newestIn(l.trees[owner-1], from, end))
	}
	return nil
}

// newestIn returns the need of what the generations see whose numbers are from
// from to before end.
func newestIn(generations []generationNeed, from, end uint64) Need {
	i := sort.Search(len(generations), func(i int) bool { return generations[i].number >= end }) - 1
	if i < 0 || generations[i].number < from {
		return 0
	}
	return generations[i].need
}

// ofInode returns the need of a file, 0 for what is none.
func (l *liveness) ofInode(i Ino) Need { return l.inos.get(uint64(i) >> 1) }

// requirements notes the contents of all files that generations need.
func (l *liveness) requirements() error {
	return l.extents(func(e archive.Extent, need Need) error {
		short := binary.BigEndian.Uint64(e.Hash[:])
		n, known := l.needed[short]
		length := uint32(e.Len)
		if known && n.length != length {
			length = lengthsDiffer
		}
		if n.need < need || n.length != length {
			l.needed[short] = needed{max(n.need, need), length}
		}
		return nil
	})
}

// extents calls use with the extents of every file that a generation needs. Their offsets
// are not those in the file.
func (l *liveness) extents(use func(archive.Extent, Need) error) error {
	if err := l.segments(use); err != nil {
		return err
	}
	return l.inodes(use)
}

func useExtents(extents []byte, need Need, use func(archive.Extent, Need) error) error {
	var err error
	_, decodeErr := decodeExtents(extents, 0, func(e archive.Extent) bool {
		err = use(e, need)
		return err == nil
	})
	return cmp.Or(decodeErr, err)
}

func (l *liveness) segments(use func(archive.Extent, Need) error) error {
	return scan(l.db.tables, l.db.number, []byte{spaceSegment}, func(key, value []byte) error {
		need := l.ofInode(Ino(keyID(key)))
		if need == 0 {
			return nil
		}
		_, extents, err := decodeSegment(value)
		if err != nil {
			return err
		}
		return useExtents(extents, need, use)
	})
}

func (l *liveness) inodes(use func(archive.Extent, Need) error) error {
	return scan(l.db.tables, l.db.number, []byte{spaceInode}, func(key, value []byte) error {
		l.usage.Inodes++
		need := l.ofInode(Ino(keyID(key)))
		if need == 0 {
			l.usage.DeadInodes++
			return nil
		}
		i, err := decodeInode(value)
		if err != nil || i.segmented {
			return err
		}
		return useExtents(i.extents, need, use)
	})
}

func (l *liveness) contents(yield func(archive.Placement, Need, bool) error) error {
	return l.db.eachPlace(nil, func(p contentPlace) error { return l.content(p, yield) })
}

// lost returns what DB.Lost does. Nearly always nothing is left to be looked up.
func (l *liveness) lost() (map[archive.Hash]int64, error) {
	maps.DeleteFunc(l.needed, func(_ uint64, n needed) bool { return n.length == lengthFound })
	if len(l.needed) == 0 {
		return nil, nil
	}
	lost := make(map[archive.Hash]int64)
	again := *l // which counts for itself
	err := again.extents(func(e archive.Extent, _ Need) error {
		if _, suspect := l.needed[binary.BigEndian.Uint64(e.Hash[:])]; !suspect {
			return nil
		}
		p, err := l.db.Content(e.Hash)
		if errors.Is(err, ErrNotFound) || err == nil && p.RawLen != e.Len {
			lost[e.Hash] = e.Len
			return nil
		}
		return err
	})
	return lost, err
}

// content yields a place of a content, unless its part was removed.
func (l *liveness) content(p contentPlace, yield func(archive.Placement, Need, bool) error) error {
	part, err := l.db.part(p.part)
	if errors.Is(err, errPartGone) {
		l.usage.Gone++
		return nil
	}
	if err != nil {
		return err
	}
	short := binary.BigEndian.Uint64(p.hash[:])
	n := l.needed[short]
	if !p.again {
		l.count(short, n, uint32(p.rawLen))
	}
	return yield(archive.Placement{Part: part.Name, Record: p.record,
		Content: archive.Content{Hash: p.hash, RawOffset: p.rawOffset, RawLen: p.rawLen}}, n.need, p.again)
}

// count counts a content that lies in a part.
func (l *liveness) count(short uint64, n needed, length uint32) {
	l.usage.Contents++
	if n.need == 0 {
		return
	}
	if n.length == length {
		l.needed[short] = needed{n.need, lengthFound}
	}
	l.usage.Live++
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
