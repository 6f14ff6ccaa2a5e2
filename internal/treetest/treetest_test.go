package treetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// declared is a tree of all types; what only root can make comes with root.
func declared(t *testing.T) []Node {
	t.Helper()
	old := time.Date(1960, 1, 2, 3, 4, 5, 123456789, time.UTC)
	nodes := []Node{
		{Path: "dir", Type: Dir, Mode: 0o700, Mtime: old},
		{Path: "dir/file", Data: []byte("hello"), Mode: 0o751, Mtime: old},
		{Path: "dir/none", Mode: ModeNone},
		{Path: "dir/new\nline\xff", Seed: 7, Size: 200_000},
		{Path: "sparse", Size: 1 << 40, Extents: []Extent{{Offset: 1 << 39, Data: []byte("in the middle")}}},
		{Path: "link", Type: Symlink, Target: "no/where"},
		{Path: "fifo", Type: FIFO},
		{Path: "socket", Type: Socket},
		{Path: "other/dir/hard", Type: HardLink, Target: "dir/file"},
		{Path: "hard-fifo", Type: HardLink, Target: "fifo"},
		{Path: "hard-link", Type: HardLink, Target: "link"},
		{Path: "xattr", Xattrs: map[string]string{"user.empty": "", "user.binary": "\x00\xff\n"}},
		{Path: strings.Repeat("long-directory-name-of-24/", 180) + "deep", Data: []byte("deep")},
	}
	if os.Geteuid() != 0 {
		return own(nodes)
	}
	acl, err := ACL("u::rwx,u:70000:r--,g::r-x,m::r-x,o::---")
	if err != nil {
		t.Fatal(err)
	}
	return append(nodes,
		Node{Path: "char", Type: Char, Major: 1, Minor: 3},
		Node{Path: "block", Type: Block, Major: 259, Minor: 70000},
		Node{Path: "whiteout", Type: Char},
		Node{Path: "whiteout2", Type: HardLink, Target: "whiteout"},
		Node{Path: "owned", UID: 70000, GID: 3_000_000_000, Mode: 0o6755},
		Node{Path: "acl", Xattrs: map[string]string{AccessACL: acl}},
		Node{Path: "acldir", Type: Dir, Xattrs: map[string]string{DefaultACL: acl}})
}

func own(nodes []Node) []Node {
	for i := range nodes {
		nodes[i].UID, nodes[i].GID = uint32(os.Getuid()), uint32(os.Getgid())
	}
	return nodes
}

func read(t *testing.T, dir string) *Tree {
	t.Helper()
	tree, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestCreateAndRead(t *testing.T) {
	dir := t.TempDir()
	nodes := declared(t)
	if err := Create(dir, nodes); err != nil {
		t.Fatal(err)
	}
	tree := read(t, dir)
	for _, n := range nodes {
		e := tree.Entries[n.Path]
		if e == nil {
			t.Errorf("%q is missing", n.Path)
			continue
		}
		if n.Type != HardLink && e.Type != n.Type {
			t.Errorf("%q is a %v, want a %v", n.Path, e.Type, n.Type)
		}
		if n.Type != HardLink && n.Type != Symlink && n.Xattrs[AccessACL] == "" && e.Mode != n.mode() {
			t.Errorf("%q has mode %04o, want %04o", n.Path, e.Mode, n.mode())
		}
		if !n.Mtime.IsZero() && (e.Sec != n.Mtime.Unix() || e.Nsec != int64(n.Mtime.Nanosecond())) {
			t.Errorf("%q has mtime %d.%09d, want %v", n.Path, e.Sec, e.Nsec, n.Mtime)
		}
		for name, value := range n.Xattrs {
			if e.Xattrs[name] != value {
				t.Errorf("%q: xattr %s is %q, want %q", n.Path, name, e.Xattrs[name], value)
			}
		}
	}
	for path, want := range map[string]string{"dir/file": "dir/file", "other/dir/hard": "dir/file", "fifo": "fifo",
		"hard-fifo": "fifo", "hard-link": "hard-link", "link": "hard-link", "xattr": "", "dir": ""} {
		if got := tree.Entries[path].Link; got != want {
			t.Errorf("%q is a hard link of %q, want %q", path, got, want)
		}
	}
	if os.Geteuid() == 0 && tree.Entries["whiteout2"].Link != "" {
		t.Error("whiteouts that share an inode are shown as hard links")
	}
}

// TestDiffSeesEveryChange makes one change after the other and wants Diff to
// name it, and nothing once the tree is as before.
func TestDiffSeesEveryChange(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(dir string) error
	}{
		{"mode", `"dir/file": mode 0600, want 0751`, func(d string) error { return os.Chmod(d+"/dir/file", 0o600) }},
		{"content", `"dir/file": content`, func(d string) error {
			st, err := os.Stat(d + "/dir/file")
			if err != nil {
				return err
			}
			if err := os.WriteFile(d+"/dir/file", []byte("hellO"), 0); err != nil {
				return err
			}
			return os.Chtimes(d+"/dir/file", st.ModTime(), st.ModTime())
		}},
		{"size", `"xattr": size 1, want 0`, func(d string) error { return os.Truncate(d+"/xattr", 1) }},
		{"mtime", `"dir": mtime`, func(d string) error { return os.Chtimes(d+"/dir", time.Unix(1, 1), time.Unix(1, 1)) }},
		{"sparse", `"sparse": content`, func(d string) error { return os.Truncate(d+"/sparse", 1<<30) }},
		{"xattr", `"xattr": xattr "user.empty" missing`, func(d string) error { return unix.Removexattr(d+"/xattr", "user.empty") }},
		{"gone", `"fifo": missing (fifo)`, func(d string) error { return os.Remove(d + "/fifo") }},
		{"new", `"new": not expected (dir)`, func(d string) error { return os.Mkdir(d+"/new", 0o755) }},
		{"type", `"link": type dir, want symlink`, func(d string) error {
			if err := os.Remove(d + "/link"); err != nil {
				return err
			}
			return os.Mkdir(d+"/link", 0o755)
		}},
		{"target", `"link": target`, func(d string) error {
			if err := os.Remove(d + "/link"); err != nil {
				return err
			}
			return os.Symlink("else/where", d+"/link")
		}},
		{"hard link", `"other/dir/hard": hard link of "", want "dir/file"`, func(d string) error {
			if err := os.Remove(d + "/other/dir/hard"); err != nil {
				return err
			}
			return os.WriteFile(d+"/other/dir/hard", []byte("hello"), 0o751)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := Create(dir, declared(t)); err != nil {
				t.Fatal(err)
			}
			before := read(t, dir)
			if d := Diff(before, read(t, dir), Options{Holes: true}); len(d) > 0 {
				t.Fatalf("unchanged tree: %q", d)
			}
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			all := strings.Join(Diff(before, read(t, dir), Options{}), "\n")
			if !strings.Contains(all, c.want) {
				t.Errorf("differences:\n%s\nwant a line with %s", all, c.want)
			}
		})
	}
}

