package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

func TestExitCodesAndMessages(t *testing.T) {
	base := tempDir(t)
	src := mkdir(t, base, "src")
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	empty, full := mkdir(t, base, "empty"), mkdir(t, base, "full")
	write(t, filepath.Join(full, "file"), "in the way")
	notRepo := mkdir(t, base, "not-a-repository")
	write(t, filepath.Join(notRepo, "something"), "else")
	newer := filepath.Join(base, "newer")
	run(t, mkbackup, "init", newer)
	rewriteConfig(t, newer, func(c map[string]any) { c["format"] = 9_000 })
	garbled := filepath.Join(base, "garbled")
	run(t, mkbackup, "init", garbled)
	write(t, filepath.Join(garbled, "config-marker"), "")
	rewrite(t, filepath.Join(garbled, "repo.json"), "{\"format\"")
	mountPoint := mkdir(t, base, "mnt")
	missing := filepath.Join(base, "missing")
	file := filepath.Join(src, "file")

	type c struct {
		args []string
		code int
		say  string // what the line must name
	}
	var cases []c
	for _, command := range []string{"create", "list", "ls", "check", "reindex"} {
		extra := map[string][]string{"create": {src}, "ls": {"latest"}}[command]
		for repo, say := range map[string]string{missing: missing, notRepo: notRepo, newer: "newer", garbled: "repo.json", file: file} {
			code := 1
			if command == "check" && repo == garbled {
				code = 4
			}
			cases = append(cases, c{append([]string{mkbackup, command, repo}, extra...), code, say})
		}
		cases = append(cases, c{[]string{mkbackup, command}, 2, ""}, c{append([]string{mkbackup, command, r.dir, "--no-such-flag"}, extra...), 2, "--no-such-flag"})
	}
	for repo, say := range map[string]string{missing: missing, notRepo: notRepo, newer: "newer", garbled: "repo.json", file: file} {
		cases = append(cases, c{[]string{backupfs, repo, mountPoint}, 1, say})
	}
	cases = append(cases,
		c{[]string{mkbackup, "init", full}, 1, full},
		c{[]string{mkbackup, "init", r.dir}, 1, r.dir},
		c{[]string{mkbackup, "init", file}, 1, file},
		c{[]string{mkbackup, "init", file + "/below"}, 1, file + " is not a directory"},
		c{[]string{mkbackup, "init", file + "/below/it"}, 1, file + " is not a directory"},
		c{[]string{mkbackup, "init"}, 2, ""},
		c{[]string{mkbackup, "init", empty, "--part-size", "nonsense"}, 2, "nonsense"},
		c{[]string{mkbackup}, 2, ""},
		c{[]string{mkbackup, "no-such-command"}, 2, "no-such-command"},
		c{[]string{mkbackup, "creat", r.dir, src}, 2, "is it create?"},
		c{[]string{mkbackup, "help", "creat"}, 2, "is it create?"},
		c{[]string{mkbackup, "creat", "--help"}, 2, "is it create?"},
		c{[]string{mkbackup, "-h", "no-such-command"}, 2, "no-such-command"},
		c{[]string{mkbackup, "init", missing, "--part-size", "0"}, 2, "--part-size"},
		c{[]string{mkbackup, "init", missing, "--part-size", "1KiB"}, 2, "64KiB"},
		c{[]string{mkbackup, "init", missing, "--part-size", "2TiB"}, 2, "1TiB"},
		c{[]string{mkbackup, "list", ""}, 2, `bad REPO ""`},
		c{[]string{mkbackup, "ls", r.dir, ""}, 2, `bad GEN ""`},
		c{[]string{mkbackup, "diff", r.dir, "latest", ""}, 2, `bad GEN2 ""`},
		c{[]string{mkbackup, "export", r.dir, "latest", "/", ""}, 2, `bad PATH ""`},
		c{[]string{mkbackup, "create", r.dir, src, ""}, 2, `bad PATH ""`},
		c{[]string{mkbackup, "forget", r.dir, ""}, 2, `bad GEN ""`},
		c{[]string{mkbackup, "history", r.dir, ""}, 2, `bad PATH ""`},
		c{[]string{mkbackup, "run", ""}, 2, `bad NAME ""`},
		c{[]string{mkbackup, "create", r.dir, "--root", "", "/"}, 2, `bad --root ""`},
		c{[]string{mkbackup, "create", r.dir, "--time", "", src}, 2, `bad --time ""`},
		c{[]string{mkbackup, "check", r.dir, "--against", ""}, 2, `bad --against ""`},
		c{[]string{mkbackup, "check", r.dir, "--read-data-subset", ""}, 2, `bad --read-data-subset ""`},
		c{[]string{mkbackup, "check", r.dir, "--read-data-subset", "0%"}, 2, "0%"},
		c{[]string{mkbackup, "check", r.dir, "--read-data-subset", "101%"}, 2, "101%"},
		c{[]string{mkbackup, "check", r.dir, "--read-data-subset", "NaN%"}, 2, "NaN%"},
		c{[]string{mkbackup, "check", r.dir, "--against", missing}, 1, missing},
		c{[]string{mkbackup, "check", r.dir, "--against", file}, 1, file},
		c{[]string{mkbackup, "compact", r.dir, "--limit", ""}, 2, `bad --limit ""`},
		c{[]string{mkbackup, "compact", r.dir, "--limit", "0"}, 2, "--limit"},
		c{[]string{mkbackup, "compact", r.dir, "--limit", "99999999999999999GiB"}, 2, "--limit"},
		c{[]string{mkbackup, "compact", r.dir, "--max-dead", "101%"}, 2, "101%"},
		c{[]string{mkbackup, "compact", r.dir, "--max-dead", "-1%"}, 2, "-1%"},
		c{[]string{mkbackup, "compact", r.dir, "--max-dead", "NaN%"}, 2, "NaN%"},
		c{[]string{mkbackup, "compact", r.dir, "--time-limit", "-1s"}, 2, "-1s"},
		c{[]string{mkbackup, "compact", r.dir, "--time-limit", "1"}, 2, "30s"},
		c{[]string{mkbackup, "forget", r.dir}, 2, "--keep-daily 7"},
		c{[]string{mkbackup, "forget", r.dir, "--keep-last", "-1"}, 2, "at least 1"},
		c{[]string{mkbackup, "forget", r.dir, "--keep-daily", "0"}, 2, "at least 1"},
		c{[]string{mkbackup, "forget", r.dir, "--keep-yearly", "99999999999999999999"}, 2, "--keep-yearly"},
		c{[]string{mkbackup, "forget", r.dir, "--keep-within", "14"}, 2, "14d"},
		c{[]string{mkbackup, "forget", r.dir, "latest", "--keep-last", "1"}, 2, "one after the other"},
		c{[]string{mkbackup, "forget", r.dir, "nothing"}, 1, "mkbackup list"},
		c{[]string{mkbackup, "ls", r.dir, "latest~1"}, 1, "there are only 1"},
		c{[]string{mkbackup, "ls", r.dir, "latest~-1"}, 1, "latest~-1"},
		c{[]string{mkbackup, "ls", r.dir, "latest~99999999999999999999"}, 1, "latest~99999999999999999999"},
		c{[]string{mkbackup, "create", r.dir, "--threads", "0", src}, 2, "1 to 256"},
		c{[]string{mkbackup, "create", r.dir, "--threads", "-1", src}, 2, "1 to 256"},
		c{[]string{mkbackup, "create", r.dir, "--read-rate", "0", src}, 2, "20MiB"},
		c{[]string{mkbackup, "create", r.dir, "--nice", "20", src}, 2, "-20 to 19"},
		c{[]string{mkbackup, "create", r.dir, "--exclude", "[", src}, 2, "--exclude"},
		c{[]string{mkbackup, "create", r.dir, "--exclude-from", missing, src}, 2, missing},
		c{[]string{backupfs, "", mountPoint}, 2, "empty"},
		c{[]string{backupfs, r.dir, ""}, 2, "empty"},
		c{[]string{backupfs, "--cache-size", "0", r.dir, mountPoint}, 2, "1MiB"},
		c{[]string{backupfs, "--cache-size", "1", r.dir, mountPoint}, 2, "1MiB"},
		c{[]string{backupfs, "--cache-size", "-1", r.dir, mountPoint}, 2, "-1"},
		c{[]string{backupfs, r.dir, r.dir}, 1, "hide the repository"},
		c{[]string{backupfs, r.dir, filepath.Join(r.dir, "parts")}, 1, "hide a part of the repository"},
		c{[]string{mkbackup, "ls", r.dir}, 2, `"mkbackup ls REPO GEN [PATH] [flags]"`},
		c{[]string{mkbackup, "diff", r.dir, "latest", "latest", "gone"}, 1, "has the path /gone: `mkbackup find`"},
		c{[]string{mkbackup, "find", r.dir, ""}, 2, `bad PATTERN ""`},
		c{[]string{mkbackup, "list", missing}, 1, "is its disk mounted?"},
		c{[]string{mkbackup, "run", "main.conf"}, 2, "as ./main.conf"},
		c{[]string{mkbackup, "create", r.dir}, 2, ""},
		c{[]string{mkbackup, "create", r.dir, missing}, 1, missing},
		c{[]string{mkbackup, "create", r.dir, "--root", missing, "/"}, 1, missing},
		c{[]string{mkbackup, "create", r.dir, "--time", "yesterday", src}, 2, "yesterday"},
		c{[]string{mkbackup, "create", r.dir, "--progress", "perhaps", src}, 2, "perhaps"},
		c{[]string{mkbackup, "create", r.dir, "--source", "a/b", src}, 2, "a/b"},
		c{[]string{mkbackup, "create", r.dir, "--source", "2024-01-01", src}, 2, "2024-01-01"},
		c{[]string{mkbackup, "create", r.dir, "--source", "latest", src}, 2, "latest"},
		c{[]string{mkbackup, "ls", r.dir, "2001-01-01"}, 1, "2001-01-01"},
		c{[]string{mkbackup, "list", r.dir, "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{mkbackup, "list", r.dir, "--json", "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{mkbackup, "history", r.dir, "/", "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{mkbackup, "find", r.dir, "x", "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{mkbackup, "forget", r.dir, "--keep-last", "1", "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{mkbackup, "check", r.dir, "--against", src, "--source", "unheard-of"}, 1, "unheard-of"},
		c{[]string{backupfs}, 2, ""},
		c{[]string{backupfs, r.dir}, 2, ""},
		c{[]string{backupfs, "--no-such-flag", r.dir, mountPoint}, 2, "no-such-flag"},
		c{[]string{backupfs, "--cache-size", "much", r.dir, mountPoint}, 2, "much"},
		c{[]string{backupfs, "-o", "ro,no-such-option", r.dir, mountPoint}, 2, "no-such-option"},
		c{[]string{backupfs, r.dir, missing}, 1, missing},
		c{[]string{mkbackup, "list", missing + "\n\xff"}, 1, missing + `\n\xff: no repository`},
		c{[]string{mkbackup, "list", r.dir, "--no\nflag"}, 2, `--no\nflag: see`},
		c{[]string{mkbackup, "check", r.dir, "--against", missing + "\n"}, 1, missing + `\n`},
		c{[]string{mkbackup, "create", r.dir, "--root", missing + "\n", "/"}, 1, missing + `\n`},
		c{[]string{mkbackup, "create", r.dir, "--time", "a\nb", src}, 2, `"a\nb"`},
		c{[]string{backupfs, missing + "\n\xff", mountPoint}, 1, missing + `\n\xff: no repository`},
		c{[]string{backupfs, r.dir, missing + "\n\xff"}, 1, missing + `\n\xff: no such file`},
		c{[]string{backupfs, r.dir, mountPoint, "--no\nflag"}, 2, `--no\nflag: see`},
		c{[]string{backupfs, r.dir, file}, 1, file},
		c{[]string{backupfs, "--generation", "2001-01-01", r.dir, mountPoint}, 1, "2001-01-01"},
		c{[]string{backupfs, "--source", "unheard-of", r.dir, mountPoint}, 1, "unheard-of"},
		c{[]string{backupfs, "-f", "--generation", "2001-01-01", r.dir, mountPoint}, 1, "2001-01-01"},
	)
	for _, c := range cases {
		res := runCmd(t, exec.Command(c.args[0], c.args[1:]...))
		name := strings.ReplaceAll(strings.Join(c.args, " "), filepath.Dir(mkbackup)+"/", "")
		if res.code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", name, res.code, c.code, res.stderr)
		}
		if verdict := "DAMAGED: repo.json: see above\n"; res.stdout != "" && (c.code != 4 || res.stdout != verdict) {
			t.Errorf("%s: prints on standard output: %s", name, res.stdout)
		}
		if len(c.args) == 1 {
			continue // a usage text of many lines
		}
		lines := 1
		if strings.HasSuffix(name, "create "+r.dir+" "+missing) {
			lines = 2 // the path that is not there, and that nothing is left
		}
		if strings.Count(res.stderr, "\n") != lines {
			t.Errorf("%s: want %d lines: %s", name, lines, res.stderr)
		}
		if !strings.Contains(res.stderr, c.say) {
			t.Errorf("%s: the message does not name %q: %s", name, c.say, res.stderr)
		}
	}
	if isMounted(t, mountPoint) {
		t.Error("something was mounted")
		unix.Unmount(mountPoint, unix.MNT_DETACH)
	}
	wantContent(t, filepath.Join(full, "file"), "in the way")
	if got := names(t, notRepo); strings.Join(got, " ") != "something" {
		t.Errorf("a directory that is no repository holds %q now", got)
	}
	if n := len(r.generations()); n != 1 {
		t.Errorf("%d generations, want 1", n)
	}
	r.wantNoLeftovers()
}

func rewrite(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.Remove(path))
	write(t, path, content)
}

func rewriteConfig(t *testing.T, repo string, change func(map[string]any)) {
	t.Helper()
	path := filepath.Join(repo, "repo.json")
	b, err := os.ReadFile(path)
	must(t, err)
	c := map[string]any{}
	must(t, json.Unmarshal(b, &c))
	change(c)
	b, err = json.Marshal(c)
	must(t, err)
	rewrite(t, path, string(b))
}

// TestInitMakesWhatIsAbove: the directories above a new repository need not be there.
func TestInitMakesWhatIsAbove(t *testing.T) {
	base := tempDir(t)
	r := initRepo(t, base+"/a/b/repo/")
	r.all(mkdir(t, base, "src"))
	for dir, want := range map[string]os.FileMode{"a": 0o755, "a/b": 0o755, "a/b/repo": 0o700} {
		if st, err := os.Stat(filepath.Join(base, dir)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", dir, st, err, want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{mkbackup, "--help"}, {mkbackup, "create", "--help"}, {mkbackup, "init", "-h"}, {backupfs, "--help"}, {mkbackup, "--version"}, {backupfs, "--version"}} {
		res := runCmd(t, exec.Command(args[0], args[1:]...))
		if res.code != 0 || res.stdout == "" || res.stderr != "" {
			t.Errorf("%s: exit code %d, %d bytes of help\n%s", args, res.code, len(res.stdout), res.stderr)
		}
	}
}

// toFullDisk runs a command whose output cannot be written.
func toFullDisk(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	cmd.Stdout = full
	return runCmd(t, cmd)
}

// TestOutputThatCannotBeWritten wants the loss of what was asked for said, and a
// generation that was committed counted as one all the same.
func TestOutputThatCannotBeWritten(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	for command, args := range map[string][]string{"list": nil, "list --json": {"--json"}, "ls": {"latest"}, "ls --json": {"latest", "--json"}, "check": nil} {
		res := toFullDisk(t, r.command(strings.Fields(command)[0], args...))
		if res.code != 1 {
			t.Errorf("%s to a full disk: exit code %d, want 1", command, res.code)
		}
		wantOneLine(t, res.stderr, "space")
	}
}

// TestHelpThatCannotBeWritten: help is a result like any other.
func TestHelpThatCannotBeWritten(t *testing.T) {
	for _, args := range [][]string{{mkbackup, "--help"}, {mkbackup, "help", "create"}, {mkbackup, "create", "--help"}, {mkbackup, "--version"},
		{backupfs, "--help"}, {backupfs, "--version"}} {
		res := toFullDisk(t, exec.Command(args[0], args[1:]...))
		if res.code != 1 {
			t.Errorf("%q to a full disk: exit code %d, want 1", args, res.code)
		}
		wantOneLine(t, res.stderr, "space")
	}
}

// TestResultThatCannotBePrinted: what was done is done, a dry run has nothing but its output.
func TestResultThatCannotBePrinted(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	r.all(src)
	run := func(command string, args ...string) result { return toFullDisk(t, r.command(command, args...)) }
	for command, args := range map[string][]string{"create": {src}, "forget": {"--keep-last", "1"}, "compact": {"--max-dead", "0"}, "reindex": nil} {
		for _, form := range [][]string{nil, {"--json"}} {
			res := run(command, append(form, args...)...)
			if res.code != 0 {
				t.Errorf("%s to a full disk: exit code %d, want 0", command, res.code)
			}
			wantOneLine(t, res.stderr, "it is done", "space")
			if command == "reindex" {
				continue
			}
			if res = run(command, append(form, append(args, "--dry-run")...)...); res.code != 1 {
				t.Errorf("%s --dry-run to a full disk: exit code %d, want 1", command, res.code)
			}
			wantOneLine(t, res.stderr, "space")
		}
	}
	// Each create made a generation, and forget left one.
	if n := len(r.generations()); n < 1 || n > 3 {
		t.Errorf("%d generations", n)
	}
}

// TestClosedPipe: who reads only the beginning is no failure to speak of, and nothing is harmed.
func TestClosedPipe(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 3000)
	r := newRepo(t)
	r.all(src)
	for _, command := range []string{"ls $1 latest /d000", "ls $1 latest /d000 --json", "find $1 '*'", "export $1 latest", "list $1", "check $1"} {
		res := runCmd(t, exec.Command("bash", "-c", `set -o pipefail; "$0" `+command+" | head -c 1", mkbackup, r.dir))
		if res.code != 0 && res.code != 128+int(syscall.SIGPIPE) || res.stderr != "" || len(res.stdout) != 1 {
			t.Errorf("%s: exit code %d, %q, stderr %q", command, res.code, res.stdout, res.stderr)
		}
	}
}

// TestReadOnlyRepository: what reads works, what cannot be done is a failure with its reason.
func TestReadOnlyRepository(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	write(t, filepath.Join(src, "file"), "y")
	r.all(src)
	ro := &repo{t: t, dir: mkdir(t, tempDir(t), "ro")}
	mountAt(t, ro.dir, "--bind", r.dir)
	run(t, "mount", "-o", "remount,ro,bind", ro.dir)
	for _, c := range []struct {
		words []string
		code  int
	}{
		{[]string{"list"}, 0}, {[]string{"ls", "latest"}, 0}, {[]string{"diff", "latest~1", "latest"}, 0}, {[]string{"export", "latest"}, 0}, {[]string{"stats"}, 0},
		{[]string{"check", "--read-data"}, 0}, {[]string{"check", "--repair"}, 0}, {[]string{"create", "--dry-run", src}, 0}, {[]string{"compact", "--dry-run"}, 0},
		{[]string{"create", src}, 1}, {[]string{"forget", "latest~1"}, 1}, {[]string{"reindex"}, 1},
	} {
		res := ro.mkbackup(c.words[0], c.words[1:]...)
		if res.code != c.code || c.code == 1 && !strings.Contains(res.stderr, "read-only file system") {
			t.Errorf("%s: exit code %d, want %d\n%s", c.words, res.code, c.code, res.stderr)
		}
	}
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	for command, code := range map[string]int{"list": 0, "check": 0, "check --repair": 1, "reindex": 1} {
		words := strings.Fields(command)
		res := ro.mkbackup(words[0], words[1:]...)
		if res.code != code || !strings.Contains(res.stderr, "read-only file system") {
			t.Errorf("%s without an index: exit code %d, want %d\n%s", command, res.code, code, res.stderr)
		}
	}
	if n := len(r.generations()); n != 2 {
		t.Errorf("%d generations, want 2", n)
	}
}

// TestTwoNames: paths that overlap, and two names of one directory.
func TestTwoNames(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/one", Data: []byte("1")}, {Path: "a/b/large", Seed: 1, Size: 3 << 20}, {Path: "c", Type: treetest.Dir},
		{Path: "link", Type: treetest.Symlink, Target: "a"}})
	r := newRepo(t)
	a, c, link := filepath.Join(src, "a"), filepath.Join(src, "c"), filepath.Join(src, "link")
	once := r.create(a)
	overlapping := r.create(a, filepath.Join(a, "b"), a+"/", filepath.Join(a, "b", "large"))
	if overlapping.Files != once.Files || overlapping.Dirs != once.Dirs || overlapping.Unchanged != once.Files+once.Dirs {
		t.Errorf("overlapping paths: %+v, and alone %+v", overlapping, once)
	}
	if got := strings.Count(r.mkbackup("ls", "latest", a).stdout, "\n"); got != 2 {
		t.Errorf("ls lists %d entries, want 2", got)
	}
	mountAt(t, c, "--bind", a)
	both := r.create(a, c)
	if both.Files != 2*once.Files || both.Parts != 0 {
		t.Errorf("two names: %+v; under one %+v", both, once)
	}
	m := r.mount()
	wantTree(t, "second name", readTree(t, a), m.path(both.Generation, c), treetest.Options{})
	linked, res := r.createExit(0, link)
	if linked.Files != 1 || !strings.Contains(res.stderr, link+" is a symlink") {
		t.Errorf("a symlink: %+v, %q", linked, res.stderr)
	}
	through, res := r.createExit(0, link+"/")
	if through.Files != once.Files || res.stderr != "" {
		t.Errorf("a symlink with a slash: %+v, %q", through, res.stderr)
	}
	m.stop()
	m = r.mount()
	wantTree(t, "through a symlink", readTree(t, a), m.path(through.Generation, a), treetest.Options{})
}

