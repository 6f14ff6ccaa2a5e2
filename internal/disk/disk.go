// Package disk is the one way in which a repository is changed on disk: whatever
// makes, writes, renames, removes or syncs something there calls an FS. So a test
// can put a model of a disk under the repository that loses at a crash what was not
// synced (package crash). Reading, mapping and locking go past it, to the files.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// FS are the operations that change a file system. Errors are those of package os,
// or bare errors of system calls. An FS is safe for concurrent use.
//
// What an operation did is there after a crash only if it was synced: the bytes of a
// file by File.Sync, the entries of a directory, which are neither those above it
// nor those below, by SyncDir. Of the rest any part may be there.
type FS interface {
	// OpenFile opens a file, as os.OpenFile does, but not one that a symbolic link
	// leads to.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes a directory.
	Mkdir(name string, perm fs.FileMode) error
	// Chmod changes the mode.
	Chmod(name string, perm fs.FileMode) error
	// Link gives a file a second name, which must be free.
	Link(from, to string) error
	// Rename renames a file or directory, in the place of what has the name, if
	// that is a file or an empty directory.
	Rename(from, to string) error
	// RenameNew renames a file to a name that must be free. Where the file system
	// cannot do that in one step the error is EINVAL or ENOSYS.
	RenameNew(from, to string) error
	// Exchange swaps two names; the errors of a file system that cannot are those
	// of RenameNew, or EOPNOTSUPP.
	Exchange(a, b string) error
	// Remove removes the name of a file.
	Remove(name string) error
	// RemoveAll removes a file, or a directory with all that is in it. It is no
	// error if there is none.
	RemoveAll(name string) error
	// SyncDir brings the entries of a directory to stable storage.
	SyncDir(name string) error
}

// File is a file that is open for writing. An *os.File is one.
type File interface {
	io.Writer
	io.ReaderAt
	io.Seeker
	io.Closer
	Name() string
	Fd() uintptr
	// Sync brings the bytes of the file and its size to stable storage.
	Sync() error
}

// OS is the file system of the machine.
type OS struct{}

// OpenFile implements FS.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag|unix.O_NOFOLLOW, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Mkdir implements FS.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Chmod implements FS.
func (OS) Chmod(name string, perm fs.FileMode) error { return os.Chmod(name, perm) }

// Link implements FS.
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Rename implements FS.
func (OS) Rename(from, to string) error {
	return again(func() error { return unix.Rename(from, to) })
}

// RenameNew implements FS.
func (OS) RenameNew(from, to string) error { return rename2(from, to, unix.RENAME_NOREPLACE) }

// Exchange implements FS.
func (OS) Exchange(a, b string) error { return rename2(a, b, unix.RENAME_EXCHANGE) }

// Remove implements FS.
func (OS) Remove(name string) error {
	return again(func() error { return unix.Unlink(name) })
}

// RemoveAll implements FS.
func (OS) RemoveAll(name string) error { return os.RemoveAll(name) }

// SyncDir implements FS.
func (OS) SyncDir(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) { // the file system has no such thing
		err = nil
	}
	if err == nil {
		// XFS says yes even if it has shut down, and lost what was to be synced
		// (fs/xfs/xfs_file.c, xfs_dir_fsync); not so when it is asked for attributes.
		_, err = f.Stat()
	}
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func rename2(from, to string, flags uint) error {
	return again(func() error { return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags) })
}

// again makes a system call until no signal interrupts it.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
