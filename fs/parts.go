package fs

import (
	"cmp"
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

// parts reads parts. It is safe for concurrent use.
type parts struct {
	*archive.Reader
	passages sync.Pool // of *passage
}

func newParts(s archive.Store, o Options) *parts {
	p := &parts{Reader: archive.NewReader(s, o.CacheSize)}
	p.WatchMemory(o.WatchFrames)
	p.passages.New = func() any { return &passage{parts: p} }
	return p
}

// passage is the reading of one range of a file, and the fuse.ReadResult of it.
// It is used by one goroutine. go-fuse writes the buffer that it gave for the
// answer, so the bytes are copied once here, from the frame, and once by the
// kernel.
type passage struct {
	*parts
	part archive.Part // of the last bytes read
	end  int64        // raw offset behind them
	lost error        // why bytes could not be read where they lie
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

// ReadAt implements index.PartReader.
func (r *passage) ReadAt(p archive.Part, b []byte, rawOffset int64) error {
	r.part, r.end = p, rawOffset+int64(len(b))
	err := r.parts.ReadAt(p, b, rawOffset)
	r.lost = cmp.Or(r.lost, err)
	return err
}

// ahead has what lies behind the range decoded in the background. The chunks
// of a large file mostly lie one behind the other.
func (r *passage) ahead() {
	if r.end > 0 {
		r.Prefetch(r.part, r.end, readAhead)
	}
}
