package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// answers is what one user is told about a path, question by question.
type answers map[string]string

// changed marks a path given to the helper that it is to try to change as well.
const changed = "!"

// runHelper is what the test binary does as another user: it reads paths, each
// ended by NUL, from standard input, asks everything about each, and prints the
// answers as JSON, by the quoted path.
func runHelper() (int, error) {
	list, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1, err
	}
	all := map[string]answers{}
	for _, p := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		path, change := strings.CutPrefix(p, changed)
		a := ask(path)
		if change {
			maps.Copy(a, askChanges(path))
		}
		all[fmt.Sprintf("%q", path)] = a
	}
	return 0, json.NewEncoder(os.Stdout).Encode(all)
}

// ask asks what changes nothing.
func ask(path string) answers {
	a := answers{}
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	a["lstat"] = errno(err)
	if err == nil {
		a["attributes"] = fmt.Sprintf("%o %d %d %x", st.Mode, st.Uid, st.Gid, st.Rdev)
	}
	for question, right := range map[string]uint32{"read right": unix.R_OK, "write right": unix.W_OK, "execute right": unix.X_OK} {
		a[question] = errno(unix.Faccessat2(unix.AT_FDCWD, path, right, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW))
	}
	target, err := os.Readlink(path)
	a["readlink"] = errno(err) + target
	a["xattrs"] = askXattrs(path)
	a["open to read"] = askOpen(path, unix.O_RDONLY|unix.O_NOFOLLOW)
	a["open to write"] = askOpen(path, unix.O_WRONLY|unix.O_NOFOLLOW)
	a["open without a trace"] = askOpen(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		a["read"] = fmt.Sprintf("%s %q", errno(err), b)
		// Nothing that the kernel can run: with the right to, it says ENOEXEC.
		a["execute"] = errno(unix.Exec(path, []string{path}, nil))
	case unix.S_IFDIR:
		a["below"] = errno(unix.Lstat(filepath.Join(path, "no such name"), &st))
		entries, err := os.ReadDir(path)
		a["readdir"] = errno(err)
		for _, e := range entries {
			a["readdir"] += fmt.Sprintf(" %q %s", e.Name(), e.Type())
		}
	}
	return a
}

func askOpen(path string, flags int) string {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return errno(err)
}

func askXattrs(path string) string {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return errno(err)
	}
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	all := []string{fmt.Sprintf("%q", sorted(slices.Clone(names)))}
	for _, name := range append(names, "trusted.secret", "user.x") {
		n, err := unix.Lgetxattr(path, name, b)
		all = append(all, fmt.Sprintf("%s=%s%x", name, errno(err), b[:max(n, 0)]))
	}
	return strings.Join(slices.Compact(sorted(all)), " ")
}

// askChanges tries to change what must not be changed.
func askChanges(path string) answers {
	a := answers{}
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK { // which chmod follows
		a["chmod"] = errno(unix.Chmod(path, 0o777))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		a["truncate"] = errno(unix.Truncate(path, 0))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		a["create in"] = errno(unix.Mkdir(filepath.Join(path, "no such name"), 0o700))
	}
	a["chown"] = errno(unix.Lchown(path, os.Geteuid(), os.Getegid()))
	a["touch"] = errno(unix.Lutimes(path, make([]unix.Timeval, 2)))
	a["setxattr"] = errno(unix.Lsetxattr(path, "user.x", []byte("changed"), 0))
	a["set ACL"] = errno(unix.Lremovexattr(path, treetest.AccessACL))
	a["unlink"] = errno(unix.Unlink(path))
	a["rename"] = errno(unix.Rename(path, path+" renamed"))
	a["link"] = errno(unix.Link(path, path+" linked"))
	return a
}

