package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/treetest"
)

// wantPaths fails the test unless a generation has just these paths, besides its root.
func (r *repo) wantPaths(s summary, want ...string) {
	r.t.Helper()
	m := r.mount("--generation", s.Generation)
	defer m.stop()
	want = sorted(append(want, "."))
	if got := readTree(r.t, m.dir).Paths(); strings.Join(got, "|") != strings.Join(want, "|") {
		r.t.Errorf("generation %s has %q, want %q", s.Generation, got, want)
	}
}

// files declares files.
func files(paths ...string) []treetest.Node {
	var nodes []treetest.Node
	for _, path := range paths {
		nodes = append(nodes, treetest.Node{Path: path, Data: []byte(path)})
	}
	return nodes
}

// TestExcludePatterns gives patterns in every way there is, on names that are no text.
func TestExcludePatterns(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("a.o", "keep.o", "new\nline", "sub/new\nline", "\xff\xfe", "sub/\xffx", "cache/deep/x", "sub/cache/y", "#c", "space ", "z"))
	r := newRepo(t)
	first := r.all(src)
	if first.Excluded != 0 {
		t.Errorf("nothing is excluded: %+v", first)
	}
	file := filepath.Join(tempDir(t), "patterns")
	write(t, file, "# a comment\n\n/cache/ \n\\#c\nspace\\ \n")
	args := []string{"create", r.dir, "--json", "-v", "--root", src, "--exclude", "*.o", "--exclude", "new\nline", "--exclude-from", file, "--exclude-from=-", "--exclude", "!keep.o", "/"}
	cmd := exec.Command(mkbackup, args...)
	cmd.Stdin = strings.NewReader("\xff?\r\n!sub/\xffx")
	res := runCmd(t, cmd)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.stderr)
	}
	s := parseSummary(t, res.stdout)
	if s.Excluded != 7 || s.Gone != 9 || s.Errors != 0 {
		t.Errorf("summary: %+v", s)
	}
	for _, line := range []string{"! /a.o: excluded by the pattern *.o\n", "! \"/new\\nline\": excluded by the pattern ", "! \"/\\xff\\xfe\": excluded by the pattern ", "! /cache: excluded by the pattern ", "- /cache/deep/x\n"} {
		if strings.Count(res.stdout, line) != 1 {
			t.Errorf("-v does not print %q once:\n%s", line, res.stdout)
		}
	}
	if n := strings.Count("\n"+res.stdout, "\n! "); n != 7 {
		t.Errorf("-v prints %d excluded paths, want 7:\n%s", n, res.stdout)
	}
	r.wantPaths(s, "keep.o", "sub", "sub/\xffx", "sub/cache", "sub/cache/y", "z")

	if res := r.mkbackup("create", "--root", src, "--exclude", "cache", "/"); res.code != 0 || !strings.Contains(res.stdout, ", 2 paths excluded;") || strings.Contains(res.stdout, "! ") {
		t.Errorf("for people: exit code %d\n%s%s", res.code, res.stdout, res.stderr)
	}
	if res := r.mkbackup("create", "--dry-run", "-v", "--root", src, "--exclude", "cache", "/"); res.code != 0 || !strings.Contains(res.stdout, "! /sub/cache: excluded by the pattern cache\n") {
		t.Errorf("dry run: exit code %d\n%s%s", res.code, res.stdout, res.stderr)
	}
	all := readTree(t, src)
	last := r.all(src)
	wantTree(t, "nothing excluded any more", all, r.mount("--generation", last.Generation).dir, treetest.Options{})
}

