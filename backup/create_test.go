package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// newRepository makes a repository of small parts, which is checked when the test ends.
func newRepository(t testing.TB) *archive.Repository {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	r, err := archive.Init(dir, archive.InitOptions{PartSize: archive.MinPartSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		result, err := Check(context.Background(), r, CheckOptions{Damage: func(text string) { t.Errorf("damage: %s", text) }})
		if err != nil {
			t.Errorf("check: %v (%+v)", err, result)
		}
		r.Close()
	})
	return r
}

// write makes a file of the source, with its directories.
func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// optionsFor backs up dir as the whole tree.
func optionsFor(dir string) CreateOptions {
	return CreateOptions{Paths: []string{"/"}, Root: dir, Program: "test"}
}

// openIndex opens the index of a repository. The caller closes it.
func openIndex(t testing.TB, r *archive.Repository) *index.DB {
	t.Helper()
	db, err := index.Open(r, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// entryOf returns what the first generation has at a path.
func entryOf(t testing.TB, db *index.DB, path string) index.Dirent {
	t.Helper()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	e, err := db.At(1).Resolve(gens[0].Root, path)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func create(t testing.TB, r *archive.Repository, o CreateOptions) Summary {
	t.Helper()
	s, err := Create(context.Background(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// createInterrupted makes a run that is interrupted at a path.
func createInterrupted(t *testing.T, r *archive.Repository, o CreateOptions, at string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o.Events.Change = func(_ Change, path string) {
		if path == at {
			cancel()
		}
	}
	if s, err := Create(ctx, r, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("%+v, %v", s, err)
	}
}

// contentsOf returns the paths and contents of all files of a generation.
func contentsOf(t testing.TB, r *archive.Repository, number uint64) map[string]string {
	t.Helper()
	db := openIndex(t, r)
	defer db.Close()
	reader := archive.NewReader(r.Store(), 1<<20)
	defer reader.Close()
	gens, err := db.Generations()
	if err != nil {
		t.Fatal(err)
	}
	g, err := index.Find(gens, fmt.Sprint(number))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	view := db.At(number)
	var walk func(dir index.DirID, path string)
	walk = func(dir index.DirID, path string) {
		var list []index.Dirent
		if err := view.List(dir, "", func(e index.Dirent) bool { list = append(list, e); return true }); err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Dir != 0 {
				walk(e.Dir, join(path, e.Name))
				continue
			}
			data := make([]byte, e.Attr.Size)
			if n, err := db.ReadAt(reader, e.Ino, data, 0); int64(n) != e.Attr.Size {
				t.Fatalf("%s: %d bytes, %v", e.Name, n, err)
			}
			files[join(path, e.Name)] = string(data)
		}
	}
	walk(g.Root, ".")
	return files
}

func wantContents(t testing.TB, r *archive.Repository, number uint64, want map[string]string) {
	t.Helper()
	got := contentsOf(t, r, number)
	if len(got) != len(want) {
		t.Errorf("generation %d has %d files, want %d", number, len(got), len(want))
	}
	for path, data := range want {
		if got[path] != data {
			t.Errorf("generation %d: %s has %d bytes, other than the %d it should have", number, path, len(got[path]), len(data))
		}
	}
}

func TestCreateAgain(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	large := string(randomBytes(1, 3<<20))
	write(t, source+"/a/small", []byte("one"))
	write(t, source+"/a/empty", nil)
	write(t, source+"/large", []byte(large))
	first := create(t, r, optionsFor(source))
	if first.New != 5 || first.Files != 3 || first.Dirs != 2 || first.Parts == 0 || first.ReadBytes != int64(3+len(large)) {
		t.Errorf("first: %+v", first)
	}
	second := create(t, r, optionsFor(source))
	if second.Unchanged != 5 || second.ReadBytes != 0 || second.Parts != 0 || second.Number != 2 {
		t.Errorf("second: %+v", second)
	}
	write(t, source+"/a/small", []byte("two"))
	if err := os.Remove(source + "/a/empty"); err != nil {
		t.Fatal(err)
	}
	third := create(t, r, optionsFor(source))
	if third.Changed != 2 || third.Gone != 1 || third.ReadBytes != 3 || third.Parts != 1 {
		t.Errorf("third: %+v", third)
	}
	before := map[string]string{"a/small": "one", "a/empty": "", "large": large}
	wantContents(t, r, 1, before)
	wantContents(t, r, 2, before)
	wantContents(t, r, 3, map[string]string{"a/small": "two", "large": large})
}

// TestOvertaken: a run that another one overtakes compares again, and both
// commit; what it had stored by then is not stored a second time.
func TestOvertaken(t *testing.T) {
	for _, source := range []string{"", "other"} {
		t.Run("source "+source, func(t *testing.T) {
			r, dir := newRepository(t), t.TempDir()
			large := randomBytes(2, 2<<20)
			write(t, dir+"/a", large)
			write(t, dir+"/z", []byte("one"))
			inner := optionsFor(dir)
			inner.Source = source
			o := optionsFor(dir)
			overtook, changes := false, 0
			o.Events.Change = func(_ Change, path string) {
				changes++
				if overtook || path != "z" {
					return
				}
				overtook = true
				if s := create(t, r, inner); s.Number != 1 {
					t.Errorf("the inner run made %+v", s)
				}
			}
			s := create(t, r, o)
			if s.Number != 2 || s.Files != 2 || changes != 3 {
				t.Errorf("%+v, %d changes", s, changes)
			}
			if source == "" && (s.Unchanged != 3 || s.ReadBytes != 0) {
				t.Errorf("compared with the generation that overtook it: %+v", s)
			}
			want := map[string]string{"a": string(large), "z": "one"}
			wantContents(t, r, 1, want)
			wantContents(t, r, 2, want)
		})
	}
}

// TestProgressOfOvertaken: whoever looks how far a run is does not race with it where it
// compares again. Only the race detector sees that.
func TestProgressOfOvertaken(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/a", []byte("one"))
	create(t, r, optionsFor(dir))
	o := optionsFor(dir)
	o.Progress = new(Progress)
	var ended atomic.Bool
	var looking sync.WaitGroup
	most := int64(0)
	looking.Go(func() {
		for !ended.Load() {
			_, before := o.Progress.Files()
			most = max(most, before)
			time.Sleep(time.Millisecond) // the detector knows only the last steps of a goroutine
		}
	})
	overtook := false
	o.hooks.at = func(point string) {
		if point == "before commit" && !overtook {
			overtook = true
			create(t, r, optionsFor(dir))
		}
	}
	s := create(t, r, o)
	ended.Store(true)
	looking.Wait()
	if s.Number != 3 || most != 2 {
		t.Errorf("%+v, behind a generation of %d files", s, most)
	}
}

// TestManyProblems: each is reported once, and of millions little is kept. No other test
// runs meanwhile: the heap is that of the process.
func TestManyProblems(t *testing.T) {
	const problems = 100_000
	c := &creation{said: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
	reported := 0
	c.options.Events.Problem = func(string, error) { reported++ }
	before := heapInUse()
	for range 2 {
		for i := range problems {
			c.problem(fmt.Sprintf("%0200d", i), unix.EACCES)
		}
	}
	taken := heapInUse() - before
	if reported != problems || c.summary.Errors != 2*problems {
		t.Errorf("%d problems were reported, %d counted", reported, c.summary.Errors)
	}
	if taken > problems*40 {
		t.Errorf("%d bytes are kept of %d problems", taken, len(c.said))
	}
}

// heapInUse returns the bytes of what is reachable.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestInterrupted: a run that was interrupted leaves nothing visible, and what
// lies in its finished parts is not stored again.
func TestInterrupted(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	for i := range 64 {
		write(t, fmt.Sprintf("%s/%02d", dir, i), randomBytes(uint64(i), 32<<10))
	}
	createInterrupted(t, r, optionsFor(dir), "48")
	if last, err := r.Last(); last != 0 || err != nil {
		t.Fatalf("a record was committed: %d, %v", last, err)
	}
	s := create(t, r, optionsFor(dir))
	if s.New != 65 {
		t.Errorf("%+v", s)
	}
	var stored int64
	for object, err := range r.Store().List("parts/") {
		if err != nil {
			t.Fatal(err)
		}
		stored += object.Stored
	}
	if limit := int64(64*32<<10 + 64<<10); stored > limit {
		t.Errorf("%d bytes in parts, want at most %d", stored, limit)
	}
	want := make(map[string]string)
	for i := range 64 {
		want[fmt.Sprintf("%02d", i)] = string(randomBytes(uint64(i), 32<<10))
	}
	wantContents(t, r, 1, want)
}

// A dry run, too, says that a part is missing; so none may be deleted meanwhile.
func TestPartsStayMeanwhile(t *testing.T) {
	r := newRepository(t)
	for _, dry := range []bool{true, false} {
		o := optionsFor(t.TempDir())
		o.DryRun = dry
		reached := false
		o.hooks.at = func(point string) {
			if point == "index opened" {
				reached = true
				if lock, err := r.LockToDelete(); !errors.Is(err, archive.ErrLocked) {
					lock.Release()
					t.Errorf("dry run %v: parts can be deleted: %v", dry, err)
				}
			}
		}
		if _, err := Create(context.Background(), r, o); err != nil || !reached {
			t.Fatal(err, reached)
		}
		lock, err := r.LockToDelete()
		if err != nil {
			t.Fatal(err)
		}
		lock.Release()
	}
}

func TestForgottenHead(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/a/b", []byte("one"))
	if err := os.Link(dir+"/a/b", dir+"/a/c"); err != nil {
		t.Fatal(err)
	}
	create(t, r, optionsFor(dir))
	write(t, dir+"/new", []byte("two"))
	create(t, r, optionsFor(dir))
	forget(t, r, 2)
	s := create(t, r, optionsFor(dir))
	if s.Unchanged != 3 || s.New != 1 || s.ReadBytes != 3 {
		t.Errorf("compared with generation 1: %+v", s)
	}
	wantContents(t, r, 4, map[string]string{"a/b": "one", "a/c": "one", "new": "two"})
}

// forget commits a record that drops a generation.
func forget(t testing.TB, r *archive.Repository, number uint64) {
	t.Helper()
	commitLines(t, r, archive.KindForget, archive.Line{Forget: number})
}

// commitLines commits a record as it is given, whatever it says.
func commitLines(t testing.TB, r *archive.Repository, kind archive.Kind, lines ...archive.Line) {
	t.Helper()
	last, err := r.Last()
	if err != nil {
		t.Fatal(err)
	}
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	previous, err := r.RecordDigest(last)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if err := draft.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	h := archive.Header{Kind: kind, Number: last + 1, Time: time.Now().UTC(), Previous: previous}
	if _, _, err := draft.Commit(h); err != nil {
		t.Fatal(err)
	}
}

// TestNoLink: a symlink that became something else is told by what happened, not by EINVAL.
func TestNoLink(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, dir+"/file", []byte("1"))
	if _, err := readLink(int(f.Fd()), "file", 10); !errors.Is(err, errVanished) {
		t.Error(err)
	}
}

// TestLengthOfLink: what a file system says of a target's length is not believed.
func TestLengthOfLink(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	target := strings.Repeat("t", 4095) // the kernel's limit
	if err := os.Symlink(target, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{4095, 0, 10, 4094, archive.MaxTarget, archive.MaxTarget + 1, 1 << 62, math.MaxInt64, -1} {
		if got, err := readLink(int(f.Fd()), "link", size); got != target || err != nil {
			t.Errorf("said to have %d bytes: %d, %v", size, len(got), err)
		}
	}
}

// TestNameAfterForgotten: a later generation of the same second has a later name, also
// when an earlier one is gone.
func TestNameAfterForgotten(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	o := optionsFor(dir)
	o.Time = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	for i, want := range []string{"2026-11-22T03-00-00Z", "2026-11-22T03-00-00Z.2", "2026-11-22T03-00-00Z.3"} {
		if got := create(t, r, o).Generation; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if i == 1 {
			forget(t, r, 1)
		}
	}
}

// TestNeededPartRemoved: a part was removed that generations need. A run that notices
// stores what lay in it again.
func TestNeededPartRemoved(t *testing.T) {
	for what, spoil := range map[string]func(r *archive.Repository, o *CreateOptions, second archive.Digest){
		"newest forgotten": func(r *archive.Repository, _ *CreateOptions, _ archive.Digest) { forget(t, r, 2) },
		"checksum":         func(_ *archive.Repository, o *CreateOptions, _ archive.Digest) { o.Checksum = true },
		"another missing": func(r *archive.Repository, _ *CreateOptions, second archive.Digest) {
			if err := r.Store().Remove(archive.PartStoreName(second)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			r, dir := newRepository(t), t.TempDir()
			a, b := randomBytes(1, 20000), randomBytes(2, 20000)
			write(t, dir+"/a", a)
			create(t, r, optionsFor(dir))
			write(t, dir+"/b", b)
			create(t, r, optionsFor(dir))
			first, second := partsOf(t, r, 2, "a")[0], partsOf(t, r, 2, "b")[0]
			commitLines(t, r, archive.KindCompaction, archive.Line{Removed: &first})
			o := optionsFor(dir)
			spoil(r, &o, second)
			s := create(t, r, o)
			wantContents(t, r, s.Number, map[string]string{"a": string(a), "b": string(b)})
			compact(t, r, CompactOptions{}) // forgets the missing one
			if c := check(t, r, CheckOptions{ReadData: true}); c.Damaged() {
				t.Errorf("%+v, %q", c.CheckResult, c.damages)
			}
		})
	}
}

// TestRecordReplaced: nothing is committed behind a record that is not the one that was
// read; an index of what was read would not fit to the log any more.
func TestRecordReplaced(t *testing.T) {
	r, dir := spoiled(t)
	write(t, dir+"/file", []byte("1"))
	create(t, r, optionsFor(dir))
	record := filepath.Join(r.Dir(), archive.RecordStoreName(1))
	o := optionsFor(dir)
	o.hooks.at = func(point string) {
		if point == "before commit" {
			if err := os.Truncate(record, 50); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Create(context.Background(), r, o); err == nil || !strings.Contains(err.Error(), "log record 1 was damaged, or replaced, since it was read") {
		t.Error(err)
	}
	if last, err := r.Last(); last != 1 || err != nil {
		t.Errorf("the log ends with %d, %v", last, err)
	}
}

// TestRecordUnreadable: a run whose record cannot be read is none that is done.
func TestRecordUnreadable(t *testing.T) {
	r, dir := spoiled(t)
	write(t, dir+"/file", []byte("1"))
	o := optionsFor(dir)
	var damages []string
	o.Events.Damage = func(text string) { damages = append(damages, text) }
	o.hooks.at = func(point string) {
		if point == "committed" {
			if err := os.Truncate(filepath.Join(r.Dir(), archive.RecordStoreName(1)), 50); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := create(t, r, o); s.LostRecords != 1 || len(damages) != 1 || !strings.HasPrefix(damages[0], "the record of this generation cannot be read: ") {
		t.Errorf("%+v, %q", s, damages)
	}
}

// TestRecordRefused: nor is a run whose record the index refuses: no later one could do better.
func TestRecordRefused(t *testing.T) {
	r, dir := spoiled(t)
	write(t, dir+"/file", []byte("1"))
	create(t, r, optionsFor(dir))
	c, _ := beginning(t, r, dir)
	var damages []string
	c.options.Events.Damage = func(text string) { damages = append(damages, text) }
	c.options.hooks.at = func(point string) {
		if point == "before commit" {
			if err := c.draft.Add(archive.Line{Gone: "nowhere"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	const want = `the generation is committed, but with it the log cannot be understood: log record 2: gone "nowhere": it was not there`
	if err := c.run(); err != nil || c.summary.LostRecords != 1 || len(damages) != 1 || !strings.HasPrefix(damages[0], want) {
		t.Errorf("%v, %+v, %q", err, c.summary, damages)
	}
}

func TestSameSecond(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	o := optionsFor(dir)
	o.Time = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	var got []string
	for range 3 {
		got = append(got, create(t, r, o).Generation)
	}
	if want := []string{"2026-11-22T03-00-00Z", "2026-11-22T03-00-00Z.2", "2026-11-22T03-00-00Z.3"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSelection(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	for _, path := range []string{"etc/a", "etc/deep/b", "etcetera/c", "var/log/d", "var/lib/e"} {
		write(t, filepath.Join(dir, path), []byte(path))
	}
	if err := os.Chmod(dir+"/var", 0o700); err != nil {
		t.Fatal(err)
	}
	o := optionsFor(dir)
	o.Paths = []string{"etc", "/var/log/", "/missing/x", "etc/deep"}
	var problems []string
	o.Events.Problem = func(path string, err error) { problems = append(problems, path+": "+err.Error()) }
	s := create(t, r, o)
	wantContents(t, r, 1, map[string]string{"etc/a": "etc/a", "etc/deep/b": "etc/deep/b", "var/log/d": "var/log/d"})
	if len(problems) != 1 || s.Errors != 1 || !strings.HasPrefix(problems[0], "missing/x: ") {
		t.Errorf("problems %q, %+v", problems, s)
	}
	db := openIndex(t, r)
	defer db.Close()
	if node, err := db.At(1).Dir(entryOf(t, db, "var").Dir); err != nil || node.Attr.Mode != 0o700 {
		t.Errorf("the private parent is stored as %+v, %v", node, err)
	}
	o.Paths = []string{"/nowhere"}
	if _, err := Create(context.Background(), r, o); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing to back up: %v", err)
	}
}

// TestGivenDirectories: a path that can only be that of a directory is that of one, as
// the kernel finds it, whatever symlinks it leads through.
func TestGivenDirectories(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"real/sub/in", "away/file"} {
		write(t, filepath.Join(base, path), []byte(path))
	}
	for link, target := range map[string]string{"link": "real/sub", "file": "away/file", "none": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(base, "link")) // of which $PWD has the symlink
	real := base[1:] + "/real/"
	for path, want := range map[string]string{
		".": "sub/in", "./": "sub/in", "..": "sub/in", "../.": "sub/in", "../../link/.": "sub/in", "../../link/": "sub/in",
		base + "/link/..": "sub/in", "../../link/../sub": "sub/in", "in": "sub/in",
	} {
		r := newRepository(t)
		create(t, r, CreateOptions{Paths: []string{path}})
		if got := contentsOf(t, r, 1); len(got) != 1 || got[real+want] != "real/"+want {
			t.Errorf("%s: %q", path, got)
		}
	}
	for _, path := range []string{"../../file/", "../../none/", "in/", "../../none/."} {
		r := newRepository(t)
		var problems []string
		o := CreateOptions{Paths: []string{path, base + "/away"}, Events: Events{Problem: func(path string, err error) { problems = append(problems, path+": "+err.Error()) }}}
		if s := create(t, r, o); s.Errors != 1 || len(problems) != 1 || !strings.HasSuffix(problems[0], "not a directory") || s.Files != 1 {
			t.Errorf("%s: %+v, %q", path, s, problems)
		}
	}
}

// TestPathsAboveNothing: what is above a ".." that leads nowhere nobody knows, and so no
// other directory is taken for it.
func TestPathsAboveNothing(t *testing.T) {
	base := t.TempDir()
	for _, path := range []string{"x/in", "y/in"} {
		write(t, filepath.Join(base, path), []byte(path))
	}
	if err := os.Symlink("nowhere", base+"/link"); err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	for _, o := range []CreateOptions{
		{Paths: []string{base + "/link/../x"}}, {Paths: []string{"link/../x"}}, {Paths: []string{"link/.."}},
		{Paths: []string{base + "/y", base + "/missing/../x"}}, {Paths: []string{base + "/y/in/../../x"}},
		{Root: base, Paths: []string{"/link/../x"}}, {Root: base, Paths: []string{"/y", "missing/../x"}},
	} {
		r := newRepository(t)
		if s, err := Create(context.Background(), r, o); err == nil || !strings.Contains(err.Error(), o.Paths[len(o.Paths)-1]+": ") {
			t.Errorf("%q below %q: %+v, %v", o.Paths, o.Root, s, err)
		}
		if records, err := r.Records(); err != nil || len(records) != 0 {
			t.Errorf("%q below %q: %d records, %v", o.Paths, o.Root, len(records), err)
		}
	}
}

// TestOwnDirectory: a repository is no part of its backups, also where a symlink leads to it.
func TestOwnDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", []byte("x"))
	if _, err := archive.Init(dir+"/repo", archive.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	link := t.TempDir() + "/link"
	if err := os.Symlink(dir+"/repo", link); err != nil {
		t.Fatal(err)
	}
	r, err := archive.Open(link)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	create(t, r, optionsFor(dir))
	wantContents(t, r, 1, map[string]string{"file": "x"})
	if c := check(t, r, CheckOptions{Against: dir}); c.NotStored != 0 || c.Damaged() {
		t.Errorf("%+v", c.CheckResult)
	}
}

// TestRepositoryElsewhere: the directory of the repository is known on another device by its
// inode number and its id, and nothing that is planted there is taken for it.
func TestRepositoryElsewhere(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	own, err := directoryOf(r)
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(r.Dir() + "/repo.json")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/copy/repo.json", config)
	write(t, dir+"/other/repo.json", []byte(strings.Replace(string(config), own.id, strings.Repeat("0", len(own.id)), 1)))
	write(t, dir+"/cut/repo.json", config[:len(config)/2])
	write(t, dir+"/none/x", nil)
	write(t, dir+"/fifo/x", nil)
	write(t, dir+"/link/x", nil)
	err = errors.Join(unix.Mkfifo(dir+"/fifo/repo.json", 0o600), os.Symlink(r.Dir()+"/repo.json", dir+"/link/repo.json"), os.Symlink(r.Dir(), dir+"/way"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for name, want := range map[string]bool{"copy": true, "other": false, "cut": false, "none": false, "fifo": false, "link": false, "way": false} {
		i := own.inode
		i.dev++
		if got := own.is(fd, name, &i); got != want {
			t.Errorf("%s is the repository: %v, want %v", name, got, want)
		}
		i.Inode++
		if own.is(fd, name, &i) {
			t.Errorf("%s is the repository with another inode number", name)
		}
	}
	if !own.is(fd, "none", &own.inode) {
		t.Error("the repository is not itself")
	}
}

// TestKernelPath: a given path that the kernel makes up is a problem, as one below it is.
func TestKernelPath(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/file", []byte("x"))
	var problems []string
	o := CreateOptions{Paths: []string{"/proc", dir}, Events: Events{Problem: func(path string, err error) { problems = append(problems, path+": "+err.Error()) }}}
	if s := create(t, r, o); s.Errors != 1 || !slices.Equal(problems, []string{"proc: " + errKernelFile.Error()}) {
		t.Errorf("%+v, %q", s, problems)
	}
}

// TestLease: a file that somebody has a lease of is read once that is given back.
func TestLease(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/file", []byte("x"))
	f, err := os.OpenFile(dir+"/file", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	asked, given := make(chan os.Signal, 1), make(chan error, 1)
	signal.Notify(asked, unix.SIGIO)
	defer signal.Stop(asked)
	go func() {
		<-asked
		time.Sleep(50 * time.Millisecond)
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		given <- err
	}()
	create(t, r, optionsFor(dir))
	wantContents(t, r, 1, map[string]string{"file": "x"})
	if err := <-given; err != nil {
		t.Error(err)
	}
}

// TestLasting: what changes in the moment in which it is read is read again.
func TestLasting(t *testing.T) {
	now := time.Now()
	coarse := archive.Attr{Mode: 1, Ctime: archive.Timespec{Sec: now.Unix()}}
	if got := lasting(coarse); got != neverSame(coarse) {
		t.Errorf("changed in this second: %+v", got)
	}
	coarse.Ctime.Sec -= 10
	if got := lasting(coarse); got != coarse {
		t.Errorf("changed long ago: %+v", got)
	}
	fine := archive.Attr{Mode: 1, Ctime: archive.Timespec{Sec: now.Unix(), Nsec: uint32(now.Nanosecond()) | 1}}
	if got := lasting(fine); got != fine {
		t.Errorf("changed now: %+v", got)
	}
	if passed := time.Since(now); passed < clockGrain {
		t.Errorf("it took %v, and a change can hide for %v", passed, clockGrain)
	}
}

// TestReplacedFiles: file, directory and symlink take each other's place.
func TestReplacedFiles(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/x/below", []byte("1"))
	write(t, dir+"/y", []byte("2"))
	create(t, r, optionsFor(dir))
	if err := errors.Join(os.RemoveAll(dir+"/x"), os.Remove(dir+"/y")); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/x", []byte("3"))
	write(t, dir+"/y/below", []byte("4"))
	s := create(t, r, optionsFor(dir))
	if s.Gone != 1 || s.New != 1 || s.Changed != 3 {
		t.Errorf("%+v", s)
	}
	wantContents(t, r, 1, map[string]string{"x/below": "1", "y": "2"})
	wantContents(t, r, 2, map[string]string{"x": "3", "y/below": "4"})
}

// TestSwappedDirectory: somebody replaces a directory by a symlink to one
// outside between scan and read; nothing of the outside is stored.
func TestSwappedDirectory(t *testing.T) {
	r, dir, outside := newRepository(t), t.TempDir(), t.TempDir()
	write(t, outside+"/secret", []byte("outside"))
	write(t, dir+"/a", []byte("a"))
	write(t, dir+"/b/secret", []byte("inside"))
	o := optionsFor(dir)
	o.Events.Change = func(_ Change, path string) {
		if path == "a" {
			_ = os.Rename(dir+"/b", dir+"/moved")
			_ = os.Symlink(outside, dir+"/b")
		}
	}
	create(t, r, o)
	for path, data := range contentsOf(t, r, 1) {
		if data == "outside" {
			t.Errorf("%s is a file from outside", path)
		}
	}
}

// TestChangedWhileRead: a file that shrinks under the reader is reported.
func TestChangedWhileRead(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/big", randomBytes(9, 24<<20))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(dir+"/big", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return
		}
		defer f.Close()
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = f.Write(make([]byte, 512))
				time.Sleep(time.Millisecond)
			}
		}
	}()
	var problems []string
	o := optionsFor(dir)
	o.Events.Problem = func(path string, err error) { problems = append(problems, path) }
	s := create(t, r, o)
	close(stop)
	<-done
	if s.Errors != 1 || !slices.Equal(problems, []string{"big"}) {
		t.Errorf("%+v, problems %q", s, problems)
	}
	if again := create(t, r, optionsFor(dir)); again.Changed != 1 || again.Errors != 0 {
		t.Errorf("the next run: %+v", again)
	}
}

// TestLostRecords: a run that finds that the log has lost its end, or all of it, goes on, and
// says so. What indexes know of it stays until it is repaired.
func TestLostRecords(t *testing.T) {
	for _, left := range []uint64{0, 1} {
		t.Run(fmt.Sprint(left, " left"), func(t *testing.T) { loseRecords(t, left) })
	}
}

func loseRecords(t *testing.T, left uint64) {
	r, dir := newRepository(t), t.TempDir()
	for range 3 {
		create(t, r, optionsFor(dir))
	}
	for number := left + 1; number <= 3; number++ {
		if err := os.Remove(filepath.Join(r.Dir(), archive.RecordStoreName(number))); err != nil {
			t.Fatal(err)
		}
	}
	var damages []string
	o := optionsFor(dir)
	o.Events.Damage = func(text string) { damages = append(damages, text) }
	for ends := left; ends < 3; ends++ {
		damages = nil
		want := fmt.Sprintf("records up to 3, but the log ends with record %d", ends)
		if s := create(t, r, o); s.Number != ends+1 || s.LostRecords != 3-ends || len(damages) != 1 || !strings.Contains(damages[0], want) {
			t.Errorf("%+v, %q", s, damages)
		}
	}
	damages = nil
	if s := create(t, r, o); s.Number != 4 || s.LostRecords != 1 || len(damages) != 1 || !strings.Contains(damages[0], "index 3 was made with another record 3") {
		t.Errorf("at the end that was: %+v, %q", s, damages)
	}
	damages = nil
	if s := create(t, r, o); s.Number != 5 || s.LostRecords != 0 || len(damages) != 0 {
		t.Errorf("later: %+v, %q", s, damages)
	}
	if result, err := Check(t.Context(), r, CheckOptions{Repair: true}); err != nil || result.DamagedIndexes != 2 || !result.Repaired || result.Damaged() {
		t.Errorf("repaired: %+v, %v", result, err)
	}
}

// TestSortedNames: a directory may list a name twice.
func TestSortedNames(t *testing.T) {
	if got := sortedNames([]string{"b", "a", "b", "c", "a"}); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("%q", got)
	}
}

// TestNameWithoutInode: a file system without inode numbers gives 0 for them.
func TestNameWithoutInode(t *testing.T) {
	var dirents []byte
	for ino, name := range []string{"without", "with"} {
		entry := make([]byte, 32) // linux_dirent64: number, offset, length, type, name
		binary.NativeEndian.PutUint64(entry, uint64(ino))
		binary.NativeEndian.PutUint16(entry[16:], uint16(len(entry)))
		copy(entry[19:], name)
		dirents = append(dirents, entry...)
	}
	if got := appendNames(nil, dirents); !slices.Equal(got, []string{"without", "with"}) {
		t.Errorf("%q", got)
	}
}

// TestACLsAlone: where other attributes cannot be read, ACLs are, or it is known that they
// are not.
func TestACLsAlone(t *testing.T) {
	const access, other = "system.posix_acl_access", "system.posix_acl_default"
	for name, c := range map[string]struct {
		values map[string]string
		errs   map[string]error
		want   []archive.Xattr
		known  bool
	}{
		"both":        {map[string]string{access: "a", other: "d"}, nil, []archive.Xattr{{Name: access, Value: "a"}, {Name: other, Value: "d"}}, true},
		"none":        {nil, map[string]error{access: unix.ENODATA, other: unix.ENOTSUP}, nil, true},
		"unreachable": {nil, map[string]error{access: unix.EIO, other: unix.ENODATA}, nil, false},
	} {
		x := xattrReader{get: func(name string, dst []byte) (int, error) { return copy(dst, c.values[name]), c.errs[name] }}
		if got, known := x.acls(); !slices.Equal(got, c.want) || known != c.known {
			t.Errorf("%s: %v, %v", name, got, known)
		}
	}
}

// TestSizesThatOverflow: files whose sizes cannot be added are problems, and not the end
// of the repository.
func TestSizesThatOverflow(t *testing.T) {
	r, dir := newRepository(t), memoryDir(t) // other file systems refuse such files
	for name, size := range map[string]int64{"a": math.MaxInt64, "b": 1, "c": maxRaw - 1, "d": 1} {
		write(t, dir+"/"+name, nil)
		if err := os.Truncate(dir+"/"+name, size); err != nil {
			t.Fatal(err)
		}
	}
	var problems []string
	o := optionsFor(dir)
	o.Events.Problem = func(path string, err error) { problems = append(problems, path) }
	for range 2 {
		problems = nil
		if s := create(t, r, o); s.Files != 2 || !slices.Equal(problems, []string{"a", "d"}) {
			t.Errorf("%+v, problems with %q", s, problems)
		}
	}
}

// TestGrowsOverflow: so is a file that becomes so large only after the directory was read.
func TestGrowsOverflow(t *testing.T) {
	r, dir := newRepository(t), memoryDir(t) // other file systems refuse such files
	write(t, dir+"/a", []byte("a"))
	write(t, dir+"/b", []byte("b"))
	var problems []string
	o := optionsFor(dir)
	o.Events.Problem = func(path string, err error) { problems = append(problems, path+" "+err.Error()) }
	o.Events.Change = func(_ Change, path string) {
		if path == "a" {
			if err := os.Truncate(dir+"/b", math.MaxInt64); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := create(t, r, o); s.Files != 1 || !slices.Equal(problems, []string{"b " + errTooMuch.Error()}) {
		t.Errorf("%+v, problems %q", s, problems)
	}
	write(t, dir+"/b", []byte("small again"))
	if s := create(t, r, optionsFor(dir)); s.Errors != 0 {
		t.Errorf("the next run: %+v", s)
	}
	wantContents(t, r, 2, map[string]string{"a": "a", "b": "small again"})
}

// beginning returns a run that has compared nothing yet, and its source opened.
func beginning(t *testing.T, r *archive.Repository, dir string) (c *creation, source int) {
	t.Helper()
	c = &creation{ctx: t.Context(), repo: r, options: optionsFor(dir), scanner: newScanner(t.Context(), 1), limiter: newLimiter(0),
		stored: map[archive.Hash]struct{}{}, links: map[string]archive.Entry{}, devices: devices{}}
	c.options.Progress = new(Progress)
	c.pool = archive.NewPackerPool(archive.PackerOptions{PartStored: r.PartSize}, temperatures)
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	source, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(source) })
	return c, source
}

// TestRootCannotBeStored: where the root is gone, or its entry is refused, there is no
// generation, whether there was one before or not.
func TestRootCannotBeStored(t *testing.T) {
	dir := t.TempDir()
	c, source := beginning(t, newRepository(t), dir)
	st, err := statBeneath(source, "")
	if err != nil {
		t.Fatal(err)
	}
	impossible := st
	impossible.Nlink = 0
	for what, root := range map[string]struct {
		inode
		err error
	}{"vanished": {st, unix.ENOENT}, "refused": {impossible, nil}} {
		for _, old := range []*index.Dirent{nil, {Name: "."}} {
			d := &scanned{done: make(chan struct{}), fd: -1, err: root.err}
			close(d.done)
			var f fatal
			if err := c.directory(source, d, &scannedEntry{name: ".", inode: root.inode}, ".", old, c.selection, st.dev); !errors.As(err, &f) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TestInodeNumberAgain: a file that has the inode number of one whose links are gone is
// read; another link is not.
func TestInodeNumberAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/new", []byte("new"))
	if err := os.Link(dir+"/new", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	c, source := beginning(t, newRepository(t), dir)
	st, err := statBeneath(source, "new")
	if err != nil {
		t.Fatal(err)
	}
	gone := archive.Entry{Path: "gone", Attr: st.Attr, Group: c.devices.group(&st)}
	gone.Attr.Size = 100
	c.links[c.devices.group(&st)] = gone
	for _, name := range []string{"new", "link"} {
		entry, err := c.read(source, &scannedEntry{name: name, inode: st}, name)
		if err != nil || entry.Path != name || len(entry.Data) != 1 || entry.Data[0].Hash != archive.HashOf([]byte("new")) {
			t.Errorf("%s: %+v, %v", name, entry, err)
		}
	}
	if c.summary.ReadBytes != 3 {
		t.Errorf("%d bytes were read", c.summary.ReadBytes)
	}
}

// TestDevicesOfLinks: a device has the same name in hard-link groups whatever its number is,
// and no other one has it, as long as directories of it are met first.
func TestDevicesOfLinks(t *testing.T) {
	linked := func(dev uint64) *inode {
		return &inode{Attr: archive.Attr{Type: archive.TypeFile, Nlink: 2, Inode: 0xabc}, dev: dev}
	}
	one, other := devices{}, devices{}
	for _, path := range []string{".", "home", "srv/data"} {
		n := uint64(len(path))
		one.meet(n, path)
		other.meet(n+100, path)
		one.meet(1, path) // a bind mount of the first
		if a, b := one.group(linked(n)), other.group(linked(n+100)); a != b || len(a) != len("0123456789abcdef:abc") {
			t.Errorf("%s: %q and %q", path, a, b)
		}
	}
	seen := map[string]bool{}
	for n := range one {
		seen[one.group(linked(n))] = true
	}
	if len(seen) != 3 {
		t.Errorf("three devices: %v", seen)
	}
	one.meet(0xff, "") // of a layer of overlayfs
	one.meet(0xff, "later")
	if got := one.group(linked(0xff)); got != "ff:abc" {
		t.Errorf("of a device that was met with a file: %q", got)
	}
	for what, change := range map[string]func(*inode){"no other link": func(i *inode) { i.Nlink = 1 }, "a directory": func(i *inode) { i.Type = archive.TypeDir }} {
		i := linked(1)
		change(i)
		if got := one.group(i); got != "" {
			t.Errorf("%s is of the group %q", what, got)
		}
	}
}

// TestLinkOfYoungFile: a link is one of the first link, too, where that was stored with
// attributes that no file has; where the file is another one by then, that is told.
func TestLinkOfYoungFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/first", []byte("content"))
	if err := os.Link(dir+"/first", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	c, source := beginning(t, newRepository(t), dir)
	read := func(name string) archive.Entry {
		st, err := statBeneath(source, name)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := c.read(source, &scannedEntry{name: name, inode: st}, name)
		if err != nil || entry.Path != name {
			t.Errorf("%s: %+v, %v", name, entry, err)
		}
		return entry
	}
	first := read("first")
	first.Attr = neverSame(first.Attr)
	c.links[first.Group] = first
	if link := read("link"); link.Attr != first.Attr || c.summary.Errors != 0 {
		t.Errorf("%+v, want %+v; %d problems", link, first, c.summary.Errors)
	}
	first.Data = []archive.Extent{{Len: first.Attr.Size, Hash: archive.HashOf([]byte("another"))}}
	c.links[first.Group] = first
	if link := read("link"); link.Attr == first.Attr || c.summary.Errors != 1 {
		t.Errorf("of another one: %+v; %d problems", link, c.summary.Errors)
	}
}

// TestShrunkAndGrownAgain: a file ends where it shrank while it was read.
func TestShrunkAndGrownAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", make([]byte, 3000))
	c, source := beginning(t, newRepository(t), dir)
	fd, err := openBeneath(source, "f", unix.O_RDONLY, &patience{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	entry := archive.Entry{Path: "f", Attr: archive.Attr{Size: 9000}}
	// The file as it was had data behind its end now; what is before that, when it is read
	// after it, stands for what came again.
	if err := c.readRanges(fd, 9000, []byteRange{{5000, 9000}, {0, 3000}}, &entry); err != nil {
		t.Fatal(err)
	}
	if !entry.Changed || entry.Attr.Size != 5000 || len(entry.Data) != 0 {
		t.Errorf("%+v", entry)
	}
}

// TestYoung: how long a change may hide behind a time.
func TestYoung(t *testing.T) {
	second := time.Now().Truncate(time.Second)
	at := func(when time.Time) archive.Attr {
		return archive.Attr{Ctime: archive.Timespec{Sec: when.Unix(), Nsec: uint32(when.Nanosecond())}}
	}
	for name, c := range map[string]struct {
		attr  archive.Attr
		young bool
	}{
		"now":             {at(time.Now().Truncate(time.Microsecond).Add(1)), true},
		"a moment ago":    {at(time.Now().Truncate(time.Microsecond).Add(1 - 100*time.Millisecond)), false},
		"this second":     {at(second), true},
		"seconds ago":     {at(second.Add(-3 * time.Second)), false},
		"a year to come":  {at(second.AddDate(1, 0, 0)), false},
		"as no file ever": {neverSame(at(time.Now())), false},
	} {
		if got := young(c.attr); got > 0 != c.young {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestFIFOIsNotOpened(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if s := create(t, r, optionsFor(dir)); s.Files != 1 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}

func TestPrintable(t *testing.T) {
	for path, want := range map[string]string{"a b/ä": "a b/ä", "a\nb": `"a\nb"`, "\xff": `"\xff"`, "\x1b[2J": `"\x1b[2J"`,
		`/back\slash`: `/back\slash`, `/q"`: `/q"`, `"q"`: `"\"q\""`, "\ufffd": "\ufffd", "\u202e": `"\u202e"`, "/\t\"\\": `"/\t\"\\"`} {
		if got := Printable(path); got != want {
			t.Errorf("Printable(%q) = %s, want %s", path, got, want)
		}
	}
}

func TestMountType(t *testing.T) {
	const text = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n" +
		"40 22 0:50 / /backups ro,nosuid master:2 propagate_from:1 - fuse.backupfs /srv/b ro\n" +
		"41 22 0:51 / /mnt/\u00a0-\u00a0name rw - tmpfs tmpfs rw\n"
	for id, want := range map[string]string{"22": "ext4", "40": "fuse.backupfs", "41": "tmpfs", "4": "", "": ""} {
		if got := mountType(text, id); got != want {
			t.Errorf("mount %q is %q, want %q", id, got, want)
		}
	}
}

// TestRightsAboveContents: what is stored of a directory and of what is in it is of one
// moment: what was private in the source is private in the backup.
func TestRightsAboveContents(t *testing.T) {
	for name, c := range map[string]struct {
		at       string // the path at which something happens
		happens  func(dir string) error
		problems []string
	}{
		"another directory takes the name": {"a", func(dir string) error {
			return errors.Join(os.Rename(dir+"/x", dir+"/y"), os.Rename(dir+"/z", dir+"/x"))
		}, []string{"z: " + errVanished.Error()}},
		"it becomes private, and then gets the secret": {"a", func(dir string) error {
			return errors.Join(os.Chmod(dir+"/x", 0o700), os.WriteFile(dir+"/x/secret", []byte("secret"), 0o644))
		}, nil},
		"it becomes private while it is read": {"x/file", func(dir string) error {
			return os.Chmod(dir+"/x", 0o700)
		}, []string{"x: " + errRights.Error()}},
	} {
		t.Run(name, func(t *testing.T) {
			r, dir := newRepository(t), t.TempDir()
			write(t, dir+"/a", []byte("a"))
			write(t, dir+"/x/file", []byte("public"))
			write(t, dir+"/z/secret", []byte("secret"))
			if err := errors.Join(os.Chmod(dir+"/x", 0o755), os.Chmod(dir+"/z", 0o700)); err != nil {
				t.Fatal(err)
			}
			var problems []string
			o := optionsFor(dir)
			o.Events.Problem = func(path string, err error) { problems = append(problems, path+": "+err.Error()) }
			o.Events.Change = func(_ Change, path string) {
				if path == c.at {
					if err := c.happens(dir); err != nil {
						t.Error(err)
					}
				}
			}
			create(t, r, o)
			if !slices.Equal(problems, c.problems) {
				t.Errorf("problems %q, want %q", problems, c.problems)
			}
			db := openIndex(t, r)
			defer db.Close()
			gens, err := db.Generations()
			if err != nil {
				t.Fatal(err)
			}
			for path, content := range contentsOf(t, r, 1) {
				above, err := db.At(1).Resolve(gens[0].Root, filepath.Dir(path))
				if secret := content == "secret"; err != nil || secret && above.Attr.Mode != 0o700 {
					t.Errorf("%s lies in a directory of mode %o, %v", path, above.Attr.Mode, err)
				}
			}
		})
	}
}

// TestTooDeep: a path of any length takes no more memory than those above it.
func TestTooDeep(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	for range archive.MaxDirectoryPath/len(name) + 5 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = below
	}
	unix.Close(fd)
	var problems []string
	o := optionsFor(dir)
	o.Events.Problem = func(path string, err error) { problems = append(problems, path[len(path)-3:]+": "+err.Error()) }
	want := archive.MaxDirectoryPath / (len(name) + 1)
	if s := create(t, r, o); s.Dirs != int64(want)+1 || !slices.Equal(problems, []string{"ddd: " + errTooDeep.Error()}) {
		t.Errorf("%d directories, want %d and the root; problems %q", s.Dirs, want, problems)
	}
	if s := create(t, r, o); s.Errors != 1 {
		t.Errorf("the next run: %+v", s)
	}
}

// TestManyLeases: a run does not wait for each of any number of leases.
func TestManyLeases(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	signal.Ignore(unix.SIGIO)
	defer signal.Reset(unix.SIGIO)
	leases, started := patience{50 * time.Millisecond}, time.Now()
	for i := range 20 {
		name := fmt.Sprint(i)
		write(t, filepath.Join(dir, name), []byte("x"))
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			t.Fatal(err)
		}
		if got, err := openBeneath(fd, name, unix.O_RDONLY, &leases); !errors.Is(err, errLease) {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if waited := time.Since(started); waited > leaseWait {
		t.Errorf("20 files with leases took %v", waited)
	}
}

// TestUnavailable: what cannot be opened for now has no descriptor, and nobody is said to
// have a lease of a directory.
func TestUnavailable(t *testing.T) {
	const cached = 0x20 // RESOLVE_CACHED: with O_TRUNC the kernel answers EAGAIN
	for flags, want := range map[uint64]error{0: errLease, unix.O_DIRECTORY: unix.EAGAIN} {
		how := unix.OpenHow{Flags: flags | unix.O_TRUNC, Resolve: cached}
		fd, err := openat2(unix.AT_FDCWD, t.TempDir(), &how, &patience{})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			t.Skip("RESOLVE_CACHED needs Linux 5.12")
		}
		if fd != -1 || !errors.Is(err, want) {
			t.Errorf("flags %#o: %d, %v, want %v", flags, fd, err, want)
		}
	}
}

// TestManyHoles: the ranges of a file are bounded, and no hole is one of them, however many
// bytes it has.
func TestManyHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(memoryDir(t), "f")) // other file systems have shorter files
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const step, data = 1 << 56, 4096
	for i := range int64(21) {
		if _, err := f.WriteAt(make([]byte, data), i*step); err != nil {
			t.Fatal(err)
		}
	}
	for _, most := range []int{maxRanges, 21, 20, 8, 1} {
		ranges, err := dataRanges(t.Context(), int(f.Fd()), 20*step+data, most)
		if most < 21 {
			if !errors.Is(err, errManyRanges) || ranges != nil {
				t.Errorf("at most %d: %d, %v", most, len(ranges), err)
			}
			continue
		}
		if err != nil || len(ranges) != 21 {
			t.Errorf("at most %d: %d, %v", most, len(ranges), err)
		}
		for i, r := range ranges {
			if start := int64(i) * step; r.start != start || r.end-start < data || r.end-start > 2<<20 { // pages may be huge
				t.Errorf("at most %d: %v is range %d", most, r, i)
			}
		}
	}
}

// TestManySmallHoles: those count as data where there are very many, and nothing else does.
func TestManySmallHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const step, data = 64 << 10, 4096
	starts := []int64{0, 1, 2, 3, 100, 101, 102, 103, 200, 201} // times step
	for _, at := range starts {
		if _, err := f.WriteAt(make([]byte, data), at*step); err != nil {
			t.Fatal(err)
		}
	}
	size := starts[len(starts)-1]*step + data
	for most, want := range map[int]int{10: 10, 9: 4, 8: 4, 5: 4, 3: 0} {
		ranges, err := dataRanges(t.Context(), int(f.Fd()), size, most)
		if len(ranges) != want || (want == 0) != errors.Is(err, errManyRanges) {
			t.Errorf("at most %d: %v, %v, want %d", most, ranges, err, want)
		}
		read := int64(0)
		for _, r := range ranges {
			read += r.end - r.start
		}
		for _, at := range starts {
			if want > 0 && !slices.ContainsFunc(ranges, func(r byteRange) bool { return r.start <= at*step && at*step+data <= r.end }) {
				t.Errorf("at most %d: the data at %d is in none of %v", most, at*step, ranges)
			}
		}
		if read > 10*step {
			t.Errorf("at most %d: %d bytes in %v", most, read, ranges)
		}
	}
}

// TestMountedMeanwhile: what gets mounted while a backup of one file system runs, an automount
// by the backup itself above all, is a mount point like any other.
func TestMountedMeanwhile(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/a", []byte("a"))
	write(t, dir+"/x/below", []byte("below"))
	o := optionsFor(dir)
	o.Exclude.OneFileSystem = true
	var excluded []string
	o.Events.Excluded = func(path string, _ error) { excluded = append(excluded, path) }
	o.Events.Change = func(_ Change, path string) {
		if path == "a" {
			if err := unix.Mount("tmpfs", dir+"/x", "tmpfs", 0, "mode=711"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir+"/x", 0) })
			write(t, dir+"/x/other", []byte("other"))
		}
	}
	if s := create(t, r, o); s.Errors != 0 || !slices.Equal(excluded, []string{"x"}) {
		t.Errorf("%+v, excluded %q", s, excluded)
	}
	wantContents(t, r, 1, map[string]string{"a": "a"})
}
