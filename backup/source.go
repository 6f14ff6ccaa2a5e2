package backup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
)

// The source is only ever reached through descriptors of directories and names
// of one component, so that nobody who renames directories or plants symlinks
// during a run can lead it outside.

// beneath is how every name is resolved: below its directory, through no symlink.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openBeneath opens the entry name of a directory for reading, itself never a
// symlink. It does not block on a FIFO, and does not change access times where
// it may. leases is how long it may wait for those.
func openBeneath(dir int, name string, flags uint64, leases *patience) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOATIME, Resolve: beneath}
	fd, err := openat2(dir, name, &how, leases)
	if errors.Is(err, unix.EPERM) { // O_NOATIME is for the owner
		how.Flags &^= unix.O_NOATIME
		fd, err = openat2(dir, name, &how, leases)
	}
	return fd, err
}

// enterBeneath opens a directory only to reach what is in it by name, for which
// nobody needs the right to list it.
func enterBeneath(dir int, name string) (int, error) {
	return openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}, &patience{})
}

// enterIn is enterBeneath for a path of several components and with symlinks, for all of
// which root is "/".
func enterIn(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return openat2(root, path, &how, &patience{})
}

// patience is how long to wait for files that somebody has a lease of (Samba, the server of
// NFS): the kernel asks for it back, and the file cannot be opened until it is given back
// (fcntl(2), Leases).
type patience struct {
	left time.Duration // for all files
}

const (
	leaseWait = 5 * time.Second // for one file
	allLeases = time.Minute     // for all files of a run: anybody may have many
)

// wait waits a moment, unless that was done long enough for a file since began, or for all.
// Where something was renamed meanwhile, openat2(2) wants a call to be repeated, too, and so
// may a file system whose server does not answer for now.
func (p *patience) wait(began time.Time) bool {
	const moment, least = time.Millisecond, 10 * time.Millisecond
	if waited := time.Since(began); waited > leaseWait || p.left <= 0 && waited > least {
		return false
	}
	time.Sleep(moment)
	p.left -= moment
	return true
}

var errLease = errors.New("another program has a lease of it (fcntl(2)) and does not give it back")

func openat2(dir int, name string, how *unix.OpenHow, leases *patience) (int, error) {
	for began := time.Now(); ; {
		fd, err := unix.Openat2(dir, name, how)
		if err == unix.ENOSYS && how.Resolve == beneath { // before Linux 5.6: one component and O_NOFOLLOW mean the same
			fd, err = unix.Openat(dir, name, int(how.Flags), 0)
		}
		switch {
		case err == unix.EAGAIN && !leases.wait(began):
			if how.Flags&unix.O_DIRECTORY == 0 { // nobody has a lease of a directory
				err = errLease
			}
			return -1, err
		case err == unix.EAGAIN:
		case err != unix.EINTR:
			return fd, err
		}
	}
}

// inode is what statx tells about a file.
type inode struct {
	archive.Attr
	dev             uint64 // device that holds it
	noDump, mounted bool   // has the attribute nodump; is the root of a mount
}

const statxMask = unix.STATX_BASIC_STATS

// statBeneath returns the attributes of the entry name of a directory, or of
// the directory itself where name is "".
func statBeneath(dir int, name string) (inode, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	for {
		err := unix.Statx(dir, name, flags, statxMask, &st)
		if err == nil {
			return inodeOf(&st)
		}
		if err != unix.EINTR {
			return inode{}, err
		}
	}
}

// mountedBeneath reports whether the entry name of a directory, itself a directory or not,
// is a mount (or of another device, as before Linux 5.8 and of a subvolume), also where its
// attributes cannot be read: that much the kernel says without asking the file system.
func mountedBeneath(dir int, name string, isDir bool) bool {
	const flags, none = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC, 0
	var st, above unix.Statx_t
	if unix.Statx(dir, name, flags, none, &st) != nil || unix.Statx(dir, "", flags|unix.AT_EMPTY_PATH, none, &above) != nil {
		return false
	}
	other := st.Dev_major != above.Dev_major || st.Dev_minor != above.Dev_minor
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 || isDir && other
}

// ownDir is the directory of the repository.
type ownDir struct {
	inode
	id string // of the repository
}

