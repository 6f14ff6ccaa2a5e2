package backup

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/gitignore"
)

const tagText = "Signature: 8a477f597d28d172789f06886806bc55"

// writeAll makes files whose contents are their paths.
func writeAll(t *testing.T, dir string, paths ...string) {
	t.Helper()
	for _, path := range paths {
		write(t, dir+"/"+path, []byte(path))
	}
}

// patterns parses the patterns of a file.
func patterns(t *testing.T, lines ...string) gitignore.List {
	t.Helper()
	list, err := gitignore.ParseLines("test", []byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// wantFiles fails the test unless the generation has just these files.
func wantFiles(t *testing.T, paths []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(paths, want) {
		t.Errorf("files %q, want %q", paths, want)
	}
}

// recorded makes o record what it reports: changes, and problems with "E " before them.
func recorded(o *CreateOptions) *[]string {
	var events []string
	o.Events.Change = func(change Change, path string) { events = append(events, string(change)+" "+path) }
	o.Events.Excluded = func(path string, _ error) { events = append(events, "! "+path) }
	o.Events.Problem = func(path string, err error) { events = append(events, "E "+path+": "+err.Error()) }
	return &events
}

// TestExcludedIsGone: what is excluded is gone from the next generation, and
// new when it is not excluded any more.
func TestExcludedIsGone(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	writeAll(t, dir, "a", "cache/1", "cache/sub/2", "x/keep.o", "x/lose.o", "x\nz", "\xff\xfe.o")
	all := []string{"a", "cache/1", "cache/sub/2", "x/keep.o", "x/lose.o", "x\nz", "\xff\xfe.o"}
	files := func(number uint64) []string { return slices.Sorted(maps.Keys(contentsOf(t, r, number))) }
	o := optionsFor(dir)
	create(t, r, o)
	wantFiles(t, files(1), all...)

	o.Exclude.Patterns = patterns(t, "*.o", "!keep.o", "/cache/", "x?z", "!/cache/sub/2")
	events := recorded(&o)
	s := create(t, r, o)
	wantFiles(t, files(2), "a", "x/keep.o")
	want := []string{"! cache", "! x\nz", "! \xff\xfe.o", "- cache", "- cache/1", "- cache/sub", "- cache/sub/2", "! x/lose.o", "- x/lose.o", "- x\nz", "- \xff\xfe.o"}
	if !slices.Equal(*events, want) || s.Excluded != 4 || s.Gone != 7 || s.Errors != 0 {
		t.Errorf("%+v, events %q, want %q", s, *events, want)
	}

	dry := o
	dry.DryRun = true
	if s := create(t, r, dry); s.Excluded != 4 || s.Gone != 0 || s.New != 0 {
		t.Errorf("dry run: %+v", s)
	}

	o.Exclude = Excludes{}
	if s := create(t, r, o); s.Excluded != 0 || s.New != 7 || s.Gone != 0 {
		t.Errorf("excluded no more: %+v", s)
	}
	wantFiles(t, files(3), all...)
	wantFiles(t, files(2), "a", "x/keep.o")
}

// TestExcludedPath: a given path that is excluded, or lies below what is, is
// named like one that is missing, also where another path holds it.
func TestExcludedPath(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	writeAll(t, dir, "a/b/c", "a/d", "e/f")
	o := optionsFor(dir)
	events := recorded(&o)
	o.Exclude.Patterns = patterns(t, "b/", "f")
	o.Paths = []string{"/a", "/a/b/c", "/e/f"}
	s := create(t, r, o)
	wantContents(t, r, 1, map[string]string{"a/d": "a/d"})
	want := []string{"+ .", "+ a", "E a/b/c: excluded by the pattern b/", "! a/b", "+ a/d", "+ e", "E e/f: excluded by the pattern f", "! e/f"}
	if !slices.Equal(*events, want) || s.Errors != 2 || s.Excluded != 2 {
		t.Errorf("%+v, events %q, want %q", s, *events, want)
	}
	o.Paths = []string{"/e/f"}
	if _, err := Create(context.Background(), r, o); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing but an excluded path: %v", err)
	}
	o.Exclude.Patterns = patterns(t, "a/*", "!a/d")
	o.Paths = []string{"/a/b/c", "/a/d"}
	create(t, r, o)
	wantContents(t, r, 2, map[string]string{"a/d": "a/d"})
}

func TestMarkers(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	writeAll(t, dir, "real/1", "real/sub/2", "text/1", "short/1", "dir/1", "skip/1", "skip/sub/2", "plain/1")
	tags := map[string]string{"real": tagText + "\n# more", "text": "no signature, but at least as long as one would be", "short": tagText[:42]}
	for name, text := range tags {
		write(t, dir+"/"+name+"/CACHEDIR.TAG", []byte(text))
	}
	writeAll(t, dir, "skip/.nobackup", "dir/CACHEDIR.TAG/x")
	o := optionsFor(dir)
	o.Exclude = Excludes{Caches: true, IfPresent: []string{"none", ".nobackup"}}
	s := create(t, r, o)
	wantFiles(t, slices.Sorted(maps.Keys(contentsOf(t, r, 1))), "real/CACHEDIR.TAG", "text/CACHEDIR.TAG", "text/1", "short/CACHEDIR.TAG", "short/1",
		"dir/CACHEDIR.TAG/x", "dir/1", "skip/.nobackup", "plain/1")
	if s.Excluded != 4 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}

	// A marker above the given path does not count; one in it is said.
	var notes []string
	o.Events.Note = func(text string) { notes = append(notes, text) }
	o.Paths = []string{"/real/sub", "/skip"}
	s = create(t, r, o)
	wantFiles(t, slices.Sorted(maps.Keys(contentsOf(t, r, 2))), "real/sub/2", "skip/.nobackup")
	if want := []string{"/skip: only .nobackup is backed up of what is in it"}; !slices.Equal(notes, want) || s.Errors != 0 || s.Excluded != 2 {
		t.Errorf("%+v, notes %q, want %q", s, notes, want)
	}
}