// TestUnreadableRepository takes every right from a repository and asks as
// somebody else.
func TestUnreadableRepository(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	must(t, os.Chmod(r.dir, 0o700))
	as := asUser(somebody, somebody, nil, "true").Args
	user := &repo{t: t, dir: r.dir, user: as[:len(as)-1]}
	for command, extra := range map[string][]string{"create": {"-q", src}, "list": nil, "ls": {"latest"}, "check": nil, "reindex": nil} {
		res := user.mkbackup(command, extra...)
		if res.code != 1 {
			t.Errorf("%s: exit code %d, want 1", command, res.code)
		}
		wantOneLine(t, res.stderr, r.dir, "permission denied")
	}
	mnt := mkdir(t, tempDir(t), "mnt")
	must(t, os.Chown(mnt, somebody, somebody))
	res := runCmd(t, asUser(somebody, somebody, nil, backupfs, r.dir, mnt))
	if res.code != 1 {
		t.Errorf("backupfs: exit code %d, want 1", res.code)
	}
	wantOneLine(t, res.stderr, r.dir, "permission denied: run it as root, or as the owner")
}

func TestMissingPathIsNamed(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/file", Data: []byte("a")}, {Path: "b/file", Data: []byte("b")}})
	for _, c := range []struct {
		missing []string
		others  []string // given as well
	}{
		{[]string{"/missing"}, []string{"/a", "/b"}},
		{[]string{"/a/missing"}, []string{"/a", "/b"}}, // below another given path
		{[]string{"/a/missing/deep", "/a/missing", "/missing"}, []string{"/"}},
		{[]string{"/a/missing", "/a/missing-too"}, []string{"/a/file", "/b"}},
		{[]string{"/a/file/below"}, []string{"/a", "/b"}}, // below what is no directory
		{[]string{"/a/file/below"}, []string{"/a/file", "/b"}},
	} {
		t.Run(strings.Join(c.missing, " "), func(t *testing.T) {
			r := newRepo(t)
			s, res := r.createExit(3, append(append([]string{"--root", src}, c.missing...), c.others...)...)
			if s.Errors != int64(len(c.missing)) {
				t.Errorf("summary: %d errors, want %d", s.Errors, len(c.missing))
			}
			for _, path := range c.missing {
				if n := strings.Count(res.stderr, "mkbackup: "+path+": "); n != 1 {
					t.Errorf("%s is named %d times: %s", path, n, res.stderr)
				}
			}
			m := r.mount()
			wantContent(t, m.at(s.Generation, "a", "file"), "a")
			wantContent(t, m.at(s.Generation, "b", "file"), "b")
		})
	}
}

