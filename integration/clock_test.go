package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestClockJumps makes generations with a clock that is years ahead, and years behind
// again: their order is that of their numbers, and the latest is the last committed.
func TestClockJumps(t *testing.T) {
	src := tempDir(t)
	r := newRepo(t)
	m := r.mount()
	var want []string
	for i, at := range []string{"2026-05-01T12:00:00Z", "2093-01-01T00:00:00Z", "1971-07-01T00:00:00Z", "2026-05-01T11:00:00Z", "2026-05-01T12:00:00Z",
		"9999-12-31T23:59:59Z", "0001-01-01T00:00:01Z", "", "2026-05-01T10:00:00Z"} {
		write(t, filepath.Join(src, "file"), fmt.Sprint(i))
		args := []string{"--time", at}
		if at == "" { // the machine's own clock
			args = nil
		}
		s := r.all(src, args...)
		if s.Number != uint64(i+1) || s.New+s.Changed == 0 {
			t.Errorf("%s: %+v", at, s)
		}
		want = append(want, s.Generation)
		wantContent(t, m.at(s.Generation, "file"), fmt.Sprint(i))
		waitFor(t, 30*time.Second, "latest to be "+s.Generation, func() bool {
			return shell(t, `readlink "$1"`, m.path("latest")) == s.Generation+"\n"
		})
		wantContent(t, m.path("latest", "file"), fmt.Sprint(i))
		for back := range i + 1 {
			gen := fmt.Sprintf("latest~%d", back)
			if got := shell(t, `"$1" export "$2" "$3" /file | tar -xO`, mkbackup, r.dir, gen); got != fmt.Sprint(i-back) {
				t.Errorf("%s has %q, want %d", gen, got, i-back)
			}
		}
	}
	if want[4] != "2026-05-01T12-00-00Z.2" {
		t.Errorf("the second generation of one time is called %s", want[4])
	}
	if got := r.generations(); !slices.Equal(got, want) {
		t.Errorf("list: %q\nwant  %q", got, want)
	}
	// Of a day, the last one committed.
	wantContent(t, m.path("2026-05-01", "file"), "8")
	if s := r.all(src, "--time", "1980-01-01T00:00:00Z"); s.ReadBytes != 0 || s.Changed != 0 {
		t.Errorf("nothing changed but the clock: %+v", s)
	}
	if res := r.mkbackup("reindex"); res.code != 0 {
		t.Errorf("reindex: %s", res.stderr)
	}
	if got := r.generations(); !slices.Equal(got[:len(want)], want) {
		t.Errorf("list after a reindex: %q\nwant  %q", got, want)
	}
	// Go's zero time must not be taken for no time at all, that is, for now.
	if res := r.mkbackup("create", "--time", "0001-01-01T00:00:00Z", src); res.code != 2 {
		t.Errorf("create in the first second of year 1: exit code %d, want 2", res.code)
	}
	t.Logf("%d generations from %s to %s, in the order of their commits", len(want), want[6], want[5])
}

// TestDroppedByItsName: where two generations are of one second, the name of the first
// stands for no other one once it is dropped, neither to drop nor to read.
func TestDroppedByItsName(t *testing.T) {
	const name = "2026-05-01T12-00-00Z"
	src := tempDir(t)
	r := newRepo(t)
	m := r.mount()
	for _, data := range []string{"first", "second"} {
		write(t, filepath.Join(src, "file"), data)
		r.all(src, "--time", "2026-05-01T12:00:00Z")
	}
	wantContent(t, m.at(name+".2", "file"), "second")
	if res := r.mkbackup("forget", name); res.code != 0 {
		t.Fatalf("forget: exit code %d: %s", res.code, res.stderr)
	}
	waitFor(t, 30*time.Second, "the mount to show "+name+" no more", func() bool { _, err := os.Lstat(m.path(name)); return os.IsNotExist(err) })
	for _, spec := range []string{name, "2026-05-01T12:00:00Z", "/" + name} {
		for _, command := range []string{"forget", "export", "ls"} {
			if res := r.mkbackup(command, spec); res.code != 1 {
				t.Errorf("%s %s, which is dropped: exit code %d, want 1: %s%s", command, spec, res.code, res.stdout, res.stderr)
			}
		}
	}
	if got := r.generations(); !slices.Equal(got, []string{name + ".2"}) {
		t.Errorf("left: %q", got)
	}
	wantContent(t, m.at("2026-05-01", "file"), "second")
}

// TestFutureSource: a source that changed while the clock was ten years ahead, as its files
// say, is backed up without waiting for that time, and only once. What changes in it now is
// seen, also where size and time of the contents stay the same.
func TestFutureSource(t *testing.T) {
	for _, inodeSize := range []string{"128", "256"} { // times of whole seconds; of nanoseconds
		d := newDisk(t, "mkfs.ext4", "-q", "-F", "-I", inodeSize)
		src := mkdir(t, d.dir, "src")
		file := filepath.Join(src, "file")
		write(t, file, "one")
		future := time.Now().AddDate(10, 0, 0).Truncate(time.Second)
		must(t, os.Chtimes(file, future, future))
		run(t, "umount", d.dir)
		for _, name := range []string{"/src", "/src/file"} {
			run(t, "debugfs", "-w", "-R", fmt.Sprintf("set_inode_field %s ctime @%d", name, future.Unix()), d.image)
		}
		run(t, "mount", "-o", "loop", d.image, d.dir)
		if at := changedAt(t, file); at.Sec != future.Unix() {
			t.Fatalf("the file changed at %d, want %d", at.Sec, future.Unix())
		}
		r := newRepo(t)
		for i, want := range []string{"one", "one", "two", "two"} {
			if i == 2 {
				write(t, file, "two")
				must(t, os.Chtimes(file, future, future))
			}
			s := r.all(src)
			if s.Seconds > 10 || (s.ReadBytes > 0) != (i%2 == 0) {
				t.Errorf("inodes of %s bytes, run %d: %+v", inodeSize, i+1, s)
			}
			if got := shell(t, `"$1" export "$2" latest /file | tar -xO`, mkbackup, r.dir); got != want {
				t.Errorf("inodes of %s bytes, run %d: %q is stored, want %q", inodeSize, i+1, got, want)
			}
		}
	}
}
