package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/treetest"
)

// diskBytes is what `du` says that a directory takes.
func diskBytes(t *testing.T, dir string) int64 {
	t.Helper()
	size, _, _ := strings.Cut(run(t, "du", "-s", "-B1", dir), "\t")
	n, err := strconv.ParseInt(size, 10, 64)
	must(t, err)
	return n
}

// TestSpaceOfWhatIsLeft: after twenty generations of edits, all but one forgotten and
// compacted, the whole repository (parts, log, index) is hardly larger than a fresh
// one of that generation; and an index from the ground says the same.
func TestSpaceOfWhatIsLeft(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(301, treetest.RandomOptions{Files: 600}))
	for i := range 500 {
		write(t, filepath.Join(mkdir(t, src, fmt.Sprint("small", i%20)), fmt.Sprint(i)), string(treetest.Content(uint64(i)+1, int64(500+17*i))))
	}
	for i := range 40 {
		createTree(t, src, []treetest.Node{{Path: fmt.Sprintf("large%d", i), Seed: uint64(i) + 1, Size: 300_000}})
	}
	r := newRepo(t, "--part-size", "4MiB")
	editor := treetest.NewEditor(mkdir(t, src, "edited"), 301)
	rnd := rand.New(rand.NewPCG(301, 1))
	for i := range 21 {
		if i > 0 {
			_, err := editor.Edit(20)
			must(t, err)
			createTree(t, src, []treetest.Node{{Path: fmt.Sprintf("new%d", i), Seed: rnd.Uint64() | 1, Size: 200_000}})
			must(t, os.Remove(filepath.Join(src, fmt.Sprintf("large%d", i))))
			for range 30 {
				n := rnd.IntN(500)
				write(t, filepath.Join(src, fmt.Sprint("small", n%20), fmt.Sprint(n)), string(treetest.Content(rnd.Uint64()|1, int64(500+17*n))))
			}
		}
		r.all(src)
	}
	records, before := len(r.records()), r.bytesBelow("log")
	r.forgets("--keep-last", "1")
	c := r.compact(0, "--max-dead", "0")
	if c.Checkpoint == 0 || len(r.records()) != 1 || c.Records < records {
		t.Errorf("%d records are left of %d: %+v", len(r.records()), records, c)
	}
	fresh := newRepo(t, "--part-size", "4MiB")
	fresh.all(src)
	got, want := diskBytes(t, r.dir), diskBytes(t, fresh.dir)
	t.Logf("%d bytes, fresh %d (%+.2f%%); log %d before, %d after, fresh %d; index %d, fresh %d; parts %d, fresh %d", got, want, 100*(float64(got)/float64(want)-1),
		before, r.bytesBelow("log"), fresh.bytesBelow("log"), r.bytesBelow("index"), fresh.bytesBelow("index"), r.partBytes(), fresh.partBytes())
	if float64(got) > 1.03*float64(want) {
		t.Errorf("%d bytes, a fresh repository has %d", got, want)
	}
	if again := r.compact(0, "--max-dead", "0"); again.Checkpoint != 0 {
		t.Errorf("there was nothing to make shorter: %+v", again)
	}
	if res := r.mkbackup("reindex"); res.code != 0 {
		t.Errorf("reindex: %s", res.stderr)
	}
	m := r.mount()
	wantSameByRsync(t, src, m.at("latest"))
	m.stop()
	if s := r.all(src); s.ReadBytes != 0 || s.New+s.Changed+s.Gone != 0 {
		t.Errorf("a run behind the checkpoint finds changes: %+v", s)
	}
}

// TestMountOverCheckpoint: a mount that is older than a checkpoint goes on, with the
// same inode numbers, and follows what comes behind it.
func TestMountOverCheckpoint(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(302, treetest.RandomOptions{Files: 150}))
	createTree(t, src, []treetest.Node{{Path: "held", Seed: 1, Size: 3 << 20}})
	must(t, os.Link(filepath.Join(src, "held"), filepath.Join(src, "zlink")))
	r := newRepo(t, "--part-size", "1MiB")
	editor := treetest.NewEditor(mkdir(t, src, "edited"), 302)
	var names []string
	for i := range 5 {
		names = append(names, r.all(src, "--time", fmt.Sprintf("2026-01-0%dT03:00:00Z", i+1)).Generation)
		_, err := editor.Edit(15)
		must(t, err)
	}
	m := r.mount()
	kept := []string{names[1], names[4]}
	trees := map[string]*treetest.Tree{}
	inodes := map[string]uint64{}
	for _, name := range kept {
		trees[name] = readTree(t, m.at(name))
		inodes[name] = inodeOf(t, filepath.Join(m.at(name), "held"))
	}
	held, err := os.Open(filepath.Join(m.at(names[1]), "held"))
	must(t, err)
	defer held.Close()
	changes := r.mkbackup("diff", names[1], names[4]).stdout
	r.forgets(names[0], names[2], names[3])
	if c := r.compact(0, "--max-dead", "0"); c.Checkpoint == 0 || c.Records == 0 {
		t.Fatalf("%+v", c)
	}
	if res := r.mkbackup("diff", names[1], names[4]); res.code != 0 || changes == "" || res.stdout != changes {
		t.Errorf("diff behind the checkpoint: exit code %d\n%s%sbefore:\n%s", res.code, res.stdout, res.stderr, changes)
	}
	waitFor(t, 30*time.Second, "the dropped generations to go", func() bool {
		_, err := os.Lstat(m.path(names[0]))
		return os.IsNotExist(err)
	})
	content := make([]byte, 3<<20)
	if _, err := held.ReadAt(content, 0); err != nil || !slices.Equal(content, treetest.Content(1, 3<<20)) {
		t.Errorf("a file that was open: %v", err)
	}
	again := r.mount()
	for _, name := range kept {
		for _, mount := range []*fuseMount{m, again} {
			wantTree(t, name, trees[name], mount.at(name), treetest.Options{})
			for _, path := range []string{"held", "zlink"} {
				if ino := inodeOf(t, filepath.Join(mount.at(name), path)); ino != inodes[name] {
					t.Errorf("%s in %s has the inode number %d, it had %d", path, name, ino, inodes[name])
				}
			}
		}
	}
	s := r.all(src)
	for _, mount := range []*fuseMount{m, again} {
		waitFor(t, 30*time.Second, "the generation behind the checkpoint", func() bool {
			_, err := os.Lstat(mount.path(s.Generation))
			return err == nil
		})
		wantSameByRsync(t, src, mount.at(s.Generation))
	}
	held.Close()
	m.stop()
	again.stop()
}

