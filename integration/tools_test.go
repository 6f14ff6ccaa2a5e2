package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
)

// recoverScript is what docs/RECOVERY.md tells a user to run.
const recoverScript = "../docs/recover.sh"

// TestPartsWithStockTools wants every part to be what its name and its format
// promise, with tools that know nothing of us.
func TestPartsWithStockTools(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(15, treetest.RandomOptions{Owners: true}))
	createTree(t, src, append(sizeCases(), treetest.Node{Path: "large", Seed: 16, Size: 10 << 20}))
	r := newRepo(t, "--part-size", "1MiB")
	r.all(src)
	parts := r.parts()
	if len(parts) < 5 {
		t.Fatalf("only %d parts", len(parts))
	}
	members := 0
	for _, part := range parts {
		sum := strings.Fields(run(t, "sha256sum", part))[0]
		if want := sum[:2] + "/" + sum + ".tar.zst"; !strings.HasSuffix(part, "/parts/"+want) {
			t.Errorf("%s has the SHA-256 %s", part, sum)
		}
		run(t, "zstd", "-tq", part)
		members += strings.Count(shell(t, `zstd -dc "$1" | tar --quoting-style=escape -tvf -`, part), "\n")
	}
	if members < 200 {
		t.Errorf("tar lists only %d members", members)
	}
	if out := shell(t, `find "$1" -perm /222 -type f`, filepath.Join(r.dir, "parts")); out != "" {
		t.Errorf("parts that can be written: %s", out)
	}

	// After a disaster: all parts into one directory give usable files.
	to := tempDir(t)
	shell(t, `for p in "$1"/parts/*/*; do zstd -dc "$p" | tar -xpf - -C "$2"; done`, r.dir, to)
	want, got := readTree(t, src), readTree(t, to)
	for p, e := range want.Entries {
		g := got.Entries[p]
		if e.Type != treetest.File || e.Size == 0 || e.Size >= chunkedRaw || e.Link != "" || g == nil {
			continue // empty, chunked, or a content that another path has too
		}
		if g.Hash != e.Hash || g.Mode != e.Mode || g.UID != e.UID || g.Sec != e.Sec {
			t.Errorf("tar extracts %q as %+v, want %+v", p, g, e)
		}
	}
}

// TestLogWithStockTools reads the log with zstd, jq and sha256sum.
func TestLogWithStockTools(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(17, treetest.RandomOptions{Owners: true}))
	r := newRepo(t)
	r.all(src)
	_, err := treetest.NewEditor(src, 17).Edit(20)
	must(t, err)
	r.all(src)
	r.all(src)
	previous := strings.Repeat("0", 64)
	for i, record := range r.records() {
		if want := fmt.Sprintf("%012d.jsonl.zst", i+1); filepath.Base(record) != want {
			t.Errorf("record %s, want %s", record, want)
		}
		run(t, "zstd", "-tq", record)
		var header struct {
			Kind, Previous string
			Number         int
		}
		must(t, json.Unmarshal([]byte(shell(t, `zstd -dc "$1" | jq -c . | head -n 1`, record)), &header))
		if header.Kind != "generation" || header.Number != i+1 || header.Previous != previous {
			t.Errorf("header of %s: %+v, want previous %s", record, header, previous)
		}
		previous = strings.Fields(run(t, "sha256sum", record))[0]
	}
}

// TestRecoveryScript restores generations with the script of docs/RECOVERY.md,
// without our programs and without the index.
func TestRecoveryScript(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, recoverable(treetest.Random(18, treetest.RandomOptions{Owners: true, Files: 120})))
	for _, group := range [][]treetest.Node{typeCases(), modeCases(), timeCasesOfThisCentury(), linkCases(), sparseCases(), nameCases(), sizeCases(), symlinkCases()} {
		createTree(t, src, recoverable(group))
	}
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 19, Size: 20<<20 + 1}})
	r := newRepo(t, "--part-size", "1MiB")
	want := map[string]*treetest.Tree{}
	editor := treetest.NewEditor(src, 18)
	for range 3 {
		s := r.all(src)
		want[fmt.Sprint(s.Number)] = readTree(t, src)
		other := tempDir(t)
		write(t, filepath.Join(other, "file"), s.Generation)
		r.all(other, "--source", "other")
		_, err := editor.Edit(25)
		must(t, err)
	}
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	path := toolsOnly(t)
	for number, tree := range want {
		to := filepath.Join(tempDir(t), "restored")
		cmd := exec.Command(filepath.Join(path, "sh"), recoverScript, r.dir, number, to)
		cmd.Env = []string{"PATH=" + path}
		if res := runCmd(t, cmd); res.code != 0 {
			t.Fatalf("recovery of generation %s: exit code %d\n%s%s", number, res.code, tail(res.stdout), tail(res.stderr))
		}
		for p, e := range tree.Entries {
			if e.Type == treetest.Socket { // no stock tool makes one
				delete(tree.Entries, p)
			}
		}
		wantTree(t, "recovery of generation "+number, tree, to, treetest.Options{NoXattrs: true})
	}
	if res := r.mkbackup("reindex"); res.code != 0 { // the fixture's check wants an index
		t.Errorf("reindex: %s", res.stderr)
	}
}

// recoverable leaves out ACLs and other xattrs, which coreutils cannot set, and
// hard links to sockets.
func recoverable(nodes []treetest.Node) []treetest.Node {
	sockets := map[string]bool{}
	var kept []treetest.Node
	for _, n := range nodes {
		n.Xattrs = nil
		if n.Type == treetest.Socket {
			sockets[n.Path] = true
		}
		if n.Type != treetest.HardLink || !sockets[n.Target] {
			kept = append(kept, n)
		}
	}
	return kept
}

// timeCasesOfThisCentury leaves out what the machine's own file system may not hold.
func timeCasesOfThisCentury() []treetest.Node {
	var kept []treetest.Node
	for _, n := range timeCases() {
		if y := n.Mtime.Year(); y >= 1902 && y < 2446 {
			kept = append(kept, n)
		}
	}
	return kept
}

// toolsOnly is a directory with nothing but what the recovery script may use.
func toolsOnly(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	list := strings.Fields(run(t, "dpkg", "-L", "coreutils"))
	for _, tool := range []string{"sh", "zstd", "tar", "jq"} {
		p, err := exec.LookPath(tool)
		must(t, err)
		list = append(list, p)
	}
	for _, p := range list {
		if d := filepath.Base(filepath.Dir(p)); d == "bin" || d == "sbin" {
			must(t, os.Symlink(p, filepath.Join(dir, filepath.Base(p))))
		}
	}
	return dir
}