func TestExcludeMistakes(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("a/b", "c"))
	file := filepath.Join(tempDir(t), "patterns")
	write(t, file, "fine\n\n[a-\n")
	r := newRepo(t)
	for _, c := range []struct {
		args  []string
		names string
	}{
		{[]string{"--exclude", "x[y"}, "x[y"},
		{[]string{"--exclude", ""}, "empty"},
		{[]string{"--exclude", "./x"}, "./x"},
		{[]string{"--exclude-from", file}, file + ":3: "},
		{[]string{"--exclude-from", file + "-none"}, file + "-none"},
		{[]string{"--exclude-if-present", "a/b"}, "a/b"},
		{[]string{"--exclude-if-present", ".."}, ".."},
	} {
		_, res := r.createExit(2, append(c.args, "--root", src, "/")...)
		wantOneLine(t, res.stderr, c.names)
	}
	if n := len(r.records()); n != 0 {
		t.Errorf("%d records", n)
	}
	_, res := r.createExit(1, "--root", src, "--exclude", "/a", "/a/b")
	if strings.Count(res.stderr, "/a/b: excluded by the pattern /a\n") != 1 {
		t.Errorf("an excluded path alone: %s", res.stderr)
	}
	s, res := r.createExit(3, "--root", src, "--exclude", "/a", "/a/b", "/c")
	if s.Errors != 1 || strings.Count(res.stderr, "/a/b: excluded by the pattern /a\n") != 1 {
		t.Errorf("an excluded path: %+v\n%s", s, res.stderr)
	}
	r.wantPaths(s, "c")
}

// TestExcludedIsNotListed: what is excluded, and other mounts, may be slow or hang.
func TestExcludedIsNotListed(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("skip/x", "tagged/sub/x", "tagged/.nobackup", "taken/x"))
	mountAt(t, mkdir(t, src, "mnt"), "-t", "tmpfs", "tmpfs")
	createTree(t, src, files("mnt/sub/x"))
	r := newRepo(t)
	trace := filepath.Join(tempDir(t), "trace")
	run(t, "strace", "-f", "-y", "-qq", "-o", trace, "-e", "trace=getdents64", mkbackup, "create", r.dir, "--root", src,
		"--exclude", "skip", "--exclude-if-present", ".nobackup", "--one-file-system", "/")
	b, err := os.ReadFile(trace)
	must(t, err)
	for path, want := range map[string]bool{"": true, "/taken": true, "/tagged": true, "/tagged/sub": false, "/skip": false, "/mnt": false, "/mnt/sub": false} {
		if got := strings.Contains(string(b), "<"+src+path+">"); got != want {
			t.Errorf("%s%s was listed: %v, want %v", src, path, got, want)
		}
	}
}