// TestPathThatIsNotEntered asks for a path on a file system that is never backed
// up: it is named like any other that cannot be.
func TestPathThatIsNotEntered(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	for _, paths := range [][]string{{src, "/proc/version"}, {src, "/proc", "/proc/version"}} {
		s, res := r.createExit(3, paths...)
		if s.Errors != int64(len(paths))-1 || strings.Count(res.stderr, "/proc/version") != 1 {
			t.Errorf("%q: %d errors, want one for each of the kernel's, and the path named once: %q", paths, s.Errors, res.stderr)
		}
	}
}

// TestSelectionOfPaths gives paths in every relation to each other, and compares
// what is stored by name.
func TestSelectionOfPaths(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a/one", Data: []byte("1")}, {Path: "a/b/two", Data: []byte("2")}, {Path: "a-b/three", Data: []byte("3")},
		{Path: "c", Data: []byte("4")}, {Path: "link", Type: treetest.Symlink, Target: "a"},
		{Path: "absolute", Type: treetest.Symlink, Target: "/a/b"}, {Path: "a-b/up", Type: treetest.Symlink, Target: "../../../a/b"}})
	r := newRepo(t)
	all := readTree(t, src)
	for _, c := range []struct {
		paths []string
		want  []string
	}{
		{[]string{"/"}, all.Paths()},
		{[]string{"/a"}, []string{".", "a", "a/b", "a/b/two", "a/one"}},
		{[]string{"/a/b"}, []string{".", "a", "a/b", "a/b/two"}},
		{[]string{"/a/b", "/a", "/a/b/two"}, []string{".", "a", "a/b", "a/b/two", "a/one"}},
		{[]string{"/c", "/a-b/three"}, []string{".", "a-b", "a-b/three", "c"}},
		{[]string{"/link"}, []string{".", "link"}},
		{[]string{"/a/../c", "//a-b/"}, []string{".", "a-b", "a-b/three", "a-b/up", "c"}},
		{[]string{"/link/"}, []string{".", "a", "a/b", "a/b/two", "a/one"}},
		{[]string{"link/."}, []string{".", "a", "a/b", "a/b/two", "a/one"}},
		{[]string{"/link/one"}, []string{".", "a", "a/one"}},
		{[]string{"/absolute/"}, []string{".", "a", "a/b", "a/b/two"}},
		{[]string{"/absolute/../one"}, []string{".", "a", "a/one"}},
		{[]string{"/a-b/up/"}, []string{".", "a", "a/b", "a/b/two"}},
	} {
		s := r.create(append([]string{"--root", src}, c.paths...)...)
		m := r.mount("--generation", s.Generation)
		if got := readTree(t, m.dir).Paths(); strings.Join(got, "|") != strings.Join(sorted(c.want), "|") {
			t.Errorf("create %q stores %q, want %q", c.paths, got, c.want)
		}
		m.stop()
	}
	for path, resolved := range map[string]string{"/c/": "/c", "/link/one/": "/link/one", "/none/": "/none"} {
		_, res := r.createExit(3, "--root", src, path, "/a/b")
		wantOneLine(t, strings.Split(res.stderr, "\n")[0], "mkbackup: "+resolved+": ", "director")
	}
	cmd := exec.Command(mkbackup, "create", r.dir, "--json", "a/b", "./c") // relative to the working directory
	cmd.Dir = src
	res := runCmd(t, cmd)
	if res.code != 0 {
		t.Fatalf("create of relative paths: exit code %d\n%s", res.code, res.stderr)
	}
	m := r.mount()
	g := parseSummary(t, res.stdout).Generation
	wantContent(t, m.path(g, src, "a", "b", "two"), "2")
	wantContent(t, m.path(g, src, "c"), "4")
}

