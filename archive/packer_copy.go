package archive

import (
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// maxCopyRaw bounds the raw bytes of frames that are held to be copied as they
// are. Frames of a Packer end between members, or belong to one content of up
// to maxContent.
const maxCopyRaw = 4 * maxContent

// Copied says what Packer.Copy has copied.
type Copied struct {
	Contents []Content // in the order of the part copied from, and their places there
	Verbatim int64     // stored bytes of frames that were taken over as they are
}

// Copy adds contents of the part p to the packer: those that start at the given
// raw offsets, which are ascending. Frames that hold nothing else are taken over
// as stored bytes; what is left of the others is compressed anew, under the tar
// headers that it had. Everything is verified on the way: the tail, each frame
// before it is decoded, and the hash of each content.
//
// It reads p from its start to the last content wanted, and holds some frames of
// it. A *DamageError says that p is damaged, that the disk cannot read it (EIO), or that
// it has no member at one of the offsets, or one of more than 8 MiB, which is no content:
// what was copied by then stays in the packer. Every other error is final, as those of Add.
func (p *Packer) Copy(part Part, offsets []int64) (Copied, error) {
	o, err := openPart(p.store, part)
	if err != nil {
		return Copied{}, unreadable(part, 0, err)
	}
	defer o.Close()
	refs, err := readTail(o, part)
	if err != nil {
		return Copied{}, unreadable(part, part.Stored-part.TailStored, err)
	}
	c := &partCopier{packer: p, part: part, object: o, offsets: offsets, whole: true, hash: blake3.New()}
	if c.dec, err = newFrameDecoder(1); err != nil {
		return Copied{}, fmt.Errorf("part %s: %w", part.Name, err)
	}
	defer c.dec.Close()
	c.walker = newTarWalker(c.member)
	err = c.run(refs[:len(refs)-1])
	return c.copied, err
}

// partCopier is the state of one Copy. It collects frames until one ends between
// members: these are taken over if all members in them are wanted.
type partCopier struct {
	packer  *Packer
	part    Part
	object  Object
	offsets []int64 // still to come
	copied  Copied
	hash    *blake3.Hasher
	dec     *zstd.Decoder
	walker  *tarWalker

	frames  []packedFrame  // held to be taken over; none once whole is false
	whole   bool           // all members since the last cut are wanted
	members []copiedMember // wanted and not copied yet
	raw     []byte         // from rawOffset on
	start   int64          // raw offset of raw
	decoded []byte         // scratch
}

// packedFrame is a frame as it is stored.
type packedFrame struct {
	frameRef
	stored []byte
}

type copiedMember struct {
	Member
	Content
}

func (c *partCopier) run(refs []frameRef) error {
	for _, ref := range refs {
		if len(c.offsets) == 0 && len(c.members) == 0 {
			return nil
		}
		if err := c.frame(ref); err != nil {
			return err
		}
	}
	if len(c.offsets) > 0 || len(c.members) > 0 {
		return &DamageError{Part: c.part.Name, Problem: fmt.Sprintf("%d contents are not where they should be", len(c.offsets)+len(c.members))}
	}
	return nil
}

// frame reads the next frame and copies what can be copied.
func (c *partCopier) frame(ref frameRef) error {
	f := packedFrame{ref, make([]byte, ref.StoredLen)}
	c.decoded = slices.Grow(c.decoded[:0], ref.RawLen+decodeSlack)
	raw, err := readFrame(c.object, c.part.Name, ref, f.stored, c.hash, c.dec, c.decoded)
	if err != nil {
		return unreadable(c.part, ref.StoredOffset, err)
	}
	c.raw = append(c.raw, raw...)
	if err := c.walker.feed(raw); err != nil {
		return &DamageError{Part: c.part.Name, StoredOffset: ref.StoredOffset, Problem: "wrong tar stream", Err: err}
	}
	if w := c.walker; c.inWanted() && w.content.RawLen > maxContent {
		return &DamageError{Part: c.part.Name, StoredOffset: ref.StoredOffset,
			Problem: fmt.Sprintf("the content at raw offset %d has %d bytes, want at most %d", w.content.RawOffset, w.content.RawLen, maxContent)}
	}
	if c.whole && len(c.raw) <= maxCopyRaw {
		c.frames = append(c.frames, f)
	} else {
		c.whole, c.frames = false, nil
	}
	cut := c.walker.between()
	switch {
	case cut && c.whole:
		err = c.takeOver()
	case !c.whole:
		err = c.repack()
	default:
		return nil // more frames are needed to know
	}
	if cut {
		c.whole, c.frames = true, nil
	}
	c.forgetRaw()
	return err
}

// member is told of each member by the walker.
func (c *partCopier) member(m Member, content Content) error {
	if len(c.offsets) == 0 || content.RawOffset != c.offsets[0] {
		c.whole = false
		if len(c.offsets) > 0 && content.RawOffset > c.offsets[0] {
			return fmt.Errorf("no member at raw offset %d", c.offsets[0])
		}
		return nil
	}
	c.offsets = c.offsets[1:]
	c.members = append(c.members, copiedMember{m, content})
	return nil
}

// takeOver adds the frames since the last cut as they are.
func (c *partCopier) takeOver() error {
	if err := c.packer.addFrames(c.frames, c.members); err != nil {
		return err
	}
	for _, f := range c.frames {
		c.copied.Verbatim += int64(f.StoredLen)
	}
	c.done()
	return nil
}

// repack adds the members since the last cut one by one.
func (c *partCopier) repack() error {
	for _, m := range c.members {
		at := m.RawOffset - c.start
		if err := c.packer.Add(m.Member, m.Hash, c.raw[at:at+m.RawLen]); err != nil {
			return err
		}
	}
	c.done()
	return nil
}

func (c *partCopier) done() {
	for _, m := range c.members {
		c.copied.Contents = append(c.copied.Contents, m.Content)
	}
	c.members = c.members[:0]
}

// inWanted reports whether a wanted content has begun and goes on in the next frame.
func (c *partCopier) inWanted() bool {
	w := c.walker
	return w.left > 0 && len(c.offsets) > 0 && c.offsets[0] == w.content.RawOffset
}

// forgetRaw drops the raw bytes that are not needed any more.
func (c *partCopier) forgetRaw() {
	needed := c.walker.offset
	if c.inWanted() {
		needed = c.walker.content.RawOffset
	}
	c.raw = append(c.raw[:0], c.raw[needed-c.start:]...)
	c.start = needed
}

// addFrames appends frames that hold exactly the given members. A part never
// ends between them. The frame being filled goes on being filled behind them.
func (p *Packer) addFrames(frames []packedFrame, members []copiedMember) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return err
	}
	if p.cur != nil && !p.cur.atMember {
		p.flush() // it is the end of a member that began in the frame before
	}
	for i, packed := range frames {
		f, err := p.freeFrame()
		if err != nil {
			return err
		}
		f.atMember, f.rawLen, f.digest = i == 0, packed.RawLen, packed.Digest
		f.stored = append(f.stored[:0], packed.stored...)
		f.contents = f.contents[:0]
		for len(members) > 0 && members[0].RawOffset < packed.rawEnd() {
			content := members[0].Content
			content.RawOffset -= packed.RawOffset
			f.contents = append(f.contents, content)
			members = members[1:]
		}
		f.ready <- nil
		p.order <- f
	}
	return nil
}
