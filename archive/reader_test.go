package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReaderRanges reads every kind of range, checked against the decoded stream.
func TestReaderRanges(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(1, 600, 9000, 20000, 3))[0]
	stream := rawStream(t, s, pp.Part)
	r := NewReader(s, 5*testFrame)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		off := rng.Int64N(pp.Part.Raw)
		b := make([]byte, rng.Int64N(min(pp.Part.Raw-off, 3*testFrame)+1))
		if err := r.ReadAt(pp.Part, b, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, stream[off:off+int64(len(b))]) {
			t.Fatalf("wrong bytes at %d+%d", off, len(b))
		}
	}
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {pp.Part.Raw, 1}, {pp.Part.Raw - 1, 2}, {1 << 62, 1}} {
		err := r.ReadAt(pp.Part, make([]byte, c.n), c.off)
		if de := (*DamageError)(nil); err == nil || errors.As(err, &de) {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if err := r.Close(); err != nil || s.open != 0 {
		t.Error(err, s.open)
	}
	if err := r.ReadAt(pp.Part, make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	r.Prefetch(pp.Part, 0, 1)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// rawStream decodes a whole part.
func rawStream(t testing.TB, s Store, p Part) []byte {
	t.Helper()
	r := NewReader(s, 0)
	defer r.Close()
	b := make([]byte, p.Raw)
	if err := r.ReadAt(p, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReaderFrame(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(9000, 600))[0]
	stream := rawStream(t, s, pp.Part)
	r := NewReader(s, 1)
	defer r.Close()
	var held []Frame
	for off := int64(0); off < pp.Part.Raw; {
		f, err := r.Frame(pp.Part, off+1)
		if err != nil || f.RawOffset != off {
			t.Fatal(f.RawOffset, err)
		}
		held = append(held, f)
		off += int64(len(f.Raw))
	}
	for _, f := range held { // although the cache is too small for one
		if !bytes.Equal(f.Raw, stream[f.RawOffset:f.RawOffset+int64(len(f.Raw))]) {
			t.Errorf("frame at %d changed", f.RawOffset)
		}
		f.Release()
	}
	if r.frames.used-r.frames.spares != 0 || len(r.frames.frames) != 0 {
		t.Errorf("%d bytes, %d frames in a cache of one byte", r.frames.used-r.frames.spares, len(r.frames.frames))
	}
}

// TestReaderFlippedBits flips every bit of a small part. A reader gives the
// right bytes or says that the part is damaged, and where.
func TestReaderFlippedBits(t *testing.T) {
	s := newMemStore()
	samples := samplesOf(300, 1500, 700)
	pp := pack(t, s, PackerOptions{FrameRaw: 1024}, samples)[0]
	name := pp.Part.StoreName()
	good := s.objects[name]
	stream := rawStream(t, s, pp.Part)
	bad := bytes.Clone(good)
	s.objects[name] = bad
	b := make([]byte, pp.Part.Raw)
	for i := range good {
		bad[i] ^= 1 << (i % 8)
		damaged := readFrames(t, s, pp.Part, b, stream)
		if damaged == 0 {
			t.Fatalf("byte %d: nobody noticed", i)
		}
		if int64(i) < pp.Part.Stored-pp.Part.TailStored && damaged != 1 {
			t.Fatalf("byte %d: %d frames cannot be read, want one", i, damaged)
		}
		if _, err := ScanPart(s, pp.Part.Name); !isDamage(err) {
			t.Fatalf("byte %d: scan: %v", i, err)
		}
		bad[i] = good[i]
	}
	if damaged := readFrames(t, s, pp.Part, b, stream); damaged != 0 {
		t.Fatal(damaged)
	}
}

func isDamage(err error) bool {
	var de *DamageError
	return errors.As(err, &de)
}

// readFrames reads a part in pieces of 512 bytes and returns how many frames
// are damaged; 1<<30 if all are.
func readFrames(t *testing.T, s Store, p Part, b, want []byte) int {
	t.Helper()
	r := NewReader(s, 1<<20)
	defer r.Close()
	offsets := map[int64]bool{}
	for off := int64(0); off < p.Raw; off += tarBlock {
		err := r.ReadAt(p, b[:tarBlock], off)
		var de *DamageError
		switch {
		case err == nil:
			if !bytes.Equal(b[:tarBlock], want[off:off+tarBlock]) {
				t.Fatalf("wrong bytes at %d", off)
			}
		case errors.As(err, &de) && de.Part == p.Name:
			offsets[de.StoredOffset] = true
		default:
			t.Fatal(err)
		}
	}
	return len(offsets)
}

func TestReaderTruncated(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(300, 1500))[0]
	name := pp.Part.StoreName()
	good := s.objects[name]
	for n := range good {
		s.objects[name] = good[:n]
		r := NewReader(s, 1<<20)
		if err := r.ReadAt(pp.Part, make([]byte, 1), 0); !isDamage(err) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		r.Close()
		if _, err := ScanPart(s, pp.Part.Name); !isDamage(err) {
			t.Fatalf("%d bytes: scan: %v", n, err)
		}
	}
	if s.open != 0 {
		t.Error("parts left open")
	}
}

// TestReaderTruncatedWhileOpen cuts a part that is open and of the right size
// when it is opened.
func TestReaderTruncatedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	pp := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(300, 1500))[0]
	r := NewReader(s, 1<<20)
	defer r.Close()
	if err := r.ReadAt(pp.Part, make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	file := dir + "/" + pp.Part.StoreName()
	run(t, "chmod", "u+w", file)
	run(t, "truncate", "-s", "100", file)
	err := r.ReadAt(pp.Part, make([]byte, 1), 1500)
	if !isDamage(err) || !strings.Contains(err.Error(), "has 100 bytes") {
		t.Error(err)
	}
	if err := r.ReadAt(pp.Part, make([]byte, 1), 0); err != nil {
		t.Error("what is in the cache:", err)
	}
}

func TestReaderMissingAndSwapped(t *testing.T) {
	s := newMemStore()
	parts := pack(t, s, PackerOptions{FrameRaw: 1024, PartStored: 1}, samplesOf(1500, 1501))
	a, b := parts[0].Part, parts[1].Part
	s.objects[a.StoreName()], s.objects[b.StoreName()] = s.objects[b.StoreName()], s.objects[a.StoreName()]
	for _, p := range []Part{a, b} {
		if err := NewReader(s, 1<<20).ReadAt(p, make([]byte, 1), 0); !isDamage(err) {
			t.Error("swapped:", err)
		}
		if _, err := ScanPart(s, p.Name); !isDamage(err) {
			t.Error("swapped: scan:", err)
		}
	}
	delete(s.objects, a.StoreName())
	err := NewReader(s, 1<<20).ReadAt(a, make([]byte, 1), 0)
	if !isDamage(err) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), a.Name.String()) {
		t.Error("missing:", err)
	}
	if _, err := ScanPart(s, a.Name); !isDamage(err) || !errors.Is(err, fs.ErrNotExist) {
		t.Error("missing: scan:", err)
	}
}