// TestUpBehindALink: where ".." leads from a symlink the kernel says, for every path on the
// command line, and not the path without both.
func TestUpBehindALink(t *testing.T) {
	dir, away := tempDir(t), tempDir(t)
	write(t, filepath.Join(mkdir(t, dir, "x"), "in"), "beside the link")
	write(t, filepath.Join(mkdir(t, away, "x"), "in"), "where it leads to")
	mkdir(t, away, "sub")
	must(t, os.Symlink(filepath.Join(away, "sub"), filepath.Join(dir, "link")))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "none")))

	r := initRepo(t, filepath.Join(away, "repo"))
	beside := initRepo(t, filepath.Join(dir, "repo"))
	up := &repo{t: t, dir: dir + "/link/../repo"}
	up.create("--root", dir+"/link/..", "/x")
	up.create(dir + "/link/../x")
	if n, none := len(r.records()), len(beside.records()); n != 2 || none != 0 {
		t.Errorf("%d records, and %d in the repository beside the link", n, none)
	}
	must(t, os.Mkdir(filepath.Join(away, "mnt"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
	run(t, backupfs, up.dir, dir+"/link/../mnt")
	t.Cleanup(func() { run(t, "umount", filepath.Join(away, "mnt")) })
	list := r.generations()
	wantContent(t, filepath.Join(away, "mnt", list[0], "x/in"), "where it leads to")
	wantContent(t, filepath.Join(away, "mnt", list[1], away, "x/in"), "where it leads to")
	for _, args := range [][]string{{dir + "/none/../x"}, {"--root", dir + "/none/..", "/x"}, {"--root", dir, "/none/../x"}} {
		_, res := r.createExit(1, args...)
		wantOneLine(t, res.stderr, "/none/..", "no such file or directory")
	}
	if n := len(r.records()); n != 2 {
		t.Errorf("%d records: something was stored of what is not there", n)
	}
}

// TestRepositoryAndMountInsideTheSource leaves the repository and its mount out, and
// says so once each.
func TestRepositoryAndMountInsideTheSource(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := initRepo(t, filepath.Join(mkdir(t, src, "backup"), "repo"))
	r.all(src)
	m := &fuseMount{t: t, dir: mkdir(t, src, "mnt")}
	m.start(r)
	t.Cleanup(m.stop)
	s, res := r.createExit(0, "--root", src, "/")
	for _, place := range []string{"backup/repo", "mnt"} {
		if n := strings.Count(res.stderr, place); n != 1 {
			t.Errorf("%s is mentioned %d times: %s", place, n, res.stderr)
		}
	}
	if s.Files != 1 {
		t.Errorf("summary: %d files, want 1", s.Files)
	}
	wantContent(t, m.at(s.Generation, "file"), "x")
	if entries, err := os.ReadDir(m.at(s.Generation, "mnt")); err == nil && len(entries) > 0 {
		t.Errorf("the mount was backed up: %v", entries)
	}
	if _, err := os.Lstat(m.at(s.Generation, "backup", "repo", "repo.json")); err == nil {
		t.Error("the repository was backed up")
	}
	if again := r.all(src); again.ReadBytes != 0 || again.Parts != 0 {
		t.Errorf("again: %+v", again)
	}
	// By another name of the same directory.
	other := mkdir(t, tempDir(t), "bound")
	mountAt(t, other, "--bind", src)
	bound, res := r.createExit(0, "--root", other, "/", "--source", "bound")
	if bound.Files != 1 || !strings.Contains(res.stderr, "backup/repo") {
		t.Errorf("through a bind mount: %+v\n%s", bound, res.stderr)
	}
}

// TestRepositoryInASnapshot: a copy of the file system that the repository lies on shows it
// as of another device. It is left out like the repository itself.
func TestRepositoryInASnapshot(t *testing.T) {
	d := newDisk(t, "mkfs.ext4", "-q", "-F")
	write(t, filepath.Join(d.dir, "file"), "x")
	r := initRepo(t, filepath.Join(mkdir(t, d.dir, "srv"), "repo"))
	r.all(d.dir)
	image, snapshot := filepath.Join(tempDir(t), "image"), tempDir(t)
	shell(t, `umount "$1"; cp "$2" "$3"; mount -o loop "$2" "$1"`, d.dir, d.image, image)
	mountAt(t, snapshot, "-o", "loop,ro", image)
	s, res := r.createExit(0, "--root", snapshot, "/")
	if s.Parts != 0 || s.ReadBytes != 0 || strings.Count(res.stderr, "/srv/repo is left out: it is the repository\n") != 1 {
		t.Errorf("%+v\n%s", s, res.stderr)
	}
	r.wantPaths(s, "file", "lost+found", "srv")
	if res := r.mkbackup("check", "-v", "--against", snapshot); res.code != 0 || strings.Contains(res.stdout+res.stderr, "is not in the backup") {
		t.Errorf("check --against: exit code %d\n%s%s", res.code, res.stdout, res.stderr)
	}
}

// TestSourceThatIsTheRepository: there is nothing to back up, or what is left of the
// given paths, with the exit code that says so.
func TestSourceThatIsTheRepository(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	bound := mkdir(t, tempDir(t), "bound")
	mountAt(t, bound, "--bind", r.dir)
	for _, c := range []struct {
		args []string
		say  string
	}{
		{[]string{r.dir}, r.dir + " is the repository itself"},
		{[]string{r.dir + "/"}, r.dir + " is the repository itself"},
		{[]string{bound}, bound + " is the repository itself"},
		{[]string{filepath.Join(r.dir, "parts"), r.dir}, r.dir + " is the repository itself"},
		{[]string{filepath.Join(r.dir, "parts")}, r.dir + "/parts lies in the repository"},
		{[]string{"--root", r.dir, "/"}, r.dir + " is the repository itself"},
		{[]string{"--root", r.dir, "/parts"}, "/parts lies in the repository"},
	} {
		for _, dry := range [][]string{nil, {"--dry-run"}} {
			res := r.mkbackup("create", append(dry, c.args...)...)
			if res.code != 1 || res.stdout != "" {
				t.Errorf("create %q: exit code %d, want 1\n%s", c.args, res.code, res.stdout)
			}
			wantOneLine(t, res.stderr, "nothing to back up: "+c.say)
		}
	}
	if n := len(r.records()); n != 0 {
		t.Errorf("%d generations were made of nothing", n)
	}
	s, res := r.createExit(3, src, r.dir)
	if s.Errors != 1 || strings.Count(res.stderr, r.dir+": is the repository itself") != 1 {
		t.Errorf("a source and the repository: %d errors, %s", s.Errors, res.stderr)
	}
	m := r.mount()
	wantContent(t, m.path(s.Generation, src, "file"), "x")
	res = r.mkbackup("create", m.dir)
	if res.code != 1 {
		t.Errorf("create of a mount of backups: exit code %d, want 1", res.code)
	}
	wantOneLine(t, res.stderr, m.dir+" is a mount of backups itself")
	if n := len(r.generations()); n != 1 {
		t.Errorf("%d generations, want 1", n)
	}
}

func TestBusyMountPoint(t *testing.T) {
	r, _ := timedRepo(t)
	m := r.mount()
	res := runCmd(t, exec.Command(backupfs, r.dir, m.dir))
	if res.code != 1 {
		t.Errorf("a second mount at one place: exit code %d, want 1", res.code)
	}
	wantOneLine(t, res.stderr, m.dir)
	if n := len(mountInfo(t, m.dir)); n != 1 {
		t.Errorf("%d mounts at one place", n)
		for ; n > 1; n-- {
			unix.Unmount(m.dir, unix.MNT_DETACH)
		}
	}
	wantContent(t, m.path("latest", "number"), "2")
}

// TestFilesThatChangeMeanwhile lets files grow, shrink, vanish and change in
// place while they are read: the exit code is 3 or 0, and the next run, when all
// is quiet, has what is there, even where neither size nor time tells.
func TestFilesThatChangeMeanwhile(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 1000)
	createTree(t, src, []treetest.Node{{Path: "z-large", Seed: 71, Size: 40 << 20}})
	r := newRepo(t)
	m := r.mount()
	var codes []int
	for round := range 5 {
		stop := changeAllTheTime(src, round)
		res := r.mkbackup("create", "--json", "--root", src, "/")
		stop()
		codes = append(codes, res.code)
		if res.code != 0 && res.code != 3 {
			t.Errorf("exit code %d\n%s", res.code, tail(res.stderr))
		}
		if res.code == 3 && !strings.Contains(res.stderr, "z-large") && !strings.Contains(res.stderr, "moving") && !strings.Contains(res.stderr, "counter") {
			t.Errorf("exit code 3 without a file named: %s", tail(res.stderr))
		}
		s := r.all(src)
		wantTree(t, "when all is quiet", readTree(t, src), m.at(s.Generation), treetest.Options{})
	}
	t.Logf("exit codes %v", codes)
}

// changeAllTheTime changes files below src until the function that it returns
// is called.
func changeAllTheTime(src string, round int) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	large, counter := filepath.Join(src, "z-large"), filepath.Join(src, "counter")
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			moving := filepath.Join(src, fmt.Sprintf("d%03d", i%10), "moving")
			os.WriteFile(moving, []byte(strings.Repeat("y", i%5000)), 0o644)
			os.WriteFile(counter, fmt.Appendf(nil, "%02d %08d", round, i), 0o644)
			os.Truncate(large, int64(40<<20-i%1000))
			os.Remove(moving)
		}
	}()
	return func() { close(end); <-ended }
}

