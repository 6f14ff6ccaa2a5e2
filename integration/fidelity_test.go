package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
)

func TestGoTree(t *testing.T) {
	root := strings.TrimSpace(run(t, "go", "env", "GOROOT"))
	root, err := filepath.EvalSymlinks(root)
	must(t, err)
	r := newRepo(t)
	s := r.create(root)
	m := r.mount()
	wantSameByRsync(t, root, m.at(s.Generation, root))
}

// TestUsr takes the whole of the machine's /usr, whatever is in it.
func TestUsr(t *testing.T) {
	r := newRepo(t)
	s := r.create("/usr")
	m := r.mount()
	wantSameByRsync(t, "/usr", m.at(s.Generation, "usr"))
}

func TestEveryCase(t *testing.T) {
	src := mkdir(t, imageDir(t), "src")
	createTree(t, src, everyCase(t))
	want := readTree(t, src)
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	wantSameByRsync(t, src, m.at(s.Generation))
	wantTree(t, "mount", want, m.at(s.Generation), treetest.Options{Holes: true})

	t.Run("restore by cp", func(t *testing.T) {
		disk := imageDir(t)
		to, copied := filepath.Join(disk, "restored"), filepath.Join(disk, "copied")
		run(t, "cp", "-a", m.at(s.Generation), to)
		wantTree(t, "cp -a", want, to, treetest.Options{})
		run(t, "cp", "-a", src, copied) // cp itself fills the smallest holes
		wantTree(t, "cp -a and holes", readTree(t, copied), to, treetest.Options{Holes: true})
		wantSameByRsync(t, src, to)
	})
	t.Run("without the index", func(t *testing.T) {
		must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
		if res := r.on(t).mkbackup("reindex"); res.code != 0 {
			t.Fatalf("reindex: exit code %d\n%s", res.code, res.stderr)
		}
		again := r.on(t).mount()
		wantTree(t, "mount after reindex", want, again.path(s.Generation), treetest.Options{Holes: true})
	})
}

func TestHundredThousandFiles(t *testing.T) {
	src := tempDir(t)
	dir := mkdir(t, src, "many")
	for i := range 100_000 {
		write(t, filepath.Join(dir, fmt.Sprintf("file number %d", i)), fmt.Sprint(i%1000))
	}
	r := newRepo(t)
	s := r.all(src)
	if s.Files != 100_000 {
		t.Errorf("summary: %d files, want 100000", s.Files)
	}
	m := r.mount()
	wantSameByRsync(t, src, m.at(s.Generation))
	if n := strings.TrimSpace(shell(t, `ls -f "$1" | wc -l`, m.at(s.Generation, "many"))); n != "100002" {
		t.Errorf("ls -f lists %s entries, want 100000 and the two dots", n)
	}
}

// TestDeepPaths goes 200 directories of 24 bytes deep: no path of the lower
// ones can be given to a system call, and rsync cannot follow.
func TestDeepPaths(t *testing.T) {
	const levels = 200
	src := tempDir(t)
	var nodes []treetest.Node
	dir := ""
	for i := range levels {
		dir += fmt.Sprintf("%s%023d", slash(dir), i)
		nodes = append(nodes, treetest.Node{Path: dir, Type: treetest.Dir, Mode: 0o750, UID: uint32(i)})
		if i%20 == 0 || i == levels-1 {
			nodes = append(nodes,
				treetest.Node{Path: dir + "/file", Data: []byte(fmt.Sprint("at level ", i))},
				treetest.Node{Path: dir + "/large", Seed: uint64(i) + 1, Size: chunkedRaw + 1},
				treetest.Node{Path: dir + "/symlink", Type: treetest.Symlink, Target: "file"},
				treetest.Node{Path: dir + "/hard", Type: treetest.HardLink, Target: dir + "/file"},
				treetest.Node{Path: dir + "/fifo", Type: treetest.FIFO, Xattrs: map[string]string{"trusted.x": "y"}})
		}
	}
	createTree(t, src, nodes)
	want := readTree(t, src)
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	wantTree(t, "mount", want, m.at(s.Generation), treetest.Options{})

	again := r.all(src)
	if again.ReadBytes != 0 || again.Unchanged != s.Files+s.Dirs && again.Unchanged != s.Files {
		t.Errorf("second generation of an unchanged deep tree: %+v", again)
	}
}

