package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// exported returns the content of each regular file of a generation, by path, and
// how many entries of each other type there are.
func (r *repo) exported(gen string) (files map[string]string, others map[byte]int) {
	r.t.Helper()
	res := r.mkbackup("export", gen)
	if res.code != 0 {
		r.t.Fatalf("export %s: exit code %d\n%s", gen, res.code, tail(res.stderr))
	}
	files, others = map[string]string{}, map[byte]int{}
	for t := tar.NewReader(strings.NewReader(res.stdout)); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, others
		}
		must(r.t, err)
		if h.Typeflag != tar.TypeReg {
			others[h.Typeflag]++
			continue
		}
		content, err := io.ReadAll(t)
		must(r.t, err)
		files[path.Clean(h.Name)] = string(content)
	}
}

// secret is what files outside of the source hold.
const secret = "a secret from outside"

// countSecrets returns how many of the files of a generation come from outside.
func countSecrets(files map[string]string) (n int) {
	for _, content := range files {
		if strings.Contains(content, secret) {
			n++
		}
	}
	return n
}

// exchanger swaps pairs of paths, one after the other, until it is stopped.
type exchanger struct {
	swaps atomic.Int64
	end   chan struct{}
	ended chan error
}

func exchange(pairs [][2]string) *exchanger {
	e := &exchanger{end: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		for i := 0; ; i++ {
			select {
			case <-e.end:
				e.ended <- nil
				return
			default:
			}
			pair := pairs[i%len(pairs)]
			if err := unix.Renameat2(unix.AT_FDCWD, pair[0], unix.AT_FDCWD, pair[1], unix.RENAME_EXCHANGE); err != nil {
				e.ended <- err
				return
			}
			e.swaps.Add(1)
		}
	}()
	return e
}

func (e *exchanger) stop(t *testing.T) {
	t.Helper()
	close(e.end)
	must(t, <-e.ended)
}

// TestSwappedForOutside lets an attacker swap directories of the source, at two depths,
// for symlinks to places outside, and files for symlinks, FIFOs, devices that never
// end, and sockets, all the time. No byte from outside is stored, and no run blocks.
func TestSwappedForOutside(t *testing.T) {
	src, beside, outside := tempDir(t), tempDir(t), tempDir(t)
	var pairs [][2]string
	for i := range 20 {
		top := fmt.Sprintf("d%02d", i)
		for j := range 3 {
			for root, content := range map[string]string{src: "inside", outside: secret} {
				write(t, filepath.Join(mkdir(t, root, top, "deep"), fmt.Sprint("f", j)), fmt.Sprintf("%s %d %d", content, i, j))
			}
		}
		name := []string{top, top + "/deep", top + "/deep/f0"}[i%3] // one of them, so that no swap is in the way of another
		link := filepath.Join(beside, top)
		must(t, os.Symlink(filepath.Join(outside, name), link))
		pairs = append(pairs, [2]string{filepath.Join(src, name), link})
	}
	special := map[string]func(name string) error{
		"fifo":   func(name string) error { return unix.Mkfifo(name, 0o644) },
		"zero":   func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"tty":    func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o644, int(unix.Mkdev(5, 0))) },
		"socket": func(name string) error { return unix.Mknod(name, unix.S_IFSOCK|0o644, 0) },
	}
	for name, mk := range special {
		write(t, filepath.Join(mkdir(t, src, "special"), name), "inside")
		must(t, mk(filepath.Join(beside, name)))
		pairs = append(pairs, [2]string{filepath.Join(src, "special", name), filepath.Join(beside, name)})
	}
	write(t, filepath.Join(src, "stays"), "inside")

	r := newRepo(t)
	control := r.all(outside, "--source", "control")
	if files, _ := r.exported("control/" + control.Generation); countSecrets(files) != 60 {
		t.Fatalf("%d of 60 secrets are recognised", countSecrets(files))
	}
	e := exchange(pairs)
	codes, stored, links, replaced := map[int]int{}, 0, 0, 0
	goal, runs := int64(scale(5000, 100_000)), scale(25, 500)
	for n := 0; n < runs || e.swaps.Load() < goal; n++ {
		if n > 10*runs {
			t.Fatalf("only %d swaps during %d runs", e.swaps.Load(), n)
		}
		args := []string{"--json", "--checksum", "--root", src, "/"}
		if n%3 == 2 {
			args = append(args[:4], "/stays", "/d00/deep", "/d01/deep/f0", "/d02/deep/f1", "/special/fifo")
		}
		res := r.mkbackup("create", args...)
		codes[res.code]++
		wantNoCrash(t, "create", res.stderr)
		if res.code != 0 && res.code != 3 {
			t.Fatalf("exit code %d\n%s", res.code, tail(res.stderr))
		}
		if s := parseSummary(t, res.stdout); (res.code == 3) != (s.Errors > 0) || s.Errors > 0 && res.stderr == "" {
			t.Errorf("exit code %d with %d errors\n%s", res.code, s.Errors, res.stderr)
		}
		replaced += strings.Count(res.stderr, "\n")
		files, others := r.exported("latest")
		if countSecrets(files) > 0 {
			t.Fatalf("%d files from outside are stored: %q", countSecrets(files), files)
		}
		for name, content := range files {
			if content != "" && !strings.HasPrefix(content, "inside") {
				t.Errorf("%s has %q", name, content[:min(len(content), 100)])
			}
		}
		stored += len(files)
		links += others[tar.TypeSymlink]
	}
	e.stop(t)
	if stored == 0 || links == 0 {
		t.Errorf("%d files and %d symlinks were stored: the attack missed", stored, links)
	}
	t.Logf("%d swaps during %d runs, exit codes %v: %d files and %d symlinks stored, none of them from outside; %d lines on stderr",
		e.swaps.Load(), codes[0]+codes[3], codes, stored, links, replaced)
}

