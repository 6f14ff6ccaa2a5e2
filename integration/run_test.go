package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// configFile writes a configuration and returns its path.
func configFile(t *testing.T, format string, a ...any) string {
	t.Helper()
	file := filepath.Join(tempDir(t), "test.conf")
	write(t, file, fmt.Sprintf(format, a...))
	return file
}

func runConfig(t *testing.T, name string) result {
	t.Helper()
	return runCmd(t, exec.Command(mkbackup, "run", name))
}

// TestRunDoesAllSteps runs a configuration with two sources and hooks, and
// reads the order of the steps from what the hooks wrote.
func TestRunDoesAllSteps(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "etc"), []treetest.Node{{Path: "a", Data: []byte("1")}})
	createTree(t, mkdir(t, dir, "db"), []treetest.Node{{Path: "b", Data: []byte("2")}})
	trace := filepath.Join(dir, "trace")
	hook := func(text string) string {
		return fmt.Sprintf(`["sh", "-c", "echo %s $BACKUPFS_EXIT $(ls $BACKUPFS_REPOSITORY/log | wc -l) >>%s"]`, text, trace)
	}
	file := configFile(t, `
repository = %q
[[backup]]
root = %q
paths = ["/etc"]
[[backup]]
source = "db"
root = %q
paths = ["/db"]
[hooks]
before = [%s, %s]
after = [%s]
on_failure = [%s]
`, r.dir, dir, dir, hook("before1"), hook("before2"), hook("after"), hook("failed"))

	plan := run(t, mkbackup, "run", "--dry-run", file)
	for i, want := range []string{"before ", "before ", "create ", "create ", "after ", "check ", "on_failure "} {
		if line := strings.Split(plan, "\n")[i]; !strings.HasPrefix(line, want) {
			t.Errorf("line %d of the plan is %q, want %q", i+1, line, want)
		}
	}
	if len(r.records()) != 0 {
		t.Fatal("a dry run has committed something")
	}
	run(t, mkbackup, "run", file)
	got, err := os.ReadFile(trace)
	must(t, err)
	if want := "before1 0 0\nbefore2 0 0\nafter 0 2\n"; string(got) != want {
		t.Errorf("the hooks wrote %q, want %q", got, want)
	}
	if got := strings.Join(r.generations("--source", "db"), " "); len(strings.Fields(got)) != 1 {
		t.Errorf("generations of db: %q", got)
	}
}

// TestRunIsGentle: what works for long does so with the priority of the file.
func TestRunIsGentle(t *testing.T) {
	file := configFile(t, "repository = \"/r\"\n[[backup]]\npaths = [\"/etc\"]\n[forget]\nkeep_last = 1\n[compact]\nmax_dead = \"5%%\"\n"+
		"[priority]\nnice = 7\nionice = \"idle\"\nthreads = 1\nread_rate = \"1MiB\"\n")
	const gentle = " --nice=7 --ionice=idle --threads=1"
	want := "create      mkbackup create --read-rate=1MiB" + gentle + " -- /r /etc\nforget      mkbackup forget /r --source= --keep-last=1\n" +
		"compact     mkbackup compact /r --max-dead=5%" + gentle + "\ncheck       mkbackup check /r" + gentle + "\n"
	if plan := run(t, mkbackup, "run", "--dry-run", file); plan != want {
		t.Errorf("got\n%s\nwant\n%s", plan, want)
	}
}

// TestRunIsAsNiceAsAnyOther: 0 is a priority, too, where the run has another one.
func TestRunIsAsNiceAsAnyOther(t *testing.T) {
	file := configFile(t, "repository = \"/r\"\n[[backup]]\npaths = [\"/etc\"]\n[priority]\nnice = 0\n[check]\nskip = true\n")
	if plan, want := run(t, mkbackup, "run", "--dry-run", file), "create      mkbackup create --nice=0 -- /r /etc\n"; plan != want {
		t.Errorf("got\n%s\nwant\n%s", plan, want)
	}
}

