package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// commandLimit is the time after which a command is taken to hang.
const commandLimit = 4 * time.Minute

// result is how a command ended.
type result struct {
	code   int // exit code; 128+n after signal n
	stdout string
	stderr string
	usage  *syscall.Rusage
	trace  string // what strace wrote, where the test let it
}

// runCmd runs a command to its end. It fails the test only where the command
// cannot be started or hangs.
func runCmd(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	timer := time.AfterFunc(commandLimit, func() { cmd.Process.Signal(syscall.SIGQUIT) })
	err := cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%s: not done after %v\n%s", cmd, commandLimit, stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	r := result{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	r.usage, _ = cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		r.code = 128 + int(status.Signal())
	}
	return r
}

// run runs a program that must end with exit code 0 and returns its output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := runCmd(t, exec.Command(name, args...))
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, tail(r.stdout), tail(r.stderr))
	}
	return r.stdout
}

// shell runs a script of sh with arguments $1 and so on.
func shell(t testing.TB, script string, args ...string) string {
	t.Helper()
	return run(t, "sh", append([]string{"-euc", script, "sh"}, args...)...)
}

func tail(s string) string {
	if len(s) > 4000 {
		return "…" + s[len(s)-4000:]
	}
	return s
}

// must fails the test on an error of the test's own making.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempDir is t.TempDir, but other users may pass through it and it lies where
// the sandbox removes it even after a crash.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(testRoot, strings.Map(safeRune, t.Name())+"-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func safeRune(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
		return r
	}
	return '-'
}