// TestNeverBlocks swaps files for FIFOs, terminals and devices that never end while they are backed
// up: by a trace, no call on the source took a second.
func TestNeverBlocks(t *testing.T) {
	src, beside := tempDir(t), tempDir(t)
	special := []func(name string) error{
		func(name string) error { return unix.Mkfifo(name, 0o644) },
		func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, // /dev/zero
		func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o644, int(unix.Mkdev(5, 2))) }, // /dev/ptmx
	}
	var pairs [][2]string
	for i := range 60 {
		name := fmt.Sprintf("f%02d", i)
		pair := [2]string{filepath.Join(src, name), filepath.Join(beside, name)}
		write(t, pair[0], "inside")
		must(t, special[i%len(special)](pair[1]))
		pairs = append(pairs, pair)
	}
	r := newRepo(t)
	trace := filepath.Join(tempDir(t), "trace")
	calls, caught, slowest := 0, 0, 0.0
	e := exchange(pairs)
	defer e.stop(t)
	for runs := 0; caught < 20; runs++ {
		if runs == 50 {
			t.Fatalf("only %d files were caught when they were replaced", caught)
		}
		res := runCmd(t, exec.Command("timeout", "-s", "KILL", "60", "strace", "-f", "-qq", "-T", "-o", trace,
			"-e", "trace=openat2,openat,statx,fstat,read,pread64,lseek,readlinkat,flistxattr,llistxattr,ioctl",
			mkbackup, "create", "-q", "--checksum", r.dir, "--root", src, "/"))
		n, longest, call := longestCall(t, trace)
		if n == 0 || longest >= 1 || res.code != 0 && res.code != 3 {
			t.Fatalf("exit code %d; of %d calls, this one took %v s: %s\n%s", res.code, n, longest, call, tail(res.stderr))
		}
		calls += n
		slowest = max(slowest, longest)
		caught += strings.Count(res.stderr, "replaced by something that is no file")
	}
	t.Logf("%d calls, the longest took %v s; %d times a file was caught when it was replaced, %d swaps", calls, slowest, caught, e.swaps.Load())
}

// longestCall returns how many calls a trace of strace -f -T has, and the one that took longest, in
// seconds: for ever, where it did not end.
func longestCall(t *testing.T, trace string) (calls int, longest float64, call string) {
	t.Helper()
	text, err := os.ReadFile(trace)
	must(t, err)
	took := regexp.MustCompile(`<(\d+\.\d+)>$`)
	unfinished := map[string]string{} // by thread
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		thread, _, _ := strings.Cut(line, " ")
		if strings.HasSuffix(line, "<unfinished ...>") {
			unfinished[thread] = line
		} else if strings.Contains(line, " resumed>") || strings.Contains(line, "+++ exited with ") {
			delete(unfinished, thread)
		}
		if m := took.FindStringSubmatch(line); m != nil {
			calls++
			seconds, err := strconv.ParseFloat(m[1], 64)
			must(t, err)
			if seconds > longest {
				longest, call = seconds, line
			}
		}
	}
	for _, line := range unfinished {
		return calls + 1, math.Inf(1), line
	}
	return calls, longest, call
}

// isOpen reports whether a process has a file open.
func isOpen(pid int, name string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && target == name {
			return true
		}
	}
	return false
}

// waitOpen waits until a process has a file open, and calls meanwhile all the time.
func waitOpen(t *testing.T, pid int, name string, meanwhile func()) {
	t.Helper()
	waitFor(t, time.Minute, name+" to be opened", func() bool { meanwhile(); return isOpen(pid, name) })
}

// waitRead waits until a process has read another 100,000 bytes.
func waitRead(t *testing.T, pid int) {
	t.Helper()
	read := func() (n int64) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		must(t, err)
		_, err = fmt.Sscanf(string(text), "rchar: %d", &n)
		must(t, err)
		return n
	}
	before := read()
	waitFor(t, time.Minute, "something to be read", func() bool { return read() > before+100_000 })
}

