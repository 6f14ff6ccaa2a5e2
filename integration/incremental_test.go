package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// manyFiles writes n files of different contents into directories of 100.
func manyFiles(t testing.TB, dir string, n int) {
	t.Helper()
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if i%100 == 0 {
			mkdir(t, d)
		}
		write(t, filepath.Join(d, fmt.Sprintf("f%05d", i)), fmt.Sprintf("content of file %d\n%s", i, strings.Repeat("x", i%3000)))
	}
}

// settle waits until the clock's grain has passed since the last change below
// dir: a file changed within it must be read again, and is.
func settle() { time.Sleep(50 * time.Millisecond) }

// opened returns the regular files below dir that a traced command opened for
// reading or mapped.
func opened(t testing.TB, trace, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(trace)
	must(t, err)
	if !strings.Contains(string(b), "openat") {
		t.Fatalf("the trace shows nothing:\n%s", tail(string(b)))
	}
	// With -y a descriptor is shown as 7</its/path>.
	descriptor := regexp.MustCompile(`= \d+<(` + regexp.QuoteMeta(dir) + `/[^>]*)>`)
	seen := map[string]bool{}
	for _, line := range strings.Split(string(b), "\n") {
		found := descriptor.FindStringSubmatch(line)
		if found == nil || strings.Contains(line, "O_PATH") {
			continue
		}
		if st, err := os.Lstat(found[1]); err == nil && st.Mode().IsRegular() {
			seen[found[1]] = true
		}
	}
	var paths []string
	for p := range seen {
		paths = append(paths, p)
	}
	return sorted(paths)
}

// tracedCreate makes a generation under strace and returns the files that were
// opened in the source.
func tracedCreate(t testing.TB, r *repo, src string) (summary, []string) {
	t.Helper()
	trace := filepath.Join(tempDir(t), "trace")
	args := []string{"-f", "-y", "-qq", "-o", trace, "-e", "trace=open,openat,openat2,creat,open_by_handle_at",
		mkbackup, "create", r.dir, "--json", "--root", src, "/"}
	res := runCmd(t, exec.Command("strace", args...))
	if res.code != 0 {
		t.Fatalf("strace of create: exit code %d\n%s", res.code, tail(res.stderr))
	}
	return parseSummary(t, res.stdout), opened(t, trace, src)
}

func TestUnchangedTreeReadsNothing(t *testing.T) {
	src := mkdir(t, imageDir(t), "src")
	createTree(t, src, everyCase(t))
	manyFiles(t, filepath.Join(src, "many"), 1000)
	settle()
	r := newRepo(t)
	first, firstOpened := tracedCreate(t, r, src)
	if len(firstOpened) < 1000 {
		t.Fatalf("the trace of the first generation shows only %d files opened", len(firstOpened))
	}
	parts, records := r.parts(), r.records()
	for n := range 3 {
		s, files := tracedCreate(t, r, src)
		if len(files) != 0 {
			t.Errorf("files of an unchanged tree were opened: %q", files[:min(len(files), 10)])
		}
		if s.ReadBytes != 0 || s.Parts != 0 || s.New != 0 || s.Changed != 0 || s.Gone != 0 || s.Errors != 0 {
			t.Errorf("summary of an unchanged tree: %+v", s)
		}
		if s.Files != first.Files || s.Dirs != first.Dirs || s.RawBytes != first.RawBytes || s.Unchanged != first.Files+first.Dirs {
			t.Errorf("summary of an unchanged tree: %+v, of the first: %+v", s, first)
		}
		if got := r.records(); len(got) != len(records)+1+n {
			t.Errorf("%d log records, want %d", len(got), len(records)+1+n)
		} else if size := fileSize(t, got[len(got)-1]); size > 2000 {
			t.Errorf("the log record of no change has %d bytes", size)
		}
		if got := r.parts(); strings.Join(got, " ") != strings.Join(parts, " ") {
			t.Errorf("parts were written: %q, before %q", got, parts)
		}
	}
}

func TestOneChangedFileOfTenThousand(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 10_000)
	settle()
	r := newRepo(t)
	r.all(src)
	before := r.partBytes()
	changed := filepath.Join(src, "d042", "f04242")
	write(t, changed, "changed\n")
	settle()
	s, files := tracedCreate(t, r, src)
	if strings.Join(files, " ") != changed {
		t.Errorf("opened: %q, want only %s", files, changed)
	}
	if s.ReadBytes != 8 || s.Changed != 1 || s.New != 0 || s.Gone != 0 || s.Parts != 1 || s.Files != 10_000 {
		t.Errorf("summary of one change: %+v", s)
	}
	if grown := r.partBytes() - before; grown > 4096 {
		t.Errorf("the parts have grown by %d bytes for 8 new ones", grown)
	}
	m := r.mount()
	wantTree(t, "mount", readTree(t, src), m.at(s.Generation), treetest.Options{})
}

