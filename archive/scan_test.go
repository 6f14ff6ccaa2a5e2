package archive

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/watchdog"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// forge makes a part of raw frames that is well formed, except for what is in
// them, and puts it into s under its digest.
func forge(t testing.TB, s *memStore, raws ...[]byte) Digest {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	var stored []byte
	var frames []frameRef
	for _, raw := range raws {
		b := enc.EncodeAll(raw, nil)
		frames = append(frames, frameRef{RawLen: len(raw), StoredLen: len(b), Digest: blake3.Sum256(b)})
		stored = append(stored, b...)
	}
	stored = appendTail(stored, frames)
	name := Digest(sha256.Sum256(stored))
	s.objects[PartStoreName(name)] = stored
	return name
}

func TestScanForgedParts(t *testing.T) {
	end := make([]byte, endFrameRaw)
	member := appendZeros(append(appendMember(nil, Member{Name: "a"}, 3), "abc"...), tarPadding(3))
	empty := appendMember(nil, Member{Name: "empty"}, 0)
	for want, raws := range map[string][][]byte{
		"":                        {member, end},
		"the last frame has 512":  {member, end[:512]},
		"the last frame has 2048": {member, append(end, end...)},
		"after the end":           {end, member, end},
		"the stream ends early":   {member, member},
		"header checksum":         {append([]byte{'b'}, member[1:]...), end},
		"not a ustar header":      {member, textLike(512, 1), end},
	} {
		s := newMemStore()
		name := forge(t, s, raws...)
		found, err := ScanPart(s, name)
		if want == "" && (err != nil || len(found.Contents) != 1) || want != "" && (!isDamage(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %+v %v", want, found, err)
		}
	}
	s := newMemStore()
	found, err := ScanPart(s, forge(t, s, append(bytes.Clone(empty), member...), end))
	if err != nil || fmt.Sprint(found.Contents) != fmt.Sprint([]Content{{Hash: HashOf([]byte("abc")), RawOffset: 1024, RawLen: 3}}) {
		t.Errorf("an empty member is no content: %v %v", found, err)
	}
}

func TestScanWrongName(t *testing.T) {
	s := newMemStore()
	name := pack(t, s, PackerOptions{}, samplesOf(100))[0].Part.Name
	other := name
	other[5] ^= 1
	s.objects[PartStoreName(other)] = s.objects[PartStoreName(name)]
	if _, err := ScanPart(s, other); !isDamage(err) || !strings.Contains(err.Error(), "SHA-256 of the part is "+name.String()) {
		t.Error(err)
	}
}

func TestScanFrameHeaders(t *testing.T) {
	raw := textLike(1000, 1)
	dec, err := newFrameDecoder(1)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 2000)
	frame := func(opts ...zstd.EOption) []byte {
		enc, err := zstd.NewWriter(nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return enc.EncodeAll(raw, nil)
	}
	good := frame()
	for want, stored := range map[string][]byte{
		"not a frame with":   frame(zstd.WithEncoderCRC(false)),
		"frame header":       []byte("not zstd at all"),
		"want 1000":          append(bytes.Clone(good), good...),
		"not a frame with c": append([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), good...),
		"decode frame":       good[:len(good)-1],
	} {
		if _, err := decodeFrame(dec, buf, stored, 1000); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := decodeFrame(dec, buf, good, 999); err == nil {
		t.Error("content size differs from the table")
	}
	if _, err := decodeFrame(dec, buf[:0:999], good, 1000); err == nil {
		t.Error("the buffer is too small")
	}
	if got, err := decodeFrame(dec, buf, good, 1000); err != nil || !bytes.Equal(got, raw) {
		t.Error(err)
	}
}

// FuzzScanPart feeds whole parts, and forges a part around what it is given so
// that the fuzzer gets past the digests.
func FuzzScanPart(f *testing.F) {
	s := newMemStore()
	name := pack(f, s, PackerOptions{FrameRaw: 1024}, samplesOf(300, 1500))[0].Part.StoreName()
	f.Add(s.objects[name])
	f.Add([]byte(endFrame))
	f.Add(appendZeros(append(appendMember(nil, Member{Name: strings.Repeat("n", 300)}, 3), "abc"...), tarPadding(3)))
	dec, err := newFrameDecoder(1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watchdog.Start()()
		s := newMemStore()
		name := Digest(sha256.Sum256(b))
		s.objects[PartStoreName(name)] = b
		ScanPart(s, name)
		if len(b) == 0 || len(b) > MaxFrameRaw {
			return
		}
		ScanPart(s, forge(t, s, b, make([]byte, endFrameRaw)))
		for _, rawLen := range []int{1, 1000, 1024} {
			decodeFrame(dec, make([]byte, 0, rawLen), b, rawLen)
		}
	})
}
