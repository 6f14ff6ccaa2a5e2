// Package crashes crashes the machine under a repository, in a model: behind every
// operation of its commands. It is a package of its own because it needs no programs,
// mounts or rights, and would take long under the race detector.
package crashes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/index"
	"github.com/backupfs/backupfs/internal/disk/crash"
	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// These tests run commands on a model of a disk (package crash), and look at what is
// on it if the machine crashes after any of their operations: every generation that
// was acknowledged must read back whole, one that was not is whole or not there, no
// index is damaged or lost, and the next commands work without help and leave nothing
// of the dead. SOAK=1 makes them thorough.

// generations are the contents of files, by the generation's name and by path.
type generations map[string]map[string]string

func (g generations) equal(other generations) bool {
	return maps.EqualFunc(g, other, maps.Equal[map[string]string, map[string]string])
}

// place is where the repository is on a disk. The directories above are made with it.
const place = "srv/backup/repo"

// recording is a repository on a model of a disk, and what must be in it after each
// operation.
type recording struct {
	t      testing.TB
	disk   *crash.Disk
	can    crash.Options // what the disk cannot do
	top    string        // of the disk
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
	unknown  bool          // nothing is promised
	damaged  bool          // it holds when a repair has been done
	promised [32]byte      // digest of all but the command and where it begins
}

func newRecording(t testing.TB, o crash.Options) *recording {
	t.Helper()
	base := memoryDir(t)
	r := &recording{t: t, can: o, top: filepath.Join(base, "disk"), source: filepath.Join(base, "source"), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, dir := range []string{r.top, r.source} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.disk = crash.New(r.top, o)
	r.begin(epoch{command: "init", possible: []generations{{}}})
	repo, err := archive.InitOn(r.disk, filepath.Join(r.top, place), archive.InitOptions{PartSize: archive.MinPartSize})
	if err != nil {
		t.Fatal(err)
	}
	r.begin(epoch{from: r.disk.Len(), made: true, possible: []generations{{}}})
	repo.Close()
	r.lose("parts", "log", "index", "tmp")
	return r
}

// fork returns a recording that goes on from where this one is, on a disk of its own.
// The source is the same.
func (r *recording) fork() *recording {
	r.t.Helper()
	top, err := os.MkdirTemp(filepath.Dir(r.top), "disk-")
	if err != nil {
		r.t.Fatal(err)
	}
	fork := *r
	fork.top, fork.epochs = top, slices.Clone(r.epochs)
	if fork.disk, err = r.disk.Fork(top); err != nil {
		r.t.Fatal(err)
	}
	return &fork
}

// begin adds an epoch.
func (r *recording) begin(e epoch) {
	e.promised = e.digest()
	r.epochs = append(r.epochs, e)
}

func (r *recording) last() *epoch { return &r.epochs[len(r.epochs)-1] }

// job is a command of these tests. It returns what becomes of the generations, and the
// record that the index covers then; 0: of neither anything.
type job struct {
	name     string
	replaces bool // it may put another index in the place of one
	run      func(repo *archive.Repository, at time.Time, source string) (change func(generations), index uint64, err error)
}

func createJob(note func(string)) job {
	return job{"create", false, func(repo *archive.Repository, at time.Time, source string) (func(generations), uint64, error) {
		s, err := backup.Create(context.Background(), repo, backup.CreateOptions{Paths: []string{"/"}, Root: source, Time: at,
			Program: "test", Threads: 1, Events: backup.Events{Note: note}})
		return func(g generations) { g[s.Generation] = filesBelow(source) }, s.Number, err
	}}
}

func forgetJob(names ...string) job {
	return job{"forget", false, func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		f, err := backup.Forget(context.Background(), repo, backup.ForgetOptions{Names: names, Program: "test"})
		return func(g generations) {
			for _, d := range f.Dropped() {
				delete(g, d.Name)
			}
		}, f.Number, err
	}}
}

func compactJob(note func(string)) job {
	return job{"compact", true, func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		s, err := backup.Compact(context.Background(), repo, backup.CompactOptions{Program: "test", Note: note})
		if err != nil || s.Removed == 0 {
			return nil, 0, err
		}
		last, err := repo.Last()
		return func(generations) {}, last, err
	}}
}

func reindexJob() job {
	return job{"reindex", true, func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		db, err := index.Rebuild(repo, index.Options{})
		if err != nil {
			return nil, 0, err
		}
		defer db.Close()
		return nil, db.Number(), nil
	}}
}