// TestTenGenerations edits trees at random, ten times each, and compares every
// generation with what the source was then: in a mount that was there before the
// first one, and with an index made anew, which must give the same inode numbers. The
// number of a tree is its seed: SOAK=1 go test -run 'TestTenGenerations/seed_57$'.
func TestTenGenerations(t *testing.T) {
	seeds := uint64(8)
	if soak() {
		seeds = 100
	}
	edits, entries := 0, 0
	for seed := uint64(1); seed <= seeds; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			did, compared := tenGenerations(t, seed)
			edits, entries = edits+did, entries+compared
		})
	}
	t.Logf("%d trees, %d generations, %d edits; %d entries compared", seeds, 10*seeds, edits, entries)
}

// tenGenerations returns how many edits it made, and how many entries of
// generations it compared.
func tenGenerations(t *testing.T, seed uint64) (did, compared int) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(seed, treetest.RandomOptions{Owners: true, Dirs: 12, Files: 80}))
	createTree(t, src, []treetest.Node{{Path: "large", Seed: seed, Size: 3 << 20}})
	r := newRepo(t, "--part-size", "1MiB")
	m := r.mount()
	editor := treetest.NewEditor(src, seed)
	var names, edits []string
	var want []*treetest.Tree
	for n := range 10 {
		s := r.all(src)
		names, want = append(names, s.Generation), append(want, readTree(t, src))
		lines, err := editor.Edit(25)
		must(t, err)
		for _, line := range lines {
			edits = append(edits, fmt.Sprintf("before generation %d: %s", n+2, strings.ReplaceAll(line, src, "")))
		}
	}
	compare := func(m *fuseMount, what string) (all []*treetest.Tree) {
		for i, name := range names {
			got := readTree(t, m.path(name))
			wantEqual(t, fmt.Sprintf("%s, generation %d", what, i+1), want[i], got, treetest.Options{Holes: true})
			all, compared = append(all, got), compared+len(got.Entries)
		}
		return all
	}
	waitFor(t, time.Minute, "the last generation", func() bool { _, err := os.Lstat(m.path(names[9])); return err == nil })
	before := compare(m, "mount")
	if res := r.mkbackup("reindex"); res.code != 0 {
		t.Fatalf("reindex: exit code %d\n%s", res.code, res.stderr)
	}
	after := compare(r.on(t).mount(), "after reindex")
	for i := range names {
		for path, e := range before[i].Entries {
			if a := after[i].Entries[path]; a != nil && a.Inode != e.Inode {
				t.Errorf("after reindex, generation %d: %q has inode %d, before %d", i+1, path, a.Inode, e.Inode)
			}
		}
	}
	if got := r.generations(); !slices.Equal(got, names) {
		t.Errorf("list gives %q, want %q", got, names)
	}
	if t.Failed() {
		t.Logf("edits:\n%s", strings.Join(edits, "\n"))
	}
	return len(edits), compared
}

// TestFortyGenerations makes so many that indexes are cloned, merged and
// rewritten, all under one mount.
func TestFortyGenerations(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(4, treetest.RandomOptions{Owners: true, Files: 100, MaxSize: 5000}))
	r := newRepo(t)
	first := r.all(src)
	want := map[string]*treetest.Tree{first.Generation: readTree(t, src)}
	m := r.mount()
	editor := treetest.NewEditor(src, 4)
	for range 39 {
		_, err := editor.Edit(4)
		must(t, err)
		s := r.all(src)
		want[s.Generation] = readTree(t, src)
	}
	if len(want) != 40 {
		t.Errorf("40 runs gave %d generations", len(want))
	}
	for name, tree := range want {
		wantTree(t, name, tree, m.at(name), treetest.Options{Holes: true})
	}
	if n := len(r.glob("index/*")); n > 5 {
		t.Errorf("%d indexes are kept", n)
	}
	m.stop()
	r.wantNoLeftovers()
}

