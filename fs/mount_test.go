package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// mount mounts a repository until the test ends, and returns where, and what
// is logged.
func mount(t *testing.T, r *repo, o fs.Options) (dir string, log *messages) {
	t.Helper()
	dir, log, _ = mounted(t, r, o)
	return dir, log
}

func mounted(t testing.TB, r *repo, o fs.Options) (dir string, log *messages, m *fs.Mount) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir = mountpoint(t)
	log = &messages{}
	o.Log = log.add
	m, err := fs.New(r.Repository, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if busy, err := m.Unmount(); busy || err != nil {
			t.Errorf("unmount: busy %t, %v", busy, err)
		}
		if !t.Failed() {
			m.Wait()
		}
	})
	return dir, log, m
}

// mountpoint makes an empty directory that everybody can get to.
func mountpoint(t testing.TB) string {
	t.Helper()
	tmp := t.TempDir()
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tmp, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// messages collects what is logged.
type messages struct {
	mu   sync.Mutex
	list []string
}

func (m *messages) add(format string, a ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, fmt.Sprintf(format, a...))
}

func (m *messages) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

func (m *messages) wantNone(t *testing.T) {
	t.Helper()
	for _, text := range m.all() {
		t.Errorf("logged: %s", text)
	}
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s holds %d bytes, want %d others", path, len(got), len(want))
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// asUser calls f with the rights of another user, on a thread of its own, which
// ends with it.
func asUser(uid, gid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)}} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				panic(errno)
			}
		}
		f()
	}()
	<-done
}

func TestAttributes(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	name := "b\xff\\\n" + strings.Repeat("x", 251)
	d.file("file", "hello", func(e *archive.Entry) {
		e.Attr.Mode, e.Attr.UID, e.Attr.GID = 0o6751, 1000, 1<<31
	})
	d.file(name, "bytes")
	d.file("empty", "")
	d.dir("sticky", func(e *archive.Entry) {
		e.Attr.Mode, e.Attr.Nlink, e.Attr.Size = 0o1777, 17, 12345
		e.Attr.Mtime = archive.Timespec{Sec: -86400, Nsec: 999_999_999}
	})
	d.node("link", archive.Attr{Type: archive.TypeSymlink, Mode: 0o777, Size: 10}, func(e *archive.Entry) { e.Target = "to/nowhere" })
	d.node("fifo", archive.Attr{Type: archive.TypeFIFO, Mode: 0o600})
	d.node("socket", archive.Attr{Type: archive.TypeSocket, Mode: 0o600})
	d.node("disk", archive.Attr{Type: archive.TypeBlock, Mode: 0o660, Rdev: archive.Device{Major: 259, Minor: 1<<20 - 1}})
	d.node("whiteout", archive.Attr{Type: archive.TypeChar})
	group := func(e *archive.Entry) { e.Group, e.Attr.Nlink = "1:2", 3 }
	d.file("hard1", "shared", group)
	d.file("sticky/hard2", "shared", group)
	gen := d.commit("2026-11-22T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	at := filepath.Join(mnt, gen)

	wantNames(t, at, name, "disk", "empty", "fifo", "file", "hard1", "link", "socket", "sticky", "whiteout")
	st := stat(t, at+"/file")
	if st.Mode != unix.S_IFREG|0o6751 || st.Uid != 1000 || st.Gid != 1<<31 || st.Size != 5 || st.Blocks != 8 || st.Nlink != 1 {
		t.Errorf("file: %+v", st)
	}
	if st.Mtim != (unix.Timespec{Sec: 1_700_000_000, Nsec: 123_456_789}) || st.Ctim != (unix.Timespec{Sec: 1_700_000_001, Nsec: 1}) {
		t.Errorf("file: times %+v", st)
	}
	st = stat(t, at+"/sticky")
	if st.Mode != unix.S_IFDIR|0o1777 || st.Nlink != 17 || st.Size != 12345 || st.Mtim != (unix.Timespec{Sec: -86400, Nsec: 999_999_999}) {
		t.Errorf("sticky: %+v", st)
	}
	for path, want := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "disk": unix.S_IFBLK, "whiteout": unix.S_IFCHR, "link": unix.S_IFLNK} {
		if st := stat(t, filepath.Join(at, path)); st.Mode&unix.S_IFMT != want {
			t.Errorf("%s: mode %o", path, st.Mode)
		}
	}
	if dev := stat(t, at+"/disk").Rdev; unix.Major(dev) != 259 || unix.Minor(dev) != 1<<20-1 {
		t.Errorf("disk: device %d:%d", unix.Major(dev), unix.Minor(dev))
	}
	if st := stat(t, at+"/whiteout"); st.Rdev != 0 || st.Nlink != 1 {
		t.Errorf("whiteout: %+v", st)
	}
	if target, err := os.Readlink(at + "/link"); target != "to/nowhere" {
		t.Errorf("link: %q, %v", target, err)
	}
	a, b := stat(t, at+"/hard1"), stat(t, at+"/sticky/hard2")
	if a.Ino != b.Ino || a.Nlink != 3 {
		t.Errorf("hard links: %+v, %+v", a, b)
	}
	if st := stat(t, at+"/empty"); st.Size != 0 || st.Blocks != 0 {
		t.Errorf("empty: %+v", st)
	}
	wantContent(t, at+"/file", "hello")
	wantContent(t, at+"/empty", "")
	wantContent(t, filepath.Join(at, name), "bytes")
	wantContent(t, at+"/sticky/hard2", "shared")
	wantErrno(t, "a name that is not there", unix.Lstat(at+"/nothing", &st), unix.ENOENT)
	wantErrno(t, "a name below a file", unix.Lstat(at+"/file/x", &st), unix.ENOTDIR)
	wantErrno(t, "a long name", unix.Lstat(at+"/"+strings.Repeat("x", 256), &st), unix.ENAMETOOLONG)
	log.wantNone(t)
}

