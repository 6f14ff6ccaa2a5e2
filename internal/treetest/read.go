package treetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Range is a run of bytes of a file.
type Range struct{ Offset, Len int64 }

// Entry is everything about one path that a backup must give back.
type Entry struct {
	Path   string
	Type   Type
	Mode   uint32 // 07777
	UID    uint32
	GID    uint32
	Size   int64 // of a file or a symlink
	Sec    int64 // mtime
	Nsec   int64
	Major  uint32 // of a device
	Minor  uint32
	Nlink  uint64 // links of the inode, in this tree or not
	Inode  uint64
	Target string
	Xattrs map[string]string
	// Hash names the content of a file: its non-zero blocks of 4 KiB and
	// where they are, so that a hole equals a run of zeros.
	Hash   [sha256.Size]byte
	Data   []Range // where SEEK_DATA finds data in a file
	Blocks int64   // of 512 bytes, as stat says
	// Link is the least path in the tree of the same inode, "" when there is
	// no other one. Directories and device 0:0, the whiteout, have none.
	Link string
}

// Tree is a tree as it was read, the root "." included.
type Tree struct {
	Entries map[string]*Entry
}

// Paths returns all paths in byte order.
func (t *Tree) Paths() []string {
	paths := make([]string, 0, len(t.Entries))
	for p := range t.Entries {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	return paths
}

// Read reads the tree below dir, contents included. Every path that cannot be
// read is an error in what it returns, joined with the others.
func Read(dir string) (*Tree, error) { return ReadFiltered(dir, nil) }

// ReadFiltered is Read without the paths for which skip is true and what lies
// below them.
func ReadFiltered(dir string, skip func(path string) bool) (*Tree, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	r := &treeReader{tree: &Tree{Entries: map[string]*Entry{}}, skip: skip, links: map[[2]uint64][]string{}, block: make([]byte, 1<<20)}
	r.entry(root, ".", ".")
	r.dir(root, ".")
	r.group()
	return r.tree, errors.Join(r.errs...)
}

type treeReader struct {
	tree  *Tree
	skip  func(string) bool
	links map[[2]uint64][]string // paths by device and inode
	block []byte
	errs  []error
}

func (r *treeReader) fail(path string, err error) {
	r.errs = append(r.errs, fmt.Errorf("read %q: %w", path, err))
}

func (r *treeReader) dir(fd int, path string) {
	names, err := readNames(fd)
	if err != nil {
		r.fail(path, err)
		return
	}
	for _, name := range names {
		child := join(path, name)
		if r.skip != nil && r.skip(child) {
			continue
		}
		e := r.entry(fd, name, child)
		if e == nil || e.Type != Dir {
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			r.fail(child, err)
			continue
		}
		r.dir(sub, child)
		unix.Close(sub)
	}
}

// readNames lists a directory through a descriptor of its own, so that the
// offset of fd does not matter.
func readNames(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

func (r *treeReader) entry(dir int, name, path string) *Entry {
	e, st, err := r.readEntry(dir, name, path)
	if err != nil {
		r.fail(path, err)
		return nil
	}
	r.tree.Entries[path] = e
	if e.Type != Dir && !e.whiteout() && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		r.links[key] = append(r.links[key], path)
	}
	return e
}

func (r *treeReader) readEntry(dir int, name, path string) (*Entry, *unix.Stat_t, error) {
	fd, err := handle(dir, name)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, fmt.Errorf("stat: %w", err)
	}
	e := entryOf(path, &st)
	if e.Xattrs, err = xattrs(fd); err != nil {
		return nil, nil, err
	}
	switch e.Type {
	case Symlink:
		e.Target, err = readlink(fd)
	case File:
		err = r.content(dir, name, e)
	}
	return e, &st, err
}

func entryOf(path string, st *unix.Stat_t) *Entry {
	e := &Entry{Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
		Nlink: st.Nlink, Inode: st.Ino, Blocks: st.Blocks}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = File, st.Size
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type, e.Size = Symlink, st.Size
	case unix.S_IFIFO:
		e.Type = FIFO
	case unix.S_IFSOCK:
		e.Type = Socket
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return e
}

// whiteout reports whether the entry is a whiteout of overlayfs.
func (e *Entry) whiteout() bool { return e.Type == Char && e.Major == 0 && e.Minor == 0 }

func readlink(fd int) (string, error) {
	b := make([]byte, 8192)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return "", fmt.Errorf("readlink: %w", err)
	}
	return string(b[:n]), nil
}