func inodeOf(t *testing.T, name string) uint64 {
	t.Helper()
	info, err := os.Lstat(name)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

// TestDamagedCheckpoint damages a log that begins with a checkpoint, with and without
// an index, and with the records before it still there.
func TestDamagedCheckpoint(t *testing.T) {
	v := newVictim(t, 6, 600)
	run(t, mkbackup, "forget", v.dir, "1")
	for f := range v.want {
		if f.number == 1 {
			delete(v.want, f)
		}
	}
	v.gens--
	old := filepath.Join(filepath.Dir(v.dir), "old")
	repository, err := archive.Open(v.dir)
	must(t, err)
	defer repository.Close()
	lock, err := repository.LockParts() // nothing is deleted meanwhile
	must(t, err)
	run(t, mkbackup, "compact", v.dir, "--max-dead", "0")
	run(t, "cp", "-a", filepath.Join(v.dir, "log"), old)
	before := v.glob("log/*")
	checkpoint := before[len(before)-1:]
	before = before[:len(before)-1]
	v.wantWhole()
	lock.Release()
	v.take()
	v.wantWhole()
	log := v.glob("log/*")
	if len(log) != 2 || log[0] != checkpoint[0] {
		t.Fatalf("the log is %v, the checkpoint is %v", log, checkpoint)
	}
	next := log[1]
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		must(t, err)
		return b
	}
	damages := 0
	// A bit that means nothing to a decoder (the unused one in the header of a zstd frame)
	// leaves the checkpoint readable: only the record behind it does not follow it then.
	attack := func(what, record string, gone int, mend func()) {
		t.Helper()
		l := v.look(what)
		v.wantDamage(what, l, piece{record, -1})
		readable := slices.ContainsFunc(l.said, func(text string) bool { return strings.Contains(text, "one of the two was replaced") })
		if len(l.gone) != gone && (!readable || len(l.gone) != 1) {
			t.Errorf("%s: %d generations are gone, want %d: %v", what, len(l.gone), gone, l.said)
		}
		mend()
		damages++
	}
	flips := func(what string, stride int64, gone int) {
		t.Helper()
		for bit := int64(0); bit < 8*fileSize(t, checkpoint[0]); bit += stride {
			flip(t, checkpoint[0], bit)
			attack(fmt.Sprintf("%s, bit %d", what, bit), checkpoint[0], gone, func() { flip(t, checkpoint[0], bit) })
		}
	}
	flips("with the index", int64(scale(33, 1)), 0)
	attack("the checkpoint removed", checkpoint[0], 0, replace(t, checkpoint[0], nil))
	attack("the checkpoint replaced by the record behind it", checkpoint[0], 0, replace(t, checkpoint[0], read(next)))
	attack("the record behind it removed", next, 1, replace(t, next, nil))
	attack("the record behind it replaced by the checkpoint", next, 0, replace(t, next, read(checkpoint[0])))
	v.wantWhole()

	index := filepath.Join(filepath.Dir(v.dir), "index")
	must(t, os.Rename(filepath.Join(v.dir, "index"), index))
	flips("without an index", int64(scale(101, 3)), v.gens)
	for n := 0; n < len(read(checkpoint[0])); n += scale(29, 1) {
		attack(fmt.Sprintf("cut to %d bytes", n), checkpoint[0], v.gens, replace(t, checkpoint[0], read(checkpoint[0])[:n]))
	}
	attack("the checkpoint removed, no index", checkpoint[0], v.gens, replace(t, checkpoint[0], nil))
	attack("the checkpoint replaced, no index", checkpoint[0], v.gens, replace(t, checkpoint[0], read(next)))
	res := runCmd(t, exec.Command(mkbackup, "check", v.dir))
	if res.code != 0 {
		t.Errorf("check of what was mended: %s", res.stderr)
	}
	mend := replace(t, checkpoint[0], read(checkpoint[0])[:100])
	if res := runCmd(t, exec.Command(mkbackup, "check", v.dir)); res.code != 4 || !strings.Contains(res.stdout+res.stderr, "log record 7") && !strings.Contains(res.stdout+res.stderr, "log records 1 to") {
		t.Errorf("check of a damaged checkpoint: exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	mend()

	// The records before it come back, as after a power cut that their deletion did
	// not survive: they change nothing, and stand in for a damaged checkpoint.
	for _, name := range before {
		must(t, os.WriteFile(name, read(filepath.Join(old, filepath.Base(name))), 0o400))
	}
	v.wantWhole()
	flips("with the old records", int64(scale(101, 3)), 1)
	v.wantWhole()
	must(t, os.Rename(index, filepath.Join(v.dir, "index")))
	v.wantWhole()
	t.Logf("%d damages", damages)
}
