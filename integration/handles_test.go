package integration

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// handleOf returns a file handle as an NFS server would give it to a client.
func handleOf(t *testing.T, path string) unix.FileHandle {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Fatalf("name_to_handle_at %s: %v", path, err)
	}
	return h
}

// openHandle opens what a handle is of, in the mount at dir.
func openHandle(t *testing.T, dir string, h unix.FileHandle, flags int) (*os.File, error) {
	t.Helper()
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, h, flags|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// forgetNodes makes the kernel forget the nodes that nobody uses.
func forgetNodes(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
}

// wantHandles opens a handle of each path in the mount, those that lie deepest
// first, before anything is looked up by its path: it must be what the path leads
// to, and of a directory the kernel must find the way to it.
func wantHandles(t *testing.T, when string, m *fuseMount, handles map[string]unix.FileHandle) {
	t.Helper()
	found := map[string]unix.Stat_t{}
	paths := slices.SortedFunc(maps.Keys(handles), func(a, b string) int { return len(b) - len(a) })
	for _, path := range paths {
		f, err := openHandle(t, m.dir, handles[path], unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			t.Errorf("%s: open the handle of %s: %v", when, path, err)
			continue
		}
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		f.Close()
		must(t, err)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && where != filepath.Clean(m.path(path)) {
			t.Errorf("%s: the handle of %s leads to %s", when, path, where)
		}
		found[path] = st
	}
	for path, got := range found {
		var want unix.Stat_t
		must(t, unix.Lstat(m.path(path), &want))
		if got != want {
			t.Errorf("%s: the handle of %s: %+v, want %+v", when, path, got, want)
		}
	}
}

// TestFileHandles takes handles of everything in a mount, and opens them when the
// kernel has forgotten all, and in later mounts: an NFS server does so.
func TestFileHandles(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/b/c/file", Data: []byte("deep")}, {Path: "file", Data: []byte("1")},
		{Path: "link", Type: treetest.Symlink, Target: "file"}, {Path: "fifo", Type: treetest.FIFO}})
	r := newRepo(t)
	first := r.all(src, "--time", "2026-11-22T03:00:00Z").Generation
	write(t, filepath.Join(src, "a/b/c/file"), "changed")
	r.all(src, "--time", "2026-11-23T03:00:00Z")
	r.all(src, "--time", "2026-11-23T04:00:00Z", "--source", "web1")
	r.all(src, "--time", "2026-11-23T05:00:00Z", "--source", "web2")

	m := r.mount()
	handles := map[string]unix.FileHandle{".": handleOf(t, m.dir), "web1": handleOf(t, m.path("web1")), "latest": handleOf(t, m.path("latest"))}
	for _, generation := range []string{first, "2026-11-23T03-00-00Z", "web1/2026-11-23T04-00-00Z", "web2/2026-11-23T05-00-00Z"} {
		for _, path := range []string{"", "a", "a/b", "a/b/c", "a/b/c/file", "file", "link", "fifo"} {
			handles[generation+"/"+path] = handleOf(t, m.path(generation, path))
		}
	}
	deep := handles[first+"/a/b/c/file"]
	wantDeep := func(when string) {
		t.Helper()
		f, err := openHandle(t, m.dir, deep, unix.O_RDONLY)
		if err != nil {
			t.Fatalf("%s: open the handle of a file: %v", when, err)
		}
		defer f.Close()
		if b, err := io.ReadAll(f); err != nil || string(b) != "deep" {
			t.Errorf("%s: the file of a handle: %q, %v", when, b, err)
		}
	}
	wantDeep("at once")
	wantHandles(t, "at once", m, handles)
	forgetNodes(t)
	wantDeep("when it was forgotten")
	forgetNodes(t)
	wantHandles(t, "when all was forgotten", m, handles)
	for when, change := range map[string]func(){
		"in a later mount": func() {},
		"after a reindex":  func() { run(t, mkbackup, "reindex", r.dir) },
	} {
		m.stop()
		change()
		m.start(r)
		wantDeep(when)
		m.stop()
		m.start(r)
		wantHandles(t, when, m, handles)
	}

	run(t, mkbackup, "forget", r.dir, first)
	waitFor(t, 10*time.Second, "the generation to go", func() bool { _, err := os.Lstat(m.path(first)); return err != nil })
	m.stop()
	m.start(r)
	for path, h := range handles {
		if !strings.HasPrefix(path, first+"/") {
			continue
		}
		if f, err := openHandle(t, m.dir, h, unix.O_PATH|unix.O_DIRECTORY); err == nil {
			f.Close()
			t.Errorf("the handle of %s still leads to a directory", path)
		} else if !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("the handle of %s: %v, want ESTALE", path, err)
		}
	}
}

// TestFileHandlesOfOneGeneration does the same where a generation is the root of
// the mount, and where a source is.
func TestFileHandlesOfOneGeneration(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/b/file", Data: []byte("1")}})
	r := newRepo(t)
	r.all(src, "--time", "2026-11-22T03:00:00Z")
	r.all(src, "--time", "2026-11-23T03:00:00Z", "--source", "web1")
	for top, args := range map[string][]string{
		".":                    {"--generation", "web1/latest"},
		"2026-11-23T03-00-00Z": {"--source", "web1"},
	} {
		m := r.mount(args...)
		handles := map[string]unix.FileHandle{}
		for _, path := range []string{"", "a", "a/b", "a/b/file"} {
			handles[top+"/"+path] = handleOf(t, m.path(top, path))
		}
		m.stop()
		m.start(r, args...)
		wantHandles(t, strings.Join(args, " "), m, handles)
	}
}
