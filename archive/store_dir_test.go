package archive

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/backupfs/backupfs/internal/disk"
	"github.com/backupfs/backupfs/internal/disk/crash"
	"golang.org/x/sys/unix"
)

func newDirStore(t *testing.T, dir string) *DirStore {
	t.Helper()
	s, err := NewDirStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// put publishes an object.
func put(t *testing.T, s Store, name, content string) {
	t.Helper()
	d, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, content); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(name); err != nil {
		t.Fatal(err)
	}
}

// listing returns the names and sizes of a listing, and its error. Names must
// tell the same.
func listing(t *testing.T, s Store, prefix string) (out []string, err error) {
	t.Helper()
	var names, again []string
	for o, e := range s.List(prefix) {
		if err = e; err != nil {
			break
		}
		names = append(names, o.Name)
		out = append(out, fmt.Sprint(o.Name, " ", o.Stored))
	}
	var namesErr error
	for name, e := range s.Names(prefix) {
		if namesErr = e; namesErr != nil {
			break
		}
		again = append(again, name)
	}
	if !slices.Equal(names, again) || fmt.Sprint(err) != fmt.Sprint(namesErr) {
		t.Errorf("list %q: %q and the error %v; by names: %q and the error %v", prefix, names, err, again, namesErr)
	}
	return out, err
}

func TestDirStore(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Error("a store that only exists wrote something")
	}
	for _, name := range []string{"b", "a/y", "a/x", "a-b/x", "parts/3f/1", "parts/00/2"} {
		put(t, s, name, name)
	}
	for prefix, want := range map[string]string{
		"":          "[a-b/x 5 a/x 3 a/y 3 b 1 parts/00/2 10 parts/3f/1 10]",
		"a/":        "[a/x 3 a/y 3]",
		"parts/":    "[parts/00/2 10 parts/3f/1 10]",
		"parts/3f/": "[parts/3f/1 10]",
		"parts/4f/": "[]",
		"log/":      "[]",
	} {
		if got, err := listing(t, s, prefix); err != nil || fmt.Sprint(got) != want {
			t.Errorf("list %q: %v %v, want %v", prefix, got, err, want)
		}
	}
	for range s.List("") {
		break // a listing may be left
	}
	o, err := s.Open("a/x")
	if err != nil || o.Size() != 3 {
		t.Fatal(err)
	}
	if err := s.Remove("a/x"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3)
	if _, err := o.ReadAt(b, 0); err != nil || string(b) != "a/x" {
		t.Error("an open object cannot be read after its removal:", err)
	}
	if n, err := o.ReadAt(b, 1); n != 2 || !errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	if _, err := o.ReadAt(b, 0); !errors.Is(err, fs.ErrClosed) || !strings.Contains(err.Error(), "a/x") {
		t.Error(err)
	}
	if err := s.Remove("a/x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "remove a/x") {
		t.Error(err)
	}
	if _, err := s.Open("a/x"); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	if _, err := s.Open("a"); err == nil {
		t.Error("a directory was opened as an object")
	}
	if err := s.Remove("a"); err == nil {
		t.Error("a directory was removed as an object")
	}
}