// openJob is any command that only reads, and a mount.
func openJob() job {
	return job{"open", false, func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		db, err := index.Open(repo, index.Options{})
		if err != nil {
			return nil, 0, err
		}
		return nil, 0, db.Close()
	}}
}

// repairJob is a check that repairs, and wants no damage to be left.
func repairJob() job {
	return job{"check --repair", true, func(repo *archive.Repository, _ time.Time, _ string) (func(generations), uint64, error) {
		var damages []error
		result, err := backup.Check(context.Background(), repo, backup.CheckOptions{Repair: true, Program: "test",
			Damage: func(text string) { damages = append(damages, errors.New("check: "+text)) }})
		if err != nil || result.Damaged() {
			return nil, 0, errors.Join(append(damages, err)...)
		}
		last, err := repo.Last()
		return nil, last, err
	}}
}

// lose is a user who deletes directories of the repository, or copies it with a tool that
// leaves out the empty ones.
func (r *recording) lose(dirs ...string) {
	r.t.Helper()
	repo := filepath.Join(r.top, place)
	e := epoch{from: r.disk.Len(), made: true, possible: r.last().possible, unknown: true}
	r.begin(e)
	for _, dir := range dirs {
		if err := r.disk.RemoveAll(filepath.Join(repo, dir)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.disk.SyncDir(repo); err != nil {
		r.t.Fatal(err)
	}
	e.from, e.unknown = r.disk.Len(), false
	r.begin(e)
}

// rot flips a bit of the last file of the repository that fits to a pattern.
func (r *recording) rot(pattern string) {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.top, place, pattern))
	if err != nil || len(names) == 0 {
		r.t.Fatal(pattern, err)
	}
	name := names[len(names)-1]
	data, err := os.ReadFile(name)
	if err != nil {
		r.t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	e := epoch{from: r.disk.Len(), made: true, possible: r.last().possible, unknown: true}
	r.begin(e)
	if err := r.replace(name, data); err != nil {
		r.t.Fatal(err)
	}
	e.from, e.unknown, e.damaged = r.disk.Len(), false, true
	r.begin(e)
}

// replace makes a file anew, for good.
func (r *recording) replace(name string, data []byte) error {
	if err := r.disk.Remove(name); err != nil {
		return err
	}
	f, err := r.disk.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close(), r.disk.SyncDir(filepath.Dir(name)))
}

// do runs a command to its end. Where something is damaged it is a repair.
func (r *recording) do(j job) {
	r.t.Helper()
	before, from := r.last(), r.disk.Len()
	change, number, end, err := r.run(j)
	if err != nil {
		r.t.Fatalf("%s: %v", j.name, err)
	}
	during := epoch{from: from, command: j.name, made: true, possible: before.possible, index: before.index, damaged: before.damaged}
	if j.replaces && r.can.NoRenaming {
		during.index = 0 // the one before is used meanwhile
	}
	after := during
	after.from, after.command, after.damaged = end, "", false
	if change != nil {
		next := maps.Clone(before.possible[len(before.possible)-1])
		change(next)
		after.possible = []generations{next}
		during.possible = append(slices.Clone(during.possible), next)
	}
	after.index = max(before.index, number)
	r.begin(during)
	r.begin(after)
}

// run runs a command. It returns what the command returns, and the number of
// operations when it did.
func (r *recording) run(j job) (change func(generations), number uint64, end int, err error) {
	r.t.Helper()
	repo, err := archive.OpenOn(r.disk, filepath.Join(r.top, place))
	if err != nil {
		r.t.Fatal(err)
	}
	defer repo.Close()
	r.clock = r.clock.Add(time.Minute)
	change, number, err = j.run(repo, r.clock, r.source)
	return change, number, r.disk.Len(), err
}

// fail runs a command on a full disk: it makes nothing, whether it fails or not.
func (r *recording) fail(j job) {
	r.t.Helper()
	r.disk.Fill()
	if _, _, _, err := r.run(j); err != nil && !errors.Is(err, unix.ENOSPC) {
		r.t.Fatalf("%s on a full disk: %v", j.name, err)
	}
}

