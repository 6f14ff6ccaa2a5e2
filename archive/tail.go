package archive

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// The tail of a part is two skippable frames of zstd. All numbers are
// little-endian, n is the number of frames, the end frame included.
//
//	digests                                    seek table (zstd seekable format 0.1.0)
//	5d 2a 4d 18            magic number        5e 2a 4d 18            magic number
//	16 + 32·n              u32, what follows   8·(n+1) + 9            u32, what follows
//	"b3frames"             8 bytes             n+1 times:
//	1                      u32, version          stored length        u32
//	n                      u32                   raw length           u32
//	n times: BLAKE3-256    32 bytes            n+1                    u32
//	  of the stored frame                      0                      u8, descriptor: no checksums
//	                                           b1 ea 92 8f            magic number
//
// The last entry of the seek table is the digests' own frame, raw length 0. So
// the tail is 24 + 32·n + 8 + 8·(n+1) + 9 = 49 + 40·n bytes long, and the last
// 9 bytes of a part tell where it starts.
const (
	digestMagic     = 0x184D2A5D
	seekMagic       = 0x184D2A5E
	seekableMagic   = 0x8F92EAB1
	digestSignature = "b3frames"
	digestVersion   = 1

	digestHeaderLen = 4 + 4 + 8 + 4 + 4
	seekHeaderLen   = 4 + 4
	seekEntryLen    = 4 + 4
	seekFooterLen   = 4 + 1 + 4

	// maxFrames is the largest number of frames of a part.
	maxFrames = 1 << 18
	// maxTailStored is the length of the tail of such a part: 10 MiB.
	maxTailStored = digestHeaderLen + 32*maxFrames + seekHeaderLen + seekEntryLen*(maxFrames+1) + seekFooterLen
)

// tailStored returns the stored length of the tail of a part of n frames.
func tailStored(n int) int64 {
	return int64(digestHeaderLen + 32*n + seekHeaderLen + seekEntryLen*(n+1) + seekFooterLen)
}

// appendTail appends the tail of a part that consists of frames.
func appendTail(b []byte, frames []frameRef) []byte {
	le := binary.LittleEndian
	n := len(frames)
	b = le.AppendUint32(b, digestMagic)
	b = le.AppendUint32(b, uint32(digestHeaderLen-8+32*n))
	b = append(b, digestSignature...)
	b = le.AppendUint32(b, digestVersion)
	b = le.AppendUint32(b, uint32(n))
	for i := range frames {
		b = append(b, frames[i].Digest[:]...)
	}
	b = le.AppendUint32(b, seekMagic)
	b = le.AppendUint32(b, uint32(seekEntryLen*(n+1)+seekFooterLen))
	for i := range frames {
		b = le.AppendUint32(b, uint32(frames[i].StoredLen))
		b = le.AppendUint32(b, uint32(frames[i].RawLen))
	}
	b = le.AppendUint32(b, uint32(digestHeaderLen+32*n))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(n+1))
	b = append(b, 0)
	return le.AppendUint32(b, seekableMagic)
}

// parseFooter returns the number of frames of a part from its last 9 bytes.
func parseFooter(b []byte) (int, error) {
	le := binary.LittleEndian
	if len(b) != seekFooterLen {
		return 0, fmt.Errorf("footer of %d bytes, want %d", len(b), seekFooterLen)
	}
	if m := le.Uint32(b[5:]); m != seekableMagic {
		return 0, fmt.Errorf("footer magic number %#08x, want %#08x", m, uint32(seekableMagic))
	}
	if b[4] != 0 {
		return 0, fmt.Errorf("footer descriptor %#02x, want 0", b[4])
	}
	n := le.Uint32(b)
	if n < 2 || n > maxFrames+1 {
		return 0, fmt.Errorf("footer of %d frames, want 2 to %d", n, maxFrames+1)
	}
	return int(n) - 1, nil
}

// parseTail decodes a whole tail. Every byte of it is checked: what it returns,
// appendTail turns into the same bytes.
func parseTail(b []byte) ([]frameRef, error) {
	if len(b) < seekFooterLen {
		return nil, fmt.Errorf("tail of %d bytes", len(b))
	}
	n, err := parseFooter(b[len(b)-seekFooterLen:])
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != tailStored(n) {
		return nil, fmt.Errorf("tail of %d bytes, want %d for %d frames", len(b), tailStored(n), n)
	}
	digests, table := b[:digestHeaderLen+32*n], b[digestHeaderLen+32*n:]
	if err := checkTailHeaders(digests, table, n); err != nil {
		return nil, err
	}
	return parseFrames(digests[digestHeaderLen:], table[seekHeaderLen:], n)
}

func checkTailHeaders(digests, table []byte, n int) error {
	le := binary.LittleEndian
	last := table[seekHeaderLen+seekEntryLen*n:]
	for _, f := range []struct {
		name      string
		got, want uint32
	}{
		{"digests: magic number", le.Uint32(digests), digestMagic},
		{"digests: length", le.Uint32(digests[4:]), uint32(len(digests) - 8)},
		{"digests: version", le.Uint32(digests[16:]), digestVersion},
		{"digests: number of frames", le.Uint32(digests[20:]), uint32(n)},
		{"seek table: magic number", le.Uint32(table), seekMagic},
		{"seek table: length", le.Uint32(table[4:]), uint32(len(table) - 8)},
		{"seek table: last entry: stored length", le.Uint32(last), uint32(len(digests))},
		{"seek table: last entry: raw length", le.Uint32(last[4:]), 0},
	} {
		if f.got != f.want {
			return fmt.Errorf("%s %#x, want %#x", f.name, f.got, f.want)
		}
	}
	if s := digests[8:16]; string(s) != digestSignature {
		return fmt.Errorf("digests: signature %q, want %q", s, digestSignature)
	}
	return nil
}

