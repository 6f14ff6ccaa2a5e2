package archive

import (
	"container/list"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// frameKey names a frame: the part and the number of the frame in it.
type frameKey struct {
	part  Digest
	frame int32
}

// frameCache keeps decoded frames, bounded in bytes. It evicts by the 2Q rule:
// a frame that is read for the first time goes to a queue of its own, a quarter
// of the cache, and leaves it in the order in which it came; its key is
// remembered for a while, and only if it is read again then is it kept as one
// of the hot frames, by least recent use. So a walk through everything does not
// push out what is read again and again.
type frameCache struct {
	mu     sync.Mutex
	limit  int64
	used   int64 // capacities of all buffers: of frames in the cache, in use, and spare ones
	fresh  int64 // of those in freshQ
	frames map[frameKey]*cachedFrame
	freshQ list.List // of *cachedFrame, newest in front
	hotQ   list.List // of *cachedFrame, last used in front
	ghosts map[frameKey]*list.Element
	ghostQ list.List // of frameKey, newest in front
	spare  [][]byte  // buffers to use again, the newest last
	spares int64     // capacities of them
	freed  [][]byte  // buffers that unlock frees
	watch  func(used int64)
	closed bool

	counts ReaderCounts
}

// spareShare is the share of the limit, one over it, that buffers may take that are kept
// for use again, if they are more than one. A reader of large files needs some ten sizes,
// and to map a new buffer costs a good part of what it costs to decode a frame.
const spareShare = 16

// cachedFrame is a frame of the cache. The cache holds one reference of it for
// as long as it is in the map, every user one more; the buffer is used again
// when the last one is gone.
type cachedFrame struct {
	key   frameKey
	refs  atomic.Int32
	ready chan struct{} // closed when raw or err is set
	raw   []byte
	err   error
	elem  *list.Element // in freshQ or hotQ; nil while it is being decoded
	hot   bool
}

func newFrameCache(limit int64) *frameCache {
	return &frameCache{limit: limit, frames: map[frameKey]*cachedFrame{}, ghosts: map[frameKey]*list.Element{}}
}

// acquire returns the frame of key with a reference for the caller, who has to
// release it. If decode is true it is not there yet: the caller has to decode
// it and to call done; everybody else waits for ready. What is decoded ahead of
// a reader is neither a hit nor a miss.
func (c *frameCache) acquire(key frameKey, ahead bool) (f *cachedFrame, decode bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, fmt.Errorf("part %s: reader: %w", key.part, fs.ErrClosed)
	}
	if f := c.frames[key]; f != nil {
		if !ahead {
			c.counts.Hits++
		}
		f.refs.Add(1)
		if f.hot && f.elem != nil {
			c.hotQ.MoveToFront(f.elem)
		}
		return f, false, nil
	}
	if !ahead {
		c.counts.Misses++
	}
	f = &cachedFrame{key: key, ready: make(chan struct{})}
	f.refs.Store(2)
	c.frames[key] = f
	if g := c.ghosts[key]; g != nil {
		f.hot = true
		c.ghostQ.Remove(g)
		delete(c.ghosts, key)
	}
	return f, true, nil
}

// has reports whether the frame of key is there or being decoded.
func (c *frameCache) has(key frameKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[key] != nil
}

// buffer returns an empty buffer for a frame of rawLen bytes, and makes room
// for it in the cache. It has to be given to done.
func (c *frameCache) buffer(rawLen int) ([]byte, error) {
	size := bufferSize(rawLen)
	if b := c.reserve(size); b != nil {
		return b, nil
	}
	b, err := newBuffer(size)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.remap(-int64(size))
	}
	return b, err
}

// reserve makes room for a buffer, and returns a spare one if there is one.
func (c *frameCache) reserve(size int) []byte {
	c.mu.Lock()
	defer c.unlock()
	b := c.takeSpare(size)
	for b == nil && c.used+int64(size) > c.limit && (c.evict() || c.freeSpare()) {
		b = c.takeSpare(size)
	}
	if b == nil {
		c.remap(int64(size))
	}
	return b
}

// remap counts memory that will be taken from the kernel, or was given back.
func (c *frameCache) remap(bytes int64) {
	c.used += bytes
	if c.watch != nil {
		c.watch(c.used)
	}
}

// unlock unlocks c.mu, and frees buffers without it: that takes the kernel a while.
func (c *frameCache) unlock() {
	freed := c.freed
	c.freed = nil
	c.mu.Unlock()
	for _, b := range freed {
		_ = unix.Munmap(b[:cap(b)]) // a process of too many pieces of memory keeps this one
	}
}

