package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// answers is what one user is told about a path, question by question.
type answers map[string]string

// runHelper is what the test binary does as another user: it reads paths, each
// ended by NUL, from standard input, asks everything about each below the
// directory of its last argument, and prints the answers as JSON.
func runHelper() (int, error) {
	dir := os.Args[len(os.Args)-1]
	list, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1, err
	}
	all := map[string]answers{}
	for _, p := range strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		all[fmt.Sprintf("%q", p)] = ask(filepath.Join(dir, p))
	}
	return 0, json.NewEncoder(os.Stdout).Encode(all)
}

func ask(path string) answers {
	a := answers{}
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	a["lstat"] = errno(err)
	if err == nil {
		a["attributes"] = fmt.Sprintf("%o %d %d", st.Mode, st.Uid, st.Gid)
	}
	a["read right"] = errno(unix.Faccessat2(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW))
	a["execute right"] = errno(unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW))
	target, err := os.Readlink(path)
	a["readlink"] = errno(err) + target
	a["xattrs"] = askXattrs(path)
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		b, err := os.ReadFile(path)
		a["read"] = fmt.Sprintf("%s %d bytes", errno(err), len(b))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(path)
		a["readdir"] = errno(err)
		for _, e := range entries {
			a["readdir"] += fmt.Sprintf(" %q", e.Name())
		}
	}
	return a
}

func askXattrs(path string) string {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return errno(err)
	}
	var all []string
	for _, name := range strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		all = append(all, fmt.Sprintf("%s=%s%x", name, errno(err), value[:max(n, 0)]))
	}
	_, err = unix.Lgetxattr(path, "trusted.secret", nil)
	return strings.Join(sorted(all), " ") + " trusted.secret: " + errno(err)
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

// asUserAsk asks everything about the paths below dir as the given user.
func asUserAsk(t *testing.T, uid, gid int, groups []int, dir string, paths []string) map[string]answers {
	t.Helper()
	cmd := asUser(uid, gid, groups, filepath.Join(testRoot, "bin", "helper"), dir)
	cmd.Env = append(os.Environ(), helperVariable+"=1")
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\x00"))
	r := runCmd(t, cmd)
	if r.code != 0 {
		t.Fatalf("helper as %d:%d: exit code %d\n%s", uid, gid, r.code, r.stderr)
	}
	all := map[string]answers{}
	must(t, json.NewDecoder(bytes.NewReader([]byte(r.stdout))).Decode(&all))
	return all
}

// rightsTree has every combination of owner, mode and ACL that decides who may
// do what, below directories that hide what is in them.
func rightsTree(t *testing.T) []treetest.Node {
	var nodes []treetest.Node
	owners := [][2]uint32{{0, 0}, {1000, 1000}, {2000, 100}, {70_000, 70_000}}
	for i, o := range owners {
		for _, mode := range []uint32{treetest.ModeNone, 0o400, 0o040, 0o004, 0o644, 0o750, 0o711, 0o077, 0o4711} {
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

func TestOtherUsersSeeWhatTheyMay(t *testing.T) {
	src := tempDir(t)
	nodes := rightsTree(t)
	createTree(t, src, nodes)
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	paths := readTree(t, src).Paths()
	for _, u := range []struct {
		uid, gid int
		groups   []int
	}{{1000, 1000, nil}, {2000, 2000, nil}, {3000, 100, nil}, {3000, 3000, []int{100}}, {70_000, 70_000, nil},
		{70_000, 1000, []int{100, 70_000}}, {65_534, 65_534, nil}} {
		want := asUserAsk(t, u.uid, u.gid, u.groups, src, paths)
		got := asUserAsk(t, u.uid, u.gid, u.groups, m.at(s.Generation), paths)
		wantSameAnswers(t, fmt.Sprintf("as %d:%d, groups %d", u.uid, u.gid, u.groups), want, got)
	}
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
		{Path: "private/public/file", Data: []byte("hidden by its ancestor")},
	})
	r := newRepo(t)
	s := r.create("--root", src, "/private/public")
	m := r.mount()
	paths := []string{"private", "private/public", "private/public/file"}
	for _, uid := range []int{1000, 2000} {
		want := asUserAsk(t, uid, uid, nil, src, paths)
		got := asUserAsk(t, uid, uid, nil, m.at(s.Generation), paths)
		wantSameAnswers(t, fmt.Sprintf("as %d", uid), want, got)
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
