package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const testFrame = 4096

func TestPackerSizesAroundFrames(t *testing.T) {
	noLeaks(t)
	sizes := []int{1, 511, 512, 513, testFrame - 1025, testFrame - 1024, testFrame - 513, testFrame - 512, testFrame - 511,
		testFrame - 1, testFrame, testFrame + 1, 2*testFrame - 512, 3*testFrame + 7}
	for _, n := range sizes { // each alone
		s := newMemStore()
		samples := samplesOf(n)
		parts := pack(t, s, PackerOptions{FrameRaw: testFrame, Workers: 2}, samples)
		checkRoundTrip(t, s, parts, samples)
	}
	for i := range sizes { // and in several orders, in parts of about two frames
		order := append(append([]int{}, sizes[i:]...), sizes[:i]...)
		s := newMemStore()
		samples := samplesOf(order...)
		parts := pack(t, s, PackerOptions{FrameRaw: testFrame, PartStored: 2 * testFrame, Workers: 3}, samples)
		if len(parts) < 3 {
			t.Fatalf("%d parts", len(parts))
		}
		checkRoundTrip(t, s, parts, samples)
	}
}

// checkRoundTrip reads parts with everything that reads parts.
func checkRoundTrip(t *testing.T, s *memStore, parts []PublishedPart, samples []sample) {
	t.Helper()
	for _, cache := range []int64{0, 3 * testFrame, 1 << 20} {
		r := NewReader(s, cache)
		checkContents(t, r, parts, samples)
		r.Close()
	}
	for _, pp := range parts {
		stored := s.objects[pp.Part.StoreName()]
		if sha256.Sum256(stored) != pp.Part.Name || int64(len(stored)) != pp.Part.Stored {
			t.Fatalf("part %s is not its own digest", pp.Part.Name)
		}
		if err := VerifyTail(s, pp.Part); err != nil {
			t.Fatal(err)
		}
		found, err := ScanPart(s, pp.Part.Name)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(found) != fmt.Sprint(pp) {
			t.Fatalf("scan found %v, want %v", found, pp)
		}
		checkFrames(t, s, pp)
	}
	if s.open != 0 || s.drafts != 0 {
		t.Fatalf("%d objects and %d drafts left open", s.open, s.drafts)
	}
}

// checkFrames makes sure that a member no larger than a frame lies in one, that
// a larger one begins a frame, and that the part begins with a member.
func checkFrames(t *testing.T, s Store, pp PublishedPart) {
	t.Helper()
	refs := tailOf(t, s, pp.Part)
	for _, c := range pp.Contents {
		first, _ := findFrame(pp.Part, refs, c.RawOffset-tarBlock)
		last, _ := findFrame(pp.Part, refs, c.RawOffset+c.RawLen-1)
		switch large := tarBlock+c.RawLen+int64(tarPadding(c.RawLen)) > testFrame; {
		case !large && first != last:
			t.Fatalf("content of %d bytes lies in frames %d to %d", c.RawLen, first, last)
		case large && refs[first].RawOffset != c.RawOffset-tarBlock:
			t.Fatalf("content of %d bytes does not begin its frame", c.RawLen)
		}
	}
	for _, ref := range refs {
		if ref.RawLen > testFrame {
			t.Fatalf("frame of %d bytes", ref.RawLen)
		}
	}
	if pp.Contents[0].RawOffset != tarBlock {
		t.Fatalf("first content at %d", pp.Contents[0].RawOffset)
	}
}

func TestPackerTinyFramesWithLongHeaders(t *testing.T) {
	s := newMemStore()
	samples := samplesOf(1, 700, 5000)
	for i := range samples {
		samples[i].m.Name = strings.Repeat("long name/", 200) + fmt.Sprint(i) // header of 3.5 KiB in frames of 1 KiB
	}
	parts := pack(t, s, PackerOptions{FrameRaw: 1024, PartStored: 1}, samples)
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	r := NewReader(s, 0)
	checkContents(t, r, parts, samples)
	for _, pp := range parts {
		if found, err := ScanPart(s, pp.Part.Name); err != nil || fmt.Sprint(found) != fmt.Sprint(pp) {
			t.Fatal(found, err)
		}
	}
}

