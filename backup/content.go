package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/backupfs/backupfs/archive"
)

// clockGrain is how far apart two changes must be to be sure to have different
// times: the kernel's clock for files ticks every 10 ms at the least. Some file systems
// keep whole seconds (ext4 with inodes of 128 bytes, old servers of NFS), or even ones (FAT).
const (
	clockGrain  = 20 * time.Millisecond
	secondGrain = 2 * time.Second
)

// grainOf returns the clockGrain of the file system that a file seems to be on.
func grainOf(a archive.Attr) time.Duration {
	if a.Ctime.Nsec == 0 {
		return secondGrain
	}
	return clockGrain
}

// readTries is how often a file is read that changes meanwhile.
const readTries = 2

// retryLimit is the raw size above which a file that changes is not read again.
const retryLimit = 16 << 20

var errReplaced = errors.New("was replaced by something that is no file while it was backed up")

// readFile reads a regular file and stores its contents. The entry has the
// attributes that the file had before it was read, so that the next run sees
// whatever changed since; Changed tells that something did.
func (c *creation) readFile(dir int, name, path string) (archive.Entry, error) {
	for try := 1; ; try++ {
		entry, err := c.readOnce(dir, name, path)
		if err != nil || !entry.Changed || try == readTries || entry.Attr.Size > retryLimit {
			return entry, err
		}
	}
}

func (c *creation) readOnce(dir int, name, path string) (archive.Entry, error) {
	fd, err := openBeneath(dir, name, unix.O_RDONLY, &c.leases)
	if err != nil {
		return archive.Entry{}, err
	}
	defer unix.Close(fd)
	st, err := settled(fd)
	if err != nil {
		return archive.Entry{}, err
	}
	if st.Type != archive.TypeFile {
		return archive.Entry{}, errReplaced
	}
	if st.Size > maxRaw-c.summary.RawBytes { // it has grown since the directory was read
		return archive.Entry{}, errTooMuch
	}
	hides := young(st.Attr) > 0
	entry := archive.Entry{Path: path, Attr: st.Attr, Group: c.devices.group(&st)}
	if entry.Xattrs, err = xattrsOf(fd).read(); err != nil {
		return archive.Entry{}, err
	}
	if err := c.readData(fd, st, &entry); err != nil {
		return archive.Entry{}, err
	}
	after, err := statBeneath(fd, "")
	if err != nil {
		return archive.Entry{}, err
	}
	entry.Changed = entry.Changed || after.Attr != st.Attr
	if hides {
		entry.Attr = neverSame(entry.Attr)
	}
	return entry, nil
}

// settled returns the attributes of an open file, once a change to come could
// not hide behind the same time, if it rests for that long.
func settled(fd int) (inode, error) {
	st, err := statBeneath(fd, "")
	if err != nil {
		return inode{}, err
	}
	wait := young(st.Attr)
	if wait == 0 {
		return st, nil
	}
	time.Sleep(wait)
	return statBeneath(fd, "")
}

// young returns for how long a change could still hide behind the time of the last
// change of a file.
func young(a archive.Attr) time.Duration {
	grain := grainOf(a)
	age := time.Since(a.Ctime.Time())
	if age > grain || age < -grain {
		return 0
	}
	return grain - age
}

// neverSame returns attributes that no file has: the next run reads it again.
func neverSame(a archive.Attr) archive.Attr {
	a.Ctime = archive.Timespec{}
	return a
}

// lasting returns attributes to store with what is read next. No change to come hides
// behind the time in them: that has passed, after a moment of waiting, or no file has them.
func lasting(a archive.Attr) archive.Attr {
	wait := young(a)
	if wait > clockGrain {
		return neverSame(a)
	}
	time.Sleep(wait)
	return a
}

// readData stores the data of an open file and adds its extents to the entry.
func (c *creation) readData(fd int, st inode, entry *archive.Entry) error {
	if st.Size == 0 {
		return nil
	}
	ranges, err := dataRanges(c.ctx, fd, st.Size, maxRanges)
	if err != nil {
		return err
	}
	if st.Size < largeFile && len(ranges) == 1 && ranges[0] == (byteRange{0, st.Size}) {
		return c.readSmall(fd, st, entry)
	}
	return c.readRanges(fd, st.Size, ranges, entry)
}

// readRanges stores ranges of a file up to where it shrank, even if it has grown again
// since.
func (c *creation) readRanges(fd int, size int64, ranges []byteRange, entry *archive.Entry) error {
	for _, r := range ranges {
		if err := c.readRange(fd, size, r, entry); err != nil || entry.Changed {
			return err
		}
	}
	return nil
}

// readSmall stores a whole file as one content.
func (c *creation) readSmall(fd int, st inode, entry *archive.Entry) error {
	if c.small == nil {
		c.small = make([]byte, largeFile)
	}
	n, err := io.ReadFull(&fileReader{c: c, fd: fd, end: st.Size}, c.small[:st.Size])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if int64(n) < st.Size { // it shrank
		entry.Changed = true
		entry.Attr.Size = int64(n)
	}
	if n == 0 {
		return nil
	}
	a := entry.Attr
	hash := archive.HashOf(c.small[:n])
	err = c.store(hash, c.small[:n], byteRange{0, int64(n)}, int64(n), archive.Member{Name: entry.Path, Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime})
	if err != nil {
		return err
	}
	entry.Data = append(entry.Data, archive.Extent{Offset: 0, Len: int64(n), Hash: hash})
	return nil
}