func TestNames(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.dir("sub")
	d.file("same", "same")
	d.file("sub/changes", "1")
	first := d.commit("2026-11-21T03:00:00Z")
	d = r.begin("")
	d.file("sub/changes", "2")
	second := d.commit("2026-11-22T03:00:00Z")
	d = r.begin("web1")
	d.file("page", "html")
	web := d.commit("2026-11-22T04:00:00Z")
	d = r.begin("")
	d.file("sub/changes", "3")
	third := d.commit("2026-11-22T15:00:00Z")

	mnt, log := mount(t, r, fs.Options{})
	wantNames(t, mnt, first, second, third, "latest", "web1")
	wantNames(t, mnt+"/web1", web, "latest")
	wantContent(t, mnt+"/latest/sub/changes", "3")
	wantContent(t, mnt+"/2026-11-22/sub/changes", "3")
	wantContent(t, mnt+"/2026-11-22T03/sub/changes", "2")
	wantContent(t, mnt+"/2026-11-21/sub/changes", "1")
	wantContent(t, mnt+"/web1/latest/page", "html")
	wantContent(t, mnt+"/web1/2026-11-22/page", "html")
	wantContent(t, filepath.Join(mnt, second, "sub/changes"), "2")
	for _, name := range []string{"2026-11-23", "x", ".version", "web1/2026-11-21", "latest~1"} {
		if exists(filepath.Join(mnt, name)) {
			t.Errorf("%s is there", name)
		}
	}
	if target, err := os.Readlink(mnt + "/web1/latest"); target != web {
		t.Errorf("web1/latest: %q, %v", target, err)
	}
	if root := stat(t, mnt); root.Ino != 1 || root.Mode != unix.S_IFDIR|0o555 || root.Nlink != 6 {
		t.Errorf("the root: %+v", root)
	}
	a, b := stat(t, filepath.Join(mnt, first, "same")), stat(t, filepath.Join(mnt, third, "same"))
	if a.Ino != b.Ino {
		t.Errorf("an unchanged file is inode %d and %d", a.Ino, b.Ino)
	}
	a, b = stat(t, filepath.Join(mnt, first, "sub")), stat(t, filepath.Join(mnt, second, "sub"))
	if a.Ino == b.Ino {
		t.Error("a directory is one inode in two generations")
	}
	log.wantNone(t)

	mnt, _ = mount(t, r, fs.Options{Source: "web1"})
	wantNames(t, mnt, web, "latest")
	mnt, _ = mount(t, r, fs.Options{Generation: second})
	wantNames(t, mnt, "same", "sub")
	wantContent(t, mnt+"/sub/changes", "2")
	mnt, _ = mount(t, r, fs.Options{Generation: "latest~1"})
	wantContent(t, mnt+"/sub/changes", "2")
	mnt, _ = mount(t, r, fs.Options{Source: "web1", Generation: "2026-11-22"})
	wantContent(t, mnt+"/page", "html")
}

func TestNewRefuses(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.commit("2026-11-21T03:00:00Z")
	mnt, _ := mount(t, r, fs.Options{})
	dir := mountpoint(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		o    fs.Options
		want string
	}{
		{filepath.Join(dir, "missing"), fs.Options{}, "no such file"},
		{file, fs.Options{}, "not a directory"},
		{mnt, fs.Options{}, "mounted there already"},
		{r.Dir(), fs.Options{}, "hide the repository"},
		{filepath.Dir(r.Dir()), fs.Options{}, "hide the repository"},
		{dir, fs.Options{Source: "web1"}, `no generation of a source "web1"`},
		{dir, fs.Options{Generation: "2025"}, `"2025"`},
	} {
		m, err := fs.New(r.Repository, c.dir, c.o)
		if err == nil {
			m.Unmount()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("mount on %s with %+v: %v, want %s", c.dir, c.o, err, c.want)
		}
	}
}

