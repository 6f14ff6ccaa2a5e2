package treetest

import (
	"fmt"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes the nodes below the directory dir, which must exist, in their
// order; times are set last. It stops at the first error. Owners, devices and
// names like trusted.* need root.
func Create(dir string, nodes []Node) error {
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, n := range nodes {
		if err := createNode(root, n); err != nil {
			return fmt.Errorf("create %s %q: %w", n.Type, n.Path, err)
		}
	}
	return setTimes(root, nodes)
}

func createNode(root int, n Node) error {
	dirPath, name := split(n.Path)
	dir, err := openDir(root, dirPath, true)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if n.Type == HardLink {
		return link(root, n.Target, dir, name)
	}
	if err := makeInode(dir, name, n); err != nil {
		return err
	}
	return setAttrs(dir, name, n)
}

func link(root int, target string, dir int, name string) error {
	oldPath, oldName := split(target)
	oldDir, err := openDir(root, oldPath, false)
	if err != nil {
		return err
	}
	defer unix.Close(oldDir)
	return unix.Linkat(oldDir, oldName, dir, name, 0)
}

func makeInode(dir int, name string, n Node) error {
	switch n.Type {
	case File:
		return writeFile(dir, name, n)
	case Dir:
		if err := unix.Mkdirat(dir, name, 0o755); err != unix.EEXIST {
			return err
		}
		return nil
	case Symlink:
		return unix.Symlinkat(n.Target, dir, name)
	default:
		format := map[Type]uint32{FIFO: unix.S_IFIFO, Socket: unix.S_IFSOCK, Char: unix.S_IFCHR, Block: unix.S_IFBLK}
		return unix.Mknodat(dir, name, format[n.Type]|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	}
}

func writeFile(dir int, name string, n Node) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n.Seed != 0 {
		err = writeGenerated(fd, n.Seed, n.Size)
	} else {
		err = pwriteAll(fd, n.Data, 0)
	}
	if err != nil {
		return err
	}
	if size := max(n.Size, int64(len(n.Data))); size > 0 {
		if err := unix.Ftruncate(fd, size); err != nil {
			return err
		}
	}
	for _, e := range n.Extents {
		if err := pwriteAll(fd, e.Data, e.Offset); err != nil {
			return err
		}
	}
	return nil
}

func writeGenerated(fd int, seed uint64, size int64) error {
	b := make([]byte, min(size, 4<<20))
	for off := int64(0); off < size; off += int64(len(b)) {
		b = b[:min(int64(len(b)), size-off)]
		Generate(seed, off, b)
		if err := pwriteAll(fd, b, off); err != nil {
			return err
		}
	}
	return nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// setAttrs sets the owner first: a change of owner clears setuid, setgid and
// file capabilities. Xattrs come before the mode, since an ACL changes it.
func setAttrs(dir int, name string, n Node) error {
	if err := unix.Fchownat(dir, name, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	fd, err := handle(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for key, value := range n.Xattrs {
		if err := unix.Setxattr(procPath(fd), key, []byte(value), 0); err != nil {
			return fmt.Errorf("setxattr %q of %d bytes: %w", key, len(value), err)
		}
	}
	if n.Type == Symlink {
		return nil
	}
	if _, acl := n.Xattrs[AccessACL]; acl && n.Mode == 0 {
		return nil
	}
	if err := unix.Chmod(procPath(fd), n.mode()); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

func (n Node) mode() uint32 {
	switch {
	case n.Mode != 0:
		return n.Mode & 0o7777
	case n.Type == File:
		return 0o644
	case n.Type == Dir:
		return 0o755
	}
	return 0o666
}

// setTimes goes from the longest path to the shortest, so that nothing touches
// a directory after its time is set.
func setTimes(root int, nodes []Node) error {
	order := make([]Node, 0, len(nodes))
	for _, n := range nodes {
		if !n.Mtime.IsZero() {
			order = append(order, n)
		}
	}
	sort.SliceStable(order, func(i, j int) bool { return len(order[i].Path) > len(order[j].Path) })
	for _, n := range order {
		if err := setTime(root, n.Path, n.Mtime); err != nil {
			return fmt.Errorf("set time of %q: %w", n.Path, err)
		}
	}
	return nil
}

func setTime(root int, path string, mtime time.Time) error {
	dirPath, name := split(path)
	dir, err := openDir(root, dirPath, false)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	ts := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
