package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

const (
	maxOpenParts  = 256      // parts that a Reader keeps open
	maxTableBytes = 16 << 20 // of frame tables that it keeps: those of about 400 parts of 64 MiB
	minLoads      = 16       // frames that may be read and decoded at the same time, at least
)

// Reader reads raw bytes of parts. Every byte that it returns was verified: the
// tail of the part against Part.Tail, the stored frame against the tail, the
// raw frame against its content checksum.
//
// A part is kept open until reading it fails: a damaged one that was put back, as
// another file of its name, is read from then on.
//
// A *DamageError says that a part is damaged; what is not damaged can be read
// all the same. Any other error is one of the store or of the caller. Errors
// are not remembered: the next call tries again.
//
// A Reader is safe for concurrent use. Its memory is bounded: the cache, the
// frames being decoded or held, a spare buffer, and 20 MiB for tables and scratch. Frames lie
// outside of Go's heap: a Reader that is not closed keeps theirs.
type Reader struct {
	dec     *zstd.Decoder
	decErr  error // why there is no decoder
	frames  *frameCache
	tables  *tableCache
	objects *objectCache
	loads   chan struct{} // a token for each frame being read and decoded
	ahead   *prefetcher
	scratch sync.Pool // of *readScratch
}

type readScratch struct {
	stored []byte
	hash   *blake3.Hasher
}

// NewReader returns a Reader of the parts in s that keeps up to cacheBytes of
// decoded frames. With less than a frame, each one is decoded again for each read.
func NewReader(s Store, cacheBytes int64) *Reader {
	procs := runtime.GOMAXPROCS(0)
	r := &Reader{
		frames:  newFrameCache(cacheBytes),
		tables:  newTableCache(maxTableBytes),
		objects: newObjectCache(s, maxOpenParts),
		loads:   make(chan struct{}, max(minLoads, 2*procs)),
	}
	r.ahead = newPrefetcher(r, cacheBytes/4, procs)
	r.scratch.New = func() any { return &readScratch{hash: blake3.New()} }
	r.dec, r.decErr = newFrameDecoder(procs)
	return r
}

// WatchMemory lets watch know how many bytes of frames lie outside of Go's heap, each
// time before they become more, or less. watch is called by one goroutine at a time, and
// calls nothing of the Reader. WatchMemory comes before all other calls.
func (r *Reader) WatchMemory(watch func(bytes int64)) { r.frames.watch = watch }

// Close drops the caches, closes the parts and waits for frames that are being
// decoded ahead. Calls that are under way may finish or fail; a Frame stays
// valid until it is released. Later calls fail with fs.ErrClosed.
func (r *Reader) Close() error {
	r.ahead.close()
	r.objects.close()
	r.frames.close()
	return nil
}

// ReleaseRemoved closes the parts that are no longer in the store, so that their space
// can be freed. What is in the cache of them can still be read.
func (r *Reader) ReleaseRemoved() {
	for _, part := range r.objects.names() {
		object, err := r.objects.store.Open(PartStoreName(part))
		switch {
		case err == nil:
			object.Close()
		case errors.Is(err, fs.ErrNotExist):
			r.objects.remove(part)
		}
	}
}

// ReadAt fills b with the raw bytes of p at rawOffset, or fails. What b holds
// after an error is undefined.
func (r *Reader) ReadAt(p Part, b []byte, rawOffset int64) error {
	for len(b) > 0 {
		f, err := r.Frame(p, rawOffset)
		if err != nil {
			return err
		}
		n := copy(b, f.Raw[rawOffset-f.RawOffset:])
		f.Release()
		b = b[n:]
		rawOffset += int64(n)
	}
	return nil
}

// Frame is a decoded frame. It has to be released.
type Frame struct {
	Raw       []byte // of the whole frame; read-only, valid until Release
	RawOffset int64  // in the part, of the first byte

	cache *frameCache
	frame *cachedFrame
}

// Release gives the frame back. It must be called once.
func (f Frame) Release() { f.cache.release(f.frame) }

// ReaderCounts are what a Reader has done since it was made.
type ReaderCounts struct {
	Hits       int64 // frames asked for that were in the cache, or being decoded
	Misses     int64 // frames asked for that had to be read and decoded first
	Decoded    int64 // frames read, verified and decoded, ahead of readers too
	DecodedRaw int64 // raw bytes of those
	Failed     int64 // frames that could not be read, verified or decoded
	Cached     int64 // bytes that the cache takes now
}

// Counts returns what was done so far. A consistent picture: all of one moment.
func (r *Reader) Counts() ReaderCounts { return r.frames.snapshot() }

// Frame returns the frame of p that holds the raw byte at rawOffset.
func (r *Reader) Frame(p Part, rawOffset int64) (Frame, error) { return r.frame(p, rawOffset, false) }

