package disk

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Of returns the file system of the machine for the repository in dir, which need not be
// there yet. Where we are root and dir is another user's, what is made there is his: else a
// mount by root would end the backups of that user, who could not write beside what root has left.
func Of(dir string) FS {
	var st unix.Stat_t
	if os.Geteuid() != 0 || unix.Stat(dir, &st) != nil || st.Uid == 0 {
		return OS{}
	}
	return owned{uid: int(st.Uid), gid: int(st.Gid)}
}

// owned is OS, but files and directories are made as a user would make them. His
// directories may lead elsewhere by the next moment, so to make them as root and give them
// to him would give him what others own.
type owned struct {
	OS
	uid, gid int
}

// OpenFile implements FS.
func (o owned) OpenFile(name string, flag int, perm fs.FileMode) (f File, err error) {
	err = o.asOwner(func() (err error) {
		f, err = o.OS.OpenFile(name, flag, perm)
		return err
	})
	return f, err
}

// Mkdir implements FS.
func (o owned) Mkdir(name string, perm fs.FileMode) error {
	return o.asOwner(func() error { return o.OS.Mkdir(name, perm) })
}

// asOwner makes a call with the rights of the owner. Where he may not do that, in a copy that
// he cannot get to, say, it is root's.
func (o owned) asOwner(call func() error) error {
	err := o.become(call)
	if errors.Is(err, fs.ErrPermission) {
		return call()
	}
	return err
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
