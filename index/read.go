package index

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// This file is the way to badger for every reader. badger trusts its files: it
// panics, and reads beyond mapped memory, where they are not what it expects.
// So each call into it is guarded, and each value is verified.

// openTables opens the badger database in dir for reading. It takes no lock: the
// directory never changes.
func openTables(dir string) (db *badger.DB, err error) {
	defer guard("open "+dir, &err)()
	db, err = badger.OpenManaged(badger.DefaultOptions(dir).WithReadOnly(true).WithBypassLockGuard(true).
		WithLogger(nil).WithMetricsEnabled(false).WithCompression(options.None).WithBlockCacheSize(0).
		WithDetectConflicts(false).WithNumVersionsToKeep(math.MaxInt).WithMaxLevels(maxLevels))
	if err != nil {
		return nil, fmt.Errorf("%w: open %s: %w", ErrDamaged, dir, err)
	}
	return db, nil
}

// closeTables closes what openTables opened, nil included. Nothing was written, so
// nothing can be lost, and badger's error says only that the directory was
// removed meanwhile.
func closeTables(db *badger.DB) {
	if db == nil {
		return
	}
	var err error
	defer guard("close", &err)()
	db.Close()
}

// guard is called around badger: it turns a panic and a fault in mapped memory
// into an error.
func guard(what string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%w: %s: %v", ErrDamaged, what, r)
		}
	}
}

// get calls use with the newest value of key that is not newer than ts. The
// value is valid during the call. It returns ErrNotFound where there is none.
func get(db *badger.DB, ts uint64, key []byte, use func(value []byte) error) (err error) {
	if db == nil {
		return ErrNotFound
	}
	defer guard("read", &err)()
	txn := db.NewTransactionAt(ts, false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("%w: key %q: %w", ErrDamaged, key, err)
	}
	return item.Value(func(sealed []byte) error {
		value, err := openValue(key, item.Version(), sealed)
		if err != nil {
			return err
		}
		return use(value)
	})
}

// cursor runs over the keys that begin with a prefix. It is used by one
// goroutine and must be closed.
type cursor struct {
	txn   *badger.Txn
	it    *badger.Iterator
	key   []byte // valid until the next move, as
	value []byte // is the value
	buf   []byte
	at    uint64 // version of the value
	err   error
}

// scanOptions are the variants of a cursor.
type scanOptions struct {
	reverse     bool
	allVersions bool
}

func newCursor(db *badger.DB, ts uint64, prefix []byte, o scanOptions) *cursor {
	c := &cursor{}
	if db == nil {
		return c
	}
	defer guard("read", &c.err)()
	c.txn = db.NewTransactionAt(ts, false)
	c.it = c.txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: o.reverse, AllVersions: o.allVersions})
	return c
}

// seek moves to the first key that is not before key, or, in reverse, to the
// last one that is not behind it. It reports whether there is one.
func (c *cursor) seek(key []byte) bool {
	return c.move(func() { c.it.Seek(key) })
}

// next moves to the next key. It reports whether there is one.
func (c *cursor) next() bool {
	return c.move(c.it.Next)
}

func (c *cursor) move(step func()) (ok bool) {
	if c.err != nil || c.it == nil {
		return false
	}
	defer guard("read", &c.err)()
	step()
	if !c.it.Valid() {
		return false
	}
	item := c.it.Item()
	c.key, c.at = item.Key(), item.Version()
	c.err = item.Value(func(sealed []byte) error {
		c.buf = append(c.buf[:0], sealed...)
		return nil
	})
	if c.err == nil {
		c.value, c.err = openValue(c.key, c.at, c.buf)
	}
	return c.err == nil
}

// close releases the cursor and returns the first error that it met.
func (c *cursor) close() error {
	if c.it == nil {
		return c.err
	}
	defer guard("read", &c.err)()
	c.it.Close()
	c.txn.Discard()
	return c.err
}