// TestPackerFrameSizes: a member decides by its kind how long its frame may be.
func TestPackerFrameSizes(t *testing.T) {
	chunk := func(n int) sample {
		x := samplesOf(n)[0]
		x.m.Name = ChunkName(x.hash())
		return x
	}
	file := func(name string, n int) sample { return sampleOf(name, textLike(n, uint64(n))) }
	for _, c := range []struct {
		name    string
		samples []sample
		want    []int // raw lengths of the frames; each member begins with a header of 512 bytes
	}{
		{"files", []sample{file("a", 1024), file("b", 1024), file("c", 1024)}, []int{3072, 1536}},
		{"chunks", []sample{chunk(1024), chunk(1024)}, []int{1536, 1536}},
		{"a chunk and a file", []sample{chunk(1024), file("a", 1024), file("b", 512)}, []int{4096}},
		{"a file and a chunk", []sample{file("a", 1024), chunk(1024)}, []int{1536, 1536}},
		{"a chunk of more than a frame", []sample{chunk(4096)}, []int{2048, 2048, 512}},
		{"a file in the directory of chunks", []sample{file(".chunks/a", 1024), file(".chunks/ab/c", 1024)}, []int{3072}},
	} {
		s := newMemStore()
		pp := pack(t, s, PackerOptions{FrameRaw: 4096, ChunkRaw: 2048}, c.samples)[0]
		var got []int
		for _, ref := range framesOf(t, s, pp.Part) {
			got = append(got, ref.RawLen)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: frames of %v bytes, want %v", c.name, got, c.want)
		}
		r := NewReader(s, 1<<20)
		checkContents(t, r, []PublishedPart{pp}, c.samples)
		r.Close()
	}
}