func TestGenerationsComeAndGo(t *testing.T) {
	r := newRepo(t)
	mnt, log := mount(t, r, fs.Options{})
	wantNames(t, mnt)
	if exists(mnt + "/2026-11-21") {
		t.Error("a date in an empty repository")
	}
	d := r.begin("")
	d.file("kept", strings.Repeat("kept", 10_000))
	d.file("only", strings.Repeat("only", 10_000))
	first := d.commit("2026-11-21T03:00:00Z")
	eventually(t, "the first generation is not there", func() bool { return exists(filepath.Join(mnt, first)) })
	wantNames(t, mnt, first, "latest")
	wantContent(t, mnt+"/2026-11-21/kept", strings.Repeat("kept", 10_000))

	open, err := os.Open(mnt + "/latest/only")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	d = r.begin("")
	d.gone("only")
	second := d.commit("2026-11-21T04:00:00Z")
	d = r.begin("web1")
	d.dir("x")
	d.commit("2026-11-21T05:00:00Z")
	eventually(t, "the second generation is not there", func() bool { return exists(filepath.Join(mnt, second)) && exists(mnt+"/web1/latest/x") })
	eventually(t, "the listing is not there", func() bool { list, _ := os.ReadDir(mnt); return len(list) == 4 })
	wantNames(t, mnt, first, second, "latest", "web1")
	eventually(t, "latest is not there", func() bool { target, _ := os.Readlink(mnt + "/latest"); return target == second })
	eventually(t, "the date leads to what is not the newest", func() bool { return !exists(mnt + "/2026-11-21/only") })

	r.forget(1, 3)
	eventually(t, "what was forgotten is still there", func() bool { return !exists(filepath.Join(mnt, first)) && !exists(mnt+"/web1") })
	wantNames(t, mnt, second, "latest")
	got := make([]byte, 40_001)
	if n, err := open.ReadAt(got, 0); string(got[:n]) != strings.Repeat("only", 10_000) {
		t.Errorf("the open file of a forgotten generation: %d bytes, %v", n, err)
	}
	wantContent(t, mnt+"/latest/kept", strings.Repeat("kept", 10_000))
	log.wantNone(t)
}

// Who is in a generation that is dropped goes on, although others are dropped after it.
func TestDroppedGenerationIsReadable(t *testing.T) {
	r := newRepo(t)
	var generations []string
	for i := range 4 {
		d := r.begin("")
		d.file(fmt.Sprintf("f%d", i), "x")
		generations = append(generations, d.commit(fmt.Sprintf("2026-11-21T0%d:00:00Z", i)))
	}
	mnt, log := mount(t, r, fs.Options{})
	first := int(openFD(t, filepath.Join(mnt, generations[0])))
	for i, name := range generations[:3] {
		r.forget(uint64(i + 1))
		eventually(t, "a generation is never dropped", func() bool { return !exists(filepath.Join(mnt, name)) })
	}
	var st unix.Stat_t
	if err := unix.Fstatat(first, "f0", &st, 0); err != nil {
		t.Errorf("a file of the first generation: %v", err)
	}
	wantErrno(t, "a file of a later generation", unix.Fstatat(first, "f1", &st, 0), unix.ENOENT)
	log.wantNone(t)
}

func TestPinnedGenerationOutlivesForget(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "1")
	d.commit("2026-11-21T03:00:00Z")
	mnt, _ := mount(t, r, fs.Options{Generation: "latest"})
	for i := range 4 {
		before := r.last
		if i > 0 {
			before-- // the last record is a forget
		}
		d = r.begin("")
		d.file("f", fmt.Sprint(2+i))
		d.commit(fmt.Sprintf("2026-11-21T0%d:00:00Z", 4+i))
		r.forget(before)
		time.Sleep(600 * time.Millisecond) // the mount sees it
	}
	dropCaches(t)
	wantContent(t, mnt+"/f", "1")
	wantNames(t, mnt, "f")
}

func TestXattrs(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	big := strings.Repeat("\x00\xff", 30_000)
	acl := "\x02\x00\x00\x00" + aclEntry(0x01, 6, -1) + aclEntry(0x02, 4, 1234) + aclEntry(0x04, 4, -1) + aclEntry(0x10, 4, -1) + aclEntry(0x20, 0, -1)
	d.file("f", "secret", func(e *archive.Entry) {
		e.Attr.Mode, e.Attr.GID = 0o640, 77
		e.Xattrs = []archive.Xattr{{Name: "system.posix_acl_access", Value: acl}, {Name: "trusted.t", Value: "T"}, {Name: "user.big", Value: big}, {Name: "user.empty"}}
	})
	masked := "\x02\x00\x00\x00" + aclEntry(0x01, 6, -1) + aclEntry(0x02, 4, 1234) + aclEntry(0x04, 0, -1) + aclEntry(0x10, 4, -1) + aclEntry(0x20, 0, -1)
	d.file("masked", "secret", func(e *archive.Entry) {
		e.Attr.Mode, e.Attr.GID = 0o640, 77
		e.Xattrs = []archive.Xattr{{Name: "system.posix_acl_access", Value: masked}}
	})
	d.dir("d", func(e *archive.Entry) {
		e.Xattrs = []archive.Xattr{{Name: "trusted.overlay.opaque", Value: "y"}, {Name: "user.u", Value: "1"}}
	})
	d.file("none", "")
	d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	at := mnt + "/latest/"

	wantList(t, at+"f", "system.posix_acl_access", "trusted.t", "user.big", "user.empty")
	wantList(t, at+"d", "trusted.overlay.opaque", "user.u")
	wantList(t, at+"none")
	wantList(t, mnt)
	wantXattr(t, at+"f", "user.big", big)
	wantXattr(t, at+"f", "user.empty", "")
	wantXattr(t, at+"f", "trusted.t", "T")
	wantXattr(t, at+"f", "system.posix_acl_access", acl)
	wantXattr(t, at+"d", "user.u", "1")
	b := make([]byte, 10)
	_, err := unix.Lgetxattr(at+"f", "user.big", b)
	wantErrno(t, "a short buffer", err, unix.ERANGE)
	_, err = unix.Lgetxattr(at+"f", "user.none", b)
	wantErrno(t, "no such attribute", err, unix.ENODATA)
	_, err = unix.Lgetxattr(at+"none", "user.none", b)
	wantErrno(t, "no attributes at all", err, unix.ENODATA)
	asUser(1234, 1234, func() {
		wantList(t, at+"f", "system.posix_acl_access", "user.big", "user.empty")
		wantList(t, at+"d", "user.u")
		_, err := unix.Lgetxattr(at+"d", "trusted.overlay.opaque", b)
		wantErrno(t, "trusted for a user", err, unix.ENODATA)
		wantContent(t, at+"f", "secret") // by its ACL
	})
	asUser(1235, 77, func() {
		wantContent(t, at+"f", "secret") // by its group
		_, err := os.ReadFile(at + "masked")
		wantErrno(t, "the group, which the mask does not stand for", err, unix.EACCES)
	})
	asUser(1235, 1235, func() {
		_, err := os.ReadFile(at + "f")
		wantErrno(t, "others", err, unix.EACCES)
	})
	log.wantNone(t)
}