// TestFullDisk lets the disk run full at many points of a run, the last bytes
// included: old generations stay, nothing half-made is left, the next run works.
func TestFullDisk(t *testing.T) {
	small, large := tempDir(t), tempDir(t)
	createTree(t, small, treetest.Random(81, treetest.RandomOptions{Owners: true, Files: 50}))
	createTree(t, large, treetest.Random(82, treetest.RandomOptions{Owners: true, Files: 400}))
	createTree(t, large, []treetest.Node{{Path: "large", Seed: 83, Size: 6 << 20}})
	disk := tmpfs(t, 256<<20)
	r := initRepo(t, filepath.Join(disk, "repo"), "--part-size", "1MiB")
	want := map[string]*treetest.Tree{r.all(small).Generation: readTree(t, small)}
	wantLarge := readTree(t, large)

	attempt := func(free int64) bool {
		t.Helper()
		before := len(r.generations())
		leaveFree(t, disk, free)
		res := r.mkbackup("create", "-q", "--root", large, "/")
		leaveFree(t, disk, 256<<20)
		after := r.generations()
		switch {
		case res.code == 0 && len(after) == before+1:
			want[after[len(after)-1]] = wantLarge
			return true
		case res.code != 1 || len(after) != before:
			t.Errorf("%d bytes free: exit code %d, %d generations, before %d\n%s", free, res.code, len(after), before, tail(res.stderr))
		case !strings.Contains(res.stderr, "space"):
			t.Errorf("%d bytes free: the message does not say why: %s", free, res.stderr)
		default:
			wantOneLine(t, res.stderr)
		}
		if c := r.mkbackup("check"); c.code != 0 {
			t.Errorf("%d bytes free: check: exit code %d\n%s%s", free, c.code, c.stdout, c.stderr)
		}
		return false
	}
	// Finished parts stay for the next run, so each attempt needs less than the one before.
	attempts := 0
	for _, free := range []int64{0, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 3 << 20} {
		attempts++
		if attempt(free) {
			break
		}
	}
	done := false
	for free := int64(64 << 10); !done && attempts < 120; free += 64 << 10 {
		attempts++
		done = attempt(free)
	}
	if !done {
		t.Fatalf("no success after %d attempts", attempts)
	}
	t.Logf("%d attempts", attempts)
	s := r.all(large)
	want[s.Generation] = wantLarge
	m := r.mount()
	for name, tree := range want {
		wantTree(t, name, tree, m.path(name), treetest.Options{})
	}
	r.wantNoLeftovers()
}

