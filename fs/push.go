package fs

import (
	"sync"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// maxStreams is how many programs that go through a tree are told apart.
	maxStreams = 8
	// streamReach is how far, in inode numbers, a file may lie ahead of what a
	// stream knows, to belong to it, or behind if it is listed; streamBack is how far
	// behind if it is read: several programs that share a work read in about the right order.
	streamReach = 128
	streamBack  = 16
	// minWindow and maxWindow bound how many raw bytes of files are looked at
	// ahead of a stream: more as long as it goes on.
	minWindow = 1 << 20
	maxWindow = 4 << 20
	// maxAheadFiles bounds them where they are tiny.
	maxAheadFiles = 4096
	// maxOwing is how many files are pushed before a program gets its answer, where
	// the background goes on with the others: it stays ahead of the program, and
	// both cores work.
	maxOwing = 8
	// maxUnproved is how many raw bytes are pushed for a stream without a READ
	// that shows that it goes on.
	maxUnproved = 4 * maxWindow
)

// pusher stores small files in the kernel's page cache before the kernel asks
// for them. A program that goes through a tree reads files in the order of
// their inode numbers, by and large, and neighbours lie in one frame: so most
// files of a tree cost no request at all.
//
// To store a page the kernel takes its lock, which it holds while a READ of it
// is under way. So who owes the kernel the answer to a READ must not wait for
// another one who does: only one of them pushes at a time, and the others
// answer at once. That one pushes everything but the file that it owes the answer
// for. Nobody waits for a mutex of a pusher while a page is stored.
//
// A pusher is safe for concurrent use.
//
// See FUSE_NOTIFY_STORE in fs/fuse/dev.c of Linux.
type pusher struct {
	*seen
	snapshots *snapshots
	parts     *parts
	store     func(node uint64, offset int64, data []byte) fuse.Status

	owing sync.Mutex // held by who pushes before it answers

	mu      sync.Mutex
	streams [maxStreams]stream
	clock   uint64
	closed  bool
	wg      sync.WaitGroup // pushing in the background
}

// stream is a sequence of files that somebody seems to read one after another.
type stream struct {
	used     uint64    // by the clock; 0: a free place
	head     index.Ino // up to which it has come
	window   int64     // raw bytes to look at ahead of head; 0: only one READ so far
	unproved int64     // raw bytes pushed since the last READ

	next     index.Ino         // the first file that was not looked at
	ahead    []index.WholeFile // behind head and before next, in their order
	bytes    int64             // in them
	scanning bool              // somebody looks at more
	running  bool              // somebody pushes in the background
}

// close waits for what runs in the background.
func (p *pusher) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
}

// read is called before a READ from the start of a file is answered.
func (p *pusher) read(i index.Ino) {
	p.seen.read(i)
	if s := p.follow(i, true); s != nil {
		p.push(s, i)
	}
}

// listed is called before a request is answered that goes on in the list of a
// directory's files: the kernel has read what there was before.
func (p *pusher) listed(dir uint64) {
	first := p.heard(dir)
	if first == 0 {
		return
	}
	if s := p.follow(first, false); s != nil {
		p.push(s, 0)
	}
}