func TestExcludeCaches(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("real/1", "real/sub/2", "false/1", "link/1", "skip/1", "skip/sub/.skip", "open/sub/.skip", "open/sub/1", "open/sub/CACHEDIR.TAG/1"))
	write(t, filepath.Join(src, "real/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n# This is a cache")
	write(t, filepath.Join(src, "false/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc54\n# This is not")
	write(t, filepath.Join(src, "skip/.skip"), "")
	must(t, os.Symlink("../real/CACHEDIR.TAG", filepath.Join(src, "link/CACHEDIR.TAG")))
	r := newRepo(t)
	s := r.all(src, "--exclude-caches")
	r.wantPaths(s, "real", "real/CACHEDIR.TAG", "false", "false/1", "false/CACHEDIR.TAG", "link", "link/1", "link/CACHEDIR.TAG", "skip", "skip/1", "skip/.skip",
		"skip/sub", "skip/sub/.skip", "open", "open/sub", "open/sub/.skip", "open/sub/1", "open/sub/CACHEDIR.TAG", "open/sub/CACHEDIR.TAG/1")
	s = r.all(src, "--exclude-caches", "--exclude-if-present", ".skip", "--exclude-if-present", "nowhere", "--exclude", "false")
	r.wantPaths(s, "real", "real/CACHEDIR.TAG", "link", "link/1", "link/CACHEDIR.TAG", "skip", "skip/.skip", "open", "open/sub", "open/sub/.skip")
	if s.Excluded != 7 || s.Errors != 0 {
		t.Errorf("summary: %+v", s)
	}
	// tar agrees on the real one and the false one.
	list := strings.Fields(shell(t, `cd "$1"; tar --exclude-caches -cf - real false | tar tf - | sort`, src))
	if want := []string{"false/", "false/1", "false/CACHEDIR.TAG", "real/", "real/CACHEDIR.TAG"}; strings.Join(list, " ") != strings.Join(want, " ") {
		t.Errorf("tar stores %q, want %q", list, want)
	}
}

func TestExcludeNoDump(t *testing.T) {
	src := imageDir(t)
	must(t, os.Remove(filepath.Join(src, "lost+found")))
	createTree(t, src, files("a", "b", "dir/x", "dir/sub/y", "other/z"))
	run(t, "chattr", "+d", filepath.Join(src, "b"), filepath.Join(src, "dir"), filepath.Join(src, "other/z"))
	r := newRepo(t)
	r.wantPaths(r.all(src), "a", "b", "dir", "dir/x", "dir/sub", "dir/sub/y", "other", "other/z")
	s := r.all(src, "--exclude-nodump")
	r.wantPaths(s, "a", "other")
	if s.Excluded != 3 || s.Gone != 6 {
		t.Errorf("summary: %+v", s)
	}
	// What lies above the path does not matter.
	r.wantPaths(r.create("--root", src, "--exclude-nodump", "/dir/x"), "dir", "dir/x")
	s, res := r.createExit(3, "--root", src, "--exclude-nodump", "/dir", "/a", "/dir/sub")
	r.wantPaths(s, "a")
	for _, path := range []string{"/dir: excluded: ", "/dir/sub: excluded: "} {
		if strings.Count(res.stderr, path) != 1 {
			t.Errorf("%q is not said once: %s", path, res.stderr)
		}
	}
}

// TestOneFileSystem has mounts of another device, of the same one, and of a file.
func TestOneFileSystem(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("a", "tmp/below", "bind/below", "from/x", "from/sub/y", "file", "deep/down/z"))
	mountAt(t, filepath.Join(src, "tmp"), "-t", "tmpfs", "-o", "mode=700", "tmpfs")
	createTree(t, src, files("tmp/1", "tmp/u/v/2", "tmp/u/w"))
	mountAt(t, filepath.Join(src, "bind"), "--bind", filepath.Join(src, "from"))
	mountAt(t, filepath.Join(src, "file"), "--bind", filepath.Join(src, "a"))
	r := newRepo(t)
	everything := r.all(src)
	if everything.Excluded != 0 {
		t.Errorf("without the option: %+v", everything)
	}
	one := []string{"a", "tmp", "bind", "from", "from/x", "from/sub", "from/sub/y", "deep", "deep/down", "deep/down/z"}
	s, res := r.createExit(0, "--root", src, "/", "--one-file-system")
	r.wantPaths(s, one...)
	if want := "mkbackup: other file systems are left out: /bind, /tmp\n"; res.stderr != want {
		t.Errorf("it says %q, want %q", res.stderr, want)
	}
	if s.Excluded != 3 || s.Errors != 0 {
		t.Errorf("summary: %+v", s)
	}
	m := r.mount("--generation", s.Generation)
	st, err := os.Stat(filepath.Join(m.dir, "tmp"))
	must(t, err)
	if st.Mode() != os.ModeDir|0o700 {
		t.Errorf("the mount point has the mode %v, want that of what is mounted", st.Mode())
	}

	// Paths given are entered, whether another one holds them or not.
	r.wantPaths(r.create("--root", src, "--one-file-system", "/tmp", "/file"), "tmp", "tmp/1", "tmp/u", "tmp/u/v", "tmp/u/v/2", "tmp/u/w", "file")
	r.wantPaths(r.create("--root", src, "--one-file-system", "/", "/bind"), append(one, "bind/x", "bind/sub", "bind/sub/y")...)
	r.wantPaths(r.create("--root", src, "--one-file-system", "/", "/tmp/u/v", "/file"), append(one, "tmp/u", "tmp/u/v", "tmp/u/v/2", "file")...)
	s, res = r.createExit(3, "--root", src, "--one-file-system", "/", "/tmp/u/none")
	if s.Errors != 1 || !strings.Contains(res.stderr, "/tmp/u/none: ") {
		t.Errorf("a missing path on another mount: %+v\n%s", s, res.stderr)
	}
}

