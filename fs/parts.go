package fs

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// sequentialRead is the least size of a READ that may be of a program that
	// goes through a file: the kernel reads so much only if it reads ahead, or
	// is asked for so much at once.
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

	passages sync.Pool // of *passage

	mu   sync.Mutex
	read map[archive.Digest]struct{}
}

func newParts(s archive.Store, o Options) *parts {
	p := &parts{Reader: archive.NewReader(s, o.CacheSize), store: s, read: make(map[archive.Digest]struct{})}
	p.WatchMemory(o.WatchFrames)
	p.passages.New = func() any { return &passage{parts: p} }
	return p
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

// passage is the reading of one range of a file, and the fuse.ReadResult of it.
// It is used by one goroutine. go-fuse writes the buffer that it gave for the
// answer, so the bytes are copied once here, from the frame, and once by the
// kernel.
type passage struct {
	*parts
	part archive.Part // of the last bytes read
	end  int64        // raw offset behind them
	data []byte       // what was read, in go-fuse's buffer
}

// passage returns a passage that is used until Done.
func (p *parts) passage() *passage { return p.passages.Get().(*passage) }

// Done implements fuse.ReadResult.
func (r *passage) Done() {
	*r = passage{parts: r.parts}
	r.passages.Put(r)
}

// Size implements fuse.ReadResult.
func (r *passage) Size() int { return len(r.data) }

// Bytes implements fuse.ReadResult.
func (r *passage) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }

// Frame is archive.Reader.Frame.
func (p *parts) Frame(part archive.Part, rawOffset int64) (archive.Frame, error) {
	p.remember(part)
	return p.Reader.Frame(part, rawOffset)
}

func (p *parts) remember(part archive.Part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read[part.Name] = struct{}{}
}

// ReadAt implements index.PartReader.
func (r *passage) ReadAt(p archive.Part, b []byte, rawOffset int64) error {
	if p.Name != r.part.Name {
		r.remember(p)
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
