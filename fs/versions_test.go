package fs_test

import (
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"github.com/backupfs/backupfs/index"
	"golang.org/x/sys/unix"
)

// The generations of a test, one a day.
func day(n int) string { return fmt.Sprintf("2026-11-%02dT03:00:00Z", n) }

func name(n int) string { return fmt.Sprintf("2026-11-%02dT03-00-00Z", n) }

// generation commits a generation of a day.
func generation(r *repo, source string, n int, changes func(d *draft)) {
	r.t.Helper()
	d := r.begin(source)
	changes(d)
	d.commit(day(n))
}

func mtime(sec int64) func(*archive.Entry) {
	return func(e *archive.Entry) { e.Attr.Mtime.Sec = sec }
}

func TestVersions(t *testing.T) {
	r := newRepo(t)
	generation(r, "", 1, func(d *draft) {
		d.dir("etc")
		d.file("etc/conf", "one")
		d.file("etc/"+name(2), "named like a generation")
		d.file("etc/"+name(3), "and like a version")
		d.file("keep", "kept")
	})
	generation(r, "", 2, func(d *draft) { d.file("etc/conf", "two two", func(e *archive.Entry) { e.Attr.Mode = 0o600 }) })
	generation(r, "", 3, func(d *draft) {
		d.gone("etc/conf")
		d.dir("etc", mtime(3))
	})
	generation(r, "", 4, func(d *draft) {
		d.node("etc/conf", archive.Attr{Type: archive.TypeSymlink, Mode: 0o777, Size: 4}, func(e *archive.Entry) { e.Target = "keep" })
	})
	generation(r, "", 5, func(d *draft) {
		d.dir("etc/conf")
		d.file("etc/conf/d", "in the directory")
	})
	generation(r, "web1", 6, func(d *draft) { d.file("other", "of web1") })
	mnt, log := mount(t, r, fs.Options{})
	at := filepath.Join(mnt, ".versions")

	wantNames(t, mnt, name(1), name(2), name(3), name(4), name(5), "latest", "web1")
	conf := filepath.Join(at, "etc/conf")
	wantNames(t, conf, name(1), name(2), name(4), name(5))
	wantContent(t, filepath.Join(conf, name(1)), "one")
	wantContent(t, filepath.Join(conf, name(2)), "two two")
	if st := stat(t, filepath.Join(conf, name(2))); st.Mode != unix.S_IFREG|0o600 || st.Ino != stat(t, filepath.Join(mnt, name(2), "etc/conf")).Ino {
		t.Errorf("a version: %+v", st)
	}
	if target, err := os.Readlink(filepath.Join(conf, name(4))); err != nil || target != "keep" {
		t.Errorf("a symlink: %q, %v", target, err)
	}
	// A directory of a generation stays where it is, although it is found here, too.
	inGeneration, err := os.Open(filepath.Join(mnt, name(5), "etc/conf"))
	if err != nil {
		t.Fatal(err)
	}
	defer inGeneration.Close()
	wantContent(t, filepath.Join(conf, name(5), "d"), "in the directory")
	wantContent(t, filepath.Join(conf, "d", name(5)), "in the directory")
	wantNames(t, filepath.Join(conf, "d"), name(5))
	wantNames(t, filepath.Join(at, name(1)), "etc", "keep")
	wantContent(t, filepath.Join(at, name(1), "etc/conf"), "one")
	if is, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", inGeneration.Fd())); err != nil || is != inGeneration.Name() {
		t.Errorf("%s was moved to %s, %v", inGeneration.Name(), is, err)
	}
	wantNames(t, at, name(1))
	wantNames(t, filepath.Join(at, "keep"), name(1))
	wantNames(t, filepath.Join(at, "etc"), name(1), name(3))
	wantNames(t, filepath.Join(at, "etc", name(1)), name(2), name(3), "conf")
	// What is called like a version is hidden by it; what is only called like a generation is not.
	wantNames(t, filepath.Join(at, "etc", name(3)), name(2), name(3))
	wantNames(t, filepath.Join(at, "etc", name(2)), name(1))
	wantNames(t, filepath.Join(mnt, "web1/.versions"), name(6))
	wantContent(t, filepath.Join(mnt, "web1/.versions/other", name(6)), "of web1")
	for _, path := range []string{"other", "none", "etc/none", "keep/none", "keep/" + name(2), "etc/conf/none/none", "keep/" + name(1)[:10]} {
		_, err := os.Lstat(filepath.Join(at, path))
		wantErrno(t, path, err, syscall.ENOENT)
	}
	wantErrno(t, "mkdir", os.Mkdir(filepath.Join(at, "new"), 0o755), syscall.EROFS)
	_, err = os.Lstat(filepath.Join(mnt, name(1), ".versions"))
	wantErrno(t, ".versions in a generation", err, syscall.ENOENT)

	// A file comes and one is forgotten while all is mounted, and a listing is in the kernel's cache.
	dir, err := os.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	generation(r, "", 7, func(d *draft) { d.file("etc/new", "new") })
	eventually(t, "a new file is not there", func() bool { return exists(filepath.Join(at, "etc/new", name(7))) })
	generation(r, "", 8, func(d *draft) { d.file("etc/new", "newer", mtime(8)) })
	eventually(t, "a new version is not there", func() bool { return len(names(t, filepath.Join(at, "etc/new"))) == 2 })
	r.forget(1, 4)
	eventually(t, "forgotten versions are still there", func() bool { return len(names(t, conf)) == 2 })
	wantNames(t, conf, name(2), name(5))
	wantNames(t, filepath.Join(at, "keep"), name(2))
	log.wantNone(t)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestVersionsOfOneSource(t *testing.T) {
	r := newRepo(t)
	generation(r, "web1", 1, func(d *draft) { d.file("file", "of web1") })
	all, _ := mount(t, r, fs.Options{})
	wantContent(t, filepath.Join(all, "web1/.versions/file", name(1)), "of web1")
	_, err := os.Lstat(filepath.Join(all, ".versions"))
	wantErrno(t, ".versions of a source without generations", err, syscall.ENOENT)
	one, _ := mount(t, r, fs.Options{Source: "web1"})
	wantContent(t, filepath.Join(one, ".versions/file", name(1)), "of web1")
	pinned, _ := mount(t, r, fs.Options{Source: "web1", Generation: "latest"})
	wantContent(t, filepath.Join(pinned, "file"), "of web1")
	_, err = os.Lstat(filepath.Join(pinned, ".versions"))
	wantErrno(t, ".versions in one generation", err, syscall.ENOENT)
}

