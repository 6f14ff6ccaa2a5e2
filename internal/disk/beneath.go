package disk

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// beneath changes what is in a directory. No symbolic link leads it out of there (os.Root).
type beneath struct {
	OS
	root *os.Root
	dir  string // its path, absolute
}

// in returns the path of name in the directory. What is not in there os.Root refuses.
func (b beneath) in(name string) string {
	abs, err := filepath.Abs(name)
	if err != nil {
		return name
	}
	rel, err := filepath.Rel(b.dir, abs)
	if err != nil {
		return abs
	}
	return rel
}

func (b beneath) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := b.root.OpenFile(b.in(name), flag|unix.O_NOFOLLOW, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (b beneath) Mkdir(name string, perm fs.FileMode) error { return b.root.Mkdir(b.in(name), perm) }
func (b beneath) Chmod(name string, perm fs.FileMode) error { return b.root.Chmod(b.in(name), perm) }
func (b beneath) Link(from, to string) error                { return b.root.Link(b.in(from), b.in(to)) }
func (b beneath) Rename(from, to string) error              { return b.root.Rename(b.in(from), b.in(to)) }
func (b beneath) Remove(name string) error                  { return b.root.Remove(b.in(name)) }
func (b beneath) RemoveAll(name string) error               { return b.root.RemoveAll(b.in(name)) }
func (b beneath) RenameNew(from, to string) error           { return b.rename2(from, to, unix.RENAME_NOREPLACE) }
func (b beneath) Exchange(x, y string) error                { return b.rename2(x, y, unix.RENAME_EXCHANGE) }

func (b beneath) rename2(from, to string, flags uint) error {
	source, err := b.parent(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := b.parent(to)
	if err != nil {
		return err
	}
	defer target.Close()
	return again(func() error {
		return unix.Renameat2(int(source.Fd()), filepath.Base(from), int(target.Fd()), filepath.Base(to), flags)
	})
}

// parent opens the directory that a name lies in.
func (b beneath) parent(name string) (*os.File, error) {
	return b.root.OpenFile(filepath.Dir(b.in(name)), os.O_RDONLY|unix.O_DIRECTORY, 0)
}
