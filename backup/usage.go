package backup

import (
	"cmp"
	"errors"
	"slices"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// maxHeaderRaw is the most that the tar header of a content may take: a gap before
// a content that is not larger is its header, a larger one is dead data of which
// the index knows nothing any more.
const maxHeaderRaw = 8 << 10

const (
	tarBlockRaw = 512
	tarEndRaw   = 1024 // the zeros that end a part's tar stream
)

// span is where a content lies in a part.
type span struct {
	rawOffset int64
	rawLen    int32
	live      bool
}

// end returns the raw offset behind the content and its padding.
func (s span) end() int64 {
	return s.rawOffset + (int64(s.rawLen)+tarBlockRaw-1)/tarBlockRaw*tarBlockRaw
}

// partUse is what a part holds.
type partUse struct {
	archive.Part
	age   int    // 1 of the newest part, one more of each older one
	spans []span // of the contents that the index knows there, in their order
	live  int64  // stored bytes that generations need
	dead  int64  // stored bytes that they do not, estimated frame by frame
	bad   bool   // it is damaged: it stays
}

// wholly reports whether nothing in the part is needed.
func (p *partUse) wholly() bool { return p.live == 0 }

// offsets returns where the contents begin that generations need.
func (p *partUse) offsets() (list []int64) {
	for _, s := range p.spans {
		if s.live {
			list = append(list, s.rawOffset)
		}
	}
	return list
}

// usage is what the parts of a repository hold. It takes 16 bytes for each content.
type usage struct {
	parts  []*partUse // oldest first
	stored int64
	dead   int64
	index  index.Usage
}

// measure finds out what generations need. damaged is told of each part whose
// tail cannot be read or is wrong; it counts as needed.
func measure(store archive.Store, db *index.DB, damaged func(error)) (*usage, error) {
	u := &usage{}
	named := make(map[archive.Digest]*partUse)
	err := db.Parts(func(p archive.Part) bool {
		use := &partUse{Part: p}
		u.parts = append(u.parts, use)
		named[p.Name] = use
		return true
	})
	if err != nil {
		return nil, err
	}
	u.index, err = db.Live(func(p archive.Part, c archive.Content, live bool) error {
		use := named[p.Name]
		use.spans = append(use.spans, span{c.RawOffset, int32(c.RawLen), live})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, p := range u.parts {
		p.age = len(u.parts) - i
		var damage *archive.DamageError
		if err := p.measure(store); errors.As(err, &damage) {
			p.live, p.dead, p.bad = p.Stored, 0, true
			damaged(err)
		} else if err != nil {
			return nil, err
		}
		u.stored += p.Stored
		u.dead += p.dead
	}
	return u, nil
}

// measure computes live and dead. Only a part that holds both has its tail read.
func (p *partUse) measure(store archive.Store) error {
	slices.SortFunc(p.spans, func(a, b span) int { return cmp.Compare(a.rawOffset, b.rawOffset) })
	liveRaw, live := int64(tarEndRaw), false
	for _, s := range p.spans {
		if s.live {
			live = true
			liveRaw += s.end() - s.rawOffset + tarBlockRaw
		}
	}
	switch {
	case !live:
		p.dead = p.Stored
		return nil
	case liveRaw == p.Raw:
		p.live = p.Stored
		return nil
	}
	frames, err := archive.Frames(store, p.Part)
	if err != nil {
		return err
	}
	p.live, p.dead = split(frames, p.spans)
	return nil
}

// split divides the stored bytes of frames into those of contents that are live,
// with their headers, and the others. The share in a frame is that of raw bytes.
func split(frames []archive.PartFrame, spans []span) (live, dead int64) {
	var start, end int64 // of a live content, with its header
	before := int64(0)   // end of the content before it
	next := 0
	advance := func() bool {
		for ; next < len(spans); next++ {
			s := spans[next]
			start, end = max(before, s.rawOffset-maxHeaderRaw), s.end()
			before = end
			if s.live {
				next++
				return true
			}
		}
		return false
	}
	more := advance()
	for _, f := range frames {
		raw := int64(0)
		frameEnd := f.RawOffset + f.RawLen
		for more && start < frameEnd {
			raw += max(0, min(end, frameEnd)-max(start, f.RawOffset))
			if end > frameEnd {
				break
			}
			more = advance()
		}
		part := f.StoredLen * raw / f.RawLen
		live += part
		dead += f.StoredLen - part
	}
	return live, dead
}

// plan returns the parts to compact, in the order in which it is worth most, so
// that at most the share maxDead of what is left is dead: the parts of which
// nothing is needed first.
func (u *usage) plan(maxDead float64) []*partUse {
	var list []*partUse
	for _, p := range u.parts {
		if p.dead > 0 && !p.bad {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b *partUse) int { return cmp.Compare(b.gain(), a.gain()) })
	stored, dead := u.stored, u.dead
	for i, p := range list {
		if !p.wholly() && float64(dead) <= maxDead*float64(stored) {
			return list[:i]
		}
		stored -= p.dead
		dead -= p.dead
	}
	return list
}

// gain is what a part is worth: the space that comes back, and how long nothing
// has died in it, so that its survivors will not soon be copied again, over the
// cost of reading all and writing what is live (Rosenblum and Ousterhout, The
// Design and Implementation of a Log-Structured File System, 1992).
func (p *partUse) gain() float64 {
	if p.wholly() {
		return 1e300
	}
	return float64(p.dead) * float64(p.age) / float64(p.Stored+p.live)
}