// TestReaderTransportErrors: errors of the store are no damage, and pass.
func TestReaderTransportErrors(t *testing.T) {
	s := newMemStore()
	samples := samplesOf(1500, 1501)
	parts := pack(t, s, PackerOptions{FrameRaw: 1024}, samples)
	p := parts[0].Part
	r := NewReader(s, 1<<20)
	defer r.Close()
	fails := func(want error) {
		t.Helper()
		err := r.ReadAt(p, make([]byte, 1), 0)
		if isDamage(err) || !errors.Is(err, want) || !strings.Contains(err.Error(), p.Name.String()) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	s.fail = func(string) error { return syscall.EMFILE }
	fails(syscall.EMFILE)
	if _, err := ScanPart(s, p.Name); isDamage(err) || !errors.Is(err, syscall.EMFILE) {
		t.Error(err)
	}
	s.fail = nil
	s.onRead = func(string, int64) error { return syscall.EIO }
	fails(syscall.EIO)
	s.onRead = func(_ string, off int64) error {
		if off < p.Stored-p.TailStored {
			return syscall.EIO
		}
		return nil
	}
	fails(syscall.EIO)
	s.onRead = nil
	checkContents(t, r, parts, samples)
}

func TestReaderOtherDescriptionOfAPart(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(1500))[0].Part
	r := NewReader(s, 1<<20)
	defer r.Close()
	if err := r.ReadAt(p, make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	other := p
	other.Tail[0] ^= 1
	if err := r.ReadAt(other, make([]byte, 1), 0); !isDamage(err) {
		t.Error(err)
	}
	other = p
	other.TailStored = 1 << 40
	if err := r.ReadAt(other, make([]byte, 1), 0); err == nil {
		t.Error("a tail of a TiB")
	}
	if err := r.ReadAt(p, make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}

// TestReaderDecodesOnce has many readers ask for one frame at the same time.
func TestReaderDecodesOnce(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{}, samplesOf(200000))[0].Part
	r := NewReader(s, 1<<20)
	defer r.Close()
	if _, err := r.table(&p); err != nil {
		t.Fatal(err)
	}
	var reads atomic.Int64
	s.onRead = func(string, int64) error {
		reads.Add(1)
		time.Sleep(20 * time.Millisecond)
		return nil
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := r.ReadAt(p, make([]byte, 100), int64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if reads.Load() != 1 {
		t.Errorf("%d reads", reads.Load())
	}
}

// TestReaderEviction has parallel readers and a cache of a few frames; with
// -race it shows that no buffer is used again while somebody reads it.
func TestReaderEviction(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	samples := samplesOf(20000, 20001, 700, 600, 500, 30000, 9000, 9001)
	parts := pack(t, s, PackerOptions{FrameRaw: testFrame, PartStored: 30000}, samples)
	var streams [][]byte
	for _, pp := range parts {
		streams = append(streams, rawStream(t, s, pp.Part))
	}
	r := NewReader(s, 4*testFrame)
	r.objects.limit = 1
	r.tables.limit = 1
	told, calls := int64(0), 0
	r.WatchMemory(func(bytes int64) { told, calls = bytes, calls+1 })
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 400 {
				i := rng.IntN(len(parts))
				off := rng.Int64N(parts[i].Part.Raw)
				f, err := r.Frame(parts[i].Part, off)
				if err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(f.Raw, streams[i][f.RawOffset:f.RawOffset+int64(len(f.Raw))]) {
					t.Errorf("wrong bytes in the frame at %d", f.RawOffset)
				}
				r.Prefetch(parts[i].Part, off, 3*testFrame)
				f.Release()
			}
		})
	}
	wg.Wait()
	r.ahead.wg.Wait()
	c := r.frames
	if c.used > c.limit || len(c.frames) != c.freshQ.Len()+c.hotQ.Len() || len(c.ghosts) != c.ghostQ.Len() || len(c.ghosts) > 64 {
		t.Errorf("used %d of %d, %d frames, %d+%d queued, %d ghosts", c.used, c.limit, len(c.frames), c.freshQ.Len(), c.hotQ.Len(), len(c.ghosts))
	}
	if told != c.used || calls == 0 || len(c.spare) > 1 && c.spares > c.limit/spareShare {
		t.Errorf("%d bytes told by %d calls: %d used, of it %d spare buffers of %d", told, calls, c.used, len(c.spare), c.spares)
	}
	if s.open > 1 {
		t.Errorf("%d parts are open", s.open)
	}
	if err := r.Close(); err != nil || s.open != 0 || c.used != 0 || c.fresh != 0 || told != 0 {
		t.Error(err, s.open, c.used, c.fresh, told)
	}
}