// die runs a command that dies when the disk has been told to let it die, and reports
// whether it did. What it made may be there or not from now on.
func (r *recording) die(j job) bool {
	r.t.Helper()
	before, from := r.last(), r.disk.Len()
	_, _, _, err := r.run(j)
	if !r.disk.Revive() {
		if err != nil {
			r.t.Fatalf("%s: %v", j.name, err)
		}
		return false
	}
	seen, err := r.seen()
	if err != nil {
		r.t.Fatalf("%s was killed: %v", j.name, err)
	}
	r.begin(epoch{from: from, command: j.name, made: true, possible: append(slices.Clone(before.possible), seen), index: before.index})
	return true
}

// seen returns the generations that can be seen now, synced or not: the next command
// goes on with them.
func (r *recording) seen() (generations, error) {
	dir, err := os.MkdirTemp(filepath.Dir(r.top), "seen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := r.disk.Crash(r.disk.Len(), crash.Everything, "").Write(dir); err != nil {
		return nil, err
	}
	repo, err := archive.Open(filepath.Join(dir, place))
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	return readGenerations(repo)
}

// put gives a file of the source another content and time.
func (r *recording) put(name string, seed uint64, size int64) {
	r.t.Helper()
	path := filepath.Join(r.source, name)
	at := time.Unix(1_700_000_000+int64(seed), 0)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, treetest.Content(seed, size), 0o644),
		os.Chtimes(path, at, at)); err != nil {
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

// at returns the number of the epoch that a crash behind the first n operations is in.
func (r *recording) at(n int) (number int) {
	for i, e := range r.epochs {
		if e.from <= n {
			number = i
		}
	}
	return number
}

// judge says what is wrong with a state in an epoch; nil if nothing is. The order is
// that of the commands that are run then.
func (r *recording) judge(e epoch, state crash.State, order int) error {
	top, err := os.MkdirTemp(filepath.Dir(r.top), "crashed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	if err := state.Write(top); err != nil {
		return err
	}
	dir := filepath.Join(top, place)
	repo, err := archive.Open(dir)
	if err != nil && !e.made {
		repo, err = archive.Init(dir, archive.InitOptions{PartSize: archive.MinPartSize})
	}
	if err != nil {
		return err
	}
	if e.damaged {
		if _, _, err := repairJob().run(repo, r.clock, r.source); err != nil {
			return errors.Join(fmt.Errorf("repair: %w", err), repo.Close())
		}
	}
	found, err := r.find(repo, e)
	if err := errors.Join(err, repo.Close()); err != nil {
		return fmt.Errorf("found: %w", err)
	}
	if err := r.goOn(dir, found, order); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	return nil
}

// find looks at a repository before anything is changed in it, and reads it. All of its
// generations together must be possible.
func (r *recording) find(repo *archive.Repository, e epoch) (generations, error) {
	if newest := newestIndex(repo); newest < e.index {
		return nil, fmt.Errorf("the newest index is of record %d, want %d", newest, e.index)
	}
	if _, err := checkAll(repo); err != nil {
		return nil, err
	}
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

// checkAll is a check that reads all parts, and compares the index with a rebuilt one.
func checkAll(repo *archive.Repository) (backup.CheckResult, error) {
	var damages []error
	result, err := backup.Check(context.Background(), repo, backup.CheckOptions{ReadData: true, Damage: func(text string) { damages = append(damages, errors.New("check: "+text)) }})
	return result, errors.Join(append(damages, err)...)
}

// goOn runs one command after the other, in one of some orders, and looks at the
// repository again.
func (r *recording) goOn(dir string, want generations, order int) error {
	var notes []string
	note := func(text string) { notes = append(notes, text) }
	create, compact, forget := createJob(note), compactJob(note), forgetJob("latest")
	orders := [][]job{{create, compact}, {compact, create}, {create, forget, compact}, {reindexJob(), create}}
	for i, j := range orders[order%len(orders)] {
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
	return nil
}

// young makes a recording of a repository with three generations, one of them
// forgotten; the source has changed since.
func young(t testing.TB, o crash.Options) *recording {
	t.Helper()
	r := newRecording(t, o)
	for i := range 6 {
		r.put(fmt.Sprintf("d%d/f%d", i%2, i), uint64(i+1), int64(9_000+i*3_000))
	}
	r.do(createJob(nil))
	r.put("d0/f0", 10, 9_000)
	r.put("d1/f1", 11, 20_000)
	r.do(createJob(nil))
	r.put("d0/f0", 12, 8_000)
	r.do(createJob(nil))
	r.do(forgetJob("1"))
	r.put("d0/f4", 13, 15_000)
	return r
}

// life makes a recording of a repository's life: generations that come and go, a
// compaction, an index that is rebuilt, and one that was deleted.
func life(t testing.TB, o crash.Options) *recording {
	t.Helper()
	r := young(t, o)
	r.do(forgetJob("2"))
	r.do(compactJob(nil))
	r.do(createJob(nil))
	r.do(reindexJob())
	r.lose("index")
	r.do(reindexJob())
	r.do(compactJob(nil))
	if err := r.disk.Compare(); err != nil {
		t.Errorf("the disk was changed behind the model's back: %v", err)
	}
	return r
}

// repairs makes a recording of an index, and of a log, that rot and are repaired.
func repairs(t testing.TB) scenario {
	t.Helper()
	r := young(t, crash.Options{})
	from := r.disk.Len()
	r.rot("index/*/*.sst")
	r.do(repairJob())
	r.rot("log/000000000002.*")
	r.do(repairJob())
	r.do(createJob(nil))
	return scenario{r, "repairs", from, seeds(2)}
}

// scenario is a recording and where it is looked at.
type scenario struct {
	*recording
	name  string
	from  int // operations
	seeds []uint64
}

// worst are the seeds of the states in which the most is missing.
var worst = []uint64{crash.Nothing, crash.OnlyRemovals}

// seeds returns the chosen states and some random ones.
func seeds(random int) (list []uint64) {
	for seed := range uint64(crash.Extremes + random) {
		list = append(list, seed)
	}
	return list
}

// lives are scenarios of one life, on file systems of different abilities.
func lives(t testing.TB) (list []scenario) {
	t.Helper()
	for _, s := range []scenario{
		repairs(t),
		{life(t, crash.Options{}), "whole life", 0, seeds(2)},
		{life(t, crash.Options{NoLinks: true}), "without links", 0, worst},
		{life(t, crash.Options{NoRenaming: true}), "without exclusive rename", 0, worst},
	} {
		if soak() {
			s.seeds = seeds(20)
		}
		list = append(list, s)
	}
	return list
}

// successions are a command that is killed and the one that comes next.
var successions = []struct {
	victim, next job
	full         bool // the disk is, then: there is no room for an index
}{
	{createJob(nil), createJob(nil), false},
	{createJob(nil), openJob(), false},
	{createJob(nil), compactJob(nil), false},
	{compactJob(nil), compactJob(nil), false},
	{compactJob(nil), createJob(nil), false},
	{forgetJob("2"), openJob(), false},
	{forgetJob("2"), createJob(nil), false},
	{compactJob(nil), compactJob(nil), true},
	{reindexJob(), createJob(nil), false},
	{reindexJob(), reindexJob(), false},
}

// afterKills are the scenarios of a succession, made one by one: the first command is
// killed behind each of its renames, or each operation. The machine crashes during the
// second one. What is on the disk before lies in the same bytes in all of them.
func afterKills(t testing.TB, victim, next job, full bool) iter.Seq[scenario] {
	t.Helper()
	before := young(t, crash.Options{})
	return func(yield func(scenario) bool) {
		for n, more := 1, true; more; n++ {
			s := scenario{before.fork(), fmt.Sprintf("%s killed at %d, %s", victim.name, n, next.name), 0, slices.Clone(worst)}
			if soak() {
				s.disk.Kill(n)
				s.seeds = append(s.seeds, crash.Extremes)
			} else {
				s.disk.KillAtRename(n)
			}
			if more = s.die(victim); more {
				s.from = s.disk.Len()
				if full {
					s.fail(next)
				} else {
					s.do(next)
				}
				more = yield(s)
			}
			os.RemoveAll(s.top)
		}
	}
}

// explored counts what was looked at.
type explored struct{ scenarios, operations, states, different int }

func (e *explored) String() string {
	return fmt.Sprintf("%d scenarios, %d operations, %d states, %d different ones", e.scenarios, e.operations, e.states, e.different)
}

// explore crashes behind every operation, with every seed, and fails the test for what
// is wrong. States that differ only below tmp/ are looked at once; judged are those that
// were, in this scenario and others.
func (s scenario) explore(count *explored, judged map[stateKey]bool) {
	s.t.Helper()
	failures, known := 0, len(judged)
	for n := s.from; n <= s.disk.Len() && failures < 5; n++ {
		for _, seed := range s.seeds {
			count.states++
			state := s.disk.Crash(n, seed, "")
			e := s.epochs[s.at(n)]
			key := keyOf(e, state)
			if judged[key] || e.unknown {
				continue
			}
			judged[key] = true
			if err := s.judge(e, state, len(judged)); err != nil {
				s.t.Errorf("%s: %s, %d operations, seed %d: %v", s.name, e.command, n, seed, err)
				failures++
			}
		}
	}
	count.scenarios++
	count.operations += s.disk.Len() - s.from
	count.different += len(judged) - known
}

// stateKey tells states apart that may have different consequences, and what was promised
// before them.
type stateKey struct{ promised, state [32]byte }

func keyOf(e epoch, s crash.State) stateKey { return stateKey{e.promised, s.Key(called)} }

// random are the parts of names that differ from run to run.
var random = regexp.MustCompile(`[A-Z2-7]{26}`)

// called returns a path without what is random in it, and whether the bytes of the file
// count: what lies in tmp/ nobody reads.
func called(path string) (name string, counts bool) {
	if !strings.HasPrefix(path, place+"/tmp/") {
		return path, true
	}
	return random.ReplaceAllString(path, "*"), false
}

// digest returns a digest of what must hold.
func (e epoch) digest() [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%t %t %t %d\n", e.made, e.unknown, e.damaged, e.index)
	for _, g := range e.possible {
		for _, name := range namesOf(g) {
			fmt.Fprintf(h, "%q\n", name)
			for _, path := range slices.Sorted(maps.Keys(g[name])) {
				fmt.Fprintf(h, " %q %q\n", path, g[name][path])
			}
		}
		fmt.Fprintln(h)
	}
	return [32]byte(h.Sum(nil))
}

// soak reports whether there is time for everything.
func soak() bool { return os.Getenv("SOAK") != "" }

// memoryDir returns a directory in memory, where the machine has one.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "backupfs-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestCrash crashes a repository at every operation of its life.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, s := range lives(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.t = t
			var count explored
			s.explore(&count, map[stateKey]bool{})
			if count.different == 0 {
				t.Errorf("nothing was looked at: %v", &count)
			}
			t.Log(&count)
		})
	}
}

