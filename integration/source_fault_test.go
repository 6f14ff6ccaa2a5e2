package integration

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reading are the system calls by which a run looks at its source, how many of each a
// sweep must let fail at the least, whatever threads share them, and which share of
// them a short test tries.
var reading = []struct {
	call          string
	least, stride int
}{{"openat", 1, 1}, {"openat2", 15, 5}, {"statx", 30, 9}, {"getdents64", 5, 2}, {"lseek", 20, 7}, {"pread64", 10, 4}, {"flistxattr", 10, 7}, {"fgetxattr", 10, 7},
	{"llistxattr", 3, 2}, {"lgetxattr", 3, 2}, {"readlinkat", 1, 1}}

// newSourceTemplate makes a survivor whose next run reads everything: all has got an
// extended attribute. There is a file with a hole, which is read range by range, too.
func newSourceTemplate(t *testing.T, seed uint64) (s *survivor, paths []string) {
	t.Helper()
	s = newTemplate(t, seed)
	for i := range 24 {
		s.put(t, i)
	}
	sparse := filepath.Join(s.src, "d0", "sparse")
	write(t, sparse, strings.Repeat("before the hole\n", 512))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("behind the hole\n", 512)), 256<<10)
	must(t, err)
	must(t, f.Close())
	must(t, filepath.WalkDir(s.src, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type() != fs.ModeSymlink {
			paths = append(paths, name)
		}
		must(t, unix.Lsetxattr(name, "trusted.test", []byte("1"), 0))
		return err
	}))
	return s, paths
}

// TestSourceFaultAtEveryCall lets the calls by which a run looks at its source fail. What
// could not be read is named, all else is stored, or nothing is.
func TestSourceFaultAtEveryCall(t *testing.T) {
	template, paths := newSourceTemplate(t, 107)
	create := kinds()[0]
	for _, c := range reading {
		failed, partial, named := 0, 0, map[string]bool{}
		fault := injection{call: c.call, fault: "error=EIO", when: "%d", paths: paths}
		if c.call == "llistxattr" || c.call == "lgetxattr" {
			fault.paths = nil // they get a path of /proc, and nothing but the source is looked at so
		}
		try := func(s *survivor, what, created string, res result) {
			wantNoCrash(t, what, res.stderr)
			switch res.code {
			case 1:
				failed++
				if s.survived(what, created, res.code, false) || res.stderr == "" {
					t.Errorf("%s: exit code 1, but the generation is there, or nothing was said: %s", what, res.stderr)
				}
			case 3:
				partial++
				maps.Copy(named, s.wantNamed(what, created, res.stderr))
				s.survived(what, created, res.code, false)
			default:
				t.Errorf("%s: exit code %d\n%s", what, res.code, tail(res.stderr))
			}
		}
		stride := scale(c.stride, 1)
		points := tally(sweep(template, fault, 1, stride, create, try))
		if runs, least := points.runs(), c.least/stride; runs < max(least, 1) {
			t.Errorf("%s failed %d times only, want %d", c.call, runs, least)
		}
		t.Logf("%s: %d faults: %d runs failed, %d left out something of %d different paths", c.call, points.runs(), failed, partial, len(named))
	}
}

// TestDirectoryUnavailable: a directory that cannot be opened for now, as of a server that
// reconnects, is named, and what it had is stored by the next run.
func TestDirectoryUnavailable(t *testing.T) {
	s := newTemplate(t, 108)
	mount := mkdir(t, s.src, "mount") // all that is opened in it is the share
	write(t, filepath.Join(mkdir(t, mount, "share"), "file"), "1")
	s.whole()
	name, args := s.next()
	res, point := s.inject(injection{call: "openat2", fault: "error=EAGAIN", when: "%d+", paths: []string{mount}}, 1, "create", args...)
	if res.code != 3 || point == "" || !strings.Contains(res.stderr, "mount/share: cannot be listed: resource temporarily unavailable\n") {
		t.Errorf("exit code %d, at %q\n%s", res.code, point, tail(res.stderr))
	}
	delete(s.want[name], "mount/share/file")
	s.whole()
	s.survived("unavailable", name, res.code, true)
}

// wantNamed fails the test unless everything of the source is in a generation as it is,
// but for what standard error names: such a file is not there, and what is below such a
// directory may be missing. What the generation has is wanted of it from now on.
// wantNamed returns the paths that are named.
func (s *survivor) wantNamed(what, created, stderr string) (named map[string]bool) {
	s.t.Helper()
	res := s.mkbackup("export", created)
	got, err := snapshotOfTar(res.stdout)
	if res.code != 0 || err != nil {
		s.t.Fatalf("%s: export %s: exit code %d, %v\n%s", what, created, res.code, err, tail(res.stderr))
	}
	named = map[string]bool{}
	for line := range strings.Lines(stderr) {
		name, why, _ := strings.Cut(strings.TrimPrefix(line, "mkbackup: "), ": ")
		if strings.HasPrefix(name, "/") && strings.HasSuffix(why, "input/output error\n") {
			named[path.Clean("."+name)] = true
		}
	}
	if len(named) == 0 {
		s.t.Errorf("%s: no path is named: %s", what, stderr)
	}
	want := s.want[created]
	for name := range want {
		isDir := strings.HasPrefix(want[name], "d")
		switch {
		case named[name] && !isDir:
			if got[name] != "" {
				s.t.Errorf("%s: %q is named, and stored: %s", what, name, got[name])
			}
		case named[name]: // it may have fewer rights, where its ACL cannot be read
		case got[name] != want[name] && (got[name] != "" || !belowNamed(named, name)):
			s.t.Errorf("%s: %q is not named: want %q, got %q\n%s", what, name, want[name], got[name], stderr)
		}
	}
	for name := range got {
		if want[name] == "" {
			s.t.Errorf("%s: %q was not there", what, name)
		}
	}
	s.want[created] = got
	return named
}

// belowNamed reports whether a directory above name is named.
func belowNamed(named map[string]bool, name string) bool {
	for name != "." {
		if name = path.Dir(name); named[name] {
			return true
		}
	}
	return false
}