// TestReaderScanResistance: a walk through everything does not push out what
// is read again and again.
func TestReaderScanResistance(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, []sample{sampleOf("big", noise(200*testFrame, 1))})[0]
	r := NewReader(s, 20*testFrame)
	defer r.Close()
	read := func(frame int) {
		if err := r.ReadAt(pp.Part, make([]byte, 1), int64(frame)*testFrame); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		read(i)
		if i%10 == 9 { // the working set, now and then
			read(0)
			read(1)
		}
	}
	misses := 0
	s.onRead = func(string, int64) error { misses++; return nil }
	for i := 100; i < 200; i++ {
		read(i % 17 * 10)
		read(0)
		read(1)
	}
	for i := range 150 {
		read(20 + i)
	}
	before := misses
	read(0)
	read(1)
	if misses != before {
		t.Error("a walk pushed out the frames in use")
	}
}

func TestReaderPrefetch(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, []sample{sampleOf("big", noise(40*testFrame, 1))})[0]
	r := NewReader(s, 100*testFrame)
	r.Prefetch(pp.Part, 3*testFrame-1, testFrame+2) // the last byte of frame 2 to the first one of frame 4
	r.ahead.wg.Wait()
	checkPrefetched(t, r, pp.Part, 2, 3, 4)
	r.Prefetch(pp.Part, 4*testFrame, 1)
	for _, outside := range []int64{-1, pp.Part.Raw - 1, pp.Part.Raw, 1 << 62} {
		r.Prefetch(pp.Part, outside, 1)
	}
	r.Prefetch(pp.Part, 6*testFrame, 0)
	r.Prefetch(pp.Part, 6*testFrame, -1)
	r.ahead.wg.Wait()
	checkPrefetched(t, r, pp.Part, 2, 3, 4)
	if err := r.ReadAt(pp.Part, make([]byte, 2*testFrame), 7*testFrame); err != nil {
		t.Fatal(err)
	}
	r.Prefetch(pp.Part, 9*testFrame, 1<<62) // 25 frames are a quarter of the cache
	r.ahead.wg.Wait()
	if first, last := r.frames.has(frameKey{pp.Part.Name, 9}), r.frames.has(frameKey{pp.Part.Name, 34}); !first || last {
		t.Errorf("frame 9 decoded: %v, frame 34 decoded: %v", first, last)
	}
	if len(r.ahead.pending) != 0 || r.ahead.used != 0 || r.ahead.running != 0 {
		t.Errorf("left: %d frames, %d bytes, %d goroutines", len(r.ahead.pending), r.ahead.used, r.ahead.running)
	}
	if err := r.Close(); err != nil || s.open != 0 {
		t.Error(err)
	}
	small := NewReader(s, 4*testFrame-1) // no room
	if err := small.ReadAt(pp.Part, make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	small.Prefetch(pp.Part, testFrame, 10*testFrame)
	small.ahead.wg.Wait()
	checkPrefetched(t, small, pp.Part, 0)
	small.Close()
}

