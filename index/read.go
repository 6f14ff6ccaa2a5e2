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
	defer rescue("open "+dir, debug.SetPanicOnFault(true), &err)
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
	defer rescue("close", debug.SetPanicOnFault(true), &err)
	err = db.Close()
}

// rescue is deferred around every use of badger: it turns a panic and a fault in
// mapped memory into an error. old is what debug.SetPanicOnFault returned.
func rescue(what string, old bool, err *error) {
	debug.SetPanicOnFault(old)
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %s: %v", ErrDamaged, what, r)
	}
}

// get returns the newest value of key that is not newer than ts. It returns
// ErrNotFound where there is none.
func get(db *badger.DB, ts uint64, key []byte) (value []byte, err error) {
	if db == nil {
		return nil, ErrNotFound
	}
	defer rescue("read", debug.SetPanicOnFault(true), &err)
	txn := db.NewTransactionAt(ts, false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, ErrNotFound
	}
	if err == nil {
		value, err = item.ValueCopy(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: %w", ErrDamaged, key, err)
	}
	return openValue(key, item.Version(), value)
}

// missing returns the error of what another value promises, but is not there, or
// not as promised; any other error it returns as it is.
func missing(err error, format string, args ...any) error {
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %s: missing", ErrDamaged, fmt.Sprintf(format, args...))
}

// cursor runs over the keys that begin with a prefix. It is used by one
// goroutine and must be closed.
type cursor struct {
	txn    *badger.Txn
	it     *badger.Iterator
	key    []byte // valid until the next move, as are
	value  []byte // the value and
	sealed []byte // the value with its checksum
	at     uint64 // version of the value
	err    error
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
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	c.txn = db.NewTransactionAt(ts, false)
	c.it = c.txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: o.reverse, AllVersions: o.allVersions})
	return c
}

// seek moves to the first key that is not before key, or, in reverse, to the
// last one that is not behind it. It reports whether there is one.
func (c *cursor) seek(key []byte) (ok bool) {
	if c.err != nil || c.it == nil {
		return false
	}
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	c.it.Seek(key)
	return c.load()
}

// next moves to the next key. It reports whether there is one.
func (c *cursor) next() (ok bool) {
	if c.err != nil || c.it == nil {
		return false
	}
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	c.it.Next()
	return c.load()
}

func (c *cursor) load() bool {
	if !c.it.Valid() {
		return false
	}
	item := c.it.Item()
	c.key, c.at = item.Key(), item.Version()
	if c.sealed, c.err = item.ValueCopy(c.sealed); c.err == nil {
		c.value, c.err = openValue(c.key, c.at, c.sealed)
	}
	return c.err == nil
}

// close releases the cursor and returns the first error that it met.
func (c *cursor) close() error {
	if c.it == nil {
		return c.err
	}
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	c.it.Close()
	c.txn.Discard()
	return c.err
}

// scan calls use with the key and the value of every key that begins with
// prefix, at a timestamp, in order. The slices are valid during the call.
func scan(db *badger.DB, ts uint64, prefix []byte, use func(key, value []byte) error) error {
	c := newCursor(db, ts, prefix, scanOptions{})
	var err error
	for more := c.seek(prefix); more && err == nil; more = c.next() {
		err = use(c.key, c.value)
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}
