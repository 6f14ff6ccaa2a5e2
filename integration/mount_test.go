package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// names lists a directory of a mount, without what starts with a dot.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			all = append(all, e.Name())
		}
	}
	return all
}

func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); strings.Join(got, "|") != strings.Join(sorted(want), "|") {
		t.Errorf("%s lists %q, want %q", dir, got, want)
	}
}

// timedRepo has three generations of the unnamed source on two days, and one
// of web1. The file "number" counts them.
func timedRepo(t testing.TB) (*repo, string) {
	t.Helper()
	src := tempDir(t)
	r := newRepo(t)
	for i, at := range []string{"2024-03-01T10:00:00Z", "2024-03-01T22:30:00Z", "2024-03-02T10:00:00Z"} {
		write(t, filepath.Join(src, "number"), fmt.Sprint(i))
		r.all(src, "--time", at)
	}
	write(t, filepath.Join(src, "number"), "web1")
	r.all(src, "--source", "web1", "--time", "2024-03-03T10:00:00Z")
	return r, src
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

func TestLayoutOfTheMount(t *testing.T) {
	r, _ := timedRepo(t)
	m := r.mount()
	wantNames(t, m.dir, "2024-03-01T10-00-00Z", "2024-03-01T22-30-00Z", "2024-03-02T10-00-00Z", "latest", "web1")
	wantNames(t, m.path("web1"), "2024-03-03T10-00-00Z", "latest")
	for path, want := range map[string]string{"2024-03-01T10-00-00Z": "0", "2024-03-01": "1", "2024-03-02": "2", "2024-03-01T10": "0",
		"latest": "2", "web1/2024-03-03T10-00-00Z": "web1", "web1/latest": "web1", "web1/2024-03-03": "web1"} {
		wantContent(t, m.path(path, "number"), want)
	}
	for path, want := range map[string]string{"latest": "2024-03-02T10-00-00Z", "web1/latest": "2024-03-03T10-00-00Z"} {
		if got, err := os.Readlink(m.path(path)); err != nil || got != want {
			t.Errorf("%s is a symlink to %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"2024-03-04", "web2", "web1/2024-03-01", "nonsense"} {
		if _, err := os.Lstat(m.path(path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want that there is none", path, err)
		}
	}
}

func TestOneSourceOrOneGeneration(t *testing.T) {
	r, src := timedRepo(t)
	one := r.mount("--source", "web1")
	wantNames(t, one.dir, "2024-03-03T10-00-00Z", "latest")
	wantContent(t, one.path("latest", "number"), "web1")
	for generation, want := range map[string]string{"2024-03-01T10-00-00Z": "0", "2024-03-01": "1", "latest": "2", "latest~2": "0"} {
		m := r.mount("--generation", generation)
		wantContent(t, m.path("number"), want)
		m.stop()
	}
	last := r.mount("--source", "web1", "--generation", "latest")
	wantTree(t, "one generation", readTree(t, src), last.dir, treetest.Options{})
}

func TestEmptyRepositoryCanBeMounted(t *testing.T) {
	r := newRepo(t)
	m := r.mount()
	wantNames(t, m.dir)
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "first")
	s := r.all(src)
	waitFor(t, 2*time.Second, "the first generation", func() bool { _, err := os.Lstat(m.at(s.Generation, "file")); return err == nil })
	wantContent(t, m.path("latest", "file"), "first")
}

func TestMountIsReadOnly(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "file", Mode: 0o666, Data: []byte("x")}, {Path: "dir", Type: treetest.Dir, Mode: 0o777},
		{Path: "setuid", Mode: 0o4755, Data: []byte("x")}, {Path: "null", Type: treetest.Char, Major: 1, Minor: 3, Mode: 0o666}})
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	for _, option := range []string{"ro", "nosuid", "nodev"} {
		if info := mountInfo(t, m.dir); !strings.Contains(","+strings.Fields(info[0])[5]+",", ","+option+",") {
			t.Errorf("mounted without %s: %s", option, info[0])
		}
	}
	g := func(p string) string { return m.at(s.Generation, p) }
	for _, root := range []string{m.dir, g("dir")} {
		new := filepath.Join(root, "new")
		wantErrno(t, "create in "+root, unix.EROFS, os.WriteFile(new, nil, 0o644))
		wantErrno(t, "mkdir in "+root, unix.EROFS, os.Mkdir(new, 0o755))
		wantErrno(t, "symlink in "+root, unix.EROFS, os.Symlink("x", new))
		wantErrno(t, "mkfifo in "+root, unix.EROFS, unix.Mkfifo(new, 0o644))
	}
	wantErrno(t, "open for writing", unix.EROFS, func() error { _, err := os.OpenFile(g("file"), os.O_RDWR, 0); return err }())
	wantErrno(t, "truncate", unix.EROFS, os.Truncate(g("file"), 0))
	wantErrno(t, "chmod", unix.EROFS, os.Chmod(g("file"), 0o600))
	wantErrno(t, "chown", unix.EROFS, os.Lchown(g("file"), 1, 1))
	wantErrno(t, "utimes", unix.EROFS, os.Chtimes(g("file"), time.Now(), time.Now()))
	wantErrno(t, "remove", unix.EROFS, unix.Unlink(g("file")))
	wantErrno(t, "rmdir", unix.EROFS, unix.Rmdir(g("dir")))
	wantErrno(t, "rename", unix.EROFS, os.Rename(g("file"), g("renamed")))
	wantErrno(t, "link", unix.EROFS, os.Link(g("file"), g("linked")))
	wantErrno(t, "setxattr", unix.EROFS, unix.Setxattr(g("file"), "user.x", []byte("y"), 0))
	wantErrno(t, "removexattr", unix.EROFS, unix.Removexattr(g("file"), "user.x"))
	wantErrno(t, "remove a generation", unix.EROFS, unix.Rmdir(m.at(s.Generation)))
	wantErrno(t, "open a device", unix.EACCES, func() error { _, err := os.Open(g("null")); return err }())
}