// What is decoded ahead is found by who reads: no miss.
func TestReaderCounts(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, []sample{sampleOf("big", noise(8*testFrame, 1))})[0]
	r := NewReader(s, 100*testFrame)
	defer r.Close()
	want := func(hits, misses, decoded, failed int64) {
		t.Helper()
		c := r.Counts()
		if c.Hits != hits || c.Misses != misses || c.Decoded != decoded || c.Failed != failed || c.DecodedRaw != decoded*testFrame || c.Cached < c.DecodedRaw {
			t.Errorf("%+v, want %d hits, %d misses, %d decoded, %d failed", c, hits, misses, decoded, failed)
		}
	}
	read := func(frame int64) error { return r.ReadAt(pp.Part, make([]byte, testFrame), frame*testFrame) }
	if err := errors.Join(read(0), read(0)); err != nil {
		t.Fatal(err)
	}
	want(1, 1, 1, 0)
	r.Prefetch(pp.Part, testFrame, 2*testFrame)
	r.ahead.wg.Wait()
	want(1, 1, 3, 0)
	if err := errors.Join(read(1), read(2)); err != nil {
		t.Fatal(err)
	}
	want(3, 1, 3, 0)
	s.objects[pp.Part.StoreName()][pp.Part.Stored/2] ^= 1 // in frame 4
	for range 2 {
		if err := read(4); !isDamage(err) {
			t.Fatal(err)
		}
	}
	want(3, 3, 3, 2)
}

