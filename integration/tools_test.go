package integration

import (
	"archive/tar"
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
		if res := runCmd(t, recovery(path, r.dir, number, to)); res.code != 0 {
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

// recovery is a command that runs the script with no programs but those in tools.
func recovery(tools, repository, record, to string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(tools, "sh"), recoverScript, repository, record, to)
	cmd.Env = []string{"PATH=" + tools}
	return cmd
}

// damagedRepo is a repository of small parts. Records 2 and 3 are generations of a tree that
// has a file in many parts, some with two names, and one whose content record 1 has stored,
// which is of another source, as is record 4.
func damagedRepo(t *testing.T) (r *repo, first, second *treetest.Tree) {
	t.Helper()
	src, other := tempDir(t), tempDir(t)
	createTree(t, other, []treetest.Node{{Path: "file", Seed: 29, Size: 400_000}})
	nodes := []treetest.Node{{Path: "large", Seed: 30, Size: 5 << 20}, {Path: "shared", Seed: 29, Size: 400_000}, {Path: "sub/odd \xff\n", Seed: 31, Size: 400_000}, {Path: "sub/symlink", Type: treetest.Symlink, Target: "large"}}
	for i := range uint64(10) {
		nodes = append(nodes, treetest.Node{Path: fmt.Sprint("sub/", i), Seed: 32 + i, Size: 400_000, UID: 7, Mode: 0o640},
			treetest.Node{Path: fmt.Sprint("links/", i), Type: treetest.HardLink, Target: fmt.Sprint("sub/", i)})
	}
	createTree(t, src, nodes)
	r = newRepo(t, "--part-size", "64KiB")
	r.all(other, "--source", "other")
	r.all(src)
	first = readTree(t, src)
	createTree(t, src, []treetest.Node{{Path: "later", Seed: 50, Size: 400_000}})
	r.all(src)
	second = readTree(t, src)
	write(t, filepath.Join(other, "more"), "more")
	r.all(other, "--source", "other")
	return r, first, second
}

// filesIn returns the paths of a tree that lack something without a part of it: those of
// its members, under all their names, and "large", which its chunks are of.
func filesIn(t *testing.T, tree *treetest.Tree, part string) []string {
	t.Helper()
	var list []string
	for members := tar.NewReader(strings.NewReader(run(t, "zstd", "-dc", part))); ; {
		member, err := members.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		must(t, err)
		name := member.Name
		if strings.HasPrefix(name, ".chunks/") {
			name = "large"
		}
		for p, e := range tree.Entries {
			if p == name || e.Link != "" && tree.Entries[name] != nil && e.Link == tree.Entries[name].Link {
				list = append(list, p)
			}
		}
	}
}

// partsOf returns the parts that hold something of a path of a tree.
func partsOf(t *testing.T, r *repo, tree *treetest.Tree, path string) []string {
	t.Helper()
	return slices.DeleteFunc(r.parts(), func(part string) bool { return !slices.Contains(filesIn(t, tree, part), path) })
}

// escaped writes a path as the script does.
func escaped(path string) string {
	var b strings.Builder
	for _, c := range []byte("/" + path) {
		if strings.IndexByte("/_.-", c) >= 0 || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\0%03o`, c)
		}
	}
	return b.String()
}

// TestRecoveryOfDamage: of a damaged repository the script restores all that can be had,
// and names the rest.
func TestRecoveryOfDamage(t *testing.T) {
	r, first, second := damagedRepo(t)
	tools := toolsOnly(t)
	large, small, odd := partsOf(t, r, first, "large")[1], partsOf(t, r, first, "sub/4")[0], partsOf(t, r, first, "sub/odd \xff\n")[0]
	later, records := partsOf(t, r, second, "later")[0], r.records()
	for _, test := range []struct {
		name   string
		damage string // a script, in the repository
		record string // of the generation
		code   int
		hit    []string // parts; without any, what is damaged is "shared"
		want   string   // on stderr
	}{
		{"a part with a flipped bit", `printf 'x' | dd of="$2" bs=1 seek=1000 conv=notrunc status=none`, "3", 4, []string{small}, "damaged or not there: "},
		{"a part that is not there", `rm "$3"`, "3", 4, []string{large}, "damaged or not there: "},
		{"a part cut off", `truncate -s -1 "$4"`, "3", 4, []string{odd}, "damaged or not there: "},
		{"two parts exchanged", `mv "$2" x; mv "$3" "$2"; mv x "$3"`, "3", 4, []string{small, large}, "damaged or not there: "},
		{"a part that is not needed", `rm "$5"`, "2", 0, nil, ""},
		{"a record cut off that is not needed", `truncate -s -10 "$8"`, "3", 0, nil, "damaged, and left out: "},
		{"a record that is not its name's", `cp "$7" "$8"`, "3", 0, nil, "damaged, and left out: "},
		{"a record that says where contents are", `truncate -s -10 "$6"`, "3", 4, nil, "the log does not say where some contents are"},
		{"a record that is needed", `truncate -s -10 "$7"`, "3", 1, nil, "generation 3 needs log record 2, "},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, to := filepath.Join(tempDir(t), "repo"), filepath.Join(tempDir(t), "restored")
			run(t, "cp", "-a", r.dir, dir)
			args := []string{dir}
			for _, file := range []string{small, large, odd, later, records[0], records[1], records[3]} {
				args = append(args, strings.TrimPrefix(file, r.dir+"/"))
			}
			shell(t, `cd "$1"; `+test.damage, args...)
			res := runCmd(t, recovery(tools, dir, test.record, to))
			if res.code != test.code || !strings.Contains(res.stderr, test.want) {
				t.Fatalf("exit code %d, want %d, and %q in\n%s", res.code, test.code, test.want, res.stderr)
			}
			if test.code == 1 {
				return
			}
			tree := first
			if test.record == "3" {
				tree = second
			}
			var hit []string
			if test.code == 4 && len(test.hit) == 0 {
				hit = []string{"shared"}
			}
			for _, part := range test.hit {
				hit = append(hit, filesIn(t, tree, part)...)
			}
			want := &treetest.Tree{Entries: maps.Clone(tree.Entries)}
			for _, p := range hit {
				delete(want.Entries, p)
				if line := "damaged: " + escaped(p) + "\n"; strings.Count(res.stderr, line) != 1 {
					t.Errorf("not named once: %s", line)
				}
			}
			lost := len(tree.Entries) - len(want.Entries)
			if n := strings.Count(res.stderr, "damaged: "); n != lost || lost == 0 != (test.code == 0) {
				t.Errorf("%d of %d files named:\n%s", n, lost, res.stderr)
			}
			if line := fmt.Sprintf("\n%d damaged files, ", lost); lost > 0 && !strings.Contains(res.stderr, line) {
				t.Errorf("no line %q:\n%s", line, res.stderr)
			}
			wantTree(t, "recovery", want, to, treetest.Options{})
		})
	}
}

// TestRecoveryIsClosed: what only some may read is never open to others, wherever the
// script ends.
func TestRecoveryIsClosed(t *testing.T) {
	r, _, _ := damagedRepo(t)
	tools, to := toolsOnly(t), filepath.Join(tempDir(t), "restored")
	dd := filepath.Join(tools, "dd")
	must(t, os.Remove(dd))
	write(t, dd, "#!"+filepath.Join(tools, "sh")+"\nexit 1\n")
	must(t, os.Chmod(dd, 0o755))
	script := recovery(tools, r.dir, "2", to)
	cmd := exec.Command("sh", append([]string{"-c", `umask 022; exec "$@"`, "sh"}, script.Args...)...)
	cmd.Env = script.Env
	if res := runCmd(t, cmd); res.code != 1 {
		t.Fatalf("exit code %d: %s", res.code, res.stderr)
	}
	if made := run(t, "find", to, "-type", "f"); strings.Count(made, "\n") < 20 {
		t.Fatalf("made: %q", made)
	}
	if open := run(t, "find", to, "-not", "-type", "l", "-perm", "/077"); open != "" {
		t.Errorf("open to others:\n%s", open)
	}
}

// TestRecoveryCommandsOfManyParts runs the commands of docs/RECOVERY.md, of one line each,
// where the names of all parts do not fit on a command line.
func TestRecoveryCommandsOfManyParts(t *testing.T) {
	r, _, _ := damagedRepo(t)
	page, err := os.ReadFile("../docs/RECOVERY.md")
	must(t, err)
	more := tempDir(t)
	for i := range 400 {
		var b strings.Builder
		w := tar.NewWriter(&b)
		must(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint("many/", i), Mode: 0o600}))
		must(t, w.Close())
		write(t, filepath.Join(more, fmt.Sprint(i)), b.String())
	}
	dir := filepath.Join(tempDir(t), "repo")
	run(t, "cp", "-a", r.dir, dir)
	shell(t, `cd "$1"; zstd -q --rm -r .; mkdir "$2/parts/many"
		sha256sum * | while read -r sum file; do mv "$file" "$2/parts/many/$sum.tar.zst"; done`, more, dir)
	// The kernel allows 128 KiB of arguments and environment under such a limit.
	const few = `ulimit -s 512; PAD=$(head -c 100000 /dev/zero | tr '\0' x); export PAD; cd "$1"; eval "$2"`
	ran := 0
	for line := range strings.Lines(string(page)) {
		command, indented := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "    ")
		if !indented || strings.Contains(command, "…") || !strings.Contains(command, "parts") && !strings.Contains(command, "log") || strings.HasSuffix(command, "; do") {
			continue
		}
		ran++
		if res := runCmd(t, exec.Command("sh", "-euc", few, "sh", dir, command)); res.code != 0 || res.stderr != "" {
			t.Errorf("%s: exit code %d\n%s", command, res.code, tail(res.stderr))
		}
	}
	if ran < 5 {
		t.Errorf("only %d commands", ran)
	}
	for _, file := range []string{"many/399", "links/9", "later"} {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Errorf("not extracted: %v", err)
		}
	}
}

// recoverable leaves out ACLs and other xattrs, which coreutils cannot set.
func recoverable(nodes []treetest.Node) []treetest.Node {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Xattrs = nil
	}
	return nodes
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