// Programs hear that there are no labels of SELinux, as long as there are none:
// ls asks for that of each file otherwise.
func TestLabels(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "", func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "user.u", Value: "1"}} })
	d.file("none", "")
	first := d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	for _, path := range []string{mnt, mnt + "/latest/f", mnt + "/latest/none", mnt + "/.versions/f"} {
		_, err := unix.Lgetxattr(path, index.LabelXattr, nil)
		wantErrno(t, "the label of "+path, err, unix.ENOTSUP)
	}
	d = r.begin("")
	d.file("labelled", "", func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: index.LabelXattr, Value: "etc_t"}} })
	second := d.commit("2026-11-21T04:00:00Z")
	eventually(t, "the next generation is not there", func() bool { return exists(filepath.Join(mnt, second, "labelled")) })
	wantXattr(t, filepath.Join(mnt, second, "labelled"), index.LabelXattr, "etc_t")
	_, err := unix.Lgetxattr(filepath.Join(mnt, first, "f"), index.LabelXattr, nil)
	wantErrno(t, "the label of a file that has none", err, unix.ENODATA)
	log.wantNone(t)
}

func aclEntry(tag, rights byte, id int32) string {
	u := uint32(id)
	return string([]byte{tag, 0, rights, 0, byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)})
}

func wantList(t *testing.T, path string, want ...string) {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Listxattr(path, b)
	if err != nil {
		t.Errorf("listxattr %s: %v", path, err)
		return
	}
	got := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	if !slices.Equal(got, want) {
		t.Errorf("%s has the attributes %q, want %q", path, got, want)
	}
	if size, err := unix.Listxattr(path, nil); size != n || err != nil {
		t.Errorf("listxattr %s: the size is %d, %v, want %d", path, size, err, n)
	}
}

func wantXattr(t *testing.T, path, name, want string) {
	t.Helper()
	b := make([]byte, 65536)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("%s of %s: %d bytes, %v, want %d", name, path, n, err, len(want))
	}
}

func TestSparse(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	data := strings.Repeat("data", 2048) // 8 KiB
	h := d.store("sparse", data)
	d.node("sparse", archive.Attr{Type: archive.TypeFile, Mode: 0o644, Size: 1 << 40}, func(e *archive.Entry) {
		e.Data = []archive.Extent{{Offset: 1 << 20, Len: 8192, Hash: h}, {Offset: 1<<30 + 4096, Len: 8192, Hash: h}}
	})
	d.node("hole", archive.Attr{Type: archive.TypeFile, Mode: 0o644, Size: 12345})
	d.file("full", data)
	d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	at := mnt + "/latest/"

	for path, want := range map[string]int64{"sparse": 32, "hole": 0, "full": 16} {
		if st := stat(t, at+path); st.Blocks != want {
			t.Errorf("%s has %d blocks, want %d", path, st.Blocks, want)
		}
	}
	f, err := os.Open(at + "sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		whence     int
		from, want int64
	}{
		{unix.SEEK_DATA, 0, 1 << 20}, {unix.SEEK_DATA, 1<<20 + 5, 1<<20 + 5}, {unix.SEEK_HOLE, 1 << 20, 1<<20 + 8192},
		{unix.SEEK_HOLE, 7, 7}, {unix.SEEK_DATA, 1<<20 + 8192, 1<<30 + 4096}, {unix.SEEK_HOLE, 1<<30 + 4096, 1<<30 + 12288},
	} {
		if got, err := unix.Seek(int(f.Fd()), c.from, c.whence); got != c.want || err != nil {
			t.Errorf("seek %d from %d: %d, %v, want %d", c.whence, c.from, got, err, c.want)
		}
	}
	_, err = unix.Seek(int(f.Fd()), 1<<30+12288, unix.SEEK_DATA)
	wantErrno(t, "no more data", err, unix.ENXIO)
	_, err = unix.Seek(int(f.Fd()), 1<<40, unix.SEEK_HOLE)
	wantErrno(t, "behind the end", err, unix.ENXIO)
	for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
		_, err = unix.Seek(int(f.Fd()), -3, whence)
		wantErrno(t, "before the beginning", err, unix.ENXIO)
	}
	b := make([]byte, 16384)
	if _, err := f.ReadAt(b, 1<<20-4096); err != nil {
		t.Fatal(err)
	}
	if want := string(make([]byte, 4096)) + data + string(make([]byte, 4096)); string(b) != want {
		t.Error("wrong bytes around an extent")
	}
	wantContent(t, at+"hole", string(make([]byte, 12345)))
	log.wantNone(t)
}

