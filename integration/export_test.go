package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/treetest"
)

// exportTo exports a generation into a file.
func (r *repo) exportTo(name string, args ...string) result {
	r.t.Helper()
	f, err := os.Create(name)
	must(r.t, err)
	defer f.Close()
	cmd := r.command("export", args...)
	cmd.Stdout = f
	return runCmd(r.t, cmd)
}

// withoutSockets leaves out what tar has no type for.
func withoutSockets(nodes []treetest.Node) []treetest.Node {
	var rest []treetest.Node
	for _, n := range nodes {
		if n.Type != treetest.Socket && (n.Type != treetest.HardLink || !strings.HasSuffix(n.Target, "socket")) {
			rest = append(rest, n)
		}
	}
	return rest
}

// TestExport exports a tree of every case and extracts it with what users have.
func TestExport(t *testing.T) {
	base := imageDir(t)
	src := mkdir(t, base, "src")
	createTree(t, src, withoutSockets(everyCase(t)))
	createTree(t, src, []treetest.Node{{Path: "sparse/ten-gigabytes", Size: 10 << 30,
		Extents: []treetest.Extent{{Offset: 9 << 30, Data: treetest.Content(1, 5000)}}}})
	r := newRepo(t)
	r.all(src)
	extract := func(name string, command ...string) (to string) {
		t.Helper()
		archive := filepath.Join(base, name+".archive")
		if res := r.exportTo(archive, "latest"); res.code != 0 || res.stderr != "" {
			t.Fatalf("export: exit code %d\n%s", res.code, res.stderr)
		}
		if size := fileSize(t, archive); size > 100<<20 {
			t.Errorf("an archive of %d bytes: holes are written", size)
		}
		to = mkdir(t, base, name)
		res := runCmd(t, exec.Command(command[0], append(command[1:], "-f", archive, "-C", to)...))
		if res.code != 0 || res.stderr != "" {
			t.Errorf("%s: exit code %d\n%s", name, res.code, tail(res.stderr))
		}
		return to
	}
	compare := func(to string) {
		t.Helper()
		wantTree(t, to, readTree(t, src), to, treetest.Options{Holes: true})
		wantSameByRsync(t, src, to, "--exclude=/sparse/ten-gigabytes")
		wantDiskUsage(t, filepath.Join(src, "sparse/ten-gigabytes"), filepath.Join(to, "sparse/ten-gigabytes"))
	}
	compare(extract("tar", "tar", "-x", "-p", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--selinux",
		"--warning=no-unknown-keyword", "--warning=no-timestamp"))

	// What bsdtar cannot: times before 1970 with a fraction of a second, "=" in the
	// name of an extended attribute, the time of the directory that it extracts into.
	shell(t, `rm -r "$1"/times/*-[045]; setfattr -x "$2" "$1/xattrs/odd"`, src, "user.\n\\\t\xff =")
	r.all(src)
	to := extract("bsdtar", "bsdtar", "-x", "-p", "--numeric-owner", "--acls", "--xattrs")
	shell(t, `touch -r "$1" "$2"`, src, to)
	compare(to)
}

// TestExportPaths exports some paths: each once, nothing else, links among them.
func TestExportPaths(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/b/c"}, {Path: "a/b-d", Data: []byte("data")}, {Path: "a/b/d", Type: treetest.HardLink, Target: "a/b-d"},
		{Path: "e", Type: treetest.Symlink, Target: "a"}, {Path: "socket", Type: treetest.Socket}, {Path: "z\xff"}})
	r := newRepo(t)
	r.all(src)
	list := func(args ...string) (string, result) {
		t.Helper()
		archive := filepath.Join(tempDir(t), "archive.tar")
		res := r.exportTo(archive, append([]string{"latest"}, args...)...)
		return run(t, "tar", "--quoting-style=escape", "--warning=no-unknown-keyword", "-tf", archive), res
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "./ a/ a/b/ a/b/c a/b/d a/b-d e z\\377"},
		{[]string{"/a/b-d", "e", "/a/b", "a/b/c", "a/b"}, "a/b/ a/b/c a/b/d a/b-d e"},
		{[]string{"a", "/"}, "./ a/ a/b/ a/b/c a/b/d a/b-d e z\\377"},
		{[]string{"z\xff"}, "z\\377"},
	} {
		got, res := list(c.args...)
		if got = strings.Join(strings.Fields(got), " "); got != c.want || res.code != 0 {
			t.Errorf("export of %q: exit code %d, %s, want %s", c.args, res.code, got, c.want)
		}
		if whole := strings.HasPrefix(c.want, "./"); whole != (res.stderr != "") {
			t.Errorf("export of %q says %q", c.args, res.stderr)
		} else if whole {
			wantOneLine(t, res.stderr, "/socket")
		}
	}
}

