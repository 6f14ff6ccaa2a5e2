package fs

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/backupfs/backupfs/archive"
)

const (
	// sequentialRead is the least size of a READ that tells of a program that
	// goes through a file: the kernel reads so much only if it reads ahead.
	sequentialRead = 128 << 10
	// readAhead is how many raw bytes behind such a READ are decoded ahead.
	readAhead = 8 << 20
	// releaseInterval is how often parts that were removed are let go.
	releaseInterval = time.Minute
)

// parts reads parts and remembers which, so that those which a compaction has
// removed can be closed: until then they take their space on the disk. It is
// safe for concurrent use.
type parts struct {
	*archive.Reader
	store archive.Store

	mu   sync.Mutex
	read map[archive.Digest]struct{}
}

func newParts(s archive.Store, cacheSize int64) *parts {
	return &parts{Reader: archive.NewReader(s, cacheSize), store: s, read: make(map[archive.Digest]struct{})}
}

// releaseRemoved closes the parts that are no longer in the store.
func (p *parts) releaseRemoved() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.read {
		if object, err := p.store.Open(archive.PartStoreName(name)); err == nil {
			object.Close()
		} else if errors.Is(err, fs.ErrNotExist) {
			p.Forget(name)
			delete(p.read, name)
		}
	}
}

// passage is the reading of one range of a file. It is used by one goroutine.
type passage struct {
	*parts
	part archive.Part // of the last bytes read
	end  int64        // raw offset behind them
}

// ReadAt implements index.PartReader.
func (r *passage) ReadAt(p archive.Part, b []byte, rawOffset int64) error {
	if p.Name != r.part.Name {
		r.mu.Lock()
		r.read[p.Name] = struct{}{}
		r.mu.Unlock()
	}
	r.part, r.end = p, rawOffset+int64(len(b))
	return r.parts.ReadAt(p, b, rawOffset)
}

// ahead has what lies behind the range decoded in the background. The chunks
// of a large file mostly lie one behind the other.
func (r *passage) ahead() {
	if r.end > 0 {
		r.Prefetch(r.part, r.end, readAhead)
	}
}