func errno(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// identity is who asks.
type identity struct {
	uid, gid int
	groups   []int
	caps     string // capabilities in the words of setpriv(1), "" for none: "+all", "+dac_read_search"
}

func (who identity) String() string {
	return fmt.Sprintf("as %d:%d %d %s", who.uid, who.gid, who.groups, who.caps)
}

// command returns a command that runs as somebody. Root gets the capabilities of
// the bounding set, others the ambient ones.
func (who identity) command(name string, args ...string) *exec.Cmd {
	cmd := asUser(who.uid, who.gid, who.groups, name, args...)
	caps := "-all"
	if who.caps != "" {
		caps += "," + who.caps
	}
	options := []string{"--bounding-set=" + caps}
	if who.uid != 0 {
		options = []string{"--inh-caps=" + caps, "--ambient-caps=" + caps}
	}
	words := slices.DeleteFunc(cmd.Args[1:], func(word string) bool { return strings.HasPrefix(word, "--inh-caps=") })
	return exec.Command(cmd.Args[0], append(options, words...)...)
}

// ask asks everything about paths as somebody, and returns the answers by the
// quoted path.
func (who identity) ask(t *testing.T, paths []string) map[string]answers {
	t.Helper()
	cmd := who.command(filepath.Join(testRoot, "bin", "helper"))
	cmd.Env = append(os.Environ(), helperVariable+"=1")
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\x00"))
	r := runCmd(t, cmd)
	if r.code != 0 {
		t.Fatalf("helper %s: exit code %d\n%s", who, r.code, r.stderr)
	}
	all := map[string]answers{}
	must(t, json.NewDecoder(strings.NewReader(r.stdout)).Decode(&all))
	return all
}

// asUserAsk asks everything about the paths below dir as a user without
// capabilities, and returns the answers by the quoted path below dir.
func asUserAsk(t *testing.T, uid, gid int, groups []int, dir string, paths []string) map[string]answers {
	t.Helper()
	return below(dir, paths, identity{uid: uid, gid: gid, groups: groups}.ask(t, prefixed(dir, paths)))
}

func prefixed(dir string, paths []string) []string {
	all := make([]string, len(paths))
	for i, path := range paths {
		all[i] = filepath.Join(dir, path)
	}
	return all
}

// below returns the answers about paths below dir.
func below(dir string, paths []string, all map[string]answers) map[string]answers {
	found := map[string]answers{}
	for _, path := range paths {
		found[fmt.Sprintf("%q", path)] = all[fmt.Sprintf("%q", filepath.Join(dir, path))]
	}
	return found
}

// rightsTree has every combination of owner, mode and ACL that decides who may
// do what, below directories that hide what is in them.
func rightsTree(t *testing.T) []treetest.Node {
	var nodes []treetest.Node
	owners := [][2]uint32{{0, 0}, {1000, 1000}, {2000, 100}, {70_000, 70_000}}
	for i, o := range owners {
		for _, mode := range []uint32{treetest.ModeNone, 0o400, 0o040, 0o004, 0o750, 0o077, 0o4711} {
			name := fmt.Sprintf("%d-%04o", i, mode&0o7777)
			nodes = append(nodes,
				treetest.Node{Path: "files/" + name, UID: o[0], GID: o[1], Mode: mode, Data: []byte("secret"), Xattrs: map[string]string{"user.x": "y", "trusted.secret": "z"}},
				treetest.Node{Path: "dirs/" + name, Type: treetest.Dir, UID: o[0], GID: o[1], Mode: mode},
				treetest.Node{Path: "dirs/" + name + "/in", UID: o[0], GID: o[1], Mode: 0o644, Data: []byte("inside")},
				treetest.Node{Path: "dirs/" + name + "/link", Type: treetest.Symlink, Target: "in"})
		}
	}
	for i, text := range []string{
		"u::rw-,u:1000:r--,g::---,m::r--,o::---",
		"u::rw-,u:1000:---,g::r--,m::rw-,o::r--",
		"u::rw-,u:1000:rwx,g::rwx,m::---,o::---",  // the mask takes everything
		"u::rw-,g::---,g:100:r--,m::rwx,o::---",   // the group's rights are not the mask's
		"u::rw-,g::---,g:70000:r--,m::r--,o::r--", // the owning group is refused
		"u::---,u:70000:r--,g::---,m::r--,o::---",
	} {
		x := map[string]string{treetest.AccessACL: acl(t, text), "user.x": "y"}
		nodes = append(nodes, treetest.Node{Path: fmt.Sprintf("acls/file-%d", i), UID: 2000, GID: 100, Data: []byte("secret"), Xattrs: x})
		dirText := strings.ReplaceAll(strings.ReplaceAll(text, "r--", "r-x"), "rw-", "rwx")
		nodes = append(nodes,
			treetest.Node{Path: fmt.Sprintf("acls/dir-%d", i), Type: treetest.Dir, UID: 2000, GID: 100, Xattrs: map[string]string{treetest.AccessACL: acl(t, dirText)}},
			treetest.Node{Path: fmt.Sprintf("acls/dir-%d/in", i), Mode: 0o644, Data: []byte("inside")})
	}
	return nodes
}

func wantSameAnswers(t *testing.T, who string, want, got map[string]answers) {
	t.Helper()
	wrong := 0
	for path, w := range want {
		for question, answer := range w {
			if got[path][question] == answer {
				continue
			}
			if wrong++; wrong <= 20 {
				t.Errorf("%s: %s: %s: %q, at the source %q", who, path, question, got[path][question], answer)
			}
		}
	}
	if wrong > 20 {
		t.Errorf("%s: and %d more differences", who, wrong-20)
	}
}

// TestPrivateAncestorStaysPrivate backs up one directory below a private one:
// the mount must not open to everybody what the source hides.
func TestPrivateAncestorStaysPrivate(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{
		{Path: "private", Type: treetest.Dir, Mode: 0o700, UID: 1000},
		{Path: "private/public", Type: treetest.Dir, Mode: 0o755},
		// With an attribute, since a mount without any answers that it has none at all.
		{Path: "private/public/file", Data: []byte("hidden by its ancestor"), Xattrs: map[string]string{"user.a": "1"}},
	})
	r := newRepo(t)
	s := r.create("--root", src, "/private/public")
	m := r.mount()
	paths := []string{"private", "private/public", "private/public/file"}
	for _, uid := range []int{1000, 2000} {
		want := asUserAsk(t, uid, uid, nil, src, paths)
		for path, asked := range want {
			want[path] = inMount(asked)
			maps.DeleteFunc(want[path], func(question, _ string) bool { _, was := asked[question]; return !was })
		}
		got := asUserAsk(t, uid, uid, nil, m.at(s.Generation), paths)
		wantSameAnswers(t, fmt.Sprintf("as %d", uid), want, got)
	}
}

