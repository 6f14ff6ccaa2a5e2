package treetest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Editor makes random changes to a tree. It is used by one goroutine.
type Editor struct {
	dir   string
	rng   *rand.Rand
	count int // names that it made so far
}

// NewEditor returns an editor of the tree below dir. The same seed makes the
// same edits to the same tree.
func NewEditor(dir string, seed uint64) *Editor {
	return &Editor{dir: dir, rng: rand.New(rand.NewPCG(seed, 2))}
}

// edits are all kinds of change. One that finds nothing to work on reports
// errNothing and another is taken instead.
var edits = []struct {
	name string
	do   func(*Editor) (string, error)
}{
	{"create", (*Editor).create},
	{"mkdir", (*Editor).mkdir},
	{"append", (*Editor).append},
	{"overwrite", (*Editor).overwrite},
	{"overwrite, time kept", (*Editor).overwriteQuietly},
	{"truncate", (*Editor).truncate},
	{"punch hole", (*Editor).punchHole},
	{"append behind a hole", (*Editor).appendBehindHole},
	{"chmod", (*Editor).chmod},
	{"chown", (*Editor).chown},
	{"touch", (*Editor).touch},
	{"rename file", (*Editor).renameFile},
	{"rename directory", (*Editor).renameDir},
	{"rename over", (*Editor).renameOver},
	{"exchange", (*Editor).exchange},
	{"delete", (*Editor).remove},
	{"delete directory", (*Editor).removeDir},
	{"file to directory", (*Editor).fileToDir},
	{"directory to file", (*Editor).dirToFile},
	{"swap type", (*Editor).swapType},
	{"make hard link", (*Editor).makeLink},
	{"break hard link", (*Editor).breakLink},
	{"symlink", (*Editor).symlink},
	{"retarget symlink", (*Editor).retarget},
	{"set xattr", (*Editor).setXattr},
	{"remove xattr", (*Editor).removeXattr},
	{"set ACL", (*Editor).setACL},
	{"remove ACL", (*Editor).removeACL},
}

var errNothing = errors.New("nothing to edit")

// Edit makes n changes and returns a line for each. Every kind of change is
// made before one comes a second time, as far as the tree allows it.
func (e *Editor) Edit(n int) ([]string, error) {
	var lines []string
	for len(lines) < n {
		before := len(lines)
		for _, i := range e.rng.Perm(len(edits)) {
			if len(lines) == n {
				break
			}
			what, err := edits[i].do(e)
			if errors.Is(err, errNothing) {
				continue
			}
			if err != nil {
				return lines, fmt.Errorf("%s: %w", edits[i].name, err)
			}
			lines = append(lines, edits[i].name+" "+what)
		}
		if len(lines) == before {
			return lines, errNothing
		}
	}
	return lines, nil
}

