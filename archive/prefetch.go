package archive

import "sync"

// maxPrefetch is how many frames may wait to be decoded ahead.
const maxPrefetch = 256

// prefetcher decodes frames ahead of a sequential reader. Its goroutines run
// only while there is something to do.
type prefetcher struct {
	reader  *Reader
	limit   int64 // raw bytes that may wait or be decoded at a time
	workers int   // goroutines, at most

	mu      sync.Mutex
	queue   []prefetch            // first in, first out
	pending map[frameKey]struct{} // what waits or is being decoded
	used    int64                 // raw bytes of it
	running int                   // goroutines
	closed  bool
	wg      sync.WaitGroup // of the goroutines
}

// prefetch is one frame to decode. Where the frames of the part are not known
// yet, frame is noFrame, and it stands for the raw range that begins there.
type prefetch struct {
	part      Part
	frame     int32
	rawOffset int64
	rawBytes  int64
}

// noFrame is the number of no frame.
const noFrame = -1

func (p *prefetch) key() frameKey { return frameKey{p.part.Name, p.frame} }

func newPrefetcher(r *Reader, limit int64, workers int) *prefetcher {
	return &prefetcher{reader: r, limit: limit, workers: workers, pending: map[frameKey]struct{}{}}
}

// Prefetch has the frames that hold rawBytes of p from rawOffset on decoded in
// the background, by up to GOMAXPROCS goroutines, for a reader that will come
// there. It never blocks: what waits or is being decoded is never more than a
// quarter of the cache, and what is beyond that is left out, as are frames that
// are there or wait already, and whatever is not in the part. Errors are left
// to who reads.
func (r *Reader) Prefetch(p Part, rawOffset, rawBytes int64) {
	rawBytes = min(rawBytes, p.Raw-rawOffset, r.ahead.limit)
	if rawOffset < 0 || rawBytes <= 0 {
		return
	}
	if refs := r.tables.get(&p); refs != nil {
		r.ahead.frames(p, refs, rawOffset, rawBytes)
		return
	}
	r.ahead.add(prefetch{p, noFrame, rawOffset, rawBytes})
}

// frames adds the frames of a range of a part that are not in the cache.
func (a *prefetcher) frames(p Part, refs []frameRef, rawOffset, rawBytes int64) {
	i, err := findFrame(p, refs, rawOffset)
	if err != nil {
		return
	}
	for ; i < len(refs)-1 && refs[i].RawOffset < rawOffset+rawBytes; i++ { // the end frame holds nothing
		job := prefetch{p, int32(i), refs[i].RawOffset, int64(refs[i].RawLen)}
		if !a.reader.frames.has(job.key()) && !a.add(job) {
			return
		}
	}
}

// add queues a job unless it is there, and reports whether there was room.
func (a *prefetcher) add(job prefetch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, there := a.pending[job.key()]; there {
		return true
	}
	if a.closed || len(a.queue) == maxPrefetch || a.used+job.rawBytes > a.limit {
		return false
	}
	a.queue = append(a.queue, job)
	a.pending[job.key()] = struct{}{}
	a.used += job.rawBytes
	if a.running < a.workers {
		a.running++
		a.wg.Go(a.work)
	}
	return true
}

// work decodes frames until none waits.
func (a *prefetcher) work() {
	for {
		job, ok := a.next()
		if !ok {
			return
		}
		f, err := a.reader.frame(job.part, job.rawOffset, true)
		if err == nil {
			f.Release()
		}
		a.done(job)
		if err == nil && job.frame == noFrame {
			if refs := a.reader.tables.get(&job.part); refs != nil {
				a.frames(job.part, refs, job.rawOffset, job.rawBytes)
			}
		}
	}
}

// next takes the next job; without one, the goroutine counts as ended.
func (a *prefetcher) next() (prefetch, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.queue) > 0 {
		job := a.queue[0]
		a.queue = append(a.queue[:0], a.queue[1:]...)
		if a.closed || a.reader.frames.has(job.key()) { // a reader was faster
			a.forget(job)
			continue
		}
		return job, true
	}
	a.running--
	return prefetch{}, false
}

func (a *prefetcher) done(job prefetch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget(job)
}

func (a *prefetcher) forget(job prefetch) {
	delete(a.pending, job.key())
	a.used -= job.rawBytes
}

// close drops what waits and returns when nothing is decoded any more.
func (a *prefetcher) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.wg.Wait()
}