// TestNestedPaths: what a path selects does not depend on whether another one
// holds it.
func TestNestedPaths(t *testing.T) {
	s, err := newSelection("/root", []string{"/a", "/z", "/y", "/x", "/a/b/c", "/d/e", "/m", "/l"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]selection{"a": {given: true, all: true}, "a/b": {all: true}, "a/b/c": {given: true, all: true},
		"a/x": {all: true}, "a/b/c/x": {all: true}, "a/b/x": {all: true}, "d": {}, "d/e": {given: true, all: true}, "d/e/x/y": {all: true}} {
		node := s
		for name := range strings.SplitSeq(path, "/") {
			node = node.child(name)
		}
		if node.given != want.given || node.all != want.all || node.edge {
			t.Errorf("%s: %+v, want %+v", path, *node, want)
		}
	}
	if only := s.only(); !slices.Equal(only, []string{"a", "d", "l", "m", "x", "y", "z"}) {
		t.Errorf("names to look at: %q", only)
	}
	if only := (&selection{edge: true}).only(); only == nil || len(only) > 0 {
		t.Errorf("names to look at where nothing is selected: %#v", only)
	}
}

// TestEdge: another device is another file system, also where nothing is mounted.
func TestEdge(t *testing.T) {
	c := &creation{options: CreateOptions{Exclude: Excludes{OneFileSystem: true}}}
	all := &selection{all: true}
	entry := func(kind archive.FileType, dev uint64, mounted bool) *scannedEntry {
		return &scannedEntry{name: "x", inode: inode{Attr: archive.Attr{Type: kind}, dev: dev, mounted: mounted}}
	}
	for _, e := range []*scannedEntry{entry(archive.TypeDir, 2, false), entry(archive.TypeDir, 1, true)} {
		if s := c.selectionOf(e, all, 1); !s.edge || s.all {
			t.Errorf("%+v is entered: %+v", e.inode, *s)
		}
	}
	// A file of an overlay may be of the device that holds its layer.
	for _, e := range []*scannedEntry{entry(archive.TypeDir, 1, false), entry(archive.TypeFile, 2, false)} {
		if s := c.selectionOf(e, all, 1); s.edge || !s.all || c.excluded(e, "x", s) != nil {
			t.Errorf("%+v is left out: %+v", e.inode, *s)
		}
	}
	// A mount that cannot be looked at is left out, unless it is given.
	unseen := entry(archive.TypeDir, 0, true)
	unseen.err = unix.EACCES
	if err := c.excluded(unseen, "x", all); !errors.Is(err, errOtherMount) || !errors.Is(err, unix.EACCES) {
		t.Errorf("a mount that cannot be looked at: %v", err)
	}
	if err := c.excluded(unseen, "x", &selection{all: true, given: true}); err != nil {
		t.Errorf("one that is given: %v", err)
	}
	if unseen.mounted = false; c.excluded(unseen, "x", all) != nil {
		t.Error("what is no mount is left out")
	}
}

func TestReadRate(t *testing.T) {
	for perSecond, burst := range map[int64]int{1: 4 << 10, 1 << 20: 256 << 10, 4 << 20: 1 << 20, 1 << 40: 1 << 20} {
		if l := newLimiter(perSecond); l.Limit() != rate.Limit(perSecond) || l.Burst() != burst {
			t.Errorf("%d bytes per second: limit %v, burst %d, want %d", perSecond, l.Limit(), l.Burst(), burst)
		}
	}
	r, dir := newRepository(t), t.TempDir()
	large := string(randomBytes(3, 3<<20+17))
	write(t, dir+"/large", []byte(large))
	writeAll(t, dir, "small")
	o := optionsFor(dir)
	o.ReadRate, o.Threads = 1<<30, 1
	if s := create(t, r, o); s.ReadBytes != int64(len(large)+5) {
		t.Errorf("%+v", s)
	}
	wantContents(t, r, 1, map[string]string{"large": large, "small": "small"})

	// An interrupt does not wait for the rate.
	ctx, cancel := context.WithCancel(context.Background())
	o.ReadRate, o.Checksum = 1, true
	o.Progress = new(Progress)
	go func() {
		for o.Progress.ReadBytes() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if s, err := Create(ctx, r, o); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestThreads(t *testing.T) {
	for threads, want := range map[int]int{0: scanWorkers, 1: 1, 2: 2, 64: scanWorkers} {
		if got := cap(newScanner(context.Background(), threads).workers); got != want {
			t.Errorf("%d threads: %d scan workers, want %d", threads, got, want)
		}
	}
	r, dir := newRepository(t), t.TempDir()
	writeAll(t, dir, "a")
	for _, o := range []CreateOptions{{Threads: -1}, {ReadRate: -1}} {
		o.Paths, o.Root = []string{"/"}, dir
		if _, err := Create(context.Background(), r, o); err == nil || !strings.Contains(err.Error(), "negative") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