func TestWritesAreRefused(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "x")
	d.dir("d")
	d.commit("2026-11-21T03:00:00Z")
	mnt, _ := mount(t, r, fs.Options{})
	at := mnt + "/latest/"
	_, create := os.Create(at + "new")
	_, write := os.OpenFile(at+"f", os.O_WRONLY, 0)
	for what, err := range map[string]error{
		"create":   create,
		"write":    write,
		"mkdir":    os.Mkdir(at+"new", 0o755),
		"mknod":    unix.Mknod(at+"new", unix.S_IFIFO|0o644, 0),
		"symlink":  os.Symlink("x", at+"new"),
		"link":     os.Link(at+"f", at+"new"),
		"rename":   os.Rename(at+"f", at+"new"),
		"unlink":   unix.Unlink(at + "f"),
		"rmdir":    unix.Rmdir(at + "d"),
		"chmod":    os.Chmod(at+"f", 0o600),
		"chown":    os.Lchown(at+"f", 1, 1),
		"utimes":   os.Chtimes(at+"f", time.Now(), time.Now()),
		"truncate": os.Truncate(at+"f", 0),
		"setxattr": unix.Setxattr(at+"f", "user.x", nil, 0),
		"rmxattr":  unix.Removexattr(at+"f", "user.x"),
		"root":     os.Mkdir(mnt+"/new", 0o755),
	} {
		wantErrno(t, what, err, unix.EROFS)
	}
	_, err := unix.IoctlGetInt(int(openFD(t, at+"f")), 0x1234)
	wantErrno(t, "ioctl", err, unix.ENOTTY)
	wantContent(t, at+"f", "x")
}

func openFD(t *testing.T, path string) uintptr {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.Fd()
}

// getdents reads one buffer of names, each with the offset behind it.
func getdents(t *testing.T, fd int, b []byte) (names []string, offsets []int64) {
	t.Helper()
	n, err := unix.Getdents(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	for b = b[:n]; len(b) > 0; {
		reclen := int(b[16]) | int(b[17])<<8
		off := int64(0)
		for i := range 8 {
			off |= int64(b[8+i]) << (8 * i)
		}
		name, _, _ := bytes.Cut(b[19:reclen], []byte{0})
		names, offsets = append(names, string(name)), append(offsets, off)
		b = b[reclen:]
	}
	return names, offsets
}

func TestLargeDirectory(t *testing.T) {
	const files = 100_000
	r := newRepo(t)
	d := r.begin("")
	d.dir("d")
	for i := range files {
		d.file(fmt.Sprintf("d/%06d", i), "")
	}
	d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	dir := mnt + "/latest/d"

	// Four readers at once, with buffers of their own sizes, before the kernel
	// has the listing.
	var wg sync.WaitGroup
	start := time.Now()
	for i := range 4 {
		wg.Go(func() { readAll(t, dir, make([]byte, 1000<<(2*i)), files) })
	}
	wg.Wait()
	t.Logf("four readers took %v", time.Since(start))

	fd := int(openFD(t, dir))
	var at []int64
	for b := make([]byte, 32768); ; {
		names, offsets := getdents(t, fd, b)
		if len(names) == 0 {
			break
		}
		at = append(at, offsets...)
	}
	if len(at) != files+2 {
		t.Fatalf("%d entries", len(at))
	}
	// Past the kernel's copy, if the memory is there to have one.
	dropCaches(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		i := rng.IntN(files - 1)
		if _, err := unix.Seek(fd, at[i+1], 0); err != nil {
			t.Fatal(err)
		}
		if names, _ := getdents(t, fd, make([]byte, 512)); names[0] != fmt.Sprintf("%06d", i) {
			t.Fatalf("seek to entry %d: %s", i, names[0])
		}
	}
	log.wantNone(t)
}

func readAll(t *testing.T, dir string, b []byte, files int) {
	f, err := os.Open(dir)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	for next := -2; ; {
		names, _ := getdents(t, int(f.Fd()), b)
		if len(names) == 0 {
			if next != files {
				t.Errorf("the listing ends at %d", next)
			}
			return
		}
		for _, name := range names {
			if next >= 0 && name != fmt.Sprintf("%06d", next) {
				t.Errorf("entry %d is %s", next, name)
				return
			}
			next++
		}
	}
}

func dropCaches(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Log(err)
	}
}

func TestParallelReaders(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	content := func(i int) string { return strings.Repeat(fmt.Sprintf("%04d", i), 1+i*37) }
	for i := range 300 {
		d.file(fmt.Sprintf("d%02d/f%d", i%20, i), content(i))
	}
	for i := range 20 {
		d.dir(fmt.Sprintf("d%02d", i))
	}
	d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{CacheSize: 256 << 10})
	var wg sync.WaitGroup
	for seed := range 8 {
		wg.Go(func() {
			for _, i := range rand.New(rand.NewPCG(uint64(seed), 0)).Perm(300) {
				wantContent(t, fmt.Sprintf("%s/latest/d%02d/f%d", mnt, i%20, i), content(i))
			}
		})
	}
	wg.Wait()
	log.wantNone(t)
}

