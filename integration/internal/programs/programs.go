// Package programs runs mkbackup and backupfs for the benchmarks.
package programs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/backupfs/backupfs/internal/measure"
	"golang.org/x/sys/unix"
)

// Programs are the two programs.
type Programs struct {
	dir string
}

// Copy copies the programs from the directory bin into the new directory dir,
// so that no dropped cache makes them slow to start.
func Copy(bin, dir string) (Programs, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Programs{}, err
	}
	for _, name := range []string{"mkbackup", "backupfs"} {
		program, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			return Programs{}, fmt.Errorf("%w: run `make build`", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), program, 0o755); err != nil {
			return Programs{}, err
		}
	}
	return Programs{dir: dir}, nil
}

// Mkbackup runs mkbackup and returns its standard output.
func (p Programs) Mkbackup(args ...string) (measure.Cost, []byte, error) {
	var out bytes.Buffer
	cmd := exec.Command(filepath.Join(p.dir, "mkbackup"), args...)
	cmd.Stdout = &out
	cost, err := measure.Run(cmd)
	return cost, out.Bytes(), err
}

// Mount is a mounted repository.
type Mount struct {
	Dir   string
	PID   int           // of the daemon
	Ready time.Duration // from the start of backupfs until it said that the mount is ready
}

// Mount mounts a repository on dir, which it makes where it is missing.
func (p Programs) Mount(repository, dir string, args ...string) (*Mount, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	cost, err := measure.Run(exec.Command(filepath.Join(p.dir, "backupfs"), append(args, repository, dir)...))
	if err != nil {
		return nil, err
	}
	pid, err := measure.Daemon("backupfs", dir)
	return &Mount{Dir: dir, PID: pid, Ready: cost.Wall}, err
}

// Memory returns what the daemon holds now.
func (m *Mount) Memory() (measure.Memory, error) { return measure.MemoryOf(m.PID) }

// Close unmounts and waits until the daemon has ended.
func (m *Mount) Close() error { return Unmount(m.Dir, m.PID) }

// Unmount takes a mount away and waits, for at most a minute, until the process
// that serves it has ended; pid 0 is the kernel.
func Unmount(dir string, pid int) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	for deadline := time.Now().Add(time.Minute); pid != 0; time.Sleep(time.Millisecond) {
		if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d goes on although %s is unmounted", pid, dir)
		}
	}
	return nil
}
