package fs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"golang.org/x/sys/unix"
)

// mountsAt returns how many mounts lie on one another at a path.
func mountsAt(t *testing.T, dir string) int {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), " "+dir+" ")
}

// canReplace skips a test where the kernel cannot put a mount beneath another.
func canReplace(t *testing.T) {
	t.Helper()
	if !fs.CanReconnect() {
		t.Skip("replacing a mount takes root and Linux 6.5")
	}
}

func commitXattr(r *repo, name, at string) (generation string) {
	d := r.begin("")
	d.file(name, name, func(e *archive.Entry) {
		e.Attr.Mode = 0o640
		acl := "\x02\x00\x00\x00" + aclEntry(0x01, 6, -1) + aclEntry(0x02, 4, 1234) + aclEntry(0x04, 0, -1) + aclEntry(0x10, 4, -1) + aclEntry(0x20, 0, -1)
		e.Xattrs = []archive.Xattr{{Name: "system.posix_acl_access", Value: acl}, {Name: "user.x", Value: "1"}}
	})
	return d.commit(at)
}

// Where no generation has extended attributes the kernel is told so. Its
// checks of permissions are as right as ever.
func TestNoXattrs(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	d := r.begin("")
	d.file("f", "secret", func(e *archive.Entry) { e.Attr.Mode, e.Attr.GID = 0o640, 77 })
	d.file("g", "secret", func(e *archive.Entry) { e.Attr.Mode, e.Attr.GID = 0o640, 77 })
	d.commit("2026-11-21T03:00:00Z")
	for _, o := range []fs.Options{{}, {Generation: "latest"}} {
		mnt, log := mount(t, r, o)
		at := mnt + "/latest/"
		if o.Generation != "" {
			at = mnt + "/"
		}
		asUser(1234, 77, func() { wantContent(t, at+"f", "secret") })
		asUser(1234, 1234, func() {
			_, err := os.ReadFile(at + "g")
			wantErrno(t, "others", err, unix.EACCES)
		})
		for _, path := range []string{mnt, at, at + "f"} {
			_, err := unix.Lgetxattr(path, "user.x", nil)
			wantErrno(t, "getxattr "+path, err, unix.EOPNOTSUPP)
			_, err = unix.Llistxattr(path, nil)
			wantErrno(t, "listxattr "+path, err, unix.EOPNOTSUPP)
			_, err = unix.Lgetxattr(path, "system.posix_acl_access", nil)
			wantErrno(t, "ACL of "+path, err, unix.ENODATA)
		}
		log.wantNone(t)
	}
}

// A mount without extended attributes shows those of a later generation, while
// what is in use in it goes on.
func TestXattrsAppear(t *testing.T) {
	canReplace(t)
	for _, o := range []fs.Options{{}, {Private: true, NoExec: true}} {
		t.Run(fmt.Sprintf("private %t", o.Private), func(t *testing.T) { testXattrsAppear(t, o) })
	}
}

