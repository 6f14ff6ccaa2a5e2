package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// somebody is a user without rights that every machine has: nobody.
const somebody = 65534

// TestUserWithoutRoot lets a user back up, list, mount and unmount without any
// privilege.
func TestUserWithoutRoot(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	as := asUser(somebody, somebody, nil, "true").Args
	as = as[:len(as)-1]
	user := func(name string, args ...string) result {
		t.Helper()
		cmd := exec.Command(as[0], append(append(append([]string{}, as[1:]...), name), args...)...)
		cmd.Dir, cmd.Env = home, append(os.Environ(), "HOME="+home, "USER=nobody")
		return runCmd(t, cmd)
	}
	src := mkdir(t, home, "src")
	nodes := treetest.Random(77, treetest.RandomOptions{})
	for i := range nodes {
		nodes[i].UID, nodes[i].GID = somebody, somebody
	}
	createTree(t, src, nodes)
	must(t, os.Chown(src, somebody, somebody))

	r := &repo{t: t, dir: filepath.Join(home, "repo"), user: as}
	if res := r.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	t.Cleanup(r.verify)
	s, res := r.createExit(0, "--root", src, "/")
	if !strings.Contains(res.stderr, "root") {
		t.Errorf("create by a user does not say what only root can store: %q", res.stderr)
	}

	mnt := mkdir(t, home, "mnt")
	must(t, os.Chown(mnt, somebody, somebody))
	m := &fuseMount{t: t, dir: mnt}
	m.start(r)
	t.Cleanup(m.stop)
	for _, pair := range [][2]string{{src, m.path(s.Generation)}, {m.path(s.Generation), src}} {
		if res := user("rsync", "-aAXHn", "--checksum", "--delete", "--itemize-changes", pair[0]+"/", pair[1]+"/"); res.code != 0 || res.stdout != "" || res.stderr != "" {
			t.Errorf("rsync %s: exit code %d\n%s%s", pair, res.code, tail(res.stdout), tail(res.stderr))
		}
	}
	if _, err := os.ReadDir(m.dir); err == nil {
		t.Error("the mount of a user is open to others, root included")
	}
	if res := user("fusermount3", "-u", mnt); res.code != 0 {
		t.Errorf("fusermount3 -u: %s", res.stderr)
	}
	if isMounted(t, mnt) {
		t.Error("still mounted after fusermount3 -u")
	}
}

