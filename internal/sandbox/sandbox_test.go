package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// actVariable tells the test binary what to do in a sandbox, instead of tests.
const actVariable = "BACKUPFS_SANDBOX_TEST"

func TestMain(m *testing.M) {
	act := os.Getenv(actVariable)
	if act == "" {
		os.Exit(m.Run())
	}
	os.Exit(Main(func() int {
		if err := occupy(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("ready")
		if act == "kill" {
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
		io.Copy(io.Discard, os.Stdin) // until the test lets go
		return 7
	}))
}

// occupy leaves about all that could be left behind: a tmpfs, a loop device, a
// mount, and a daemon that has a session of its own.
func occupy() error {
	dir, err := Scratch()
	if err != nil {
		return err
	}
	if err := Ext4(filepath.Join(dir, mark()), 64<<20, 1000); err != nil {
		return err
	}
	daemon := exec.Command("tail", "-f", "/dev/null", "--pid=1", "-s", mark())
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	daemon.Dir = filepath.Join(dir, mark())
	return daemon.Start()
}

// mark is a number in the names of all that is made: the process id of the test.
func mark() string { return os.Getenv(actVariable + "_MARK") }

// start runs this binary in a sandbox until it is ready.
func start(t *testing.T, act string) (cmd *exec.Cmd, stdin io.Closer) {
	t.Helper()
	number := fmt.Sprintf("86400.%d%d", os.Getpid(), time.Now().UnixNano()%1000)
	t.Setenv(actVariable+"_MARK", number)
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), actVariable+"="+act)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // whoever is left holds the pipes
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() }) // ends whoever is left
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("printed %q, %v: %s", line, err, stderr.String())
	}
	return cmd, in
}

// traces names everything on the machine that belongs to the sandbox.
func traces(t *testing.T) (found []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/mountinfo", "/sys/block/loop*/loop/backing_file"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			// A process may have ended meanwhile.
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), mark()) {
				found = append(found, path)
			}
		}
	}
	return found
}

func wantNone(t *testing.T) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = traces(t); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Lstat(filepath.Join("/mnt", mark())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine's /mnt holds %s: %v", mark(), err)
	}
}

// wantAll fails the test unless the daemon, the mount and the loop device can be seen.
func wantAll(t *testing.T) {
	t.Helper()
	found := strings.Join(traces(t), " ")
	for _, kind := range []string{"/cmdline", "/mountinfo", "/backing_file"} {
		if !strings.Contains(found, kind) {
			t.Errorf("no %s of the sandbox is to be seen, only %q", kind, found)
		}
	}
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("ended with %v, want an exit code", err)
	}
	return exit.ExitCode()
}

func TestKilledOutside(t *testing.T) {
	cmd, _ := start(t, "wait")
	wantAll(t)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Wait() // cmd.Wait would close the pipe at which whoever is left waits
	wantNone(t)
}

func TestKilledInside(t *testing.T) {
	cmd, _ := start(t, "kill")
	if code := exitCode(t, cmd.Wait()); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d, want 143", code)
	}
	wantNone(t)
}

func TestEnds(t *testing.T) {
	cmd, stdin := start(t, "wait")
	wantAll(t)
	stdin.Close()
	if code := exitCode(t, cmd.Wait()); code != 7 {
		t.Errorf("exit code %d, want 7, that of the function", code)
	}
	wantNone(t)
}
