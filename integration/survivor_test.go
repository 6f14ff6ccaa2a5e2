package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// snapshot is what a tree has: by path, type, mode, time in ns, and a digest of the
// content. It holds directories, files and symlinks.
type snapshot map[string]string

// add adds an entry; content is that of a file, or the target of a symlink.
func (s snapshot) add(name string, mode fs.FileMode, mtime time.Time, content []byte) {
	s[path.Clean(name)] = fmt.Sprintf("%v %d %x", mode, mtime.UnixNano(), sha256.Sum256(content))
}

// snapshotOf reads a tree. What it has read of files does not stay in the page cache,
// so that a mount is asked again the next time.
func snapshotOf(dir string) (snapshot, error) {
	s := snapshot{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name) // both are absolute
		return s.read(dir, rel)
	})
	return s, err
}

// read adds the file, directory or symlink name of the tree at dir, read as snapshotOf does.
func (s snapshot) read(dir, name string) error {
	full := filepath.Join(dir, name)
	info, err := os.Lstat(full)
	if err != nil {
		return err
	}
	var content []byte
	switch info.Mode().Type() {
	case 0:
		content, err = readUncached(full)
	case fs.ModeSymlink:
		var target string
		target, err = os.Readlink(full)
		content = []byte(target)
	}
	s.add(name, info.Mode(), info.ModTime(), content)
	return err
}

