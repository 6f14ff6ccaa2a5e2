// Package integration runs the real programs against real mounts and compares
// them with what rsync, cp, tar, find, getfattr, getfacl and overlayfs see. Its
// tests need root, Linux with FUSE, and the tools in the list below; what is
// missing is a failure, never a skipped test. docs/TESTING.md says what is
// covered where.
package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tools are the programs that the tests use; `make deps` installs them.
var tools = []string{"attr", "chattr", "cp", "dd", "df", "diff", "du", "filefrag", "find", "fusermount3", "getfacl", "getfattr", "ionice", "jq", "ls",
	"mkfs.ext4", "mount", "rsync", "setfacl", "setpriv", "sh", "sha256sum", "stat", "strace", "tail", "tar", "umount", "zstd"}

// The test binary plays four parts, told apart by this variable: unset, it
// makes the sandbox and waits; "init" is process 1 of the sandbox and reaps;
// "tests" runs the tests; "helper" is started by a test as another user.
const roleVariable = "BACKUPFS_INTEGRATION_ROLE"

// Set by TestMain in the process that runs the tests, and only read after.
var (
	mkbackup string // path of the program
	backupfs string
	testRoot string // directory for everything that tests make; other users may pass
)

func TestMain(m *testing.M) {
	var code int
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		code, err = runSandbox()
	case "init":
		code, err = runInit()
	case "helper":
		code, err = runHelper()
	default:
		code, err = runTests(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

// runSandbox runs this program again as process 1 of a PID and mount name space
// of its own. When the tests end, however they end, the kernel kills every
// process they left and takes away every mount; then their files are removed.
func runSandbox() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests mount file systems and make devices: run them as root")
	}
	if missing := missingTools(); len(missing) > 0 {
		return 1, fmt.Errorf("not installed: %s: run `make deps`", strings.Join(missing, " "))
	}
	dir, err := os.MkdirTemp("", "backupfs-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"=init", "BACKUPFS_INTEGRATION_DIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death of the thread would be taken for that of this process
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

func missingTools() []string {
	return slices.DeleteFunc(slices.Clone(tools), func(tool string) bool {
		_, err := exec.LookPath(tool)
		return err == nil
	})
}

// runInit is process 1: it starts the tests and reaps whatever daemons leave.
func runInit() (int, error) {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	if err := openFuse(); err != nil {
		return 1, fmt.Errorf("/dev/fuse: %w", err)
	}
	os.Setenv(roleVariable, "tests")
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1, err
		}
		if ended == pid && (status.Exited() || status.Signaled()) {
			return max(status.ExitStatus(), 0) | boolBit(status.Signaled()), nil
		}
	}
}

// openFuse gives every user of the sandbox the right to /dev/fuse that udev
// gives them on a usual machine.
func openFuse() error {
	dir := filepath.Join(os.Getenv("BACKUPFS_INTEGRATION_DIR"), "dev")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	node := filepath.Join(dir, "fuse")
	if err := unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 229))); err != nil {
		return err
	}
	if err := os.Chmod(node, 0o666); err != nil {
		return err
	}
	return unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, "")
}

func boolBit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func runTests(m *testing.M) (int, error) {
	testRoot = os.Getenv("BACKUPFS_INTEGRATION_DIR")
	os.Unsetenv(roleVariable)
	bin := filepath.Join(testRoot, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return 1, err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin+"/", "../cmd/mkbackup", "../cmd/backupfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	mkbackup, backupfs = filepath.Join(bin, "mkbackup"), filepath.Join(bin, "backupfs")
	// mount(8) and other users find the programs through PATH.
	os.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	os.Setenv("LC_ALL", "C.UTF-8")
	os.Setenv("TZ", "UTC")
	if err := copyFile("/proc/self/exe", filepath.Join(bin, "helper")); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// asUser returns a command that runs as another user, without any capability.
func asUser(uid, gid int, groups []int, name string, args ...string) *exec.Cmd {
	list := "--clear-groups"
	if len(groups) > 0 {
		words := make([]string, len(groups))
		for i, g := range groups {
			words[i] = strconv.Itoa(g)
		}
		list = "--groups=" + strings.Join(words, ",")
	}
	all := []string{"--reuid=" + strconv.Itoa(uid), "--regid=" + strconv.Itoa(gid), list, "--inh-caps=-all", name}
	return exec.Command("setpriv", append(all, args...)...)
}