func TestDirStoreModes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	dir := t.TempDir()
	put(t, newDirStore(t, dir), "parts/3f/x", "x")
	for path, want := range map[string]fs.FileMode{"parts/3f/x": 0o400, "parts/3f": 0o700 | fs.ModeDir, "parts": 0o700 | fs.ModeDir} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestDirStoreNames(t *testing.T) {
	s := newDirStore(t, t.TempDir())
	for _, name := range []string{"", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "tmp", "tmp/a", "a\nb", "a\x00b", "ü", `a\b`} {
		d, err := s.Create()
		if err != nil {
			t.Fatal(err)
		}
		if d.Publish(name) == nil {
			t.Errorf("published %q", name)
		}
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
		if _, err := s.Open(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open %q: %v", name, err)
		}
		if err := s.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	for _, prefix := range []string{"a", "/", "../", "tmp/", "a//"} {
		if _, err := listing(t, s, prefix); err == nil {
			t.Errorf("list %q", prefix)
		}
	}
}

func TestDirStoreListingsThatFail(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	put(t, s, "log/1", "1")
	if err := os.WriteFile(filepath.Join(dir, "parts"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if got, err := listing(t, s, "parts/"); err == nil || !strings.Contains(err.Error(), "parts") {
		t.Errorf("a directory that is none: %v %v", got, err)
	}
	os.Remove(filepath.Join(dir, "parts"))
	os.Symlink("/nowhere/at/all", filepath.Join(dir, "log/2"))
	os.Symlink("3", filepath.Join(dir, "log/3"))
	if got, err := listing(t, s, "log/"); err != nil || len(got) != 1 {
		t.Errorf("links to nowhere: %v %v", got, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := listing(t, s, "parts/"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store that is gone: %v %v", got, err)
	}
	if _, err := NewDirStore(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(dir, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDirStore(dir); err == nil {
		t.Error("a file is no store")
	}
}

func TestDirStoreFollowsLinks(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	there := newDirStore(t, other)
	put(t, there, "3f/x", "x")
	if err := there.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(dir, "parts")); err != nil {
		t.Fatal(err)
	}
	if got, err := listing(t, newDirStore(t, dir), ""); err != nil || fmt.Sprint(got) != "[parts/3f/x 1]" {
		t.Error(got, err)
	}
}

// TestDirStoreExclusive lets several stores race for the same names.
func TestDirStoreExclusive(t *testing.T) {
	dir := t.TempDir()
	const names, writers = 20, 6
	var won [names]atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		s := newDirStore(t, dir)
		wg.Go(func() {
			for i := range names {
				d, err := s.Create()
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprint(d, w)
				switch err := d.Publish(fmt.Sprintf("log/%02d/%d", i%3, i)); {
				case err == nil:
					won[i].Add(1)
				case !errors.Is(err, fs.ErrExist):
					t.Error(err)
				}
				if err := d.Discard(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range names {
		if won[i].Load() != 1 {
			t.Errorf("name %d was published %d times", i, won[i].Load())
		}
	}
	if got, err := listing(t, newDirStore(t, dir), "log/"); err != nil || len(got) != names {
		t.Error(got, err)
	}
	if left := must(filepath.Glob(filepath.Join(dir, "tmp/*/*"))); len(left) != 0 {
		t.Errorf("drafts are left: %v", left)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestLinkNew(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte(p), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.linkNew(a, b); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	os.Remove(b)
	if err := s.linkNew(a, b); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(b); err != nil || string(got) != a {
		t.Errorf("%q %v", got, err)
	}
	if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// linklessFS has no hard links.
type linklessFS struct{ disk.OS }

func (linklessFS) Link(string, string) error { return unix.EOPNOTSUPP }

// TestDirStoreByLinks publishes as on SMB, with a server that has hard links and one
// that has none.
func TestDirStoreByLinks(t *testing.T) {
	for _, fsys := range []disk.FS{disk.OS{}, linklessFS{}} {
		dir := t.TempDir()
		s := must(newDirStoreOn(fsys, dir))
		s.links = true
		for i, want := range []error{nil, fs.ErrExist} {
			d := must(s.Create())
			must(d.Write([]byte{byte(i)}))
			if err := d.Publish("log/x"); !errors.Is(err, want) {
				t.Errorf("%T: %v, want %v", fsys, err, want)
			}
			if err := d.Discard(); err != nil {
				t.Error(err)
			}
		}
		if got := must(os.ReadFile(filepath.Join(dir, "log/x"))); string(got) != "\x00" {
			t.Errorf("%T: %v", fsys, got)
		}
		if left := must(filepath.Glob(filepath.Join(dir, "tmp/*/*"))); len(left) != 0 {
			t.Errorf("%T: %v is left", fsys, left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDirStoreDrafts(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	d := must(s.Create())
	if _, err := d.Write([]byte("draft")); err != nil {
		t.Fatal(err)
	}
	if got, err := listing(t, s, ""); err != nil || len(got) != 0 {
		t.Error("a draft is listed:", got, err)
	}
	b := make([]byte, 4)
	if n, err := d.(io.ReaderAt).ReadAt(b, 2); n != 3 || err != io.EOF || string(b[:n]) != "aft" {
		t.Error(n, err)
	}
	if err := d.Publish("x/y"); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := d.Write(nil); err == nil {
		t.Error("written after it was published")
	}
	if err := d.Publish("x/z"); err == nil {
		t.Error("published twice")
	}
	d = must(s.Create())
	if err := d.Publish("x/y"); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "publish x/y") {
		t.Error(err)
	}
	if err := d.Publish("x/z"); !errors.Is(err, fs.ErrExist) {
		t.Error("published after a failure:", err)
	}
	for range 2 {
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
	}
	if got, err := listing(t, s, ""); fmt.Sprint(got) != "[x/y 5]" {
		t.Error(got, err)
	}
}

// TestDirStoreReplace puts an object in the place of another one, which whoever has it
// open goes on reading.
func TestDirStoreReplace(t *testing.T) {
	s := newDirStore(t, t.TempDir())
	put(t, s, "x/y", "damaged")
	old := must(s.Open("x/y"))
	defer old.Close()
	d := must(s.Create())
	if _, err := d.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish("x/y"); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if err := d.Replace("x/y"); err != nil {
		t.Fatal(err)
	}
	if err := d.Replace("x/y"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("replaced twice: %v", err)
	}
	b := make([]byte, 7)
	if _, err := old.ReadAt(b, 0); err != nil || string(b) != "damaged" {
		t.Errorf("%q, %v", b, err)
	}
	if got, err := os.ReadFile(s.path("x/y")); err != nil || string(got) != "whole" {
		t.Errorf("%q, %v", got, err)
	}
	d = must(s.Create())
	d.(*dirDraft).f.Close()
	if d.Replace("x/y") == nil {
		t.Error("replaced by what could not be synced")
	}
}

// TestReplaceOutlivesCrash: whenever the machine crashes while an object is replaced, one
// of the two is there, whole; and once it is replaced, the new one.
func TestReplaceOutlivesCrash(t *testing.T) {
	root := t.TempDir()
	model := crash.New(root, crash.Options{})
	s := must(newDirStoreOn(model, root))
	defer s.Close()
	put(t, s, "x/y", "damaged")
	before := model.Len()
	d := must(s.Create())
	if _, err := io.WriteString(d, "whole"); err != nil {
		t.Fatal(err)
	}
	if err := d.Replace("x/y"); err != nil {
		t.Fatal(err)
	}
	for n := before; n <= model.Len(); n++ {
		for seed := range uint64(crash.Extremes + 50) {
			after := t.TempDir()
			if err := model.Crash(n, seed, "").Write(after); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(after, "x/y"))
			if text := string(got); err != nil || text != "whole" && (text != "damaged" || n == model.Len()) {
				t.Fatalf("after operation %d, seed %d: %q, %v", n, seed, got, err)
			}
		}
	}
}

// TestDirStoreDirectoryGone removes a directory that the store knows to be there.
func TestDirStoreDirectoryGone(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	put(t, s, "parts/3f/x", "x")
	if err := os.RemoveAll(filepath.Join(dir, "parts")); err != nil {
		t.Fatal(err)
	}
	put(t, s, "parts/3f/x", "y")
}

func TestDirStoreWriterDirectory(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	writers := func() (names []string) {
		for _, e := range must(os.ReadDir(tmp)) {
			if name, isLock := strings.CutSuffix(e.Name(), lockSuffix); !isLock {
				names = append(names, name)
			} else if _, err := os.Stat(filepath.Join(tmp, name)); err != nil {
				t.Error("a lock without its directory:", err)
			}
		}
		return names
	}
	a := newDirStore(t, dir)
	must(a.Create())
	left := must(a.TempDir("index-*.new"))
	if m, _ := filepath.Match("index-*.new", filepath.Base(left)); !m || filepath.Dir(filepath.Dir(left)) != tmp {
		t.Error(left)
	}
	// What a dead writer left: a directory without a lock, and odds and ends.
	dead := filepath.Join(tmp, "w-DEAD")
	if err := os.MkdirAll(filepath.Join(dead, "deep/er"), 0o777); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dead, "draft"), []byte("x"), 0o444)
	os.WriteFile(filepath.Join(tmp, "file"), nil, 0o666)
	os.Symlink(a.Dir(), filepath.Join(tmp, "link"))
	unix.Mkfifo(filepath.Join(tmp, "fifo"), 0o666)
	b := newDirStore(t, dir)
	must(b.Create())
	if got := writers(); len(got) != 2 || !slices.Contains(got, filepath.Base(filepath.Dir(left))) {
		t.Errorf("tmp holds %v", got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got := writers(); len(got) != 1 {
		t.Errorf("tmp holds %v", got)
	}
	if _, err := a.Create(); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if _, err := a.TempDir("x"); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// TestDirStoreLock: what keeps a writer directory is a lock of a regular file that is
// open for writing, the only one that network file systems pass on to other machines.
func TestDirStoreLock(t *testing.T) {
	dir := t.TempDir()
	s := newDirStore(t, dir)
	writer := filepath.Dir(must(s.TempDir("x")))
	f := must(os.OpenFile(writer+lockSuffix, os.O_RDWR, 0))
	defer f.Close()
	if info := must(f.Stat()); !info.Mode().IsRegular() || lockFile(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
		t.Errorf("%s, of mode %v, is not locked", f.Name(), info.Mode())
	}
	if flags := must(unix.FcntlInt(s.lock.Fd(), unix.F_GETFL, 0)); flags&unix.O_ACCMODE != unix.O_RDWR {
		t.Errorf("the lock is open with flags %#o", flags)
	}
}

// TestDirStoreOtherMachine: a writer of another machine has its lock, but no other one
// is seen here. Its directory stays until it dies.
func TestDirStoreOtherMachine(t *testing.T) {
	dir := t.TempDir()
	writer := filepath.Join(dir, "tmp/w-OTHER")
	if err := os.MkdirAll(writer, 0o700); err != nil {
		t.Fatal(err)
	}
	draft := filepath.Join(writer, "draft-X")
	if err := os.WriteFile(draft, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	lock := must(os.Create(writer + ".lock"))
	defer lock.Close()
	if err := lockFile(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	must(newDirStore(t, dir).Create())
	for _, name := range []string{draft, lock.Name()} {
		if _, err := os.Stat(name); err != nil {
			t.Error("of a living writer:", err)
		}
	}
	lock.Close()
	must(newDirStore(t, dir).Create())
	for _, name := range []string{writer, lock.Name()} {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a dead writer: %v", name, err)
		}
	}
}

// TestServersLocks: an NFS server takes locks for its clients that flock(2) does not see,
// and those of open file descriptions do. Whoever works on the server respects them.
func TestServersLocks(t *testing.T) {
	dir := t.TempDir()
	r := must(Init(filepath.Join(dir, "repo"), InitOptions{}))
	defer r.Close()
	clients := func(name string, kind int16) *os.File {
		f := must(os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600))
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind}); err != nil {
			t.Fatal(err)
		}
		return f
	}
	writer := clients(filepath.Join(r.Dir(), configName), unix.F_RDLCK)
	if _, err := r.LockToDelete(); !errors.Is(err, ErrLocked) {
		t.Error("beside a client that writes:", err)
	}
	must(r.LockParts()).Release()
	writer.Close()
	must(r.LockToDelete()).Release()

	living := filepath.Join(r.Dir(), "tmp/w-CLIENT")
	if err := os.MkdirAll(living, 0o700); err != nil {
		t.Fatal(err)
	}
	lock := clients(living+lockSuffix, unix.F_WRLCK)
	defer lock.Close()
	must(must(NewDirStore(r.Dir())).TempDir("x"))
	if _, err := os.Stat(living); err != nil {
		t.Error("a client's drafts:", err)
	}
}

// TestSMB: what is of an SMB server is told by its number (statfs(2)).
func TestSMB(t *testing.T) {
	for kind, want := range map[int64]bool{0xff534d42: true, -0x1acb2be: true, 0xfe534d42: true, 0xef53: false} {
		if got := isSMB(&unix.Statfs_t{Type: kind}); got != want {
			t.Errorf("%#x: %v", kind, got)
		}
	}
}

// TestOwnerMayDelete: NFS locks exclusively only what its owner may write.
func TestOwnerMayDelete(t *testing.T) {
	r := must(Init(filepath.Join(t.TempDir(), "repo"), InitOptions{}))
	defer r.Close()
	if mode := must(os.Stat(filepath.Join(r.Dir(), configName))).Mode(); mode != 0o600 {
		t.Errorf("%s has the mode %v", configName, mode)
	}
}

// TestLockErrors: what an error of a lock means.
func TestLockErrors(t *testing.T) {
	for err, want := range map[error]string{unix.EBADF: "chmod 600", unix.ENOLCK: "nolock", unix.EIO: "input/output"} {
		if got := lockError(err); errors.Is(got, ErrLocked) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{unix.EWOULDBLOCK, unix.EOPNOTSUPP, unix.ENOSYS} {
		if got := lockError(err); !errors.Is(got, ErrLocked) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestUnsyncedName: that a name is taken is only told once that cannot be lost in a crash.
func TestUnsyncedName(t *testing.T) {
	dir := t.TempDir()
	fsys := &faultyFS{base: "parts"}
	s := must(newDirStoreOn(fsys, dir))
	defer s.Close()
	first := must(s.Create())
	if err := first.Publish("parts/x"); err != nil {
		t.Fatal(err)
	}
	fsys.operation = "sync"
	second := must(s.Create())
	defer second.Discard()
	if err := second.Publish("parts/x"); errors.Is(err, fs.ErrExist) || !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
}

// TestDirStoreTmpRemoved: who removes all of tmp/ while a writer lives does not make its
// end fail.
func TestDirStoreTmpRemoved(t *testing.T) {
	s := newDirStore(t, t.TempDir())
	must(s.Create())
	if err := os.RemoveAll(filepath.Join(s.Dir(), "tmp")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestDirStoreWriterIsGone: nor does it end what the writer can make.
func TestDirStoreWriterIsGone(t *testing.T) {
	s := newDirStore(t, t.TempDir())
	writer := func() string { return filepath.Dir(must(s.TempDir("x"))) }
	tmp := filepath.Join(s.Dir(), "tmp")
	for i, gone := range []func() string{func() string { return tmp }, writer} { // with its lock, or without
		writer()
		for _, create := range []func(){
			func() { must(os.Stat(writer())) },
			func() { put(t, s, fmt.Sprint("parts/", i), "data") },
		} {
			if err := os.RemoveAll(gone()); err != nil {
				t.Fatal(err)
			}
			create()
			if left := must(os.ReadDir(tmp)); len(left) != 2 {
				t.Errorf("tmp holds %v, want a writer directory and its lock", left)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left := must(os.ReadDir(tmp)); len(left) != 0 {
		t.Errorf("tmp holds %v after the end", left)
	}
}

// TestDirStoreTmpElsewhere: where tmp leads elsewhere nothing is removed there.
func TestDirStoreTmpElsewhere(t *testing.T) {
	s, elsewhere := newDirStore(t, t.TempDir()), t.TempDir()
	if err := os.Mkdir(filepath.Join(elsewhere, "w-mine"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(s.Dir(), "tmp")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(); err == nil || !strings.Contains(err.Error(), "tmp is not a directory: remove it") {
		t.Errorf("%v", err)
	}
	if left := must(os.ReadDir(elsewhere)); len(left) != 1 {
		t.Errorf("%v", left)
	}
}

// faultyFS fails in what it is told to: the operation, and the beginning of the last
// component of the name.
type faultyFS struct {
	disk.OS
	operation, base string
}

func (f *faultyFS) fault(operation, name string) error {
	if f.operation == operation && strings.HasPrefix(filepath.Base(name), f.base) {
		return unix.EIO
	}
	return nil
}

func (f *faultyFS) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if err := f.fault("open", name); err != nil {
		return nil, err
	}
	return f.OS.OpenFile(name, flag, perm)
}

func (f *faultyFS) Mkdir(name string, perm fs.FileMode) error {
	if err := f.fault("mkdir", name); err != nil {
		return err
	}
	return f.OS.Mkdir(name, perm)
}

func (f *faultyFS) SyncDir(name string) error {
	if err := f.fault("sync", name); err != nil {
		return err
	}
	return f.OS.SyncDir(name)
}

func (f *faultyFS) RemoveAll(name string) error {
	if err := f.fault("remove all", name); err != nil {
		return err
	}
	return f.OS.RemoveAll(name)
}

// TestDirStoreFaults: whatever fails while a writer begins or ends is an error, and
// nothing of it stays behind the next writer.
func TestDirStoreFaults(t *testing.T) {
	for operation, base := range map[string]string{"open": "w-", "mkdir": "w-", "remove all": "w-"} {
		dir := t.TempDir()
		fsys := &faultyFS{operation: operation, base: base}
		s := must(newDirStoreOn(fsys, dir))
		_, err := s.Create()
		if closeErr := s.Close(); err == nil {
			err = closeErr
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v", operation, err)
		}
		next := must(NewDirStore(dir))
		must(next.Create())
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		if left := must(os.ReadDir(filepath.Join(dir, "tmp"))); len(left) != 0 {
			t.Errorf("%s: tmp holds %v", operation, left)
		}
	}
}

// TestDirStoreWritersRace starts and ends writers at the same time: none may
// remove the directory of a living one.
func TestDirStoreWritersRace(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 15 {
				s, err := NewDirStore(dir)
				if err != nil {
					t.Error(err)
					return
				}
				d, err := s.Create()
				if err == nil {
					err = d.Publish(fmt.Sprintf("log/%d-%d", w, i))
				}
				if err == nil {
					err = s.Close()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left := must(os.ReadDir(filepath.Join(dir, "tmp"))); len(left) != 0 {
		t.Errorf("tmp holds %v", left)
	}
}

func TestDirStoreWriteFails(t *testing.T) {
	s := newDirStore(t, t.TempDir())
	d := must(s.Create())
	if _, err := d.Write(make([]byte, writeback)); err != nil {
		t.Fatal(err)
	}
	d.(*dirDraft).f.Close()
	_, err := d.Write([]byte("x"))
	if err == nil || !strings.Contains(err.Error(), "write a draft") {
		t.Fatal(err)
	}
	if _, again := d.Write([]byte("x")); !errors.Is(again, err) || !errors.Is(d.Publish("x"), err) {
		t.Error("the failure is not final")
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	d = must(s.Create())
	d.(*dirDraft).f.Close()
	if err := d.Publish("x"); err == nil || !strings.Contains(err.Error(), "publish x") {
		t.Error("published without a sync:", err)
	}
	if got, err := listing(t, s, ""); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestDirStoreTmpIsUnusable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tmp"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := newDirStore(t, dir).Create(); err == nil {
		t.Error("made a draft below a file")
	}
	if err := os.WriteFile(filepath.Join(dir, "log"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "tmp"))
	if err := must(newDirStore(t, dir).Create()).Publish("log/1"); err == nil {
		t.Error("published below a file")
	}
}