// pick returns a random path below the tree for which keep is true.
func (e *Editor) pick(keep func(path string, d fs.DirEntry) bool) (string, error) {
	var all []string
	err := filepath.WalkDir(e.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != e.dir && keep(path, d) {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", errNothing
	}
	return all[e.rng.IntN(len(all))], nil
}

func isFile(_ string, d fs.DirEntry) bool    { return d.Type().IsRegular() }
func isDir(_ string, d fs.DirEntry) bool     { return d.IsDir() }
func isSymlink(_ string, d fs.DirEntry) bool { return d.Type() == fs.ModeSymlink }
func isAny(string, fs.DirEntry) bool         { return true }
func notLink(_ string, d fs.DirEntry) bool   { return d.Type() != fs.ModeSymlink }
func notDir(_ string, d fs.DirEntry) bool    { return !d.IsDir() }

// someDir is a directory to put something in, the root included.
func (e *Editor) someDir() (string, error) {
	d, err := e.pick(isDir)
	if errors.Is(err, errNothing) || err == nil && e.rng.IntN(8) == 0 {
		return e.dir, nil
	}
	return d, err
}

// fresh returns a path in a random directory that nothing has.
func (e *Editor) fresh() (string, error) {
	d, err := e.someDir()
	e.count++
	return filepath.Join(d, fmt.Sprintf("edit %d %x", e.count, e.rng.Uint32())), err
}

func (e *Editor) bytes() []byte { return Content(e.rng.Uint64()|1, e.rng.Int64N(100_000)) }

func (e *Editor) create() (string, error) {
	p, err := e.fresh()
	if err != nil {
		return p, err
	}
	return p, os.WriteFile(p, e.bytes(), 0o640)
}

func (e *Editor) mkdir() (string, error) {
	p, err := e.fresh()
	if err != nil {
		return p, err
	}
	return p, os.Mkdir(p, 0o750)
}

func (e *Editor) onFile(flags int, do func(*os.File, os.FileInfo) error) (string, error) {
	p, err := e.pick(isFile)
	if err != nil {
		return p, err
	}
	f, err := os.OpenFile(p, flags, 0)
	if err != nil {
		return p, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return p, err
	}
	return p, do(f, st)
}

func (e *Editor) append() (string, error) {
	return e.onFile(os.O_WRONLY|os.O_APPEND, func(f *os.File, _ os.FileInfo) error {
		_, err := f.Write(e.bytes())
		return err
	})
}

func (e *Editor) overwrite() (string, error) {
	return e.onFile(os.O_WRONLY, func(f *os.File, st os.FileInfo) error {
		_, err := f.WriteAt([]byte("overwritten"), e.rng.Int64N(st.Size()+1))
		return err
	})
}

// overwriteQuietly changes bytes but neither size nor mtime.
func (e *Editor) overwriteQuietly() (string, error) {
	return e.onFile(os.O_WRONLY, func(f *os.File, st os.FileInfo) error {
		if st.Size() == 0 {
			return errNothing
		}
		if _, err := f.WriteAt([]byte{byte(e.rng.Uint32())}, e.rng.Int64N(st.Size())); err != nil {
			return err
		}
		return os.Chtimes(f.Name(), st.ModTime(), st.ModTime())
	})
}

func (e *Editor) truncate() (string, error) {
	return e.onFile(os.O_WRONLY, func(f *os.File, st os.FileInfo) error {
		return f.Truncate(e.rng.Int64N(st.Size() + 10_000))
	})
}

// punchHole frees some blocks in the middle of a file.
func (e *Editor) punchHole() (string, error) {
	return e.onFile(os.O_WRONLY, func(f *os.File, st os.FileInfo) error {
		start := e.rng.Int64N(st.Size() + 1)
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, 1+e.rng.Int64N(100_000))
		if errors.Is(err, unix.EOPNOTSUPP) {
			return errNothing
		}
		return err
	})
}

func (e *Editor) appendBehindHole() (string, error) {
	return e.onFile(os.O_WRONLY, func(f *os.File, st os.FileInfo) error {
		_, err := f.WriteAt([]byte("behind a hole"), st.Size()+e.rng.Int64N(1<<20))
		return err
	})
}

// chmod leaves the owner all rights, so that an Editor that is not root can go on.
func (e *Editor) chmod() (string, error) {
	p, err := e.pick(notLink)
	if err != nil {
		return p, err
	}
	return p, unix.Chmod(p, 0o700|e.rng.Uint32N(0o10000))
}

// chown keeps the owner when it is not run by root.
func (e *Editor) chown() (string, error) {
	p, err := e.pick(isAny)
	if err != nil {
		return p, err
	}
	if os.Geteuid() != 0 {
		return p, os.Lchown(p, -1, os.Getegid())
	}
	return p, os.Lchown(p, e.rng.IntN(100_000), e.rng.IntN(100_000))
}

func (e *Editor) touch() (string, error) {
	p, err := e.pick(notLink)
	if err != nil {
		return p, err
	}
	t := time.Unix(e.rng.Int64N(2_000_000_000), e.rng.Int64N(1e9))
	return p, os.Chtimes(p, t, t)
}

func (e *Editor) renameFile() (string, error) { return e.rename(notDir) }
func (e *Editor) renameDir() (string, error)  { return e.rename(isDir) }

func (e *Editor) rename(keep func(string, fs.DirEntry) bool) (string, error) {
	from, err := e.pick(keep)
	if err != nil {
		return from, err
	}
	to, err := e.fresh()
	if err != nil {
		return from, err
	}
	err = os.Rename(from, to)
	if errors.Is(err, unix.EINVAL) { // into itself
		err = errNothing
	}
	return from + " to " + to, err
}

// renameOver replaces a file, which may be one link of many, or the same inode.
func (e *Editor) renameOver() (string, error) {
	from, err := e.pick(notDir)
	if err != nil {
		return from, err
	}
	to, err := e.pick(notDir)
	if err != nil {
		return to, err
	}
	return from + " to " + to, os.Rename(from, to)
}

// exchange gives two entries of any types each other's names.
func (e *Editor) exchange() (string, error) {
	a, err := e.pick(isAny)
	if err != nil {
		return a, err
	}
	b, err := e.pick(isAny)
	if err != nil {
		return b, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) { // one lies in the other, or the file system cannot do it
		err = errNothing
	}
	return a + " and " + b, err
}

