package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/backupfs/backupfs/archive"
	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sys/unix"
)

// This file reads the tables that badger's table builder makes, where they lie in
// mapped memory. badger's own reader answers the same, but takes memory for every
// answer, and several times as long.
//
//	table    stored block … index, length of the index, checksum, its length
//	block    entry … offsets of the entries (4 bytes each, little-endian), how many, checksum, its length
//	entry    overlap, length of diff (2 bytes each, little-endian), diff, 3 zeros, value
//	index    a flatbuffer: of each block its first key, offset and length; the bloom filter
//
// Lengths and how many are 4 bytes, big-endian. The key of an entry is the first
// overlap bytes of the first key of its block, and diff; its last 8 bytes are
// math.MaxUint64 less the version, big-endian. Entries are in the order of their
// keys without those, the newest version of a key first. A block is stored as a zstd
// frame with a content checksum, and each value has a checksum of its own. The others
// are not looked at: the seal vouches for the file, and a checksum of the index in memory
// for what is read of it later: it leads past keys that are there if a bit of it flips.
//
// What is malformed is a panic here, a slice out of bounds, and memory that cannot
// be read is one, too. Whoever calls defers rescue.

const (
	versionSize = 8
	entryHeader = 4
	valueHeader = 3 // badger's: what kind of value it is, and when it expires; all zero
)

// tables are the open tables of an index. Safe for concurrent use until closed.
//
// Where several runs have versions of a key, all those in a newer run are newer: a
// run is written with what was put since the run before, at the number of a record
// that is never less than the one before, and only the newest runs are merged. If
// the same version of a key was put twice (a content that a record names twice,
// with a flush in between), the newer run has what was put last. So the first
// version that is found, newest run first, is the newest.
type tables struct {
	runs    []run // the newest first
	cache   blockCache
	blocks  int // of all tables
	cursors sync.Pool
}

// run is a sorted sequence of tables that do not overlap. All versions of a key
// are in one table.
type run []*mappedTable

// mappedTable is a table in mapped memory.
type mappedTable struct {
	data      []byte
	index     fb.TableIndex
	indexData []byte        // its bytes
	indexSum  uint64        // of them, as they were when the table was opened
	checked   atomic.Uint64 // the era of the cache in which they were found to be the same
	blocks    int
	filter    y.Filter
	smallest  []byte // the first key, versioned
	cache     *blockCache
	firstSlot int // of its blocks, in the cache, that of the first one
}

// newTables returns tables to add to.
func newTables() (*tables, error) {
	t := new(tables)
	var err error
	t.cache.decoder, err = archive.NewBlockDecoder()
	return t, err
}

// openTables maps the given tables of dir. They never change, not even where
// somebody removes them. The error wraps ErrDamaged only where a table is not there,
// or not what a table is; what the machine cannot do says nothing about the index.
func openTables(dir string, files []tableFile) (*tables, error) {
	t, err := newTables()
	if err != nil {
		return nil, err
	}
	byLevel := slices.SortedStableFunc(slices.Values(files), func(a, b tableFile) int { return a.Level - b.Level })
	for i, f := range byLevel {
		m, err := mapTable(filepath.Join(dir, f.name()))
		if err != nil {
			t.close()
			return nil, fmt.Errorf("index: open %s: %w", filepath.Join(dir, f.name()), err)
		}
		t.add(m, i == 0 || f.Level != byLevel[i-1].Level)
	}
	for _, r := range t.runs {
		slices.SortFunc(r, func(a, b *mappedTable) int { return y.CompareKeys(a.smallest, b.smallest) })
	}
	return t, nil
}

// add adds a table to the oldest run, or as one that is older.
func (t *tables) add(m *mappedTable, older bool) {
	if older {
		t.runs = append(t.runs, nil)
	}
	m.cache, m.firstSlot = &t.cache, t.blocks
	t.blocks += m.blocks
	last := &t.runs[len(t.runs)-1]
	*last = append(*last, m)
}

