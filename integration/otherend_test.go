package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// otherEnd is a repository whose last log record is that of a copy which went on
// differently, with the parts of both.
type otherEnd struct {
	*repo
	record string // the file of the last record
	right  string // the record that the index was made with
	seal   string // of the index of that
}

func newOtherEnd(t *testing.T) *otherEnd {
	r, src := newRepo(t), tempDir(t)
	file := filepath.Join(src, "file")
	for i := range 3 {
		write(t, file, strings.Repeat(string(rune('a'+i)), 10_000))
		r.all(src)
	}
	copied := &repo{t: t, dir: filepath.Join(tempDir(t), "copy")}
	run(t, "cp", "-a", r.dir, copied.dir)
	write(t, file, strings.Repeat("x", 10_000))
	r.all(src)
	write(t, file, strings.Repeat("y", 10_000))
	copied.all(src)
	o := &otherEnd{repo: r, record: r.records()[3], seal: filepath.Join(r.dir, "index/000000000004/seal.json")}
	o.right = readFile(t, o.record)
	run(t, "cp", "-a", copied.dir+"/parts", r.dir)
	rewrite(t, o.record, readFile(t, copied.records()[3]))
	return o
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return string(b)
}

// TestOtherEnd: where the last log record is another one than the index was made with,
// every command says so, and none replaces the index, which has all that is left of it.
func TestOtherEnd(t *testing.T) {
	o := newOtherEnd(t)
	seal := readFile(t, o.seal)
	witnessed := func(command string) {
		t.Helper()
		if now, err := os.ReadFile(o.seal); err != nil || string(now) != seal {
			t.Fatalf("%s: the index was replaced: %v", command, err)
		}
	}
	for _, args := range [][]string{{"list"}, {"ls", "latest"}, {"stats"}, {"history", "/file"}, {"find", "file"}, {"export", "latest"}} {
		res := o.mkbackup(args[0], args[1:]...)
		if res.code != 4 || res.stdout == "" || !strings.Contains(res.stderr, "or has others in their place") {
			t.Errorf("%s: exit code %d, %.100q: %s", args[0], res.code, res.stdout, res.stderr)
		}
		witnessed(args[0])
	}
	const said = "index 4 was made with another record 4 than the log has"
	for _, args := range [][]string{{"forget", "-q", "latest"}, {"compact", "-q", "--max-dead", "0"}} {
		res := o.mkbackup(args[0], args[1:]...)
		if res.code != 1 {
			t.Errorf("%s: exit code %d", args[0], res.code)
		}
		wantOneLine(t, res.stderr, said, "nothing is dropped")
		witnessed(args[0])
	}
	res := o.mkbackup("reindex", "-q")
	if res.code != 1 {
		t.Errorf("reindex: exit code %d", res.code)
	}
	wantOneLine(t, res.stderr, "the index stays as it was", "the log ends with another record")
	witnessed("reindex")
	for _, args := range [][]string{{"-q"}, {"-q", "--read-data"}, {"-q", "--repair"}} {
		if res := o.mkbackup("check", args...); res.code != 4 || !strings.Contains(res.stderr, said) || !strings.HasPrefix(res.stdout, "DAMAGED: 1 log record") {
			t.Errorf("check %q: exit code %d: %s%s", args, res.code, res.stdout, res.stderr)
		}
		witnessed("check")
	}

	// A mount shows the log, and says so.
	m := &fuseMount{t: t, dir: mkdir(t, tempDir(t), "mnt")}
	t.Cleanup(m.stop)
	res = runCmd(t, exec.Command(backupfs, o.dir, m.dir))
	if res.code != 0 || !strings.Contains(res.stderr, "index 4 is not used: the log ends with another record") {
		t.Fatalf("backupfs: exit code %d, %s", res.code, res.stderr)
	}
	if got := readFile(t, m.path("latest/file")); got != strings.Repeat("y", 10_000) {
		t.Errorf("the mount shows %.10q", got)
	}
	m.stop()
	witnessed("backupfs")

	// Nightly runs go on. The first says so; check does until it is repaired.
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "new")
	res = o.mkbackup("create", "-q", "--root", src, "/")
	if res.code != 4 || strings.Count(res.stderr, said) != 1 {
		t.Errorf("create: exit code %d: %s", res.code, res.stderr)
	}
	witnessed("create")
	for range 3 {
		if res := o.mkbackup("create", "-q", "--root", src, "/"); res.code != 0 || res.stderr != "" {
			t.Errorf("the next run: exit code %d: %s", res.code, res.stderr)
		}
		witnessed("the next run")
	}
	if res := o.mkbackup("check"); res.code != 4 || !strings.Contains(res.stderr, "index 4: it is of another log") {
		t.Errorf("check after more runs: exit code %d: %s", res.code, res.stderr)
	}
	if res := o.mkbackup("check", "--repair"); res.code != 0 || !strings.Contains(res.stdout, "REPAIRED") {
		t.Errorf("repaired: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	o.checkJSON(0, "--read-data")
}

// TestOtherEndIsMended: by the right record, by a decision for that of the log, and by one
// for the index where the right record is lost.
func TestOtherEndIsMended(t *testing.T) {
	for name, mend := range map[string]struct {
		do    func(o *otherEnd)
		shown string
	}{
		"the right record": {func(o *otherEnd) { rewrite(t, o.record, o.right) }, "x"},
		"the log is right": {func(o *otherEnd) {
			run(t, "mv", filepath.Dir(o.seal), tempDir(t))
			o.checkJSON(0, "--repair")
		}, "y"},
		"the index is right": {func(o *otherEnd) {
			rewrite(t, o.record, "")
			o.checkJSON(0, "--repair")
		}, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOtherEnd(t)
			mend.do(o)
			o.checkJSON(0, "--read-data")
			if n := len(o.generations()); n != 4 {
				t.Errorf("%d generations, want 4", n)
			}
			if res := o.mkbackup("export", "latest", "/file"); !strings.Contains(res.stdout, strings.Repeat(mend.shown, 10_000)) {
				t.Errorf("exit code %d, the file is another one", res.code)
			}
			if res := o.mkbackup("forget", "--keep-last", "1"); res.code != 0 {
				t.Errorf("forget: exit code %d: %s", res.code, res.stderr)
			}
			if n := len(o.generations()); n != 1 {
				t.Errorf("%d generations are left, want 1", n)
			}
		})
	}
}

// TestReplacedRecord: of a record of which the next one says that it was another, without an
// index, nothing is shown.
func TestReplacedRecord(t *testing.T) {
	o := newOtherEnd(t)
	other := readFile(t, o.record)
	rewrite(t, o.record, o.right)
	o.all(tempDir(t))
	rewrite(t, o.record, other)
	must(t, os.RemoveAll(filepath.Join(o.dir, "index")))
	res := o.mkbackup("list", "--json")
	if res.code != 4 || strings.Count(res.stdout, `"generation"`) != 3 || !strings.Contains(res.stderr, "log record 4: record 5 follows one with the digest") {
		t.Errorf("exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	res = o.mkbackup("check", "-q")
	if res.code != 4 || !strings.HasPrefix(res.stdout, "DAMAGED: 1 log record, 2 lost generations") {
		t.Errorf("check: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	rewrite(t, o.record, o.right)
	o.checkJSON(0)
}