func TestHashIgnoresHoles(t *testing.T) {
	dir := t.TempDir()
	data := []Extent{{Offset: 100_000, Data: []byte("x")}}
	nodes := own([]Node{{Path: "hole", Size: 300_001, Extents: data}, {Path: "full", Data: make([]byte, 300_001), Extents: data},
		{Path: "moved", Size: 300_001, Extents: []Extent{{Offset: 104_096, Data: []byte("x")}}}})
	if err := Create(dir, nodes); err != nil {
		t.Fatal(err)
	}
	tree := read(t, dir)
	if tree.Entries["hole"].Hash != tree.Entries["full"].Hash {
		t.Error("a hole and a run of zeros have different hashes")
	}
	if tree.Entries["hole"].Hash == tree.Entries["moved"].Hash {
		t.Error("the same block at another offset has the same hash")
	}
}

func TestGenerateIsRandomAccess(t *testing.T) {
	whole := Content(5, 1<<20)
	part := make([]byte, 1<<16)
	Generate(5, 3<<16, part)
	if string(part) != string(whole[3<<16:4<<16]) {
		t.Error("content at an offset differs from the same range of the whole")
	}
	if string(Content(6, 1<<20)) == string(whole) {
		t.Error("two seeds give the same content")
	}
}

func TestRandomTreesAndEdits(t *testing.T) {
	o := RandomOptions{Owners: os.Geteuid() == 0, MaxSize: 10_000}
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		nodes := Random(42, o)
		if !o.Owners {
			nodes = own(nodes)
		}
		if err := Create(dir, nodes); err != nil {
			t.Fatal(err)
		}
	}
	before := read(t, a)
	if d := Diff(before, read(t, b), Options{NoRoot: true, NoDirTime: true}); len(d) > 0 {
		t.Fatalf("the same seed made two trees: %q", d)
	}
	lines, err := NewEditor(a, 1).Edit(3 * len(edits))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, l := range lines {
		for _, e := range edits {
			if strings.HasPrefix(l, e.name+" ") {
				kinds[e.name] = true
			}
		}
	}
	if len(kinds) != len(edits) {
		t.Errorf("%d kinds of edits were made, want %d", len(kinds), len(edits))
	}
	if len(Diff(before, read(t, a), Options{})) == 0 {
		t.Error("edits made no difference")
	}
}

func TestSub(t *testing.T) {
	dir := t.TempDir()
	if err := Create(dir, declared(t)); err != nil {
		t.Fatal(err)
	}
	sub := read(t, dir).Sub("dir")
	if d := Diff(read(t, filepath.Join(dir, "dir")), sub, Options{}); len(d) > 0 {
		t.Errorf("a part of a tree differs from the directory read alone: %q", d)
	}
}

func ExampleACL() {
	b, err := ACL("u::rw-,g::r--,o::---")
	fmt.Printf("%x %v\n", b, err)
	// Output: 0200000001000600ffffffff04000400ffffffff20000000ffffffff <nil>
}
