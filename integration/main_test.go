// Package integration runs the real programs against real mounts and compares
// them with what rsync, cp, tar, find, getfattr, getfacl and overlayfs see. Its
// tests need root, Linux with FUSE, and the tools in the list below; what is
// missing is a failure, never a skipped test. docs/TESTING.md says what is
// covered where.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/sandbox"
	"golang.org/x/sys/unix"
)

// tools are the programs that the tests use; `make deps` installs them.
var tools = []string{"attr", "chattr", "cp", "dd", "df", "diff", "du", "filefrag", "find", "fusermount3", "getfacl", "getfattr", "ionice", "jq", "ls",
	"mkfs.ext4", "mkfs.xfs", "mount", "prlimit", "rsync", "setfacl", "setpriv", "sh", "sha256sum", "smbclient", "smbd", "stat", "strace", "tail", "tar", "umount", "zstd"}

// dirVariable names the directory of a run.
const dirVariable = "BACKUPFS_INTEGRATION_DIR"

// helperVariable is set in a process that a test starts as another user.
const helperVariable = "BACKUPFS_INTEGRATION_HELPER"

// Set by TestMain in the process that runs the tests, and only read after.
var (
	mkbackup string // path of the program
	backupfs string
	testRoot string // directory for everything that tests make; other users may pass
)

func TestMain(m *testing.M) {
	run := runSandbox
	if os.Getenv(helperVariable) != "" {
		run = func(*testing.M) (int, error) { return runHelper() }
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

// runSandbox runs the tests in a sandbox, with a directory for their files that
// is removed when they end, however they end.
func runSandbox(m *testing.M) (int, error) {
	if sandbox.Outside() {
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
		os.Setenv(dirVariable, dir)
	}
	var err error
	code := sandbox.Main(func() (code int) {
		code, err = runTests(m)
		return code
	})
	return code, err
}

func missingTools() []string {
	return slices.DeleteFunc(slices.Clone(tools), func(tool string) bool {
		_, err := exec.LookPath(tool)
		return err == nil
	})
}

// openFuse gives every user of the sandbox the right to /dev/fuse that udev
// gives them on a usual machine.
func openFuse() error {
	dir := filepath.Join(testRoot, "dev")
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

func runTests(m *testing.M) (int, error) {
	// Tests that call the packages of the programs thousands of times spend half of their
	// time on the collection of buffers otherwise. It holds for this process alone.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(2 << 30)
	testRoot = os.Getenv(dirVariable)
	if err := openFuse(); err != nil {
		return 1, fmt.Errorf("/dev/fuse: %w", err)
	}
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
	// What a killed process leaves of a temporary index is removed with the rest.
	temporary := filepath.Join(testRoot, "tmp")
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return 1, err
	}
	if err := os.Chmod(temporary, 0o777|os.ModeSticky); err != nil {
		return 1, err
	}
	os.Setenv("TMPDIR", temporary)
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
