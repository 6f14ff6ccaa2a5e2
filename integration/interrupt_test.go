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

// fullPipe returns the end to write to of a pipe that is full, and that nobody reads.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	must(t, err)
	_, err = w.Write(make([]byte, size))
	must(t, err)
	return w
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
		cmd.Stdout = fullPipe(t)
		b := start(t, cmd)
		waitFor(t, time.Minute, args[0]+" to write", func() bool { return writes(t, cmd.Process.Pid) })
		must(t, cmd.Process.Signal(signal))
		if code := b.wait(t, 20*time.Second); code != 128+int(signal) {
			t.Errorf("%s: exit code %d after %v: %s", args[0], code, signal, b.stderr.String())
		}
	}
	r.wantNoLeftovers()
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
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	must(t, err)
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	return child
}