func wantErrno(t testing.TB, what string, want unix.Errno, err error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestToolsOnTheMount compares what the usual tools print about the source and
// about the mount.
func TestToolsOnTheMount(t *testing.T) {
	src := tempDir(t)
	nodes := treetest.Random(8, treetest.RandomOptions{Owners: true})
	nodes = append(nodes, treetest.Node{Path: "acl/file", Xattrs: map[string]string{
		treetest.AccessACL: acl(t, "u::rwx,u:1000:r--,g::r-x,m::rwx,o::---"), "user.a": "b", "user.z": "\x00\xff"}},
		treetest.Node{Path: "acl/dir", Type: treetest.Dir, Xattrs: map[string]string{
			treetest.DefaultACL: acl(t, "u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---")}})
	createTree(t, src, nodes)
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	root := m.at(s.Generation)
	for what, script := range map[string]string{
		"stat":     `find . -print0 | sort -z | xargs -0 stat -c '%N %a %F %u %g %t %T %y'`,
		"sizes":    `find . ! -type d -print0 | sort -z | xargs -0 stat -c '%N %h %s'`,
		"find":     `find . -printf '%P %y %m %U %G %T@ %l\n' | sort`,
		"find -ls": `find . ! -type d -ls | awk '{ $1 = $2 = ""; print }' | sort`,
		"getfattr": `find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex 2>&1 | sort`,
		"getfacl":  `find . ! -type l -print0 | sort -z | xargs -0 getfacl -n -p`,
		"ls":       `LC_ALL=C ls -lanR --time-style=full-iso . | grep -v '^d\|^total'`,
		"sum":      `find . -type f -print0 | sort -z | xargs -0 sha256sum`,
		"tail":     `find . -type f -print0 | sort -z | xargs -0 tail -qc 7 | sha256sum`,
		"head":     `find . -type f -print0 | sort -z | xargs -0 head -qc 7 | sha256sum`,
		"links":    `find . -type f -links +1 -printf '%n %P\n' | sort`,
	} {
		want := shell(t, "cd \"$1\"\n"+script, src)
		got := shell(t, "cd \"$1\"\n"+script, root)
		if want != got {
			t.Errorf("%s differs:\n%s", what, firstDifference(want, got))
		}
	}
	run(t, "find", m.dir, "-ls")
	// tar itself forgets sockets and hard links of FIFOs: what it makes of the
	// source is what it must make of the mount.
	var trees []*treetest.Tree
	for _, from := range []string{src, root} {
		to := tempDir(t)
		shell(t, `tar -C "$1" --xattrs --xattrs-include='*' --acls --format=posix -cf - . 2>/dev/null | tar -C "$2" --xattrs --xattrs-include='*' --acls -xpf -`, from, to)
		trees = append(trees, readTree(t, to))
	}
	wantEqual(t, "tar", trees[0], trees[1], treetest.Options{})
	if n := len(readTree(t, src).Entries); len(trees[0].Entries) < n*9/10 {
		t.Errorf("tar restores only %d entries of %d", len(trees[0].Entries), n)
	}

	for _, how := range []string{"always", "auto", "never"} {
		to := filepath.Join(tempDir(t), how)
		run(t, "cp", "-a", "--sparse="+how, root, to)
		wantTree(t, "cp --sparse="+how, readTree(t, src), to, treetest.Options{})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return fmt.Sprintf("line %d:\n source %s\n mount  %s", i+1, w[i], g[i])
		}
	}
	return fmt.Sprintf("%d lines at the source, %d in the mount", len(w), len(g))
}