func xattrs(fd int) (map[string]string, error) {
	list, err := growing(func(b []byte) (int, error) { return unix.Listxattr(procPath(fd), b) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	all := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := growing(func(b []byte) (int, error) { return unix.Getxattr(procPath(fd), name, b) })
		if err != nil {
			return nil, fmt.Errorf("getxattr %q: %w", name, err)
		}
		all[name] = string(value)
	}
	return all, nil
}

// growing calls get with the largest buffer that the kernel ever fills.
func growing(get func([]byte) (int, error)) ([]byte, error) {
	small := make([]byte, 1024)
	n, err := get(small)
	if errors.Is(err, unix.ERANGE) {
		small = make([]byte, 64<<10)
		n, err = get(small)
	}
	if err != nil {
		return nil, err
	}
	return small[:n], nil
}

func (r *treeReader) content(dir int, name string, e *Entry) error {
	if e.Size == 0 {
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	if e.Data, err = dataRanges(fd, e.Size); err != nil {
		return err
	}
	sum := sha256.New()
	for _, d := range wholeBlocks(e.Data, e.Size) {
		if err := r.hashRange(sum, fd, d); err != nil {
			return err
		}
	}
	sum.Sum(e.Hash[:0])
	return nil
}

func dataRanges(fd int, size int64) ([]Range, error) {
	var all []Range
	for off := int64(0); off < size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("seek data at %d: %w", off, err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole at %d: %w", start, err)
		}
		if start < off || end <= start {
			return nil, fmt.Errorf("seek data at %d: data from %d to %d", off, start, end)
		}
		all = append(all, Range{start, min(end, size) - start})
		off = end
	}
	return all, nil
}

// hashBlock is the grain in which zeros and holes are told from data.
const hashBlock = 4096

// wholeBlocks widens ranges to whole blocks and merges those that meet.
func wholeBlocks(ranges []Range, size int64) []Range {
	var all []Range
	for _, d := range ranges {
		start := d.Offset &^ (hashBlock - 1)
		end := min((d.Offset+d.Len+hashBlock-1)&^(hashBlock-1), size)
		if n := len(all); n > 0 && start <= all[n-1].Offset+all[n-1].Len {
			all[n-1].Len = end - all[n-1].Offset
			continue
		}
		all = append(all, Range{start, end - start})
	}
	return all
}

// hashRange feeds the blocks of 4 KiB that are not all zeros, each after its
// offset.
func (r *treeReader) hashRange(sum hash.Hash, fd int, d Range) error {
	for off, end := d.Offset, d.Offset+d.Len; off < end; {
		n, err := readFull(fd, r.block[:min(int64(len(r.block)), end-off)], off)
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("read at %d: end of file before byte %d", off, end)
		}
		hashBlocks(sum, r.block[:n], off)
		off += int64(n)
	}
	return nil
}

// hashBlocks feeds the hash run by run, since a call for every block is slow.
func hashBlocks(sum hash.Hash, b []byte, off int64) {
	for start := 0; start < len(b); {
		zero := isZero(b[start:min(start+hashBlock, len(b))])
		stop := start
		for stop < len(b) && isZero(b[stop:min(stop+hashBlock, len(b))]) == zero {
			stop = min(stop+hashBlock, len(b))
		}
		if !zero {
			for at := start; at < stop; at += hashBlock {
				var where [8]byte
				binary.LittleEndian.PutUint64(where[:], uint64(off)+uint64(at))
				sum.Write(where[:])
				sum.Write(b[at:min(at+hashBlock, stop)])
			}
		}
		start = stop
	}
}

var zeros [hashBlock]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

func readFull(fd int, b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		got, err := unix.Pread(fd, b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == 0 {
			return n, err
		}
		n += got
	}
	return n, nil
}

func (r *treeReader) group() {
	for _, paths := range r.links {
		if len(paths) < 2 {
			continue
		}
		sort.Strings(paths)
		for _, p := range paths {
			r.tree.Entries[p].Link = paths[0]
		}
	}
}

// Sub returns the part of the tree at and below prefix, as a tree of its own.
// Hard-link groups keep only the paths that lie in it.
func (t *Tree) Sub(prefix string) *Tree {
	if prefix == "." {
		return t
	}
	sub := &Tree{Entries: map[string]*Entry{}}
	groups := map[string][]*Entry{}
	for p, e := range t.Entries {
		if p != prefix && !strings.HasPrefix(p, prefix+"/") {
			continue
		}
		moved := *e
		moved.Path = path.Clean("." + strings.TrimPrefix(p, prefix))
		sub.Entries[moved.Path] = &moved
		if moved.Link != "" {
			groups[moved.Link] = append(groups[moved.Link], &moved)
		}
	}
	for _, members := range groups {
		sort.Slice(members, func(i, j int) bool { return members[i].Path < members[j].Path })
		for _, m := range members {
			m.Link = ""
			if len(members) > 1 {
				m.Link = members[0].Path
			}
		}
	}
	return sub
}