func TestDamage(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	noise := func(seed uint64) string {
		b := make([]byte, 64<<10)
		rng := rand.New(rand.NewPCG(seed, 0))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return string(b)
	}
	for i := range 4 {
		d.file(fmt.Sprintf("f%d", i), noise(uint64(i)))
	}
	d.commit("2026-11-21T03:00:00Z")
	part := onlyPart(t, r)
	good, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(part, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0x55, 0xaa, 0x55, 0xaa}, 100<<10); err != nil { // in f1
		t.Fatal(err)
	}
	mnt, log, m := mounted(t, r, fs.Options{})
	for range 3 {
		_, err = os.ReadFile(mnt + "/latest/f1")
		wantErrno(t, "the damaged file", err, unix.EIO)
	}
	if counted := m.Metrics(); counted.Failures < 3 || counted.Frames.Failed < 3 {
		t.Errorf("%+v after three I/O errors", counted)
	}
	for _, i := range []int{0, 2, 3} {
		wantContent(t, fmt.Sprintf("%s/latest/f%d", mnt, i), noise(uint64(i)))
	}
	ino := stat(t, mnt+"/latest/f1").Ino
	said := log.all()
	if len(said) == 0 {
		t.Fatal("nothing is logged")
	}
	for _, want := range []string{fmt.Sprintf("inode %d", ino), strings.TrimSuffix(filepath.Base(part), ".tar.zst")} {
		if !strings.Contains(said[0], want) {
			t.Errorf("logged %q, without %q", said[0], want)
		}
	}
	if len(said) > 1 {
		t.Errorf("logged more than once: %q", said)
	}

	putBack(t, part, good)
	wantContent(t, mnt+"/latest/f1", noise(1))
}

// putBack replaces a file by a new one.
func putBack(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", data, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func onlyPart(t *testing.T, r *repo) string {
	t.Helper()
	parts, err := filepath.Glob(r.Dir() + "/parts/*/*.tar.zst")
	if err != nil || len(parts) != 1 {
		t.Fatalf("parts: %q, %v", parts, err)
	}
	return parts[0]
}

func TestStatFS(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", strings.Repeat("x", 1<<20))
	d.commit("2026-11-21T03:00:00Z")
	mnt, _ := mount(t, r, fs.Options{})
	var st unix.Statfs_t
	if err := unix.Statfs(mnt, &st); err != nil {
		t.Fatal(err)
	}
	raw := st.Blocks * uint64(st.Bsize)
	if raw < 1<<20 || raw > 1<<20+64<<10 || st.Blocks-st.Bfree > 16 || st.Files != 2 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
	if st.Flags&(unix.ST_RDONLY|unix.ST_NOSUID|unix.ST_NODEV) != unix.ST_RDONLY|unix.ST_NOSUID|unix.ST_NODEV {
		t.Errorf("flags %#x", st.Flags)
	}
}

// mountSmall mounts a repository with a file "f". The test unmounts it.
func mountSmall(t *testing.T) (m *fs.Mount, dir string, r *repo) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	r, dir = newRepo(t), mountpoint(t)
	d := r.begin("")
	d.file("f", "x")
	d.commit("2026-11-21T03:00:00Z")
	m, err := fs.New(r.Repository, dir, fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // if the test did not
	return m, dir, r
}

func TestUnmountFreesEverything(t *testing.T) {
	m, dir, r := mountSmall(t)
	once := func() {
		wantContent(t, dir+"/latest/f", "x")
		if busy, err := m.Unmount(); busy || err != nil {
			t.Errorf("unmount: busy %t, %v", busy, err)
		}
		m.Wait()
	}
	once()
	files, routines := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		var err error
		if m, err = fs.New(r.Repository, dir, fs.Options{}); err != nil {
			t.Fatal(err)
		}
		once()
	}
	eventually(t, "not back to where it was", func() bool { return len(openFiles(t)) <= len(files) && runtime.NumGoroutine() <= routines })
	if exists(dir + "/latest") {
		t.Error("still mounted")
	}
}

func openFiles(t *testing.T) []iofs.DirEntry {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return open
}

func TestUnmountFromOutside(t *testing.T) {
	m, dir, _ := mountSmall(t)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	m.Wait()
	if busy, err := m.Unmount(); busy || err != nil {
		t.Errorf("unmount after that: busy %t, %v", busy, err)
	}
}

// An index that is being brought up to the log does not keep a mount that has ended.
func TestUnmountInterruptsRefresh(t *testing.T) {
	r := newRepo(t)
	mnt, log, m := mounted(t, r, fs.Options{})
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	d := r.begin("")
	d.file("f", "x")
	d.commit("2026-11-21T03:00:00Z")
	if m.Refresh() {
		t.Error("the index was brought up to the log after the end")
	}
	log.wantNone(t)
}

