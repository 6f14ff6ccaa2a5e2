package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/bits"
	"strings"
	"syscall"
	"testing"

	"github.com/backupfs/backupfs/internal/watchdog"
	"github.com/zeebo/blake3"
)

// tinyFrames are the frames of a part of one frame and the end frame.
func tinyFrames() []frameRef {
	return []frameRef{
		{RawOffset: 0, StoredOffset: 0, RawLen: 1024, StoredLen: 300, Digest: [32]byte(bytes.Repeat([]byte{0xd1}, 32))},
		{RawOffset: 1024, StoredOffset: 300, RawLen: 1024, StoredLen: 15, Digest: blake3.Sum256([]byte(endFrame))},
	}
}

// tinyTail is the tail of that part: 49 + 2·40 = 129 bytes.
var tinyTail = unhexBytes(`
	5d2a4d18                            skippable frame 13 of zstd
	50000000                            80 bytes follow: 16 + 2·32
	62336672616d6573                    "b3frames"
	01000000                            version 1
	02000000                            2 frames
	d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1    BLAKE3 of the first stored frame
	d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1
	` + endFrameDigest + `              BLAKE3 of the end frame
	5e2a4d18                            skippable frame 14: the seek table
	21000000                            33 bytes follow: 3·8 + 9
	2c010000 00040000                   frame 0: 300 stored bytes, 1024 raw bytes
	0f000000 00040000                   frame 1: 15 stored bytes, 1024 raw bytes
	58000000 00000000                   the frame of the digests: 88 stored bytes, no raw ones
	03000000                            3 entries
	00                                  descriptor: entries have no checksum
	b1ea928f                            magic number of the seekable format
`)

// endFrameDigest is the BLAKE3-256 of endFrame.
const endFrameDigest = "9da24477fa837de7f8a5ec42ec2f330802a8349cd0693504d1a8c654d96f1c0f"

// unhexBytes decodes the hexadecimal columns of an annotated dump: in each line
// the words before the first run of three spaces.
func unhexBytes(dump string) []byte {
	var out []byte
	for line := range strings.Lines(dump) {
		columns, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
		b, err := hex.DecodeString(strings.ReplaceAll(columns, " ", ""))
		if err != nil {
			panic(err)
		}
		out = append(out, b...)
	}
	return out
}

func tinyPart(tail []byte) Part {
	return Part{Stored: 315 + int64(len(tail)), Raw: 2048, TailStored: int64(len(tail)), Tail: sha256.Sum256(tail)}
}

func TestTailBytes(t *testing.T) {
	if got := appendTail(nil, tinyFrames()); !bytes.Equal(got, tinyTail) {
		t.Errorf("tail\n%x, want\n%x", got, tinyTail)
	}
	if tailStored(2) != int64(len(tinyTail)) || tailStored(maxFrames) != maxTailStored {
		t.Error(tailStored(2), tailStored(maxFrames))
	}
	frames, err := decodeTail(tinyTail, tinyPart(tinyTail))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range tinyFrames() {
		if frames[i] != want {
			t.Errorf("frame %d is %+v, want %+v", i, frames[i], want)
		}
	}
}

func TestEndFrame(t *testing.T) {
	dec, err := newFrameDecoder(1)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := decodeFrame(dec, make([]byte, 0, endFrameRaw), []byte(endFrame), endFrameRaw)
	if err != nil || !bytes.Equal(raw, make([]byte, 1024)) {
		t.Fatal(raw, err)
	}
}

// TestTailOneBitOff flips every bit of a tail and corrects the digest, as only
// a faulty writer would: nothing but the frames' digests may be taken as they are.
func TestTailOneBitOff(t *testing.T) {
	for i := range tinyTail {
		for bit := range 8 {
			bad := bytes.Clone(tinyTail)
			bad[i] ^= 1 << bit
			inDigests := i >= digestHeaderLen && i < digestHeaderLen+64
			if _, err := decodeTail(bad, tinyPart(bad)); (err == nil) != inDigests {
				t.Errorf("byte %d, bit %d: %v", i, bit, err)
			}
			if _, err := decodeTail(bad, tinyPart(tinyTail)); err == nil {
				t.Errorf("byte %d, bit %d: the digest did not notice", i, bit)
			}
		}
	}
}

