package archive

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// Level says how hard a Packer compresses.
type Level int

// Levels. The zero value is the default.
const (
	LevelDefault Level = iota
	LevelBetter
)

// PackerOptions are the choices of a Packer. The zero value is a good one.
type PackerOptions struct {
	FrameRaw   int   // raw bytes that a frame is filled up to: 1 KiB to MaxFrameRaw; 0 = 1 MiB
	ChunkRaw   int   // the same for chunks of large files; 0 = 512 KiB, or FrameRaw if that is less
	PartStored int64 // stored bytes after which a part ends at the next member; 0 = 64 MiB
	Workers    int   // frames compressed at the same time; 0 = GOMAXPROCS
	Level      Level
}

// PublishedPart is a part on stable storage and what is in it.
type PublishedPart struct {
	Part     Part
	Contents []Content // ordered by raw offset
}

const (
	defaultFrameRaw = 1 << 20
	defaultChunkRaw = 512 << 10
	minFrameRaw     = 1 << 10

	// A part ends early, however well it compresses, before its tail and its
	// list of contents become long: at the first member after that many frames
	// (4 to 8 GiB raw at the default frame sizes) or contents.
	softMaxFrames   = 1 << 13
	softMaxContents = 1 << 18
)

var (
	errAborted = errors.New("packer: aborted")
	errClosed  = errors.New("packer: closed")
)

// Packer writes contents into parts. Frames are compressed by several workers;
// what it writes depends only on the members and the options, not on the number
// of workers or their timing. Memory is bounded, see PackerPool.
//
// Its methods are safe for concurrent use. One of Close and Abort must be
// called in the end.
type Packer struct {
	pool      *PackerPool
	published func(PublishedPart) error
	store     Store

	mu     sync.Mutex // guards the frame being filled
	closed bool
	cur    *packFrame // nil between frames
	header []byte     // of the member being added
	limit  int        // raw bytes that a frame may have with it

	work     chan *packFrame   // to the workers
	order    chan *packFrame   // to the writer; the same frames as in work, in the same order
	finished chan finishedPart // from the writer to the publisher

	stop     chan struct{} // closed when the packer has failed
	stopOnce sync.Once
	err      error // valid once stop is closed
	wg       sync.WaitGroup
}

// packFrame is a frame on its way from Add through a worker to the writer.
type packFrame struct {
	raw      []byte
	atMember bool      // starts with the header of a member: a part may end before it
	contents []Content // that start in it; RawOffset counts from the start of the frame

	rawLen int // set when the frame is handed on
	stored []byte
	digest [32]byte
	ready  chan error // receives once when a worker is done with it
}

func newPackFrame() *packFrame { return &packFrame{ready: make(chan error, 1)} }

// NewPacker returns a Packer that puts parts into s. published is called from
// one goroutine, in order, after each part is on stable storage; an error of
// published is the packer's. It must not call the packer.
func NewPacker(s Store, o PackerOptions, published func(PublishedPart) error) *Packer {
	return NewPackerPool(o, 1).NewPacker(s, published)
}

