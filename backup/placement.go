package backup

import (
	"errors"
	"slices"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// temperature tells how soon a content is expected to be of no use. Contents of
// one temperature gather in the same parts, so that dead bytes gather in few,
// and a compaction has little to copy.
type temperature int

const (
	cold         temperature = iota // new data, and what replaces a content that lived long
	warm                            // what replaces one that lived about a week: it dies with what a week's end pins
	hot                             // what replaces one that lived a day: all of it dies at once, or none
	temperatures                    // how many there are
)

// The life of a replaced content below which its successor is hot or warm: it
// will hardly live longer (SepBIT: Wang et al., Separating Data via Block
// Invalidation Time Inference, USENIX FAST 2022). The bounds are those of a tree
// that is backed up every night, or more often, with some hours to spare.
const (
	hotLife  = 36 * time.Hour
	warmLife = 8 * 24 * time.Hour
)

func temperatureAfter(life time.Duration) temperature {
	switch {
	case life < hotLife:
		return hot
	case life < warmLife:
		return warm
	}
	return cold
}

// placement finds the temperature of contents by the age of those that they
// replace. It is used by one goroutine.
type placement struct {
	db   *index.DB
	now  time.Time          // of the generation that is made
	gens []index.Generation // of all sources, by number
	old  *index.Dirent      // the file that is replaced; nil where there is none
}

// replace says which file the contents to come are of, and what was there before.
func (p *placement) replace(old *index.Dirent) {
	p.old = nil
	if old != nil && old.Attr.Type == archive.TypeFile {
		p.old = old
	}
}

// of returns the temperature of the content of a range of the file, which has
// size bytes. What is behind the old end of a file is new. The last chunk of a
// file that grows replaces the one that was the last before.
func (p *placement) of(r byteRange, size int64) (temperature, error) {
	if p.old == nil || p.old.Attr.Size == 0 {
		return cold, nil
	}
	at, last := r.start, r.end == size
	if last {
		at = min(at, p.old.Attr.Size-1)
	}
	e, ok, err := p.db.ExtentAt(p.old.Ino, at)
	if err != nil || !ok || !last && e.Offset >= r.end {
		return cold, err
	}
	if grown := size > p.old.Attr.Size; grown && !last && e.Offset+e.Len == p.old.Attr.Size {
		return cold, nil // the last chunk is a whole one now, and will stay
	}
	record, err := p.db.PlacedBy(e.Hash)
	if errors.Is(err, index.ErrNotFound) {
		return cold, nil
	}
	if err != nil {
		return cold, err
	}
	return temperatureAfter(p.now.Sub(p.timeOf(record))), nil
}

// timeOf returns the time of the first generation from a log record on that was
// not forgotten, which is that of the record or later.
func (p *placement) timeOf(record uint64) time.Time {
	i, _ := slices.BinarySearchFunc(p.gens, record, func(g index.Generation, record uint64) int {
		return int(int64(g.Number) - int64(record))
	})
	if i == len(p.gens) {
		return p.now
	}
	return p.gens[i].Time
}

// packerOf returns the packer of a temperature, which is made when it is first
// needed.
func (c *creation) packerOf(t temperature) *archive.Packer {
	if c.options.Unplaced {
		t = cold
	}
	if c.packers[t] == nil {
		c.packers[t] = archive.NewPacker(c.repo.Store(), archive.PackerOptions{PartStored: c.repo.PartSize, Workers: c.options.Threads}, c.recordPart)
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
