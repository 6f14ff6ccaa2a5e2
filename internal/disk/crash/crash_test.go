package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// newDisk returns a Disk and a way to name files on it.
func newDisk(t *testing.T) (*Disk, func(string) string) {
	t.Helper()
	root := t.TempDir()
	return New(root, Options{}), func(name string) string { return filepath.Join(root, name) }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// put makes a file in two writes.
func put(t *testing.T, d *Disk, name string, sync bool) {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	defer f.Close()
	for _, text := range []string{"ab", "cd"} {
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if sync {
		must(t, f.Sync())
	}
}

// outcomes returns all that may be on a disk now, each state as a list of names and
// contents, from many seeds. It makes sure that Write makes what Key tells apart.
func outcomes(t *testing.T, d *Disk) []string {
	t.Helper()
	keys := map[[32]byte]string{}
	for seed := range uint64(3000) {
		s := d.Crash(d.Len(), seed, "")
		key := s.Key(func(path string) (string, bool) { return path, true })
		if _, known := keys[key]; known {
			continue
		}
		dir := t.TempDir()
		must(t, s.Write(dir))
		keys[key] = listing(t, dir)
	}
	list := slices.Sorted(maps.Values(keys))
	if unique := slices.Compact(slices.Clone(list)); len(unique) != len(list) {
		t.Errorf("states of different keys are the same: %q", list)
	}
	return list
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if e.IsDir() {
			list = append(list, rel+"/")
			return err
		}
		data, err := os.ReadFile(path)
		list = append(list, fmt.Sprintf("%s=%s", rel, strings.ReplaceAll(string(data), "\x00", "0")))
		return err
	}))
	return strings.Join(list, " ")
}

// TestOutcomes: what may be there after a crash is exactly this.
func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(d *Disk, at func(string) string)
		want []string
	}{
		"a file that was not synced": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), false)
		}, []string{"", "f=", "f=00", "f=0000", "f=00c", "f=00cd", "f=a", "f=a000", "f=a0c", "f=a0cd", "f=ab", "f=ab00", "f=abc", "f=abcd"}},
		"a file that was synced, but not its directory": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), true)
		}, []string{"", "f=abcd"}},
		"a file that was synced, and its directory": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), true)
			must(t, d.SyncDir(at("")))
		}, []string{"f=abcd"}},
		"a directory that was synced, but not the one above": {func(d *Disk, at func(string) string) {
			must(t, d.Mkdir(at("d"), 0o700))
			put(t, d, at("d/f"), true)
			must(t, d.SyncDir(at("d")))
		}, []string{"", "d/ d/f=abcd"}},
		"a file that was renamed": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), true)
			must(t, d.SyncDir(at("")))
			must(t, d.RenameNew(at("f"), at("g")))
		}, []string{"f=abcd", "f=abcd g=abcd", "g=abcd"}},
		"a file that was renamed to a directory that was synced": {func(d *Disk, at func(string) string) {
			must(t, d.Mkdir(at("d"), 0o700))
			put(t, d, at("f"), true)
			must(t, d.SyncDir(at("")))
			must(t, d.Rename(at("f"), at("d/f")))
			must(t, d.SyncDir(at("d")))
		}, []string{"d/ d/f=abcd", "d/ d/f=abcd f=abcd"}},
		"a file in the place of another": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), true)
			f, err := d.OpenFile(at("g"), os.O_WRONLY|os.O_CREATE, 0o600)
			must(t, err)
			must(t, f.Close())
			must(t, d.SyncDir(at("")))
			must(t, d.Rename(at("f"), at("g")))
		}, []string{"f=abcd g=", "f=abcd g=abcd", "g=abcd"}},
		"directories that were swapped": {func(d *Disk, at func(string) string) {
			must(t, d.Mkdir(at("d"), 0o700))
			must(t, d.Mkdir(at("e"), 0o700))
			put(t, d, at("e/f"), true)
			must(t, d.SyncDir(at("e")))
			must(t, d.SyncDir(at("")))
			must(t, d.Exchange(at("d"), at("e")))
		}, []string{"d/ d/f=abcd e/", "d/ e/ e/f=abcd"}},
		"a directory that was renamed": {func(d *Disk, at func(string) string) {
			must(t, d.Mkdir(at("d"), 0o700))
			put(t, d, at("d/f"), true)
			must(t, d.SyncDir(at("d")))
			must(t, d.SyncDir(at("")))
			must(t, d.Rename(at("d"), at("e")))
		}, []string{"d/ d/f=abcd", "e/ e/f=abcd"}},
		"removals in any order": {func(d *Disk, at func(string) string) {
			must(t, d.Mkdir(at("d"), 0o700))
			put(t, d, at("d/f"), true)
			must(t, d.Link(at("d/f"), at("d/g")))
			must(t, d.SyncDir(at("d")))
			must(t, d.SyncDir(at("")))
			must(t, d.RemoveAll(at("d")))
		}, []string{"", "d/", "d/ d/f=abcd", "d/ d/f=abcd d/g=abcd", "d/ d/g=abcd"}},
		"a file that was cut and written anew": {func(d *Disk, at func(string) string) {
			put(t, d, at("f"), true)
			must(t, d.SyncDir(at("")))
			f, err := d.OpenFile(at("f"), os.O_WRONLY|os.O_TRUNC, 0o600)
			must(t, err)
			_, err = f.Write([]byte("x"))
			must(t, err)
			must(t, f.Close())
		}, []string{"f=", "f=0", "f=0bcd", "f=abcd", "f=x", "f=xbcd"}},
	} {
		t.Run(name, func(t *testing.T) {
			d, at := newDisk(t)
			c.do(d, at)
			if got := outcomes(t, d); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			must(t, d.Compare())
		})
	}
}