// leaveFree changes the size of a tmpfs so that it has free bytes left.
func leaveFree(t *testing.T, disk string, free int64) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(disk, &st))
	used := int64(st.Blocks-st.Bfree) * st.Bsize
	run(t, "mount", "-o", fmt.Sprintf("remount,size=%d", (used+free+4095)&^4095), disk)
}

// TestFullDiskAtTheEnd lets the disk run full in a run that stores no content,
// only a log record and an index: the generation exists or does not, and the
// exit code says which.
func TestFullDiskAtTheEnd(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 2000)
	disk := tmpfs(t, 256<<20)
	r := initRepo(t, filepath.Join(disk, "repo"))
	want := map[string]*treetest.Tree{r.all(src).Generation: readTree(t, src)}
	failed, committed := 0, 0
	for free := int64(0); free < 1<<20 && committed < 8; free += 12 << 10 {
		must(t, os.Chmod(filepath.Join(src, "d000"), os.FileMode(0o700+free>>12&0o77)))
		before := len(r.generations())
		leaveFree(t, disk, free)
		res := r.mkbackup("create", "-q", "--root", src, "/")
		leaveFree(t, disk, 256<<20)
		after := r.generations()
		switch {
		case res.code == 0 && len(after) == before+1:
			want[after[len(after)-1]] = readTree(t, src)
			committed++
		case res.code == 1 && len(after) == before:
			failed++
			wantOneLine(t, res.stderr, "space")
		default:
			t.Errorf("%d bytes free: exit code %d, %d generations, before %d\n%s", free, res.code, len(after), before, tail(res.stderr))
		}
	}
	if failed == 0 || committed == 0 {
		t.Errorf("%d runs failed and %d committed: the sizes tried are wrong", failed, committed)
	}
	m := r.mount()
	for name, tree := range want {
		wantTree(t, name, tree, m.at(name), treetest.Options{})
	}
	r.all(src)
	r.wantNoLeftovers()
}

