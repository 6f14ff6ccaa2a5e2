package archive

import (
	"container/list"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
)

// tableCache keeps the verified frame tables of parts, bounded in bytes, by
// least recent use. A table is immutable and stays valid after its eviction.
type tableCache struct {
	mu     sync.Mutex
	limit  int64
	used   int64
	tables map[Digest]*list.Element
	lru    list.List // of *partTable, last used in front
}

type partTable struct {
	part   Part
	frames []frameRef
}

// bytes returns about how much memory a table takes.
func (t *partTable) bytes() int64 { return int64(len(t.frames))*64 + 256 }

func newTableCache(limit int64) *tableCache {
	return &tableCache{limit: limit, tables: map[Digest]*list.Element{}}
}

// get returns the frames of p if they are there. A table of the same name that
// was verified against another description of the part does not count.
func (c *tableCache) get(p *Part) []frameRef {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.tables[p.Name]
	if e == nil {
		return nil
	}
	t := e.Value.(*partTable)
	if t.part != *p {
		return nil
	}
	c.lru.MoveToFront(e)
	return t.frames
}

func (c *tableCache) put(p Part, frames []frameRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(c.tables[p.Name])
	t := &partTable{part: p, frames: frames}
	c.tables[p.Name] = c.lru.PushFront(t)
	c.used += t.bytes()
	for c.used > c.limit && c.lru.Len() > 1 {
		c.drop(c.lru.Back())
	}
}

func (c *tableCache) drop(e *list.Element) {
	if e == nil {
		return
	}
	t := c.lru.Remove(e).(*partTable)
	delete(c.tables, t.part.Name)
	c.used -= t.bytes()
}

// objectCache keeps parts open, bounded in number, by least recent use.
type objectCache struct {
	store  Store
	limit  int
	mu     sync.Mutex
	open   map[Digest]*openObject
	lru    list.List // of *openObject, last used in front
	closed bool
}

// openObject is an open part. It is closed when it is neither in the cache nor in use.
type openObject struct {
	Object
	name Digest
	refs int           // the users, and one of the cache; guarded by its mutex
	elem *list.Element // nil once it left the cache
}

func newObjectCache(s Store, limit int) *objectCache {
	return &objectCache{store: s, limit: limit, open: map[Digest]*openObject{}}
}

// acquire returns the part p, open and of the right size, and whether it was open
// before. The caller has to release it.
func (c *objectCache) acquire(p Part) (o *openObject, wasOpen bool, err error) {
	if o, err := c.cached(p.Name); o != nil || err != nil {
		return o, true, err
	}
	obj, err := openPart(c.store, p)
	if err != nil {
		return nil, false, err
	}
	o, err = c.add(p.Name, obj)
	return o, false, err
}

func (c *objectCache) cached(name Digest) (*openObject, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("part %s: reader: %w", name, fs.ErrClosed)
	}
	o := c.open[name]
	if o != nil {
		o.refs++
		c.lru.MoveToFront(o.elem)
	}
	return o, nil
}

// add puts a part that was just opened into the cache, unless another goroutine
// was faster.
func (c *objectCache) add(name Digest, obj Object) (*openObject, error) {
	if o, err := c.cached(name); o != nil || err != nil {
		obj.Close()
		return o, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &openObject{Object: obj, name: name, refs: 2}
	if old := c.open[name]; old != nil {
		c.evict(old)
	}
	o.elem = c.lru.PushFront(o)
	c.open[name] = o
	for c.lru.Len() > c.limit {
		c.evict(c.lru.Back().Value.(*openObject))
	}
	return o, nil
}

func (c *objectCache) release(o *openObject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(o)
}

func (c *objectCache) unref(o *openObject) {
	if o.refs--; o.refs == 0 {
		o.Close()
	}
}

func (c *objectCache) evict(o *openObject) {
	c.lru.Remove(o.elem)
	o.elem = nil
	delete(c.open, o.name)
	c.unref(o)
}

// names returns the parts that are open.
func (c *objectCache) names() []Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.open))
}

func (c *objectCache) remove(name Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.open[name]; o != nil {
		c.evict(o)
	}
}

func (c *objectCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.lru.Len() > 0 {
		c.evict(c.lru.Back().Value.(*openObject))
	}
}
