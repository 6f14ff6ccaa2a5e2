package index

import (
	"errors"
	"sync"

	"github.com/backupfs/backupfs/archive"
)

// DB is an open index. It shows the log up to one record, whatever is committed
// later. It is safe for concurrent use.
type DB struct {
	tables   *tables
	number   uint64
	meta     meta
	problem  error
	unkept   bool      // its files are not in the repository
	verified *verified // what Open has hashed; nil where nothing was

	partsMu sync.RWMutex
	parts   map[uint64]archive.Part // by number, the ones used lately
}

// newDB opens the given tables of dir, which cover the record number.
func newDB(dir string, files []tableFile, number uint64) (*DB, error) {
	tables, err := openTables(dir, files)
	if err != nil {
		return nil, err
	}
	d := &DB{tables: tables, number: number, parts: map[uint64]archive.Part{}}
	if d.meta, err = readMeta(tables, number); err != nil {
		tables.close()
		return nil, err
	}
	return d, nil
}

// Kept reports whether the index is in the repository, for others to use.
func (d *DB) Kept() bool { return !d.unkept }

// Close releases the index. It waits for nobody: no reader may be active. It
// returns nil.
func (d *DB) Close() error {
	d.tables.close()
	return nil
}

// Release lets the kernel take back the memory of what was read of the index so
// far; whatever is needed again comes from its page cache. What was decoded, up to
// 8 MiB, goes if nothing was since the last call. Readers may be active.
func (d *DB) Release() { d.tables.release() }

// Number returns the number of the record that the index covers, 0 where the log
// was empty.
func (d *DB) Number() uint64 { return d.number }

// RecordDigest returns the digest of the record that the index covers, zeros
// where the log was empty.
func (d *DB) RecordDigest() archive.Digest { return d.meta.digest }

// Begins returns the number of the checkpoint that the index was derived from: of
// the records before it nothing is needed any more. It is 0 where there was none.
func (d *DB) Begins() uint64 { return d.meta.begins }

// Problem returns why the index does not cover the whole log, or is not derived
// from it as it is now. It is nil unless Options.Partial was set and the log is
// damaged.
func (d *DB) Problem() error { return d.problem }

// LastDir returns the greatest DirID that was given, 0 where none was.
func (d *DB) LastDir() DirID { return DirID(d.meta.dirs) }

// HasXattrs reports whether any inode has extended attributes.
func (d *DB) HasXattrs() bool { return d.meta.hasXattrs }

// LabelXattr is the extended attribute that SELinux keeps its labels in.
const LabelXattr = "security.selinux"

// HasLabels reports whether any inode has a label of SELinux.
func (d *DB) HasLabels() bool { return d.meta.hasLabels }

// Totals returns the bytes of all parts that the log named and did not remove.
func (d *DB) Totals() (raw, stored int64) { return d.meta.raw, d.meta.stored }

// Generations returns the generations that were not forgotten, by number.
func (d *DB) Generations() ([]Generation, error) {
	var list []Generation
	err := scan(d.tables, d.number, []byte{spaceGeneration}, func(key, value []byte) error {
		g, err := decodeGeneration(keyID(key), value)
		if !g.gone {
			list = append(list, g.Generation)
		}
		return err
	})
	return list, err
}

// Head returns the number of the newest generation of a source, forgotten or not:
// the base of its next one.
func (d *DB) Head(source string) (number uint64, ok bool, err error) {
	if len(source) > maxName {
		return 0, false, nil
	}
	value, err := get(d.tables, d.number, appendSourceKey(make([]byte, 0, maxKey), source))
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	h, err := decodeHead(value)
	return h.number, err == nil, err
}
