package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of returns the file system of the machine for the repository in dir, which need not be
// there yet. Where we are root and dir is another user's, what is made there is his: else a
// mount by root would end the backups of that user, who could not write beside what root has left.
func Of(dir string) FS {
	var st unix.Stat_t
	abs, err := filepath.Abs(dir)
	if err != nil || os.Geteuid() != 0 || unix.Stat(abs, &st) != nil || st.Uid == 0 {
		return OS{}
	}
	return owned{uid: int(st.Uid), gid: int(st.Gid), dir: abs}
}

// owned is OS with the rights of the owner of a directory. His directories may lead elsewhere
// by the next moment: to change anything there as root would let him change, and have, what
// others own. Where he has not the right, in a copy that he cannot get to, say, root changes
// it without being led out of the directory.
type owned struct {
	OS
	uid, gid int
	dir      string
}

// OpenFile implements FS.
func (o owned) OpenFile(name string, flag int, perm fs.FileMode) (f File, err error) {
	err = o.do(func(fsys FS) (err error) {
		f, err = fsys.OpenFile(name, flag, perm)
		return err
	})
	return f, err
}

// Mkdir implements FS.
func (o owned) Mkdir(name string, perm fs.FileMode) error {
	return o.do(func(fsys FS) error { return fsys.Mkdir(name, perm) })
}

// Chmod implements FS.
func (o owned) Chmod(name string, perm fs.FileMode) error {
	return o.do(func(fsys FS) error { return fsys.Chmod(name, perm) })
}

// Link implements FS.
func (o owned) Link(from, to string) error {
	return o.do(func(fsys FS) error { return fsys.Link(from, to) })
}

// Rename implements FS.
func (o owned) Rename(from, to string) error {
	return o.do(func(fsys FS) error { return fsys.Rename(from, to) })
}

// RenameNew implements FS.
func (o owned) RenameNew(from, to string) error {
	return o.do(func(fsys FS) error { return fsys.RenameNew(from, to) })
}

// Exchange implements FS.
func (o owned) Exchange(a, b string) error {
	return o.do(func(fsys FS) error { return fsys.Exchange(a, b) })
}

// Remove implements FS.
func (o owned) Remove(name string) error {
	return o.do(func(fsys FS) error { return fsys.Remove(name) })
}

// RemoveAll implements FS.
func (o owned) RemoveAll(name string) error {
	return o.do(func(fsys FS) error { return fsys.RemoveAll(name) })
}

// do makes a call with the rights of the owner or, where he may not do that, beneath the
// directory.
func (o owned) do(call func(FS) error) error {
	err := o.become(func() error { return call(OS{}) })
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	root, openErr := os.OpenRoot(o.dir)
	if openErr != nil {
		return err
	}
	defer root.Close()
	if info, statErr := root.Stat("."); statErr != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(o.uid) {
		return err // it is not the directory that it was
	}
	return call(beneath{root: root, dir: o.dir})
}

// become makes a call for which this thread alone has the owner's rights to files
// (setfsuid(2)), and none of root's.
func (o owned) become(call func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Where one of them fails, what is made is root's.
	_ = unix.Setfsgid(o.gid)
	_ = unix.Setfsuid(o.uid)
	defer func() {
		_ = unix.Setfsuid(os.Geteuid())
		_ = unix.Setfsgid(os.Getegid())
	}()
	return call()
}