// checkPrefetched makes sure that these frames of a part are in the cache, and
// no other.
func checkPrefetched(t *testing.T, r *Reader, p Part, want ...int32) {
	t.Helper()
	for _, frame := range want {
		if !r.frames.has(frameKey{p.Name, frame}) {
			t.Errorf("frame %d was not decoded", frame)
		}
	}
	if len(r.frames.frames) != len(want) {
		t.Errorf("%d frames were decoded, want %d", len(r.frames.frames), len(want))
	}
}

// TestReaderPrefetchIsBounded: while the store hangs, the queue takes as much as
// it may, each frame once, and nobody waits but who reads.
func TestReaderPrefetchIsBounded(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, []sample{sampleOf("big", noise(40*testFrame, 1))})[0]
	r := NewReader(s, 40*testFrame)
	if err := r.ReadAt(pp.Part, make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	var reads atomic.Int64
	s.onRead = func(string, int64) error {
		reads.Add(1)
		<-hang
		return nil
	}
	for range 3 {
		r.Prefetch(pp.Part, testFrame, 4*testFrame)
	}
	if n, bytes := len(r.ahead.pending), r.ahead.used; n != 4 || bytes != 4*testFrame {
		t.Errorf("%d frames of %d bytes wait or are decoded, want 4 of %d", n, bytes, 4*testFrame)
	}
	r.Prefetch(pp.Part, testFrame, 30*testFrame)
	if n, bytes := len(r.ahead.pending), r.ahead.used; n != 10 || bytes != 10*testFrame {
		t.Errorf("%d frames of %d bytes wait or are decoded, want 10 of %d", n, bytes, 10*testFrame)
	}
	close(hang)
	r.ahead.wg.Wait()
	if n := reads.Load(); n != 10 {
		t.Errorf("%d frames were read, want 10", n)
	}
	s.onRead = func(string, int64) error { return fs.ErrPermission }
	r.Prefetch(pp.Part, 20*testFrame, testFrame)
	r.ahead.wg.Wait()
	s.onRead = nil
	if err := r.ReadAt(pp.Part, make([]byte, 1), 20*testFrame); err != nil {
		t.Error("an error ahead stays:", err)
	}
	r.Close()
}

// TestReaderPartPutBack: a part that is open and damaged, in a frame or in its tail, is
// read anew as soon as it was put back, whether a read had failed before or not.
func TestReaderPartPutBack(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(5000))[0].Part
	good := s.objects[p.StoreName()]
	for _, at := range []int64{p.Stored - p.TailStored - 1, p.Stored - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		for _, noticed := range []bool{false, true} {
			s.objects[p.StoreName()] = bad
			r := NewReader(s, 0)
			o, _, err := r.objects.acquire(p)
			if err != nil {
				t.Fatal(err)
			}
			r.objects.release(o)
			if noticed {
				if err := r.ReadAt(p, make([]byte, p.Raw), 0); !isDamage(err) {
					t.Errorf("damaged at %d: %v", at, err)
				}
			}
			s.objects[p.StoreName()] = good
			if err := r.ReadAt(p, make([]byte, p.Raw), 0); err != nil {
				t.Errorf("damaged at %d, noticed %t, and put back: %v", at, noticed, err)
			}
			r.Close()
		}
	}
	if s.open != 0 {
		t.Errorf("%d parts are open", s.open)
	}
}