// frame is Frame, ahead of a reader or for one.
func (r *Reader) frame(p Part, rawOffset int64, ahead bool) (Frame, error) {
	refs, err := r.table(&p)
	if err != nil {
		return Frame{}, err
	}
	i, err := findFrame(p, refs, rawOffset)
	if err != nil {
		return Frame{}, err
	}
	f, decode, err := r.frames.acquire(frameKey{p.Name, int32(i)}, ahead)
	if err != nil {
		return Frame{}, err
	}
	if decode {
		r.load(p, refs[i], f)
	}
	<-f.ready
	if f.err != nil {
		return Frame{}, f.err
	}
	return Frame{Raw: f.raw, RawOffset: refs[i].RawOffset, cache: r.frames, frame: f}, nil
}

// findFrame returns the number of the frame that holds the raw byte at off.
func findFrame(p Part, refs []frameRef, off int64) (int, error) {
	if off < 0 || off >= p.Raw {
		return 0, fmt.Errorf("part %s: raw offset %d is not in 0 to %d", p.Name, off, p.Raw-1)
	}
	i, found := slices.BinarySearchFunc(refs, off, func(f frameRef, off int64) int {
		switch {
		case f.rawEnd() <= off:
			return -1
		case f.RawOffset > off:
			return 1
		}
		return 0
	})
	if !found {
		return 0, fmt.Errorf("part %s: no frame at raw offset %d", p.Name, off)
	}
	return i, nil
}

// table returns the frames of p, whose tail is read and verified unless that
// was done already.
func (r *Reader) table(p *Part) ([]frameRef, error) {
	if refs := r.tables.get(p); refs != nil {
		return refs, nil
	}
	var refs []frameRef
	err := r.withPart(*p, func(o Object) (err error) {
		refs, err = readTail(o, *p)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.tables.put(*p, refs)
	return refs, nil
}

// withPart calls read with a part. Where that fails in one that was open before, it is
// called again with what has the part's name now: a damaged part may have been put back.
func (r *Reader) withPart(p Part, read func(Object) error) error {
	wasOpen, err := r.tryPart(p, read)
	if err != nil && wasOpen {
		_, err = r.tryPart(p, read)
	}
	return err
}

// tryPart calls read with a part, which it lets go where that fails, and returns
// whether it was open before.
func (r *Reader) tryPart(p Part, read func(Object) error) (wasOpen bool, err error) {
	o, wasOpen, err := r.objects.acquire(p)
	if err != nil {
		return false, err
	}
	defer r.objects.release(o)
	if err = read(o); err != nil {
		r.objects.remove(p.Name)
	}
	return wasOpen, err
}

// load reads, verifies and decodes the frame that ref describes into f.
func (r *Reader) load(p Part, ref frameRef, f *cachedFrame) {
	r.loads <- struct{}{}
	defer func() { <-r.loads }()
	buf, err := r.frames.buffer(ref.RawLen)
	var raw []byte
	if err == nil {
		raw, err = r.decode(p, ref, buf)
	}
	r.frames.done(f, buf, raw, err)
}

func (r *Reader) decode(p Part, ref frameRef, buf []byte) ([]byte, error) {
	if r.decErr != nil {
		return nil, fmt.Errorf("part %s: %w", p.Name, r.decErr)
	}
	s := r.scratch.Get().(*readScratch)
	defer r.scratch.Put(s)
	s.stored = slices.Grow(s.stored[:0], ref.StoredLen)[:ref.StoredLen]
	var raw []byte
	err := r.withPart(p, func(o Object) (err error) {
		raw, err = readFrame(o, p.Name, ref, s.stored, s.hash, r.dec, buf)
		return err
	})
	return raw, err
}

// readFrame reads a frame into stored, which has its stored length, verifies
// it, and decodes it into buf.
func readFrame(o Object, part Digest, ref frameRef, stored []byte, hash *blake3.Hasher, dec *zstd.Decoder, buf []byte) ([]byte, error) {
	if err := readStored(o, part, stored, ref.StoredOffset); err != nil {
		return nil, err
	}
	var got [32]byte
	hash.Reset()
	hash.Write(stored)
	if hash.Sum(got[:0]); got != ref.Digest {
		return nil, &DamageError{Part: part, StoredOffset: ref.StoredOffset,
			Problem: fmt.Sprintf("BLAKE3 of the frame's %d bytes is %x, want %x", ref.StoredLen, got, ref.Digest)}
	}
	raw, err := decodeFrame(dec, buf, stored, ref.RawLen)
	if err != nil {
		return nil, &DamageError{Part: part, StoredOffset: ref.StoredOffset, Problem: "wrong frame", Err: err}
	}
	return raw, nil
}