// follow returns the stream that a file belongs to, moved on to it; nil where
// there is none. A READ that belongs to none may be the start of one.
func (p *pusher) follow(i index.Ino, read bool) *stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock++
	back := index.Ino(streamBack)
	if !read {
		back = streamReach
	}
	oldest := &p.streams[0]
	for k := range p.streams {
		s := &p.streams[k]
		if s.used != 0 && i+back > s.head && i < s.next+streamReach {
			return s.moveOn(i, read, p.clock)
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	if read {
		oldest.start(i, p.clock)
	}
	return nil
}

// start begins a stream at a file, unless somebody works on the one before.
func (s *stream) start(i index.Ino, now uint64) {
	if !s.scanning && !s.running {
		*s = stream{used: now, head: i, next: i + 1}
	}
}

// moveOn moves a stream on to a file that is read, or listed, and returns it if
// there is something to push then. A READ of what lies behind it begins it again. A
// list says little about what was not read before it: the files of directories
// may be read in another order than they lie.
func (s *stream) moveOn(i index.Ino, read bool, now uint64) *stream {
	s.used = now
	if read && i <= s.head {
		s.start(i, now)
		return nil
	}
	passed := i
	if read {
		s.window = min(max(2*s.window, minWindow), maxWindow)
		s.unproved = 0
	} else {
		passed -= min(i, streamReach)
		i-- // that one was not read yet
	}
	s.head = max(s.head, i)
	s.next = max(s.next, i+1)
	s.pass(passed)
	if s.window == 0 {
		return nil
	}
	return s
}

// pass drops the files up to one.
func (s *stream) pass(last index.Ino) {
	n := 0
	for n < len(s.ahead) && s.ahead[n].Ino <= last {
		s.bytes -= s.ahead[n].RawSize
		n++
	}
	s.ahead = s.ahead[n:]
}

// push stores files of the frame where a stream goes on: all of them, or once it
// has gone on for a while the first few, and the others and what lies behind them in
// the background. owed is the file that is read by a READ that is not answered yet, 0
// where there is none.
func (p *pusher) push(s *stream, owed index.Ino) {
	p.mu.Lock()
	inBackground, most := s.window > minWindow, maxAheadFiles
	p.mu.Unlock()
	if inBackground {
		most = maxOwing
	}
	if p.owing.TryLock() {
		p.extend(s, minWindow)
		p.pushFrame(s, owed, 0, most)
		p.owing.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.running || p.closed || !inBackground {
		return
	}
	s.running = true
	p.wg.Go(func() { p.run(s) })
}

// run stores what lies ahead of a stream.
func (p *pusher) run(s *stream) {
	for {
		for p.pushFrame(s, 0, maxWindow, maxAheadFiles) {
		}
		p.extend(s, maxWindow)
		if !p.pushFrame(s, 0, maxWindow, maxAheadFiles) {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.running = false
}

// extend looks at more files ahead of a stream, unless somebody else does.
func (p *pusher) extend(s *stream, most int64) {
	snap := p.snapshots.at(0)
	if snap == nil {
		return
	}
	defer snap.release()
	p.mu.Lock()
	from, room := s.next, min(most, s.window)-s.bytes
	if s.scanning || room <= 0 || len(s.ahead) >= maxAheadFiles {
		p.mu.Unlock()
		return
	}
	s.scanning = true
	p.mu.Unlock()
	found, next := filesFrom(snap.db, from, room)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.scanning = false
	s.next = max(s.next, next)
	for _, f := range found {
		if f.Ino > s.head {
			s.ahead = append(s.ahead, f)
			s.bytes += f.RawSize
		}
	}
}

// filesFrom returns files of one content each, some room bytes of them, from an
// inode on, and the first inode that it did not look at.
func filesFrom(db *index.DB, from index.Ino, room int64) (found []index.WholeFile, next index.Ino) {
	next = from
	err := db.Files(from, streamReach, func(f index.WholeFile) bool {
		found = append(found, f)
		next = f.Ino + 1
		room -= f.RawSize
		return room > 0 && len(found) < maxAheadFiles
	})
	if err != nil || room > 0 {
		next += streamReach // none is there, or can be told
	}
	return found, next
}

// pushFrame stores up to `most` files of the first frame ahead of a stream that has
// any that the kernel knows and has not got, but not the one that is owed, and has so
// many raw bytes from there on decoded in the background. It reports whether there was
// such a frame.
func (p *pusher) pushFrame(s *stream, owed index.Ino, prefetch int64, most int) bool {
	first, ok := p.firstLacking(s, owed)
	if !ok {
		return false
	}
	p.parts.Prefetch(first.Part, first.RawOffset, prefetch)
	frame, err := p.parts.Frame(first.Part, first.RawOffset)
	if err != nil {
		return false // whoever reads the file will learn why
	}
	defer frame.Release()
	for _, f := range p.takeFrame(s, owed, first, frame, most) {
		start := f.RawOffset - frame.RawOffset
		switch p.store(uint64(f.Ino), 0, frame.Raw[start:start+f.RawSize]) {
		case fuse.OK:
			p.stored(f.Ino)
		case fuse.ENOENT:
			p.forget(f.Ino)
		default:
			return false // the connection ends, or the kernel has no memory
		}
	}
	return true
}

// firstLacking returns the first file ahead of a stream that the kernel lacks. The
// one that is owed may lie there, too, where another READ has begun the stream again.
func (p *pusher) firstLacking(s *stream, owed index.Ino) (index.WholeFile, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.unproved > maxUnproved {
		return index.WholeFile{}, false
	}
	for _, f := range s.ahead {
		if f.Ino != owed && p.lacks(f.Ino) {
			return f, true
		}
	}
	return index.WholeFile{}, false
}

// takeFrame returns up to `most` files ahead of a stream that lie in a frame and
// that the kernel lacks, but not the one that is owed, and takes them to be stored.
func (p *pusher) takeFrame(s *stream, owed index.Ino, first index.WholeFile, frame archive.Frame, most int) (taken []index.WholeFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := frame.RawOffset + int64(len(frame.Raw))
	for _, f := range s.ahead {
		if f.RawOffset < frame.RawOffset || f.RawOffset >= end || f.Part.Name != first.Part.Name || f.Ino == owed || !p.lacks(f.Ino) {
			continue
		}
		if len(taken) == most {
			break
		}
		p.take(f.Ino)
		if f.RawOffset+f.RawSize <= end { // else it goes on in the next frame
			taken = append(taken, f)
			s.unproved += f.RawSize
		}
	}
	return taken
}
