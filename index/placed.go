package index

import "github.com/backupfs/backupfs/archive"

// ExtentAt returns the extent of a file that holds the byte at off, or else the
// next one; ok is false where there is none. Where it lies is not looked up.
func (d *DB) ExtentAt(i Ino, off int64) (e archive.Extent, ok bool, err error) {
	node, err := d.inode(i)
	if err != nil {
		return archive.Extent{}, false, err
	}
	err = d.spans(i, node, off, func(at archive.Extent) bool {
		e, ok = at, true
		return false
	})
	return e, ok, err
}

// PlacedBy returns the number of the log record that says where a content lies:
// the one that stored it, or the last one that moved it. The error wraps
// ErrNotFound where the index does not know it.
func (d *DB) PlacedBy(h archive.Hash) (record uint64, err error) {
	key := appendContentKey(make([]byte, 0, 1+len(h)), h)
	c := newCursor(d.tables, d.number, key, scanOptions{})
	found := c.seek(key)
	record = c.at
	if err := c.close(); err != nil {
		return 0, err
	}
	if !found {
		return 0, ErrNotFound
	}
	return record, nil
}