// numberedLines is text that compresses, but no two chunks of it are equal.
func numberedLines(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.Bytes()
}

func TestDf(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "noise", Data: treetest.Content(9, 300_000)}, {Path: "text", Data: numberedLines(200_000)}})
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	var size, used int64
	_, err := fmt.Sscan(shell(t, `df -B1 --output=size,used "$1" | tail -n 1`, m.dir), &size, &used)
	must(t, err)
	stored := r.partBytes()
	if size < s.RawBytes || size > s.RawBytes+s.RawBytes/4 || used < stored || used > stored+stored/4 {
		t.Errorf("df shows size %d and used %d; the repository has %d raw and %d stored bytes", size, used, s.RawBytes, stored)
	}
}

// TestReaders reads one tree in every way at once: whole files, random ranges,
// memory maps, from the end; 100 readers, on a cache that holds little.
func TestReaders(t *testing.T) {
	src := tempDir(t)
	var nodes []treetest.Node
	for i := range 40 {
		size := []int64{10, 5_000, 70_000, 600_000, 3 << 20}[i%5]
		nodes = append(nodes, treetest.Node{Path: fmt.Sprint("f", i), Seed: uint64(i) + 1, Size: size})
	}
	createTree(t, src, nodes)
	r := newRepo(t)
	s := r.all(src)
	m := r.mount("--cache-size", "4MiB")
	var wait sync.WaitGroup
	for reader := range 100 {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(reader), 3))
			for range 10 {
				n := nodes[rng.IntN(len(nodes))]
				want := treetest.Content(n.Seed, n.Size)
				if err := readSomehow(rng, m.at(s.Generation, n.Path), want); err != nil {
					t.Errorf("reader %d, %s: %v", reader, n.Path, err)
				}
			}
		})
	}
	wait.Wait()
}

func readSomehow(rng *rand.Rand, path string, want []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	switch rng.IntN(3) {
	case 0:
		got, err := os.ReadFile(path)
		return wantBytes(got, want, err)
	case 1:
		got, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("mmap: %w", err)
		}
		defer unix.Munmap(got)
		return wantBytes(got, want, nil)
	}
	for range 20 {
		off := rng.IntN(len(want))
		b := make([]byte, min(1+rng.IntN(200_000), len(want)-off))
		n, err := f.ReadAt(b, int64(off))
		if err := wantBytes(b[:n], want[off:off+len(b)], err); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
	}
	return nil
}

func wantBytes(got, want []byte, err error) error {
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("wrong bytes: %d, want %d", len(got), len(want))
	}
	return err
}

