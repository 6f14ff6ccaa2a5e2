package archive

import (
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// framesPerCore is how many frames a PartVerifier may hold for each core: one that
// is being decoded, and one that waits for those before it.
const framesPerCore = 2

// PartVerifier reads whole parts: as many at a time as there are cores, and with
// cores that have none, further frames of those. It holds at most two frames for
// each core, and the list of contents of each part that is being read. It is safe
// for concurrent use.
type PartVerifier struct {
	store  Store
	dec    *zstd.Decoder
	taking sync.Mutex // held while a part takes its buffers
	free   chan *frameBuffer
}

// frameBuffer is what it takes to read a frame.
type frameBuffer struct {
	stored, raw []byte
	hash        *blake3.Hasher
}

// NewPartVerifier returns a PartVerifier of the parts in s.
func NewPartVerifier(s Store) (*PartVerifier, error) {
	cores := runtime.GOMAXPROCS(0)
	dec, err := newFrameDecoder(cores)
	if err != nil {
		return nil, err
	}
	v := &PartVerifier{store: s, dec: dec, free: make(chan *frameBuffer, framesPerCore*cores)}
	for range cap(v.free) {
		v.free <- &frameBuffer{hash: blake3.New()}
	}
	return v, nil
}

// Verify reads all of p: the tail must have its digest, every frame must have
// the digest that the tail gives it and must decode, and the tar stream must be
// whole. The tail names the frames one behind the other up to itself, so no byte
// of the part escapes, and there is no need to compute the SHA-256 that is its name.
//
// It returns the contents found, each with the BLAKE3 of its bytes, and everything
// that is wrong with the part: a damaged frame does not keep the others from being
// read. Contents behind the first damage are not among those returned. What cannot
// be read is damaged, too, unless an error is inconclusive (IsInconclusive): that is returned.
// read is called with the stored bytes of each frame, in their order.
func (v *PartVerifier) Verify(p Part, read func(stored int64)) (contents []Content, damages []*DamageError, err error) {
	contents, damages = v.verify(p, read)
	for _, damage := range damages {
		if IsInconclusive(damage) {
			return nil, nil, damage.Err
		}
	}
	return contents, damages, nil
}

func (v *PartVerifier) verify(p Part, read func(stored int64)) (contents []Content, damages []*DamageError) {
	o, err := openPart(v.store, p)
	if err != nil {
		return nil, []*DamageError{asDamage(p, 0, err)}
	}
	defer o.Close()
	frames, err := readTail(o, p)
	if err != nil {
		return nil, []*DamageError{asDamage(p, p.Stored-p.TailStored, err)}
	}
	sc := &partScanner{found: PublishedPart{Part: p}}
	sc.walker = newTarWalker(sc.member)
	v.inOrder(o, p.Name, frames, func(ref frameRef, raw []byte, err error) {
		if err == nil && len(damages) == 0 { // the walker needs every byte before
			err = sc.walk(ref, raw)
		}
		if err != nil {
			damages = append(damages, asDamage(p, ref.StoredOffset, err))
		}
		read(int64(ref.StoredLen))
	})
	if len(damages) == 0 {
		if err := sc.walker.close(); err != nil {
			damages = append(damages, &DamageError{Part: p.Name, StoredOffset: frames[len(frames)-1].StoredOffset, Problem: "wrong tar stream", Err: err})
		}
	}
	return sc.found.Contents, damages
}

// inOrder reads, verifies and decodes frames, and calls use with one after the
// other, each with its raw bytes or with what is wrong with it. It does so itself,
// so that a frame mostly stays in the cache of one core, and leaves frames to others
// where buffers are free: then fewer parts are being read than there are cores.
func (v *PartVerifier) inOrder(o Object, part Digest, frames []frameRef, use func(ref frameRef, raw []byte, err error)) {
	own, spare := v.take()
	before := make(chan struct{}) // closed when the frames before are used
	close(before)
	for _, ref := range frames {
		turn, done := before, make(chan struct{})
		work := func(buffer *frameBuffer) {
			raw, err := buffer.read(o, part, ref, v.dec)
			<-turn
			use(ref, raw, err)
			close(done)
		}
		select {
		case buffer := <-v.free:
			go func() {
				work(buffer)
				v.free <- buffer
			}()
		default:
			work(own)
		}
		before = done
	}
	<-before
	v.free <- own
	v.free <- spare
}

// take returns the buffers of a core: those that are free belong to cores without a part.
func (v *PartVerifier) take() (own, spare *frameBuffer) {
	v.taking.Lock() // nobody else waits for the second one with the first in his hands
	defer v.taking.Unlock()
	return <-v.free, <-v.free
}

// read reads, verifies and decodes a frame. The raw bytes are valid until the next call.
func (b *frameBuffer) read(o Object, part Digest, ref frameRef, dec *zstd.Decoder) ([]byte, error) {
	b.stored = slices.Grow(b.stored[:0], ref.StoredLen)[:ref.StoredLen]
	b.raw = slices.Grow(b.raw[:0], ref.RawLen+decodeSlack)
	return readFrame(o, part, ref, b.stored, b.hash, dec, b.raw)
}

// asDamage returns the *DamageError in err, or one that says that the part
// cannot be read.
func asDamage(p Part, off int64, err error) *DamageError {
	var damage *DamageError
	if errors.As(err, &damage) {
		return damage
	}
	return &DamageError{Part: p.Name, StoredOffset: off, Problem: "it cannot be read", Err: err}
}
