package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// fullPipe returns the ends of a pipe that is full.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	must(t, err)
	_, err = w.Write(make([]byte, size))
	must(t, err)
	return r, w
}

// writes reports whether a thread of a process is in a write to standard output.
func writes(t *testing.T, pid int) bool {
	t.Helper()
	calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	must(t, err)
	for _, call := range calls {
		if text, err := os.ReadFile(call); err == nil && strings.HasPrefix(string(text), fmt.Sprintf("%d 0x1 ", unix.SYS_WRITE)) {
			return true
		}
	}
	return false
}

// TestReadersEndAtOnce interrupts commands that only read while they wait for whoever
// should read their output.
func TestReadersEndAtOnce(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	r.all(src)
	createTree(t, src, []treetest.Node{{Path: "b", Data: []byte("2")}})
	r.all(src)
	for i, args := range [][]string{{"list"}, {"ls", "latest"}, {"diff", "1", "2"}, {"history", "/a"}, {"find", "a"}, {"stats"}, {"export", "latest"}} {
		signal := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
		cmd := r.command(args[0], args[1:]...)
		_, cmd.Stdout = fullPipe(t)
		b := start(t, cmd)
		waitFor(t, time.Minute, args[0]+" to write", func() bool { return writes(t, cmd.Process.Pid) })
		must(t, cmd.Process.Signal(signal))
		if code := b.wait(t, 20*time.Second); code != 128+int(signal) {
			t.Errorf("%s: exit code %d after %v: %s", args[0], code, signal, b.stderr.String())
		}
	}
	r.wantNoLeftovers()
}

// TestInterruptedAfterCommit: what a backup lacks is told by its exit code, also when an
// interrupt comes after it was committed.
func TestInterruptedAfterCommit(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	cmd := r.command("create", "--root", src, "/file", "/missing")
	read, write := fullPipe(t)
	cmd.Stdout = write
	b := start(t, cmd)
	waitFor(t, time.Minute, "create to write", func() bool { return writes(t, cmd.Process.Pid) })
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	_, err := read.Read(make([]byte, 64<<10))
	must(t, err)
	if code := b.wait(t, time.Minute); code != 3 || !strings.Contains(b.stderr.String(), "1 problem with files") {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
}

// TestIndexIsInterrupted interrupts what makes an index anew, which strace makes slow.
func TestIndexIsInterrupted(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	for range 20 {
		r.all(src)
	}
	for _, command := range []string{"reindex", "list"} {
		if command == "list" {
			must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
		}
		words := r.command(command).Args
		b := start(t, exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=openat", "-e", "inject=openat:delay_enter=50000"}, words...)...))
		waitFor(t, time.Minute, "the index to be begun", func() bool { return len(r.glob("tmp/*/index-*")) > 0 })
		must(t, syscall.Kill(childOf(t, b.cmd.Process.Pid), syscall.SIGTERM))
		if code := b.wait(t, 20*time.Second); code != 143 || b.stdout.Len() > 0 {
			t.Errorf("%s: exit code %d: %s", command, code, b.stdout.String())
		}
		wantOneLine(t, b.stderr.String(), "interrupted")
		r.wantNoLeftovers()
	}
}

// childOf returns the only child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // of each thread its own
	must(t, err)
	var all string
	for _, list := range lists {
		text, err := os.ReadFile(list)
		must(t, err)
		all += string(text)
	}
	child, err := strconv.Atoi(strings.TrimSpace(all))
	must(t, err)
	return child
}

// TestRunIsInterrupted sends a signal to the process group of a run, as Ctrl-C at a
// terminal does: while a hook runs, and while a backup is made.
func TestRunIsInterrupted(t *testing.T) {
	for _, during := range []string{"before", "create"} {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
			r, dir := newRepo(t), tempDir(t)
			createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Seed: 1, Size: 4 << 20}})
			trace, file := filepath.Join(dir, "trace"), runToInterrupt(t, r, dir, during)
			cmd := exec.Command(mkbackup, "run", file)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			b := start(t, cmd)
			waitFor(t, time.Minute, during, func() bool {
				if during == "create" {
					return len(r.glob("tmp/*")) > 0
				}
				_, err := os.Stat(filepath.Join(dir, "waits"))
				return err == nil
			})
			must(t, syscall.Kill(-cmd.Process.Pid, signal))
			write(t, filepath.Join(dir, "go"), "")
			if code := b.wait(t, time.Minute); code != 128+int(signal) {
				t.Errorf("%v during %s: exit code %d: %s", signal, during, code, b.stderr.String())
			}
			got, err := os.ReadFile(trace)
			must(t, err)
			if want := fmt.Sprintf("before goes on\nafter %[1]d\nfailed %[1]d\n", 128+int(signal)); string(got) != want {
				t.Errorf("%v during %s: the hooks wrote %q, want %q", signal, during, got, want)
			}
			r.wantNoLeftovers()
		}
	}
}