// TestInodeNumbers wants the number of an unchanged file to be the same in
// every generation, after a remount and after a reindex, and unique in each.
func TestInodeNumbers(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(9, treetest.RandomOptions{Owners: true}))
	createTree(t, src, []treetest.Node{{Path: "will change", Data: []byte("1")}, {Path: "kept", Data: []byte("k")},
		{Path: "linked", Data: []byte("l")}, {Path: "linked too", Type: treetest.HardLink, Target: "linked"}})
	r := newRepo(t)
	first := r.all(src)
	write(t, filepath.Join(src, "will change"), "2")
	second := r.all(src)
	numbers := func(m *fuseMount, generation string) map[string]string {
		all := map[string]string{}
		for _, line := range strings.Split(strings.TrimSuffix(shell(t, `find "$1" -printf '%i %y %P\0'`, m.path(generation)), "\x00"), "\x00") {
			number, path, _ := strings.Cut(line, " ")
			all[path] = number
		}
		return all
	}
	m := r.mount()
	one, two := numbers(m, first.Generation), numbers(m, second.Generation)
	for path, number := range one {
		isDir := strings.HasPrefix(path, "d ")
		switch {
		case path == "f will change":
			if two[path] == number {
				t.Error("a changed file has the same inode number")
			}
		case !isDir && two[path] != number:
			t.Errorf("%q has inode %s, in the next generation %s", path, number, two[path])
		}
	}
	if one["f linked"] != one["f linked too"] {
		t.Error("hard links have different inode numbers")
	}
	tree := readTree(t, m.at(first.Generation))
	seen := map[uint64]*treetest.Entry{}
	for _, e := range tree.Entries {
		if other := seen[e.Inode]; other != nil && (e.Link == "" || e.Link != other.Link) {
			t.Errorf("%q and %q share inode %d", e.Path, other.Path, e.Inode)
		}
		seen[e.Inode] = e
	}
	same := func(what string) {
		t.Helper()
		again := r.mount()
		for path, number := range numbers(again, first.Generation) {
			if one[path] != number {
				t.Errorf("%s: %q has inode %s, before %s", what, path, number, one[path])
			}
		}
		again.stop()
	}
	m.stop()
	same("after remount")
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	same("after a rebuild of the index")
}

func TestTrustedXattrsAreHidden(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "file", Mode: 0o644, Xattrs: map[string]string{"trusted.secret": "s", "user.open": "o"}}})
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	got := asUserAsk(t, 1000, 1000, nil, m.at(s.Generation), []string{"file"})[`"file"`]["xattrs"]
	if want := `["user.open"] trusted.secret=ENODATA user.open=6f user.x=ENODATA`; got != want {
		t.Errorf("another user sees %q, want %q", got, want)
	}
	if got := run(t, "getfattr", "--only-values", "-n", "trusted.secret", m.at(s.Generation, "file")); got != "s" {
		t.Errorf("root sees trusted.secret as %q", got)
	}
}

func TestForegroundAndSignals(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	s := r.all(src)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		for _, flag := range []string{"-f", "--foreground"} {
			dir := mkdir(t, tempDir(t), "mnt")
			notify, ready := notifySocket(t)
			cmd := exec.Command(backupfs, flag, r.dir, dir)
			cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
			b := start(t, cmd)
			select {
			case message := <-ready:
				if !strings.Contains("\n"+message+"\n", "\nREADY=1\n") {
					t.Errorf("sd_notify says %q", message)
				}
			case <-b.done:
				t.Fatalf("%s ended: %s", flag, b.stderr.String())
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: no sd_notify", flag)
			}
			wantContent(t, filepath.Join(dir, s.Generation, "file"), "x")
			b.cmd.Process.Signal(signal)
			if code := b.wait(t, 10*time.Second); code != 0 && code != 128+int(signal) {
				t.Errorf("%s after %v: exit code %d\n%s", flag, signal, code, b.stderr.String())
			}
			if isMounted(t, dir) {
				t.Errorf("still mounted after %v", signal)
				unix.Unmount(dir, unix.MNT_DETACH)
			}
		}
	}
}

// A signal in the moment in which the mount appears leaves no dead one behind.
func TestSignalWhileMounting(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	dir := mkdir(t, tempDir(t), "mnt")
	for range 20 {
		b := start(t, exec.Command(backupfs, "--foreground", r.dir, dir))
		for deadline := time.Now().Add(time.Minute); !isMounted(t, dir); {
			if time.Now().After(deadline) {
				t.Fatal("it is not mounted")
			}
		}
		b.cmd.Process.Signal(syscall.SIGTERM)
		if code := b.wait(t, time.Minute); code != 0 {
			t.Errorf("exit code %d\n%s", code, b.stderr.String())
		}
		if isMounted(t, dir) {
			t.Error("a dead mount is left")
			must(t, unix.Unmount(dir, unix.MNT_DETACH))
		}
	}
}