// A mount that another namespace has a copy of cannot end, but Unmount must.
func TestUnmountWithACopyElsewhere(t *testing.T) {
	m, dir, _ := mountSmall(t)
	elsewhere := exec.Command("sleep", "60")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // which is private then
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	if busy, err := m.Unmount(); !busy || err != nil {
		t.Errorf("unmount: busy %t, %v", busy, err)
	}
	if exists(dir + "/latest") {
		t.Error("still mounted")
	}
	if err := elsewhere.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = elsewhere.Wait() // it was killed
	m.Wait()
}

func TestUnmountWhileBusy(t *testing.T) {
	m, dir, _ := mountSmall(t)
	f, err := os.Open(dir + "/latest/f")
	if err != nil {
		t.Fatal(err)
	}
	if busy, err := m.Unmount(); !busy || err != nil {
		t.Errorf("unmount: busy %t, %v", busy, err)
	}
	if exists(dir + "/latest") {
		t.Error("still mounted")
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Errorf("the open file: %v", err)
	}
	f.Close()
	m.Wait()
}

// What others have mounted at the mount point is not unmounted: neither a newer mount of
// the repository, where the old one was detached while it was in use, nor what lies over it.
func TestUnmountLeavesOthers(t *testing.T) {
	m, dir, r := mountSmall(t)
	old, err := os.Open(dir + "/latest/f")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() // if the test did not
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if busy, err := m.Unmount(); !busy || err != nil {
		t.Errorf("unmount of what was detached: busy %t, %v", busy, err)
	}
	newer, err := fs.New(r.Repository, dir, fs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if busy, err := m.Unmount(); !busy || err != nil {
		t.Errorf("unmount of the old mount: busy %t, %v", busy, err)
	}
	wantContent(t, dir+"/latest/f", "x")
	if err := unix.Mount("over", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if busy, err := newer.Unmount(); !busy || err == nil || !strings.Contains(err.Error(), "still mounted at "+dir) {
		t.Errorf("unmount of what lies below: busy %t, %v", busy, err)
	}
	if n := mountsAt(t, dir); n != 2 {
		t.Errorf("%d mounts at the mount point", n)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if busy, err := newer.Unmount(); busy || err != nil {
		t.Errorf("unmount of the new mount: busy %t, %v", busy, err)
	}
	old.Close()
	if !t.Failed() {
		m.Wait()
		newer.Wait()
	}
}

// Several names lead to a directory, which the kernel knows by one name at a time.
func TestTwoNamesOfOneDirectory(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.dir("a")
	d.dir("a/b")
	d.file("a/b/c", "x")
	name := d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	var wg sync.WaitGroup
	stop := time.Now().Add(700 * time.Millisecond)
	for _, top := range []string{name, "2026-11-21", "latest", "2026-11"} {
		dir := filepath.Join(mnt, top, "a/b")
		open := int(openFD(t, dir))
		wg.Go(func() {
			for time.Now().Before(stop) {
				wantContent(t, dir+"/c", "x")
				wantNames(t, dir, "c")
				wantNames(t, mnt, name, "latest")
				var st unix.Stat_t
				if err := unix.Fstatat(open, "c", &st, 0); err != nil {
					t.Errorf("relative to %s: %v", dir, err)
				}
			}
		})
	}
	wg.Wait()
	log.wantNone(t)
}

// Who is in a directory is not moved to another path of it, which leads to another
// generation one day, when somebody looks at that.
func TestNamesThatAreNotListedMoveNobody(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.dir("etc")
	d.dir("etc/sub")
	d.file("etc/sub/f", "old")
	name := d.commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	var paths []string
	for _, path := range []string{name + "/etc/sub", "2026-11-21/etc/sub", "2026-11/etc/sub", "2026/etc/sub",
		".versions/" + name + "/etc/sub", ".versions/etc/" + name + "/sub", ".versions/etc/sub/" + name} {
		paths = append(paths, filepath.Join(mnt, path))
	}
	for _, path := range paths {
		dir := openFD(t, path)
		for _, other := range paths {
			wantContent(t, other+"/f", "old")
		}
		if is, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir)); is != path || err != nil {
			t.Errorf("who was in %s is in %s, %v", path, is, err)
		}
	}
	log.wantNone(t)
}

// A compaction moves contents and removes their old part at once: whoever reads
// in the moment before the mount knows is not to notice. The space of the old
// part is freed.
func TestCompactionUnderAReader(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	data := strings.Repeat("data", 100_000)
	d.file("f", data)
	d.commit("2026-11-21T03:00:00Z")
	mnt, log, m := mounted(t, r, fs.Options{})
	st := stat(t, mnt+"/latest/f")
	old := onlyPart(t, r)

	record, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	packer := archive.NewPacker(r.Store(), archive.PackerOptions{FrameRaw: 8 << 10}, record.AddPart)
	if err := packer.Add(archive.Member{Name: "f"}, archive.HashOf([]byte(data)), []byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	r.append(record, archive.Header{Kind: archive.KindCompaction, Time: time.Now()})
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup // the first one that fails learns of the compaction, the others of that
	for range 8 {
		readers.Go(func() {
			b := make([]byte, len(data))
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: st.Ino}, Size: uint32(len(b))}
			result, status := m.Read(in, b)
			if !status.Ok() {
				t.Errorf("read: %v", status)
				return
			}
			defer result.Done()
			if got, _ := result.Bytes(nil); string(got) != data {
				t.Errorf("read: %d other bytes", len(got))
			}
		})
	}
	readers.Wait()
	wantContent(t, mnt+"/latest/f", data)
	log.wantNone(t)

	moved := onlyPart(t, r)
	if !isOpen(t, moved) {
		t.Fatal("the part that was read is not kept open")
	}
	if err := os.Remove(moved); err != nil {
		t.Fatal(err)
	}
	m.ReleaseRemoved()
	if isOpen(t, moved) {
		t.Error("a part that was removed is kept open")
	}
}