// TestReaderReleaseRemoved: a part is closed when its file is gone, no other.
func TestReaderReleaseRemoved(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(5000))[0].Part
	stays := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(6000))[0].Part
	r := NewReader(s, 1<<20)
	defer r.Close()
	for _, part := range []Part{p, stays} {
		if err := r.ReadAt(part, make([]byte, 1), 0); err != nil {
			t.Fatal(err)
		}
	}
	r.ReleaseRemoved()
	if s.open != 2 {
		t.Errorf("%d parts are open before one is removed", s.open)
	}
	if err := s.Remove(p.StoreName()); err != nil {
		t.Fatal(err)
	}
	r.ReleaseRemoved()
	r.ReleaseRemoved()
	if s.open != 1 {
		t.Errorf("%d parts are open, one is removed", s.open)
	}
	if err := r.ReadAt(p, make([]byte, 1), 0); err != nil {
		t.Error("what is in the cache:", err)
	}
	if err := r.ReadAt(p, make([]byte, 1), 2000); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestReaderCloseWhileReading(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(50000, 50001))[0]
	stream := rawStream(t, s, pp.Part)
	for range 20 {
		r := NewReader(s, 3*testFrame)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for off := int64(g * 1000); off < pp.Part.Raw-1000; off += 3000 {
					b := make([]byte, 1000)
					err := r.ReadAt(pp.Part, b, off)
					if err == nil && !bytes.Equal(b, stream[off:off+1000]) {
						t.Error("wrong bytes")
					}
					if err != nil && !errors.Is(err, fs.ErrClosed) {
						t.Error(err)
					}
					r.Prefetch(pp.Part, off, 2*testFrame)
				}
			})
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if s.open != 0 {
			t.Fatalf("%d parts left open", s.open)
		}
	}
}

// TestReaderGivesMemoryBack: what a closed reader had in its cache goes, and a frame
// that is still held when it is released.
func TestReaderGivesMemoryBack(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{}, samplesOf(slices.Repeat([]int{1 << 20}, 8)...))[0].Part
	stream := rawStream(t, s, p)
	r := NewReader(s, 16<<20)
	held, err := r.Frame(p, p.Raw/2)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ReadAt(p, make([]byte, p.Raw), 0); err != nil {
		t.Fatal(err)
	}
	var cached [][]byte
	for _, f := range r.frames.frames {
		if !mapped(f.raw) {
			t.Error("a frame of the cache is not in memory")
		}
		if &f.raw[0] != &held.Raw[0] {
			cached = append(cached, f.raw)
		}
	}
	if len(cached) < 2 {
		t.Fatalf("%d frames in the cache", len(cached))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(cached, mapped) {
		t.Error("frames of a closed reader are in memory")
	}
	if !bytes.Equal(held.Raw, stream[held.RawOffset:held.RawOffset+int64(len(held.Raw))]) {
		t.Error("wrong bytes in a frame after Close")
	}
	held.Release()
	if mapped(held.Raw) {
		t.Error("a frame is in memory after it was released")
	}
	if len(r.frames.spare) > 0 || r.frames.used != 0 {
		t.Errorf("%d buffers are kept for nobody, %d bytes counted", len(r.frames.spare), r.frames.used)
	}
}

// mapped reports whether all pages of a buffer are mapped: madvise(2) says ENOMEM
// where one is not.
func mapped(b []byte) bool {
	return unix.Madvise(b, unix.MADV_NORMAL) == nil
}

func TestReaderWarmReadDoesNotAllocate(t *testing.T) {
	s := newMemStore()
	p := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(50000))[0].Part
	r := NewReader(s, 1<<20)
	defer r.Close()
	b := make([]byte, 10000)
	if n := testing.AllocsPerRun(100, func() {
		if err := r.ReadAt(p, b, 1000); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDamageErrorText(t *testing.T) {
	err := error(&DamageError{Part: Digest{0xab}, StoredOffset: 7, Problem: "wrong frame", Err: errors.New("cause")})
	if got, want := err.Error(), fmt.Sprintf("part ab%062d is damaged at stored offset 7: wrong frame: cause", 0); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
