package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// shutdownRequest is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, _IOR('X', 125, __u32), and
// noLogFlush their flag for a stop that writes nothing any more, the journal included.
const (
	shutdownRequest = 0x8004587D
	noLogFlush      = 2
)

// cutPower stops the file system that dir lies on: what is not on its disk is lost.
func cutPower(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), shutdownRequest, noLogFlush))
}

// disk is a file system in a file, whose power can be cut.
type disk struct {
	t          *testing.T
	image, dir string
}

func newDisk(t *testing.T, mkfs ...string) *disk {
	t.Helper()
	base := tempDir(t)
	d := &disk{t: t, image: filepath.Join(base, "image"), dir: mkdir(t, base, "disk")}
	write(t, d.image, "")
	must(t, os.Truncate(d.image, 512<<20))
	run(t, mkfs[0], append(mkfs[1:], d.image)...)
	mountAt(t, d.dir, "-o", "loop", d.image)
	return d
}

// again takes the file system away and mounts it again: it recovers its journal.
func (d *disk) again() {
	d.t.Helper()
	run(d.t, "umount", d.dir)
	run(d.t, "mount", "-o", "loop", d.image, d.dir)
}

// journaled makes the file systems whose power is cut.
var journaled = [][]string{{"mkfs.ext4", "-q", "-F"}, {"mkfs.xfs", "-q"}}

// TestPowerCut cuts the power of the disk that holds a repository, during commands and
// right after them. What was acknowledged is there when the disk is back.
func TestPowerCut(t *testing.T) {
	for _, mkfs := range journaled {
		t.Run(mkfs[0], func(t *testing.T) { powerCuts(t, newDisk(t, mkfs...), scale(12, 300)/2) })
	}
}

// TestPowerCutBeforeSync cuts the power when the record of a generation has its name,
// but the directory is not synced yet: that must not be acknowledged, whatever the file
// system says. (XFS says of a directory that it is synced after it has shut down.)
func TestPowerCutBeforeSync(t *testing.T) {
	for _, mkfs := range journaled {
		t.Run(mkfs[0], func(t *testing.T) {
			d := newDisk(t, mkfs...)
			s := newSurvivor(t, d.dir, 106)
			s.edit()
			name, args := s.next()
			before := len(s.records())
			cmd := s.command("create", args...)
			const hour = 3_600_000_000 // in microseconds
			b := start(t, exec.Command("strace", append([]string{"-D", "-f", "-qq", "-o", "/dev/null", "-P", filepath.Join(s.dir, "log"), "-e", "trace=fsync",
				"-e", fmt.Sprintf("inject=fsync:delay_enter=%d", hour)}, cmd.Args...)...))
			waitFor(t, commandLimit, "the record", func() bool { return len(s.records()) > before })
			cutPower(t, d.dir)
			must(t, unix.Kill(tracerOf(t, b.cmd.Process.Pid), unix.SIGKILL)) // the sync goes on
			code := b.wait(t, commandLimit)
			if code != 1 {
				t.Errorf("exit code %d\n%s", code, b.stderr.String())
			}
			d.again()
			if s.survived("a cut before the sync", name, code, true) {
				t.Error("the generation is there: the power was not cut before the sync")
			}
			s.whole()
		})
	}
}

// TestDiskStopsBelowMount stops the disk that a mounted repository lies on: of its index,
// which is mapped memory, and its parts there is what is in memory, and no more. The mount
// answers EIO for all else, goes on, and ends as any other.
func TestDiskStopsBelowMount(t *testing.T) {
	for _, mkfs := range journaled {
		t.Run(mkfs[0], func(t *testing.T) {
			d := newDisk(t, mkfs...)
			src := tempDir(t)
			for i := range uint64(2000) { // targets lie in the index, which has many blocks of them
				dir := mkdir(t, src, fmt.Sprint("d", i%20))
				write(t, filepath.Join(dir, fmt.Sprint("f", i)), string(treetest.Content(i+1, 500)))
				must(t, os.Symlink(fmt.Sprintf("%x", treetest.Content(i+1, 1000)), filepath.Join(dir, fmt.Sprint("l", i))))
			}
			want, err := snapshotOf(src)
			must(t, err)
			r := initRepo(t, filepath.Join(d.dir, "repo"), "--part-size", "64KiB")
			generation := r.all(src).Generation
			m := r.mount()
			root := m.at(generation)
			must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
			cutPower(t, d.dir)

			read, failed := 0, map[fs.FileMode]int{}
			must(t, filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
				rel, got := "."+name[len(root):], snapshot{}
				if err == nil {
					err = got.read(root, rel)
				}
				switch rel = filepath.Clean(rel); {
				case errors.Is(err, unix.EIO):
					failed[entry.Type()]++
				case err == nil && got[rel] != want[rel]:
					t.Errorf("%q is %q, want %q", rel, got[rel], want[rel])
				case err == nil:
					read++
				default:
					return err
				}
				return nil
			}))
			t.Logf("%d of %d were read right, EIO was the answer of %d files and %d symlinks", read, len(want), failed[0], failed[fs.ModeSymlink])
			if failed[0] == 0 || failed[fs.ModeSymlink] == 0 && mkfs[0] == "mkfs.xfs" { // ext4 goes on to read for mapped memory
				t.Error("the disk was not stopped")
			}
			if n := len(daemons(t, m.dir)); n != 1 {
				t.Errorf("%d daemons", n)
			}
			m.stop()

			d.again()
			m = r.mount()
			again, err := snapshotOf(m.at(generation))
			must(t, err)
			if difference := want.differences(again); difference != "" {
				t.Error(difference)
			}
			m.stop()
		})
	}
}

// tracerOf returns the process that traces one.
func tracerOf(t *testing.T, pid int) (tracer int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, field, _ := strings.Cut(string(status), "\nTracerPid:")
	_, err = fmt.Sscan(field, &tracer)
	must(t, err)
	return tracer
}

func powerCuts(t *testing.T, d *disk, cuts int) {
	s := newSurvivor(t, d.dir, 105)
	kinds := kinds()
	took := map[string]time.Duration{}
	during, committed := 0, 0
	for cut := 1; cut <= cuts || during < (cuts+1)/2; cut++ {
		if cut > 10*cuts {
			t.Fatalf("only %d of %d cuts were during a run", during, cut)
		}
		kind := kinds[cut%len(kinds)]
		s.edit()
		name, args := kind.prepare(s)
		what := fmt.Sprintf("cut %d, of %s", cut, kind.command)
		delay := commandLimit // the first of each kind is measured, and the power cut behind it
		if took[kind.command] > 0 {
			delay = time.Duration(rand.Int64N(int64(took[kind.command])))
		}
		began := time.Now()
		b := start(t, s.command(kind.command, args...))
		select {
		case <-b.done:
			took[kind.command] = time.Since(began)
		case <-time.After(delay):
			during++
		}
		cutPower(t, d.dir)
		code := b.wait(t, commandLimit)
		wantNoCrash(t, what, b.stderr.String())
		d.again()
		if s.survived(what, name, code, cut >= cuts || kind.command == "compact") && code != 0 {
			committed++
		}
		s.wantSound(what)
		s.whole()
	}
	t.Logf("%d cuts or more, %d of them during a run; %d runs that failed had committed a generation", cuts, during, committed)
}