// TestVersionsManyNames reads a long listing in pieces.
func TestVersionsManyNames(t *testing.T) {
	r := newRepo(t)
	var want []string
	for n := range 60 {
		d := r.begin("")
		d.file("file", fmt.Sprint(n), mtime(int64(n)))
		want = append(want, d.commit(time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC).Format(time.RFC3339)))
	}
	mnt, log := mount(t, r, fs.Options{})
	wantNames(t, filepath.Join(mnt, ".versions/file"), want...)
	for n, name := range want {
		wantContent(t, filepath.Join(mnt, ".versions/file", name), fmt.Sprint(n))
	}
	log.wantNone(t)
}

// TestVersionsRights checks that nobody reads by ".versions" what a generation
// closes to him.
func TestVersionsRights(t *testing.T) {
	const alice, bob = 1001, 1002
	owned := func(uid, mode uint32) func(*archive.Entry) {
		return func(e *archive.Entry) { e.Attr.UID, e.Attr.GID, e.Attr.Mode = uid, uid, mode }
	}
	// user::rwx, user:1002:r-x, group::---, mask::r-x, other::---
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xea\x03\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	masked := strings.Replace(acl, "\x10\x00\x05", "\x10\x00\x02", 1)   // mask::-w- leaves nothing of bob's rights
	masked = strings.Replace(masked, "\x20\x00\x00", "\x20\x00\x05", 1) // other::r-x
	r := newRepo(t)
	generation(r, "", 1, func(d *draft) {
		for _, dir := range []string{"always", "opened", "passed-on"} {
			d.dir(dir, owned(alice, 0o700))
			d.file(dir+"/file", dir)
		}
		d.dir("acl", owned(alice, 0o750), func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "system.posix_acl_access", Value: acl}} })
		d.file("acl/file", "acl")
		d.dir("masked", owned(alice, 0o725), func(e *archive.Entry) { e.Xattrs = []archive.Xattr{{Name: "system.posix_acl_access", Value: masked}} })
		d.file("masked/file", "masked")
		d.dir("open", owned(alice, 0o755))
		d.file("open/file", "open")
		d.dir("now", owned(alice, 0o755))
		d.file("now/file", "now")
	})
	generation(r, "", 2, func(d *draft) {
		d.dir("now", owned(alice, 0o700))
		d.dir("opened", owned(alice, 0o755))
		d.dir("passed-on", owned(bob, 0o700))
	})
	mnt, log := mount(t, r, fs.Options{})
	at := filepath.Join(mnt, ".versions")
	for _, c := range []struct {
		dir        string
		alice, bob bool
	}{
		{"always", true, false}, {"now", true, false}, {"opened", true, false}, {"passed-on", false, false}, {"open", true, true}, {"acl", true, true}, {"masked", true, false},
	} {
		file := filepath.Join(at, c.dir, "file", name(1))
		wantContent(t, file, c.dir) // root may
		for uid, may := range map[int]bool{alice: c.alice, bob: c.bob} {
			asUser(uid, uid, func() {
				_, listErr := os.ReadDir(filepath.Join(at, c.dir))
				_, readErr := os.ReadFile(file)
				for what, err := range map[string]error{"list": listErr, "read": readErr} {
					if may && err != nil {
						t.Errorf("%s of %s by %d: %v", what, c.dir, uid, err)
					} else if !may {
						wantErrno(t, fmt.Sprintf("%s of %s by %d", what, c.dir, uid), err, syscall.EACCES)
					}
				}
			})
		}
	}
	if st := stat(t, filepath.Join(at, "opened")); st.Mode != unix.S_IFDIR|0o700 || st.Uid != alice {
		t.Errorf("a directory that was opened: %+v", st)
	}
	if st := stat(t, filepath.Join(at, "passed-on")); st.Mode != unix.S_IFDIR || st.Uid != 0 {
		t.Errorf("a directory that was passed on: %+v", st)
	}
	log.wantNone(t)
}

