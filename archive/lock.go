package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Lock is a lock of a repository. The kernel releases it when the process dies.
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
	err = unix.Flock(int(f.Fd()), how)
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(f.Fd()), how)
	}
	if err == nil {
		return &Lock{file: f}, nil
	}
	f.Close()
	// The last one is NFS, where the file could not be opened for writing.
	for _, none := range [...]error{unix.EWOULDBLOCK, unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOLCK, unix.EBADF} {
		if errors.Is(err, none) {
			return nil, fmt.Errorf("lock the repository: %w: %w", ErrLocked, err)
		}
	}
	return nil, fmt.Errorf("lock the repository: %w", err)
}

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
