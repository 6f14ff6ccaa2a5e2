package backup

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// maxHeaderRaw is the most that the tar header of a content may take: a gap before
// a content that is not larger is its header, a larger one is dead data of which
// the index knows nothing any more.
const maxHeaderRaw = 8 << 10

// tarEndRaw is the zeros that end a part's tar stream.
const tarEndRaw = 2 * tarBlock

// span is where a content lies in a part.
type span struct {
	rawOffset int64
	rawLen    int32
	need      index.Need
}

func (s span) live() bool { return s.need > 0 }

// end returns the raw offset behind the content and its padding.
func (s span) end() int64 {
	return s.rawOffset + int64(s.rawLen) + padding(int64(s.rawLen))
}

// partUse is what a part holds.
type partUse struct {
	archive.Part
	age     int    // 1 of the newest part, one more of each older one
	spans   []span // of the contents that the index knows there, in their order
	seconds []second
	relied  bool  // other parts have seconds of what is read here
	live    int64 // stored bytes that generations need; at least 1 where they need any
	dead    int64 // stored bytes that they do not, estimated frame by frame
	bad     bool  // it is damaged: it stays
}

// wholly reports whether nothing in the part is needed.
func (p *partUse) wholly() bool { return p.live == 0 }

// needed returns how many contents of the part are needed.
func (p *partUse) needed() (n int) {
	for _, s := range p.spans {
		if s.live() {
			n++
		}
	}
	return n
}

// offsets returns where the contents of a need from first to last begin.
func (p *partUse) offsets(first, last index.Need) (list []int64) {
	for _, s := range p.spans {
		if first <= s.need && s.need <= last {
			list = append(list, s.rawOffset)
		}
	}
	return list
}

// mostly reports whether more than half of what is needed of the part has a need.
func (p *partUse) mostly(need index.Need) bool {
	raw := int64(0)
	for _, s := range p.spans {
		switch {
		case s.need == need:
			raw += int64(s.rawLen)
		case s.live():
			raw -= int64(s.rawLen)
		}
	}
	return raw > 0
}

// usage is what the parts of a repository hold. It takes 16 bytes for each content, and 72
// more for each place where one lies that is needed and read elsewhere.
type usage struct {
	parts    []*partUse // oldest first
	stored   int64
	dead     int64
	partSize int64 // stored bytes at which a part ends
	index    index.Usage
}

// measure finds out what generations need, or are going to. damaged is told of each part whose
// tail cannot be read or is wrong; it counts as needed.
func measure(repo *archive.Repository, db *index.DB, damaged func(error)) (*usage, error) {
	u := &usage{partSize: repo.PartSize}
	named := make(map[archive.Digest]*partUse)
	young, err := youngGenerations(db)
	if err != nil {
		return nil, err
	}
	err = db.Parts(func(p archive.Part) bool {
		use := &partUse{Part: p}
		u.parts = append(u.parts, use)
		named[p.Name] = use
		return true
	})
	if err != nil {
		return nil, err
	}
	var first *partUse // where the content is read, and
	var at int64       // its raw offset there
	u.index, err = db.Live(func(p archive.Placement, need index.Need, again bool) error {
		use := named[p.Part]
		switch {
		case again && need > 0:
			first.relied = true
			use.seconds = append(use.seconds, second{p.Content, use, first, at})
			need = 0
		case !again:
			first, at = use, p.RawOffset
			if need == 0 && young[p.Record] {
				need = awaited
			}
		}
		use.spans = append(use.spans, span{p.RawOffset, int32(p.RawLen), need})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, p := range u.parts {
		p.age = len(u.parts) - i
		var damage *archive.DamageError
		if err := p.measure(repo.Store()); errors.As(err, &damage) {
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

// awaited is the need of a content that a generation named and does not need itself, for
// awaitedLasts. An interrupted run stored it, maybe one of another source: its next run may
// need it.
const (
	awaited      index.Need = math.MaxUint32
	awaitedLasts            = 7 * 24 * time.Hour
)

// youngGenerations returns the numbers of the generations that are not older than
// awaitedLasts, or that far ahead.
func youngGenerations(db *index.DB) (map[uint64]bool, error) {
	generations, err := db.Generations()
	young := make(map[uint64]bool)
	for _, g := range generations {
		young[g.Number] = time.Since(g.Time).Abs() < awaitedLasts
	}
	return young, err
}

// measure computes live and dead. Only a part that holds both has its tail read, and one
// that is relied on.
func (p *partUse) measure(store archive.Store) error {
	slices.SortFunc(p.spans, func(a, b span) int { return cmp.Compare(a.rawOffset, b.rawOffset) })
	liveRaw, live := int64(tarEndRaw), false
	for _, s := range p.spans {
		if s.live() {
			live = true
			liveRaw += s.end() - s.rawOffset + tarBlock
		}
	}
	if !live {
		p.dead = p.Stored
		return nil
	}
	p.live = p.Stored
	all := liveRaw == p.Raw
	if all && !p.relied {
		return nil
	}
	frames, err := archive.Frames(store, p.Part)
	if err != nil || all {
		return err
	}
	p.live, p.dead = split(frames, p.spans)
	p.live = max(p.live, 1) // shares of frames are rounded down
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
			if s.live() {
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
// nothing is needed first, those that need not be compared with others before all. Small
// parts to merge come last.
func (u *usage) plan(maxDead float64) []*partUse {
	var list []*partUse
	for _, p := range u.parts {
		if p.dead > 0 && !p.bad {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b *partUse) int { return cmp.Compare(b.gain(), a.gain()) })
	stored, dead := u.stored, u.dead
	n := 0
	for _, p := range list {
		if !p.wholly() && float64(dead) <= maxDead*float64(stored) {
			break
		}
		stored -= p.dead
		dead -= p.dead
		n++
	}
	return append(list[:n:n], u.merges(list[:n])...)
}

// gain is what a part is worth: the space that comes back, and how long it has
// been there, which tells how long its survivors are going to live, over the cost
// of writing them again (Rosenblum and Ousterhout, The Design and Implementation
// of a Log-Structured File System, 1992; reading is not what costs here).
func (p *partUse) gain() float64 {
	switch {
	case p.wholly() && len(p.seconds) == 0:
		return 2e300
	case p.wholly():
		return 1e300
	}
	return float64(p.dead) * float64(p.age) / float64(p.live)
}

// Every run leaves a small part or some, and those of which all stays needed
// would never go. So when there are more than mostSmall of them, the smallest are
// merged, and leftSmall stay. The larger ones wait until there are as many of
// their size: a content is copied once for each time that its part grows about
// sixtyfold, not with each merge.
const (
	mostSmall  = 128
	leftSmall  = 64
	smallShare = 4 // a small part is one of less than the part size over this
)

// merges returns the small parts to merge, apart from those that are compacted
// anyway: of those that mostly hold what is current, since others go with the
// generations that need them. The newest parts may go as soon, and stay.
func (u *usage) merges(planned []*partUse) []*partUse {
	var small []*partUse
	for _, p := range u.parts {
		if p.age > mostSmall && p.Stored < u.partSize/smallShare && !p.bad && p.mostly(u.index.Current) && !slices.Contains(planned, p) {
			small = append(small, p)
		}
	}
	if len(small) <= mostSmall {
		return nil
	}
	slices.SortStableFunc(small, func(a, b *partUse) int { return cmp.Compare(a.Stored, b.Stored) })
	return small[:len(small)-leftSmall]
}