// bufferSize rounds the length of a frame up to a multiple of an eighth to a
// quarter of it, so that a buffer fits frames of about the same length, and to whole
// pages.
func bufferSize(rawLen int) int {
	step := 1 << max(9, bits.Len(uint(rawLen))-3)
	size, page := (rawLen+step-1)/step*step+decodeSlack, os.Getpagesize()
	return (size + page - 1) / page * page
}

func (c *frameCache) takeSpare(size int) []byte {
	for i := len(c.spare) - 1; i >= 0; i-- {
		if b := c.spare[i]; cap(b) == size {
			c.spare = slices.Delete(c.spare, i, i+1)
			c.spares -= int64(size)
			return b
		}
	}
	return nil
}

// newBuffer returns an empty buffer. It lies outside of Go's heap: with a full cache in
// it, what a limit of memory leaves would be used up, and collected, too often. Most
// of the buffer will be written at once, so the kernel is asked for all of its pages.
func newBuffer(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("memory for a frame of %d bytes: %w", size, err)
	}
	return b[:0], nil
}

// done ends the decoding of f into buf, which may be nil if it failed early. A
// frame that failed leaves the cache.
func (c *frameCache) done(f *cachedFrame, buf, raw []byte, err error) {
	c.mu.Lock()
	defer c.unlock()
	f.raw, f.err = raw, err
	if err == nil {
		c.counts.Decoded++
		c.counts.DecodedRaw += int64(len(raw))
	} else {
		c.counts.Failed++
	}
	switch {
	case err != nil || c.closed:
		delete(c.frames, f.key)
		f.refs.Add(-1) // the caller holds another one
	case f.hot:
		f.elem = c.hotQ.PushFront(f)
	default:
		f.elem = c.freshQ.PushFront(f)
		c.fresh += int64(cap(buf))
	}
	if err != nil {
		c.keepSpare(buf)
	}
	close(f.ready)
	for c.used > c.limit && c.evict() {
	}
}

// evict drops one frame and reports whether there was one to drop.
func (c *frameCache) evict() bool {
	queue := &c.hotQ
	if c.freshQ.Len() > 0 && (c.fresh > c.limit/4 || c.hotQ.Len() == 0) {
		queue = &c.freshQ
	}
	e := queue.Back()
	if e == nil {
		return false
	}
	f := e.Value.(*cachedFrame)
	queue.Remove(e)
	delete(c.frames, f.key)
	if !f.hot {
		c.fresh -= int64(cap(f.raw))
		c.remember(f.key)
	}
	if f.refs.Add(-1) == 0 {
		c.keepSpare(f.raw)
	}
	return true
}

// remember adds the key of an evicted frame to the ghosts, of which there are
// never more than frames in the cache, and some.
func (c *frameCache) remember(key frameKey) {
	c.ghosts[key] = c.ghostQ.PushFront(key)
	for c.ghostQ.Len() > len(c.frames)+16 {
		delete(c.ghosts, c.ghostQ.Remove(c.ghostQ.Back()).(frameKey))
	}
}

// keepSpare keeps a buffer, instead of the oldest ones: a reader that comes to frames
// of another size needs those of that size.
func (c *frameCache) keepSpare(b []byte) {
	if cap(b) == 0 {
		return
	}
	c.spare = append(c.spare, b[:0])
	c.spares += int64(cap(b))
	for c.closed && len(c.spare) > 0 || len(c.spare) > 1 && c.spares > c.limit/spareShare {
		c.freeSpare()
	}
}

// freeSpare frees the oldest spare buffer and reports whether there was one.
func (c *frameCache) freeSpare() bool {
	if len(c.spare) == 0 {
		return false
	}
	b := c.spare[0]
	c.spare = slices.Delete(c.spare, 0, 1)
	c.spares -= int64(cap(b))
	c.freed = append(c.freed, b)
	c.remap(-int64(cap(b)))
	return true
}

// release drops a user's reference.
func (c *frameCache) release(f *cachedFrame) {
	if f.refs.Add(-1) > 0 {
		return
	}
	c.mu.Lock()
	c.keepSpare(f.raw)
	c.unlock()
}

// snapshot returns what was counted, and what the cache holds now.
func (c *frameCache) snapshot() ReaderCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := c.counts
	counts.Cached = c.used
	return counts
}

// close drops every frame. Those in use stay valid until they are released.
func (c *frameCache) close() {
	c.mu.Lock()
	defer c.unlock()
	c.closed = true
	for c.evict() {
	}
	for c.freeSpare() {
	}
	clear(c.ghosts)
	c.ghostQ.Init()
}
