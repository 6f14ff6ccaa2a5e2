package archive

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// maxScanContents is the largest number of contents of a part that ScanPart
// accepts. A packer ends a part at half as many.
const maxScanContents = 2 * softMaxContents

// ScanPart describes a part of which nothing is known but its name, such as one
// that an interrupted run left. It reads all of it: the SHA-256 of the part must
// be its name, every frame must match its digest and decode, and the tar stream
// must be whole. It holds a frame at a time. A *DamageError says what is wrong
// with the part; any other error is one of the store.
func ScanPart(s Store, name Digest) (PublishedPart, error) {
	o, err := s.Open(PartStoreName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return PublishedPart{}, &DamageError{Part: name, Problem: "the part is missing", Err: err}
	}
	if err != nil {
		return PublishedPart{}, fmt.Errorf("part %s: %w", name, err)
	}
	defer o.Close()
	sc := partScanner{object: o, sum: sha256.New(), buffer: frameBuffer{hash: blake3.New()}}
	sc.found.Part = Part{Name: name, Stored: o.Size()}
	if err := sc.scan(); err != nil {
		return PublishedPart{}, err
	}
	return sc.found, nil
}

// partScanner reads the frames of a part and what is in them.
type partScanner struct {
	object Object
	found  PublishedPart
	frames []frameRef
	sum    hash.Hash // SHA-256 of what was read
	dec    *zstd.Decoder
	buffer frameBuffer
	walker *tarWalker
}

func (sc *partScanner) scan() error {
	tail, err := sc.readTail()
	if err != nil {
		return err
	}
	if sc.dec, err = newFrameDecoder(1); err != nil {
		return fmt.Errorf("part %s: %w", sc.found.Part.Name, err)
	}
	sc.walker = newTarWalker(sc.member)
	for _, ref := range sc.frames {
		if err := sc.frame(ref); err != nil {
			return err
		}
	}
	last := sc.frames[len(sc.frames)-1]
	if err := sc.walker.close(); err != nil {
		return sc.damage(last.StoredOffset, "wrong tar stream", err)
	}
	sc.sum.Write(tail)
	if got := Digest(sc.sum.Sum(nil)); got != sc.found.Part.Name {
		return sc.damage(0, fmt.Sprintf("SHA-256 of the part is %s", got), nil)
	}
	return nil
}

// readTail finds, reads and decodes the tail, and completes the description of
// the part with what it says.
func (sc *partScanner) readTail() ([]byte, error) {
	p := &sc.found.Part
	footer := make([]byte, min(seekFooterLen, p.Stored))
	off := p.Stored - int64(len(footer))
	if err := readStored(sc.object, p.Name, footer, off); err != nil {
		return nil, err
	}
	n, err := parseFooter(footer)
	if err != nil {
		return nil, sc.damage(off, "wrong tail", err)
	}
	p.TailStored = tailStored(n)
	if p.TailStored > p.Stored {
		return nil, sc.damage(off, fmt.Sprintf("wrong tail: %d bytes of %d", p.TailStored, p.Stored), nil)
	}
	tail := make([]byte, p.TailStored)
	off = p.Stored - p.TailStored
	if err := readStored(sc.object, p.Name, tail, off); err != nil {
		return nil, err
	}
	if sc.frames, err = parseTail(tail); err != nil {
		return nil, sc.damage(off, "wrong tail", err)
	}
	last := sc.frames[n-1]
	p.Tail, p.Raw = sha256.Sum256(tail), last.rawEnd()
	if end := last.StoredOffset + int64(last.StoredLen); end != off {
		return nil, sc.damage(off, fmt.Sprintf("wrong tail: the frames end at %d", end), nil)
	}
	if last.RawLen != endFrameRaw {
		return nil, sc.damage(off, fmt.Sprintf("wrong tail: the last frame has %d raw bytes, want %d", last.RawLen, endFrameRaw), nil)
	}
	return tail, nil
}

// frame reads a frame and walks what is in it.
func (sc *partScanner) frame(ref frameRef) error {
	raw, err := sc.buffer.read(sc.object, sc.found.Part.Name, ref, sc.dec)
	if err != nil {
		return err
	}
	sc.sum.Write(sc.buffer.stored)
	return sc.walk(ref, raw)
}

// walk walks what is in a frame.
func (sc *partScanner) walk(ref frameRef, raw []byte) error {
	if err := sc.walker.feed(raw); err != nil {
		return sc.damage(ref.StoredOffset, "wrong tar stream", err)
	}
	return nil
}

// member takes a content of the tar stream.
func (sc *partScanner) member(_ Member, c Content) error {
	if c.RawLen == 0 {
		return nil
	}
	if c.RawLen > maxContent {
		return fmt.Errorf("a content of %d bytes, want at most %d", c.RawLen, maxContent)
	}
	if len(sc.found.Contents) == maxScanContents {
		return fmt.Errorf("more than %d contents", maxScanContents)
	}
	sc.found.Contents = append(sc.found.Contents, c)
	return nil
}

func (sc *partScanner) damage(off int64, problem string, err error) error {
	return &DamageError{Part: sc.found.Part.Name, StoredOffset: off, Problem: problem, Err: err}
}
