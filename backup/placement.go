package backup

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// temperature tells how soon a content is expected to be of no use. Contents of
// one temperature gather in the same parts, so that dead bytes gather in few,
// and a compaction has little to copy. It is 0 of what replaces nothing. Of what
// replaces a content, two things count: how long that one lived, which its successor
// will hardly outlive (SepBIT: Wang et al., Separating Data via Block Invalidation
// Time Inference, USENIX FAST 2022), and how many versions of the file are kept.
type temperature int

const day = 24 * time.Hour

// lives and versions are the bounds between temperatures; each is about twice the
// one before. The first of lives is that of a tree that is backed up every night,
// or more often, with some hours to spare.
var (
	lives    = [...]time.Duration{36 * time.Hour, 4 * day, 8 * day, 16 * day, 32 * day}
	versions = [...]int{3, 6}
)

const temperatures = 1 + (len(lives)+1)*(len(versions)+1) // how many there are

// temperatureAfter returns the temperature of what replaces a content after its
// life, in a file of which so many versions are kept.
func temperatureAfter(life time.Duration, kept int) temperature {
	rank := 0
	for _, bound := range lives {
		if life >= bound {
			rank++
		}
	}
	for _, bound := range versions {
		if kept >= bound {
			rank += len(lives) + 1
		}
	}
	return temperature(1 + rank)
}

// placement finds the temperature of contents by the age of those that they
// replace. It is used by one goroutine.
type placement struct {
	db     *index.DB
	now    time.Time           // of the generation that is made
	gens   []index.Generation  // of all sources, by number
	source index.Timeline      // of the source
	old    *index.Dirent       // the file that is replaced; nil where there is none
	kept   func() (int, error) // how many versions of that file there are
}

// replace says which file the contents to come are of, and what was there before.
func (p *placement) replace(path string, old *index.Dirent) {
	p.old = nil
	if old == nil || old.Attr.Type != archive.TypeFile {
		return
	}
	p.old = old
	p.kept = sync.OnceValues(func() (int, error) {
		list, err := p.source.Versions(path)
		return len(list), err
	})
}

// of returns the temperature of the content of a range of the file, which has
// size bytes. What is behind the old end of a file is new. The last chunk of a
// file that grows replaces the one that was the last before.
func (p *placement) of(r byteRange, size int64) (temperature, error) {
	if p.old == nil || p.old.Attr.Size == 0 {
		return 0, nil
	}
	at, last := r.start, r.end == size
	if last {
		at = min(at, p.old.Attr.Size-1)
	}
	e, ok, err := p.db.ExtentAt(p.old.Ino, at)
	if err != nil || !ok || !last && e.Offset >= r.end {
		return 0, err
	}
	if grown := size > p.old.Attr.Size; grown && !last && e.Offset+e.Len == p.old.Attr.Size {
		return 0, nil // the last chunk is a whole one now, and will stay
	}
	record, err := p.db.PlacedBy(e.Hash)
	if errors.Is(err, index.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	kept, err := p.kept()
	return temperatureAfter(p.now.Sub(p.timeOf(record)), kept), err
}

// timeOf returns the time of the first generation from a log record on that was
// not forgotten, which is that of the record or later.
func (p *placement) timeOf(record uint64) time.Time {
	i, _ := slices.BinarySearchFunc(p.gens, record, func(g index.Generation, record uint64) int {
		return cmp.Compare(g.Number, record)
	})
	if i == len(p.gens) {
		return p.now
	}
	return p.gens[i].Time
}

// packerOf returns the packer of a temperature, which is made when it is first needed.
func (c *creation) packerOf(t temperature) *archive.Packer {
	if c.options.Unplaced {
		t = 0
	}
	if c.packers[t] == nil {
		c.packers[t] = c.pool.NewPacker(c.repo.Store(), c.recordPart)
	}
	return c.packers[t]
}

// closePackers finishes the parts of all temperatures.
func (c *creation) closePackers() error {
	for _, p := range c.packers {
		if p == nil {
			continue
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}
