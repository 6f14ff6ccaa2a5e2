package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// memStore is a Store in memory.
type memStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	opened  map[string]int // how often each object was opened
	open    int            // objects that are open
	drafts  int            // drafts neither published nor discarded
	fail    func(op string) error
	onRead  func(name string, off int64) error
}

func newMemStore() *memStore {
	return &memStore{objects: map[string][]byte{}, opened: map[string]int{}}
}

func (s *memStore) failure(op string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(op)
}

func (s *memStore) Create() (Draft, error) {
	if err := s.failure("create"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drafts++
	return &memDraft{s: s}, nil
}

func (s *memStore) Open(name string) (Object, error) {
	if err := s.failure("open"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	s.opened[name]++
	s.open++
	return &memObject{Reader: bytes.NewReader(b), s: s, name: name}, nil
}

func (s *memStore) List(prefix string) iter.Seq2[ObjectInfo, error] {
	return func(yield func(ObjectInfo, error) bool) {
		for _, name := range s.names() {
			if strings.HasPrefix(name, prefix) && !yield(ObjectInfo{Name: name, Stored: int64(len(s.objects[name]))}, nil) {
				return
			}
		}
	}
}

func (s *memStore) Names(prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for o, err := range s.List(prefix) {
			if !yield(o.Name, err) {
				return
			}
		}
	}
}

func (s *memStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.objects))
	for name := range s.objects {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *memStore) Settle(string) error { return nil }

func (s *memStore) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; !ok {
		return fmt.Errorf("remove %s: %w", name, fs.ErrNotExist)
	}
	delete(s.objects, name)
	return nil
}

type memDraft struct {
	s    *memStore
	b    []byte
	done bool
}

func (d *memDraft) Write(p []byte) (int, error) {
	if err := d.s.failure("write"); err != nil {
		return 0, err
	}
	d.b = append(d.b, p...)
	return len(p), nil
}

func (d *memDraft) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.b).ReadAt(p, off)
}

func (d *memDraft) Publish(name string) error {
	if err := d.s.failure("publish"); err != nil {
		return err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if _, ok := d.s.objects[name]; ok {
		return fmt.Errorf("publish %s: %w", name, fs.ErrExist)
	}
	d.s.objects[name] = d.b
	d.finish()
	return nil
}

func (d *memDraft) Replace(name string) error {
	if err := d.s.failure("replace"); err != nil {
		return err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.objects[name] = d.b
	d.finish()
	return nil
}

func (d *memDraft) Discard() error {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.finish()
	return nil
}

func (d *memDraft) finish() {
	if !d.done {
		d.done = true
		d.s.drafts--
	}
}

type memObject struct {
	*bytes.Reader
	s    *memStore
	name string
	gone bool
}

func (o *memObject) ReadAt(p []byte, off int64) (int, error) {
	if o.s.onRead != nil {
		if err := o.s.onRead(o.name, off); err != nil {
			return 0, err
		}
	}
	return o.Reader.ReadAt(p, off)
}

func (o *memObject) Close() error {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if o.gone {
		panic("closed twice")
	}
	o.gone = true
	o.s.open--
	return nil
}

// sample is a content and its tar header.
type sample struct {
	m Member
	b []byte
}

func (s sample) hash() Hash { return HashOf(s.b) }

// textLike returns n bytes that compress about like text, the same for the same seed.
func textLike(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%x ", r.IntN(1<<(2+r.IntN(16))))
	}
	return b[:n]
}

// noise returns n bytes that do not compress, the same for the same seed.
func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

func sampleOf(name string, b []byte) sample {
	return sample{Member{Name: name, Mode: 0o644, UID: 1000, GID: 100, Mtime: Timespec{Sec: 1_700_000_000, Nsec: 5}}, b}
}

// samplesOf returns contents of the given sizes, alternately text and noise.
func samplesOf(sizes ...int) []sample {
	var out []sample
	for i, n := range sizes {
		b := textLike(n, uint64(i))
		if i%2 == 1 {
			b = noise(n, uint64(i))
		}
		out = append(out, sampleOf(fmt.Sprintf("dir/%d-%d", i, n), b))
	}
	return out
}

// pack packs samples and returns the parts in the order of their publication.
func pack(t testing.TB, s Store, o PackerOptions, samples []sample) []PublishedPart {
	t.Helper()
	var parts []PublishedPart
	p := NewPacker(s, o, func(pp PublishedPart) error { parts = append(parts, pp); return nil })
	for _, x := range samples {
		if err := p.Add(x.m, x.hash(), x.b); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return parts
}

// tailOf returns the frames of a part, the end frame included.
func tailOf(t testing.TB, s Store, p Part) []frameRef {
	t.Helper()
	o, err := openPart(s, p)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	frames, err := readTail(o, p)
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

// framesOf returns the frames of a part that hold its members.
func framesOf(t testing.TB, s Store, p Part) []frameRef {
	t.Helper()
	frames := tailOf(t, s, p)
	return frames[:len(frames)-1]
}

// checkContents reads every sample back from where parts say it lies.
func checkContents(t testing.TB, r *Reader, parts []PublishedPart, samples []sample) {
	t.Helper()
	i := 0
	for _, pp := range parts {
		for _, c := range pp.Contents {
			want := samples[i]
			if c.Hash != want.hash() || c.RawLen != int64(len(want.b)) || c.RawOffset%512 != 0 {
				t.Fatalf("content %d is %+v", i, c)
			}
			got := make([]byte, c.RawLen)
			if err := r.ReadAt(pp.Part, got, c.RawOffset); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want.b) {
				t.Fatalf("content %d of %d bytes reads as other bytes", i, len(want.b))
			}
			i++
		}
	}
	if i != len(samples) {
		t.Fatalf("parts hold %d contents, want %d", i, len(samples))
	}
}

// noLeaks fails the test if goroutines are left when it ends.
func noLeaks(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(time.Millisecond)
		}
	})
}