// TestRunIgnoresWhatItsCallerDoes: nohup(1) keeps a run from ending with its terminal.
func TestRunIgnoresWhatItsCallerDoes(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Data: []byte("1")}})
	b := start(t, exec.Command("sh", "-c", `trap "" HUP; exec "$0" run "$1"`, mkbackup, runToInterrupt(t, r, dir, "before")))
	waitForFile(t, filepath.Join(dir, "waits"))
	must(t, b.cmd.Process.Signal(syscall.SIGHUP))
	write(t, filepath.Join(dir, "go"), "")
	if code := b.wait(t, time.Minute); code != 0 {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
}

// TestHangUpComesTwice: from the shell, and from the kernel, when a terminal is closed.
// What else then writes to it has no reader.
func TestHangUpComesTwice(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Seed: 1, Size: 4 << 20}})
	read, write, err := os.Pipe()
	must(t, err)
	defer write.Close()
	cmd := exec.Command(mkbackup, "run", runToInterrupt(t, r, dir, "create"))
	cmd.Stdout, cmd.Stderr = write, write
	must(t, cmd.Start())
	waitFor(t, time.Minute, "create", func() bool { return len(r.glob("tmp/*")) > 0 })
	must(t, read.Close())
	for range 2 {
		must(t, cmd.Process.Signal(syscall.SIGHUP))
		time.Sleep(10 * time.Millisecond) // the first has been heard
	}
	cmd.Wait() // its state says how
	if code := cmd.ProcessState.ExitCode(); code >= 0 && code != 129 {
		t.Errorf("exit code %d", code)
	}
	got, err := os.ReadFile(filepath.Join(dir, "trace"))
	must(t, err)
	if lines := strings.Split(string(got), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], "after ") || !strings.HasPrefix(lines[2], "failed ") {
		t.Errorf("the hooks wrote %q", got)
	}
}

// TestRunIsInterruptedAgain: hooks are run to their end, also after a second signal, and what
// the run tells is told.
func TestRunIsInterruptedAgain(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Data: []byte("1")}})
	said, metrics := filepath.Join(dir, "said"), filepath.Join(dir, "backupfs.prom")
	cmd := exec.Command("sh", "-c", `exec "$0" run --metrics "$1" "$2" 2>"$3"`, mkbackup, metrics, runToInterrupt(t, r, dir, "before"), said)
	cmd.WaitDelay = time.Second // where it leaves its hook behind
	b := start(t, cmd)
	waitForFile(t, filepath.Join(dir, "waits"))
	const heard = "hooks still run"
	waitFor(t, time.Minute, heard, func() bool {
		must(t, cmd.Process.Signal(syscall.SIGHUP))
		text, err := os.ReadFile(said)
		must(t, err)
		return strings.Contains(string(text), heard)
	})
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	must(t, cmd.Process.Signal(syscall.SIGINT))
	write(t, filepath.Join(dir, "go"), "")
	if code := b.wait(t, time.Minute); code != 129 {
		t.Errorf("exit code %d", code)
	}
	for file, want := range map[string]string{filepath.Join(dir, "trace"): "before goes on\nafter 129\nfailed 129\n", said: "mkbackup: interrupted: hooks still run; kill -9 ends at once\nmkbackup: interrupted by hangup: nothing half-done remains\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
	if text, err := os.ReadFile(metrics); err != nil || !strings.Contains(string(text), `last_run_exit_code{command="run"`) || !strings.Contains(string(text), "} 129\n") {
		t.Errorf("metrics: %v\n%s", err, text)
	}
}

