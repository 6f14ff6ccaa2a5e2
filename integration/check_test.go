package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/treetest"
)

// checkResult is a part of the JSON that `check --json` prints.
type checkResult struct {
	Generations  int   `json:"generations"`
	Parts        int   `json:"parts"`
	ReadParts    int   `json:"read_parts"`
	ReadBytes    int64 `json:"read_bytes"`
	StoredBytes  int64 `json:"stored_bytes"`
	Damages      int   `json:"damages"`
	DamagedParts []struct {
		Part  string
		Files []struct {
			Source      string
			Path        string
			Generations []string
		}
	} `json:"damaged_parts"`
	DamagedFiles  int    `json:"damaged_files"`
	DamagedConfig bool   `json:"damaged_config"`
	Compared      int64  `json:"compared"`
	Changed       int64  `json:"changed"`
	NotStored     int64  `json:"not_stored"`
	Differ        int64  `json:"differ"`
	Incomplete    string `json:"incomplete"`
}

// checkJSON runs check and wants the exit code and a result in the last line.
func (r *repo) checkJSON(code int, args ...string) (checkResult, result) {
	r.t.Helper()
	res := r.mkbackup("check", append([]string{"--json"}, args...)...)
	if res.code != code {
		r.t.Fatalf("check %q: exit code %d, want %d\n%s%s", args, res.code, code, tail(res.stdout), tail(res.stderr))
	}
	lines := strings.Split(strings.TrimSpace(res.stdout), "\n")
	var c checkResult
	must(r.t, json.Unmarshal([]byte(lines[len(lines)-1]), &c))
	return c, res
}

// TestCheckLastLine: the last line says in words what was found.
func TestCheckLastLine(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/one", Seed: 1, Size: 200_000}, {Path: "a/two", Seed: 2, Size: 200_000}})
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	r.all(src)
	r.all(src)
	size, length := regexp.MustCompile(`[0-9]+ KiB`), regexp.MustCompile(`, [0-9.ms]+\n$`)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "OK: 2 generations, 1 part of N KiB there (structure; --read-data reads them), T\n"},
		{[]string{"--read-data"}, "OK: 2 generations, 1 part, N KiB read and verified, T\n"},
		{[]string{"--read-data-subset", "100%"}, "OK: 2 generations, 1 part, N KiB read and verified, T\n"},
		{[]string{"--against", src}, "OK: 2 generations, 1 part of N KiB there (structure; --read-data reads them); 4 paths compared with " + src + ": 0 changed since, 0 not in the backup, T\n"},
		{[]string{"-q"}, ""},
	} {
		res := r.mkbackup("check", c.args...)
		if got := length.ReplaceAllString(size.ReplaceAllString(res.stdout, "N KiB"), ", T\n"); res.code != 0 || got != c.want {
			t.Errorf("check %q: exit code %d, %q, want %q\n%s", c.args, res.code, got, c.want, res.stderr)
		}
	}
	for _, args := range [][]string{{"--read-data-subset", "5"}, {"--read-data-subset", "0%"}, {"--read-data", "--read-data-subset", "5%"}, {"--progress", "perhaps"}, {"--source", "x"}} {
		if res := r.mkbackup("check", args...); res.code != 2 {
			t.Errorf("check %q: exit code %d, want 2\n%s", args, res.code, res.stderr)
		}
	}
	part := r.parts()[0]
	flip(t, part, 8*1000)
	if res := r.mkbackup("check"); res.code != 0 {
		t.Errorf("structure does not read parts, but: exit code %d", res.code)
	}
	res := r.mkbackup("check", "--read-data")
	if want := "DAMAGED: 1 part, 2 files in 2 generations: see above\n"; res.code != 4 || res.stdout != want {
		t.Errorf("exit code %d, %q, want %q", res.code, res.stdout, want)
	}
	names := r.generations()
	name, _, _ := strings.Cut(filepath.Base(part), ".")
	want := fmt.Sprintf("mkbackup: part %s: cannot be read because of that:\n  /a/one (%s to %s, 2 generations)\n  /a/two (%[2]s to %[3]s, 2 generations)\n", name, names[0], names[1])
	if !strings.Contains(res.stderr, want) || !strings.HasSuffix(res.stderr, "see \"When there is damage\" in `mkbackup check --help`\n") || !strings.Contains(res.stderr, "damage: part "+name+" is damaged at stored offset 0: BLAKE3") {
		t.Errorf("%s\nwant …%s", res.stderr, want)
	}
	c, res := r.checkJSON(4, "--read-data")
	if c.DamagedFiles != 2 || len(c.DamagedParts) != 1 || c.DamagedParts[0].Part != name || len(c.DamagedParts[0].Files) != 2 || len(c.DamagedParts[0].Files[0].Generations) != 2 {
		t.Errorf("%+v", c)
	}
	if !strings.HasSuffix(res.stderr, "DAMAGED: 1 part, 2 files in 2 generations: see above\n") {
		t.Errorf("with --json, the verdict is not on stderr: %s", res.stderr)
	}
	must(t, os.Remove(part))
	if res := r.mkbackup("check", "-q"); res.code != 4 || !strings.HasPrefix(res.stdout, "DAMAGED: 1 part, 2 files") || !strings.Contains(res.stderr, "the part is missing") {
		t.Errorf("a part is missing: exit code %d, %q\n%s", res.code, res.stdout, res.stderr)
	}
}