func notifySocket(t *testing.T) (string, <-chan string) {
	t.Helper()
	path := filepath.Join(tempDir(t), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	messages := make(chan string, 10)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			messages <- string(b[:n])
		}
	}()
	return path, messages
}

// TestBackground wants the mount ready when the command returns, its streams
// closed, and SIGTERM, umount and fusermount3 to end it.
func TestBackground(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	s := r.all(src)
	for what, end := range map[string]func(*fuseMount){
		"SIGTERM":         func(m *fuseMount) { syscall.Kill(daemons(t, m.dir)[0], syscall.SIGTERM) },
		"umount":          func(m *fuseMount) { run(t, "umount", m.dir) },
		"fusermount3 -u":  func(m *fuseMount) { run(t, "fusermount3", "-u", m.dir) },
		"umount, 2 files": func(m *fuseMount) { wantContent(t, m.path("latest", "file"), "x"); run(t, "umount", m.dir) },
	} {
		m := r.mount() // returns only when the output pipes are closed
		wantContent(t, m.at(s.Generation, "file"), "x")
		if pids := daemons(t, m.dir); len(pids) != 1 {
			t.Fatalf("%s: %d daemons", what, len(pids))
		}
		end(m)
		waitFor(t, 10*time.Second, what+" to end the daemon", func() bool { return len(daemons(t, m.dir)) == 0 && !isMounted(t, m.dir) })
	}
	r.wantNoLeftovers()
}

// TestRelativePaths gives both programs paths relative to the working directory,
// which the daemon does not keep.
func TestRelativePaths(t *testing.T) {
	base := tempDir(t)
	write(t, filepath.Join(mkdir(t, base, "src"), "file"), "x")
	m := &fuseMount{t: t, dir: mkdir(t, base, "mnt")}
	t.Cleanup(m.stop)
	for _, args := range [][]string{{mkbackup, "init", "repo"}, {mkbackup, "create", "repo", "--root", "src", "/"}, {backupfs, "repo", "mnt"},
		{mkbackup, "create", "repo", "--root", "src", "/", "--source", "again"}} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = base
		if res := runCmd(t, cmd); res.code != 0 {
			t.Fatalf("%s: exit code %d\n%s", args, res.code, res.stderr)
		}
	}
	wantContent(t, m.path("latest", "file"), "x")
	wantContent(t, m.at("again/latest", "file"), "x")
	(&repo{t: t, dir: filepath.Join(base, "repo")}).verify()
}

// TestKilledDaemon leaves a dead mount, which must not keep anything locked, and
// gives way to the next one, also where the mount point is given by a symlink.
func TestKilledDaemon(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	m := r.mount()
	kill := func(dir string) {
		t.Helper()
		syscall.Kill(daemons(t, dir)[0], syscall.SIGKILL)
		waitFor(t, 10*time.Second, "the daemon to die", func() bool { return len(daemons(t, dir)) == 0 })
	}
	kill(m.dir)
	link := filepath.Join(tempDir(t), "link")
	must(t, os.Symlink(m.dir, link))
	run(t, backupfs, r.dir, link)
	kill(link)
	run(t, backupfs, r.dir, link)
	wantContent(t, m.path("latest", "file"), "x")
	kill(link)
	write(t, filepath.Join(src, "file"), "y")
	s := r.all(src)
	m.start(r)
	wantContent(t, m.path(s.Generation, "file"), "y")
	if lines := mountInfo(t, m.dir); len(lines) != 1 {
		t.Errorf("mounts over one another: %q", lines)
	}
}

