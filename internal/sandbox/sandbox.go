// Package sandbox runs a program where it can leave nothing behind: in a PID
// and mount name space of its own. However the program ends, a SIGKILL of its
// outermost process included, the kernel then ends every process that it
// started and takes away every mount that it made, and with a tmpfs its files.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// roleVariable tells the three processes apart: unset, the program makes the
// sandbox and waits; "init" is process 1 in there and reaps; "inside" works.
const roleVariable = "BACKUPFS_SANDBOX_ROLE"

// Outside tells, before Main is called, whether the caller is the outermost
// process, which waits for the others. What it makes, it has to remove.
func Outside() bool { return os.Getenv(roleVariable) == "" }

// Main runs the calling program again, with the same arguments, in a sandbox,
// calls inside in there, and returns its exit code. It needs root. Where the
// program in the sandbox is killed by a signal, the code is 128 and its number.
func Main(inside func() int) int {
	var code int
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		code, err = outside()
	case "init":
		code, err = reap()
	default:
		if err = os.Unsetenv(roleVariable); err == nil { // what is started in there may make its own
			return inside()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return code
}

// Tests runs the tests of a package, for its TestMain, in a sandbox: a panic or a time
// limit leaves no mount and no daemon behind. Without root they run as they are, and those that mount
// skip themselves; so do the workers of fuzzing, which talk to the process that
// started them, in a sandbox, by descriptors of their own.
func Tests(m interface{ Run() int }) int {
	if os.Geteuid() != 0 || slices.Contains(os.Args, "-test.fuzzworker") {
		return m.Run()
	}
	return Main(m.Run)
}

// outside starts process 1 of the sandbox, which dies with this process.
func outside() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("name spaces and mounts are for root alone: run this as root")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"=init")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death of the thread would be taken for that of this process
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// reap is process 1: it starts the program proper and reaps whatever daemons leave.
func reap() (int, error) {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.Setenv(roleVariable, "inside"); err != nil {
		return 1, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 1, fmt.Errorf("start again: %w", err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait: %w", err)
		}
		if ended == pid && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		if ended == pid && status.Exited() {
			return status.ExitStatus(), nil
		}
	}
}

// Scratch mounts an empty tmpfs, which may take 90% of the machine's memory,
// and returns its mount point. That is /mnt, which exists on every machine and
// of which the machine sees nothing. Call it once, from inside.
func Scratch() (dir string, err error) {
	const mountPoint = "/mnt"
	if err := unix.Mount("tmpfs", mountPoint, "tmpfs", 0, "mode=755,size=90%,nr_inodes=0"); err != nil {
		return "", fmt.Errorf("mount a tmpfs on %s: %w", mountPoint, err)
	}
	return mountPoint, nil
}

// Ext4 makes an ext4 file system in the file dir.ext4 and mounts it, by loop, on
// dir, which it makes. It takes as much memory as is written to it, at most
// bytes, and has room for the given number of inodes.
func Ext4(dir string, bytes int64, inodes int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	image := dir + ".ext4"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, bytes); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-N", strconv.Itoa(inodes), "-E", "lazy_itable_init=1,lazy_journal_init=1", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", words[0], err, out)
		}
	}
	return nil
}
