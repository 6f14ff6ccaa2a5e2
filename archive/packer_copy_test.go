package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// copyMembers packs contents of the given raw lengths in frames of 4 KiB.
func copyMembers(t *testing.T, s Store, lengths ...int) PublishedPart {
	t.Helper()
	var part PublishedPart
	p := NewPacker(s, PackerOptions{FrameRaw: 4 << 10}, func(published PublishedPart) error { part = published; return nil })
	for i, length := range lengths {
		content := noise(length, uint64(i)+1)
		if err := p.Add(Member{Name: fmt.Sprint("file", i), Mode: 0o640, UID: 7, Mtime: Timespec{Sec: 1}}, HashOf(content), content); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return part
}

func offsetsOf(part PublishedPart, which ...int) (offsets []int64) {
	for _, i := range which {
		offsets = append(offsets, part.Contents[i].RawOffset)
	}
	return offsets
}

// TestCopy copies some members of a part. Frames are: 0 and 1; 2, alone; 3, of
// three frames, whose last one 4 joins; 5.
func TestCopy(t *testing.T) {
	lengths := []int{1000, 1000, 3000, 9000, 100, 4000}
	for name, c := range map[string]struct {
		which    []int
		verbatim []int // members of frames that are taken over
	}{
		"all":                       {[]int{0, 1, 2, 3, 4, 5}, []int{0, 1, 2, 3, 4, 5}},
		"one of a frame":            {[]int{1, 2}, []int{2}},
		"without the end of a run":  {[]int{3, 5}, []int{5}},
		"only what joins":           {[]int{4}, nil},
		"a run of frames":           {[]int{3, 4}, []int{3, 4}},
		"the last one":              {[]int{5}, []int{5}},
		"what is left, and a frame": {[]int{0, 2, 4, 5}, []int{2, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := NewDirStore(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			from := copyMembers(t, s, lengths...)
			var to PublishedPart
			p := NewPacker(s, PackerOptions{FrameRaw: 4 << 10}, func(published PublishedPart) error { to = published; return nil })
			copied, err := p.Copy(from.Part, offsetsOf(from, c.which...))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			var want []Content
			for _, i := range c.which {
				want = append(want, from.Contents[i])
			}
			if !slices.Equal(copied.Contents, want) {
				t.Errorf("copied %v, want %v", copied.Contents, want)
			}
			scanned, err := ScanPart(s, to.Part.Name)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(scanned.Contents, to.Contents) || len(to.Contents) != len(want) {
				t.Errorf("the new part has %v, said to be %v", scanned.Contents, to.Contents)
			}
			if want := storedOf(t, s, from, c.verbatim); copied.Verbatim != want {
				t.Errorf("%d stored bytes taken over, want %d", copied.Verbatim, want)
			}
		})
	}
}

// storedOf returns the stored bytes of the frames that some members lie in.
func storedOf(t *testing.T, s Store, part PublishedPart, members []int) (stored int64) {
	t.Helper()
	for _, f := range framesOf(t, s, part.Part) {
		if slices.ContainsFunc(members, func(i int) bool {
			c := part.Contents[i]
			return c.RawOffset < f.rawEnd() && c.RawOffset+c.RawLen > f.RawOffset
		}) {
			stored += int64(f.StoredLen)
		}
	}
	return stored
}

// TestCopyBetween takes frames over while a frame is being filled, and while the
// end of a member waits in one.
func TestCopyBetween(t *testing.T) {
	s, err := NewDirStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	from := copyMembers(t, s, 1000, 5000, 3000)
	for _, length := range []int{700, 5000} {
		var to PublishedPart
		p := NewPacker(s, PackerOptions{FrameRaw: 4 << 10}, func(published PublishedPart) error { to = published; return nil })
		for i := range 2 {
			content := noise(length, uint64(100+i))
			if err := p.Add(Member{Name: fmt.Sprint("new", i)}, HashOf(content), content); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				if _, err := p.Copy(from.Part, offsetsOf(from, 0, 1, 2)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		scanned, err := ScanPart(s, to.Part.Name)
		if err != nil || len(scanned.Contents) != 5 || !slices.Equal(scanned.Contents, to.Contents) {
			t.Errorf("members of %d bytes: %v, %v, said to be %v", length, err, scanned.Contents, to.Contents)
		}
	}
}

// TestCopyDamaged: what is damaged or not there is said, and nothing else.
func TestCopyDamaged(t *testing.T) {
	dir := t.TempDir()
	s, err := NewDirStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	part := copyMembers(t, s, 3000, 3000, 3000)
	attempt := func(offsets []int64) (Copied, error) {
		p := NewPacker(s, PackerOptions{FrameRaw: 4 << 10}, nil)
		defer p.Abort()
		return p.Copy(part.Part, offsets)
	}
	var damage *DamageError
	for name, offsets := range map[string][]int64{"between members": {512, 1024}, "behind the last": {part.Contents[2].RawOffset, 1 << 20}} {
		if _, err := attempt(offsets); !errors.As(err, &damage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(dir, part.Part.StoreName())
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second := framesOf(t, s, part.Part)[1]
	data[second.StoredOffset+20] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	copied, err := attempt(offsetsOf(part, 0, 1, 2))
	if !errors.As(err, &damage) || damage.StoredOffset != second.StoredOffset || len(copied.Contents) != 1 {
		t.Errorf("copied %d members, %v", len(copied.Contents), err)
	}
	if copied, err = attempt(offsetsOf(part, 0)); err != nil || len(copied.Contents) != 1 {
		t.Errorf("before the damage: %d members, %v", len(copied.Contents), err)
	}
}

// TestCopyUnreadable: a part that the disk cannot read is damaged for who copies it.
func TestCopyUnreadable(t *testing.T) {
	s := newMemStore()
	from := pack(t, s, PackerOptions{FrameRaw: 1024}, samplesOf(3000, 3001))[0]
	for what, unreadable := range map[string]func(off int64) bool{
		"tail":  func(off int64) bool { return off >= from.Part.Stored-from.Part.TailStored },
		"frame": func(off int64) bool { return off < from.Part.Stored-from.Part.TailStored },
	} {
		s.onRead = func(_ string, off int64) error {
			if unreadable(off) {
				return syscall.EIO
			}
			return nil
		}
		p := NewPacker(s, PackerOptions{}, nil)
		if _, err := p.Copy(from.Part, []int64{from.Contents[0].RawOffset}); !isDamage(err) || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", what, err)
		}
		p.Abort()
		if _, err := Frames(s, from.Part); isDamage(err) != (what == "tail") {
			t.Errorf("%s: the frames: %v", what, err)
		}
	}
}

// TestTooLong: a part with a member that is longer than a content may be is not taken
// over: no reader would take the record that names it.
func TestTooLong(t *testing.T) {
	s := newMemStore()
	part := pack(t, s, PackerOptions{}, []sample{sampleOf("too long", make([]byte, maxContent+1))})[0]
	if _, err := ScanPart(s, part.Part.Name); !isDamage(err) || !strings.Contains(err.Error(), "a content of 8388609 bytes") {
		t.Error("scan:", err)
	}
	r := must(Init(filepath.Join(t.TempDir(), "repo"), InitOptions{}))
	defer r.Close()
	draft := must(r.NewRecord())
	defer draft.Discard()
	if err := draft.AddPart(part); err == nil {
		t.Error("a record took it")
	}
}

// TestCopyTooLong: a member that is longer than a content may be is not held to be copied,
// where it is wanted. What is before it is, and what is as long as it may be.
func TestCopyTooLong(t *testing.T) {
	s := newMemStore()
	samples := []sample{sampleOf("small", noise(3000, 1)), sampleOf("longest", make([]byte, maxContent)), sampleOf("too long", make([]byte, maxContent+1))}
	from := pack(t, s, PackerOptions{}, samples)[0]
	attempt := func(offsets []int64) (Copied, error) {
		p := NewPacker(s, PackerOptions{}, nil)
		defer p.Abort()
		return p.Copy(from.Part, offsets)
	}
	var damage *DamageError
	if copied, err := attempt(offsetsOf(from, 0, 1, 2)); !errors.As(err, &damage) || !strings.Contains(err.Error(), "8388609 bytes") || len(copied.Contents) != 2 {
		t.Errorf("%d members, %v", len(copied.Contents), err)
	}
	if copied, err := attempt(offsetsOf(from, 0, 1)); err != nil || len(copied.Contents) != 2 {
		t.Errorf("before it: %d members, %v", len(copied.Contents), err)
	}
}

// TestLocks: whoever deletes is alone; whoever writes is not.
func TestLocks(t *testing.T) {
	r, err := Init(filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first, err := r.LockParts()
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.LockParts()
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	if _, err := r.LockToDelete(); !errors.Is(err, ErrLocked) {
		t.Errorf("deleting beside a writer: %v", err)
	}
	second.Release()
	alone, err := r.LockToDelete()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.LockToDelete(); !errors.Is(err, ErrLocked) {
		t.Errorf("deleting twice: %v", err)
	}
	alone.Release()
	alone.Release()
}
