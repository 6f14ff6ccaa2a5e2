package archive

import (
	"errors"
	"io/fs"

	"github.com/zeebo/blake3"
)

// PartVerifier reads whole parts. It holds a frame at a time and the list of a
// part's contents, and is used by one goroutine.
type PartVerifier struct {
	store   Store
	scanner partScanner
}

// NewPartVerifier returns a PartVerifier of the parts in s.
func NewPartVerifier(s Store) (*PartVerifier, error) {
	dec, err := newFrameDecoder(1)
	if err != nil {
		return nil, err
	}
	return &PartVerifier{store: s, scanner: partScanner{dec: dec, hash: blake3.New()}}, nil
}

// Verify reads all of p: the tail must have its digest, every frame must have
// the digest that the tail gives it and must decode, and the tar stream must be
// whole. The tail names the frames one behind the other up to itself, so no byte
// of the part escapes, and there is no need to compute the SHA-256 that is its name.
//
// It returns the contents found, each with the BLAKE3 of its bytes, which are
// valid until the next call, and everything that is wrong with the part: a
// damaged frame does not keep the others from being read. Contents behind the
// first damage are not among those returned. What cannot be read is damaged,
// too; only a part that may not be opened is an error, which wraps
// fs.ErrPermission. read is called with the stored bytes of each frame.
func (v *PartVerifier) Verify(p Part, read func(stored int64)) (contents []Content, damages []*DamageError, err error) {
	o, err := openPart(v.store, p)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil, err
	}
	if err != nil {
		return nil, []*DamageError{asDamage(p, 0, err)}, nil
	}
	defer o.Close()
	frames, err := readTail(o, p)
	if err != nil {
		return nil, []*DamageError{asDamage(p, p.Stored-p.TailStored, err)}, nil
	}
	sc := &v.scanner
	sc.object, sc.frames = o, frames
	sc.found = PublishedPart{Part: p, Contents: sc.found.Contents[:0]}
	sc.walker = newTarWalker(sc.member)
	for _, ref := range frames {
		if err := sc.frame(ref); err != nil {
			damages = append(damages, asDamage(p, ref.StoredOffset, err))
			sc.walker = nil // it needs every byte before
		}
		read(int64(ref.StoredLen))
	}
	if sc.walker != nil {
		if err := sc.walker.close(); err != nil {
			damages = append(damages, &DamageError{Part: p.Name, StoredOffset: frames[len(frames)-1].StoredOffset, Problem: "wrong tar stream", Err: err})
		}
	}
	return sc.found.Contents, damages, nil
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