func parseFrames(digests, entries []byte, n int) ([]frameRef, error) {
	frames := make([]frameRef, n)
	var raw, stored int64
	for i := range frames {
		e := entries[seekEntryLen*i:]
		storedLen, rawLen := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
		if rawLen == 0 || rawLen > MaxFrameRaw {
			return nil, fmt.Errorf("seek table: frame %d: raw length %d, want 1 to %d", i, rawLen, MaxFrameRaw)
		}
		if limit := maxFrameStored(int(rawLen)); storedLen == 0 || int64(storedLen) > int64(limit) {
			return nil, fmt.Errorf("seek table: frame %d: stored length %d, want 1 to %d", i, storedLen, limit)
		}
		frames[i] = frameRef{RawOffset: raw, StoredOffset: stored, RawLen: int(rawLen), StoredLen: int(storedLen)}
		copy(frames[i].Digest[:], digests[32*i:])
		raw += int64(rawLen)
		stored += int64(storedLen)
	}
	return frames, nil
}

// decodeTail decodes the tail of p and checks it against every field of p.
func decodeTail(b []byte, p Part) ([]frameRef, error) {
	if d := Digest(sha256.Sum256(b)); d != p.Tail {
		return nil, fmt.Errorf("SHA-256 %s, want %s", d, p.Tail)
	}
	frames, err := parseTail(b)
	if err != nil {
		return nil, err
	}
	last := frames[len(frames)-1]
	if stored := last.StoredOffset + int64(last.StoredLen) + int64(len(b)); stored != p.Stored {
		return nil, fmt.Errorf("frames and tail are %d stored bytes, the part has %d", stored, p.Stored)
	}
	if last.rawEnd() != p.Raw {
		return nil, fmt.Errorf("frames are %d raw bytes, the part has %d", last.rawEnd(), p.Raw)
	}
	return frames, nil
}

// DamageError says that stored bytes of a part are missing, or not those that
// were published. Whoever reads the part again gets the same error: it is not
// one of the transport, which may pass.
type DamageError struct {
	Part         Digest
	StoredOffset int64  // in the part, of the frame or tail that is damaged
	Problem      string // what is wrong
	Err          error  // the cause, or nil; wraps fs.ErrNotExist where the part is missing
}

// Error implements error.
func (e *DamageError) Error() string {
	s := fmt.Sprintf("part %s is damaged at stored offset %d: %s", e.Part, e.StoredOffset, e.Problem)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Err }

// VerifyTail checks that the part p is in s, has its stored size and its tail.
// A *DamageError says what is wrong with the part; any other error is one of
// the store and says nothing about the part.
func VerifyTail(s Store, p Part) error {
	o, err := openPart(s, p)
	if err != nil {
		return err
	}
	defer o.Close()
	_, err = readTail(o, p)
	return err
}

// PartFrame is a frame of a part as its tail describes it.
type PartFrame struct {
	RawOffset int64 // in the part, of the first byte
	RawLen    int64
	StoredLen int64
}

// Frames returns the frames of the part p in s, but for the end frame, from its
// verified tail. A *DamageError says what is wrong with the part, or that the disk cannot
// read it (EIO); any other error is one of the store.
func Frames(s Store, p Part) ([]PartFrame, error) {
	o, err := openPart(s, p)
	if err != nil {
		return nil, unreadable(p, 0, err)
	}
	defer o.Close()
	refs, err := readTail(o, p)
	if err != nil {
		return nil, unreadable(p, p.Stored-p.TailStored, err)
	}
	frames := make([]PartFrame, len(refs)-1)
	for i := range frames {
		frames[i] = PartFrame{refs[i].RawOffset, int64(refs[i].RawLen), int64(refs[i].StoredLen)}
	}
	return frames, nil
}

// unreadable takes EIO for damage: a disk that cannot read a part will hardly do so the
// next time.
func unreadable(p Part, off int64, err error) error {
	if errors.Is(err, unix.EIO) {
		return asDamage(p, off, err)
	}
	return err
}

// openPart opens the part p and checks its stored size.
func openPart(s Store, p Part) (Object, error) {
	o, err := s.Open(p.StoreName())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamageError{Part: p.Name, Problem: "the part is missing", Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("part %s: %w", p.Name, err)
	}
	if size := o.Size(); size != p.Stored {
		o.Close()
		return nil, &DamageError{Part: p.Name, StoredOffset: min(size, p.Stored),
			Problem: fmt.Sprintf("the part has %d bytes, want %d", size, p.Stored)}
	}
	return o, nil
}

// readTail reads and verifies the tail of p.
func readTail(o Object, p Part) ([]frameRef, error) {
	if p.TailStored <= 0 || p.TailStored > maxTailStored || p.TailStored > p.Stored {
		return nil, &DamageError{Part: p.Name, Problem: fmt.Sprintf("a tail of %d bytes in a part of %d makes no sense", p.TailStored, p.Stored)}
	}
	b := make([]byte, p.TailStored)
	off := p.Stored - p.TailStored
	if err := readStored(o, p.Name, b, off); err != nil {
		return nil, err
	}
	frames, err := decodeTail(b, p)
	if err != nil {
		return nil, &DamageError{Part: p.Name, StoredOffset: off, Problem: "wrong tail", Err: err}
	}
	return frames, nil
}

// readStored fills b with the stored bytes at off. Only an early end of the
// part counts as damage.
func readStored(o Object, part Digest, b []byte, off int64) error {
	n, err := o.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &DamageError{Part: part, StoredOffset: off, Problem: fmt.Sprintf("the part ends at %d", off+int64(n))}
	}
	return fmt.Errorf("part %s: read %d bytes at stored offset %d: %w", part, len(b), off, err)
}
