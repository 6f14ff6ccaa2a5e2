package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/backupfs/backupfs/internal/disk/crash"
)

// These tests run commands on a model of a disk (package crash), and look at what is
// on it if the machine crashes after any of their operations: every generation that
// was acknowledged must read back whole, one that was not is whole or not there, no
// index is damaged or lost, and the next commands work without help and leave nothing
// of the dead.

// generations are the contents of files, by the generation's name and by path.
type generations map[string]map[string]string

func (g generations) equal(other generations) bool {
	return maps.EqualFunc(g, other, maps.Equal[map[string]string, map[string]string])
}

// recording is a repository on a model of a disk, and what must be in it after each
// operation.
type recording struct {
	t      testing.TB
	disk   *crash.Disk
	top    string // of the disk
	source string
	clock  time.Time
	epochs []epoch
}

// epoch is what must hold after crashes from an operation on.
type epoch struct {
	from     int // operations
	command  string
	made     bool          // the repository was
	possible []generations // those of the repository are one of these
	index    uint64        // a sound index is there that covers this record
}

func newRecording(t testing.TB, o crash.Options) *recording {
	t.Helper()
	base := memoryDir(t)
	r := &recording{t: t, top: filepath.Join(base, "disk"), source: filepath.Join(base, "source"), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, dir := range []string{r.top, r.source} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.disk = crash.New(r.top, o)
	r.epochs = []epoch{{command: "init", possible: []generations{{}}}}
	repo, err := archive.InitOn(r.disk, filepath.Join(r.top, "repo"), archive.InitOptions{PartSize: archive.MinPartSize})
	if err != nil {
		t.Fatal(err)
	}
	r.epochs = append(r.epochs, epoch{from: r.disk.Len(), made: true, possible: []generations{{}}})
	repo.Close()
	return r
}

func (r *recording) last() *epoch { return &r.epochs[len(r.epochs)-1] }

// job is a command of these tests. It returns what becomes of the generations, and the
// record that the index covers then; 0: of neither anything.
type job struct {
	name string
	run  func(repo *archive.Repository, at time.Time, source string) (change func(generations), index uint64, err error)
}

func createJob(note func(string)) job {
	return job{"create", func(repo *archive.Repository, at time.Time, source string) (func(generations), uint64, error) {
		o := optionsFor(source)
		o.Time, o.Threads, o.Events.Note = at, 1, note
		s, err := Create(context.Background(), repo, o)
		return func(g generations) { g[s.Generation] = filesBelow(source) }, s.Number, err
	}}
}

func forgetJob(names ...string) job {
	return job{"forget", func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		f, err := Forget(context.Background(), repo, ForgetOptions{Names: names, Program: "test"})
		return func(g generations) {
			for _, d := range f.Dropped() {
				delete(g, d.Name)
			}
		}, f.Number, err
	}}
}

func compactJob(note func(string)) job {
	return job{"compact", func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		s, err := Compact(context.Background(), repo, CompactOptions{Program: "test", Note: note})
		if err != nil || s.Removed == 0 {
			return nil, 0, err
		}
		last, err := repo.Last()
		return func(generations) {}, last, err
	}}
}

func reindexJob() job {
	return job{"reindex", func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		db, err := index.Rebuild(repo, index.Options{})
		if err != nil {
			return nil, 0, err
		}
		defer db.Close()
		return nil, db.Number(), nil
	}}
}

// loseIndex is a user who deletes the index.
func loseIndex() job {
	return job{"rm", func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		return nil, 0, errors.Join(repo.FS().RemoveAll(repo.IndexDir()), repo.FS().SyncDir(repo.Dir()))
	}}
}

// do runs a command to its end.
func (r *recording) do(j job) {
	r.t.Helper()
	before, from := r.last(), r.disk.Len()
	change, number, end, err := r.run(j)
	if err != nil {
		r.t.Fatalf("%s: %v", j.name, err)
	}
	during := epoch{from: from, command: j.name, made: true, possible: before.possible, index: before.index}
	if j.name == "rm" {
		during.index = 0
	}
	after := during
	after.from, after.command = end, ""
	if change != nil {
		next := maps.Clone(before.possible[len(before.possible)-1])
		change(next)
		after.possible = []generations{next}
		during.possible = append(slices.Clone(during.possible), next)
	}
	after.index = max(after.index, number)
	r.epochs = append(r.epochs, during, after)
}