// TestUnreadableForUser wants what a user cannot read named, the rest backed
// up, and exit code 3; and later the whole once root comes.
func TestUnreadableForUser(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	src := mkdir(t, home, "src")
	createTree(t, src, []treetest.Node{
		{Path: "mine", UID: somebody, Data: []byte("readable")},
		{Path: "secret", Mode: 0o600, Data: []byte("of root")},
		{Path: "closed", Type: treetest.Dir, Mode: 0o700},
		{Path: "closed/in", Data: []byte("in a closed directory")},
		{Path: "open/in", Data: []byte("open")},
	})
	as := asUser(somebody, somebody, nil, "true").Args
	r := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := r.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	t.Cleanup(r.verify)
	s, res := r.createExit(3, "--root", src, "/")
	if s.Errors < 2 {
		t.Errorf("summary: %d errors, want 2", s.Errors)
	}
	for _, name := range []string{"secret", "closed"} {
		if n := strings.Count(res.stderr, name); n != 1 {
			t.Errorf("%q is named %d times in\n%s", name, n, res.stderr)
		}
	}
	root := &repo{t: t, dir: r.dir}
	m := root.mount()
	for path, want := range map[string]string{"mine": "readable", "open/in": "open"} {
		if b, err := os.ReadFile(m.at(s.Generation, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, err := os.ReadFile(m.at(s.Generation, "secret")); err == nil {
		t.Errorf("an unreadable file is shown with the content %q", b)
	}
	whole := root.all(src)
	wantTree(t, "after root came", readTree(t, src), m.at(whole.Generation), treetest.Options{})
	run(t, "chown", "-R", fmt.Sprintf("%d:%d", somebody, somebody), r.dir)
	if res := r.mkbackup("check", "--against", src); res.code != 1 || !strings.HasPrefix(res.stdout, "INCOMPLETE: 2 paths could not be compared; ") {
		t.Errorf("check --against by a user: exit code %d, %q\n%s", res.code, res.stdout, res.stderr)
	}
}

// TestExcludedUnseen: a pattern for directories alone matches those of which only the listing of
// the directory above tells that they are.
func TestExcludedUnseen(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	src := mkdir(t, home, "src")
	createTree(t, src, files("listed/sub/x", "listed/file"))
	must(t, os.Chmod(filepath.Join(src, "listed"), 0o744)) // of root
	as := asUser(somebody, somebody, nil, "true").Args
	r := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := r.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	t.Cleanup(r.verify)
	s, res := r.createExit(3, "--root", src, "--exclude", "sub/", "--exclude", "file/", "/")
	if s.Excluded != 1 || strings.Contains(res.stderr, "listed/sub") || !strings.Contains(res.stderr, "/listed/file: permission denied\n") {
		t.Errorf("%+v\n%s", s, res.stderr)
	}
}

// TestRootLeavesNothingOfItsOwn: what root makes in the repository of a user, be it an index
// that has to be built for a mount, the user goes on with.
func TestRootLeavesNothingOfItsOwn(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	src := mkdir(t, home, "src")
	createTree(t, src, []treetest.Node{{Path: "file", UID: somebody, GID: somebody, Data: []byte("1")}})
	must(t, os.Chown(src, somebody, somebody))
	as := asUser(somebody, somebody, nil, "true").Args
	r := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := r.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	t.Cleanup(r.verify)
	create := []string{"--quiet", "--root", src, "/file"}
	r.createExit(0, create...)
	root := &repo{t: t, dir: r.dir}
	mount := func() { root.mount().stop() }
	for what, changes := range map[string]func(){
		"mount":  mount,
		"list":   func() { root.generations() },
		"create": func() { root.create(create...) },
		"init": func() {
			must(t, os.RemoveAll(r.dir))
			must(t, os.Mkdir(r.dir, 0o700))
			must(t, os.Chown(r.dir, somebody, somebody))
			if res := root.mkbackup("init"); res.code != 0 {
				t.Errorf("init by root: exit code %d\n%s", res.code, res.stderr)
			}
		},
		"mount, with the user's directories,": func() {
			for _, dir := range []string{"index", "tmp"} {
				must(t, os.Chown(mkdir(t, r.dir, dir), somebody, somebody))
			}
			mount()
		},
	} {
		for _, dir := range []string{"index", "tmp"} {
			must(t, os.RemoveAll(filepath.Join(r.dir, dir)))
		}
		changes()
		if found := run(t, "find", r.dir, "!", "-user", "nobody"); found != "" {
			t.Errorf("%s by root: not the user's: %s", what, found)
		}
		if _, res := r.createExit(0, create...); res.stderr != "" {
			t.Errorf("create by the user after %s by root: %q", what, res.stderr)
		}
		if res := r.mkbackup("check", "--read-data"); res.code != 0 || res.stderr != "" {
			t.Errorf("check by the user after %s by root: exit code %d, %q", what, res.code, res.stderr)
		}
	}
}

// TestRootInAHostileRepository: a user cannot make root change what is not his by the way in
// which his repository is laid out.
func TestRootInAHostileRepository(t *testing.T) {
	home, roots := tempDir(t), tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	must(t, os.Chmod(roots, 0o755))
	createTree(t, roots, []treetest.Node{
		{Path: "w-file", Data: []byte("root's")},
		{Path: "w-dir", Type: treetest.Dir, Mode: 0o755},
		{Path: "w-dir/file", Data: []byte("root's")},
	})
	before := readTree(t, roots)
	src := mkdir(t, home, "src")
	createTree(t, src, []treetest.Node{{Path: "file", UID: somebody, GID: somebody, Data: []byte("1")}})
	as := asUser(somebody, somebody, nil, "true").Args
	user := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := user.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	first, _ := user.createExit(0, "--quiet", "--root", src, "/")
	user.createExit(0, "--quiet", "--root", src, "/file")
	if res := user.mkbackup("forget", first.Generation); res.code != 0 {
		t.Fatalf("forget: exit code %d\n%s", res.code, res.stderr)
	}
	root := &repo{t: t, dir: user.dir}
	for name, lay := range map[string]func(){
		"tmp": func() {
			must(t, os.RemoveAll(filepath.Join(user.dir, "index")))
			must(t, os.RemoveAll(filepath.Join(user.dir, "tmp")))
			must(t, os.Symlink(roots, filepath.Join(user.dir, "tmp")))
		},
		"index": func() {
			must(t, os.RemoveAll(filepath.Join(user.dir, "tmp")))
			must(t, os.RemoveAll(filepath.Join(user.dir, "index")))
			must(t, os.Symlink(roots, filepath.Join(user.dir, "index")))
		},
		"index/swept": func() {
			must(t, os.RemoveAll(filepath.Join(user.dir, "index")))
			must(t, os.Mkdir(filepath.Join(user.dir, "index"), 0o700))
			must(t, os.Symlink(filepath.Join(roots, "w-file"), filepath.Join(user.dir, "index", "swept")))
			must(t, os.Chown(filepath.Join(user.dir, "index"), somebody, somebody))
		},
	} {
		lay()
		for _, args := range [][]string{{"list"}, {"create", "--quiet", "--root", src, "/"}, {"compact", "--max-dead", "0"}, {"reindex"}, {"check"}} {
			if res := root.mkbackup(args[0], args[1:]...); res.code < 0 || res.code > 4 {
				t.Errorf("%s: %s: exit code %d\n%s", name, args[0], res.code, res.stderr)
			}
		}
		wantTree(t, name+" leads elsewhere", before, roots, treetest.Options{})
	}
}

// TestUnreadableAttributes: what a user cannot read of a directory is missing each time,
// not only in the first run, which has it in its generation without.
func TestUnreadableAttributes(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	src := mkdir(t, home, "src")
	dir := mkdir(t, src, "dir") // of root
	must(t, os.Chmod(dir, 0o711))
	const name = "user.\x1b[31m"
	must(t, unix.Setxattr(dir, name, []byte("of root"), 0))
	write(t, filepath.Join(mkdir(t, dir, "given"), "file"), "a file")
	as := asUser(somebody, somebody, nil, "true").Args
	r := &repo{t: t, dir: filepath.Join(home, "repo"), user: as[:len(as)-1]}
	if res := r.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	t.Cleanup(r.verify)
	for range 2 {
		if s, res := r.createExit(3, "--root", src, "/dir/given"); s.Errors != 1 || !strings.Contains(res.stderr, `extended attribute "user.\x1b[31m": `) {
			t.Errorf("%d errors: %q", s.Errors, res.stderr)
		}
	}
	root := &repo{t: t, dir: r.dir}
	s := root.create("--root", src, "/dir/given")
	m := root.mount()
	value := make([]byte, 10)
	if n, err := unix.Getxattr(m.at(s.Generation, "dir"), name, value); err != nil || string(value[:n]) != "of root" {
		t.Errorf("root has stored %q, %v", value[:max(n, 0)], err)
	}
	run(t, "chown", "-R", fmt.Sprintf("%d:%d", somebody, somebody), r.dir)
}