func mapTable(name string) (*mappedTable, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, fmt.Errorf("%w: no table: mode %s, %d bytes", ErrDamaged, info.Mode(), info.Size())
	}
	// A FUSE file system that does direct I/O, as many network ones do, maps nothing
	// shared. Nobody writes to the memory, so private is the same.
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes into memory: %w", info.Size(), err)
	}
	t, err := parseTable(data)
	if err != nil {
		_ = unix.Munmap(data) // the other error counts
	}
	return t, err
}

// parseTable finds index and filter in the bytes of a table.
func parseTable(data []byte) (t *mappedTable, err error) {
	defer rescue("table", debug.SetPanicOnFault(true), &err)
	rest, _ := cutLast(data) // the checksum
	_, index := cutLast(rest)
	t = &mappedTable{data: data, index: *fb.GetRootAsTableIndex(index, 0), indexData: index, indexSum: xxhash.Sum64(index)}
	t.blocks, t.filter = t.index.OffsetsLength(), t.index.BloomFilterBytes()
	if t.blocks == 0 || t.blocks > len(index)/4 { // an offset is 4 bytes
		return nil, fmt.Errorf("%w: a table of %d blocks", ErrDamaged, t.blocks)
	}
	t.smallest = bytes.Clone(t.firstKey(0)) // who compares it meets no memory that vanishes
	if len(t.smallest) < versionSize {
		return nil, fmt.Errorf("%w: a key without a version", ErrDamaged)
	}
	return t, nil
}

// cutLast cuts off the last field and the length of it, which is behind it.
func cutLast(b []byte) (rest, field []byte) {
	end := len(b) - 4
	start := end - int(binary.BigEndian.Uint32(b[end:]))
	return b[:start], b[start:end]
}

// firstKey returns the first key of a block, versioned.
func (t *mappedTable) firstKey(block int) []byte {
	var b fb.BlockOffset
	t.index.Offsets(&b, block)
	return b.KeyBytes()
}

// check panics where the index is not what it was when the table was opened. It looks
// once after each release: only then does the kernel read it from the disk again.
func (t *mappedTable) check() {
	era := t.cache.era.Load()
	if t.checked.Load() == era {
		return
	}
	if xxhash.Sum64(t.indexData) != t.indexSum {
		panic("the index of a table has changed since it was opened")
	}
	t.checked.Store(era)
}

// close unmaps the tables. Nobody may be reading.
func (t *tables) close() {
	for _, r := range t.runs {
		for _, m := range r {
			_ = unix.Munmap(m.data) // it was mapped: nothing can go wrong
		}
	}
	t.runs = nil
}

// release lets the kernel take the memory that was read, and drops what was decoded
// if it is not needed; it is read again when somebody needs it.
func (t *tables) release() {
	t.cache.release()
	for _, r := range t.runs {
		for _, m := range r {
			_ = unix.Madvise(m.data, unix.MADV_DONTNEED) // a kernel that cannot keeps the memory
		}
	}
	t.cache.era.Add(1) // after that: what is checked from now on was not in memory before
}

// compareVersioned compares a versioned key with a key and a version.
func compareVersioned(versioned, key []byte, version uint64) int {
	end := len(versioned) - versionSize
	if c := bytes.Compare(versioned[:end], key); c != 0 {
		return c
	}
	switch at := math.MaxUint64 - binary.BigEndian.Uint64(versioned[end:]); {
	case at > version:
		return -1
	case at < version:
		return 1
	}
	return 0
}

// of returns the table of the run that has all versions of key, if any has.
func (r run) of(key []byte) int {
	return sort.Search(len(r), func(i int) bool { return compareVersioned(r[i].smallest, key, 0) > 0 }) - 1
}

// find moves c to the newest version of key that is not newer than version. hash
// is that of the key, as the filters have it.
func (r run) find(c *runCursor, key []byte, version uint64, hash uint32) bool {
	table := r.of(key)
	if table < 0 {
		return false
	}
	r[table].check()
	if !r[table].filter.MayContain(hash) {
		return false
	}
	c.run, c.table = r, table
	c.beforeInTable(key, version)
	return c.next() && bytes.Equal(c.key(), key)
}