// TestStepIsInterruptedAgain: a second signal ends a step at once that hangs, here because
// nobody reads its output, but no hook. By itself such a command ends as well.
func TestStepIsInterruptedAgain(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Data: []byte("1")}})
	for name, cmd := range map[string]*exec.Cmd{
		"run":    exec.Command(mkbackup, "run", runToInterrupt(t, r, dir, "create")),
		"create": r.command("create", "--root", filepath.Join(dir, "src"), "/"),
	} {
		_, cmd.Stdout = fullPipe(t)
		cmd.WaitDelay = time.Second // where it leaves its step behind
		made := len(r.records())
		b := start(t, cmd)
		waitFor(t, time.Minute, name+" to commit", func() bool { return len(r.records()) > made })
		step := cmd.Process.Pid
		if name == "run" {
			step = childOf(t, step)
		}
		waitFor(t, time.Minute, name+" to write", func() bool { return writes(t, step) })
		waitFor(t, 20*time.Second, name+" to end", func() bool {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			time.Sleep(100 * time.Millisecond)      // it has been heard
			return cmd.Process.Signal(syscall.Signal(0)) != nil
		})
		b.wait(t, 20*time.Second)
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if name == "create" && (!status.Signaled() || status.Signal() != syscall.SIGTERM) || name == "run" && status.ExitStatus() != 143 {
			t.Errorf("%s: %v: %s", name, cmd.ProcessState, b.stderr.String())
		}
	}
	got, err := os.ReadFile(filepath.Join(dir, "trace"))
	must(t, err)
	if want := "before goes on\nafter 143\nfailed 143\n"; string(got) != want {
		t.Errorf("the hooks wrote %q, want %q", got, want)
	}
}

// TestInterruptedByItsLastHook: on_failure is run also where no step is behind the hook
// that an interrupt comes in, and each of its commands knows of it, as of an interrupt that
// follows a lesser trouble.
func TestInterruptedByItsLastHook(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Data: []byte("1")}})
	for _, paths := range []string{`"/file"`, `"/file", "/missing"`} {
		trace := filepath.Join(dir, "trace")
		write(t, trace, "")
		file := configFile(t, `
repository = %[1]q
[[backup]]
root = "%[2]s/src"
paths = [%[3]s]
[check]
skip = true
[hooks]
after = [["sh", "-c", "kill -TERM $PPID; sleep 1"]]
on_failure = [["sh", "-c", "echo first $BACKUPFS_EXIT >>%[2]s/trace"], ["sh", "-c", "echo second $BACKUPFS_EXIT >>%[2]s/trace"]]
`, r.dir, dir, paths)
		res := runConfig(t, file)
		if res.code != 143 {
			t.Errorf("%s: exit code %d: %s", paths, res.code, res.stderr)
		}
		got, err := os.ReadFile(trace)
		must(t, err)
		if want := "first 143\nsecond 143\n"; string(got) != want {
			t.Errorf("%s: the hooks wrote %q, want %q", paths, got, want)
		}
	}
}