func TestTailCutOrExtended(t *testing.T) {
	for n := range tinyTail {
		if _, err := parseTail(tinyTail[n:]); n > 0 && err == nil {
			t.Errorf("without its first %d bytes", n)
		}
		if _, err := parseTail(tinyTail[:n]); err == nil {
			t.Errorf("its first %d bytes", n)
		}
	}
	if _, err := parseTail(append([]byte{0}, tinyTail...)); err == nil {
		t.Error("with a byte in front")
	}
}

func TestTailAgainstPart(t *testing.T) {
	for name, change := range map[string]func(*Part){
		"stored": func(p *Part) { p.Stored++ },
		"raw":    func(p *Part) { p.Raw-- },
		"tail":   func(p *Part) { p.Tail[31] ^= 1 },
	} {
		p := tinyPart(tinyTail)
		change(&p)
		if _, err := decodeTail(tinyTail, p); err == nil {
			t.Errorf("%s differs", name)
		}
	}
}

func TestTailFrameLimits(t *testing.T) {
	for name, change := range map[string]func(f *frameRef){
		"no raw bytes":          func(f *frameRef) { f.RawLen = 0 },
		"no stored bytes":       func(f *frameRef) { f.StoredLen = 0 },
		"too many raw bytes":    func(f *frameRef) { f.RawLen = MaxFrameRaw + 1 },
		"too many stored bytes": func(f *frameRef) { f.StoredLen = maxFrameStored(f.RawLen) + 1 },
	} {
		frames := tinyFrames()
		change(&frames[0])
		if _, err := parseTail(appendTail(nil, frames)); err == nil {
			t.Error(name)
		}
	}
}

func TestVerifyTail(t *testing.T) {
	s := newMemStore()
	pp := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(100, 5000))[0]
	name := pp.Part.StoreName()
	good := s.objects[name]
	if err := VerifyTail(s, pp.Part); err != nil {
		t.Fatal(err)
	}
	tailAt := pp.Part.Stored - pp.Part.TailStored
	for i := range good {
		s.objects[name] = bytes.Clone(good)
		s.objects[name][i] ^= 0x10
		err := VerifyTail(s, pp.Part)
		var de *DamageError
		if int64(i) < tailAt {
			if err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		} else if !errors.As(err, &de) || de.StoredOffset != tailAt || de.Part != pp.Part.Name {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for n := range good {
		s.objects[name] = good[:n]
		if de := (*DamageError)(nil); !errors.As(VerifyTail(s, pp.Part), &de) {
			t.Fatalf("cut to %d bytes: %v", n, de)
		}
	}
	delete(s.objects, name)
	err := VerifyTail(s, pp.Part)
	if de := (*DamageError)(nil); !errors.As(err, &de) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	s.objects[name] = good
	s.fail = func(string) error { return syscall.EMFILE }
	err = VerifyTail(s, pp.Part)
	if de := (*DamageError)(nil); errors.As(err, &de) || !errors.Is(err, syscall.EMFILE) {
		t.Fatal(err)
	}
	if s.open != 0 {
		t.Fatalf("%d parts left open", s.open)
	}
}

func TestVerifyTailOfSenselessParts(t *testing.T) {
	s := newMemStore()
	good := pack(t, s, PackerOptions{FrameRaw: testFrame}, samplesOf(100))[0].Part
	for _, n := range []int64{-1, 0, good.Stored + 1, maxTailStored + 1, 1 << 62} {
		p := good
		p.TailStored = n
		if err := VerifyTail(s, p); !errors.As(err, new(*DamageError)) {
			t.Errorf("tail of %d bytes: %v", n, err)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add(tinyTail)
	f.Add(tinyTail[:len(tinyTail)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watchdog.Start()()
		frames, err := parseTail(b)
		if err != nil {
			return
		}
		if again := appendTail(nil, frames); !bytes.Equal(again, b) {
			t.Errorf("tail %x is written as %x", b, again)
		}
		last := frames[len(frames)-1]
		if bits.Len64(uint64(last.rawEnd())) > 42 {
			t.Errorf("raw end %d", last.rawEnd())
		}
	})
}