func slash(dir string) string {
	if dir == "" {
		return ""
	}
	return "/"
}

func TestTerabyteSparseFile(t *testing.T) {
	src := tempDir(t)
	data := treetest.Content(21, 1<<20)
	extents := []treetest.Extent{{Offset: 0, Data: data[:256<<10]}, {Offset: 300 << 30, Data: data[256<<10 : 512<<10]},
		{Offset: 777<<30 + 4096, Data: data[512<<10 : 768<<10]}, {Offset: 1<<40 - 256<<10, Data: data[768<<10:]}}
	createTree(t, src, []treetest.Node{{Path: "sparse", Size: 1 << 40, Extents: extents}})
	want := readTree(t, src)
	r := newRepo(t)
	s := r.all(src)
	if s.ReadBytes > 2<<20 || s.StoredBytes > 2<<20 {
		t.Errorf("a file with 1 MiB of data: %d bytes read, %d stored", s.ReadBytes, s.StoredBytes)
	}
	m := r.mount()
	wantTree(t, "mount", want, m.at(s.Generation), treetest.Options{Holes: true})
	wantDiskUsage(t, filepath.Join(src, "sparse"), m.at(s.Generation, "sparse"))

	to := filepath.Join(tempDir(t), "restored")
	run(t, "cp", "-a", m.at(s.Generation), to)
	wantTree(t, "cp -a", want, to, treetest.Options{Holes: true})
	wantDiskUsage(t, filepath.Join(src, "sparse"), filepath.Join(to, "sparse"))

	sparse := filepath.Join(tempDir(t), "sparse")
	run(t, "cp", "--sparse=always", "--preserve=all", m.at(s.Generation, "sparse"), sparse)
	wantDiskUsage(t, filepath.Join(src, "sparse"), sparse)
	if again := r.all(src); again.ReadBytes != 0 {
		t.Errorf("unchanged: %d bytes read", again.ReadBytes)
	}
}

// wantDiskUsage compares what du says, apparent and real. A file system may
// count a block or two of its own to a file.
func wantDiskUsage(t *testing.T, want, got string) {
	t.Helper()
	du := func(path string, args ...string) (n int64) {
		_, err := fmt.Sscan(run(t, "du", append(args, path)...), &n)
		must(t, err)
		return n
	}
	if w, g := du(want, "--apparent-size", "-B1"), du(got, "--apparent-size", "-B1"); w != g {
		t.Errorf("du --apparent-size of %s: %d, want %d", got, g, w)
	}
	if w, g := du(want, "-B1"), du(got, "-B1"); g < w-16<<10 || g > w+16<<10 {
		t.Errorf("du of %s: %d, want about %d", got, g, w)
	}
}

// TestDiskUsage compares du over trees with and without holes.
func TestDiskUsage(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, append(sparseCases(), sizeCases()...))
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	err := filepath.WalkDir(src, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			wantDiskUsage(t, path, m.at(s.Generation, strings.TrimPrefix(path, src)))
		}
		return err
	})
	must(t, err)
}

func TestFiveGiBFile(t *testing.T) {
	const size = 5<<30 + 12345
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 31, Size: size, Mode: 0o640, UID: 70_000}})
	r := newRepo(t)
	s := r.all(src)
	if s.RawBytes != size || s.ReadBytes != size {
		t.Errorf("summary: raw_bytes %d, read_bytes %d, want %d", s.RawBytes, s.ReadBytes, int64(size))
	}
	if s.StoredBytes > size*85/100 {
		t.Errorf("stored_bytes %d of %d, though a quarter of it is text", s.StoredBytes, int64(size))
	}
	m := r.mount()
	run(t, "cmp", filepath.Join(src, "large"), m.at(s.Generation, "large"))
	if got := run(t, "stat", "-c", "%s %a %u", m.at(s.Generation, "large")); got != fmt.Sprintf("%d 640 70000\n", int64(size)) {
		t.Errorf("stat of it: %s", got)
	}
	if again := r.all(src); again.ReadBytes != 0 || again.Parts != 0 {
		t.Errorf("unchanged: %d bytes read, %d parts", again.ReadBytes, again.Parts)
	}
}