func (e *Editor) remove() (string, error) {
	p, err := e.pick(notDir)
	if err != nil {
		return p, err
	}
	return p, os.Remove(p)
}

func (e *Editor) removeDir() (string, error) {
	p, err := e.pick(isDir)
	if err != nil {
		return p, err
	}
	return p, os.RemoveAll(p)
}

func (e *Editor) fileToDir() (string, error) {
	p, err := e.remove()
	if err != nil {
		return p, err
	}
	if err := os.Mkdir(p, 0o755); err != nil {
		return p, err
	}
	return p, os.WriteFile(filepath.Join(p, "was a file"), e.bytes(), 0o644)
}

func (e *Editor) dirToFile() (string, error) {
	p, err := e.removeDir()
	if err != nil {
		return p, err
	}
	return p, os.WriteFile(p, []byte("was a directory"), 0o600)
}

// swapType puts a symlink, a FIFO or a whiteout where something else was.
func (e *Editor) swapType() (string, error) {
	p, err := e.remove()
	if err != nil {
		return p, err
	}
	switch n := e.rng.IntN(3); {
	case n == 0:
		return p, os.Symlink("swapped", p)
	case n == 1 && os.Geteuid() == 0:
		return p, unix.Mknod(p, unix.S_IFCHR, 0)
	}
	return p, unix.Mkfifo(p, 0o640)
}

func (e *Editor) makeLink() (string, error) {
	old, err := e.pick(notDir)
	if err != nil {
		return old, err
	}
	p, err := e.fresh()
	if err != nil {
		return p, err
	}
	return p + " of " + old, os.Link(old, p)
}

func (e *Editor) breakLink() (string, error) {
	p, err := e.pick(func(path string, d fs.DirEntry) bool {
		var st unix.Stat_t
		return isFile(path, d) && unix.Lstat(path, &st) == nil && st.Nlink > 1
	})
	if err != nil {
		return p, err
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return p, err
	}
	if err := os.Remove(p); err != nil {
		return p, err
	}
	return p, os.WriteFile(p, b, 0o644)
}

func (e *Editor) symlink() (string, error) {
	p, err := e.fresh()
	if err != nil {
		return p, err
	}
	return p, os.Symlink("nowhere", p)
}

func (e *Editor) retarget() (string, error) {
	p, err := e.pick(isSymlink)
	if err != nil {
		return p, err
	}
	if err := os.Remove(p); err != nil {
		return p, err
	}
	return p, os.Symlink(fmt.Sprintf("target %d", e.rng.Uint32()), p)
}

func isFileOrDir(path string, d fs.DirEntry) bool { return isFile(path, d) || isDir(path, d) }

// setXattr takes a name that only root may set, and see, for half of what root edits.
func (e *Editor) setXattr() (string, error) {
	name, keep := "user.edited", isFileOrDir
	if os.Geteuid() == 0 && e.rng.IntN(2) == 0 {
		name, keep = "trusted.edited", isAny
	}
	p, err := e.pick(keep)
	if err != nil {
		return p, err
	}
	return p, unix.Lsetxattr(p, name, []byte(fmt.Sprint(e.rng.Uint64())), 0)
}

func (e *Editor) removeXattr() (string, error) { return e.removeOneOf("user.edited", "trusted.edited") }

func (e *Editor) setACL() (string, error) {
	p, err := e.pick(isFileOrDir)
	if err != nil {
		return p, err
	}
	name := AccessACL
	if st, err := os.Lstat(p); err == nil && st.IsDir() && e.rng.IntN(2) == 0 {
		name = DefaultACL
	}
	rights := func() string { return []string{"---", "r--", "r-x", "rw-", "rwx"}[e.rng.IntN(5)] }
	acl, err := ACL(fmt.Sprintf("u::rwx,u:%d:%s,g::%s,m::%s,o::%s", e.rng.IntN(100_000), rights(), rights(), rights(), rights()))
	if err != nil {
		return p, err
	}
	return p, unix.Lsetxattr(p, name, []byte(acl), 0)
}

func (e *Editor) removeACL() (string, error) { return e.removeOneOf(AccessACL, DefaultACL) }

// removeOneOf takes one of the extended attributes from something that has it.
func (e *Editor) removeOneOf(names ...string) (string, error) {
	has := func(path, name string) bool {
		_, err := unix.Lgetxattr(path, name, nil)
		return err == nil
	}
	name := names[e.rng.IntN(len(names))]
	p, err := e.pick(func(path string, _ fs.DirEntry) bool { return has(path, name) })
	if err != nil {
		return p, err
	}
	return p, unix.Lremovexattr(p, name)
}
