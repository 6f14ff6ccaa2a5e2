package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// Difference is a path where a live tree is not what the backup says.
type Difference struct {
	Path string // of the generation
	Kind DifferenceKind
	What string // what differs
}

// DifferenceKind says how a difference is to be judged.
type DifferenceKind int

// The kinds of differences.
const (
	Silent     DifferenceKind = iota // it looks unchanged: one of the two is damaged
	Since                            // it was changed, or removed, since the backup
	NotStored                        // it is not in the backup: new, or left out
	Uncompared                       // it cannot be read
)

// comparison compares one generation with a live tree.
type comparison struct {
	*checking
	view   index.View
	own    ownDir
	leases patience
	buffer []byte
	chunk  []byte
}

// against compares the newest generation of the source with a live tree: types,
// attributes, extended attributes and all contents, by hash. Inode numbers, link
// counts, sizes of directories and change times are not compared, so that a
// restored copy is equal to its backup.
func (c *checking) against() error {
	gens, err := c.db.Generations()
	if err != nil {
		return err
	}
	of := index.OfSource(gens, c.options.Source)
	if len(of) == 0 {
		return fmt.Errorf("%w of the source %q to compare with %s: `mkbackup list` shows those there are", index.ErrNoGeneration, c.options.Source, c.options.Against)
	}
	g := of[len(of)-1]
	c.notef("generation %s is compared with %s", generationName(g.Source, g.Name), c.options.Against)
	c.options.Progress.start("compare", g.Raw)
	a := &comparison{checking: c, view: c.db.At(g.Number), leases: patience{allLeases}, buffer: make([]byte, 256<<10)}
	if a.own, err = directoryOf(c.repo); err != nil {
		return err
	}
	fd, err := unix.Open(c.options.Against, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", c.options.Against, err)
	}
	defer unix.Close(fd)
	root, err := a.view.Resolve(g.Root, ".")
	if err != nil {
		return err
	}
	if err := a.recognize(fd, root); err != nil {
		return err
	}
	return a.entry(liveDir{fd: fd, settled: true}, ".", root)
}

// recognize makes sure that anything that lies at the top of the generation lies at the top
// of the live tree: else that is another one, and all would have been removed since.
func (a *comparison) recognize(fd int, root index.Dirent) error {
	known, first := false, ""
	err := a.view.List(root.Dir, "", func(e index.Dirent) bool {
		if first == "" {
			first = e.Name
		}
		_, err := statBeneath(fd, e.Name)
		known = err == nil
		return !known
	})
	if err != nil || known || first == "" {
		return err
	}
	return fmt.Errorf("%s has no %q, nor anything else that the generation has at its top: give the directory that it is a backup of (what --root was, or /)", a.options.Against, first)
}

func (a *comparison) differ(path string, kind DifferenceKind, what string) {
	switch kind {
	case Silent:
		a.result.Differ++
	case Since:
		a.result.Changed++
	case NotStored:
		a.result.NotStored++
	case Uncompared:
		a.result.Uncompared++
	}
	if a.options.Difference != nil {
		a.options.Difference(Difference{Path: path, Kind: kind, What: what})
	}
}

// liveDir is an open directory of the live tree.
type liveDir struct {
	fd      int
	device  uint64           // that holds it
	settled bool             // it looked unchanged when it was come to, and
	ctime   archive.Timespec // had this change time
}

// unchanged reports whether the directory looks unchanged still: it may have been long
// ago that it did.
func (d liveDir) unchanged() bool {
	now, err := statBeneath(d.fd, "")
	return d.settled && err == nil && now.Ctime == d.ctime
}

// entry compares the entry of a directory that the backup calls stored and that
// lies at path.
func (a *comparison) entry(dir liveDir, path string, stored index.Dirent) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	a.result.Compared++
	live, err := statBeneath(dir.fd, stored.Name)
	switch {
	case errors.Is(err, unix.ENOENT) && dir.unchanged():
		a.differ(path, Silent, "is not there, and its directory looks unchanged")
		return nil
	case errors.Is(err, unix.ENOENT):
		a.differ(path, Since, "is not there")
		return nil
	case err != nil:
		a.differ(path, Uncompared, err.Error())
		return nil
	}
	return a.found(dir, path, stored, live)
}