// TestRunOutlivesItsReader: hooks are run although nobody reads what a run says.
func TestRunOutlivesItsReader(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	file := runToInterrupt(t, r, dir, "create") // there is no src, which the backup says
	cmd := exec.Command("sh", "-c", `{ sleep 0.1; "$0" run "$1"; echo $? >"$2"/code; } 2>&1 | true`, mkbackup, file, dir)
	if res := runCmd(t, cmd); res.code != 0 {
		t.Fatalf("exit code %d: %s", res.code, res.stderr)
	}
	for file, want := range map[string]string{"code": "141\n", "trace": "before goes on\nafter 141\nfailed 141\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// TestRunsDoNotOverlap: the hooks of two runs of a configuration do not meet.
func TestRunsDoNotOverlap(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Data: []byte("1")}})
	file := runToInterrupt(t, r, dir, "before")
	b := start(t, exec.Command(mkbackup, "run", file))
	waitForFile(t, filepath.Join(dir, "waits"))
	link := filepath.Join(dir, "link.conf")
	must(t, os.Symlink(file, link))
	for _, name := range []string{file, link} {
		res := runConfig(t, name)
		if res.code != 1 {
			t.Errorf("a second run: exit code %d", res.code)
		}
		wantOneLine(t, res.stderr, "another run of it is under way: wait for its end")
	}
	write(t, filepath.Join(dir, "go"), "")
	if code := b.wait(t, time.Minute); code != 0 {
		t.Errorf("the first run: exit code %d: %s", code, b.stderr.String())
	}
	got, err := os.ReadFile(filepath.Join(dir, "trace"))
	must(t, err)
	if want := "before goes on\nafter 0\n"; string(got) != want {
		t.Errorf("the hooks wrote %q, want %q", got, want)
	}
	if res := runConfig(t, file); res.code != 0 {
		t.Errorf("a run after both: exit code %d: %s", res.code, res.stderr)
	}
}

func waitForFile(t *testing.T, file string) {
	t.Helper()
	waitFor(t, time.Minute, file, func() bool {
		_, err := os.Stat(file)
		return err == nil
	})
}

// runToInterrupt returns a configuration whose hook before waits for a file "go" in
// dir, if it is that which is to be interrupted, and whose backup takes long.
func runToInterrupt(t *testing.T, r *repo, dir, during string) string {
	if during != "before" {
		write(t, filepath.Join(dir, "go"), "")
	}
	return configFile(t, `
repository = %[1]q
[[backup]]
root = "%[2]s/src"
paths = ["/"]
[priority]
read_rate = "4KiB"
[hooks]
before = [["sh", "-c", "touch %[2]s/waits; until [ -e %[2]s/go ]; do sleep 0.01; done; echo before goes on >>%[2]s/trace"]]
after = [["sh", "-c", "echo after $BACKUPFS_EXIT >>%[2]s/trace"]]
on_failure = [["sh", "-c", "echo failed $BACKUPFS_EXIT >>%[2]s/trace"]]
`, r.dir, dir)
}

// TestKilledStep: the exit code of a run tells which signal killed a step.
func TestKilledStep(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "src"), []treetest.Node{{Path: "file", Seed: 1, Size: 4 << 20}})
	b := start(t, exec.Command(mkbackup, "run", runToInterrupt(t, r, dir, "create")))
	waitFor(t, time.Minute, "create", func() bool { return len(r.glob("tmp/*")) > 0 })
	must(t, syscall.Kill(childOf(t, b.cmd.Process.Pid), syscall.SIGKILL))
	if code := b.wait(t, time.Minute); code != 128+9 || !strings.Contains(b.stderr.String(), "killed by a signal") {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
	r.create("--root", dir+"/src", "--dry-run", "/")
}

// TestHooksHaveNoTerminal: a hook is in a session of its own.
func TestHooksHaveNoTerminal(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	file := configFile(t, "repository = %q\n[[backup]]\npaths = [%q]\n[hooks]\nbefore = [[\"sh\", \"-c\", \"set -- $(cat /proc/$$/stat); [ $6 = $$ ]\"]]\n", r.dir, dir)
	if res := runConfig(t, file); res.code != 0 {
		t.Errorf("exit code %d: %s", res.code, res.stderr)
	}
}