// run runs a command. It returns what the command returns, and the number of
// operations when it did.
func (r *recording) run(j job) (change func(generations), number uint64, end int, err error) {
	r.t.Helper()
	repo, err := archive.OpenOn(r.disk, filepath.Join(r.top, "repo"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer repo.Close()
	r.clock = r.clock.Add(time.Minute)
	change, number, err = j.run(repo, r.clock, r.source)
	return change, number, r.disk.Len(), err
}

// kill runs a command that is killed after some operations. It reports false where it
// has no more than those.
func (r *recording) kill(j job, after int) bool {
	r.t.Helper()
	before, from := r.last(), r.disk.Len()
	r.disk.Limit(from + after)
	_, _, _, err := r.run(j)
	r.disk.Limit(-1)
	if r.disk.Len() < from+after {
		return false
	}
	during := epoch{from: from, command: j.name, made: true, possible: before.possible, index: before.index}
	// What can be seen now is what the next command goes on with.
	state := r.disk.Crash(r.disk.Len(), crash.Everything, "")
	dir := filepath.Join(memoryDir(r.t), "seen")
	if err := errors.Join(os.Mkdir(dir, 0o700), state.Write(dir)); err != nil {
		r.t.Fatal(err)
	}
	repo, err := archive.Open(filepath.Join(dir, "repo"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer repo.Close()
	seen, err := readGenerations(repo)
	if err != nil {
		r.t.Fatalf("%s, killed after %d operations: %v", j.name, after, err)
	}
	during.possible = append(slices.Clone(during.possible), seen)
	r.epochs = append(r.epochs, during)
	return true
}

// put gives a file of the source another content and time.
func (r *recording) put(name string, seed uint64, size int) {
	r.t.Helper()
	path := filepath.Join(r.source, name)
	write(r.t, path, randomBytes(seed, size))
	at := time.Unix(1_700_000_000+int64(seed), 0)
	if err := os.Chtimes(path, at, at); err != nil {
		r.t.Fatal(err)
	}
}

// filesBelow returns the contents of all files below a directory.
func filesBelow(dir string) map[string]string {
	files := map[string]string{}
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			data, _ := os.ReadFile(path)
			rel, _ := filepath.Rel(dir, path)
			files[rel] = string(data)
		}
		return err
	})
	return files
}

// readGenerations reads all files of all generations. A message about the index is an
// error.
func readGenerations(repo *archive.Repository) (generations, error) {
	var said []error
	db, err := index.Open(repo, index.Options{Log: func(format string, a ...any) { said = append(said, fmt.Errorf(format, a...)) }})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	list, err := db.Generations()
	if err != nil {
		return nil, err
	}
	reader := archive.NewReader(repo.Store(), 1<<20)
	defer reader.Close()
	all := generations{}
	for _, g := range list {
		files := map[string]string{}
		all[g.Name] = files
		if err := readTree(db, db.At(g.Number), reader, g.Root, "", files); err != nil {
			return nil, fmt.Errorf("generation %s: %w", g.Name, err)
		}
	}
	return all, errors.Join(said...)
}

func readTree(db *index.DB, view index.View, reader *archive.Reader, dir index.DirID, path string, files map[string]string) error {
	var failure error
	err := view.List(dir, "", func(e index.Dirent) bool {
		name := filepath.Join(path, e.Name)
		if e.Dir != 0 {
			failure = readTree(db, view, reader, e.Dir, name, files)
			return failure == nil
		}
		data := make([]byte, e.Attr.Size)
		if n, err := db.ReadAt(reader, e.Ino, data, 0); int64(n) != e.Attr.Size {
			failure = fmt.Errorf("%s: %w", name, err)
		}
		files[name] = string(data)
		return failure == nil
	})
	return errors.Join(err, failure)
}

// at returns what must hold after a crash behind the first n operations.
func (r *recording) at(n int) epoch {
	e := r.epochs[0]
	for _, next := range r.epochs {
		if next.from <= n {
			e = next
		}
	}
	return e
}

// crash crashes behind the first n operations and says what is wrong then.
func (r *recording) judge(n int, state crash.State, order int) error {
	e := r.at(n)
	top, err := os.MkdirTemp(filepath.Dir(r.top), "crashed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	if err := state.Write(top); err != nil {
		return err
	}
	dir := filepath.Join(top, "repo")
	repo, err := archive.Open(dir)
	if err != nil && !e.made {
		repo, err = archive.Init(dir, archive.InitOptions{PartSize: archive.MinPartSize})
	}
	if err != nil {
		return err
	}
	err = r.found(repo, e)
	if err := errors.Join(err, repo.Close()); err != nil {
		return fmt.Errorf("found: %w", err)
	}
	if err := r.goOn(dir, e, order); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	return nil
}

// found looks at a repository before anything is changed in it, and reads it.
func (r *recording) found(repo *archive.Repository, e epoch) error {
	if newest := newestIndex(repo); newest < e.index {
		return fmt.Errorf("the newest index is of record %d, want %d", newest, e.index)
	}
	if _, err := checkAll(repo); err != nil {
		return err
	}
	_, err := e.read(repo)
	return err
}

// read reads all generations, which must be among the possible ones.
func (e epoch) read(repo *archive.Repository) (generations, error) {
	got, err := readGenerations(repo)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(e.possible, got.equal) {
		return nil, fmt.Errorf("the generations are %v, or have other files; want those of one of %v", namesOf(got), e.possible)
	}
	return got, nil
}

func namesOf(g generations) []string { return slices.Sorted(maps.Keys(g)) }

// String lists the names.
func (g generations) String() string { return fmt.Sprint(namesOf(g)) }

func newestIndex(repo *archive.Repository) (newest uint64) {
	entries, _ := os.ReadDir(repo.IndexDir())
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			newest = max(newest, n)
		}
	}
	return newest
}