func isOpen(t *testing.T, path string) bool {
	t.Helper()
	for _, e := range openFiles(t) {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.TrimSuffix(target, " (deleted)") == path {
			return true
		}
	}
	return false
}

func TestDamagedRecordIsLoggedOnce(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "x")
	d.commit("2026-11-21T03:00:00Z")
	mnt, log, m := mounted(t, r, fs.Options{})
	if err := os.WriteFile(r.Dir()+"/log/000000000002.jsonl.zst", []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "failures are not counted", func() bool { return m.Metrics().RefreshFailures >= 2 })
	time.Sleep(2200 * time.Millisecond) // three attempts
	said := log.all()
	if len(said) != 1 || !strings.Contains(said[0], "new generations are not shown") || !strings.Contains(said[0], "record 2") {
		t.Errorf("logged %q", said)
	}
	wantContent(t, mnt+"/latest/f", "x")
	mnt, _ = mount(t, r, fs.Options{})
	wantContent(t, mnt+"/latest/f", "x")
}

// damageIndex damages the index of a mounted repository, so that requests find it.
func damageIndex(t *testing.T, r *repo) {
	t.Helper()
	tables, err := filepath.Glob(r.IndexDir() + "/*/*.sst")
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables: %q, %v", tables, err)
	}
	for _, table := range tables {
		if err := os.Truncate(table, 0); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1200 * time.Millisecond) // what was decoded of it is let go
}

// A READ that waits while a damaged index is opened anew is answered from that one.
func TestReadDuringReopen(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "x")
	d.commit("2026-11-21T03:00:00Z")
	mnt, _, m := mounted(t, r, fs.Options{})
	f := stat(t, mnt+"/latest/f").Ino
	damageIndex(t, r)
	var reader sync.WaitGroup
	err := m.ReopenDuring(func() {
		reader.Go(func() {
			if got, status := readNode(m, f, 1); got != "x" || !status.Ok() {
				t.Errorf("%q, %v", got, status)
			}
		})
		time.Sleep(200 * time.Millisecond) // it waits
	})
	reader.Wait()
	if err != nil {
		t.Error(err)
	}
	if n := m.Metrics().Failures; n != 0 {
		t.Errorf("%d failures", n)
	}
}

// An index that is damaged under a mount is replaced without a new generation.
func TestDamagedIndexIsOpenedAnew(t *testing.T) {
	r := newRepo(t)
	d := r.begin("")
	d.dir("d")
	d.file("d/f", "x")
	name := d.commit("2026-11-21T03:00:00Z")
	mnt, log, _ := mounted(t, r, fs.Options{})
	path := filepath.Join(mnt, name, "d/f")
	damageIndex(t, r)
	_, err := os.ReadFile(path)
	wantErrno(t, "while the index is damaged", err, unix.EIO)
	eventually(t, "the index made anew is not there", func() bool { return exists(path) })
	wantContent(t, path, "x")
	wantNames(t, mnt, name, "latest")
	for _, text := range log.all() {
		if !strings.Contains(text, "index damaged") && !strings.Contains(text, "index 1 is not used") {
			t.Errorf("logged: %s", text)
		}
	}
}

func TestReadersWhileGenerationsComeAndGo(t *testing.T) {
	r := newRepo(t)
	content := func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), 10_000) }
	commit := func(i int) {
		d := r.begin("")
		d.file("f", content(i))
		d.file("same", "same")
		d.commit(fmt.Sprintf("2026-11-21T03:00:%02dZ", i))
	}
	commit(0)
	mnt, log := mount(t, r, fs.Options{CacheSize: 1 << 20})
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for last := 0; ; {
				select {
				case <-done:
					return
				default:
				}
				b, err := os.ReadFile(mnt + "/latest/f")
				var i int
				if _, scanErr := fmt.Sscanf(string(b[:min(8, len(b))]), "%08d", &i); err != nil || scanErr != nil || string(b) != content(i) || i < last {
					t.Errorf("generation %d after %d: %d bytes, %v", i, last, len(b), err)
					return
				}
				last = i
				wantContent(t, mnt+"/2026-11-21/same", "same")
				if _, err := os.ReadDir(mnt); err != nil {
					t.Error(err)
				}
			}
		})
	}
	before := r.last
	for i := 1; i <= 8; i++ {
		commit(i)
		head := r.last
		time.Sleep(150 * time.Millisecond)
		r.forget(before)
		before = head
	}
	eventually(t, "the last generation is not there", func() bool { target, _ := os.Readlink(mnt + "/latest"); return target == "2026-11-21T03-00-08Z" })
	close(done)
	wg.Wait()
	log.wantNone(t)
}