// TestSourceMovesUnderTheScan changes a source at known points of a run, which reads it
// slowly: what was caught is named, the exit code is 3, and what is stored was there.
func TestSourceMovesUnderTheScan(t *testing.T) {
	src := tempDir(t)
	in := func(name string) string { return filepath.Join(src, name) }
	pattern := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB
	for _, name := range []string{"a/0-grows", "a/1-shrinks", "a/2-slow", "b/x", "b/y", "c/moved", "d/replaced", "e/fifo"} {
		mkdir(t, filepath.Dir(in(name)))
		content := pattern
		if name[0] != 'a' {
			content = []byte("old " + name)
		}
		must(t, os.WriteFile(in(name), content, 0o644))
	}
	r := newRepo(t)
	b := start(t, r.command("create", "--json", "--read-rate", "1MiB", "--root", src, "/"))
	pid := b.cmd.Process.Pid

	nothing := func() {}
	waitOpen(t, pid, in("a/0-grows"), nothing)
	waitRead(t, pid)
	f, err := os.OpenFile(in("a/0-grows"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	waitOpen(t, pid, in("a/1-shrinks"), func() { _, err := f.Write(pattern[:4096]); must(t, err) })
	waitRead(t, pid)
	must(t, os.Truncate(in("a/1-shrinks"), 1000))
	waitOpen(t, pid, in("a/2-slow"), nothing)
	waitOpen(t, pid, in("b"), nothing) // it was listed
	must(t, os.RemoveAll(in("b")))
	must(t, os.Rename(in("c/moved"), in("c/n-moved")))
	write(t, in("new"), "new d/replaced")
	must(t, os.Rename(in("new"), in("d/replaced")))
	must(t, os.Remove(in("e/fifo")))
	must(t, syscall.Mkfifo(in("e/fifo"), 0o644))
	if code := b.wait(t, commandLimit); code != 3 {
		t.Fatalf("exit code %d, want 3\n%s", code, b.stderr.String())
	}
	said := b.stderr.String()
	for _, name := range []string{"/a/0-grows", "/b/x", "/b/y", "/c/moved", "/e/fifo"} {
		if !strings.Contains(said, name) {
			t.Errorf("%s is not named:\n%s", name, said)
		}
	}
	if strings.Contains(said, "2-slow") || strings.Contains(said, "1-shrinks") { // which is read again, and stays as it is then
		t.Errorf("what did not change while it was read, the second time at the latest, is named:\n%s", said)
	}
	files, _ := r.exported("latest")
	for name, content := range files {
		switch name {
		case "a/2-slow":
			if content != string(pattern) {
				t.Errorf("%s: %d bytes, not those that it has", name, len(content))
			}
		case "a/1-shrinks":
			if content != string(pattern[:1000]) {
				t.Errorf("%s: %d bytes, want the 1,000 that are left", name, len(content))
			}
		case "a/0-grows": // one reading of it: a prefix
			if !strings.HasPrefix(strings.Repeat(string(pattern), 1+len(content)/len(pattern)), content) {
				t.Errorf("%s: %d bytes, which it never had", name, len(content))
			}
		default:
			was := strings.Replace(name, "n-moved", "moved", 1)
			if content != "old "+was && content != "new "+was {
				t.Errorf("%s has %q", name, content)
			}
		}
	}
	for _, name := range []string{"a/0-grows", "a/1-shrinks", "a/2-slow"} {
		if files[name] == "" {
			t.Errorf("%s is not stored", name)
		}
	}
	// The next run, when all is quiet, has what there is.
	s := r.all(src)
	want, err := snapshotOf(src)
	must(t, err)
	m := r.mount()
	got, err := snapshotOf(m.at(s.Generation))
	must(t, err)
	if d := want.differences(got); d != "" {
		t.Error(d)
	}
	t.Logf("exit code 3; said:\n%s", said)
}

// TestKernelFileSystems backs up a tree with /proc and /sys in it: nothing in them is opened.
func TestKernelFileSystems(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	for _, kind := range []string{"proc", "sysfs", "cgroup2", "devpts"} {
		mountAt(t, mkdir(t, src, kind), "-t", kind, kind)
	}
	r := newRepo(t)
	trace := filepath.Join(tempDir(t), "trace")
	run(t, "strace", "-f", "-qq", "-y", "-o", trace, "-e", "trace=openat2", mkbackup, "create", "-q", r.dir, "--root", src, "/")
	text, err := os.ReadFile(trace)
	must(t, err)
	if !strings.Contains(string(text), "<"+src+`>, "proc"`) {
		t.Fatalf("the trace does not show how proc is looked at:\n%s", text)
	}
	if regexp.MustCompile(`openat2\(\d+<` + src + "/").Match(text) {
		t.Errorf("something inside was opened:\n%s", text)
	}
	files, others := r.exported("latest")
	if len(files) != 1 || others[tar.TypeDir] != 5 {
		t.Errorf("stored: %d files, %d directories", len(files), others[tar.TypeDir])
	}
}