// TestCrashAfterKill: a process is killed, another one goes on with what it left, and
// the machine crashes then.
func TestCrashAfterKill(t *testing.T) {
	t.Parallel()
	for _, pair := range successions {
		t.Run(pair.victim.name+" "+pair.next.name, func(t *testing.T) {
			t.Parallel()
			var count explored
			judged := map[stateKey]bool{}
			for s := range afterKills(t, pair.victim, pair.next, pair.full) {
				s.explore(&count, judged)
			}
			if count.scenarios == 0 || count.different == 0 {
				t.Errorf("nothing was looked at: %v", &count)
			}
			t.Log(&count)
		})
	}
}

// TestInitAfterKill: init is killed, done again, and the machine crashes.
func TestInitAfterKill(t *testing.T) {
	t.Parallel()
	for n, killed := 0, true; killed; n++ {
		base := memoryDir(t)
		top := filepath.Join(base, "disk")
		if err := os.Mkdir(top, 0o700); err != nil {
			t.Fatal(err)
		}
		d, dir := crash.New(top, crash.Options{}), filepath.Join(top, place)
		d.Kill(n)
		repo, err := archive.InitOn(d, dir, archive.InitOptions{})
		if err == nil {
			repo.Close()
		}
		if killed = d.Revive(); err == nil {
			continue
		}
		if repo, err = archive.InitOn(d, dir, archive.InitOptions{}); err != nil {
			if _, err := archive.Open(dir); err != nil {
				t.Errorf("killed behind %d operations: %v", n, err)
			}
			continue
		}
		repo.Close()
		for _, seed := range worst {
			crashed := filepath.Join(base, fmt.Sprint("crashed", seed))
			if err := errors.Join(os.Mkdir(crashed, 0o700), d.Crash(d.Len(), seed, "").Write(crashed)); err != nil {
				t.Fatal(err)
			}
			if _, err := archive.Open(filepath.Join(crashed, place)); err != nil {
				t.Errorf("killed behind %d operations, made again, crashed: %v", n, err)
			}
		}
	}
}