// found compares the entry of a directory that is there, as live.
func (a *comparison) found(dir liveDir, path string, stored index.Dirent, live inode) error {
	same := !newer(live.Ctime, stored.Attr.Ctime) && !newer(live.Mtime, stored.Attr.Mtime)
	if live.Type == archive.TypeDir && live.Inode != stored.Attr.Inode {
		same = false // what was mounted there is not, or something else
	}
	kind := Since
	if same {
		kind = Silent
	}
	if live.Type != stored.Attr.Type {
		a.differ(path, kind, fmt.Sprintf("is a %s, not a %s", live.Type, stored.Attr.Type))
		return nil
	}
	what := differentAttributes(live.Attr, stored.Attr)
	more, err := a.deeper(dir.fd, live, stored)
	var f fatal
	switch {
	case errors.Is(err, errMovedOn):
		kind, more = Since, append(more, "content")
	case errors.As(err, &f):
		return f.error
	case err != nil && !a.unreadable(dir, path, stored.Name, live, err):
		return nil
	}
	if what = append(what, more...); len(what) > 0 {
		a.differ(path, kind, strings.Join(what, ", "))
	}
	if live.Type != archive.TypeDir {
		return nil
	}
	return a.directory(dir, path, stored, live, same)
}

// unreadable reports why a path cannot be read that was there as live, and whether it
// still is: that it was removed since explains it.
func (a *comparison) unreadable(dir liveDir, path, name string, live inode, why error) bool {
	now, err := statBeneath(dir.fd, name)
	if errors.Is(err, unix.ENOENT) || err == nil && (now.Inode != live.Inode || now.Type != live.Type) {
		a.differ(path, Since, "was removed or replaced meanwhile")
		return false
	}
	a.differ(path, Uncompared, why.Error())
	return true
}

func newer(a, b archive.Timespec) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec
}

// differentAttributes names the attributes that differ.
func differentAttributes(live, stored archive.Attr) []string {
	var what []string
	if live.Mode != stored.Mode {
		what = append(what, fmt.Sprintf("mode %04o, not %04o", live.Mode, stored.Mode))
	}
	if live.UID != stored.UID || live.GID != stored.GID {
		what = append(what, fmt.Sprintf("owner %d:%d, not %d:%d", live.UID, live.GID, stored.UID, stored.GID))
	}
	if live.Type == archive.TypeFile && live.Size != stored.Size {
		what = append(what, fmt.Sprintf("%d bytes, not %d", live.Size, stored.Size))
	}
	if live.Mtime != stored.Mtime {
		what = append(what, "modification time "+live.Mtime.Time().Format("2006-01-02 15:04:05.999999999Z"))
	}
	if live.Rdev != stored.Rdev {
		what = append(what, fmt.Sprintf("device %d:%d, not %d:%d", live.Rdev.Major, live.Rdev.Minor, stored.Rdev.Major, stored.Rdev.Minor))
	}
	return what
}

// deeper compares what statx does not tell.
func (a *comparison) deeper(dir int, live inode, stored index.Dirent) (what []string, err error) {
	want, err := a.db.Xattrs(stored.Ino)
	if err != nil {
		return nil, fatal{err}
	}
	got, err := xattrsBeneath(dir, stored.Name).read()
	if err != nil {
		return nil, err
	}
	if !slices.Equal(visible(got), visible(want)) {
		what = append(what, "extended attributes")
	}
	same := true
	switch {
	case live.Type == archive.TypeSymlink:
		same, err = a.sameTarget(dir, live, stored)
	case live.Type == archive.TypeFile && live.Size == stored.Attr.Size:
		same, err = a.sameContent(dir, live, stored)
	}
	if err == nil && !same {
		what = append(what, "content")
	}
	return what, err
}

// visible leaves out what only root can see, where we are not root.
func visible(xattrs []archive.Xattr) []archive.Xattr {
	if os.Geteuid() == 0 {
		return xattrs
	}
	return slices.DeleteFunc(xattrs, func(x archive.Xattr) bool { return strings.HasPrefix(x.Name, "trusted.") })
}

func (a *comparison) sameTarget(dir int, live inode, stored index.Dirent) (bool, error) {
	i, err := a.db.Inode(stored.Ino)
	if err != nil {
		return false, fatal{err}
	}
	target, err := readLink(dir, stored.Name, live.Size)
	return target == i.Target, err
}

// errMovedOn says that a file changed while it was compared, or while it was
// backed up.
var errMovedOn = errors.New("changed meanwhile")