// TestLost: a sync that is called for at a place that is lost does nothing.
func TestLost(t *testing.T) {
	d, at := newDisk(t)
	put(t, d, at("f"), true)
	must(t, d.SyncDir(at("")))
	if len(d.Syncs()) != 0 {
		t.Errorf("syncs of a test have places: %v", d.Syncs())
	}
	for i, o := range d.log {
		if o.kind == syncFile || o.kind == syncDir {
			d.log[i].site = fmt.Sprintf("a/b.go:%d c/d.go:1", o.kind)
		}
	}
	fileSync, dirSync := fmt.Sprintf("a/b.go:%d", syncFile), fmt.Sprintf("a/b.go:%d c/d.go:1", syncDir)
	if len(d.Syncs()) != 2 {
		t.Errorf("syncs %v", d.Syncs())
	}
	for lost, want := range map[string]string{"": "f=abcd", fileSync: "f=", dirSync: "", "a/b.go": "f=abcd", "c/d.go:1": "f=abcd"} {
		dir := t.TempDir()
		must(t, d.Crash(d.Len(), Nothing, lost).Write(dir))
		if got := listing(t, dir); got != want {
			t.Errorf("without %q: %q, want %q", lost, got, want)
		}
	}
}

// TestKill: behind a kill nothing happens, to the real files neither.
func TestKill(t *testing.T) {
	d, at := newDisk(t)
	d.Kill(1)
	must(t, d.Mkdir(at("d"), 0o700))
	if err := d.Mkdir(at("e"), 0o700); !errors.Is(err, ErrKilled) {
		t.Error(err)
	}
	if !d.Revive() || d.Revive() {
		t.Error("it was killed once")
	}
	d.KillAtRename(1)
	put(t, d, at("f"), true)
	must(t, d.Rename(at("f"), at("g")))
	for _, err := range []error{d.SyncDir(at("")), d.Remove(at("g")), d.RemoveAll(at("d")), d.Link(at("g"), at("h")), d.Exchange(at("d"), at("g"))} {
		if !errors.Is(err, ErrKilled) {
			t.Error(err)
		}
	}
	d.Revive()
	must(t, d.Compare())
	if got := listing(t, at("")); got != "d/ g=abcd" {
		t.Error(got)
	}
	must(t, os.Mkdir(at("h"), 0o700))
	if d.Compare() == nil {
		t.Error("a directory that was made behind its back was not noticed")
	}
}

// TestFork: a fork has the files and the past of its disk, synced or not, and neither
// sees what happens on the other then.
func TestFork(t *testing.T) {
	d, at := newDisk(t)
	must(t, d.Mkdir(at("d"), 0o700))
	put(t, d, at("d/a"), true)
	must(t, d.Link(at("d/a"), at("b")))
	past := outcomes(t, d)
	root := t.TempDir()
	fork, err := d.Fork(root)
	must(t, err)
	must(t, fork.Compare())
	if got := outcomes(t, fork); !slices.Equal(got, past) {
		t.Errorf("the fork has the past %q, want %q", got, past)
	}
	must(t, fork.Remove(filepath.Join(root, "b")))
	put(t, fork, filepath.Join(root, "d/c"), false)
	must(t, fork.Compare())
	must(t, d.Compare())
	if got := outcomes(t, d); !slices.Equal(got, past) {
		t.Errorf("the disk has %q after its fork was changed, want %q", got, past)
	}
	must(t, d.SyncDir(d.root))
	must(t, d.SyncDir(at("d")))
	if got := outcomes(t, fork); len(got) <= len(past) {
		t.Errorf("the fork has %q", got)
	}
}

// TestOnlyLast: the last change of a name is there, without those before it.
func TestOnlyLast(t *testing.T) {
	d, at := newDisk(t)
	put(t, d, at("a"), true)
	put(t, d, at("b"), true)
	must(t, d.SyncDir(at("")))
	must(t, d.Rename(at("a"), at("c")))
	must(t, d.Rename(at("b"), at("d")))
	dir := t.TempDir()
	must(t, d.Crash(d.Len(), OnlyLast, "").Write(dir))
	if got := listing(t, dir); got != "a=abcd d=abcd" {
		t.Errorf("%q", got)
	}
}