// directoryOf returns the directory of a repository, also where its path is that of a
// symlink.
func directoryOf(r *archive.Repository) (ownDir, error) {
	i, err := statBeneath(unix.AT_FDCWD, r.Dir()+"/.")
	if err != nil {
		return ownDir{}, fmt.Errorf("%s: %w", r.Dir(), err)
	}
	return ownDir{i, r.ID}, nil
}

// is reports whether the entry name of a directory, which is i, is the directory of the
// repository: itself, or what it is in a snapshot or another copy of its file system,
// which has another device, but the same inode numbers.
func (o *ownDir) is(dir int, name string, i *inode) bool {
	return i.Inode == o.Inode && (i.dev == o.dev || repositoryAt(dir, name) == o.id)
}

// repositoryAt returns the id of the repository in the entry name of a directory, "" where
// there is none that can be read.
func repositoryAt(dir int, name string) string {
	at, err := enterBeneath(dir, name)
	if err != nil {
		return ""
	}
	defer unix.Close(at)
	config, err := archive.ReadConfig(func(name string) (*os.File, error) {
		fd, err := openBeneath(at, name, unix.O_RDONLY, &patience{})
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	})
	if err != nil {
		return ""
	}
	return config.ID
}

func inodeOf(st *unix.Statx_t) (inode, error) {
	i := inode{
		Attr: archive.Attr{
			Mode:  uint32(st.Mode) & 0o7777,
			UID:   st.Uid,
			GID:   st.Gid,
			Size:  int64(st.Size),
			Mtime: archive.Timespec{Sec: st.Mtime.Sec, Nsec: st.Mtime.Nsec},
			Ctime: archive.Timespec{Sec: st.Ctime.Sec, Nsec: st.Ctime.Nsec},
			Inode: st.Ino,
			Nlink: max(st.Nlink, 1),
		},
		dev:     unix.Mkdev(st.Dev_major, st.Dev_minor),
		noDump:  st.Attributes&unix.STATX_ATTR_NODUMP != 0,
		mounted: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		i.Type = archive.TypeFile
	case unix.S_IFDIR:
		i.Type = archive.TypeDir
	case unix.S_IFLNK:
		i.Type = archive.TypeSymlink
	case unix.S_IFIFO:
		i.Type = archive.TypeFIFO
	case unix.S_IFSOCK:
		i.Type = archive.TypeSocket
	case unix.S_IFCHR:
		i.Type = archive.TypeChar
	case unix.S_IFBLK:
		i.Type = archive.TypeBlock
	default:
		return inode{}, fmt.Errorf("unknown file type %#o", st.Mode&unix.S_IFMT)
	}
	if i.Type == archive.TypeChar || i.Type == archive.TypeBlock {
		i.Rdev = archive.Device{Major: st.Rdev_major, Minor: st.Rdev_minor}
	}
	if i.Whiteout() {
		i.Nlink = 1
	}
	return i, nil
}

// names returns the names in an open directory, in the order of their bytes.
func names(dir int) ([]string, error) {
	buffer := make([]byte, 64<<10)
	var list []string
	for {
		n, err := unix.ReadDirent(dir, buffer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return sortedNames(list), nil
		}
		list = appendNames(list, buffer[:n])
	}
}

// directories returns the names in an open directory of which it says itself that they
// are directories, whether anything else is known of them or not.
func directories(dir int) map[string]bool {
	fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", dir))
	defer f.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil
	}
	list, _ := f.ReadDir(-1) // up to an error
	dirs := make(map[string]bool)
	for _, e := range list {
		if e.IsDir() {
			dirs[e.Name()] = true
		}
	}
	return dirs
}

// appendNames appends the names in what getdents64(2) returned. That of x/sys leaves out
// those with inode number 0, which file systems in user space give where they have none.
func appendNames(list []string, dirents []byte) []string {
	_, _, list = syscall.ParseDirent(dirents, -1, list)
	return list
}