// TestRunQuietly: with -q a good run prints nothing, as cron wants it, and a bad one
// its problems.
func TestRunQuietly(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	write(t, filepath.Join(dir, "a"), "1")
	const text = "repository = %q\n[[backup]]\npaths = [%q]\n[forget]\nkeep_last = 1\n[compact]\nmax_dead = \"0%%\"\n"
	good := configFile(t, text, r.dir, dir)
	for range 2 {
		if res := runCmd(t, exec.Command(mkbackup, "run", "-q", good)); res.code != 0 || res.stdout+res.stderr != "" {
			t.Errorf("exit code %d: %s%s", res.code, res.stdout, res.stderr)
		}
	}
	if n := len(r.generations()); n != 1 {
		t.Errorf("%d generations, want 1: forget was left out", n)
	}
	missing := filepath.Join(dir, "missing")
	bad := configFile(t, text, r.dir, missing)
	if res := runCmd(t, exec.Command(mkbackup, "run", "-q", bad)); res.code != 1 || res.stdout != "" || !strings.Contains(res.stderr, missing) {
		t.Errorf("exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
}

// TestRunForgetsItsOwn: the rules of a configuration are for the sources that it backs up.
func TestRunForgetsItsOwn(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	for range 2 {
		r.create("--source", "other", "--root", src, "/")
	}
	for range 2 {
		file := configFile(t, "repository = %q\n[[backup]]\nroot = %q\npaths = [\"/\"]\n[forget]\nkeep_last = 1\n", r.dir, src)
		if res := runConfig(t, file); res.code != 0 {
			t.Fatalf("exit code %d\n%s", res.code, res.stderr)
		}
	}
	other := r.generations("--source", "other")
	if all := r.generations(); len(other) != 2 || len(all) != 3 {
		t.Errorf("%q of all, %q of the other source", all, other)
	}
}

// TestRunStopsWhereItMust gives runs that fail in each phase.
func TestRunStopsWhereItMust(t *testing.T) {
	dir := tempDir(t)
	createTree(t, mkdir(t, dir, "etc"), []treetest.Node{{Path: "a", Data: []byte("1")}})
	for _, test := range []struct {
		name, before, path, more string
		after, failed            string // what these hooks do, too
		code                     int
		want                     string // of the hooks
		records                  int
	}{
		{"before fails", `["false"]`, "/etc", "", ":", ":", 1, "after 1\nfailed 1\n", 0},
		{"before cannot start", `["/no/such/program"]`, "/etc", "", ":", ":", 1, "after 1\nfailed 1\n", 0},
		{"create fails", `["true"]`, "/none", "", ":", ":", 1, "after 1\nfailed 1\n", 0},
		{"one of two fails", `["true"]`, "/none", "[[backup]]\nsource = \"db\"\nroot = \"" + dir + "\"\npaths = [\"/etc\"]\n[forget]\nkeep_last = 1\n", ":", ":", 1, "after 1\nfailed 1\n", 1},
		{"interrupted before", `["sh", "-c", "kill -TERM $PPID; sleep 1"]`, "/etc", "", ":", ":", 143, "after 143\nfailed 143\n", 0},
		{"a file is missing", `["true"]`, `/none", "/etc`, "", ":", ":", 3, "after 3\nfailed 3\n", 1},
		{"forget fails", `["true"]`, "/etc", "[forget]\nkeep_last = 1\n", "cd $BACKUPFS_REPOSITORY; mv repo.json away", "cd $BACKUPFS_REPOSITORY; mv away repo.json", 1, "after 0\nfailed 1\n", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, trace := newRepo(t), filepath.Join(tempDir(t), "trace")
			file := configFile(t, `
repository = %q
[[backup]]
root = %q
paths = ["%s"]
[hooks]
before = [%s]
after = [["sh", "-c", "echo after $BACKUPFS_EXIT >>%s; %s"]]
on_failure = [["sh", "-c", "echo failed $BACKUPFS_EXIT >>%s; %s"]]
%s`, r.dir, dir, test.path, test.before, trace, test.after, trace, test.failed, test.more)
			result := runConfig(t, file)
			if result.code != test.code {
				t.Errorf("exit code %d, want %d\n%s", result.code, test.code, result.stderr)
			}
			got, err := os.ReadFile(trace)
			must(t, err)
			if string(got) != test.want {
				t.Errorf("the hooks wrote %q, want %q", got, test.want)
			}
			if n := len(r.records()); n != test.records {
				t.Errorf("%d records, want %d", n, test.records)
			}
		})
	}
}

func TestRunRefusesAWrongFile(t *testing.T) {
	r := newRepo(t)
	const backup = "repository = %q\n[[backup]]\npaths = [\"/etc\"]\n"
	for _, test := range []struct{ text, want string }{
		{"repository = %q\npath = 1\n", ":2: "},
		{"repository = %q\n", "no [[backup]]"},
		{"repository = %q\n[[backup]]\nsource = \"x\"\n", ":2: backup.paths: there are no paths"},
		{backup + "[hooks]\nafter = [[]]\n", ":5: hooks.after: an empty command"},
		{backup + "source = \"a b\"\n", `:4: backup.source: "a b": it begins with a letter`},
		{backup + "[[backup]]\npaths = [\"/srv\"]\n", ":4: backup.source: the unnamed source is backed up already: give this backup a name of its own"},
		{backup + "source = \"a\"\n[[backup]]\npaths = [\"/b\"]\n[[backup]]\npaths = [\"/srv\"]\nsource = \"a\"\n", `:9: backup.source: the source "a" is backed up already`},
		{backup + "exclude = [\"*.o\", \"[a\"]\n", `:4: backup.exclude: "[a": `},
		{backup + "exclude_if_present = [\"a/b\"]\n", `:4: backup.exclude_if_present: "a/b": `},
		{backup + "[forget]\nkeep_within = \"long\"\n", `:5: forget.keep_within: bad span "long"`},
		{backup + "[compact]\nlimit = \"5EiB\"\n", `:5: compact.limit: "5EiB": give a number with a unit`},
		{backup + "[compact]\ntime_limit = \"2h\"\n", ":5: compact.time_limit: nothing is compacted without max_dead: add max_dead = \"10%\""},
		{backup + "[compact]\nlimit = \"1GiB\"\n", ":5: compact.limit: nothing is compacted without max_dead"},
		{backup + "[check]\nread_data_subset = \"2%%\"\nskip = true\n", ":5: check.read_data_subset: nothing is checked with skip = true: leave one of the two out"},
		{backup + "[forget]\nkeep_daily = 7\nkeep_weekly = 0\n", ":6: forget.keep_weekly: 0 keeps nothing: leave the line out for no such rule"},
		{backup + "exclude_from = [\"-\"]\n", `:4: backup.exclude_from: "-": a run has no standard input`},
		{backup + "exclude_from = [\"/no/such/file\"]\n[hooks]\nbefore = [[\"sh\", \"-c\", \"echo hook >&2\"]]\n", `:4: backup.exclude_from: "/no/such/file": open `},
		{backup + "[priority]\nthreads = 0\n", `:5: priority.threads: "0": give a number from 1 to 256`},
		{backup + "[check]\nread_data_subset = \"0%%\"\n", `:5: check.read_data_subset: "0%" is no percentage: `},
		{backup + "[priority]\nnice = 40\n", `:5: priority.nice: "40": give a number from -20 to 19`},
		{backup + "[priority]\nionice = \"idl\"\n", `:5: priority.ionice: "idl": give idle`},
		{backup + "[priority]\nthreads = 5000\n", `:5: priority.threads: "5000": give a number from 1 to 256`},
	} {
		result := runConfig(t, configFile(t, test.text, r.dir))
		if result.code != 2 {
			t.Errorf("%q: exit code %d, want 2", test.text, result.code)
		}
		wantOneLine(t, result.stderr, "test.conf", test.want)
	}
	if n := len(r.records()); n != 0 {
		t.Errorf("%d records: something was done", n)
	}
	if result := runConfig(t, "no-such-name"); result.code != 2 || !strings.Contains(result.stderr, "/etc/backupfs/no-such-name.conf") {
		t.Errorf("exit code %d: %s", result.code, result.stderr)
	}
}

// TestRunBesideForeignLocks: who may read a configuration, or list the directory of
// metrics, can lock them, and keeps no run of root from its work.
func TestRunBesideForeignLocks(t *testing.T) {
	r, src, prom := newRepo(t), tempDir(t), filepath.Join(tempDir(t), "backupfs.prom")
	write(t, filepath.Join(src, "a"), "1")
	file := configFile(t, "repository = %q\nmetrics = %q\n[[backup]]\npaths = [%q]\n", r.dir, prom, src)
	for _, name := range []string{file, filepath.Dir(prom)} {
		start(t, asUser(65534, 65534, nil, "flock", "--no-fork", "--shared", name, "sleep", "600"))
		waitFor(t, time.Minute, "the lock of "+name, func() bool {
			return runCmd(t, exec.Command("flock", "--nonblock", name, "true")).code == 1
		})
	}
	if res := runCmd(t, exec.Command(mkbackup, "run", "-q", file)); res.code != 0 || res.stderr != "" {
		t.Errorf("exit code %d: %s", res.code, res.stderr)
	}
	readMetrics(t, prom).want(t, "a run", metrics{"backupfs_last_run_exit_code{run}": 0})
	res := runCmd(t, asUser(1234, 1234, nil, mkbackup, "run", file))
	if res.code != 1 {
		t.Errorf("of a user: exit code %d", res.code)
	}
	wantOneLine(t, res.stderr, "another run of it is under way", "If there is none, ", "chmod 600 "+file)
}

// TestRunOfAReplacedFile: a run is under way also when another file has got the name of its
// configuration, as by `sed -i`; and a file that has got its inode number is another one.
func TestRunOfAReplacedFile(t *testing.T) {
	for user, as := range map[string][]string{"root": nil, "somebody": asUser(somebody, somebody, nil, "true").Args} {
		t.Run(user, func(t *testing.T) {
			as = as[:max(len(as)-1, 0)]
			home := tempDir(t)
			runAs := func(name string) *exec.Cmd {
				words := append(append([]string{}, as...), mkbackup, "run", "-q", name)
				return exec.Command(words[0], words[1:]...)
			}
			if as != nil {
				must(t, os.Chown(home, somebody, somebody))
			}
			file, trace, links := filepath.Join(home, "main.conf"), filepath.Join(home, "trace"), mkdir(t, home, "links")
			write(t, filepath.Join(home, "new"), fmt.Sprintf("repository = %[1]q\n[[backup]]\npaths = [%[2]q]\n[check]\nskip = true\n[hooks]\n"+
				`before = [["sh", "-c", "echo before >>%[3]s; test $(wc -l <%[3]s) -gt 1 || until test -e %[4]s/go; do sleep 0.05; done"]]`+"\n"+`after = [["sh", "-c", "echo after >>%[3]s"]]`+"\n",
				filepath.Join(home, "repo"), links, trace, home))
			link := filepath.Join(links, "link.conf")
			must(t, os.Symlink("../main.conf", link))
			shell(t, `cd "$1" && shift && cp -p new main.conf && "$@" init repo && chown -R --reference=. .`, append([]string{home}, append(as, mkbackup)...)...)

			first := start(t, runAs(link))
			goOn := func() { write(t, filepath.Join(home, "go"), "") }
			t.Cleanup(goOn)
			hooks := func() string {
				text, _ := os.ReadFile(trace)
				return string(text)
			}
			waitFor(t, time.Minute, "the hook", func() bool { return hooks() == "before\n" })
			refused := func(name string) {
				t.Helper()
				res := runCmd(t, runAs(name))
				if res.code != 1 || hooks() != "before\n" {
					t.Errorf("%s: exit code %d, and hooks wrote %q", name, res.code, hooks())
				}
				wantOneLine(t, res.stderr, name, "another run of it is under way")
			}
			refused(link)
			refused(file)
			shell(t, `cd "$1" && cp -p main.conf new.conf && mv new.conf main.conf`, home)
			refused(link)
			refused(file)
			shell(t, `cd "$1" && cp -p main.conf links/new.conf && mv links/new.conf links/link.conf`, home)
			refused(link)
			refused(file)

			other := filepath.Join(home, "other.conf") // with the inode number that was freed, on some file systems
			shell(t, `cd "$1" && grep -v -e before -e after main.conf >other.conf && chown --reference=. other.conf`, home)
			if res := runCmd(t, runAs(other)); res.code != 0 {
				t.Errorf("another file: exit code %d\n%s", res.code, res.stderr)
			}
			goOn()
			if code := first.wait(t, time.Minute); code != 0 || hooks() != "before\nafter\n" {
				t.Errorf("exit code %d, and hooks wrote %q\n%s", code, hooks(), first.stderr.String())
			}
			if res := runCmd(t, runAs(file)); res.code != 0 {
				t.Errorf("after it: exit code %d\n%s", res.code, res.stderr)
			}
		})
	}
}

// TestRunBesideALockOfOthers: a file that another user has put where a run locks its own is
// left alone.
func TestRunBesideALockOfOthers(t *testing.T) {
	home := tempDir(t)
	must(t, os.Chmod(home, 0o777))
	write(t, filepath.Join(home, "main.conf"), "repository = \"/none\"\n[[backup]]\npaths = [\"/none\"]\n")
	lock := filepath.Join(home, ".main.conf.lock")
	write(t, lock, "")
	must(t, os.Chmod(lock, 0o666))
	start(t, exec.Command("flock", "--no-fork", lock, "sleep", "600"))
	waitFor(t, time.Minute, "the lock", func() bool { return runCmd(t, exec.Command("flock", "--nonblock", lock, "true")).code == 1 })
	if res := runCmd(t, asUser(somebody, somebody, nil, mkbackup, "run", filepath.Join(home, "main.conf"))); !strings.Contains(res.stderr, "/none: no repository there") {
		t.Errorf("exit code %d: %s", res.code, res.stderr)
	}
}

// TestMountByConfiguration mounts what a file says.
func TestMountByConfiguration(t *testing.T) {
	r, src, point := newRepo(t), tempDir(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	r.all(src, "--source", "web1")
	file := configFile(t, "repository = %q\n[mount]\npoint = %q\nsource = \"web1\"\ncache_size = \"16MiB\"\n", r.dir, point)
	run(t, backupfs, "--config", file)
	t.Cleanup(func() { run(t, "umount", point) })
	wantTree(t, "the mount", readTree(t, src), filepath.Join(point, "latest"), treetest.Options{})
	wrong := func(mount string) string { return configFile(t, "repository = %q\n[mount]\n%s", r.dir, mount) }
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", file, r.dir}, "too much"},
		{[]string{"--config", configFile(t, "repository = %q\n", r.dir)}, "mount.point: an absolute path is needed"},
		{[]string{"--config", wrong("point = \"backups\"\n")}, ":3: mount.point: an absolute path is needed"},
		{[]string{"--config", wrong("point = \"/b\"\ncache_size = \"big\"\n")}, ":4: mount.cache_size: "},
		{[]string{"--config", wrong("point = \"/b\"\nname_format = \"%%\"\n")}, ":4: mount.name_format: "},
		{[]string{"--config", wrong("point = \"/b\"\nmetrics_listen = \"9750\"\n")}, ":4: mount.metrics_listen: "},
	} {
		result := runCmd(t, exec.Command(backupfs, test.args...))
		if result.code != 2 {
			t.Errorf("%v: exit code %d, want 2", test.args, result.code)
		}
		wantOneLine(t, result.stderr, test.want)
	}
}