// TestUnseenMounts: root may not even look at another user's mount of FUSE, and nobody at one
// that has lost its server. What is excluded of them is no error, anything else is.
func TestUnseenMounts(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, files("file"))
	must(t, os.Chown(mkdir(t, src, "u"), somebody, somebody))
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	as := asUser(somebody, somebody, nil, "true").Args
	user := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := user.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	m := &fuseMount{t: t, dir: mkdir(t, src, "u/mnt")}
	must(t, os.Chown(m.dir, somebody, somebody))
	m.start(user)
	t.Cleanup(m.stop)
	dead := mkdir(t, src, "dead")
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Mount("dead", dead, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)))
	t.Cleanup(func() { unix.Unmount(dead, unix.MNT_DETACH) })
	must(t, unix.Close(server))
	for path, want := range map[string]error{m.dir: unix.EACCES, dead: unix.ENOTCONN} {
		if _, err := os.Lstat(path); !errors.Is(err, want) {
			t.Fatalf("root looks at %s: %v, want %v", path, err, want)
		}
	}

	r := newRepo(t)
	wants := func(code int, excluded, problems int64, args ...string) (summary, result) {
		t.Helper()
		s, res := r.createExit(code, append(args, "--root", src)...)
		if s.Excluded != excluded || s.Errors != problems {
			t.Errorf("%q: %+v\n%s", args, s, res.stderr)
		}
		return s, res
	}
	_, res := wants(3, 0, 2, "/")
	for _, line := range []string{"/u/mnt: permission denied\n", "/dead: transport endpoint is not connected\n"} {
		if strings.Count(res.stderr, line) != 1 {
			t.Errorf("%q is not said once: %s", line, res.stderr)
		}
	}
	s, res := wants(0, 2, 0, "/", "--one-file-system")
	r.wantPaths(s, "file", "u")
	for _, line := range []string{"/u/mnt is left out, ", "/dead is left out, "} {
		if strings.Count(res.stderr, line) != 1 {
			t.Errorf("%q is not said once: %s", line, res.stderr)
		}
	}
	s, res = wants(0, 2, 0, "/", "--exclude", "mnt/", "--exclude", "/dead/")
	r.wantPaths(s, "file", "u")
	if res.stderr != "" {
		t.Errorf("excluded by patterns: %s", res.stderr)
	}
	wants(3, 1, 1, "/", "--exclude", "mnt/")
	wants(3, 1, 1, "/", "--one-file-system", "/u/mnt")
	wants(3, 2, 1, "/", "--one-file-system", "/u/mnt/x")
}

// TestAutomounter: of what an automounter holds, that is backed up which is mounted, and
// nothing is mounted for it. The test is the automounter (autofs, Documentation/filesystems/autofs.rst).
func TestAutomounter(t *testing.T) {
	src := tempDir(t)
	home := mkdir(t, src, "home")
	requests, answers, err := os.Pipe()
	must(t, err)
	defer requests.Close()
	options := fmt.Sprintf("fd=%d,minproto=5,maxproto=5,indirect", answers.Fd())
	must(t, unix.Mount("auto.home", home, "autofs", 0, options))
	defer unix.Unmount(home, 0)
	createTree(t, src, files("file"))
	for _, name := range []string{"alice", "bob"} {
		must(t, os.Mkdir(filepath.Join(home, name), 0o755))
	}
	alice := filepath.Join(home, "alice")
	must(t, unix.Mount("tmpfs", alice, "tmpfs", 0, ""))
	defer unix.Unmount(alice, 0)
	createTree(t, alice, files("letter"))

	r := newRepo(t)
	cmd := r.command("create", "--json", "--root", src, "/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what the automounter's own group does asks for no mount
	b := start(t, cmd)
	if code := b.wait(t, 10*time.Second); code != 0 || !strings.Contains(b.stderr.String(), "/home is an automounter's") {
		t.Fatalf("exit code %d: %s", code, b.stderr.String())
	}
	var s summary
	must(t, json.Unmarshal(b.stdout.Bytes(), &s))
	r.wantPaths(s, "file", "home", "home/alice", "home/alice/letter")
	must(t, requests.SetReadDeadline(time.Now()))
	if n, err := requests.Read(make([]byte, 1000)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the automounter was asked for a mount: %d bytes, %v", n, err)
	}
	must(t, answers.Close())
}