func testXattrsAppear(t *testing.T, o fs.Options) {
	r := newRepo(t)
	d := r.begin("")
	d.dir("d")
	d.file("d/f", strings.Repeat("data", 50_000))
	first := d.commit("2026-11-21T03:00:00Z")
	log := &messages{}
	o.Log = log.add
	mnt := mountpoint(t)
	m, err := fs.New(r.Repository, mnt, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }) // if the test did not
	options := mountOptions(t, mnt)
	if ahead := readAhead(t, mnt); ahead != "1024" {
		t.Errorf("the kernel reads ahead %s KiB", ahead)
	}
	root, sub, file := openRaw(t, mnt), openRaw(t, mnt+"/latest/d"), openRaw(t, mnt+"/latest/d/f")

	second := commitXattr(r, "x", "2026-11-21T04:00:00Z")
	eventually(t, "the attribute is not there", func() bool {
		_, err := unix.Lgetxattr(mnt+"/latest/x", "user.x", nil)
		return err == nil
	})
	wantNames(t, mnt, first, second, "latest")
	wantList(t, mnt+"/latest/x", "system.posix_acl_access", "user.x")
	wantContent(t, mnt+"/latest/d/f", strings.Repeat("data", 50_000))
	if !o.Private {
		asUser(1234, 1234, func() { wantContent(t, mnt+"/latest/x", "x") }) // by its ACL
	}
	if n := mountsAt(t, mnt); n != 1 {
		t.Errorf("%d mounts at the mount point", n)
	}
	if now := mountOptions(t, mnt); now != options {
		t.Errorf("the mount was %s and is %s", options, now)
	}
	if ahead := readAhead(t, mnt); ahead != "1024" {
		t.Errorf("the new mount reads ahead %s KiB", ahead)
	}

	dropCaches(t)
	b := make([]byte, 200_000)
	if n, err := unix.Pread(file, b, 0); string(b[:n]) != strings.Repeat("data", 50_000) {
		t.Errorf("the file that was open: %d bytes, %v", n, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(sub, "f", &st, 0); err != nil || st.Size != 200_000 {
		t.Errorf("a name in the directory that was open: %d bytes, %v", st.Size, err)
	}
	if err := unix.Fstatat(root, first+"/d/f", &st, 0); err != nil {
		t.Errorf("the first generation in the old mount: %v", err)
	}
	if err := unix.Fstatat(root, second, &st, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the second generation in the old mount: %v", err)
	}
	third := commitXattr(r, "y", "2026-11-21T05:00:00Z")
	eventually(t, "the next generation is not there", func() bool { return exists(filepath.Join(mnt, third, "y")) })

	if busy, err := m.Unmount(); !busy || err != nil {
		t.Errorf("unmount while the old mount is in use: busy %t, %v", busy, err)
	}
	if mountsAt(t, mnt) != 0 || exists(mnt+"/latest") {
		t.Error("still mounted")
	}
	if err := unix.Fstatat(sub, "f", &st, 0); err != nil {
		t.Errorf("the old mount after that: %v", err)
	}
	for _, fd := range []int{root, sub, file} {
		unix.Close(fd)
	}
	m.Wait()
	if said := log.all(); len(said) != 1 || !strings.Contains(said[0], "copies of it elsewhere") {
		t.Errorf("logged %q", said)
	}
}

// Where there was no generation yet the first one may have extended attributes without
// that the mount is replaced, so that copies of it go on.
func TestXattrsAppearInAnEmptyRepository(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	mnt, log := mount(t, r, fs.Options{})
	elsewhere := mountpoint(t)
	if err := unix.Mount(mnt, elsewhere, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(elsewhere, unix.MNT_DETACH) }()
	name := commitXattr(r, "x", "2026-11-21T04:00:00Z")
	for _, at := range []string{mnt, elsewhere} {
		eventually(t, "the attribute is not there", func() bool {
			_, err := unix.Lgetxattr(filepath.Join(at, name, "x"), "user.x", nil)
			return err == nil
		})
		wantNames(t, at, name, "latest")
	}
	log.wantNone(t)
}

// A mount of a repository whose path the kernel takes for too long is replaced as well.
func TestXattrsAppearBehindALongPath(t *testing.T) {
	canReplace(t)
	above := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("b", 200))
	if err := os.MkdirAll(above, 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRepoAt(t, filepath.Join(above, "repo"))
	r.begin("").commit("2026-11-21T03:00:00Z")
	mnt, log := mount(t, r, fs.Options{})
	commitXattr(r, "x", "2026-11-21T04:00:00Z")
	eventually(t, "the attribute is not there", func() bool {
		_, err := unix.Lgetxattr(mnt+"/latest/x", "user.x", nil)
		return err == nil
	})
	eventually(t, "the replacement is not told", func() bool { return len(log.all()) > 0 })
	if said := log.all(); len(said) != 1 || !strings.Contains(said[0], "the mount was replaced") {
		t.Errorf("logged %q", said)
	}
}

// What is committed and noticed while the mount is being made, by a READ that fails, is
// shown in it.
func TestGenerationDuringMount(t *testing.T) {
	r := newRepo(t)
	r.begin("").commit("2026-11-21T03:00:00Z")
	last, err := fs.LastShown(r.Repository, func(refresh func() bool) {
		r.begin("").commit("2026-11-21T04:00:00Z")
		if !refresh() {
			t.Error("the generation is not noticed")
		}
	})
	if err != nil || last != 2 {
		t.Errorf("record %d is shown, %v, want 2", last, err)
	}
}

// openRaw opens a file or directory that the test closes.
func openRaw(t *testing.T, path string) (fd int) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// mountOptions returns what mountinfo says of a mount, but for its numbers.
func mountOptions(t *testing.T, dir string) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if _, options, ok := strings.Cut(line, " "+dir+" "); ok {
			return options
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

// readAhead returns how far the kernel reads ahead in a mount.
func readAhead(t *testing.T, dir string) string {
	t.Helper()
	dev := stat(t, dir).Dev
	kib, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(kib))
}

// Something that is mounted over a mount is neither unmounted nor slipped under
// something; once it is gone, the mount is replaced.
func TestXattrsAppearBehindAnotherMount(t *testing.T) {
	canReplace(t)
	m, mnt, r := mountSmall(t)
	if err := unix.Mount("over", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	commitXattr(r, "x", "2026-11-21T04:00:00Z")
	time.Sleep(1200 * time.Millisecond) // it is seen
	if exists(mnt+"/latest") || mountsAt(t, mnt) != 2 {
		t.Errorf("%d mounts at the mount point", mountsAt(t, mnt))
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the attribute is not there", func() bool {
		_, err := unix.Lgetxattr(mnt+"/latest/x", "user.x", nil)
		return err == nil
	})
	if busy, err := m.Unmount(); busy || err != nil {
		t.Errorf("unmount: busy %t, %v", busy, err)
	}
	m.Wait()
	if mountsAt(t, mnt) != 0 {
		t.Error("still mounted")
	}
}

// Whoever unmounts while a mount is being replaced, leaves none behind.
func TestUnmountWhileXattrsAppear(t *testing.T) {
	canReplace(t)
	var wg sync.WaitGroup
	for i := range 24 {
		m, mnt, r := mountSmall(t)
		wg.Go(func() {
			commitXattr(r, "x", "2026-11-21T04:00:00Z")
			time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
			unmountSomehow(t, i, m, mnt)
			m.Wait()
			if n := mountsAt(t, mnt); n != 0 {
				t.Errorf("%d mounts are left", n)
			}
			if exists(mnt + "/latest") {
				t.Error("still mounted")
			}
			if n := m.Metrics().RefreshFailures; n != 0 {
				t.Errorf("%d failures", n)
			}
		})
	}
	wg.Wait()
}

// unmountSomehow unmounts as the program itself does, or umount, or umount -l.
func unmountSomehow(t *testing.T, i int, m *fs.Mount, mnt string) {
	switch i % 3 {
	case 0:
		if busy, err := m.Unmount(); busy || err != nil {
			t.Errorf("unmount: busy %t, %v", busy, err)
		}
	case 1:
		err := unix.Unmount(mnt, 0)
		for errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(mnt, 0)
		}
		if err != nil {
			t.Errorf("umount: %v", err)
		}
	case 2:
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Errorf("umount -l: %v", err)
		}
	}
}

