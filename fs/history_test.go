package fs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"golang.org/x/sys/unix"
)

// lose makes the log end with a record, which is the base of the next generation.
func (r *repo) lose(after uint64) {
	r.t.Helper()
	for ; r.last > after; r.last-- {
		if err := r.RemoveRecord(r.last); err != nil {
			r.t.Fatal(err)
		}
	}
	var err error
	if r.previous, err = r.RecordDigest(after); err != nil {
		r.t.Fatal(err)
	}
	r.heads[""] = after
}

// version commits a generation with a file "f", below a directory that is new with it.
func version(r *repo, data, at string) (generation string) {
	d := r.begin("")
	d.dir("dir-" + data)
	d.file("dir-"+data+"/f", data)
	return d.commit(at)
}

// A log that has lost its last records, and has others by their numbers, is shown by a
// new connection. Who is in the old one goes on with what was there.
func TestAnotherHistory(t *testing.T) {
	canReplace(t)
	for name, rewrite := range map[string]func(r *repo){
		"the same number": func(r *repo) {
			r.lose(2)
			version(r, "other", "2026-11-21T06:00:00Z")
		},
		"a greater number": func(r *repo) {
			r.lose(2)
			version(r, "another", "2026-11-21T06:00:00Z")
			version(r, "other", "2026-11-21T07:00:00Z")
		},
		"a lesser number": func(r *repo) {
			r.lose(1)
			time.Sleep(1200 * time.Millisecond) // it is seen
			version(r, "other", "2026-11-21T06:00:00Z")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			version(r, "one", "2026-11-21T03:00:00Z")
			version(r, "two", "2026-11-21T04:00:00Z")
			lost := version(r, "three", "2026-11-21T05:00:00Z")
			mnt, log, m := mounted(t, r, fs.Options{})
			dir, file := openRaw(t, mnt+"/latest/dir-three"), openRaw(t, mnt+"/latest/dir-three/f")
			for _, list := range []string{mnt + "/latest/", mnt + "/" + lost} {
				if len(names(t, list)) == 0 {
					t.Error("an empty generation")
				}
			}
			rewrite(r)
			within(t, "the other history", func() bool { return exists(mnt + "/latest/dir-other/f") })
			wantContent(t, mnt+"/latest/dir-other/f", "other")
			if exists(mnt+"/"+lost) || exists(mnt+"/latest/dir-three") {
				t.Error("what was lost is shown")
			}
			dropCaches(t)
			var st unix.Stat_t
			if err := unix.Fstatat(dir, "f", &st, 0); err != nil || st.Size != int64(len("three")) {
				t.Errorf("in the directory that was open: %d bytes, %v", st.Size, err)
			}
			b := make([]byte, 100)
			if n, err := unix.Pread(file, b, 0); string(b[:n]) != "three" {
				t.Errorf("the file that was open: %q, %v", b[:n], err)
			}
			version(r, "next", "2026-11-21T08:00:00Z")
			within(t, "the next generation", func() bool { return exists(mnt + "/latest/dir-next/f") })
			said := slices.DeleteFunc(log.all(), func(text string) bool { return strings.HasPrefix(text, "index 3 is not used") })
			if len(said) != 1 || !strings.Contains(said[0], "the mount was replaced") {
				t.Errorf("logged %q", said)
			}
			if n := m.Metrics().RefreshFailures; n != 0 {
				t.Errorf("%d failures", n)
			}
			unix.Close(dir)
			unix.Close(file)
		})
	}
}

// Where the mount cannot show what the log says now, it goes on with what it shows, and
// says once what to do.
func TestAnotherHistoryIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		o       fs.Options
		rewrite func(r *repo)
	}{
		"a single generation": {fs.Options{Generation: "latest"}, func(r *repo) {
			r.lose(1)
			version(r, "other", "2026-11-21T06:00:00Z")
		}},
		"another repository": {fs.Options{}, func(r *repo) {
			for _, old := range []string{"repo.json", "log", "index"} {
				if err := os.RemoveAll(filepath.Join(r.Dir(), old)); err != nil {
					t.Fatal(err)
				}
			}
			elsewhere := newRepo(t)
			version(elsewhere, "other", "2026-11-21T06:00:00Z")
			for _, anew := range []string{"repo.json", "log"} {
				if err := os.Rename(filepath.Join(elsewhere.Dir(), anew), filepath.Join(r.Dir(), anew)); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			version(r, "one", "2026-11-21T03:00:00Z")
			version(r, "two", "2026-11-21T04:00:00Z")
			mnt, log, m := mounted(t, r, c.o)
			c.rewrite(r)
			eventually(t, "the failures are not counted", func() bool { return m.Metrics().RefreshFailures >= 2 })
			if said := log.all(); len(said) != 1 || !strings.Contains(said[0], "mount it anew") {
				t.Errorf("logged %q", said)
			}
			at := mnt
			if c.o.Generation == "" {
				at += "/latest"
			}
			wantContent(t, at+"/dir-two/f", "two")
		})
	}
}

// A log that ends before what is shown is let be, until it grows.
func TestLostRecordsAreShown(t *testing.T) {
	r := newRepo(t)
	version(r, "one", "2026-11-21T03:00:00Z")
	version(r, "two", "2026-11-21T04:00:00Z")
	mnt, log, _ := mounted(t, r, fs.Options{})
	file := filepath.Join(r.Dir(), archive.RecordStoreName(2))
	if err := os.Rename(file, file+".aside"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond) // it is seen
	wantContent(t, mnt+"/latest/dir-two/f", "two")
	if err := os.Rename(file+".aside", file); err != nil {
		t.Fatal(err)
	}
	version(r, "three", "2026-11-21T05:00:00Z")
	within(t, "the next generation", func() bool { return exists(mnt + "/latest/dir-three/f") })
	log.wantNone(t)
}

// Lost records that are put back one after the other are those that they were.
func TestLostRecordsArePutBack(t *testing.T) {
	r := newRepo(t)
	version(r, "one", "2026-11-21T03:00:00Z")
	version(r, "two", "2026-11-21T04:00:00Z")
	version(r, "three", "2026-11-21T05:00:00Z")
	mnt, log, _ := mounted(t, r, fs.Options{})
	move := func(number uint64, from, to string) {
		t.Helper()
		file := filepath.Join(r.Dir(), archive.RecordStoreName(number))
		if err := os.Rename(file+from, file+to); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1200 * time.Millisecond) // it is seen
		wantContent(t, mnt+"/latest/dir-three/f", "three")
	}
	move(3, "", ".aside")
	move(2, "", ".aside")
	move(2, ".aside", "")
	move(3, ".aside", "")
	version(r, "four", "2026-11-21T06:00:00Z")
	within(t, "the next generation", func() bool { return exists(mnt + "/latest/dir-four/f") })
	log.wantNone(t)
}