func TestPackerIsDeterministic(t *testing.T) {
	sizes := make([]int, 200)
	for i := range sizes {
		sizes[i] = 1 + i*i%20000
	}
	samples := samplesOf(sizes...)
	var want string
	for workers := 1; workers <= 4; workers++ {
		s := newMemStore()
		parts := pack(t, s, PackerOptions{FrameRaw: 16 << 10, PartStored: 100 << 10, Workers: workers}, samples)
		if want == "" {
			want = fmt.Sprint(parts)
		}
		if got := fmt.Sprint(parts); got != want {
			t.Fatalf("other parts with %d workers", workers)
		}
	}
	// A worker that has compressed other things before makes the same frames.
	c, err := newFrameCoder(PackerOptions{FrameRaw: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	first := map[int][32]byte{}
	for i := range 30 {
		f := &packFrame{raw: textLike(1+(i%10)*7000, uint64(i%10))}
		if err := c.encode(f); err != nil {
			t.Fatal(err)
		}
		if d, ok := first[i%10]; ok && d != f.digest {
			t.Fatalf("frame %d was encoded differently the second time", i%10)
		}
		first[i%10] = f.digest
	}
}

func TestPackerStoresNoiseRaw(t *testing.T) {
	s := newMemStore()
	const n = 1 << 20
	parts := pack(t, s, PackerOptions{}, []sample{sampleOf("noise", noise(n, 1))})
	p := parts[0].Part
	if overhead := p.Stored - p.TailStored - p.Raw; overhead > 0 {
		t.Errorf("%d bytes of noise are stored in %d bytes more than their tar stream", n, overhead)
	}
}

func TestPackerLevels(t *testing.T) {
	samples := samplesOf(100000, 1, 50000)
	for _, l := range []Level{LevelDefault, LevelBetter} {
		s := newMemStore()
		parts := pack(t, s, PackerOptions{FrameRaw: 32 << 10, Level: l}, samples)
		r := NewReader(s, 1<<20)
		checkContents(t, r, parts, samples)
	}
}

func TestPackerNothingAdded(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	if parts := pack(t, s, PackerOptions{}, nil); len(parts) != 0 || len(s.objects) != 0 || s.drafts != 0 {
		t.Fatal(parts, s.names(), s.drafts)
	}
}

func TestPackerBadOptions(t *testing.T) {
	noLeaks(t)
	for _, o := range []PackerOptions{{FrameRaw: 1}, {FrameRaw: MaxFrameRaw + 1}, {FrameRaw: -1}, {ChunkRaw: 1}, {ChunkRaw: MaxFrameRaw + 1}, {PartStored: -1}, {Workers: -1}, {Level: 9}} {
		p := NewPacker(newMemStore(), o, nil)
		x := samplesOf(1)[0]
		err := p.Add(x.m, x.hash(), x.b)
		if err == nil || !errors.Is(p.Close(), err) {
			t.Errorf("%+v: %v", o, err)
		}
		p.Abort()
	}
}

func TestPackerRefusesBadMembers(t *testing.T) {
	s := newMemStore()
	p := NewPacker(s, PackerOptions{}, nil)
	h := HashOf([]byte("x"))
	for _, name := range []string{"", "/a", "a/", "../a", "a/../b", "a/..", "..", "a\x00b"} {
		if p.Add(Member{Name: name}, h, []byte("x")) == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if p.Add(Member{Name: "a"}, h, nil) == nil {
		t.Error("an empty content was accepted")
	}
	if err := p.Add(Member{Name: strings.Repeat("n", maxMemberName+1)}, h, []byte("x")); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if out := untar(t, s.objects[s.names()[0]]); !strings.Contains(out, ChunkName(h)) {
		t.Errorf("tar lists %s", out)
	}
}

func TestPackerSamePartAgain(t *testing.T) {
	s := newMemStore()
	samples := samplesOf(5000, 6000)
	first := pack(t, s, PackerOptions{}, samples)
	again := pack(t, s, PackerOptions{}, samples)
	if fmt.Sprint(first) != fmt.Sprint(again) || len(s.objects) != 1 {
		t.Fatal("the same contents made another part")
	}
	name := first[0].Part.StoreName()
	good := s.objects[name]
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { b[100] ^= 1; return b },
	} {
		s.objects[name] = damage(bytes.Clone(good))
		if again := pack(t, s, PackerOptions{}, samples); fmt.Sprint(again) != fmt.Sprint(first) {
			t.Errorf("in the place of a damaged part: %v", again)
		}
		if !bytes.Equal(s.objects[name], good) {
			t.Error("a damaged part was taken for the one just packed")
		}
	}
	unreadable := false
	s.onRead = func(string, int64) error {
		unreadable = true
		return syscall.EIO
	}
	s.objects[name] = bytes.Clone(good)
	s.objects[name][100] ^= 1
	if pack(t, s, PackerOptions{}, samples); !unreadable || !bytes.Equal(s.objects[name], good) {
		t.Error("a part that cannot be read was taken for the one just packed")
	}
	s.onRead = func(string, int64) error { return syscall.EMFILE }
	s.fail = func(op string) error {
		if op == "replace" {
			t.Error("a part was replaced for want of descriptors")
		}
		return nil
	}
	p := NewPacker(s, PackerOptions{}, nil)
	for _, x := range samples {
		p.Add(x.m, x.hash(), x.b)
	}
	if err := p.Close(); !errors.Is(err, syscall.EMFILE) {
		t.Error(err)
	}
}

func TestPackerEncoderGoneWrong(t *testing.T) {
	raw := textLike(3000, 1)
	good, err := newFrameCoder(PackerOptions{FrameRaw: testFrame})
	if err != nil {
		t.Fatal(err)
	}
	other := func(b []byte) []byte { return append([]byte{b[0] ^ 1}, b[1:]...) }
	for want, bad := range map[string]func(src, dst []byte) []byte{
		"decodes to other bytes": func(src, dst []byte) []byte { return good.encodeAll(other(src), dst) },
		"cannot be decoded":      func(src, dst []byte) []byte { return good.encodeAll(src[1:], dst) },
		"encoder made":           func(src, dst []byte) []byte { return append(dst, make([]byte, 2*testFrame)...) },
		"encoder failed":         func(src, dst []byte) []byte { panic("lost") },
	} {
		c := *good
		c.encodeAll = bad
		if err := c.encode(&packFrame{raw: raw}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestPackerFullDisk lets every operation on the store fail in turn.
func TestPackerFullDisk(t *testing.T) {
	noLeaks(t)
	samples := samplesOf(3000, 9000, 100, 20000, 4000)
	for after := 0; ; after++ {
		s := newMemStore()
		var ops atomic.Int64
		failing := ""
		s.fail = func(op string) error {
			if ops.Add(1) == int64(after)+1 {
				failing = op
				return fmt.Errorf("%s: %w", op, syscall.ENOSPC)
			}
			return nil
		}
		published := 0
		p := NewPacker(s, PackerOptions{FrameRaw: testFrame, PartStored: 10000, Workers: 2}, func(PublishedPart) error { published++; return nil })
		var added error
		for _, x := range samples {
			if added = p.Add(x.m, x.hash(), x.b); added != nil {
				break
			}
		}
		err := p.Close()
		if added != nil && !errors.Is(err, added) {
			t.Fatalf("after %d: Add %v, Close %v", after, added, err)
		}
		if s.drafts != 0 || len(s.objects) != published {
			t.Fatalf("after %d: %d drafts, %d objects, %d published", after, s.drafts, len(s.objects), published)
		}
		if failing == "" {
			if err != nil || after < 10 {
				t.Fatalf("after %d: %v", after, err)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) || !errors.Is(p.Close(), err) || !errors.Is(p.Add(samples[0].m, samples[0].hash(), samples[0].b), err) {
			t.Fatalf("after %d: %s failed, Close: %v", after, failing, err)
		}
	}
}

func TestPackerPublishedFails(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	boom := errors.New("boom")
	p := NewPacker(s, PackerOptions{FrameRaw: testFrame, PartStored: 1}, func(PublishedPart) error { return boom })
	for i, x := range samplesOf(make([]int, 50)...) {
		x.b = []byte{1, byte(i)}
		if err := p.Add(x.m, x.hash(), bytes.Repeat(x.b, 2000)); err != nil {
			break
		}
	}
	if err := p.Close(); !errors.Is(err, boom) || len(s.objects) != 1 || s.drafts != 0 {
		t.Fatal(err, len(s.objects), s.drafts)
	}
}

func TestPackerAbort(t *testing.T) {
	noLeaks(t)
	for i := range 40 {
		s := newMemStore()
		var published atomic.Int64
		p := NewPacker(s, PackerOptions{FrameRaw: testFrame, PartStored: 5000, Workers: 2}, func(PublishedPart) error { published.Add(1); return nil })
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, x := range samplesOf(1000, 20000, 3000, 4000, 5000, 6000) {
				if p.Add(x.m, x.hash(), x.b) != nil {
					return
				}
			}
			p.Close()
		})
		time.Sleep(time.Duration(i) * 50 * time.Microsecond)
		p.Abort()
		wg.Wait()
		p.Abort()
		if int64(len(s.objects)) != published.Load() || s.drafts != 0 {
			t.Fatalf("%d objects, %d published, %d drafts", len(s.objects), published.Load(), s.drafts)
		}
	}
}

// TestPackerAbortUnblocks makes sure that neither Add nor Close wait for a
// store that hangs once Abort was called and the store comes back.
func TestPackerAbortUnblocks(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	hang := make(chan struct{})
	s.fail = func(op string) error {
		if op == "write" {
			<-hang
		}
		return nil
	}
	p := NewPacker(s, PackerOptions{FrameRaw: testFrame, Workers: 1}, nil)
	added := make(chan error)
	go func() {
		x := sampleOf("a", noise(100*testFrame, 1))
		added <- p.Add(x.m, x.hash(), x.b)
	}()
	time.Sleep(10 * time.Millisecond)
	done := make(chan struct{})
	go func() { p.Abort(); close(done) }()
	if err := <-added; !errors.Is(err, errAborted) {
		t.Fatal(err)
	}
	close(hang)
	<-done
	if err := p.Close(); !errors.Is(err, errAborted) || len(s.objects) != 0 || s.drafts != 0 {
		t.Fatal(err)
	}
}

func TestPackerConcurrentAdd(t *testing.T) {
	noLeaks(t)
	s := newMemStore()
	var parts []PublishedPart
	p := NewPacker(s, PackerOptions{FrameRaw: testFrame, PartStored: 50000}, func(pp PublishedPart) error { parts = append(parts, pp); return nil })
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 20 {
				x := sampleOf(fmt.Sprintf("%d/%d", g, i), textLike(1+i*700, uint64(g)))
				if err := p.Add(x.m, x.hash(), x.b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, pp := range parts {
		found, err := ScanPart(s, pp.Part.Name)
		if err != nil || fmt.Sprint(found) != fmt.Sprint(pp) {
			t.Fatal(err)
		}
		n += len(pp.Contents)
	}
	if n != 160 {
		t.Fatalf("%d contents", n)
	}
}

// TestStockTools reads parts with nothing but zstd, tar and sha256sum.
func TestStockTools(t *testing.T) {
	dir := t.TempDir()
	s, err := NewDirStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	samples := samplesOf(1, 512, 100000, 70000, 3)
	samples[0].m.Name = "-odd\\name\n\xff"
	samples[2].m.Name = strings.Repeat("d/", 100) + strings.Repeat("ü", 60)
	samples[3].m.Name = strings.Repeat("\xfe", 120)
	samples[3].m.UID = 4_000_000_000
	samples[4].m.Mtime.Sec = -7
	parts := pack(t, s, PackerOptions{FrameRaw: 32 << 10}, samples)
	file := filepath.Join(dir, parts[0].Part.StoreName())
	run(t, "zstd", "-q", "-t", file)
	if out := run(t, "sha256sum", file); !strings.HasPrefix(out, parts[0].Part.Name.String()+" ") {
		t.Errorf("sha256sum: %s", out)
	}
	if out := run(t, "zstd", "-l", file); !strings.Contains(out, "tar.zst") {
		t.Errorf("zstd -l: %s", out)
	}
	into := t.TempDir()
	run(t, "sh", "-c", `zstd -dc "$1" | tar -x -C "$2" --warning=no-timestamp`, "sh", file, into)
	for _, x := range samples {
		got, err := os.ReadFile(filepath.Join(into, x.m.Name))
		if err != nil || !bytes.Equal(got, x.b) {
			t.Errorf("%q: %v", x.m.Name, err)
		}
		info, err := os.Stat(filepath.Join(into, x.m.Name))
		if err != nil || info.ModTime().Unix() != x.m.Mtime.Sec || info.Mode().Perm() != 0o644 {
			t.Errorf("%q: %v %v", x.m.Name, info, err)
		}
	}
}

// untar lists a part with stock tools.
func untar(t *testing.T, part []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "part.tar.zst")
	if err := os.WriteFile(file, part, 0o666); err != nil {
		t.Fatal(err)
	}
	return run(t, "sh", "-c", `zstd -dc "$1" | tar -tv`, "sh", file)
}

// run runs a program that must be there and succeed, and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestPackerToDirStore(t *testing.T) {
	noLeaks(t)
	s, err := NewDirStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	samples := samplesOf(10, 300000, 5000, 700000)
	parts := pack(t, s, PackerOptions{PartStored: 1 << 18}, samples)
	r := NewReader(s, 1<<20)
	checkContents(t, r, parts, samples)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(parts[0].Part.StoreName()); err != nil {
		t.Fatal(err)
	}
	if err := VerifyTail(s, parts[0].Part); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// TestPackerPartLimits: a part ends early if it compresses so well that its
// tail or its list of contents would become long.
func TestPackerPartLimits(t *testing.T) {
	s := newMemStore()
	samples := make([]sample, softMaxFrames+1)
	for i := range samples {
		samples[i] = sampleOf("zeros", make([]byte, 512)) // a frame each
	}
	parts := pack(t, s, PackerOptions{FrameRaw: 1024}, samples)
	if len(parts) != 2 || len(parts[1].Contents) != 1 {
		t.Errorf("%d parts", len(parts))
	}
	for _, w := range []partWriter{{stored: 10}, {frames: make([]frameRef, softMaxFrames)}, {contents: make([]Content, softMaxContents)}} {
		if !w.full(10) {
			t.Errorf("a part of %d bytes, %d frames, %d contents is not full", w.stored, len(w.frames), len(w.contents))
		}
	}
	w := partWriter{frames: make([]frameRef, maxFrames-1)}
	if err := w.add(&packFrame{}); err == nil {
		t.Error("more frames than a tail may have")
	}
}

// lossyStore is a store whose drafts do not keep what is written to them.
type lossyStore struct{ *memStore }

type lossyDraft struct{ Draft }

func (s lossyStore) Create() (Draft, error) {
	d, err := s.memStore.Create()
	return lossyDraft{d}, err
}

func (d lossyDraft) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Draft.(*memDraft).ReadAt(p, off)
	p[n/2] ^= 1
	return n, err
}

func TestPackerReadsTailBack(t *testing.T) {
	s := newMemStore()
	p := NewPacker(lossyStore{s}, PackerOptions{}, nil)
	x := samplesOf(100)[0]
	if err := p.Add(x.m, x.hash(), x.b); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err == nil || !strings.Contains(err.Error(), "reads back as other bytes") || len(s.objects) != 0 || s.drafts != 0 {
		t.Error(err)
	}
}
