package backup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/disk"
)

// selection is the tree of what is backed up: everything below a node, or only
// the children named.
type selection struct {
	given    bool // it is one of the paths
	dir      bool // it is given as a directory
	all      bool // everything below is selected
	edge     bool // it is a mount that is not entered, but for the paths below it
	children map[string]*selection
}

// newSelection returns the selection of paths below root, which is absolute where it is
// not "". Symlinks above the last component are resolved, since what is stored is the
// tree as it is. A path that ends with a "/", or with "." or "..", is that of a directory,
// also where that is reached through a symlink.
func newSelection(root string, paths []string) (*selection, error) {
	s := &selection{}
	for _, path := range paths {
		resolved, err := resolve(root, path)
		if err != nil {
			return nil, err
		}
		if node := s.add(resolved); isDirPath(path) {
			node.dir = true
		}
	}
	return s, nil
}

// resolve returns the absolute path of what the kernel finds at a path, without symlinks
// but a last component. It takes no ".." away before symlinks are followed. A path that does
// not exist stays as it is behind the last "..", which must exist: the walk says that it is
// missing. Where root is not "", it is what "/" is in paths, absolute or not, and in symlinks.
func resolve(root, path string) (string, error) {
	follow := filepath.EvalSymlinks
	if root != "" {
		path = "/" + path
		follow = func(path string) (string, error) { return resolveIn(root, path) }
	}
	if !filepath.IsAbs(path) {
		here, err := unix.Getwd() // os.Getwd may have symlinks in it
		if err != nil {
			return "", fmt.Errorf("%s: the working directory: %w: give an absolute path", path, err)
		}
		path = here + "/" + path
	}
	parent, last := filepath.Split(path)
	if isDirPath(path) {
		parent, last = path, ""
	}
	resolved, err := follow(parent)
	if err != nil && !errors.Is(err, unix.EIO) {
		if parent, last = disk.CutUp(path); parent == "" {
			return filepath.Clean(path), nil
		}
		resolved, err = follow(parent)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return filepath.Join(resolved, last), nil
}

// resolveIn returns the path of a directory without symlinks, where root is the "/" of
// both paths and of all symlinks: none leads out of it.
func resolveIn(root, path string) (string, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(top)
	fd, err := enterIn(top, path)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return pathIn(top, fd)
}

// pathIn returns the path of an open directory in the one that is its "/".
func pathIn(root, dir int) (string, error) {
	above, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root))
	if err != nil {
		return "", err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return "", err
	}
	below, err := filepath.Rel(above, path)
	if err == nil && !filepath.IsLocal(below) { // it was moved meanwhile
		err = unix.ENOENT
	}
	return "/" + below, err
}

// isDirPath reports whether a path can only be that of a directory.
func isDirPath(path string) bool {
	_, last := filepath.Split(path)
	return last == "" || last == "." || last == ".."
}

// add selects an absolute, clean path, and returns its node.
func (s *selection) add(path string) *selection {
	for name := range strings.SplitSeq(path[1:], "/") {
		if name == "" { // "/" itself
			break
		}
		if s.children == nil {
			s.children = make(map[string]*selection)
		}
		child := s.children[name]
		if child == nil {
			child = &selection{}
			s.children[name] = child
		}
		s = child
	}
	s.given, s.all = true, true
	return s
}

// only returns the names to look at in the directory, ordered; nil means all.
func (s *selection) only() []string {
	if s.all {
		return nil
	}
	names := slices.AppendSeq(make([]string, 0, len(s.children)), maps.Keys(s.children))
	slices.Sort(names)
	return names
}

// child returns the selection of an entry of the directory.
func (s *selection) child(name string) *selection {
	child := s.children[name]
	switch {
	case !s.all:
		return child
	case child != nil:
		return &selection{given: child.given, dir: child.dir, all: true, children: child.children}
	case s.given || s.children != nil:
		return &selection{all: true}
	}
	return s
}

// leaves yields the given paths at and below the node, which lies at path.
func (s *selection) leaves(path string, yield func(path string)) {
	if s.given {
		yield(path)
	}
	s.leavesBelow(path, yield)
}

// leavesBelow yields those below it.
func (s *selection) leavesBelow(path string, yield func(path string)) {
	for _, name := range slices.Sorted(maps.Keys(s.children)) {
		s.children[name].leaves(join(path, name), yield)
	}
}

// join appends a name to a path of a generation.
func join(path, name string) string {
	if path == "." {
		return name
	}
	return path + "/" + name
}