// What others have mounted inside of a mount is not unmounted with it: it is replaced only
// once that is gone.
func TestXattrsAppearAroundAnotherMount(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	d := r.begin("")
	d.dir("d")
	name := d.commit("2026-11-21T03:00:00Z")
	mnt, log, m := mounted(t, r, fs.Options{})
	inside := filepath.Join(mnt, name, "d")
	if err := unix.Mount("inside", inside, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(inside, unix.MNT_DETACH) }() // if the test did not
	commitXattr(r, "x", "2026-11-21T04:00:00Z")
	eventually(t, "it is not tried twice", func() bool { return m.Metrics().RefreshFailures == 2 })
	if mountsAt(t, inside) != 1 || mountsAt(t, mnt) != 1 {
		t.Errorf("%d mounts at the mount point, and %d inside", mountsAt(t, mnt), mountsAt(t, inside))
	}
	if said := log.all(); len(said) != 1 || !strings.Contains(said[0], inside+" is mounted inside of it: unmount that") {
		t.Errorf("logged %q", said)
	}
	if err := unix.Unmount(inside, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the attribute is not shown", func() bool {
		_, err := unix.Lgetxattr(mnt+"/latest/x", "user.x", nil)
		return err == nil
	})
}

// A mount can be unmounted when it was just replaced, and something is being opened that
// takes a while.
func TestUnmountDuringRefresh(t *testing.T) {
	canReplace(t)
	m, mnt, _ := mountSmall(t)
	device := stat(t, mnt).Dev
	var reconnect sync.WaitGroup
	err := m.ReopenDuring(func() {
		reconnect.Go(func() {
			if err := m.Reconnect(); err != nil {
				t.Error(err)
			}
		})
		eventually(t, "the mount is not replaced", func() bool { return stat(t, mnt).Dev != device })
		unmounted := make(chan struct{})
		go func() {
			defer close(unmounted)
			if busy, err := m.Unmount(); busy || err != nil {
				t.Errorf("unmount: busy %t, %v", busy, err)
			}
		}()
		select {
		case <-unmounted:
		case <-time.After(10 * time.Second):
			t.Error("it waits for what is being opened")
		}
	})
	if err != nil {
		t.Error(err)
	}
	reconnect.Wait()
	m.Wait()
}
