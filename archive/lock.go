package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Lock is a lock of a repository. The kernel releases it when the process dies. It is
// used by one goroutine.
type Lock struct {
	file *os.File
}

// ErrLocked says that somebody else holds a lock.
var ErrLocked = errors.New("locked by a run under way")

// LockParts makes sure that no file of a part is deleted: it takes the shared
// lock that every writer holds who may publish parts or rely on ones that no
// record names. It waits for a holder of LockToDelete, who takes moments. Where the file
// system has no locks nothing is ever deleted, and no lock is needed.
func (r *Repository) LockParts() (*Lock, error) {
	l, err := r.lock(unix.LOCK_SH)
	if errors.Is(err, ErrLocked) {
		return &Lock{}, nil
	}
	return l, err
}

// LockToDelete takes the lock under which files of parts may be deleted: nobody
// holds LockParts then, in no process. It does not wait: the error wraps
// ErrLocked where somebody does, or where the file system has no locks.
func (r *Repository) LockToDelete() (*Lock, error) { return r.lock(unix.LOCK_EX | unix.LOCK_NB) }

// lock locks repo.json, which is there and never changes.
func (r *Repository) lock(how int) (*Lock, error) {
	f, err := openToLock(filepath.Join(r.Dir(), configName), how&unix.LOCK_EX != 0, 0)
	if err != nil {
		return nil, fmt.Errorf("lock the repository: %w", err)
	}
	err = lockFile(f, how)
	if err == nil {
		return &Lock{file: f}, nil
	}
	f.Close()
	return nil, fmt.Errorf("lock the repository: %w", lockError(err))
}

// lockError returns what err, of lockFile, means.
func lockError(err error) error {
	switch {
	case errors.Is(err, unix.EWOULDBLOCK) || noLocks(err):
		return fmt.Errorf("%w: %w", ErrLocked, err)
	case errors.Is(err, unix.EBADF):
		return fmt.Errorf("NFS lets only him delete who may write %s: chmod 600 it", configName)
	case errors.Is(err, unix.ENOLCK):
		return fmt.Errorf("%w: start what keeps the locks (NFS: rpc.statd), or mount it with nolock where no other machine uses it", err)
	}
	return err
}

// lockFile locks all of a file, with flock(2), and with the lock of its open file
// description of fcntl(2) besides: that alone is seen by the locks that a server takes
// for its NFS clients, and sees them. On SMB the first is a lock of the server, and the
// second would wait for it.
func lockFile(f interface{ Fd() uintptr }, how int) error {
	fd := int(f.Fd())
	err := uninterrupted(func() error { return unix.Flock(fd, how) })
	var st unix.Statfs_t
	if err != nil || unix.Fstatfs(fd, &st) == nil && isSMB(&st) {
		return err
	}
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	if how&unix.LOCK_EX != 0 {
		lock.Type = unix.F_WRLCK
	}
	cmd := unix.F_OFD_SETLKW
	if how&unix.LOCK_NB != 0 {
		cmd = unix.F_OFD_SETLK
	}
	err = uninterrupted(func() error { return unix.FcntlFlock(uintptr(fd), cmd, &lock) })
	switch {
	case errors.Is(err, unix.EACCES):
		return unix.EWOULDBLOCK
	case errors.Is(err, unix.EBADF), noLocks(err):
		return nil // a local file that is only read, by a user who may not write it; or there is but flock(2)
	}
	return err
}

func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// noLocks reports whether an error says that the file system has no locks.
func noLocks(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) }

// openToLock opens a file that is going to be locked; flags are those of the system
// call that are wanted besides. NFS takes an exclusive lock only of a file that is open
// for writing (flock(2)), which nobody does here.
func openToLock(name string, exclusive bool, flags int) (*os.File, error) {
	if exclusive {
		if f, err := os.OpenFile(name, os.O_RDWR|flags, 0); err == nil {
			return f, nil
		}
	}
	return os.OpenFile(name, os.O_RDONLY|flags, 0)
}

// Release releases the lock. It may be called more than once.
func (l *Lock) Release() {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