// TestFullDiskFromTheStart fills the disk during init and the first generation.
func TestFullDiskFromTheStart(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(84, treetest.RandomOptions{Owners: true, Files: 100}))
	for _, size := range []int64{4 << 10, 8 << 10, 16 << 10, 32 << 10, 48 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		disk := tmpfs(t, size)
		r := &repo{t: t, dir: filepath.Join(disk, "repo")}
		if res := r.mkbackup("init"); res.code != 0 {
			if res.code != 1 {
				t.Errorf("init on a disk of %d: exit code %d\n%s", size, res.code, res.stderr)
			}
			wantOneLine(t, res.stderr, "space")
			run(t, "mount", "-o", "remount,size=64m", disk)
			if res := r.mkbackup("init"); res.code != 0 && !strings.Contains(res.stderr, "already") {
				t.Errorf("init after a full disk: %s", res.stderr)
			}
			continue
		}
		res := r.mkbackup("create", "--root", src, "/")
		if res.code != 0 && res.code != 1 {
			t.Errorf("create on a disk of %d: exit code %d\n%s", size, res.code, tail(res.stderr))
		}
		run(t, "mount", "-o", "remount,size=64m", disk)
		s := r.all(src)
		m := r.mount()
		wantTree(t, fmt.Sprintf("disk of %d", size), readTree(t, src), m.at(s.Generation), treetest.Options{})
		m.stop()
		r.verify()
		r.wantNoLeftovers()
	}
}

// TestInterrupted sends SIGINT, SIGTERM and SIGKILL at many points of a run.
func TestInterrupted(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(85, treetest.RandomOptions{Owners: true, Files: 300}))
	for i := range 60 {
		createTree(t, src, []treetest.Node{{Path: fmt.Sprint("large-", i), Seed: uint64(i) + 500, Size: 1 << 20}})
	}
	before := mkdir(t, tempDir(t), "before")
	write(t, filepath.Join(before, "file"), "of the first generation")
	probe := newRepo(t, "--part-size", "4MiB")
	began := time.Now()
	probe.all(src)
	whole := time.Since(began)

	signalled := 0
	for i := range 18 {
		r := newRepo(t, "--part-size", "4MiB")
		first := r.all(before)
		signal := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL}[i%3]
		b := start(t, r.command("create", "--json", "--root", src, "/"))
		time.Sleep(whole * time.Duration(i) / 17)
		b.cmd.Process.Signal(signal)
		code := b.wait(t, 20*time.Second)
		generations := r.generations()
		switch {
		case code == 128+int(signal) && len(generations) == 1:
			signalled++
			// Before its handler is in place a program dies of the signal, silently.
			if message := b.stderr.String(); message != "" {
				wantOneLine(t, message, "interrupt")
			}
		case code == 0 && len(generations) == 2:
		case code == 128+9 && len(generations) == 2: // between the commit and the end
		default:
			t.Errorf("%v after %d/17: exit code %d, generations %q\n%s", signal, i, code, generations, b.stderr.String())
		}
		s := r.all(src)
		m := r.mount()
		wantContent(t, m.at(first.Generation, "file"), "of the first generation")
		wantTree(t, "after an interrupted run", readTree(t, src), m.at(s.Generation), treetest.Options{})
		m.stop()
		r.wantNoLeftovers()
	}
	if signalled < 5 {
		t.Errorf("only %d of 18 runs were interrupted", signalled)
	}
}

// TestInterruptedReindex leaves an index that works.
func TestInterruptedReindex(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 5000)
	r := newRepo(t)
	s := r.all(src)
	for i := range 6 {
		b := start(t, r.command("reindex"))
		time.Sleep(time.Duration(i) * 15 * time.Millisecond)
		signal := []syscall.Signal{syscall.SIGINT, syscall.SIGKILL}[i%2]
		b.cmd.Process.Signal(signal)
		if code := b.wait(t, 20*time.Second); code != 0 && code != 128+int(signal) {
			t.Errorf("%v: exit code %d\n%s", signal, code, b.stderr.String())
		}
		m := r.mount()
		wantContent(t, m.at(s.Generation, "d000", "f00001"), "content of file 1\nx")
		m.stop()
	}
	if res := r.mkbackup("reindex"); res.code != 0 {
		t.Errorf("reindex: exit code %d\n%s", res.code, res.stderr)
	}
	r.all(src)
	r.wantNoLeftovers()
}

// TestDamageIsFound flips a byte of, truncates and removes every kind of file.
func TestDamageIsFound(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 91, Size: 3 << 20}, {Path: "small", Data: []byte("small")}})
	for what, pattern := range map[string]string{"part": "parts/*/*", "log record": "log/000000000001*", "newest log record": "log/000000000002*"} {
		for _, how := range []string{"removed", "truncated", "last byte flipped"} {
			r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")} // not checked at the end: it is damaged
			run(t, mkbackup, "init", r.dir)
			r.all(src)
			r.all(src)
			path := r.glob(pattern)[0]
			damage(t, path, how)
			res := r.mkbackup("check")
			if res.code != 4 {
				t.Errorf("%s %s: check: exit code %d, want 4\n%s%s", what, how, res.code, res.stdout, res.stderr)
			}
			if name := strings.Split(filepath.Base(path), ".")[0]; what == "part" && !strings.Contains(res.stderr, name) {
				t.Errorf("%s %s: the damaged file is not named: %s", what, how, res.stderr)
			}
		}
	}
}

func damage(t *testing.T, path, how string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.Remove(path))
	switch how {
	case "truncated":
		write(t, path, string(b[:len(b)/2]))
	case "last byte flipped":
		b[len(b)-1] ^= 1
		write(t, path, string(b))
	}
}

// TestDamagedIndexIsRebuilt flips a byte in every file of the index: commands
// say so, rebuild it, and go on.
func TestDamagedIndexIsRebuilt(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 500)
	r := newRepo(t)
	s := r.all(src)
	want := readTree(t, src)
	files := strings.Fields(shell(t, `find "$1"/index -type f -size +0`, r.dir))
	if len(files) < 3 {
		t.Fatalf("the index has only %d files", len(files))
	}
	for _, path := range files {
		for _, how := range []string{"last byte flipped", "truncated", "removed"} {
			if _, err := os.Lstat(path); err != nil {
				continue // rebuilt under another name
			}
			damage(t, path, how)
			res := r.mkbackup("list")
			if res.code != 0 || !strings.Contains(res.stdout, s.Generation) {
				t.Errorf("%s %s: list: exit code %d\n%s%s", filepath.Base(path), how, res.code, res.stdout, res.stderr)
			}
			m := r.mount()
			wantTree(t, filepath.Base(path)+" "+how, want, m.at(s.Generation), treetest.Options{})
			m.stop()
		}
	}
}

