package fs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
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

// isLostEnd reports whether a message says that the log ends before what is shown.
func isLostEnd(text string) bool { return strings.Contains(text, "before record") }

func lostEnds(said []string) (n int) {
	for _, text := range said {
		if isLostEnd(text) {
			n++
		}
	}
	return n
}

// wantLostEnds checks that nothing but so many lost ends is logged.
func (m *messages) wantLostEnds(t *testing.T, n int) {
	t.Helper()
	if said := m.all(); len(said) != n || lostEnds(said) != n {
		t.Errorf("logged %q, want %d lost ends", said, n)
	}
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
			eventually(t, "the other history is not there", func() bool { return exists(mnt + "/latest/dir-other/f") })
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
			eventually(t, "the next generation is not there", func() bool { return exists(mnt + "/latest/dir-next/f") })
			said := slices.DeleteFunc(log.all(), func(text string) bool { return strings.HasPrefix(text, "index 3 is not used") })
			if n := lostEnds(said); n > 1 || int64(n) != m.Metrics().RefreshFailures {
				t.Errorf("%d failures", m.Metrics().RefreshFailures)
			}
			said = slices.DeleteFunc(said, isLostEnd)
			if len(said) != 1 || !strings.Contains(said[0], "the mount was replaced") {
				t.Errorf("logged %q", said)
			}
			if !isMapped(t, r, 3) {
				t.Error("the old index is not mapped")
			}
			unix.Close(dir)
			unix.Close(file)
			eventually(t, "the old index stays open", func() bool { return !isMapped(t, r, 3) })
		})
	}
}

// What has the numbers of dropped generations, or of records that are none, is seen to be
// another history by its time.
func TestAnotherHistoryOfDroppedGenerations(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	for n := range 5 {
		version(r, fmt.Sprint(n+1), fmt.Sprintf("2026-11-21T0%d:00:00Z", n))
	}
	r.forget(3, 4)
	mnt, log, m := mounted(t, r, fs.Options{})
	r.lose(2)
	eventually(t, "the lost end is not told", func() bool { return len(log.all()) > 0 })
	if said := log.all(); len(said) != 1 || !strings.Contains(said[0], "ends with record 2, before record 6, which is shown") {
		t.Errorf("logged %q", said)
	}
	if n := m.Metrics().RefreshFailures; n != 1 {
		t.Errorf("%d failures", n)
	}
	wantContent(t, mnt+"/latest/dir-5/f", "5")
	version(r, "ahead", time.Now().AddDate(1, 0, 0).Format(time.RFC3339))
	time.Sleep(1200 * time.Millisecond) // it is seen
	wantContent(t, mnt+"/latest/dir-5/f", "5")
	version(r, "other", time.Now().Add(1500*time.Millisecond).Format(time.RFC3339Nano)) // by a clock that is ahead
	eventually(t, "the other history is not shown", func() bool { return exists(mnt + "/latest/dir-other/f") })
}

// A log that begins with a checkpoint, and was empty for a moment, is looked at from that
// checkpoint on.
func TestAnotherHistoryBehindACheckpoint(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	for n := range 4 {
		version(r, fmt.Sprint(n+1), fmt.Sprintf("2026-11-21T0%d:00:00Z", n))
	}
	mnt, _, m := mounted(t, r, fs.Options{})
	if err := r.RemoveRecord(1); err != nil { // as if record 2 were a checkpoint
		t.Fatal(err)
	}
	log := filepath.Join(r.Dir(), "log")
	if err := os.Rename(log, log+".bad"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(log, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the empty log is not counted", func() bool { return m.Metrics().RefreshFailures == 1 })
	wantContent(t, mnt+"/latest/dir-4/f", "4")
	for _, number := range []uint64{2, 3} {
		name := filepath.Base(archive.RecordStoreName(number))
		if err := os.Rename(filepath.Join(log+".bad", name), filepath.Join(log, name)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1200 * time.Millisecond) // it is seen
	if n := m.Metrics().RefreshFailures; n != 1 {
		t.Errorf("%d failures once records are back", n)
	}
}

// isMapped reports whether this process has a sealed index of a repository in its memory.
func isMapped(t *testing.T, r *repo, number uint64) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(maps), fmt.Sprintf("%s/index/%012d/", r.Dir(), number))
}

// Where the mount cannot show what the log says now, it goes on with what it shows, and
// says once what to do.
func TestAnotherHistoryIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		o       fs.Options
		rewrite func(r *repo)
		said    string
	}{
		"a single generation": {fs.Options{Generation: "latest"}, func(r *repo) {
			r.lose(1)
			version(r, "other", "2026-11-21T06:00:00Z")
		}, "the log has lost records that are shown, and has others by their numbers: unmount, and mount it anew"},
		"a repository that cannot be opened": {fs.Options{}, func(r *repo) {
			if err := os.Remove(filepath.Join(r.Dir(), "repo.json")); err != nil {
				t.Fatal(err)
			}
			r.lose(1)
			version(r, "other", "2026-11-21T06:00:00Z")
		}, "has lost its repo.json"},
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
		}, "is another repository than the one that was mounted: unmount, and mount it anew"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			version(r, "one", "2026-11-21T03:00:00Z")
			version(r, "two", "2026-11-21T04:00:00Z")
			mnt, log, m := mounted(t, r, c.o)
			c.rewrite(r)
			eventually(t, "the failures are not counted", func() bool { return m.Metrics().RefreshFailures >= 2 })
			if said := log.all(); len(said) != 1 || !strings.Contains(said[0], c.said) {
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

// A file handle may be of a directory that the log had in another history. Nothing has
// failed then.
func TestDirectoryOfAnotherHistory(t *testing.T) {
	r := newRepo(t)
	version(r, "one", "2026-11-21T03:00:00Z")
	_, log, m := mounted(t, r, fs.Options{})
	for request, status := range m.AskDirectory(1, 1<<30) {
		if status != fuse.Status(unix.ESTALE) {
			t.Errorf("%s: %v", request, status)
		}
	}
	if n := m.Metrics().Failures; n != 0 {
		t.Errorf("%d failures are counted", n)
	}
	log.wantNone(t)
}

// Each replacement of the mount is told.
func TestAnotherHistoryTwice(t *testing.T) {
	canReplace(t)
	r := newRepo(t)
	version(r, "one", "2026-11-21T03:00:00Z")
	version(r, "two", "2026-11-21T04:00:00Z")
	mnt, log, _ := mounted(t, r, fs.Options{})
	for n, data := range []string{"three", "four"} {
		r.lose(1)
		version(r, data, fmt.Sprintf("2026-11-21T0%d:00:00Z", 5+n))
		eventually(t, "the other history is not there", func() bool { return exists(mnt + "/latest/dir-" + data + "/f") })
		eventually(t, "the replacement is not told", func() bool {
			return strings.Count(strings.Join(log.all(), "\n"), "the mount was replaced") == n+1
		})
	}
}

// A log that ends before what is shown is let be, until it grows; that is said once.
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
	eventually(t, "the next generation is not there", func() bool { return exists(mnt + "/latest/dir-three/f") })
	log.wantLostEnds(t, 1)
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
	eventually(t, "the next generation is not there", func() bool { return exists(mnt + "/latest/dir-four/f") })
	log.wantLostEnds(t, 2)
}