// TestNoPrivilegesFromTheMount runs programs that gain rights at the source, and
// opens a device: in the mount they gain none, and it cannot be opened.
func TestNoPrivilegesFromTheMount(t *testing.T) {
	src := tempDir(t)
	secret := filepath.Join(tempDir(t), "secret")
	write(t, secret, "for root alone")
	must(t, os.Chmod(secret, 0o600))
	program := func(tool string) []byte {
		path, err := exec.LookPath(tool)
		must(t, err)
		b, err := os.ReadFile(path)
		must(t, err)
		return b
	}
	// cap_dac_read_search+ep, as setcap writes it.
	capability := "\x01\x00\x00\x02\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	createTree(t, src, []treetest.Node{
		{Path: "setuid", Mode: 0o4755, Data: program("id")},
		{Path: "setgid", Mode: 0o2755, GID: 100, Data: program("id")},
		{Path: "capable", Mode: 0o755, Data: program("cat"), Xattrs: map[string]string{"security.capability": capability}},
		{Path: "null", Type: treetest.Char, Major: 1, Minor: 3, Mode: 0o666},
	})
	r := newRepo(t)
	s := r.all(src)
	root := r.mount().at(s.Generation)
	who := identity{uid: 1000, gid: 1000}
	for _, c := range []struct {
		args          []string // program and arguments
		source, mount string   // what it prints
	}{
		{[]string{"setuid", "-u"}, "0\n", "1000\n"},
		{[]string{"setgid", "-g"}, "100\n", "1000\n"},
		{[]string{"capable", secret}, "for root alone", ""},
	} {
		for dir, want := range map[string]string{src: c.source, root: c.mount} {
			if got := runCmd(t, who.command(filepath.Join(dir, c.args[0]), c.args[1:]...)); got.stdout != want {
				t.Errorf("%s in %s prints %q, want %q: %s", c.args, dir, got.stdout, want, got.stderr)
			}
		}
	}
	for _, who := range []identity{who, {caps: "+all"}} {
		for dir, want := range map[string]string{src: "", root: "EACCES"} {
			got := who.ask(t, []string{filepath.Join(dir, "null")})[fmt.Sprintf("%q", filepath.Join(dir, "null"))]
			if got["open to read"] != want || got["open to write"] != want {
				t.Errorf("%s, opening %s/null: %q and %q, want %q", who, dir, got["open to read"], got["open to write"], want)
			}
		}
	}
}

func TestPrivateMount(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "for everybody")
	r := newRepo(t)
	s := r.all(src)
	m := r.mount("--private")
	if b, err := os.ReadFile(m.at(s.Generation, "file")); err != nil || string(b) != "for everybody" {
		t.Errorf("the mounting user reads %q, %v", b, err)
	}
	if got := asUserAsk(t, 1000, 1000, nil, m.dir, []string{s.Generation + "/file"}); got[fmt.Sprintf("%q", s.Generation+"/file")]["lstat"] != "EACCES" {
		t.Errorf("another user enters a private mount: %v", got)
	}
}
