package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// partWriter fills one part with frames.
type partWriter struct {
	draft    Draft
	sum      hash.Hash // SHA-256 of what was written
	frames   []frameRef
	contents []Content
	raw      int64
	stored   int64
}

// finishedPart is a part that only has to be published.
type finishedPart struct {
	draft Draft
	PublishedPart
}

// write is the goroutine that appends frames to parts in the order in which
// they were filled.
func (p *Packer) write() {
	defer close(p.finished)
	var w *partWriter
	err := p.writeFrames(&w)
	if err == nil && w != nil {
		err = p.endPart(w)
	} else if w != nil {
		w.draft.Discard()
	}
	if err != nil {
		p.fail(err)
	}
}

// writeFrames writes every frame to *w, and puts a new writer there for every part.
func (p *Packer) writeFrames(w **partWriter) error {
	for {
		f, err := p.nextFrame()
		if f == nil || err != nil {
			return err
		}
		if *w != nil && f.atMember && (*w).full(p.pool.options.PartStored) {
			err, *w = p.endPart(*w), nil
		}
		if err == nil && *w == nil {
			*w, err = newPartWriter(p.store)
		}
		if err == nil {
			err = (*w).add(f)
		}
		if err != nil {
			return err
		}
		p.pool.free <- f
	}
}

// nextFrame waits for the next frame that a worker is done with. It is nil
// after the last one.
func (p *Packer) nextFrame() (*packFrame, error) {
	var f *packFrame
	select {
	case f = <-p.order:
	case <-p.stop:
		return nil, p.err
	}
	if f == nil {
		return nil, nil
	}
	select {
	case err := <-f.ready:
		return f, err
	case <-p.stop:
		return nil, p.err
	}
}

func newPartWriter(s Store) (*partWriter, error) {
	draft, err := s.Create()
	if err != nil {
		return nil, fmt.Errorf("packer: begin a part: %w", err)
	}
	return &partWriter{draft: draft, sum: sha256.New()}, nil
}

// full reports whether the part should end at the next member.
func (w *partWriter) full(partStored int64) bool {
	return w.stored >= partStored || len(w.frames) >= softMaxFrames || len(w.contents) >= softMaxContents
}

// add appends a frame.
func (w *partWriter) add(f *packFrame) error {
	if len(w.frames) >= maxFrames-1 {
		return fmt.Errorf("packer: a member of more than %d frames", maxFrames-softMaxFrames)
	}
	for _, c := range f.contents {
		c.RawOffset += w.raw
		w.contents = append(w.contents, c)
	}
	return w.appendFrame(f.stored, f.rawLen, f.digest)
}

func (w *partWriter) appendFrame(stored []byte, rawLen int, digest [32]byte) error {
	w.frames = append(w.frames, frameRef{RawOffset: w.raw, StoredOffset: w.stored,
		RawLen: rawLen, StoredLen: len(stored), Digest: digest})
	w.raw += int64(rawLen)
	return w.append(stored)
}

func (w *partWriter) append(b []byte) error {
	if _, err := w.draft.Write(b); err != nil {
		return fmt.Errorf("packer: write a part at stored offset %d: %w", w.stored, err)
	}
	w.sum.Write(b)
	w.stored += int64(len(b))
	return nil
}

// endPart completes the part and hands it to the publisher.
func (p *Packer) endPart(w *partWriter) error {
	part, err := w.finish()
	if err != nil {
		w.draft.Discard()
		return err
	}
	select {
	case p.finished <- finishedPart{w.draft, PublishedPart{Part: part, Contents: w.contents}}:
		return nil
	case <-p.stop:
		w.draft.Discard()
		return p.err
	}
}

// finish appends the end frame and the tail and reads the tail back.
func (w *partWriter) finish() (Part, error) {
	if err := w.appendFrame([]byte(endFrame), endFrameRaw, blake3.Sum256([]byte(endFrame))); err != nil {
		return Part{}, err
	}
	tail := appendTail(nil, w.frames)
	start := w.stored
	if err := w.append(tail); err != nil {
		return Part{}, err
	}
	part := Part{Stored: w.stored, Raw: w.raw, TailStored: int64(len(tail)), Tail: sha256.Sum256(tail)}
	w.sum.Sum(part.Name[:0])
	if _, err := decodeTail(tail, part); err != nil {
		return Part{}, fmt.Errorf("packer: the tail just written: %w", err)
	}
	return part, w.readBack(tail, start)
}

// readBack makes sure that the draft ends with the tail, if it can be read.
func (w *partWriter) readBack(tail []byte, off int64) error {
	r, ok := w.draft.(io.ReaderAt)
	if !ok {
		return nil
	}
	got := make([]byte, len(tail)+1)
	n, err := r.ReadAt(got, off)
	if err != nil && err != io.EOF {
		return fmt.Errorf("packer: read the tail back at stored offset %d: %w", off, err)
	}
	if !bytes.Equal(got[:n], tail) {
		return fmt.Errorf("packer: the tail just written at stored offset %d reads back as other bytes", off)
	}
	return nil
}

// publish is the goroutine that publishes parts while the next one is written.
func (p *Packer) publish() {
	for f := range p.finished {
		select {
		case <-p.stop:
		default:
			if err := p.publishPart(f); err != nil {
				p.fail(err)
			}
		}
		f.draft.Discard()
	}
}

func (p *Packer) publishPart(f finishedPart) error {
	err := f.draft.Publish(f.Part.StoreName())
	if errors.Is(err, fs.ErrExist) {
		err = p.relyOn(f)
	}
	if err != nil {
		return fmt.Errorf("packer: publish a part: %w", err)
	}
	if p.published == nil {
		return nil
	}
	return p.published(f.PublishedPart)
}

// relyOn makes sure that what has the name of a finished part is that part. A damaged
// file is replaced: the name is the digest of what should be there, so nobody can want
// another file under it, and every later run would make the same part.
func (p *Packer) relyOn(f finishedPart) error {
	err := verifyWhole(p.store, f.Part)
	if errors.As(err, new(*DamageError)) || errors.Is(err, unix.EIO) {
		return f.draft.Replace(f.Part.StoreName())
	}
	return err
}

// verifyWhole checks that the part that has the name of p already is p: an
// interrupted run may have published it. Its bytes are about to be relied on,
// so all of them are read.
func verifyWhole(s Store, p Part) error {
	o, err := openPart(s, p)
	if err != nil {
		return err
	}
	defer o.Close()
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < p.Stored; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), p.Stored-off)]
		if err := readStored(o, p.Name, b, off); err != nil {
			return err
		}
		sum.Write(b)
	}
	if got := Digest(sum.Sum(nil)); got != p.Name {
		return &DamageError{Part: p.Name, Problem: fmt.Sprintf("SHA-256 of the part is %s", got)}
	}
	return nil
}