// TestListAndLs compares what `list` and `ls` say with the mount.
func TestListAndLs(t *testing.T) {
	r, _ := timedRepo(t)
	if got := strings.Join(r.generations("--source", "web1"), " "); got != "2024-03-03T10-00-00Z" {
		t.Errorf("list --source web1 gives %s", got)
	}
	if got := len(r.generations()); got != 4 {
		t.Errorf("list gives %d generations, want 4", got)
	}
	src := tempDir(t)
	createTree(t, src, everyNamedThing())
	r.all(src, "--source", "names")
	res := r.mkbackup("ls", "names/latest", "/", "--json")
	if res.code != 0 {
		t.Fatalf("ls: exit code %d\n%s", res.code, res.stderr)
	}
	var got []string
	for d := json.NewDecoder(strings.NewReader(res.stdout)); d.More(); {
		var e struct {
			Name   string
			Name64 []byte
		}
		must(t, d.Decode(&e))
		got = append(got, e.Name+string(e.Name64))
	}
	var want []string
	for _, n := range everyNamedThing() {
		want = append(want, n.Path)
	}
	if strings.Join(got, "|") != strings.Join(sorted(want), "|") {
		t.Errorf("ls --json gives %q, want %q", got, want)
	}
	for generation, code := range map[string]int{"1": 0, "2024-03-01": 0, "latest": 0, "latest~2": 0, "latest~3": 1, "web1/latest": 0, "99": 1, "2025": 1, "nonsense": 1} {
		res := r.mkbackup("ls", generation)
		if res.code != code {
			t.Errorf("ls %s: exit code %d, want %d: %s", generation, res.code, code, res.stderr)
		}
		if code == 1 {
			wantOneLine(t, res.stderr, strings.TrimSuffix(generation, "~3"))
		}
	}
	if res := r.mkbackup("ls", "latest", "no/such/path"); res.code != 1 {
		t.Errorf("ls of a path that is not there: exit code %d", res.code)
	} else {
		wantOneLine(t, res.stderr, "no/such/path")
	}
}

// everyNamedThing is one of each kind, with plain and with odd names.
func everyNamedThing() []treetest.Node {
	return []treetest.Node{{Path: "file", Data: []byte("x")}, {Path: "dir", Type: treetest.Dir}, {Path: "link", Type: treetest.Symlink, Target: "\xff"},
		{Path: "new\nline"}, {Path: "\xff\xfe"}, {Path: "fifo", Type: treetest.FIFO}, {Path: "dev", Type: treetest.Char, Major: 1, Minor: 3}}
}

// TestXattrsAppear mounts generations without extended attributes and adds one
// that has some: everybody sees them then, and a shell that sits in the mount
// goes on reading. umount leaves nothing, however often that happens.
func TestXattrsAppear(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "file", Mode: 0o644, Data: []byte("content")}})
	plain := newRepo(t)
	first := plain.all(src)
	for i := range 3 {
		dir := filepath.Join(tempDir(t), "repo")
		run(t, "cp", "-a", plain.dir, dir)
		r := &repo{t: t, dir: dir}
		m := r.mount()
		inside := exec.Command("sh", "-c", "read line; cat file")
		inside.Dir = m.at(first.Generation)
		stdin, err := inside.StdinPipe()
		must(t, err)
		b := start(t, inside)

		tree := tempDir(t)
		run(t, "cp", "-a", src+"/.", tree)
		run(t, "setfattr", "-n", "user.color", "-v", "red", filepath.Join(tree, "file"))
		second := r.all(tree)
		waitFor(t, 2*time.Second, "the attribute", func() bool {
			res := runCmd(t, exec.Command("getfattr", "--only-values", "-n", "user.color", m.path(second.Generation, "file")))
			return res.code == 0 && res.stdout == "red"
		})
		if i == 2 { // umount while the old mount is in use
			run(t, "umount", m.dir)
		}
		_, err = stdin.Write([]byte("\n"))
		must(t, err)
		if code := b.wait(t, 30*time.Second); code != 0 || b.stdout.String() != "content" {
			t.Errorf("the shell in the old mount reads %q, exit code %d: %s", b.stdout.String(), code, b.stderr.String())
		}
		if i < 2 {
			run(t, "umount", m.dir)
		}
		waitFor(t, 30*time.Second, "the daemon to end", func() bool { return len(daemons(t, m.dir)) == 0 })
		if lines := mountInfo(t, m.dir); len(lines) != 0 {
			t.Errorf("umount leaves %q", lines)
		}
	}
}
