package fs

import (
	"syscall"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// forever is how long the kernel may keep what never changes: all that is
	// in a generation, names that are not there included.
	forever = 1 << 30 * time.Second
	// briefly is how long it may keep what is above the generations.
	briefly = 500 * time.Millisecond
)

const blockSize = 4096

var modeOfType = [...]uint32{
	archive.TypeFile:    syscall.S_IFREG,
	archive.TypeDir:     syscall.S_IFDIR,
	archive.TypeSymlink: syscall.S_IFLNK,
	archive.TypeFIFO:    syscall.S_IFIFO,
	archive.TypeSocket:  syscall.S_IFSOCK,
	archive.TypeChar:    syscall.S_IFCHR,
	archive.TypeBlock:   syscall.S_IFBLK,
}

// typeMode returns the S_IF constant of a type, 0 for an invalid one, which the
// kernel refuses.
func typeMode(t archive.FileType) uint32 {
	if !t.Valid() {
		return 0
	}
	return modeOfType[t]
}

// setAttr fills in the attributes of a node of a generation. data is the raw
// bytes of a file that are not holes. The time of the last access is not
// recorded; that of the last change stands for it.
func setAttr(out *fuse.Attr, node uint64, a archive.Attr, data int64) {
	*out = fuse.Attr{
		Ino:       node,
		Size:      uint64(a.Size),
		Atime:     uint64(a.Mtime.Sec),
		Mtime:     uint64(a.Mtime.Sec),
		Ctime:     uint64(a.Ctime.Sec),
		Atimensec: a.Mtime.Nsec,
		Mtimensec: a.Mtime.Nsec,
		Ctimensec: a.Ctime.Nsec,
		Mode:      typeMode(a.Type) | a.Mode&07777,
		Nlink:     a.Nlink,
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:      uint32(unix.Mkdev(a.Rdev.Major, a.Rdev.Minor)),
		Blksize:   blockSize,
	}
	switch a.Type {
	case archive.TypeFile:
		out.Blocks = blocks(data)
	case archive.TypeDir:
		out.Blocks = blocks(a.Size)
	}
}

// blocks returns how many 512-byte units size bytes take in whole pages.
func blocks(size int64) uint64 {
	return uint64(size+blockSize-1) / blockSize * (blockSize / 512)
}

// setListingAttr fills in the attributes of a directory above the generations.
func setListingAttr(out *fuse.Attr, l *listing, owner fuse.Owner) {
	*out = fuse.Attr{
		Ino:     l.node,
		Mode:    syscall.S_IFDIR | 0o555,
		Nlink:   uint32(2 + l.directories()),
		Owner:   owner,
		Blksize: blockSize,
	}
	setTimes(out, l.mtime)
}

// setLinkAttr fills in the attributes of a symlink "latest".
func setLinkAttr(out *fuse.Attr, node uint64, target string, t archive.Timespec, owner fuse.Owner) {
	*out = fuse.Attr{
		Ino:     node,
		Size:    uint64(len(target)),
		Mode:    syscall.S_IFLNK | 0o777,
		Nlink:   1,
		Owner:   owner,
		Blksize: blockSize,
	}
	setTimes(out, t)
}

func setTimes(out *fuse.Attr, t archive.Timespec) {
	out.Atime, out.Mtime, out.Ctime = uint64(t.Sec), uint64(t.Sec), uint64(t.Sec)
	out.Atimensec, out.Mtimensec, out.Ctimensec = t.Nsec, t.Nsec, t.Nsec
}