// TestDamagedLogIsRead damages the newest log record: every command that reads shows
// what can be read and exits as for damage, those that write change nothing, and
// each says what to do.
func TestDamagedLogIsRead(t *testing.T) {
	src := tempDir(t)
	file := filepath.Join(src, "file")
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	for _, content := range []string{"one", "two", "three"} {
		write(t, file, content)
		r.all(src)
	}
	names := r.generations()
	records := r.records()
	must(t, os.Rename(records[1], records[1]+".away"))
	if res := r.mkbackup("diff", names[0], names[2]); res.code != 4 || res.stdout != "M /file  (content, size, mtime)\n" {
		t.Errorf("diff over a record that is missing: exit code %d\n%s%s", res.code, res.stdout, res.stderr)
	} else {
		wantOneLine(t, res.stderr, "the log lacks 1 record, the first is 2: ", "`mkbackup check --repair`")
	}
	must(t, os.Rename(records[1]+".away", records[1]))
	flip(t, records[2], 8*40)
	for _, c := range []struct {
		name  string
		newer bool // an index tells of the last generation
	}{{"the index goes on", true}, {"no index", false}} {
		t.Run(c.name, func(t *testing.T) {
			r := r.on(t)
			last := names[1]
			if c.newer {
				last = names[2]
			} else {
				must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
			}
			for command, args := range map[string][]string{"list": nil, "ls": {last}, "diff": {names[0], last}, "history": {"/file"}, "find": {"f*"}, "stats": nil, "export": {last, "/file"}} {
				res := r.mkbackup(command, args...)
				if res.code != 4 || res.stdout == "" || !strings.Contains(res.stderr, "log record 3") || !strings.HasSuffix(res.stderr, "this is what can be read: `mkbackup check` says what is lost, and what to do\n") {
					t.Errorf("%s: exit code %d\n%s%s", command, res.code, tail(res.stdout), res.stderr)
				}
				if command == "list" && (!strings.Contains(res.stdout, last+" ") || strings.Contains(res.stdout, names[2]+" ") != c.newer) {
					t.Errorf("list: want up to %s:\n%s", last, res.stdout)
				}
			}
			before := run(t, "find", filepath.Join(r.dir, "log"), filepath.Join(r.dir, "parts"), "-type", "f")
			for command, args := range map[string][]string{"create": {src}, "forget": {names[0]}, "compact": {"--max-dead", "0"}} {
				res := r.mkbackup(command, args...)
				if res.code != 1 || !strings.Contains(res.stderr, "log record 3") || !strings.HasSuffix(res.stderr, "`mkbackup check` says what is lost, and what to do\n") {
					t.Errorf("%s: exit code %d: %s", command, res.code, res.stderr)
				}
			}
			if after := run(t, "find", filepath.Join(r.dir, "log"), filepath.Join(r.dir, "parts"), "-type", "f"); after != before {
				t.Errorf("the repository has changed:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// TestManyHits names the first hundred files of a part, or all.
// lossy makes a repository of small parts, of a tree whose last file, "z-alone", fills a part of
// its own. It is not checked when the test ends.
func lossy(t *testing.T) (r *repo, src string, first summary) {
	t.Helper()
	src = tempDir(t)
	nodes := []treetest.Node{{Path: "large", Seed: 1, Size: 3 << 20}, {Path: "link", Type: treetest.HardLink, Target: "large"}, {Path: "small", Data: []byte("small")},
		{Path: "z-alone", Seed: 2, Size: 200_000}}
	for i := range 40 {
		nodes = append(nodes, treetest.Node{Path: fmt.Sprintf("d/f%02d", i), Seed: uint64(i) + 10, Size: 30_000})
	}
	createTree(t, src, nodes)
	r = &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir, "--part-size", "64KiB")
	return r, src, r.all(src)
}

// partsOf returns the files of the parts in which a file of the newest generation lies.
func (r *repo) partsOf(path string) (files []string) {
	r.t.Helper()
	script := `zstd -dc "$1"/log/* | jq -rs --arg path "$2" '([.[] | select(.path == $path) | .data[][2]]) as $hashes |
		[.[] | select(.content)] | reverse | unique_by(.content)[] | select(.content as $c | $hashes | index($c)) | .part' | sort -u`
	for _, name := range strings.Fields(shell(r.t, script, r.dir, path)) {
		files = append(files, filepath.Join(r.dir, "parts", name[:2], name+".tar.zst"))
	}
	if len(files) == 0 {
		r.t.Fatalf("%s lies in no part", path)
	}
	return files
}

// TestMissingPartIsStoredAgain: a run notices that a part is gone, and stores what lay
// in it again, so that every generation is whole as far as the source has what it had.
func TestMissingPartIsStoredAgain(t *testing.T) {
	for what, remove := range map[string]func(r *repo) []string{
		"one":             func(r *repo) []string { return r.partsOf("small")[:1] },
		"of a large file": func(r *repo) []string { return r.partsOf("large") },
		"all":             func(r *repo) []string { return r.parts() },
	} {
		t.Run(what, func(t *testing.T) {
			r, src, first := lossy(t)
			want := readTree(t, src)
			gone := remove(r)
			for _, part := range gone {
				must(t, os.Remove(part))
			}
			dry := r.mkbackup("create", "--dry-run", "--root", src, "/")
			s, res := r.createExit(4, "-q", "--root", src, "/")
			if s.Missing != int64(len(gone)) || s.Unchanged == 0 || s.Changed != 0 || s.Errors != 0 {
				t.Errorf("summary: %+v; %d parts are missing", s, len(gone))
			}
			for _, text := range []string{res.stderr, dry.stderr} {
				for _, part := range gone[:min(len(gone), 10)] {
					if name, _, _ := strings.Cut(filepath.Base(part), "."); strings.Count(text, name) != 1 {
						t.Errorf("the part %s is not named once:\n%s", name, text)
					}
				}
				if !strings.Contains(text, "mkbackup check "+r.dir) {
					t.Errorf("no word of what to do:\n%s", text)
				}
			}
			if dry.code != 4 || strings.Contains(dry.stderr, "committed") {
				t.Errorf("dry run: exit code %d, want 4\n%s", dry.code, dry.stderr)
			}
			m := r.mount()
			for _, g := range []string{first.Generation, s.Generation} {
				wantTree(t, what, want, m.at(g), treetest.Options{})
			}
			m.stop()
			if s, _ := r.createExit(0, "--root", src, "/"); s.Missing != 0 {
				t.Errorf("the next night: %+v", s)
			}
			r.mkbackup("compact") // parts that were not made anew, and are not needed
			r.checkJSON(0, "--read-data")
			if again := r.all(src); again.ReadBytes != 0 || again.Missing != 0 {
				t.Errorf("again: %+v", again)
			}
		})
	}
}

// TestMissingPartOfWhatIsGone: what the source has no more stays lost, and every run
// says so until no generation needs it.
func TestMissingPartOfWhatIsGone(t *testing.T) {
	r, src, first := lossy(t)
	gone := r.partsOf("z-alone")
	before := readTree(t, src)
	must(t, os.Remove(filepath.Join(src, "z-alone")))
	r.all(src)
	for _, part := range gone {
		must(t, os.Remove(part))
	}
	want := readTree(t, src)
	for range 2 {
		s, _ := r.createExit(4, "--root", src, "/")
		m := r.mount()
		wantTree(t, "new", want, m.at(s.Generation), treetest.Options{})
		for _, path := range before.Paths() {
			if path == "z-alone" || before.Entries[path].Type != treetest.File {
				continue
			}
			if _, err := os.ReadFile(m.at(first.Generation, path)); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		_, err := os.ReadFile(m.at(first.Generation, "z-alone"))
		wantErrno(t, "z-alone", unix.EIO, err)
		m.stop()
		c, _ := r.checkJSON(4)
		if c.DamagedFiles != 1 {
			t.Errorf("check: %+v", c)
		}
	}
	r.forget(first.Number)
	if _, res := r.createExit(0, "--root", src, "/"); !strings.Contains(res.stderr, "parts that no generation needs any more are missing (1): `mkbackup compact` forgets them") {
		t.Errorf("create: %s", res.stderr)
	}
	if res := r.mkbackup("check"); res.code != 4 || !strings.Contains(res.stderr, "`mkbackup compact` removes it") {
		t.Errorf("check: exit code %d\n%s", res.code, res.stderr)
	}
	if res := r.mkbackup("compact"); res.code != 0 {
		t.Errorf("compact: exit code %d\n%s", res.code, res.stderr)
	}
	r.checkJSON(0, "--read-data")
	r.all(src)
}

// failing returns a command of which a system call on a file fails.
func (r *repo) failing(call, errno, file, command string, args ...string) *exec.Cmd {
	words := r.command(command, args...).Args
	return exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-P", file, "-e", "trace=" + call, "-e", "inject=" + call + ":error=" + errno}, words...)...)
}

// TestUnreadableRecordIsRepaired: the disk cannot read the last record, but an index has
// what it said.
func TestUnreadableRecordIsRepaired(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	for _, content := range []string{"one", "two"} {
		write(t, filepath.Join(src, "file"), content)
		r.all(src)
	}
	want := r.generations()
	last := r.records()[1]
	res := runCmd(t, r.failing("pread64", "EIO", last, "check", "--repair"))
	if res.code != 0 || !strings.HasPrefix(res.stdout, "REPAIRED: the log was written again; ") || !strings.Contains(res.stderr, "log record 3 says again what the damaged ones said") {
		t.Errorf("exit code %d, %q\n%s", res.code, res.stdout, res.stderr)
	}
	must(t, os.Truncate(last, 50))
	if got := r.generations(); !slices.Equal(got, want) {
		t.Errorf("generations %q, want %q", got, want)
	}
	r.checkJSON(0, "--read-data")
}

// TestCompactTellsOfDamagedRecords: a checkpoint, in which nothing of a damaged record is,
// does not hide that it was damaged, or is missing.
func TestCompactTellsOfDamagedRecords(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, record string){
		"damaged": func(t *testing.T, record string) { flip(t, record, 8*60) },
		"missing": func(t *testing.T, record string) { must(t, os.Remove(record)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := fourNights(t)
			harm(t, r.records()[2])
			r.forgets("--keep-last", "1")
			res := r.mkbackup("compact", "--max-dead", "0")
			if res.code != 4 || !strings.Contains(res.stderr, "log record 3") || !strings.Contains(res.stderr, "1 damaged log record, named above: the log was not made shorter") {
				t.Errorf("exit code %d\n%s", res.code, res.stderr)
			}
			if res := r.mkbackup("check", "--repair"); res.code != 0 {
				t.Errorf("check --repair: exit code %d\n%s%s", res.code, res.stdout, res.stderr)
			}
			r.compact(0, "--max-dead", "0")
			r.checkJSON(0, "--read-data")
		})
	}
}

// TestOldIndexIsRepaired: an index that is not the newest is mended, too: by check
// --repair, and by reindex.
func TestOldIndexIsRepaired(t *testing.T) {
	for _, repair := range [][]string{{"check", "--repair"}, {"reindex"}} {
		r, src := newRepo(t), tempDir(t)
		write(t, filepath.Join(src, "file"), "content")
		r.all(src)
		r.all(src)
		must(t, os.Remove(filepath.Join(r.dir, "index/000000000001/MANIFEST")))
		r.checkJSON(4)
		if res := r.mkbackup(repair[0], repair[1:]...); res.code != 0 {
			t.Errorf("%q: exit code %d\n%s%s", repair, res.code, res.stdout, res.stderr)
		}
		r.checkJSON(0, "--read-data")
	}
}

// TestReplacedRecordIsRepaired: the index that fits to the record that was there before is
// mended in the same step.
func TestReplacedRecordIsRepaired(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	for _, content := range []string{"one", "two", "three"} {
		write(t, filepath.Join(src, "file"), content)
		r.all(src)
	}
	want := r.generations()
	last := r.records()[2]
	must(t, os.Chmod(last, 0o600))
	f, err := os.OpenFile(last, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("abc")
	must(t, err)
	must(t, f.Close())
	if res := r.mkbackup("check", "--repair"); res.code != 0 {
		t.Errorf("exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	r.checkJSON(0, "--read-data")
	if got := r.generations(); !slices.Equal(got, want) {
		t.Errorf("generations %q, want %q", got, want)
	}
}

// fourNights returns a repository of four generations of a file that changes.
func fourNights(t *testing.T) *repo {
	r, src := newRepo(t), tempDir(t)
	for i := range 4 {
		write(t, filepath.Join(src, "file"), strings.Repeat(fmt.Sprint(i), 10_000))
		r.all(src)
	}
	return r
}

// TestLostEndDropsNothing: what drops something refuses to go on where the log has lost
// its last record, or all, which may be found again; create says so.
func TestLostEndDropsNothing(t *testing.T) {
	r := fourNights(t)
	want := r.generations()
	for left := range 4 {
		lost, aside := r.records()[left:], tempDir(t)
		run(t, "mv", append(slices.Clone(lost), aside)...)
		says := fmt.Sprintf("the log ends with record %d: the last records are missing", left)
		for _, command := range [][]string{{"forget", "--keep-last", "1"}, {"forget", "latest"}, {"compact", "--max-dead", "0"}} {
			res := r.mkbackup(command[0], command[1:]...)
			if res.code != 1 || res.stdout != "" {
				t.Errorf("%q: exit code %d, %q", command, res.code, res.stdout)
			}
			wantOneLine(t, res.stderr, says, "nothing is dropped")
		}
		if res := r.mkbackup("create", "-q", "--dry-run", "--root", aside, "/"); res.code != 4 || !strings.Contains(res.stderr, says) {
			t.Errorf("create: exit code %d: %s", res.code, res.stderr)
		}
		for _, record := range lost {
			run(t, "mv", filepath.Join(aside, filepath.Base(record)), record)
		}
	}
	if got := r.generations(); !slices.Equal(got, want) {
		t.Errorf("generations %q, want %q", got, want)
	}
	r.checkJSON(0)
}

// TestLostEndIsNotRepaired: a log that is damaged, and has lost its end besides, is not
// written again: that would take the number of the lost record, which may be found.
func TestLostEndIsNotRepaired(t *testing.T) {
	r := fourNights(t)
	want := r.generations()
	records := r.records()
	aside := filepath.Join(tempDir(t), "record")
	run(t, "mv", records[3], aside)
	second, err := os.ReadFile(records[1])
	must(t, err)
	rewrite(t, records[1], "damaged")
	if res := r.mkbackup("check", "--repair"); res.code != 4 || !strings.Contains(res.stderr, "the log is not written again: its last records are missing or replaced") {
		t.Errorf("exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	run(t, "mv", aside, records[3])
	rewrite(t, records[1], string(second))
	if got := r.generations(); !slices.Equal(got, want) {
		t.Errorf("generations %q, want %q", got, want)
	}
	r.checkJSON(0, "--read-data")
}

// TestNoLockService: where locks cannot be had for the moment nothing is written, but all
// that is there is read.
func TestNoLockService(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "content")
	r.all(src)
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	lockless := func(command string, args ...string) result {
		words := r.command(command, args...).Args
		return runCmd(t, exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"}, words...)...))
	}
	if res := lockless("list"); res.code != 0 || !strings.Contains(res.stdout, r.generations()[0]) {
		t.Errorf("list: exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	res := lockless("create", "--root", src, "/")
	if res.code != 1 || len(r.records()) != 1 {
		t.Errorf("create: exit code %d, %q", res.code, r.records())
	}
	wantOneLine(t, res.stderr, "no locks available", "nolock")
}

// TestStrayLinks: links that lead nowhere are not in the way, where they have no name of a
// record or a part; a part that is one is missing.
func TestStrayLinks(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), strings.Repeat("content", 1000))
	first := r.all(src)
	part := r.parts()[0]
	for _, dir := range []string{"log", "parts", filepath.Base(filepath.Dir(part))} {
		if len(dir) == 2 {
			dir = filepath.Join("parts", dir)
		}
		must(t, os.Symlink("nobody@host.1", filepath.Join(r.dir, dir, ".#x")))
	}
	r.all(src)
	r.checkJSON(0, "--read-data")
	must(t, os.Remove(part))
	must(t, os.Symlink("/none", part))
	s, _ := r.createExit(4, "--root", src, "/")
	m := r.mount()
	for _, g := range []string{first.Generation, s.Generation} {
		wantTree(t, g, readTree(t, src), m.at(g), treetest.Options{})
	}
	m.stop()
	r.checkJSON(0, "--read-data")
}

// TestIndexRemovedMeanwhile: the index may be deleted at any time.
func TestIndexRemovedMeanwhile(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "content")
	r.all(src)
	b := start(t, exec.Command("sh", "-c", `while :; do rm -rf "$0"; sleep 0.005; done`, filepath.Join(r.dir, "index")))
	for range 30 {
		r.all(src)
		if res := r.mkbackup("forget", "--keep-last", "2"); res.code != 0 {
			t.Errorf("forget: exit code %d\n%s", res.code, res.stderr)
		}
	}
	must(t, b.cmd.Process.Kill())
	b.wait(t, time.Minute)
	r.checkJSON(0, "--read-data")

	// What is in its place is not removed, and the index is elsewhere.
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	write(t, filepath.Join(r.dir, "index"), "a file")
	s := r.all(src)
	m := r.mount()
	wantTree(t, "new", readTree(t, src), m.at(s.Generation), treetest.Options{})
	m.stop()
	must(t, os.Remove(filepath.Join(r.dir, "index")))
	must(t, os.Symlink("/none", filepath.Join(r.dir, "index")))
	r.all(src)
	must(t, os.Remove(filepath.Join(r.dir, "index")))
}

// TestNoAnswerIsNoDamage: a check that runs out of what it needs ends with an error, and
// repairs nothing.
func TestNoAnswerIsNoDamage(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "content")
	r.all(src)
	r.all(src)
	before := r.records()
	for _, file := range []string{r.records()[0], r.records()[1], r.parts()[0]} {
		for _, errno := range []string{"EMFILE", "ENOMEM", "ETIMEDOUT"} {
			res := runCmd(t, r.failing("openat", errno, file, "check", "--read-data", "--repair"))
			if res.code != 1 || res.stdout != "" || strings.Contains(res.stderr, "damage") {
				t.Errorf("%s of %s: exit code %d, %q\n%s", errno, file, res.code, res.stdout, res.stderr)
			}
		}
	}
	if after := r.records(); !slices.Equal(before, after) {
		t.Errorf("the log has %q", after)
	}
}

// TestCheckWithoutRoom: where there is no room for a second index, check --read-data reads the parts
// and names the files that are hit, all the same, and says that the index was not compared.
func TestCheckWithoutRoom(t *testing.T) {
	disk, full, src := tmpfs(t, 256<<20), tmpfs(t, 1<<20), tempDir(t)
	r := &repo{t: t, dir: filepath.Join(disk, "repo")}
	run(t, mkbackup, "init", r.dir)
	createTree(t, src, []treetest.Node{{Path: "a/file", Seed: 1, Size: 200_000}})
	r.all(src)
	leaveFree(t, disk, 1<<20)
	check := func(code int, args ...string) (checkResult, result) {
		t.Helper()
		cmd := r.command("check", append([]string{"--read-data"}, args...)...)
		cmd.Env = append(os.Environ(), "TMPDIR="+full)
		res := runCmd(t, cmd)
		lines := strings.Split(strings.TrimSpace(res.stderr), "\n")
		if last := lines[len(lines)-1]; res.code != code || !strings.Contains(last, "the parts were read, but the index could not be compared with the log: ") || !strings.HasSuffix(last, ": make room there and run it again") {
			t.Errorf("check %q: exit code %d, want %d\n%s%s", args, res.code, code, res.stdout, res.stderr)
		}
		var c checkResult
		if slices.Contains(args, "--json") {
			must(t, json.Unmarshal([]byte(res.stdout), &c))
		}
		return c, res
	}
	for _, args := range [][]string{nil, {"-q"}, {"--repair"}} {
		if _, res := check(1, args...); res.stdout != "" {
			t.Errorf("%q: %q", args, res.stdout)
		}
	}
	if c, _ := check(1, "--json", "--against", src); c.Compared == 0 {
		t.Errorf("the tree was not compared: %+v", c)
	}
	if c, _ := check(1, "--json"); c.Damages != 0 || c.ReadParts != 1 || !strings.Contains(c.Incomplete, "no space left on device") {
		t.Errorf("%+v", c)
	}
	flip(t, r.parts()[0], 8*1000)
	_, res := check(4)
	if res.stdout != "DAMAGED: 1 part, 1 file in 1 generation: see above\n" || !strings.Contains(res.stderr, "\n  /a/file (") {
		t.Errorf("%q\n%s", res.stdout, res.stderr)
	}
	c, _ := check(4, "--json")
	if c.DamagedFiles != 1 || len(c.DamagedParts) != 1 || len(c.DamagedParts[0].Files) != 1 || !strings.Contains(c.Incomplete, "no space left on device") {
		t.Errorf("%+v", c)
	}
}

// TestMissingPartAfterForget: the record must be complete then, and what it says of
// unchanged files is whole all the same.
func TestMissingPartAfterForget(t *testing.T) {
	r, src, _ := lossy(t)
	write(t, filepath.Join(src, "new"), "new")
	r.forget(r.all(src).Number)
	must(t, os.Remove(r.partsOf("small")[0]))
	s, _ := r.createExit(4, "--root", src, "/")
	m := r.mount()
	wantTree(t, "complete", readTree(t, src), m.at(s.Generation), treetest.Options{})
	m.stop()
	r.mkbackup("compact")
	r.checkJSON(0, "--read-data")
}

// TestDamagedPartPutAside does what docs/checking.md says about a damaged part: away
// with it, create, and back with it, for what can still be read.
func TestDamagedPartPutAside(t *testing.T) {
	r, src, first := lossy(t)
	part := r.partsOf("small")[0]
	want := readTree(t, src)
	damage(t, part, "truncated")
	aside := filepath.Join(tempDir(t), "part")
	run(t, "mv", part, aside)
	r.createExit(4, "--root", src, "/")
	if _, err := os.Lstat(part); err != nil {
		run(t, "mv", aside, part)
	}
	m := r.mount()
	wantTree(t, "old", want, m.at(first.Generation), treetest.Options{})
	m.stop()
	r.mkbackup("compact")
	r.checkJSON(0, "--read-data")
}

// TestLostConfig: a repository without its repo.json is told from none, and gets it back.
func TestLostConfig(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "file", Seed: 1, Size: 50_000}})
	want := readTree(t, src)
	config := func(r *repo) (c struct {
		ID       string
		PartSize int64 `json:"part_size"`
	}) {
		b, err := os.ReadFile(filepath.Join(r.dir, "repo.json"))
		must(t, err)
		must(t, json.Unmarshal(b, &c))
		return c
	}
	for what, index := range map[string]string{"index": "kept", "no index": "gone", "index of strangers": "suspect"} {
		t.Run(what, func(t *testing.T) {
			r := newRepo(t)
			s := r.all(src)
			before := config(r)
			must(t, os.Remove(filepath.Join(r.dir, "repo.json")))
			switch index {
			case "gone":
				must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
			case "suspect":
				shell(t, `chmod o+w "$1"/index/*/seal.json`, r.dir)
			}
			for _, command := range [][]string{{"create", "/"}, {"list"}, {"check"}, {"init"}} {
				res, want := r.mkbackup(command[0], command[1:]...), 1
				if command[0] == "check" {
					want = 4
				}
				if res.code != want {
					t.Errorf("%s: exit code %d, want %d\n%s", command, res.code, want, res.stdout)
				}
				wantOneLine(t, res.stderr, r.dir, "has lost its repo.json", "mkbackup check --repair "+r.dir)
			}
			mnt := mkdir(t, tempDir(t), "mnt")
			res := runCmd(t, exec.Command(backupfs, r.dir, mnt))
			if res.code != 1 {
				t.Errorf("backupfs: exit code %d, want 1", res.code)
			}
			wantOneLine(t, res.stderr, r.dir, "has lost its repo.json")
			if res = r.mkbackup("check", "-q", "--repair"); res.code != 0 || !strings.Contains(res.stderr, "repo.json is written again") {
				t.Errorf("check --repair: exit code %d\n%s", res.code, res.stderr)
			}
			if after := config(r); (after.ID == before.ID) != (index == "kept") || after.PartSize != before.PartSize {
				t.Errorf("repo.json is %+v, was %+v", after, before)
			}
			m := r.mount()
			wantTree(t, what, want, m.at(s.Generation), treetest.Options{})
			m.stop()
			if again := r.all(src); again.ReadBytes != 0 {
				t.Errorf("create after that: %+v", again)
			}
		})
	}
	// A damaged one names what to do, and that works.
	r := newRepo(t)
	r.all(src)
	file := filepath.Join(r.dir, "repo.json")
	for what, damage := range map[string]func(){
		"damaged":        func() { write(t, file, "{") },
		"at most 65536":  func() { write(t, file, strings.Repeat(" ", 1<<20)) },
		"not a regular ": func() { must(t, os.Mkdir(file, 0o700)) },
	} {
		must(t, os.Remove(file))
		damage()
		res := r.mkbackup("check", "--repair")
		if res.code != 4 {
			t.Errorf("%s: exit code %d, want 4", what, res.code)
		}
		wantOneLine(t, res.stderr, "repo.json: damaged", what, "move it away", "mkbackup check --repair "+r.dir)
		if res.stdout != "DAMAGED: repo.json: see above\n" {
			t.Errorf("%s: it says %q", what, res.stdout)
		}
		res = runCmd(t, exec.Command("sh", "-c", `exec "$0" check "$1" 2>&1`, mkbackup, r.dir))
		if !strings.HasSuffix(res.stdout, "\nDAMAGED: repo.json: see above\n") {
			t.Errorf("%s: what it says is in the wrong order: %q", what, res.stdout)
		}
		if c, _ := r.checkJSON(4); c.Damages != 1 || !c.DamagedConfig {
			t.Errorf("%s: %+v", what, c)
		}
	}
	must(t, os.Remove(file))
	res := r.mkbackup("check", "--repair")
	if res.code != 0 {
		t.Errorf("check --repair: exit code %d\n%s", res.code, res.stderr)
	}
	// No log: no repository.
	empty := tempDir(t)
	mkdir(t, empty, "log")
	mkdir(t, empty, "parts", "3f")
	res = runCmd(t, exec.Command(mkbackup, "check", "--repair", empty))
	if res.code != 1 {
		t.Errorf("no repository: exit code %d, want 1", res.code)
	}
	wantOneLine(t, res.stderr, "no repository there")
}

func TestManyHits(t *testing.T) {
	src := tempDir(t)
	for i := range 130 {
		write(t, filepath.Join(src, fmt.Sprintf("f%03d", i)), fmt.Sprint("content ", i))
	}
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	r.all(src)
	flip(t, r.parts()[0], 100)
	res := r.mkbackup("check", "--read-data")
	if n := strings.Count(res.stderr, "\n  /f"); n != 100 || !strings.Contains(res.stderr, "\n  and 30 more: -v or --json names all\n") {
		t.Errorf("%d files are named: %s", n, tail(res.stderr))
	}
	if res := r.mkbackup("check", "--read-data", "-v"); strings.Count(res.stderr, "\n  /f") != 130 || strings.Contains(res.stderr, " more:") {
		t.Errorf("-v: %s", tail(res.stderr))
	}
}

// TestSubsetGoesOn: repeated checks of a share read everything, and where the next
// one begins is remembered outside of the repository, which may be read-only.
func TestSubsetGoesOn(t *testing.T) {
	src := tempDir(t)
	for i := range 150 {
		createTree(t, src, []treetest.Node{{Path: fmt.Sprint("f", i), Seed: uint64(i), Size: 70_000}})
	}
	r := newRepo(t, "--part-size", "64KiB")
	r.all(src)
	readOnly := mkdir(t, tempDir(t), "ro")
	mountAt(t, readOnly, "--bind", r.dir)
	run(t, "mount", "-o", "remount,bind,ro", readOnly)
	cache := tempDir(t)
	checkShare := func(cache string) (checkResult, string) {
		t.Helper()
		cmd := exec.Command(mkbackup, "check", readOnly, "--json", "--read-data-subset", "7%")
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache)
		res := runCmd(t, cmd)
		if res.code != 0 {
			t.Fatalf("exit code %d\n%s", res.code, res.stderr)
		}
		var c checkResult
		must(t, json.Unmarshal([]byte(res.stdout), &c))
		return c, res.stderr
	}
	read, bytes, parts := 0, int64(0), 0
	for range 14 { // 98%
		c, _ := checkShare(cache)
		read, bytes, parts = read+c.ReadParts, bytes+c.ReadBytes, c.Parts
		if c.ReadParts == c.Parts {
			t.Errorf("all %d parts were read", c.Parts)
		}
	}
	if read > parts || parts < 8 {
		t.Errorf("%d reads of %d parts", read, parts)
	}
	c, _ := checkShare(cache)
	if read += c.ReadParts; read < parts {
		t.Errorf("15 checks of 7%% read %d of %d parts", read, parts)
	}
	if bytes += c.ReadBytes; bytes < c.StoredBytes {
		t.Errorf("15 checks of 7%% read %d of %d bytes", bytes, c.StoredBytes)
	}
	if _, said := checkShare("/proc/nowhere"); !strings.Contains(said, "it follows the date") {
		t.Errorf("where nothing can be remembered: %q", said)
	}
}

// TestSubsetNotRead: a check that comes to no part does not move on to the next subset.
func TestSubsetNotRead(t *testing.T) {
	src, cache := tempDir(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "content")
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	r.all(src)
	next := func(code int) string {
		t.Helper()
		cmd := r.command("check", "--read-data-subset", "50%")
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache)
		if res := runCmd(t, cmd); res.code != code {
			t.Fatalf("exit code %d, want %d\n%s", res.code, code, res.stderr)
		}
		return shell(t, `cat "$1"/mkbackup/check-*`, cache)
	}
	place := next(0)
	if again := next(0); again == place {
		t.Errorf("both halves begin at %s", place)
	}
	place = next(0)
	shell(t, `rm -r "$1"/index/* "$2"; echo damaged >"$2"`, r.dir, r.records()[0])
	if after := next(4); after != place {
		t.Errorf("where no index can be opened: the next subset begins at %s, not at %s", after, place)
	}
	shell(t, `rm "$1"/log/*`, r.dir)
	if after := next(1); after != place {
		t.Errorf("where the log is lost: the next subset begins at %s, not at %s", after, place)
	}
}

// TestCheckAgainstUnmounted: what was mounted when it was backed up and is not any more is no
// damage.
func TestCheckAgainstUnmounted(t *testing.T) {
	base := imageDir(t)
	disk := mkdir(t, base, "src/disk")
	time.Sleep(100 * time.Millisecond) // the mount point is older than what is mounted there
	shell(t, `mount -t tmpfs none "$1"; echo photo >"$1"/photo`, disk)
	r := newRepo(t)
	r.all(filepath.Join(base, "src"))
	shell(t, `umount "$1"`, disk)
	c, res := r.checkJSON(0, "--against", filepath.Join(base, "src"))
	if c.Changed == 0 || c.Differ != 0 || !strings.Contains(res.stdout, "changed since: /disk/photo: is not there\n") {
		t.Errorf("%+v\n%s", c, tail(res.stdout))
	}
}

// TestCheckAgainst compares with the live tree of every kind of file, with a
// restored copy of it, and with one that rotted.
func TestCheckAgainst(t *testing.T) {
	base := imageDir(t)
	src := mkdir(t, base, "src")
	createTree(t, src, treetest.Random(31, treetest.RandomOptions{Owners: true, Files: 200}))
	createTree(t, src, []treetest.Node{{Path: "z-large", Seed: 32, Size: 5 << 20}, {Path: "z-rot", Data: []byte("sound")}})
	r := newRepo(t)
	r.all(src)
	want := int64(len(readTree(t, src).Entries))
	c, _ := r.checkJSON(0, "--against", src)
	if c.Compared != want || c.Changed+c.NotStored+c.Differ != 0 {
		t.Errorf("unchanged: %+v, want %d paths", c, want)
	}
	restored := filepath.Join(base, "restored")
	run(t, "cp", "-a", src, restored)
	c, res := r.checkJSON(0, "--against", restored)
	if c.Compared != want || c.Changed+c.NotStored+c.Differ != 0 {
		t.Errorf("restored: %+v\n%s", c, tail(res.stdout))
	}
	shell(t, `cd "$1"; echo more >>z-large; setfattr -n user.new -v 1 z-rot`, restored)
	c, res = r.checkJSON(0, "--against", restored)
	if c.Changed != 2 || c.Differ != 0 || !strings.Contains(res.stdout, "changed since: /z-large: ") || !strings.Contains(res.stdout, "changed since: /z-rot: extended attributes\n") {
		t.Errorf("changed: %+v\n%s", c, tail(res.stdout))
	}

	// Rot: the bytes of the file change on the disk, below the file system.
	image := filepath.Join(filepath.Dir(base), "image")
	where := strings.Fields(shell(t, `sync -f "$1"; filefrag -v -b4096 "$1"/z-rot | awk '$1 == "0:" { print $4 }'`, src))
	if len(where) != 1 {
		t.Fatalf("filefrag: %q", where)
	}
	block := strings.TrimRight(where[0], ".:")
	shell(t, `sync -f "$1"; umount "$1"; printf rot | dd of="$2" bs=1 seek=$(($3 * 4096)) conv=notrunc status=none; mount -o loop,user_xattr,acl "$2" "$1"`, base, image, block)
	res = r.mkbackup("check", "--against", src)
	if res.code != 4 || !strings.Contains(res.stderr, "damage: /z-rot: content, although it looks unchanged\n") ||
		res.stdout != "DAMAGED: 1 path differs from what is there although it looks unchanged: see above\n" {
		t.Errorf("rotten: exit code %d\n%s%s", res.code, tail(res.stdout), tail(res.stderr))
	}
}

// TestRepairChangesNothing: on a repository that is whole, --repair changes no byte.
func TestRepairChangesNothing(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(41, treetest.RandomOptions{Owners: true, Files: 50}))
	r := newRepo(t)
	r.all(src)
	r.all(src)
	const list = `cd "$1"; find . -type f -exec sha256sum {} + | sort; find . -printf '%p %i %m %T@\n' | grep -v '^./tmp ' | sort`
	before := shell(t, list, r.dir)
	for _, args := range [][]string{{"--repair"}, {"--repair", "--read-data", "--against", src}, {"--read-data"}, nil} {
		if res := r.mkbackup("check", args...); res.code != 0 || !strings.HasPrefix(res.stdout, "OK: 2 generations") {
			t.Errorf("check %q: exit code %d: %s%s", args, res.code, res.stdout, res.stderr)
		}
		if after := shell(t, list, r.dir); after != before {
			t.Errorf("check %q changed the repository:\n%s", args, firstDifference(before, after))
		}
	}
}

// threeRecords makes a repository of three generations of a file. It is not checked when
// the test ends.
func threeRecords(t *testing.T) *repo {
	t.Helper()
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	for range 3 {
		r.all(src)
	}
	return r
}

// TestReindexSaysWhatIsLost: a log that lost its end, or a record in its midst.
func TestReindexSaysWhatIsLost(t *testing.T) {
	r := threeRecords(t)
	mend := replace(t, r.records()[2], nil)
	if res := r.mkbackup("reindex"); res.code != 4 || !strings.Contains(res.stderr, "the log ends with record 2: the last records are missing") {
		t.Errorf("the end is missing: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	mend()
	if res := r.mkbackup("reindex"); res.code != 0 {
		t.Errorf("mended: exit code %d: %s", res.code, res.stderr)
	}
	replace(t, r.records()[1], nil)
	res := r.mkbackup("reindex")
	if res.code != 1 {
		t.Errorf("a record is missing: exit code %d", res.code)
	}
	wantOneLine(t, res.stderr, "the index stays as it was", "log record 2")
	if res := r.mkbackup("list", "--json"); res.code != 4 || strings.Count(res.stdout, `"generation":`) != 3 {
		t.Errorf("want three generations: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
}

// TestReadersSayWhatIsLost: what only reads shows what there is of a log that lost its
// end, or all of it, and exits as for damage.
func TestReadersSayWhatIsLost(t *testing.T) {
	r := threeRecords(t)
	replace(t, r.records()[2], nil)
	for _, args := range [][]string{{"list"}, {"ls", "latest"}, {"stats"}, {"history", "/file"}, {"find", "file"}, {"diff", "1", "2"}, {"export", "latest"}} {
		res := r.mkbackup(args[0], args[1:]...)
		if res.code != 4 || !strings.Contains(res.stderr, "the log has lost its last records") {
			t.Errorf("%s: exit code %d: %s", args[0], res.code, res.stderr)
		}
		if res.stdout == "" && args[0] != "diff" {
			t.Errorf("%s prints nothing", args[0])
		}
	}
	for range 2 {
		replace(t, r.records()[0], nil)
	}
	if res := r.mkbackup("list"); res.code != 4 {
		t.Errorf("an empty log: exit code %d: %s", res.code, res.stderr)
	}
}

// TestCheckProgress shows a bar on a terminal. It is drawn five times a second, so
// every read of a part is made to take a while.
func TestCheckProgress(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 51, Size: 100 << 20}})
	r := newRepo(t)
	r.all(src)
	check := r.command("check", "--read-data")
	slow := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e", "inject=pread64:delay_enter=20000"}, check.Args...)...)
	shown := onTerminal(t, slow)
	for _, want := range []string{"check: data, ", "%", "B/s"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the bar shows no %q: %q", want, tail(shown))
		}
	}
}

// TestContentTwice: two runs at the same time store the same content. Where the part that the
// log names last is lost, a mount and export read it from the other one, and say so; check
// names the part, and no file.
func TestContentTwice(t *testing.T) {
	r, slow, fast := newRepo(t), tempDir(t), tempDir(t)
	content := strings.Repeat("content ", 10_000)
	write(t, filepath.Join(slow, "a"), strings.Repeat("slow", 1<<18)) // 4 s
	write(t, filepath.Join(slow, "file"), content)
	write(t, filepath.Join(fast, "file"), content)
	b := start(t, r.command("create", "--json", "--read-rate", "256KiB", "--root", slow, "/"))
	time.Sleep(time.Second)
	r.all(fast, "--source", "fast")
	before := r.parts()
	if code := b.wait(t, time.Minute); code != 0 {
		t.Fatalf("exit code %d: %s", code, b.stderr.String())
	}
	parts := slices.DeleteFunc(r.parts(), func(p string) bool { return slices.Contains(before, p) })
	if len(before) != 1 || len(parts) != 1 {
		t.Fatalf("parts %q, then %q: want one of each run", before, parts)
	}
	r.checkJSON(0, "--read-data")
	aside := filepath.Join(tempDir(t), "part")
	must(t, os.Rename(parts[0], aside))

	const said = "read from another part, which has the same content"
	mnt := mkdir(t, tempDir(t), "mnt")
	notify, ready := notifySocket(t)
	cmd := exec.Command(backupfs, "--foreground", r.dir, mnt)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	daemon := start(t, cmd)
	<-ready
	wantContent(t, filepath.Join(mnt, "fast", "latest", "file"), content)
	must(t, unix.Unmount(mnt, 0))
	if code := daemon.wait(t, time.Minute); code != 0 || strings.Count(daemon.stderr.String(), said) != 1 {
		t.Errorf("backupfs: exit code %d, %s", code, daemon.stderr.String())
	}
	if res := r.mkbackup("export", "latest", "/file"); res.code != 0 || !strings.Contains(res.stdout, content) || !strings.Contains(res.stderr, said) {
		t.Errorf("export: exit code %d, %s", res.code, res.stderr)
	}
	c, res := r.checkJSON(4, "--read-data")
	if len(c.DamagedParts) != 1 || c.DamagedFiles != 1 || c.DamagedParts[0].Files[0].Path != "/a" {
		t.Errorf("%+v: %s", c, res.stderr)
	}
	must(t, os.Rename(aside, parts[0]))
}