// TestDamagedPartGivesEIO never serves a wrong byte, and serves what is whole.
func TestDamagedPartGivesEIO(t *testing.T) {
	src := tempDir(t)
	var nodes []treetest.Node
	for i := range 20 {
		nodes = append(nodes, treetest.Node{Path: fmt.Sprint("f", i), Seed: uint64(i) + 300, Size: 300_000})
	}
	createTree(t, src, nodes)
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	s := r.all(src)
	part := r.parts()[0]
	must(t, os.Chmod(part, 0o644))
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	at := fileSize(t, part) / 3
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	must(t, err)
	must(t, f.Close())
	m := r.mount()
	broken := 0
	for _, n := range nodes {
		got, err := os.ReadFile(m.at(s.Generation, n.Path))
		switch {
		case err != nil:
			wantErrno(t, n.Path, unix.EIO, err)
			broken++
		case string(got) != string(treetest.Content(n.Seed, n.Size)):
			t.Errorf("%s: wrong bytes and no error", n.Path)
		}
	}
	if broken == 0 || broken > 4 {
		t.Errorf("%d of 20 files cannot be read after one byte was damaged", broken)
	}
}

// TestErrorsNameTheRemedy: what to do is in the message.
func TestErrorsNameTheRemedy(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	none, file := filepath.Join(tempDir(t), "none"), filepath.Join(src, "file")
	full := tmpfs(t, 1<<20)
	for _, test := range []struct {
		args      []string
		code      int
		name, say string
	}{
		{[]string{mkbackup, "list", file}, 1, file, "not a directory"},
		{[]string{mkbackup, "ls", r.dir, "latest", "/none"}, 1, "/none", "mkbackup history"},
		{[]string{mkbackup, "export", r.dir, "latest", "none"}, 1, "/none", "mkbackup history"},
		{[]string{mkbackup, "ls", r.dir, "2001"}, 1, "2001", "mkbackup list"},
		{[]string{mkbackup, "forget", r.dir}, 2, "generations", "--keep-daily 7"},
		{[]string{mkbackup, "forget", r.dir, "--keep-last=1", "--source=none"}, 1, "none", "mkbackup list"},
		{[]string{mkbackup, "run", none + "/x.conf"}, 2, none, "example.conf"},
		{[]string{backupfs, r.dir, none}, 1, none, "make it first"},
		{[]string{"sh", "-c", `"$1" init "$2" && "$1" create "$2" "$3"`, "sh", mkbackup, full + "/repo", mkbackup}, 1, "no space left", "make room"},
	} {
		res := runCmd(t, exec.Command(test.args[0], test.args[1:]...))
		if res.code != test.code {
			t.Errorf("%q: exit code %d, want %d", test.args, res.code, test.code)
		}
		wantOneLine(t, res.stderr, test.name, test.say)
	}
}

// TestWorkingDirectoryThatIsGone: a relative path that means nothing is named.
func TestWorkingDirectoryThatIsGone(t *testing.T) {
	r, mnt := newRepo(t), mkdir(t, tempDir(t), "mnt")
	for _, test := range []struct {
		path string // the relative one
		args []string
	}{
		{".", []string{mkbackup, "create", r.dir, "."}},
		{".", []string{mkbackup, "create", r.dir, "--root", ".", "/"}},
		{"m", []string{backupfs, r.dir, "m"}},
		{"r", []string{backupfs, "r", mnt}},
	} {
		cmd := exec.Command("sh", append([]string{"-c", `cd "$0" && rmdir "$0" && exec "$@"`, mkdir(t, tempDir(t), "gone")}, test.args...)...)
		res := runCmd(t, cmd)
		if res.code != 1 {
			t.Errorf("%q: exit code %d, want 1", test.args, res.code)
		}
		wantOneLine(t, res.stderr, ": "+test.path+": the working directory: ", "give an absolute path")
	}
}

// TestUnstorable: XFS lets a file have more attributes than a line of the log holds. That
// is a problem of the file, and a directory is stored without them, each time.
func TestUnstorable(t *testing.T) {
	d := newDisk(t, "mkfs.xfs", "-q")
	src := mkdir(t, d.dir, "src")
	write(t, filepath.Join(mkdir(t, src, "dir"), "in"), "in it")
	write(t, filepath.Join(src, "file"), "too much")
	write(t, filepath.Join(src, "other"), "other")
	for i := range 50 { // in the log each of these bytes takes six
		for _, name := range []string{"dir", "file"} {
			must(t, unix.Setxattr(filepath.Join(src, name), fmt.Sprint("user.", i), make([]byte, 64<<10), 0))
		}
	}
	r := newRepo(t)
	for range 2 {
		s, res := r.createExit(3, "--root", src, "/")
		if s.Errors != 2 || strings.Count(res.stderr, "it cannot be stored") != 2 {
			t.Errorf("%d errors:\n%s", s.Errors, res.stderr)
		}
		if out := r.mkbackup("find", "*").stdout; strings.Count(out, "\n") != 3 || !strings.Contains(out, "/dir/in\n") {
			t.Errorf("stored are\n%s", out)
		}
	}
}

// TestCoarseTimes: where files have times of whole seconds, one that changes in the
// second in which it was backed up is seen to have changed.
func TestCoarseTimes(t *testing.T) {
	d := newDisk(t, "mkfs.ext4", "-q", "-F", "-I", "128")
	src := mkdir(t, d.dir, "src")
	file := filepath.Join(src, "file")
	r := newRepo(t)
	for try := 1; !changedAfterRead(t, r, src, file); try++ {
		if try == 10 {
			t.Fatal("the file never changed in the second in which it was backed up, and after that")
		}
	}
	s := r.all(src)
	if out := r.mkbackup("export", s.Generation, "file").stdout; !strings.Contains(out, "six") {
		t.Error("it is stored as it was before")
	}
}

// changedAfterRead backs a file up that changes before and after it is read, and reports whether
// it did so in the same second. The run waits for the end of the second of the change before.
func changedAfterRead(t *testing.T, r *repo, src, file string) bool {
	t.Helper()
	second := time.Now().Truncate(time.Second).Add(time.Second)
	time.Sleep(time.Until(second.Add(100 * time.Millisecond)))
	write(t, file, "one")
	b := start(t, r.command("create", "--root", src, "/"))
	waitOpen(t, b.cmd.Process.Pid, file, func() {})
	must(t, b.cmd.Process.Signal(unix.SIGSTOP))
	time.Sleep(time.Until(second.Add(2100 * time.Millisecond)))
	write(t, file, "two")
	before := changedAt(t, file)
	must(t, b.cmd.Process.Signal(unix.SIGCONT))
	if code := b.wait(t, time.Minute); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	write(t, file, "six")
	return changedAt(t, file) == before && strings.Contains(r.mkbackup("export", "latest", "file").stdout, "two")
}

// changedAt returns the time of the last change of a file.
func changedAt(t *testing.T, path string) unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st.Ctim
}
