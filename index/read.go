package index

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"runtime/debug"

	"github.com/dgraph-io/badger/v4/y"
)

// This file is the way to the tables for every reader. A table may turn out to be
// malformed, and mapped memory may vanish where somebody cuts a file. So each use
// is guarded, and each value is copied, and then verified.

// rescue is deferred around every use of tables: it turns a panic and a fault in
// mapped memory into an error. old is what debug.SetPanicOnFault returned, which is
// a setting of the goroutine.
func rescue(what string, old bool, err *error) {
	debug.SetPanicOnFault(old)
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %s: %v", ErrDamaged, what, r)
	}
}

// get returns the newest value of key that is not newer than ts. It returns
// ErrNotFound where there is none.
func get(t *tables, ts uint64, key []byte) ([]byte, error) { return getTo(nil, t, ts, key) }

// getTo is get with the memory for the value, which it appends to.
func getTo(buf []byte, t *tables, ts uint64, key []byte) (value []byte, err error) {
	defer rescue("read", debug.SetPanicOnFault(true), &err)
	hash := y.Hash(key)
	var c runCursor
	for _, r := range t.runs {
		if r.find(&c, key, ts, hash) {
			return openValue(key, c.at, append(buf, c.value...))
		}
	}
	return nil, ErrNotFound
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
// goroutine and must be closed; nothing of it is valid then.
type cursor struct {
	key    []byte // valid until the next move, as are
	value  []byte // the value and
	sealed []byte // the value with its checksum
	at     uint64 // version of the value
	err    error

	scanOptions
	tables *tables
	ts     uint64
	prefix []byte
	all    []runCursor
	heads  []*runCursor // those that are at a key with the prefix, the first one first
}

// scanOptions are the variants of a cursor.
type scanOptions struct {
	reverse     bool // from the last key to the first one
	allVersions bool // not only the newest version of each key; not together with reverse
}

// newCursor returns a cursor that sees nothing that is newer than ts.
func newCursor(t *tables, ts uint64, prefix []byte, o scanOptions) *cursor {
	c, ok := t.cursors.Get().(*cursor)
	if !ok {
		c = &cursor{tables: t, all: make([]runCursor, len(t.runs)), heads: make([]*runCursor, 0, len(t.runs))}
		for i := range c.all {
			c.all[i].run, c.all[i].order = t.runs[i], i
		}
	}
	c.scanOptions, c.ts, c.prefix, c.err = o, ts, append(c.prefix[:0], prefix...), nil
	return c
}

// seek moves to the first key that is not before key, or, in reverse, to the
// last one that is not behind it. It reports whether there is one.
func (c *cursor) seek(key []byte) (ok bool) {
	if c.err != nil {
		return false
	}
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	c.heads = c.heads[:0]
	for i := range c.all {
		r := &c.all[i]
		there := false
		if c.reverse {
			there = r.before(key, 0)
		} else {
			r.before(key, math.MaxUint64)
			there = r.next()
		}
		if there && bytes.HasPrefix(r.key(), c.prefix) {
			c.heads = append(c.heads, r)
			for n := len(c.heads) - 1; n > 0 && c.sort(n-1); n-- {
			}
		}
	}
	return c.load()
}

// next moves to the next key, or the next version. It reports whether there is one.
func (c *cursor) next() (ok bool) {
	if c.err != nil {
		return false
	}
	defer rescue("read", debug.SetPanicOnFault(true), &c.err)
	return c.load()
}

// load takes the next key from the heads, and the version of it that counts.
func (c *cursor) load() bool {
	for len(c.heads) > 0 {
		c.key = append(c.key[:0], c.heads[0].key()...)
		c.at = 0
		for len(c.heads) > 0 && bytes.Equal(c.heads[0].key(), c.key) {
			h := c.heads[0]
			if c.allVersions && c.at > 0 && h.at != c.at {
				break
			}
			if h.at <= c.ts && h.at > c.at {
				c.at, c.sealed = h.at, append(c.sealed[:0], h.value...)
			}
			c.advance()
		}
		if c.at > 0 {
			c.value, c.err = openValue(c.key, c.at, c.sealed)
			return c.err == nil
		}
	}
	return false
}

// advance moves the first head.
func (c *cursor) advance() {
	h, more := c.heads[0], false
	if c.reverse {
		more = h.previous()
	} else {
		more = h.next()
	}
	if !more || !bytes.HasPrefix(h.key(), c.prefix) {
		c.heads = append(c.heads[:0], c.heads[1:]...)
		return
	}
	for n := 0; n+1 < len(c.heads) && c.sort(n); n++ {
	}
}

// sort swaps the head n with the one behind it if that comes first: the next key,
// of that the newest version, and of that the newest run. It reports whether it
// did.
func (c *cursor) sort(n int) bool {
	a, b := c.heads[n], c.heads[n+1]
	order := bytes.Compare(b.key(), a.key())
	if c.reverse {
		order = -order
	} else if order == 0 {
		order = cmp.Compare(a.at, b.at)
	}
	if order > 0 || order == 0 && b.order > a.order {
		return false
	}
	c.heads[n], c.heads[n+1] = b, a
	return true
}

// close releases the cursor and returns the first error that it met.
func (c *cursor) close() error {
	err := c.err
	c.tables.cursors.Put(c)
	return err
}

// scan calls use with the key and the value of every key that begins with
// prefix, at a timestamp, in order. The slices are valid during the call.
func scan(t *tables, ts uint64, prefix []byte, use func(key, value []byte) error) error {
	c := newCursor(t, ts, prefix, scanOptions{})
	var err error
	for more := c.seek(prefix); more && err == nil; more = c.next() {
		err = use(c.key, c.value)
	}
	if closeErr := c.close(); err == nil {
		err = closeErr
	}
	return err
}
