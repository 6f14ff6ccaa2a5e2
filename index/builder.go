package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/backupfs/backupfs/internal/disk"
	"github.com/dgraph-io/badger/v4/skl"
	"github.com/dgraph-io/badger/v4/y"
)

// Bytes of memory for the values that are not in a table yet.
const (
	minMemory = 4 << 20
	maxMemory = 24 << 20
)

// builder is an index that is being written in a directory of its own: tables,
// and values in memory that are newer than those. It is used by one goroutine.
// After an error it is only good to be closed.
type builder struct {
	fsys   disk.FS
	dir    string
	tables []tableFile
	nextID uint64  // of the next table
	disk   *tables // the tables
	memory *skl.Skiplist
	inodes []byte // inode values in memory, which are not read: key, length, value …
	last   int    // where the last one of them begins
	mixed  bool   // they are not in the order of their keys, as a checkpoint puts them
	raw    int    // bytes of keys and values in memory
	limit  int64  // bytes of memory; it doubles whenever they are full, up to maxMemory

	number   uint64                    // of the newest record applied
	meta     meta                      // after it
	manifest fileSeal                  // of the last MANIFEST written
	names    map[generationName]uint64 // of the generations that were not forgotten; nil before one is added

	value, versioned, found []byte // scratch
}

// newBuilder starts a builder in dir, which has the given tables, but no
// MANIFEST. number is that of the record that they cover.
func newBuilder(fsys disk.FS, dir string, files []tableFile, number uint64) (*builder, error) {
	b := &builder{fsys: fsys, dir: dir, tables: files, disk: new(tables), number: number, nextID: 1, limit: minMemory}
	for _, t := range files {
		b.nextID = max(b.nextID, t.ID+1)
	}
	if err := b.reopen(); err != nil {
		return nil, err
	}
	if number == 0 {
		return b, nil
	}
	var err error
	b.meta, err = readMeta(b.disk, number)
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func readMeta(t *tables, number uint64) (meta, error) {
	value, err := get(t, number, []byte{spaceMeta})
	if err != nil {
		return meta{}, missing(err, "meta of record %d", number)
	}
	return decodeMeta(value)
}

// reopen makes the tables readable.
func (b *builder) reopen() error {
	b.close()
	disk, err := openTables(b.dir, b.tables)
	if err == nil {
		b.disk = disk
	}
	return err
}

func (b *builder) close() { b.disk.close() }

// versionedKey returns the key as badger's tables order it: behind it the
// version, counted down so that the newest comes first.
func (b *builder) versionedKey(key []byte, version uint64) []byte {
	b.versioned = binary.BigEndian.AppendUint64(append(b.versioned[:0], key...), math.MaxUint64-version)
	return b.versioned
}

// put writes a value at the record being applied. It keeps neither slice.
func (b *builder) put(key, value []byte) error {
	need := int64(len(key) + len(value) + sumSize + skl.MaxNodeSize + 64)
	if b.memory != nil && (b.memory.MemSize()+need > b.limit || int64(len(b.inodes))+need > b.limit/2) {
		if err := b.flush(); err != nil {
			return err
		}
		b.limit = min(2*b.limit, maxMemory)
	}
	if b.memory == nil {
		b.memory = skl.NewSkiplist(b.limit)
		b.inodes = slices.Grow(b.inodes[:0], int(b.limit/2))
	}
	if len(value) > maxValue-sumSize {
		return fmt.Errorf("a value of %d bytes", len(value))
	}
	b.raw += len(key) + len(value)
	b.value = sealValue(key, b.number, append(b.value[:0], value...))
	versioned := b.versionedKey(key, b.number)
	if key[0] == spaceInode {
		b.mixed = b.mixed || len(b.inodes) > 0 && bytes.Compare(b.inodes[b.last:][:inodeKey], versioned) > 0
		b.last = len(b.inodes)
		b.inodes = append(b.inodes, versioned...)
		b.inodes = binary.BigEndian.AppendUint32(b.inodes, uint32(len(b.value)))
		b.inodes = append(b.inodes, b.value...)
		return nil
	}
	b.memory.Put(versioned, y.ValueStruct{Value: b.value})
	return nil
}

// get is get at the newest version, what is in memory included. The value is
// valid until the next get.
func (b *builder) get(key []byte) ([]byte, error) {
	if b.memory != nil {
		if v := b.memory.Get(b.versionedKey(key, math.MaxUint64)); v.Version > 0 {
			return openValue(key, v.Version, v.Value)
		}
	}
	var err error
	b.found, err = getTo(b.found[:0], b.disk, math.MaxUint64, key)
	return b.found, err
}

// scan yields the newest version of every key that begins with prefix, in order.
func (b *builder) scan(prefix []byte, yield func(key, value []byte) error) error {
	disk := newCursor(b.disk, math.MaxUint64, prefix, scanOptions{})
	err := b.mergeScan(disk, prefix, yield)
	return errors.Join(err, disk.close())
}

func (b *builder) mergeScan(disk *cursor, prefix []byte, yield func(key, value []byte) error) error {
	more := disk.seek(prefix)
	if b.memory != nil {
		recent := b.memory.NewUniIterator(false)
		defer recent.Close()
		var last []byte
		for recent.Seek(y.KeyWithTs(prefix, math.MaxUint64)); recent.Valid(); recent.Next() {
			key := y.ParseKey(recent.Key())
			if !bytes.HasPrefix(key, prefix) {
				break
			}
			if last != nil && bytes.Equal(key, last) {
				continue // an older version
			}
			last = key
			for ; more && bytes.Compare(disk.key, key) < 0; more = disk.next() {
				if err := yield(disk.key, disk.value); err != nil {
					return err
				}
			}
			if more && bytes.Equal(disk.key, key) {
				more = disk.next()
			}
			value, err := openValue(key, y.ParseTs(recent.Key()), recent.Value().Value)
			if err != nil {
				return err
			}
			if err := yield(key, value); err != nil {
				return err
			}
		}
	}
	for ; more; more = disk.next() {
		if err := yield(disk.key, disk.value); err != nil {
			return err
		}
	}
	return nil
}

// flush makes room in memory.
func (b *builder) flush() error {
	if err := b.spill(); err != nil {
		return err
	}
	b.close()
	if err := b.mergeRuns(flushedRuns, false); err != nil {
		return err
	}
	return b.reopen()
}

// spill writes what is in memory as a run of one table.
func (b *builder) spill() error {
	if b.memory == nil {
		return nil
	}
	out := newTableBuilder(b.raw)
	it := b.memory.NewIterator()
	it.SeekToFirst()
	for ; it.Valid() && it.Key()[0] < spaceInode; it.Next() {
		out.Add(it.Key(), it.Value(), 0)
	}
	for _, inode := range b.takeInodes() {
		out.Add(inode[:inodeKey], y.ValueStruct{Value: inode[inodeKey+4:]}, 0)
	}
	for ; it.Valid(); it.Next() {
		out.Add(it.Key(), it.Value(), 0)
	}
	_ = it.Close() // always nil
	b.memory, b.raw = nil, 0
	t, err := writeTable(b.fsys, b.dir, out, b.nextID)
	if err != nil {
		return err
	}
	b.nextID++
	b.addRun(t)
	return nil
}

// inodeKey is the length of an inode's key with its version.
const inodeKey = idKey + versionSize

// takeInodes returns the inodes in memory, in the order of their keys: of each its
// key, the length of its value, and that.
func (b *builder) takeInodes() (list [][]byte) {
	for rest := b.inodes; len(rest) > 0; {
		end := inodeKey + 4 + int(binary.BigEndian.Uint32(rest[inodeKey:]))
		list = append(list, rest[:end])
		rest = rest[end:]
	}
	if b.mixed {
		slices.SortFunc(list, func(a, b []byte) int { return bytes.Compare(a[:inodeKey], b[:inodeKey]) })
	}
	b.mixed = false
	return list
}

// finish writes everything to tables and closes the builder. whole says that no
// record was applied in part; then it sees to it that the tables are few.
func (b *builder) finish(whole bool) error {
	runs := maxRuns
	if b.limit > minMemory { // so much was written that a merge is a small part of it
		runs = keptRuns
	}
	if err := b.spill(); err != nil {
		return err
	}
	b.close()
	if whole {
		if err := b.mergeRuns(runs, true); err != nil {
			return err
		}
	}
	var err error
	b.manifest, err = writeManifest(b.fsys, b.dir, b.tables)
	return err
}