// TestVersionsForgottenPaths looks up more paths than are remembered: the kernel
// asks again for those that were forgotten.
func TestVersionsForgottenPaths(t *testing.T) {
	r := newRepo(t)
	generation(r, "", 1, func(d *draft) {
		for n := range 20 {
			dir := fmt.Sprintf("dir%02d", n)
			d.dir(dir)
			d.dir(dir + "/sub")
			d.file(dir+"/sub/file", dir)
		}
	})
	mnt, log, m := mounted(t, r, fs.Options{})
	m.LimitPaths(6)
	at := filepath.Join(mnt, ".versions")
	for range 3 {
		for n := range 20 {
			dir := fmt.Sprintf("dir%02d", n)
			wantContent(t, filepath.Join(at, dir, "sub/file", name(1)), dir)
			wantContent(t, filepath.Join(at, dir, name(1), "sub/file"), dir)
			if st := stat(t, filepath.Join(at, dir, "sub")); st.Mode != unix.S_IFDIR|0o755 {
				t.Errorf("%s: %+v", dir, st)
			}
		}
	}
	// In a generation nothing has to be remembered.
	found := 0
	err := filepath.WalkDir(filepath.Join(at, name(1)), func(_ string, _ iofs.DirEntry, err error) error {
		found++
		return err
	})
	if err != nil || found != 1+20*3 {
		t.Errorf("a walk finds %d paths, %v", found, err)
	}
	log.wantNone(t)
}

// BenchmarkVersions lists the versions of a path of 1,000,000 files, of which each of 300
// generations changed 1,000, through a mount of which nothing is in any cache: of a file that
// changed in all of them, and of one that changed in a few.
func BenchmarkVersions(b *testing.B) {
	const files, perDir, generations, changes = 1_000_000, 20, 300, 1_000
	path := func(i int) string { return fmt.Sprintf("d%05d/f%02d", i/perDir, i%perDir) }
	r := newRepo(b)
	for g := range generations {
		d := r.begin("")
		for i := 0; g == 0 && i < files; i++ {
			if i%perDir == 0 {
				d.dir(filepath.Dir(path(i)))
			}
			d.file(path(i), "first")
		}
		for i := 0; g > 0 && i < changes; i++ {
			d.file(path((i*(files/changes)+min(i, g))%files), fmt.Sprint("generation ", g), func(e *archive.Entry) { e.Attr.Mtime.Sec += int64(g) })
		}
		d.commit(time.Date(2026, 1, 1+g, 3, 0, 0, 0, time.UTC).Format(time.RFC3339))
		db, err := index.Open(r.Repository, index.Options{}) // as each run publishes one
		if err != nil {
			b.Fatal(err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
	mnt, _, _ := mounted(b, r, fs.Options{})
	for name, c := range map[string]struct {
		path string
		want int
	}{"All": {path(0), generations}, "Few": {path(5*(files/changes) + 3), 2}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dropCaches(b)
				b.StartTimer()
				entries, err := os.ReadDir(filepath.Join(mnt, ".versions", c.path))
				if err != nil || len(entries) != c.want {
					b.Fatalf("%d versions, %v, want %d", len(entries), err, c.want)
				}
			}
		})
	}
}