func readUncached(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return b, errors.Join(err, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// snapshotOfTar reads what `mkbackup export` wrote.
func snapshotOfTar(text string) (snapshot, error) {
	s := snapshot{}
	for r := tar.NewReader(strings.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeSymlink {
			content = []byte(h.Linkname)
		}
		s.add(h.Name, h.FileInfo().Mode(), h.ModTime, content)
	}
}

// differences says in what got differs, "" where it does not.
func (s snapshot) differences(got snapshot) string {
	if maps.Equal(s, got) {
		return ""
	}
	var lines []string
	for name := range s {
		if s[name] != got[name] {
			lines = append(lines, fmt.Sprintf("%q: want %q, got %q", name, s[name], got[name]))
		}
	}
	for name := range got {
		if _, ok := s[name]; !ok {
			lines = append(lines, fmt.Sprintf("%q was not there", name))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines[:min(len(lines), 5)], "\n")
}

// survivor is a repository that is attacked, and what must be in it. Each run has a
// time of its own, so the name of a generation is known before the run begins.
type survivor struct {
	*repo
	src   string
	rng   *rand.Rand
	clock time.Time

	mu       sync.Mutex
	want     map[string]snapshot // by generation; since before the run that makes it
	acked    map[string]bool     // the run said that it is there, or it was seen
	dropping map[string]bool     // a forget of it began, and may have succeeded
	gone     map[string]bool     // it was dropped
}

// newSurvivor makes a source, and a repository with a few generations of it below base.
func newSurvivor(t *testing.T, base string, seed uint64) *survivor {
	t.Helper()
	s := &survivor{src: tempDir(t), rng: rand.New(rand.NewPCG(seed, 1)), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		want: map[string]snapshot{}, acked: map[string]bool{}, dropping: map[string]bool{}, gone: map[string]bool{}}
	for i := range 24 {
		s.put(t, i)
	}
	must(t, os.Symlink("d1/f1", filepath.Join(s.src, "link")))
	s.repo = initRepo(t, filepath.Join(base, "repo"), "--part-size", "64KiB")
	for range 3 {
		s.edit()
		s.whole()
	}
	return s
}

// put gives file i of the source another content, of which a third compresses.
func (s *survivor) put(t testing.TB, i int) {
	t.Helper()
	content := treetest.Content(s.rng.Uint64()|1, s.rng.Int64N(20_000))
	if i%3 == 0 {
		content = bytes.Repeat(fmt.Appendf(nil, "line %d of %d\n", i, s.rng.Uint64()), len(content)/16+1)
	}
	write(t, filepath.Join(mkdir(t, s.src, fmt.Sprint("d", i%4)), fmt.Sprint("f", i)), string(content))
}

// edit changes a few files of the source.
func (s *survivor) edit() {
	s.t.Helper()
	for range 1 + s.rng.IntN(6) {
		s.put(s.t, s.rng.IntN(24))
	}
	if gone := s.rng.IntN(24); s.rng.IntN(2) == 0 {
		must(s.t, os.RemoveAll(filepath.Join(s.src, fmt.Sprintf("d%d/f%d", gone%4, gone))))
	}
}

// next returns the name of the generation that the next run will make, and the
// arguments of that run.
func (s *survivor) next() (name string, args []string) {
	s.t.Helper()
	s.clock = s.clock.Add(time.Second)
	name = s.clock.Format("2006-01-02T15-04-05Z")
	tree, err := snapshotOf(s.src)
	must(s.t, err)
	s.mu.Lock()
	s.want[name] = tree
	s.mu.Unlock()
	return name, []string{"-q", "--time", s.clock.Format(time.RFC3339), "--root", s.src, "/"}
}

// drop returns the arguments of a forget that keeps the newest two generations.
func (s *survivor) drop() []string {
	s.t.Helper()
	listed := s.generations()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range listed[:max(len(listed)-2, 0)] {
		s.dropping[name] = true
	}
	return []string{"--keep-last", "2"}
}

func (s *survivor) acknowledge(name string) {
	s.mu.Lock()
	s.acked[name] = true
	s.mu.Unlock()
}

// whole makes a generation undisturbed, after which no work of the dead is left.
func (s *survivor) whole() {
	s.t.Helper()
	name, args := s.next()
	if res := s.mkbackup("create", args...); res.code != 0 {
		s.t.Fatalf("the next run: exit code %d\n%s", res.code, tail(res.stderr))
	}
	s.acknowledge(name)
	s.wantNoDeadWork()
}

// wantNoDeadWork fails the test where something in tmp/ is locked by nobody: its
// writer is dead, and the run that has just ended should have removed it.
func (r *repo) wantNoDeadWork() {
	r.t.Helper()
	waitFor(r.t, 30*time.Second, "tmp/ to hold nothing of the dead", func() bool {
		locks, err := os.ReadFile("/proc/locks")
		must(r.t, err)
		for _, name := range r.glob("tmp/*") {
			var st unix.Stat_t
			if unix.Lstat(lockOf(name), &st) == nil && !strings.Contains(string(locks), fmt.Sprintf(":%d 0 EOF", st.Ino)) {
				return false
			}
		}
		return true
	})
}

// survived fails the test unless everything that was acknowledged is there and
// nothing else but what is complete and right. created is the generation that a run
// was to make that ended with code; "" where it was to make none. It reports whether
// that generation is there. all makes it read every generation, not just a few.
func (s *survivor) survived(what, created string, code int, all bool) bool {
	s.t.Helper()
	listed := s.generations()
	if code == 0 && created != "" {
		s.acknowledge(created)
	}
	s.settleDrop(what, listed)
	for name := range s.acked {
		if slices.Contains(listed, name) == s.gone[name] {
			s.t.Errorf("%s: generation %s is lost, or has come back: dropped %v", what, name, s.gone[name])
		}
	}
	for i, name := range listed {
		if s.want[name] == nil {
			s.t.Errorf("%s: nobody made generation %s", what, name)
			continue
		}
		s.acknowledge(name)
		if !all && i < len(listed)-2 && s.rng.IntN(len(listed)) > 0 {
			continue
		}
		s.wantExported(what, name)
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
	return slices.Contains(listed, created)
}

// settleDrop finds out whether the last forget has dropped its generations. It must be
// all of them, or none, and those stay.
func (s *survivor) settleDrop(what string, listed []string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	there := 0
	for name := range s.dropping {
		if slices.Contains(listed, name) {
			there++
		}
	}
	if there == 0 {
		maps.Copy(s.gone, s.dropping)
	} else if there < len(s.dropping) {
		s.t.Errorf("%s: %d of %d generations were dropped", what, len(s.dropping)-there, len(s.dropping))
	}
	clear(s.dropping)
}

func (s *survivor) wantExported(what, name string) {
	s.t.Helper()
	res := s.mkbackup("export", name)
	if res.code != 0 {
		s.t.Errorf("%s: export %s: exit code %d\n%s", what, name, res.code, tail(res.stderr))
		return
	}
	got, err := snapshotOfTar(res.stdout)
	if err != nil {
		s.t.Errorf("%s: export %s: %v", what, name, err)
	} else if d := s.want[name].differences(got); d != "" {
		s.t.Errorf("%s: generation %s:\n%s", what, name, d)
	}
}

// wantSound fails the test unless a check that reads everything finds nothing.
func (s *survivor) wantSound(what string) {
	s.t.Helper()
	if res := s.mkbackup("check", "--read-data"); res.code != 0 {
		s.t.Fatalf("%s: check --read-data: exit code %d\n%s%s", what, res.code, tail(res.stdout), tail(res.stderr))
	}
}

// wantNoCrash fails the test where a program ended as only a programming error ends it.
func wantNoCrash(t testing.TB, what, stderr string) {
	t.Helper()
	for _, bad := range []string{"panic:", "SIGBUS", "fatal error", "goroutine "} {
		if strings.Contains(stderr, bad) {
			t.Errorf("%s: %.4000s", what, stderr)
			return
		}
	}
}

// copyTo returns a copy of the survivor in an empty directory. They share the source.
func (s *survivor) copyTo(dir string) *survivor {
	s.t.Helper()
	run(s.t, "cp", "-a", s.dir, filepath.Join(dir, "repo"))
	return &survivor{repo: &repo{t: s.t, dir: filepath.Join(dir, "repo")}, src: s.src, rng: s.rng, clock: s.clock,
		want: maps.Clone(s.want), acked: maps.Clone(s.acked), dropping: maps.Clone(s.dropping), gone: maps.Clone(s.gone)}
}

// watcher reads the generations of a survivor in a mount all the time.
type watcher struct {
	*survivor
	m       *fuseMount
	stopped chan struct{}
	ended   sync.WaitGroup

	reading sync.Mutex // held while a tree is read, and while there is no daemon
	trees   int        // see read; with reading
	dying   bool       // the daemon is being killed; with mu
}

// watch starts the reading. What it finds wrong fails the test.
func (s *survivor) watch() *watcher {
	s.t.Helper()
	w := &watcher{survivor: s, m: s.mount("--cache-size", "1MiB"), stopped: make(chan struct{})}
	rng := rand.New(rand.NewPCG(7, 7))
	w.ended.Go(func() {
		for {
			select {
			case <-w.stopped:
				return
			case <-time.After(10 * time.Millisecond): // the commands want to run, too
				w.look(rng)
			}
		}
	})
	s.t.Cleanup(w.stop)
	return w
}

// stop ends the reading.
func (w *watcher) stop() {
	select {
	case <-w.stopped:
	default:
		close(w.stopped)
	}
	w.ended.Wait()
}

// read returns how many trees were read and right, since the start.
func (w *watcher) read() int {
	w.reading.Lock()
	defer w.reading.Unlock()
	return w.trees
}

// look reads a generation of those that the mount shows.
func (w *watcher) look(rng *rand.Rand) {
	w.reading.Lock()
	defer w.reading.Unlock()
	entries, err := os.ReadDir(w.m.dir)
	if err != nil {
		w.failed("the mount", err)
		return
	}
	var shown []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "20") {
			shown = append(shown, e.Name())
		}
	}
	if len(shown) == 0 {
		w.t.Error("the mount shows no generation")
		return
	}
	name := shown[rng.IntN(len(shown))]
	if rng.IntN(2) == 0 {
		name = shown[len(shown)-1]
	}
	got, err := snapshotOf(w.m.path(name))
	if err != nil {
		w.failed(name, err)
		return
	}
	w.mu.Lock()
	want := w.want[name]
	w.mu.Unlock()
	if want == nil {
		w.t.Errorf("the mount shows generation %s, which nobody made", name)
	} else if d := want.differences(got); d != "" {
		w.t.Errorf("generation %s in the mount:\n%s", name, d)
	}
	w.trees++
}

// failed reports an error, unless the daemon was killed or the generation dropped: its
// contents may be gone before the mount notices.
func (w *watcher) failed(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dead := errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	if w.dying && dead || w.dropping[name] || w.gone[name] {
		return
	}
	w.t.Errorf("%s in the mount: %v", name, err)
}

// killDaemon kills the process behind the mount while it is read: umount(8) ends the
// mount, and a new one works.
func (w *watcher) killDaemon() {
	w.t.Helper()
	setDying := func(dying bool) {
		w.mu.Lock()
		w.dying = dying
		w.mu.Unlock()
	}
	setDying(true)
	pids := daemons(w.t, w.m.dir)
	if len(pids) == 0 {
		w.t.Fatal("the daemon is gone")
	}
	for _, pid := range pids {
		must(w.t, unix.Kill(pid, unix.SIGKILL))
	}
	waitFor(w.t, 30*time.Second, "the killed daemon to end", func() bool { return len(daemons(w.t, w.m.dir)) == 0 })
	w.reading.Lock()
	defer w.reading.Unlock()
	run(w.t, "umount", w.m.dir)
	w.m.start(w.repo)
	setDying(false)
}

// killAfter starts a command, kills it after a while, and returns its exit code,
// 128+9 where it was killed.
func killAfter(t *testing.T, cmd *exec.Cmd, delay time.Duration) (code int, stderr string) {
	t.Helper()
	b := &background{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &b.stdout, &b.stderr
	must(t, cmd.Start())
	go func() {
		cmd.Wait() // the state says how it ended
		close(b.done)
	}()
	select {
	case <-b.done:
	case <-time.After(delay):
		cmd.Process.Kill()
	}
	return b.wait(t, commandLimit), b.stderr.String()
}
