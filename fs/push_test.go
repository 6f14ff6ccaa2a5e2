package fs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/fs"
	"github.com/backupfs/backupfs/index"
	"golang.org/x/sys/unix"
)

// cachedPages returns how many pages of a file are in the page cache, without
// reading any.
func cachedPages(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("counting cached pages takes Linux 6.5")
	}
	if err != nil {
		t.Fatal(err)
	}
	return st.Cache
}

// manyFiles makes a generation of directories with files of 5,000 bytes each,
// which take two pages, and returns the paths of the files in their order.
func manyFiles(r *repo, dirs, files int) (paths []string) {
	d := r.begin("")
	for i := range dirs {
		d.dir(fmt.Sprintf("d%03d", i))
		for k := range files {
			path := fmt.Sprintf("d%03d/f%03d", i, k)
			d.file(path, contentOf(path))
			paths = append(paths, path)
		}
	}
	d.commit("2026-11-21T03:00:00Z")
	return paths
}

func contentOf(path string) string { return strings.Repeat(path, 556)[:5000] }

// Who reads two files one after another gets the next ones from the page cache,
// and those of the next directory once it is listed. That holds again when the
// kernel has dropped everything, which it may do at any moment of this test.
func TestNeighboursArePushed(t *testing.T) {
	r := newRepo(t)
	manyFiles(r, 3, 60)
	mnt, log := mount(t, r, fs.Options{})
	list := func(dir string) {
		if _, err := os.ReadDir(filepath.Join(mnt, "latest", dir)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) { wantContent(t, filepath.Join(mnt, "latest", path), contentOf(path)) }
	pushed := func(path string) bool { return cachedPages(t, filepath.Join(mnt, "latest", path)) == 2 }
	began := false // later, lists alone are enough to go on
	for range 3 {
		eventually(t, "the next file is never pushed", func() bool {
			dropCaches(t)
			list("d000")
			read("d000/f000")
			if !began && pushed("d000/f002") {
				t.Error("one file is read, and its neighbour is pushed")
			}
			began = true
			read("d000/f001")
			return pushed("d000/f002")
		})
	}
	eventually(t, "nothing farther on is ever pushed", func() bool {
		dropCaches(t)
		list("d000")
		for _, path := range []string{"d000/f000", "d000/f001", "d000/f010", "d000/f030", "d000/f040"} {
			read(path)
		}
		time.Sleep(20 * time.Millisecond)
		if pushed("d001/f001") {
			t.Error("a file is pushed that nobody has heard of")
		}
		list("d001")
		time.Sleep(20 * time.Millisecond)
		return pushed("d000/f059") && pushed("d001/f000")
	})
	for k := range 60 {
		for dir := range 3 {
			read(fmt.Sprintf("d%03d/f%03d", dir, k))
		}
	}
	log.wantNone(t)
}

// Directories may be listed in another order than their files lie in.
func TestDirectoryBehindIsPushed(t *testing.T) {
	r := newRepo(t)
	manyFiles(r, 3, 20)
	eventually(t, "what lies behind another directory is never pushed", func() bool {
		mnt, log := mount(t, r, fs.Options{}) // where nothing was read before
		for _, dir := range []string{"d000", "d002", "d001"} {
			if _, err := os.ReadDir(filepath.Join(mnt, "latest", dir)); err != nil {
				t.Fatal(err)
			}
			if dir == "d000" {
				for _, path := range []string{"d000/f017", "d000/f018", "d000/f019"} {
					wantContent(t, filepath.Join(mnt, "latest", path), contentOf(path))
				}
			}
		}
		log.wantNone(t)
		return cachedPages(t, filepath.Join(mnt, "latest/d001/f000")) == 2
	})
}

// Random reads make nothing be pushed.
func TestRandomReadsPushNothing(t *testing.T) {
	r := newRepo(t)
	paths := manyFiles(r, 40, 100)
	mnt, _ := mount(t, r, fs.Options{})
	for i := range 40 {
		if _, err := os.ReadDir(fmt.Sprintf("%s/latest/d%03d", mnt, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(paths); i += 399 { // too far from one another
		wantContent(t, filepath.Join(mnt, "latest", paths[i]), contentOf(paths[i]))
	}
	cached := 0
	for _, path := range paths {
		if cachedPages(t, filepath.Join(mnt, "latest", path)) > 0 {
			cached++
		}
	}
	if want := (len(paths) + 398) / 399; cached > want {
		t.Errorf("%d files are cached, %d were read", cached, want)
	}
}

// Many readers in all orders neither stop one another nor get wrong bytes,
// while the kernel drops what it has.
func TestPushesUnderManyReaders(t *testing.T) {
	r := newRepo(t)
	paths := manyFiles(r, 20, 100)
	mnt, log := mount(t, r, fs.Options{CacheSize: 256 << 10})
	backwards := slices.Clone(paths)
	slices.Reverse(backwards)
	done := make(chan struct{})
	var wg, dropping sync.WaitGroup
	for i := range 8 {
		order := paths
		switch i % 4 {
		case 1:
			order = backwards
		case 2:
			order = slices.Clone(paths)
			rand.Shuffle(len(order), func(i, k int) { order[i], order[k] = order[k], order[i] })
		}
		wg.Go(func() {
			for _, path := range order {
				if strings.HasSuffix(path, "f000") {
					if _, err := os.ReadDir(filepath.Join(mnt, "latest", filepath.Dir(path))); err != nil {
						t.Error(err)
					}
				}
				wantContent(t, filepath.Join(mnt, "latest", path), contentOf(path))
			}
		})
	}
	dropping.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(30 * time.Millisecond):
				dropCaches(t)
			}
		}
	})
	wg.Wait()
	close(done)
	dropping.Wait()
	log.wantNone(t)
}

// A READ does not push the file that it reads, whose pages the kernel has locked until
// the answer, although others have begun its stream again behind that file meanwhile.
func TestReadDoesNotPushItself(t *testing.T) {
	r := newRepo(t)
	mnt, _, m := mounted(t, r, fs.Options{})
	paths := manyFiles(r, 1, 40)
	eventually(t, "the generation is not there", func() bool { return exists(mnt + "/latest") })
	var all []index.Ino
	for _, path := range paths {
		all = append(all, index.Ino(stat(t, filepath.Join(mnt, "latest", path)).Ino))
	}
	for at := 8; at < 20; at++ { // in all places of a frame
		for back := 1; back < 3; back++ {
			// The second READ of the same file shows that the kernel has dropped what it had.
			behind := all[at-back-1]
			pushed := m.ReadMeanwhile(all, at, behind, behind, all[at-back])
			if len(pushed) == 0 {
				t.Fatalf("READ of file %d: nothing is pushed", at)
			}
			if slices.Contains(pushed, all[at]) {
				t.Errorf("READ of file %d, stream begun again at %d: it is pushed itself", at, at-back-1)
			}
		}
	}
}
