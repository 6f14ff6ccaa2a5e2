package treetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openRoot opens the directory of a tree.
func openRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// openDir opens the directory at path below root, one component at a time, and
// makes the directories that are missing when mk is set. The caller closes it.
func openDir(root int, path string, mk bool) (int, error) {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || path == "." {
		return fd, err
	}
	for _, name := range strings.Split(path, "/") {
		next, err := openStep(fd, name, mk)
		unix.Close(fd)
		if err != nil {
			return -1, &os.PathError{Op: "open directory", Path: path, Err: err}
		}
		fd = next
	}
	return fd, nil
}

func openStep(dir int, name string, mk bool) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if err != unix.ENOENT || !mk {
		return fd, err
	}
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return -1, err
	}
	return unix.Openat(dir, name, flags, 0)
}

// split cuts a path into the directory and the last component.
func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

// join puts a name below a directory.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// procPath returns a path that leads to the inode of fd itself, symlinks
// included, which system calls that take no descriptor need.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// handle opens name in dir for nothing but its inode: nothing is followed, and
// no FIFO or device is disturbed. The caller closes it.
func handle(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", name, err)
	}
	return fd, nil
}
