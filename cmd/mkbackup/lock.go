package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// rootLocks is a file with all locks that root holds, a byte for each. Whoever may open a
// file or directory can hold a lock of it for as long as he likes; nobody else may open
// this one.
const rootLocks = "/run/backupfs.lock"

// tryLock locks a file or directory until what it returns is closed. The error is
// unix.EWOULDBLOCK where it is locked already. Other users than root lock the thing itself:
// they have no place of their own that is there with and without a session.
func tryLock(name string) (*os.File, error) {
	if os.Geteuid() == 0 {
		if f, err := lockOfRoot(name); err == nil || errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0) // NFS locks nothing that is only read: flock(2)
	if err != nil {
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockOfRoot locks the byte of rootLocks for a file or directory, by whatever name.
func lockOfRoot(name string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(rootLocks, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64((st.Ino ^ st.Dev<<40) &^ (1 << 63)), Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
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