// runCursor is a place in a run: an entry, or the place before the first one.
type runCursor struct {
	run   run
	order int // of the run among the others: 0 is the newest
	table int
	block int
	count int // entries of the block
	entry int

	entries []byte // of the block: up to their end
	offsets []byte // of the block: where they begin
	base    []byte // of the block: the first key, versioned

	at        uint64 // version of the current entry
	value     []byte // of it, with its checksum; part of the block
	keySize   int
	versioned [maxKey + versionSize]byte // its key, behind which is the version
}

func (c *runCursor) key() []byte { return c.versioned[:c.keySize] }

// before moves to the last entry before a version of a key, and reports whether
// there is one.
func (c *runCursor) before(key []byte, version uint64) bool {
	c.table = max(0, sort.Search(len(c.run), func(i int) bool { return compareVersioned(c.run[i].smallest, key, version) >= 0 })-1)
	return c.beforeInTable(key, version)
}

func (c *runCursor) beforeInTable(key []byte, version uint64) bool {
	t := c.run[c.table]
	t.check()
	c.openBlock(max(0, sort.Search(t.blocks, func(i int) bool { return compareVersioned(t.firstKey(i), key, version) >= 0 })-1))
	low, high := 0, c.count
	for low < high {
		middle := int(uint(low+high) >> 1)
		c.load(middle)
		if compareVersioned(c.versioned[:c.keySize+versionSize], key, version) < 0 {
			low = middle + 1
		} else {
			high = middle
		}
	}
	c.entry = low - 1
	if c.entry < 0 {
		return false
	}
	c.load(c.entry)
	return true
}

// next moves to the next entry, if there is one.
func (c *runCursor) next() bool {
	switch {
	case c.entry+1 < c.count:
		c.load(c.entry + 1)
		return true
	case c.block+1 < c.run[c.table].blocks:
		c.openBlock(c.block + 1)
	case c.table+1 < len(c.run):
		c.table++
		c.openBlock(0)
	default:
		return false
	}
	c.load(0)
	return true
}

// previous moves to the previous entry, if there is one.
func (c *runCursor) previous() bool {
	switch {
	case c.entry > 0:
		c.load(c.entry - 1)
		return true
	case c.block > 0:
		c.openBlock(c.block - 1)
	case c.table > 0:
		c.table--
		c.openBlock(c.run[c.table].blocks - 1)
	default:
		return false
	}
	c.load(c.count - 1)
	return true
}

// openBlock moves to a block of the table, but to no entry.
func (c *runCursor) openBlock(block int) {
	rest, _ := cutLast(c.run[c.table].block(block)) // the checksum
	end := len(rest) - 4
	c.block, c.count = block, int(binary.BigEndian.Uint32(rest[end:]))
	start := end - 4*c.count
	c.entries, c.offsets = rest[:start], rest[start:end]
	c.base = c.entries[entryHeader:][:binary.LittleEndian.Uint16(c.entries[2:])]
}

// load moves to an entry of the block.
func (c *runCursor) load(entry int) {
	offset := c.offsets[4*entry:]
	e := c.entries[binary.LittleEndian.Uint32(offset):]
	if entry+1 < c.count {
		e = e[:binary.LittleEndian.Uint32(offset[4:])-binary.LittleEndian.Uint32(offset)]
	}
	overlap, diff := int(binary.LittleEndian.Uint16(e)), int(binary.LittleEndian.Uint16(e[2:]))
	copy(c.versioned[:overlap], c.base[:overlap])
	copy(c.versioned[overlap:overlap+diff], e[entryHeader:][:diff])
	c.entry, c.keySize = entry, overlap+diff-versionSize
	c.at = math.MaxUint64 - binary.BigEndian.Uint64(c.versioned[c.keySize:])
	c.value = e[entryHeader+diff+valueHeader:]
}