// readRange stores a range of a file in chunks.
func (c *creation) readRange(fd int, size int64, r byteRange, entry *archive.Entry) error {
	offset := r.start
	err := c.chunks.each(&fileReader{c: c, fd: fd, offset: r.start, end: r.end}, chunkSizesFor(size), func(chunk []byte) error {
		hash := archive.HashOf(chunk)
		place := byteRange{offset, offset + int64(len(chunk))}
		m := archive.Member{Name: archive.ChunkName(hash), Mode: 0o600, UID: entry.Attr.UID, GID: entry.Attr.GID, Mtime: entry.Attr.Mtime}
		if err := c.store(hash, chunk, place, size, m); err != nil {
			return err
		}
		entry.Data = append(entry.Data, archive.Extent{Offset: offset, Len: int64(len(chunk)), Hash: hash})
		offset += int64(len(chunk))
		return nil
	})
	if err != nil {
		return err
	}
	if offset < r.end { // it shrank
		entry.Changed = true
		entry.Attr.Size = offset
	}
	return nil
}

// store stores a content, unless it is there already. It is at place in a file of
// size bytes.
func (c *creation) store(hash archive.Hash, content []byte, place byteRange, size int64, m archive.Member) error {
	known, err := c.known(hash, len(content))
	if known || err != nil {
		return err
	}
	t, err := c.placement.of(place, size)
	if err != nil {
		return fatal{err}
	}
	if err := c.packerOf(t).Add(m, hash, content); err != nil {
		return fatal{err}
	}
	c.stored[hash] = struct{}{}
	return nil
}

// byteRange is a range of a file, end exclusive.
type byteRange struct {
	start, end int64
}

// maxRanges bounds the ranges of a file between holes, each of which takes some 430 bytes
// of memory (measured): 524,288. Files of virtual machines have a few thousand.
const maxRanges = 512 << 10

// smallHole is the most bytes of a hole that is read as zeros in a file of very many ranges.
// To read any hole might never end: a small file may have exabytes of them.
const smallHole = 64 << 10

var errManyRanges = fmt.Errorf("is not stored: its data lies in more than %d ranges with holes of more than %d KiB between them; a copy that `cp --sparse=never` makes has no holes", maxRanges/2, smallHole>>10)

// dataRanges returns the ranges of a file that are not holes, most of them at the most. The
// number of its blocks does not tell that it has none: those of large extended attributes count. Where
// there are more, small holes count as data.
func dataRanges(ctx context.Context, fd int, size int64, most int) ([]byteRange, error) {
	var ranges []byteRange
	for end := int64(0); end < size; {
		if err := ctx.Err(); err != nil {
			return nil, fatal{err}
		}
		start, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if err == unix.ENXIO { // nothing but a hole up to the end
			break
		}
		if err == unix.EINVAL || err == unix.ENOTSUP { // the file system cannot tell
			return []byteRange{{0, size}}, nil
		}
		if err != nil {
			return nil, err
		}
		if end, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil && err != unix.ENXIO {
			return nil, err
		}
		if err == unix.ENXIO { // it shrank behind our back
			end = size
		}
		if start >= size {
			break
		}
		if len(ranges) == most {
			if ranges = joined(ranges); len(ranges) > most/2 {
				return nil, errManyRanges
			}
		}
		ranges = append(ranges, byteRange{start, min(end, size)})
	}
	return ranges, nil
}

// joined fills small holes.
func joined(ranges []byteRange) []byteRange {
	list := ranges[:1]
	for _, r := range ranges[1:] {
		if last := &list[len(list)-1]; r.start-last.end <= smallHole {
			last.end = r.end
		} else {
			list = append(list, r)
		}
	}
	return list
}

// maxBurst is the most bytes read at once where the rate is limited.
const maxBurst = 1 << 20

// newLimiter returns the limiter of a rate in bytes per second, nil for 0.
func newLimiter(perSecond int64) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(min(max(perSecond/4, 4<<10), maxBurst)))
}

// fileReader reads a range of an open file. An error of the file is returned as
// it is; an interrupt is fatal.
type fileReader struct {
	c           *creation
	fd          int
	offset, end int64
}

func (r *fileReader) Read(b []byte) (int, error) {
	if err := r.c.ctx.Err(); err != nil {
		return 0, fatal{err}
	}
	if b = b[:min(int64(len(b)), r.end-r.offset)]; len(b) == 0 {
		return 0, io.EOF
	}
	if r.c.limiter != nil {
		b = b[:min(len(b), r.c.limiter.Burst())]
	}
	for {
		n, err := unix.Pread(r.fd, b, r.offset)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		r.offset += int64(n)
		r.c.summary.ReadBytes += int64(n)
		r.c.options.Progress.bytes.Add(int64(n))
		return n, r.c.wait(n)
	}
}

// wait waits until the rate allows for n more bytes, at most a burst.
func (c *creation) wait(n int) error {
	if c.limiter == nil {
		return nil
	}
	if err := c.limiter.WaitN(c.ctx, n); err != nil {
		return fatal{err}
	}
	return nil
}