// TestGenerationsInterleave edits two sources of one repository in turn.
func TestGenerationsInterleave(t *testing.T) {
	r := newRepo(t)
	want := map[string]*treetest.Tree{}
	src := map[string]string{"web1": tempDir(t), "web2": tempDir(t), "": tempDir(t)}
	for name, dir := range src {
		createTree(t, dir, treetest.Random(uint64(len(name))+50, treetest.RandomOptions{Owners: true, Files: 60}))
	}
	for n := range 4 {
		for name, dir := range src {
			s := r.all(dir, "--source", name)
			want[filepath.Join(name, s.Generation)] = readTree(t, dir)
			_, err := treetest.NewEditor(dir, uint64(n)+100).Edit(15)
			must(t, err)
		}
	}
	m := r.mount()
	for path, tree := range want {
		wantTree(t, path, tree, m.at(path), treetest.Options{})
	}
}

func TestLargeFileStoresItsChange(t *testing.T) {
	const size = 64 << 20
	src := tempDir(t)
	path := filepath.Join(src, "large")
	content := treetest.Content(61, size)
	write(t, path, string(content))
	r := newRepo(t)
	r.all(src)
	m := r.mount()
	step := func(what string, content []byte) {
		t.Helper()
		before := r.partBytes()
		write(t, path, string(content))
		s := r.all(src)
		grown := r.partBytes() - before
		t.Logf("%s: stored %d bytes more, %.2f%%", what, grown, 100*float64(grown)/size)
		if grown > size*5/100 {
			t.Errorf("%s: stored %d bytes more of %d, want below 5%%", what, grown, size)
		}
		run(t, "cmp", path, m.at(s.Generation, "large"))
	}
	changed := append([]byte{}, content...)
	copy(changed[20<<20:], treetest.Content(62, size/100))
	step("1% of the blocks changed", changed)
	step("1 byte inserted at the start", append([]byte{'x'}, changed...))
	step("1 byte removed from the middle", append(append([]byte{'x'}, changed[:30<<20]...), changed[30<<20+1:]...))
	step("appended to", append(append([]byte{}, changed...), "more"...))
	step("back to the first content", content)
}

func TestSameContentIsStoredOnce(t *testing.T) {
	const size = 3 << 20 // chunked
	src := tempDir(t)
	large, small := string(treetest.Content(63, size)), string(treetest.Content(64, 100_000))
	for i := range 5 {
		write(t, filepath.Join(src, fmt.Sprint("large-", i)), large)
		write(t, filepath.Join(src, fmt.Sprint("small-", i)), small)
	}
	r := newRepo(t)
	r.all(src)
	once := r.partBytes()
	if once > size+200_000 {
		t.Errorf("five equal files of each: %d bytes stored, of %d", once, size+100_000)
	}
	write(t, filepath.Join(src, "large-again"), large)
	write(t, filepath.Join(src, "small-again"), small)
	if s := r.all(src); s.Parts != 0 {
		t.Errorf("contents of the generation before stored again: %+v", s)
	}
	shell(t, `cd "$1"; rm *; echo other >other`, src)
	r.all(src)
	write(t, filepath.Join(src, "large-is-back"), large)
	write(t, filepath.Join(src, "small-is-back"), small)
	if s := r.all(src); s.Parts != 0 {
		t.Errorf("contents of older generations stored again: %+v", s)
	}
	other := mkdir(t, tempDir(t), "other-source")
	write(t, filepath.Join(other, "of another source"), large)
	if s := r.all(other, "--source", "other"); s.Parts != 0 {
		t.Errorf("contents of another source stored again: %+v", s)
	}
}

