package backup

import (
	"errors"
	"os"
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
	hot                             // what replaces a content that lived shortly
	temperatures                    // how many there are
)

// hotLife is the life of a replaced content below which its successor counts as
// hot: it will hardly live longer (SepBIT: Wang et al., Separating Data via Block
// Invalidation Time Inference, USENIX FAST 2022).
var hotLife = func() time.Duration {
	d, _ := time.ParseDuration(os.Getenv("HOTLIFE"))
	return d
}()

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

// of returns the temperature of a range of the file, which has size bytes. At the end of a file that grows, what comes after its old end is as cold as
// anything new, but the last chunk of it is going to be replaced as the one before it was.
func (p *placement) of(r byteRange, size int64) (temperature, error) {
	if p.old == nil || p.old.Attr.Size == 0 {
		return cold, nil
	}
	at := r.start
	if r.end == size {
		at = min(r.start, p.old.Attr.Size-1)
	}
	e, ok, err := p.db.ExtentAt(p.old.Ino, at)
	if err != nil || !ok || e.Offset >= r.end && r.end != size {
		return cold, err
	}
	if r.end < size && e.Offset+e.Len == p.old.Attr.Size && size > p.old.Attr.Size {
		return cold, nil // the old end has become a whole chunk
	}
	record, err := p.db.PlacedBy(e.Hash)
	if errors.Is(err, index.ErrNotFound) {
		return cold, nil
	}
	if err != nil {
		return cold, err
	}
	if p.now.Sub(p.timeOf(record)) < hotLife {
		return hot, nil
	}
	return cold, nil
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
