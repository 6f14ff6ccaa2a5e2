package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
)

// rootLocks is a file with all locks that root holds, a byte for each. Whoever may open a
// file or directory can hold a lock of it for as long as he likes; nobody else may open
// this one.
const rootLocks = "/run/backupfs.lock"

// tryLock locks a directory until what it returns is closed. The error is unix.EWOULDBLOCK
// where it is locked already. Other users than root lock the directory itself: they have no
// place of their own that is there with and without a session.
func tryLock(dir string) (*os.File, error) {
	if f, err := lockOfRoot(place{dir, "."}); err == nil || errors.Is(err, unix.EWOULDBLOCK) {
		return f, err
	}
	return lockItself(dir)
}

// locks are held until they are closed.
type locks []*os.File

// Close releases the locks.
func (l locks) Close() {
	for _, f := range l {
		_ = f.Close() // nothing was written
	}
}

// tryLockFile is tryLock for a file, whatever file has its name until the locks are closed:
// editors and `sed -i` put another one in its place. For that, other users than root lock
// one beside it, too. Where they may not make that, it is for others to replace the file.
func tryLockFile(name string) (locks, error) {
	places := placesOf(name)
	if f, err := lockOfRoot(places...); err == nil || errors.Is(err, unix.EWOULDBLOCK) {
		return locks{f}, err
	}
	f, err := lockItself(name)
	if err != nil {
		return nil, err
	}
	held := locks{f}
	for _, p := range places {
		f, err := p.lockBeside()
		if errors.Is(err, unix.EWOULDBLOCK) {
			held.Close()
			return nil, err
		}
		if err == nil {
			held = append(held, f)
		}
	}
	return held, nil
}

// place is a name in a directory. It stays the same when another file gets the name.
type place struct {
	dir, name string
}

// placesOf returns the place of a file and, if that is a symlink, of what it leads to:
// either of the two files may be replaced.
func placesOf(name string) []place {
	dir, base := filepath.Split(name)
	places := []place{{dir + ".", base}}
	if _, err := os.Readlink(name); err == nil {
		if target, err := filepath.EvalSymlinks(name); err == nil {
			dir, base = filepath.Split(target)
			places = append(places, place{dir + ".", base})
		}
	}
	return places
}

// lockOfRoot locks the bytes of rootLocks for places, by whatever path of the directory.
func lockOfRoot(places ...place) (*os.File, error) {
	if os.Geteuid() != 0 {
		return nil, unix.EPERM
	}
	f, err := os.OpenFile(rootLocks, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		if err := p.lockByte(f); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func (p place) lockByte(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Stat(p.dir, &st); err != nil {
		return err
	}
	hash := archive.HashOf(fmt.Appendf(nil, "%d:%d/%s", st.Dev, st.Ino, p.name))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(binary.LittleEndian.Uint64(hash[:]) >> 1), Len: 1}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
}

// lockBeside locks a file of our own in the directory, which stays there. One that others
// may open they could lock.
func (p place) lockBeside() (*os.File, error) {
	f, err := os.OpenFile(p.dir+"/."+p.name+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0) {
		err = unix.EPERM
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return flocked(f)
}

// lockItself locks a file or directory, which all who may open it can do.
func lockItself(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0) // NFS locks nothing that is only read: flock(2)
	if err != nil {
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	return flocked(f)
}

// flocked locks an open file, or closes it.
func flocked(f *os.File) (*os.File, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// othersMayLock says what to do where a file may be locked by others than its user.
func othersMayLock(name string) string {
	if st, err := os.Stat(name); err != nil || st.Mode().Perm()&0o044 == 0 || os.Geteuid() == 0 {
		return ""
	}
	return ". If there is none, somebody else holds a lock of the file: chmod 600 " + quoted([]string{name})
}
