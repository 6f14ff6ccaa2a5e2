package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/measure"
	"github.com/backupfs/backupfs/internal/sandbox"
	"golang.org/x/sys/unix"
)

// beMain makes the test binary be the program.
const beMain = "BACKUPFS_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		main()
	}
	os.Exit(sandbox.Tests(m))
}

// program returns a command that runs the program.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), beMain+"=1")
	return cmd
}

// newRepo makes a repository with a generation of files of so many bytes.
func newRepo(t *testing.T, files, size int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	r, err := archive.Init(dir, archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	record, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer record.Discard()
	packer := archive.NewPacker(r.Store(), archive.PackerOptions{}, record.AddPart)
	add := func(path string, a archive.Attr, data ...archive.Extent) {
		a.Nlink = 1
		if err := record.Add(archive.Line{Entry: &archive.Entry{Path: path, Attr: a, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	add(".", archive.Attr{Type: archive.TypeDir, Mode: 0o755})
	rng := rand.NewChaCha8([32]byte{1})
	for i := range files {
		content := make([]byte, size)
		rng.Read(content)
		h := archive.HashOf(content)
		if err := packer.Add(archive.Member{Name: "f"}, h, content); err != nil {
			t.Fatal(err)
		}
		add(fmt.Sprintf("f%04d", i), archive.Attr{Type: archive.TypeFile, Mode: 0o644, Size: int64(size)},
			archive.Extent{Len: int64(size), Hash: h})
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	if _, _, err := record.Commit(archive.Header{Kind: archive.KindGeneration, Number: 1, Time: when, Name: when.Format(archive.GenerationTimeFormat)}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// foreground runs the program until the test ends, with the repository
// mounted, and returns where, and its process.
func foreground(t *testing.T, repo string, args ...string) (mnt string, process *os.Process) {
	t.Helper()
	mnt = t.TempDir()
	b := beside(t, program(t, append(append([]string{"-f"}, args...), repo, mnt)...), mnt)
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
			b.Process.Kill()
		}
		if err := b.Wait(); err != nil || b.stderr.Len() > 0 {
			t.Errorf("it ended with %v and said %q", err, b.stderr.String())
		}
	})
	return mnt, b.Process
}

func waitMounted(t *testing.T, mnt string) {
	t.Helper()
	for start := time.Now(); !isMounted(mnt); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("it is not mounted after 10 s")
		}
	}
}

func isMounted(mnt string) bool {
	_, err := os.Lstat(mnt + "/latest")
	return err == nil
}

// background is the program in the foreground, beside the test, which ends it.
type background struct {
	*exec.Cmd
	stderr bytes.Buffer
}

// beside starts a command that mounts at mnt.
func beside(t *testing.T, cmd *exec.Cmd, mnt string) *background {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	b := &background{Cmd: cmd}
	b.Stderr = &b.stderr
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // if the test did not
		b.Process.Kill()
		unix.Unmount(mnt, unix.MNT_DETACH)
	})
	waitMounted(t, mnt)
	return b
}

// wantEnd waits for the end, and checks the exit code and that nothing is mounted.
func (b *background) wantEnd(t *testing.T, mnt string, code int) {
	t.Helper()
	_ = b.Wait() // its exit code is what counts
	if got := b.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d: %s", got, code, b.stderr.String())
	}
	if list, err := os.ReadDir(mnt); err != nil || len(list) > 0 {
		t.Errorf("at the mount point: %v, %v", list, err)
	}
}