// TestExportLargeXattrs: what does not fit into a tar stream of a file's extended attributes
// is named and left out, and all else is there.
func TestExportLargeXattrs(t *testing.T) {
	d := newDisk(t, "mkfs.xfs", "-q")
	src := mkdir(t, d.dir, "src")
	write(t, filepath.Join(src, "file"), "content")
	write(t, filepath.Join(src, "later"), "behind it")
	for i := range 20 {
		must(t, unix.Setxattr(filepath.Join(src, "file"), fmt.Sprintf("user.%02d", i), make([]byte, 60<<10), 0))
	}
	r := newRepo(t)
	r.all(src)
	archive := filepath.Join(tempDir(t), "archive.tar")
	res := r.exportTo(archive, "latest")
	if res.code != 0 || strings.Count(res.stderr, "/file: its extended attribute user.") != 5 {
		t.Errorf("exit code %d\n%s", res.code, res.stderr)
	}
	restored := mkdir(t, d.dir, "restored")
	run(t, "tar", "-x", "-f", archive, "--xattrs", "--xattrs-include=*", "-C", restored)
	list := shell(t, `getfattr --absolute-names "$1"/file | grep -c user; cat "$1"/file "$1"/later`, restored)
	if list != "15\ncontentbehind it" {
		t.Errorf("restored are %q", list)
	}
}

// TestExportWhileCompacted: an export that waits for its reader goes on with what a compaction
// has moved meanwhile.
func TestExportWhileCompacted(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Seed: 1, Size: 4 << 20}})
	r := newRepo(t)
	r.all(src)
	createTree(t, src, []treetest.Node{{Path: "kept", Seed: 2, Size: 300_000}, {Path: "dropped", Seed: 3, Size: 300_000}})
	r.all(src)
	must(t, os.Remove(filepath.Join(src, "dropped")))
	r.all(src)
	r.forgets("2")
	from, to, err := os.Pipe()
	must(t, err)
	defer from.Close()
	cmd := r.command("export", "latest")
	cmd.Stdout = to
	export := start(t, cmd)
	must(t, to.Close())
	head := make([]byte, 512)
	_, err = io.ReadFull(from, head)
	must(t, err)
	if c := r.compact(0, "--max-dead", "0"); c.DeletedParts != 1 || c.New != 1 {
		t.Fatalf("%+v", c)
	}
	rest, err := io.ReadAll(from)
	must(t, err)
	if code := export.wait(t, time.Minute); code != 0 || export.stderr.Len() > 0 {
		t.Errorf("exit code %d\n%s", code, export.stderr.String())
	}
	archive, restored := filepath.Join(tempDir(t), "archive.tar"), tempDir(t)
	must(t, os.WriteFile(archive, append(head, rest...), 0o600))
	run(t, "tar", "-x", "-p", "-f", archive, "-C", restored)
	wantTree(t, restored, readTree(t, src), restored, treetest.Options{})
}

// TestExportRefuses wants no archive on a terminal, and none that looks complete
// where something cannot be read.
func TestExportRefuses(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("first")}, {Path: "b", Seed: 5, Size: 5 << 20}, {Path: "c", Data: []byte("last")}})
	r := newRepo(t)
	r.all(src)
	_, slave := terminal(t)
	cmd := r.command("export", "latest")
	cmd.Stdout = slave
	shown := runCmd(t, cmd)
	if shown.code != 2 {
		t.Errorf("export to a terminal: exit code %d", shown.code)
	}
	wantOneLine(t, shown.stderr, "terminal")
	part := r.parts()[0]
	b, err := os.ReadFile(part)
	must(t, err)
	damaged := append([]byte{}, b...)
	damaged[len(damaged)/2] ^= 1
	must(t, os.Chmod(part, 0o600))
	must(t, os.WriteFile(part, damaged, 0o400))
	archive := filepath.Join(tempDir(t), "archive.tar")
	res := r.exportTo(archive, "latest")
	if res.code != 1 {
		t.Errorf("export of what is damaged: exit code %d", res.code)
	}
	wantOneLine(t, res.stderr, "/b")
	if got := runCmd(t, exec.Command("tar", "-tf", archive)); got.code == 0 {
		t.Errorf("tar takes the archive for complete: %q", got.stdout)
	}
	must(t, os.Remove(part))
	must(t, os.WriteFile(part, b, 0o400))
}