// checkAll is a check that reads all parts.
func checkAll(repo *archive.Repository) (CheckResult, error) {
	var damages []error
	result, err := Check(context.Background(), repo, CheckOptions{ReadData: true, Damage: func(text string) { damages = append(damages, errors.New("check: "+text)) }})
	return result, errors.Join(append(damages, err)...)
}

// goOn runs one command after the other, in an order of some, and looks at the repository again.
func (r *recording) goOn(dir string, e epoch, order int) error {
	var notes []string
	note := func(text string) { notes = append(notes, text) }
	jobs := []job{createJob(note), compactJob(note), reindexJob()}
	jobs = append(jobs[order%3:], jobs[:order%3]...)
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	want, err := e.read(repo)
	repo.Close()
	if err != nil {
		return err
	}
	for i, j := range append(jobs, forgetJob("latest"), compactJob(note)) {
		repo, err := archive.Open(dir)
		if err != nil {
			return err
		}
		change, _, err := j.run(repo, r.clock.Add(time.Duration(i+1)*time.Minute), r.source)
		if err == nil && change != nil {
			change(want)
		}
		if err := errors.Join(err, repo.Close()); err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
	}
	return errors.Join(wantClean(dir, want), wantQuiet(notes))
}

// wantQuiet fails for notes about anything but parts that are used again.
func wantQuiet(notes []string) error {
	for _, text := range notes {
		if !strings.Contains(text, "are used") {
			return fmt.Errorf("note: %s", text)
		}
	}
	return nil
}

// wantClean fails unless a repository has these generations and nothing else.
func wantClean(dir string, want generations) error {
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		return fmt.Errorf("tmp/ still has %v: %w", left, err)
	}
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	got, err := readGenerations(repo)
	if err != nil {
		return err
	}
	if !got.equal(want) {
		return fmt.Errorf("the generations are %v, or have other files; want %v", got, want)
	}
	result, err := checkAll(repo)
	if err != nil {
		return err
	}
	if result.Unnamed > 0 || result.Undeleted > 0 {
		return fmt.Errorf("%d parts that no record names, %d that were removed, are still there", result.Unnamed, result.Undeleted)
	}
	return sameAsRebuilt(repo)
}

// sameAsRebuilt fails if the index gives other answers than one made from the log.
func sameAsRebuilt(repo *archive.Repository) error {
	db, err := index.Open(repo, index.Options{})
	if err != nil {
		return err
	}
	defer db.Close()
	fresh, err := index.Rebuild(repo, index.Options{})
	if err != nil {
		return err
	}
	defer fresh.Close()
	old, err := db.Digest()
	if err != nil {
		return err
	}
	now, err := fresh.Digest()
	if err == nil && now != old {
		err = errors.New("the index gives other answers than a rebuilt one")
	}
	return err
}

// life makes a recording of a repository's life: generations that come and go, a
// compaction, an index that is rebuilt, and one that was deleted.
func life(t testing.TB, o crash.Options) *recording {
	t.Helper()
	r := newRecording(t, o)
	for i := range 6 {
		r.put(fmt.Sprintf("d%d/f%d", i%2, i), uint64(i+1), 9_000+i*3_000)
	}
	r.do(createJob(nil))
	r.put("d0/f0", 10, 9_000)
	r.put("d1/f1", 11, 20_000)
	r.do(createJob(nil))
	r.put("d0/f0", 12, 8_000)
	r.do(createJob(nil))
	r.do(forgetJob("1", "2"))
	r.do(compactJob(nil))
	r.put("d0/f4", 13, 15_000)
	r.do(createJob(nil))
	r.do(reindexJob())
	r.do(loseIndex())
	r.do(reindexJob())
	r.do(compactJob(nil))
	return r
}

func TestTmpLife(t *testing.T) {
	r := life(t, crash.Options{})
	if err := r.disk.Compare(); err != nil {
		t.Error(err)
	}
	t.Log(r.disk.Len(), "operations")
	for _, e := range r.epochs {
		t.Log(e.from, e.command, e.possible, e.index)
	}
	for s, n := range r.disk.Syncs() {
		t.Log(s, len(n))
	}
	start := time.Now()
	seen := map[[32]byte]bool{}
	failed := map[string]int{}
	states := 0
	for n := range r.disk.Len() + 1 {
		for seed := range uint64(6) {
			state := r.disk.Crash(n, seed, "")
			states++
			key := state.Key(func(path string) bool { return !strings.HasPrefix(path, "repo/tmp/") })
			if seen[key] {
				continue
			}
			seen[key] = true
			if err := r.judge(n, state, n+int(seed)); err != nil {
				text := r.at(n).command + ": " + err.Error()
				if failed[text]++; failed[text] == 1 {
					t.Errorf("%d %d %s: %v", n, seed, r.at(n).command, err)
				}
			}
		}
	}
	t.Log(states, len(seen), time.Since(start), failed)
}
