package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// slowCreate starts a run that takes long enough to be looked at, and returns
// once it reads: the process, which ends with the test, and the file that has
// what it says.
func slowCreate(t *testing.T, args ...string) (pid int, stderr string) {
	t.Helper()
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "file", Seed: 1, Size: 4 << 20}})
	stderr = filepath.Join(tempDir(t), "stderr")
	r := newRepo(t)
	cmd := r.command("create", append([]string{"--read-rate", "4KiB", "--root", src, "/"}, args...)...)
	cmd = exec.Command("sh", append([]string{"-c", `exec "$@" 2>"$0"`, stderr}, cmd.Args...)...)
	start(t, cmd)
	reading := filepath.Join(src, "file")
	waitFor(t, time.Minute, "mkbackup to read", func() bool {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		must(t, err)
		for _, link := range links {
			if to, _ := os.Readlink(link); to == reading {
				return true
			}
		}
		return false
	})
	return cmd.Process.Pid, stderr
}

// threads returns the ids of the threads of a process.
func threads(t *testing.T, pid int) []string {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must(t, err)
	var ids []string
	for _, thread := range list {
		ids = append(ids, thread.Name())
	}
	return ids
}

// niceOf returns the nice value of a thread, field 19 of proc_pid_stat(5).
func niceOf(t *testing.T, pid int, tid string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, tid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.Fields(rest)[16]
}

// TestPriorities wants every thread to have the priorities asked for.
func TestPriorities(t *testing.T) {
	for _, c := range []struct {
		ionice, says string
	}{
		{"idle", "idle"},
		{"best-effort", "best-effort: prio 4"},
		{"best-effort:7", "best-effort: prio 7"},
		{"realtime:5", "realtime: prio 5"},
	} {
		pid, _ := slowCreate(t, "--nice", "17", "--ionice", c.ionice)
		ids := threads(t, pid)
		if len(ids) < 3 {
			t.Errorf("only the threads %q", ids)
		}
		for _, tid := range ids {
			if nice := niceOf(t, pid, tid); nice != "17" {
				t.Errorf("thread %s has the nice value %s, want 17", tid, nice)
			}
			if says := strings.TrimSpace(run(t, "ionice", "-p", tid)); says != c.says {
				t.Errorf("thread %s has the I/O priority %q, want %q", tid, says, c.says)
			}
		}
	}
}

// TestPrioritiesOfOthers stops the commands where they print what they did.
func TestPrioritiesOfOthers(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r.all(src)
	for _, command := range []string{"compact", "check"} {
		cmd := r.command(command, "--nice", "17", "--ionice", "best-effort:7")
		_, cmd.Stdout = fullPipe(t)
		b := start(t, cmd)
		waitFor(t, time.Minute, command+" to write", func() bool { return writes(t, cmd.Process.Pid) })
		pid := cmd.Process.Pid
		for _, tid := range threads(t, pid) {
			says := strings.TrimSpace(run(t, "ionice", "-p", tid))
			if nice := niceOf(t, pid, tid); nice != "17" || says != "best-effort: prio 7" {
				t.Errorf("%s: thread %s has the nice value %s, the I/O priority %q", command, tid, nice, says)
			}
		}
		must(t, cmd.Process.Kill())
		b.wait(t, time.Minute)
	}
}

// TestPrioritiesStay wants a run without the flags to keep what it was started with.
func TestPrioritiesStay(t *testing.T) {
	own := strings.TrimSpace(run(t, "nice"))
	pid, _ := slowCreate(t)
	for _, tid := range threads(t, pid) {
		if nice := niceOf(t, pid, tid); nice != own {
			t.Errorf("thread %s has the nice value %s, want %s", tid, nice, own)
		}
	}
}

// TestThreads reads what the runtime says of itself again and again.
func TestThreads(t *testing.T) {
	t.Setenv("GODEBUG", "schedtrace=50")
	for _, n := range []int{1, runtime.NumCPU() + 1} {
		_, stderr := slowCreate(t, "--threads", strconv.Itoa(n))
		says := fmt.Sprintf(" gomaxprocs=%d ", n)
		waitFor(t, time.Minute, "the runtime to say"+says, func() bool {
			b, err := os.ReadFile(stderr)
			must(t, err)
			return strings.Contains(string(b), says)
		})
	}
}

// TestReadRate has only a lower limit: 8 MiB at 4 MiB/s, less the first burst.
func TestReadRate(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 2, Size: 6 << 20}, {Path: "small", Seed: 3, Size: 1 << 20}, {Path: "small2", Seed: 4, Size: 1 << 20}})
	r := newRepo(t)
	began := time.Now()
	s := r.all(src, "--read-rate", "4MiB")
	if took := time.Since(began); took < 1500*time.Millisecond || s.ReadBytes != 8<<20 {
		t.Errorf("%d bytes in %v", s.ReadBytes, took)
	}
	wantTree(t, "read slowly", readTree(t, src), r.mount().at(s.Generation), treetest.Options{})
}

func TestGentleMistakes(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	for _, flag := range []string{"--nice=20", "--nice=-21", "--nice=low", "--nice=", "--ionice=none", "--ionice=idle:1", "--ionice=best-effort:8", "--ionice=best-effort:", "--ionice=:4",
		"--ionice=realtime:-1", "--threads=0", "--threads=-1", "--threads=257", "--threads=all", "--read-rate=0", "--read-rate=fast", "--read-rate=-1MiB", "--read-rate="} {
		name, _, _ := strings.Cut(flag, "=")
		_, res := r.createExit(2, flag, "--root", src, "/")
		wantOneLine(t, res.stderr, name)
	}
	if n := len(r.records()); n != 0 {
		t.Errorf("%d records", n)
	}
	// Only root may raise a priority.
	home := tempDir(t)
	must(t, os.Chown(home, somebody, somebody))
	own := &repo{t: t, dir: filepath.Join(home, "repo"), user: asUser(somebody, somebody, nil, "true").Args}
	own.user = own.user[:len(own.user)-1]
	if res := own.mkbackup("init"); res.code != 0 {
		t.Fatalf("init: exit code %d\n%s", res.code, res.stderr)
	}
	for _, flag := range []string{"--nice=-20", "--ionice=realtime"} {
		name, _, _ := strings.Cut(flag, "=")
		_, res := own.createExit(1, "-q", flag, "--root", src, "/")
		wantOneLine(t, res.stderr, name, "only root")
	}
}
