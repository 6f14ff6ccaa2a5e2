package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/backupfs/backupfs/integration/internal/programs"
	"github.com/backupfs/backupfs/internal/measure"
)

// mount is a mounted backup.
type mount struct {
	tree  string // where in it the files of the source are
	pids  []int  // of the daemon; none where it is the kernel
	close func() error
}

// contestant runs one of the things that are compared, once.
type contestant = func() (measure.Cost, error)

// opener mounts something that was not mounted: nothing of it is in a cache of
// the kernel or of a daemon.
type opener func() (*mount, error)

// openBackupfs returns an opener of the newest generation of a source; "" is the
// unnamed one, the tree.
func (b *bench) openBackupfs(source string) opener {
	return func() (*mount, error) {
		m, err := b.product.Mount(b.repository(), b.path("backupfs"))
		if err != nil {
			return nil, err
		}
		return &mount{tree: filepath.Join(m.Dir, source, "latest"), pids: []int{m.PID}, close: m.Close}, nil
	}
}

// openSquashfs mounts the image of the tree by the kernel.
func (b *bench) openSquashfs() (*mount, error) {
	return b.openImage("kernel-squashfs", "", "mount", "-t", "squashfs", "-o", "loop,ro")
}

// openSquashfuse mounts the same image by squashfuse.
func (b *bench) openSquashfuse() (*mount, error) {
	return b.openImage("squashfuse", "squashfuse", "squashfuse")
}

// openImage mounts the squashfs on the directory name by a command that ends
// when that is done, and leaves behind the named daemon, or none.
func (b *bench) openImage(name, daemon string, words ...string) (*mount, error) {
	dir := b.path(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := measure.Run(exec.Command(words[0], append(words[1:], b.path("squashfs"), dir)...)); err != nil {
		return nil, err
	}
	m := &mount{tree: dir, close: func() error { return programs.Unmount(dir, 0) }}
	if daemon == "" {
		return m, nil
	}
	pid, err := measure.Daemon(daemon, dir)
	m.pids = []int{pid}
	m.close = func() error { return programs.Unmount(dir, pid) }
	return m, err
}

// openRestic returns an opener of the newest snapshot of what was at src, by
// restic's mount, which stays in the foreground.
func (b *bench) openRestic(repository, src string) opener {
	return func() (*mount, error) {
		dir := b.path("restic-mount")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		cmd := exec.Command("restic", "-q", "-r", repository, "mount", dir)
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("restic mount: %w", err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		m := &mount{tree: filepath.Join(dir, "snapshots/latest", src), pids: []int{cmd.Process.Pid}}
		m.close = func() error {
			if err := programs.Unmount(dir, 0); err != nil {
				return err
			}
			return <-ended
		}
		return m, appears(m.tree, ended)
	}
}

// appears waits, for at most a minute, until there is something at path.
func appears(path string, ended <-chan error) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the mount ended: %w", err)
		default:
		}
	}
	return fmt.Errorf("%s does not appear", path)
}

// open mounts, drops the caches of the machine, and hands the mount to use.
func open(opener opener, use func(*mount) error) error {
	m, err := opener()
	if err != nil {
		return err
	}
	if err = measure.DropCaches(); err == nil {
		err = use(m)
	}
	return errors.Join(err, m.close())
}

// reading is what a script of bash does with the directory $1; $2 is an empty
// directory on a tmpfs that it may fill, and which is emptied after it.
type reading struct {
	b      *bench
	script string
	work   *string // what it did the first time; every other time it must have done the same
}

func (b *bench) reading(script string) reading { return reading{b, script, new(string)} }

// run runs the script on a directory. The programs that it calls are warm,
// because it has run on the tiny directory before.
func (r reading) run(dir string, pids ...int) (measure.Cost, error) {
	if _, _, err := r.once(r.b.path(tiny)); err != nil {
		return measure.Cost{}, err
	}
	cost, work, err := r.once(dir, pids...)
	if err != nil {
		return cost, err
	}
	return cost, r.did(work, dir)
}

// once returns what the script took, and its work: what it printed, a number of
// lines or bytes that it read, and the bytes of the files that it made.
func (r reading) once(dir string, pids ...int) (measure.Cost, string, error) {
	var printed bytes.Buffer
	cmd := measure.Shell(r.script, dir, r.b.path("to"))
	cmd.Stdout = &printed
	cost, err := measure.Run(cmd, pids...)
	if err != nil {
		return cost, "", err
	}
	made, err := r.b.empty()
	return cost, fmt.Sprintf("%s read, %d written", strings.TrimSpace(printed.String()), made), err
}

// did compares the work done on dir with that of before.
func (r reading) did(work, dir string) error {
	if *r.work == "" {
		*r.work = work
	}
	if *r.work != work {
		return fmt.Errorf("%s: %s: %s, elsewhere %s", r.script, dir, work, *r.work)
	}
	return nil
}

// empty removes everything that a script has put into its second argument, and
// returns how many bytes that was.
func (b *bench) empty() (int64, error) {
	made, err := measure.DiskUse(b.path("to"))
	return made, errors.Join(err, os.RemoveAll(b.path("to")), os.Mkdir(b.path("to"), 0o755))
}

// cold returns a contestant: the script on a cold mount.
func (r reading) cold(opener opener) contestant {
	return func() (cost measure.Cost, err error) {
		err = open(opener, func(m *mount) error {
			cost, err = r.run(m.tree, m.pids...)
			return err
		})
		return cost, err
	}
}

// coldAndAgain is cold, and adds to again what the script takes the second time.
func (r reading) coldAndAgain(opener opener, again *[]measure.Cost) contestant {
	return func() (cost measure.Cost, err error) {
		err = open(opener, func(m *mount) error {
			if cost, err = r.run(m.tree, m.pids...); err != nil {
				return err
			}
			second, err := r.run(m.tree, m.pids...)
			*again = append(*again, second)
			return err
		})
		return cost, err
	}
}

// warm returns a contestant: the script on a directory that it has just read.
func (r reading) warm(dir string) contestant {
	return func() (measure.Cost, error) {
		if _, err := r.run(dir); err != nil {
			return measure.Cost{}, err
		}
		return r.run(dir)
	}
}

// dropped returns a contestant: the script on a directory of a tmpfs, which
// stays, after the caches are dropped.
func (r reading) dropped(dir string) contestant {
	return func() (measure.Cost, error) {
		if err := measure.DropCaches(); err != nil {
			return measure.Cost{}, err
		}
		return r.run(dir)
	}
}