// TestBusyStop: as long as a mount lives on that somebody uses, an index may be on its way
// into the repository, of which nothing is taken away. The next writer does.
func TestBusyStop(t *testing.T) {
	repo, mnt := newRepo(t, 1, 1), t.TempDir()
	b := beside(t, program(t, "-f", repo, mnt), mnt)
	f, err := os.Open(mnt + "/latest/f0000")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b.Process.Signal(unix.SIGTERM)
	b.wantEnd(t, mnt, 0)
	if !strings.Contains(b.stderr.String(), "was busy") {
		t.Errorf("it said %q", b.stderr.String())
	}
	unpublished := func() []string {
		list, err := filepath.Glob(repo + "/tmp/*")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if left := unpublished(); len(left) != 2 {
		t.Errorf("tmp holds %q, want a writer directory and its lock", left)
	}
	next, err := archive.Open(repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.TempDir("x"); err != nil {
		t.Error(err)
	}
	next.Close()
	if left := unpublished(); len(left) > 0 {
		t.Errorf("tmp holds %q behind the next writer", left)
	}
}

// TestForcedUnmount: where a mount is in use, `umount -f` ends no more than its connection.
// What is left of it must not stay there in silence, also where the mount point was given by
// a symlink.
func TestForcedUnmount(t *testing.T) {
	repo, link := newRepo(t, 1, 1), filepath.Join(t.TempDir(), "link")
	for _, c := range []struct{ busy, linked bool }{{false, false}, {true, false}, {true, true}} {
		mnt, busy := t.TempDir(), c.busy
		given := mnt
		if c.linked {
			given = link
			if err := os.Symlink(mnt, link); err != nil {
				t.Fatal(err)
			}
		}
		b := beside(t, program(t, "-f", repo, given), mnt)
		if busy {
			f, err := os.Open(mnt + "/latest/f0000")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		err := unix.Unmount(mnt, unix.MNT_FORCE)
		if busy && err == nil {
			t.Error("it was unmounted in use")
		}
		if err == nil { // it may be in use for a moment by what has just looked at it
			b.wantEnd(t, mnt, 0)
			continue
		}
		b.wantEnd(t, mnt, exitFailed)
		if text := b.stderr.String(); !strings.Contains(text, "aborted") {
			t.Errorf("it said %q", text)
		}
	}
}

// TestIgnoresWhatItsCallerDoes: nohup(1), and a shell that starts a job in the background of
// a script, keep a mount from ending with them.
func TestIgnoresWhatItsCallerDoes(t *testing.T) {
	repo, mnt := newRepo(t, 1, 1), t.TempDir()
	backupfs := program(t, "-f", repo, mnt)
	cmd := exec.Command("sh", append([]string{"-c", `trap "" HUP INT; exec "$0" "$@"`}, backupfs.Args...)...)
	cmd.Env = backupfs.Env
	b := beside(t, cmd, mnt)
	for _, signal := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		b.Process.Signal(signal)
		time.Sleep(200 * time.Millisecond) // it is heard
		if !isMounted(mnt) {
			t.Fatalf("%v ends it", signal)
		}
	}
	b.Process.Signal(unix.SIGTERM)
	b.wantEnd(t, mnt, 0)
}

// anonymous returns the anonymous memory of a process in MiB.
func anonymous(t *testing.T, pid int) int {
	m, err := measure.MemoryOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return int(m.Anonymous >> 20)
}

// withRaceDetector reports whether the program takes the memory of the race
// detector, several times its own.
func withRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func TestMemoryIsBounded(t *testing.T) {
	if withRaceDetector() {
		t.Skip("the race detector takes more memory")
	}
	const files, size, cache = 64, 2 << 20, 16
	repo := newRepo(t, files, size)
	mnt, process := foreground(t, repo, "--cache-size", fmt.Sprintf("%dM", cache))
	var readers sync.WaitGroup
	for seed := range 8 {
		readers.Go(func() {
			for _, i := range rand.New(rand.NewPCG(uint64(seed), 0)).Perm(files) {
				readAll(t, fmt.Sprintf("%s/latest/f%04d", mnt, i), size)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		readers.Wait()
		close(done)
	}()
	most := 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(10 * time.Millisecond):
			_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0) // read them all from the program
		}
		most = max(most, anonymous(t, process.Pid))
	}
	t.Logf("at most %d MiB with a cache of %d MiB", most, cache)
	if most > cache+64 {
		t.Errorf("%d MiB of memory with a cache of %d MiB", most, cache)
	}
}

func readAll(t *testing.T, path string, size int64) {
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if n, err := io.Copy(io.Discard, f); n != size || err != nil {
		t.Errorf("%s: %d bytes, %v", path, n, err)
	}
}

// TestNobodyReads: a mount whose messages nobody reads any more lives on.
func TestNobodyReads(t *testing.T) {
	repo, mnt := newRepo(t, 1, 100), t.TempDir()
	parts, err := filepath.Glob(repo + "/parts/*/*")
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	if err := os.Remove(parts[0]); err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "--foreground", repo, mnt)
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(mnt, unix.MNT_DETACH)
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
	write.Close()
	read.Close()
	waitMounted(t, mnt)
	for range 3 { // a message each
		if _, err := os.ReadFile(mnt + "/latest/f0000"); !errors.Is(err, unix.EIO) {
			t.Error(err)
		}
	}
}

// TestKeepsNothingOpen: a mount in the background does not hold what its caller had open.
func TestKeepsNothingOpen(t *testing.T) {
	repo, mnt := newRepo(t, 1, 100), t.TempDir()
	lock := filepath.Join(t.TempDir(), "lock")
	backupfs := program(t, repo, mnt)
	cmd := exec.Command("sh", append([]string{"-c", `exec 9>"$0" && flock -n 9 && exec "$@"`, lock}, backupfs.Args...)...)
	cmd.Env = backupfs.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer unix.Unmount(mnt, 0)
	if out, err := exec.Command("flock", "-n", lock, "true").CombinedOutput(); err != nil {
		t.Errorf("the lock is held: %v %s", err, out)
	}
}

func TestExitCodes(t *testing.T) {
	repo, dir := newRepo(t, 1, 1), t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{repo}, exitUsage, "two arguments"},
		{[]string{"--bogus", repo, dir}, exitUsage, "--bogus"},
		{[]string{"-o", "bogus", repo, dir}, exitUsage, `"bogus"`},
		{[]string{filepath.Join(dir, "nothing"), dir}, exitFailed, "no repository"},
		{[]string{repo, filepath.Join(dir, "nothing")}, exitFailed, "no such file"},
		{[]string{"-f", repo, filepath.Join(dir, "nothing")}, exitFailed, "no such file"},
		{[]string{"--source", "web1", repo, dir}, exitFailed, `"web1"`},
		{[]string{"--generation", "2025-01-01", repo, dir}, exitFailed, `"2025-01-01"`},
		{[]string{repo, repo}, exitFailed, "hide the repository"},
	} {
		cmd := program(t, c.args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // its exit code is what counts
		text := stderr.String()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(text, c.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q; want %d and %q", c.args, code, text, c.code, c.want)
		}
	}
}

// A process that leaves a terminal or a pipe to its caller would keep it waiting.
func TestBackgroundLetsGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	repo, mnt := newRepo(t, 1, 1), t.TempDir()
	relative, err := filepath.Rel(filepath.Dir(repo), mnt)
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, filepath.Base(repo), relative)
	cmd.Dir = filepath.Dir(repo)
	out, err := cmd.CombinedOutput() // ends when the last descriptor of the pipe is closed
	if err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
			unix.Unmount(mnt, unix.MNT_DETACH)
		}
	}()
	readAll(t, mnt+"/latest/f0000", 1)
}