// TestChecksumAndQuietChanges changes bytes without changing size, mtime or
// anything that a scan sees other than ctime.
func TestChecksumAndQuietChanges(t *testing.T) {
	src := tempDir(t)
	path := filepath.Join(src, "file")
	write(t, path, "before")
	must(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	settle()
	r := newRepo(t)
	r.all(src)
	write(t, path, "after!")
	must(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	s := r.all(src)
	m := r.mount()
	if b, err := os.ReadFile(m.at(s.Generation, "file")); err != nil || string(b) != "after!" {
		t.Errorf("a change that keeps size and mtime: %q, %v", b, err)
	}
	settle()
	if s := r.all(src, "--checksum"); s.ReadBytes != 6 || s.Changed != 0 || s.Parts != 0 {
		t.Errorf("--checksum of an unchanged file: %+v", s)
	}
}

// TestLinksOnOtherDevices: hard links stay links where their file system is on another device
// in the next run, and a directory of one of them has another name. The file system that has
// the device now is a copy: its files differ in nothing else.
func TestLinksOnOtherDevices(t *testing.T) {
	base, src := tempDir(t), tempDir(t)
	dirs, images, loops := [2]string{mkdir(t, src, "a"), mkdir(t, src, "b")}, [2]string{}, [2]string{}
	for i := range dirs {
		images[i] = filepath.Join(base, fmt.Sprint("image", i))
	}
	shell(t, `truncate -s 8M "$1"; mkfs.ext4 -q -F "$1"; mount -o loop "$1" "$3"; mkdir "$3/proj" "$3/store"; echo x >"$3/proj/x"; ln "$3/proj/x" "$3/store"; umount "$3"; cp "$1" "$2"`,
		images[0], images[1], dirs[0])
	for i, image := range images {
		loops[i] = strings.TrimSpace(run(t, "losetup", "--find", "--show", image))
		t.Cleanup(func() { run(t, "losetup", "--detach", loops[i]) })
	}
	for i, dir := range dirs {
		mountAt(t, dir, loops[i])
	}
	r := newRepo(t)
	r.all(src)
	device := func(dir string) uint64 {
		var st syscall.Stat_t
		must(t, syscall.Stat(dir, &st))
		return st.Dev
	}
	before := [2]uint64{device(dirs[0]), device(dirs[1])}
	shell(t, `umount "$1" "$2"; cp "$3" "$3.was"; cp "$4" "$4.was"; dd if="$4.was" of="$5" status=none conv=fsync; dd if="$3.was" of="$6" status=none conv=fsync`,
		dirs[0], dirs[1], images[0], images[1], loops[0], loops[1])
	for i, dir := range dirs {
		mountAt(t, dir, loops[1-i])
		must(t, os.Rename(filepath.Join(dir, "proj"), filepath.Join(dir, "proj2")))
	}
	if now := [2]uint64{device(dirs[1]), device(dirs[0])}; now != before {
		t.Fatalf("the devices are not swapped: %v and %v", before, now)
	}
	s := r.all(src)
	m := r.mount()
	root := m.at(s.Generation)
	a, b := inodeOf(t, filepath.Join(root, "a/store/x")), inodeOf(t, filepath.Join(root, "b/store/x"))
	if got := inodeOf(t, filepath.Join(root, "a/proj2/x")); got != a || a == b {
		t.Errorf("a/proj2/x is inode %d; a/store/x is %d, b/store/x %d", got, a, b)
	}
	if got := inodeOf(t, filepath.Join(root, "b/proj2/x")); got != b {
		t.Errorf("b/proj2/x is inode %d; a/store/x is %d, b/store/x %d", got, a, b)
	}
}

// TestInterruptedRunKeepsItsParts kills a backup in the middle and starts it
// again: what lies in finished parts is not stored twice.
func TestInterruptedRunKeepsItsParts(t *testing.T) {
	const partSize = 1 << 20
	src := tempDir(t)
	for i := range 200 {
		createTree(t, src, []treetest.Node{{Path: fmt.Sprintf("d%d/f%d", i%7, i), Seed: uint64(i) + 1, Size: 600_000}})
	}
	whole := newRepo(t, "--part-size", "1MiB")
	whole.all(src)
	want := whole.partBytes()

	r := newRepo(t, "--part-size", "1MiB")
	for kill := range 3 {
		b := start(t, r.command("create", "--root", src, "/"))
		waitFor(t, time.Minute, "parts of the run to be killed", func() bool { return len(r.parts()) >= 10*(kill+1) })
		b.cmd.Process.Signal(syscall.SIGKILL)
		if code := b.wait(t, 10*time.Second); code != 128+9 {
			t.Fatalf("the run ended with %d before it could be killed", code)
		}
		if got := r.generations(); len(got) != 0 {
			t.Fatalf("a killed run left generations: %q", got)
		}
	}
	finished := len(r.parts())
	s := r.all(src)
	if finished < 30 {
		t.Fatalf("only %d parts were finished before the kills", finished)
	}
	if got := r.partBytes(); got > want+partSize {
		t.Errorf("killed and started again: %d bytes of parts, uninterrupted %d", got, want)
	}
	m := r.mount()
	wantTree(t, "mount", readTree(t, src), m.at(s.Generation), treetest.Options{})
	if s := r.all(src); s.ReadBytes != 0 || s.Parts != 0 {
		t.Errorf("unchanged after that: %+v", s)
	}
	r.wantNoLeftovers()
}