// complete returns the options with the values that zeros stand for.
func (o PackerOptions) complete() (PackerOptions, error) {
	if o.FrameRaw == 0 {
		o.FrameRaw = defaultFrameRaw
	}
	if o.ChunkRaw == 0 {
		o.ChunkRaw = min(defaultChunkRaw, o.FrameRaw)
	}
	if o.PartStored == 0 {
		o.PartStored = DefaultPartSize
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	switch {
	case o.FrameRaw < minFrameRaw || o.FrameRaw > MaxFrameRaw:
		return o, fmt.Errorf("packer: frames of %d bytes, want %d to %d", o.FrameRaw, minFrameRaw, MaxFrameRaw)
	case o.ChunkRaw < minFrameRaw || o.ChunkRaw > MaxFrameRaw:
		return o, fmt.Errorf("packer: frames of %d bytes for chunks, want %d to %d", o.ChunkRaw, minFrameRaw, MaxFrameRaw)
	case o.PartStored < 0:
		return o, fmt.Errorf("packer: parts of %d bytes", o.PartStored)
	case o.Workers < 0:
		return o, fmt.Errorf("packer: %d workers", o.Workers)
	}
	_, err := o.Level.zstd()
	return o, err
}

// maxRaw returns the raw bytes of the longest frame.
func (o PackerOptions) maxRaw() int { return max(o.FrameRaw, o.ChunkRaw) }

func (l Level) zstd() (zstd.EncoderLevel, error) {
	switch l {
	case LevelDefault:
		return zstd.SpeedDefault, nil
	case LevelBetter:
		return zstd.SpeedBetterCompression, nil
	}
	return 0, fmt.Errorf("packer: no such level: %d", int(l))
}

// Add appends a content, which h names, as the tar member m. It copies what it
// keeps. It blocks while the workers or the store are behind. An m that tar
// could not restore, or an empty content, is refused with an error that leaves
// the packer as it was; every other error is final, and all later calls return it.
func (p *Packer) Add(m Member, h Hash, content []byte) error {
	if len(content) == 0 {
		return fmt.Errorf("packer: member %q: empty content", m.Name)
	}
	if len(m.Name) > maxMemberName {
		m.Name = ChunkName(h)
	}
	if err := m.check(); err != nil {
		return fmt.Errorf("packer: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return err
	}
	if err := p.add(m, h, content); err != nil {
		return err
	}
	return nil
}

func (p *Packer) usable() error {
	select {
	case <-p.stop:
		return p.err
	default:
	}
	if p.closed {
		return errClosed
	}
	return nil
}

func (p *Packer) add(m Member, h Hash, content []byte) error {
	p.header = appendMember(p.header[:0], m, int64(len(content)))
	padding := tarPadding(int64(len(content)))
	p.limit = p.pool.options.FrameRaw
	if strings.HasPrefix(m.Name, chunkDir) && m.Name == ChunkName(h) {
		p.limit = p.pool.options.ChunkRaw
	}
	if p.cur != nil && len(p.cur.raw)+len(p.header)+len(content)+padding > p.limit {
		p.flush()
	}
	if err := p.append(p.header, true); err != nil {
		return err
	}
	if err := p.ensureFrame(false); err != nil {
		return err
	}
	p.cur.contents = append(p.cur.contents, Content{Hash: h, RawOffset: int64(len(p.cur.raw)), RawLen: int64(len(content))})
	if err := p.append(content, false); err != nil {
		return err
	}
	var zeros [tarBlock]byte
	return p.append(zeros[:padding], false)
}

// append puts bytes into the current frame and as many new ones as it takes.
// atMember says that b starts with the header of a member.
func (p *Packer) append(b []byte, atMember bool) error {
	for len(b) > 0 {
		if err := p.ensureFrame(atMember); err != nil {
			return err
		}
		atMember = false
		n := min(len(b), p.limit-len(p.cur.raw))
		p.cur.raw = append(p.cur.raw, b[:n]...)
		b = b[n:]
		if len(p.cur.raw) == p.limit {
			p.flush()
		}
	}
	return nil
}

// ensureFrame takes a free frame if none is being filled.
func (p *Packer) ensureFrame(atMember bool) error {
	if p.cur != nil {
		return nil
	}
	f, err := p.freeFrame()
	if err != nil {
		return err
	}
	if f.raw == nil {
		f.raw = make([]byte, 0, p.pool.options.maxRaw())
	}
	f.raw, f.contents, f.atMember = f.raw[:0], f.contents[:0], atMember
	p.cur = f
	return nil
}

// freeFrame waits for a frame that nobody uses.
func (p *Packer) freeFrame() (*packFrame, error) {
	select {
	case f := <-p.pool.free:
		return f, nil
	case <-p.stop:
	case <-p.pool.failed: // who has failed keeps its frames
		p.fail(p.pool.err)
	}
	return nil, p.err
}

// flush hands the current frame on. It does not block: the channels have room
// for every frame there is.
func (p *Packer) flush() {
	p.cur.rawLen = len(p.cur.raw)
	p.work <- p.cur
	p.order <- p.cur
	p.cur = nil
}

// Close finishes the last part, if anything is in it, and waits until all parts
// are published. Later calls return what the first one did.
func (p *Packer) Close() error {
	p.mu.Lock()
	if !p.closed && p.work != nil {
		if p.cur != nil {
			p.flush()
		}
		close(p.work)
		close(p.order)
	}
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	p.stopOnce.Do(func() {}) // from here on nothing can fail
	select {
	case <-p.stop:
		return p.err
	default:
		return nil
	}
}

// Abort drops the unfinished part and waits until nothing of the packer runs
// any more. Parts that were published stay. It may be called at any time, from
// any goroutine but that of published; it interrupts Add and Close, and does
// nothing once Close has returned.
func (p *Packer) Abort() {
	p.fail(errAborted)
	p.wg.Wait()
}

// fail makes err the packer's error, unless it has one, and stops everything.
func (p *Packer) fail(err error) {
	p.stopOnce.Do(func() {
		p.err = err
		close(p.stop)
		p.pool.fail(err)
	})
}

// compress is a worker.
func (p *Packer) compress() {
	for {
		select {
		case f, ok := <-p.work:
			if !ok {
				return
			}
			f.ready <- p.pool.encode(f)
		case <-p.stop:
			return
		}
	}
}

// frameCoder compresses frames and makes sure that they can be decoded.
type frameCoder struct {
	encodeAll func(src, dst []byte) []byte
	dec       *zstd.Decoder
	maxStored int
	check     []byte
	hash      *blake3.Hasher
}

func newFrameCoder(o PackerOptions) (*frameCoder, error) {
	level, err := o.Level.zstd()
	if err != nil {
		return nil, err
	}
	window := zstd.MinWindowSize
	for window < o.maxRaw() {
		window *= 2
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true),
		zstd.WithWindowSize(window), zstd.WithSingleSegment(true), zstd.WithAllLitEntropyCompression(true))
	if err != nil {
		return nil, fmt.Errorf("packer: %w", err)
	}
	dec, err := newFrameDecoder(1)
	if err != nil {
		return nil, fmt.Errorf("packer: %w", err)
	}
	return &frameCoder{encodeAll: enc.EncodeAll, dec: dec, maxStored: maxFrameStored(o.maxRaw()),
		check: make([]byte, 0, o.maxRaw()+decodeSlack), hash: blake3.New()}, nil
}

// encode compresses a frame, decodes it again, compares, and computes its
// digest. The encoder panics where it finds itself in error; that is an error
// of the backup, not the end of the program.
func (c *frameCoder) encode(f *packFrame) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("packer: zstd encoder failed on a frame of %d bytes: %v", len(f.raw), r)
		}
	}()
	if f.stored == nil {
		f.stored = make([]byte, 0, c.maxStored)
	}
	f.stored = c.encodeAll(f.raw, f.stored[:0])
	if limit := maxFrameStored(len(f.raw)); len(f.stored) > limit {
		return fmt.Errorf("packer: zstd encoder made %d bytes of a frame of %d", len(f.stored), len(f.raw))
	}
	raw, err := decodeFrame(c.dec, c.check, f.stored, len(f.raw))
	if err != nil {
		return fmt.Errorf("packer: a frame of %d bytes just encoded cannot be decoded: %w", len(f.raw), err)
	}
	if !bytes.Equal(raw, f.raw) {
		return fmt.Errorf("packer: a frame of %d bytes just encoded decodes to other bytes", len(f.raw))
	}
	c.hash.Reset()
	c.hash.Write(f.stored)
	c.hash.Sum(f.digest[:0])
	return nil
}