// mkdir makes a directory below dir and returns its path.
func mkdir(t testing.TB, parts ...string) string {
	t.Helper()
	p := filepath.Join(parts...)
	must(t, os.MkdirAll(p, 0o755))
	return p
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// mountAt mounts a file system until the test ends or unmounts it.
func mountAt(t testing.TB, dir string, args ...string) {
	t.Helper()
	run(t, "mount", append(args, dir)...)
	t.Cleanup(func() {
		if !isMounted(t, dir) {
			return
		}
		err := unix.Unmount(dir, 0)
		// A process that ended a moment ago may not have let go of its program.
		for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = unix.Unmount(dir, 0) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("umount %s: %v", dir, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

// imageDir mounts a new ext4 in a file that holds what the machine's own file
// system may not: xattr values of 64 KiB, times up to 2446, symlinks of 4,095
// bytes. It returns its mount point.
func imageDir(t testing.TB) string {
	t.Helper()
	base := tempDir(t)
	image := filepath.Join(base, "image")
	write(t, image, "")
	must(t, os.Truncate(image, 20<<30))
	run(t, "mkfs.ext4", "-q", "-F", "-O", "ea_inode", "-I", "256", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
	dir := mkdir(t, base, "mounted")
	mountAt(t, dir, "-o", "loop,user_xattr,acl", image)
	return dir
}

// tmpfs mounts a tmpfs of the given size and returns its mount point.
func tmpfs(t testing.TB, size int64) string {
	t.Helper()
	dir := tempDir(t)
	mountAt(t, dir, "-t", "tmpfs", "-o", "mode=755,size="+strconv.FormatInt(size, 10), "tmpfs")
	return dir
}

// createTree makes the nodes below dir.
func createTree(t testing.TB, dir string, nodes []treetest.Node) {
	t.Helper()
	must(t, treetest.Create(dir, nodes))
}

func readTree(t testing.TB, dir string) *treetest.Tree {
	t.Helper()
	tree, err := treetest.Read(dir)
	must(t, err)
	return tree
}

// wantTree fails the test unless the tree at dir equals want.
func wantTree(t testing.TB, what string, want *treetest.Tree, dir string, o treetest.Options) {
	t.Helper()
	wantEqual(t, what, want, readTree(t, dir), o)
}

func wantEqual(t testing.TB, what string, want, got *treetest.Tree, o treetest.Options) {
	t.Helper()
	d := treetest.Diff(want, got, o)
	for _, line := range d[:min(len(d), 30)] {
		t.Errorf("%s: %s", what, line)
	}
	if len(d) > 30 {
		t.Errorf("%s: and %d more differences", what, len(d)-30)
	}
}

// wantSameByRsync fails the test unless rsync finds nothing to do, in both
// directions, with contents, owners, ACLs, xattrs and hard links compared.
func wantSameByRsync(t testing.TB, a, b string, more ...string) {
	t.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		args := append([]string{"-aAXHn", "--checksum", "--delete", "--itemize-changes"}, more...)
		r := runCmd(t, exec.Command("rsync", append(args, pair[0]+"/", pair[1]+"/")...))
		if r.code != 0 || r.stdout != "" || r.stderr != "" {
			t.Errorf("rsync %s to %s: exit code %d\n%s%s", pair[0], pair[1], r.code, tail(r.stdout), tail(r.stderr))
		}
	}
}

// summary is the JSON that `create --json` prints.
type summary struct {
	Generation  string  `json:"generation"`
	Number      uint64  `json:"number"`
	Files       int64   `json:"files"`
	Dirs        int64   `json:"dirs"`
	New         int64   `json:"new"`
	Changed     int64   `json:"changed"`
	Unchanged   int64   `json:"unchanged"`
	Gone        int64   `json:"gone"`
	Excluded    int64   `json:"excluded"`
	Errors      int64   `json:"errors"`
	RawBytes    int64   `json:"raw_bytes"`
	ReadBytes   int64   `json:"read_bytes"`
	StoredBytes int64   `json:"stored_bytes"`
	Parts       int64   `json:"parts"`
	Missing     int64   `json:"missing_parts"`
	LostRecords int64   `json:"lost_records"`
	Seconds     float64 `json:"seconds"`
}

// repo is a repository of a test.
type repo struct {
	t    testing.TB
	dir  string
	user []string // words before the command, to run it as somebody else
}

// newRepo makes a repository. When the test ends, after its mounts are gone,
// `mkbackup check` must find nothing wrong with it, every part must have the
// SHA-256 that its name says, and zstd must accept it.
func newRepo(t testing.TB, initArgs ...string) *repo {
	t.Helper()
	return initRepo(t, filepath.Join(tempDir(t), "repo"), initArgs...)
}

func initRepo(t testing.TB, dir string, initArgs ...string) *repo {
	t.Helper()
	r := &repo{t: t, dir: dir}
	run(t, mkbackup, append([]string{"init", dir}, initArgs...)...)
	t.Cleanup(r.verify)
	return r
}

// verify checks the whole repository with our program and with stock tools.
func (r *repo) verify() {
	r.t.Helper()
	if _, err := os.Lstat(r.dir); errors.Is(err, fs.ErrNotExist) {
		return // the test took it away
	}
	if c := r.mkbackup("check"); c.code != 0 {
		r.t.Errorf("check: exit code %d\n%s%s", c.code, tail(c.stdout), tail(c.stderr))
	}
	parts := r.parts()
	if len(parts) == 0 {
		return
	}
	out := runCmd(r.t, exec.Command("sha256sum", append([]string{"--"}, parts...)...))
	for _, line := range strings.Split(strings.TrimSpace(out.stdout), "\n") {
		sum, path, _ := strings.Cut(line, "  ")
		if filepath.Base(path) != sum+".tar.zst" {
			r.t.Errorf("part %s has the SHA-256 %s", path, sum)
		}
	}
	if z := runCmd(r.t, exec.Command("zstd", append([]string{"-tq", "--"}, parts...)...)); z.code != 0 {
		r.t.Errorf("zstd -t: %s", z.stderr)
	}
}

// on returns the repository for a subtest, whose failures it reports.
func (r *repo) on(t testing.TB) *repo { return &repo{t: t, dir: r.dir, user: r.user} }

// mkbackup runs `mkbackup COMMAND REPO args`.
func (r *repo) mkbackup(command string, args ...string) result {
	r.t.Helper()
	return runCmd(r.t, r.command(command, args...))
}

func (r *repo) command(command string, args ...string) *exec.Cmd {
	words := append(append([]string{}, r.user...), mkbackup, command, r.dir)
	words = append(words, args...)
	return exec.Command(words[0], words[1:]...)
}

// create makes a generation and wants exit code 0.
func (r *repo) create(args ...string) summary {
	r.t.Helper()
	s, res := r.createExit(0, args...)
	if s.Errors != 0 {
		r.t.Fatalf("create %q: %d errors\n%s", args, s.Errors, res.stderr)
	}
	return s
}

// createExit makes a generation and wants the given exit code. The summary is
// that of the last line of standard output, where there is one.
func (r *repo) createExit(code int, args ...string) (summary, result) {
	r.t.Helper()
	res := r.mkbackup("create", append([]string{"--json"}, args...)...)
	if res.code != code {
		r.t.Fatalf("create %q: exit code %d, want %d\n%s%s", args, res.code, code, tail(res.stdout), tail(res.stderr))
	}
	var s summary
	if code == 0 || code == 3 || code == 4 {
		s = parseSummary(r.t, res.stdout)
	}
	return s, res
}

func parseSummary(t testing.TB, stdout string) summary {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var s summary
	d := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		t.Fatalf("summary %q: %v", lines[len(lines)-1], err)
	}
	return s
}

// all makes a generation of the whole tree at dir, as if dir were /.
func (r *repo) all(dir string, args ...string) summary {
	r.t.Helper()
	return r.create(append([]string{"--root", dir, "/"}, args...)...)
}

// records returns the paths of the log records in order.
func (r *repo) records() []string { return r.glob("log/*.jsonl.zst") }

// parts returns the paths of the parts in order.
func (r *repo) parts() []string { return r.glob("parts/*/*") }

func (r *repo) glob(pattern string) []string {
	r.t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.dir, pattern))
	must(r.t, err)
	sort.Strings(paths)
	return paths
}

// partBytes is the stored size of all parts.
func (r *repo) partBytes() int64 {
	var sum int64
	for _, p := range r.parts() {
		sum += fileSize(r.t, p)
	}
	return sum
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	return st.Size()
}

// wantNoLeftovers fails the test when unpublished work lies in the repository
// that no living process holds: a mount that had to add to the index keeps its
// writer directory until it ends.
func (r *repo) wantNoLeftovers() {
	r.t.Helper()
	for _, left := range r.glob("tmp/*") {
		f, err := os.Open(lockOf(left))
		must(r.t, err)
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			r.t.Errorf("left behind: %s", left)
		}
		f.Close()
	}
}

// lockOf returns the file whose lock keeps a thing in tmp/: the one beside a writer
// directory, or else the thing itself.
func lockOf(name string) string {
	if _, err := os.Lstat(name + ".lock"); err == nil {
		return name + ".lock"
	}
	return name
}

// fuseMount is a repository mounted by the real program.
type fuseMount struct {
	t   testing.TB
	dir string
}

// mount mounts the repository in the background with the given flags, until
// the test ends.
func (r *repo) mount(args ...string) *fuseMount {
	r.t.Helper()
	m := &fuseMount{t: r.t, dir: mkdir(r.t, tempDir(r.t), "mnt")}
	m.start(r, args...)
	r.t.Cleanup(m.stop)
	return m
}

func (m *fuseMount) start(r *repo, args ...string) {
	m.t.Helper()
	words := append(append([]string{}, r.user...), backupfs)
	words = append(append(words, args...), r.dir, m.dir)
	res := runCmd(m.t, exec.Command(words[0], words[1:]...))
	if res.code != 0 {
		m.t.Fatalf("%s: exit code %d\n%s%s", words, res.code, res.stdout, res.stderr)
	}
	if !isMounted(m.t, m.dir) {
		m.t.Fatalf("%s: exit code 0, but nothing is mounted at %s", words, m.dir)
	}
}

// stop unmounts and waits for the daemon to end.
func (m *fuseMount) stop() {
	m.t.Helper()
	if isMounted(m.t, m.dir) {
		if err := unix.Unmount(m.dir, 0); err != nil {
			m.t.Errorf("umount %s: %v", m.dir, err)
			unix.Unmount(m.dir, unix.MNT_DETACH)
			for _, pid := range daemons(m.t, m.dir) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	waitFor(m.t, 10*time.Second, "the daemon of "+m.dir+" to end", func() bool { return len(daemons(m.t, m.dir)) == 0 })
}

// path returns a path in the mount.
func (m *fuseMount) path(parts ...string) string {
	return filepath.Join(append([]string{m.dir}, parts...)...)
}

// at returns a path in a generation, which may have been made a moment ago. How soon
// the mount must show it on a machine with nothing else to do, TestNewGenerationsAppear says.
func (m *fuseMount) at(generation string, parts ...string) string {
	m.t.Helper()
	root := m.path(generation)
	waitFor(m.t, 30*time.Second, root, func() bool { _, err := os.Lstat(root); return err == nil })
	return filepath.Join(append([]string{root}, parts...)...)
}

// mountInfo returns the lines of /proc/self/mountinfo about dir.
func mountInfo(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var lines []string
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 5 && f[4] == dir {
			lines = append(lines, line)
		}
	}
	return lines
}

func isMounted(t testing.TB, dir string) bool {
	t.Helper()
	return len(mountInfo(t, dir)) > 0
}

// daemons returns the processes of backupfs that serve dir.
func daemons(t testing.TB, dir string) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	var pids []int
	for _, p := range paths {
		exe, err := os.Readlink(p + "/exe")
		if err != nil || filepath.Base(exe) != "backupfs" {
			continue
		}
		line, err := os.ReadFile(p + "/cmdline")
		if err == nil && strings.Contains(string(line)+"\x00", "\x00"+dir+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(p))
			must(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// waitFor polls until done is true and fails the test after the limit.
func waitFor(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}

// start starts a command that the test ends by itself; it is killed when the
// test forgets to.
func start(t testing.TB, cmd *exec.Cmd) *background {
	t.Helper()
	b := &background{cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &b.stdout
	}
	cmd.Stderr = &b.stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	go func() {
		cmd.Wait() // the state says how it ended
		close(b.done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-b.done
	})
	return b
}

// background is a command that runs beside the test.
type background struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer // to be read after wait
	done           chan struct{}
}

// wait waits for the end and returns the exit code, 128+n after signal n.
func (b *background) wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	select {
	case <-b.done:
	case <-ctx.Done():
		b.cmd.Process.Signal(syscall.SIGQUIT)
		<-b.done
		t.Fatalf("%s: not done after %v\n%s", b.cmd, limit, tail(b.stderr.String()))
	}
	if status := b.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return b.cmd.ProcessState.ExitCode()
}

// generations returns the names that `mkbackup list` gives, oldest first.
func (r *repo) generations(args ...string) []string {
	r.t.Helper()
	res := r.mkbackup("list", append([]string{"--json"}, args...)...)
	if res.code != 0 {
		r.t.Fatalf("list: exit code %d\n%s", res.code, res.stderr)
	}
	var names []string
	for d := json.NewDecoder(strings.NewReader(res.stdout)); d.More(); {
		var v any
		must(r.t, d.Decode(&v))
		names = append(names, namesIn(v)...)
	}
	return names
}

// namesIn finds the names of generations in a list, or in one object of a
// stream of objects.
func namesIn(v any) []string {
	switch v := v.(type) {
	case []any:
		var names []string
		for _, e := range v {
			names = append(names, namesIn(e)...)
		}
		return names
	case map[string]any:
		for _, key := range []string{"generation", "name"} {
			if name, ok := v[key].(string); ok {
				return []string{name}
			}
		}
	}
	return nil
}

// wantOneLine fails the test unless message is a single line that names what.
func wantOneLine(t testing.TB, message string, what ...string) {
	t.Helper()
	if n := strings.Count(strings.TrimSpace(message), "\n") + 1; n != 1 || strings.TrimSpace(message) == "" {
		t.Errorf("want one line, got %d:\n%s", n, message)
	}
	for _, w := range what {
		if !strings.Contains(message, w) {
			t.Errorf("the message does not name %q: %s", w, message)
		}
	}
	for _, bad := range []string{"panic", "goroutine", "0x", "%!"} {
		if strings.Contains(message, bad) {
			t.Errorf("the message shows insides (%s): %s", bad, message)
		}
	}
}

// sorted sorts in place and returns its argument.
func sorted(s []string) []string {
	sort.Strings(s)
	return s
}