// sortedNames sorts names. A directory that changes while it is read may have said one
// twice (POSIX, readdir).
func sortedNames(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

var errLongTarget = fmt.Errorf("a symlink with a target of more than %d bytes", archive.MaxTarget)

// readLink returns the target of a symlink. size is what its file system says of its length,
// which may be anything.
func readLink(dir int, name string, size int64) (string, error) {
	for length := min(max(size, 255), archive.MaxTarget) + 1; ; length = min(2*length, archive.MaxTarget+1) {
		target := make([]byte, length)
		n, err := unix.Readlinkat(dir, name, target)
		switch {
		case errors.Is(err, unix.EINVAL): // it is no symlink
			return "", errVanished
		case err != nil:
			return "", err
		case int64(n) < length:
			return string(target[:n]), nil
		case length > archive.MaxTarget:
			return "", errLongTarget
		}
	}
}

// xattrReader lists and gets the extended attributes of one inode, as
// listxattr(2) and getxattr(2) do.
type xattrReader struct {
	list func(dst []byte) (int, error)
	get  func(name string, dst []byte) (int, error)
}

// xattrsOf reads through an open file.
func xattrsOf(fd int) xattrReader {
	return xattrReader{
		list: func(dst []byte) (int, error) { return unix.Flistxattr(fd, dst) },
		get:  func(name string, dst []byte) (int, error) { return unix.Fgetxattr(fd, name, dst) },
	}
}

// xattrsBeneath reads those of an entry that cannot be opened: a symlink or a special file.
func xattrsBeneath(dir int, name string) xattrReader {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	return xattrReader{
		list: func(dst []byte) (int, error) { return unix.Llistxattr(path, dst) },
		get:  func(name string, dst []byte) (int, error) { return unix.Lgetxattr(path, name, dst) },
	}
}

// read returns all extended attributes, ordered by name.
func (x xattrReader) read() ([]archive.Xattr, error) {
	list, err := growing(x.list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var xattrs []archive.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := x.value(name)
		if errors.Is(err, unix.ENODATA) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", Printable(name), err)
		}
		xattrs = append(xattrs, archive.Xattr{Name: name, Value: string(value)})
	}
	slices.SortFunc(xattrs, func(a, b archive.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return xattrs, nil
}

// The extended attributes that are POSIX ACLs.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// acls returns the ACLs alone, and whether there can be no other.
func (x xattrReader) acls() (list []archive.Xattr, known bool) {
	known = true
	for _, name := range []string{accessACL, defaultACL} {
		value, err := x.value(name)
		if err == nil {
			list = append(list, archive.Xattr{Name: name, Value: string(value)})
		} else if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			known = false
		}
	}
	return list, known
}

// value returns the value of an extended attribute.
func (x xattrReader) value(name string) ([]byte, error) {
	return growing(func(dst []byte) (int, error) { return x.get(name, dst) })
}

// growing calls a system call that fills a buffer with ever larger ones.
func growing(call func(dst []byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buffer := make([]byte, size)
		n, err := call(buffer)
		switch {
		case errors.Is(err, unix.ERANGE) && size < 16<<20:
		case err != nil:
			return nil, err
		default:
			return buffer[:n], nil
		}
	}
}

// fileSystem returns the type of the mount that a directory lies on, "" where
// it is not known: "ext4", "proc", "fuse.backupfs".
func fileSystem(dir int) string {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", dir))
	if err != nil {
		return ""
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	return mountType(string(mounts), mountID(string(info)))
}

func mountID(fdinfo string) string {
	for line := range strings.Lines(fdinfo) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// mountType finds a mount's type in the text of mountinfo (proc(5)): the first
// field behind the "-" that ends the optional ones.
func mountType(mountinfo, id string) string {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Split(line, " ") // of blanks, only this one, tabs and newlines are escaped
		if fields[0] != id {
			continue
		}
		if i := slices.Index(fields, "-"); i >= 0 && i+1 < len(fields) {
			return fields[i+1]
		}
	}
	return ""
}

// kernelFileSystem reports whether files of a mount of this type are made up by
// the kernel when they are read: there is nothing to back up.
func kernelFileSystem(kind string) bool {
	switch kind {
	case "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "pstore", "bpf",
		"configfs", "efivarfs", "fusectl", "binfmt_misc", "mqueue", "devpts", "selinuxfs", "rpc_pipefs", "nsfs":
		return true
	}
	return false
}