func (a *comparison) sameContent(dir int, live inode, stored index.Dirent) (bool, error) {
	fd, err := openBeneath(dir, stored.Name, unix.O_RDONLY, &a.leases)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	same, err := a.sameData(fd, stored)
	if same || err != nil {
		return same, err
	}
	after, err := statBeneath(fd, "")
	if err != nil {
		return false, err
	}
	i, err := a.db.Inode(stored.Ino)
	if err != nil {
		return false, fatal{err}
	}
	if after.Attr != live.Attr || i.Changed {
		return false, errMovedOn
	}
	return false, nil
}

// sameData compares an open file of the size stored with what is stored of it:
// the hash of each content, and zeros where there is none.
func (a *comparison) sameData(fd int, stored index.Dirent) (bool, error) {
	off, same := int64(0), true
	var err error
	indexErr := a.db.Extents(stored.Ino, 0, stored.Attr.Size, func(x index.Extent) bool {
		if same, err = a.zeros(fd, off, x.Offset); same && err == nil {
			same, err = a.holds(fd, x)
		}
		off = x.Offset + x.Len
		return same && err == nil
	})
	switch {
	case indexErr != nil:
		return false, fatal{indexErr}
	case !same || err != nil:
		return false, err
	}
	return a.zeros(fd, off, stored.Attr.Size)
}

// holds reports whether a file has the content of an extent.
func (a *comparison) holds(fd int, x index.Extent) (bool, error) {
	if err := a.ctx.Err(); err != nil {
		return false, fatal{err}
	}
	a.chunk = slices.Grow(a.chunk[:0], int(x.Len))[:x.Len]
	n, err := readFull(fd, a.chunk, x.Offset)
	a.options.Progress.done.Add(x.Len)
	return err == nil && int64(n) == x.Len && archive.HashOf(a.chunk) == x.Hash, err
}

// zeros reports whether a range of a file is a hole, or reads as one.
func (a *comparison) zeros(fd int, from, to int64) (bool, error) {
	for from < to {
		start := from
		if data, err := unix.Seek(fd, from, unix.SEEK_DATA); err == unix.ENXIO {
			from = to
		} else if err == nil {
			from = min(data, to)
		}
		if err := a.ctx.Err(); err != nil {
			return false, fatal{err}
		}
		if from < to {
			n, err := readFull(fd, a.buffer[:min(int64(len(a.buffer)), to-from)], from)
			if err != nil || n == 0 || bytes.Count(a.buffer[:n], []byte{0}) != n {
				return false, err
			}
			from += int64(n)
		}
		a.options.Progress.done.Add(from - start)
	}
	return true, nil
}

// readFull reads until b is full or the file ends.
func readFull(fd int, b []byte, off int64) (int, error) {
	n, err := io.ReadFull(io.NewSectionReader(descriptor(fd), off, int64(len(b))), b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// descriptor reads an open file.
type descriptor int

func (d descriptor) ReadAt(b []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(d), b, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// directory compares the entries of a directory, which is there as live.
func (a *comparison) directory(parent liveDir, path string, stored index.Dirent, live inode, settled bool) error {
	fd, err := openBeneath(parent.fd, stored.Name, unix.O_RDONLY|unix.O_DIRECTORY, &patience{})
	if err != nil {
		a.unreadable(parent, path, stored.Name, live, err)
		return nil
	}
	defer unix.Close(fd)
	if path != "." && live.dev != parent.device && kernelFileSystem(fileSystem(fd)) {
		return nil // nothing of it was backed up
	}
	list, err := names(fd)
	if err != nil {
		a.unreadable(parent, path, stored.Name, live, err)
		return nil
	}
	dir := liveDir{fd: fd, device: live.dev, settled: settled, ctime: live.Ctime}
	var entries []index.Dirent
	if err := a.view.List(stored.Dir, "", func(e index.Dirent) bool {
		entries = append(entries, e)
		return true
	}); err != nil {
		return err
	}
	for _, e := range entries {
		for len(list) > 0 && list[0] < e.Name {
			a.notStored(fd, path, list[0])
			list = list[1:]
		}
		if len(list) > 0 && list[0] == e.Name {
			list = list[1:]
		}
		if err := a.entry(dir, join(path, e.Name), e); err != nil {
			return err
		}
	}
	for _, name := range list {
		a.notStored(fd, path, name)
	}
	return nil
}

// notStored reports a path that the backup does not have, unless it is the repository.
func (a *comparison) notStored(dir int, path, name string) {
	live, err := statBeneath(dir, name)
	if err != nil || a.own.is(dir, name, &live) {
		return
	}
	a.differ(join(path, name), NotStored, "is not in the backup")
}
