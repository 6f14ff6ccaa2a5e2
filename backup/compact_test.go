package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

func compact(t testing.TB, r *archive.Repository, o CompactOptions) CompactSummary {
	t.Helper()
	s, err := Compact(context.Background(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func usageOf(t testing.TB, r *archive.Repository) index.Usage {
	t.Helper()
	db := openIndex(t, r)
	defer db.Close()
	u, err := db.Live(func(archive.Placement, index.Need, bool) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestCompactShrinksIndex: an index of which most is of no use is rewritten.
func TestCompactShrinksIndex(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	for i := range 100 {
		write(t, fmt.Sprintf("%s/%02d", dir, i), randomBytes(uint64(i), 2000))
	}
	create(t, r, optionsFor(dir))
	want := map[string]string{}
	for i := range 100 {
		if i%10 == 0 {
			want[fmt.Sprintf("%02d", i)] = string(randomBytes(uint64(i), 2000))
		} else if err := os.Remove(fmt.Sprintf("%s/%02d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	create(t, r, optionsFor(dir))
	forget(t, r, 1)
	if u := usageOf(t, r); u.Contents != 100 || u.Live != 10 {
		t.Fatalf("before: %+v", u)
	}
	s := compact(t, r, CompactOptions{})
	if s.Removed != 1 || s.New != 1 || s.Swept.Parts != 1 || s.DeadAfter != 0 {
		t.Errorf("%+v", s)
	}
	if u := usageOf(t, r); u.Contents != 10 || u.Live != 10 || u.Gone != 0 {
		t.Errorf("after: %+v", u)
	}
	wantContents(t, r, 2, want)
}

// TestSourcesApart: what one source forgot is not kept by the generations that
// another one made meanwhile.
func TestSourcesApart(t *testing.T) {
	r, dir, other := newRepository(t), t.TempDir(), t.TempDir()
	write(t, other+"/file", []byte("other"))
	for i := range 4 {
		write(t, dir+"/file", randomBytes(uint64(i), 20000))
		create(t, r, optionsFor(dir))
		o := optionsFor(other)
		o.Source = "other"
		create(t, r, o)
	}
	for _, number := range []uint64{1, 3, 5} {
		forget(t, r, number)
	}
	if s := compact(t, r, CompactOptions{}); s.WholeParts != 3 || s.DeadAfter != 0 {
		t.Errorf("%+v", s)
	}
	wantContents(t, r, 7, map[string]string{"file": string(randomBytes(3, 20000))})
	wantContents(t, r, 2, map[string]string{"file": "other"})
}

// TestCompactLimits: a limit of time ends a run before it copies anything, but
// parts of which nothing is needed go.
func TestCompactLimits(t *testing.T) {
	r, dir := newRepository(t), t.TempDir()
	write(t, dir+"/a", randomBytes(1, 30000))
	write(t, dir+"/b", randomBytes(2, 30000))
	create(t, r, optionsFor(dir))
	write(t, dir+"/a", randomBytes(3, 30000))
	create(t, r, optionsFor(dir))
	write(t, dir+"/a", randomBytes(4, 30000))
	create(t, r, optionsFor(dir))
	forget(t, r, 1)
	forget(t, r, 2)
	s := compact(t, r, CompactOptions{TimeLimit: time.Nanosecond})
	if !s.Limited || s.Removed != 1 || s.WholeParts != 1 || s.New != 0 {
		t.Errorf("with a limit: %+v", s)
	}
	if s = compact(t, r, CompactOptions{}); s.Limited || s.Removed != 1 || s.New != 1 {
		t.Errorf("without: %+v", s)
	}
	wantContents(t, r, 3, map[string]string{"a": string(randomBytes(4, 30000)), "b": string(randomBytes(2, 30000))})
}

// TestInterruptedBesideCompact: what another source's run names of an interrupted one stays
// for a week, whether a checkpoint comes between or not, or until that run is forgotten.
func TestInterruptedBesideCompact(t *testing.T) {
	const files, size = 64, 32 << 10
	interrupted := func(t *testing.T, r *archive.Repository, dir string) CreateOptions {
		for i := range files {
			write(t, fmt.Sprintf("%s/%02d", dir, i), randomBytes(uint64(i), size))
		}
		o := optionsFor(dir)
		o.Source = "web1"
		createInterrupted(t, r, o, fmt.Sprint(files-1))
		return o
	}
	for name, c := range map[string]struct {
		age    time.Duration
		forget bool
		stays  bool
	}{
		"today":         {0, false, true},
		"a clock ahead": {-time.Minute, false, true},
		"long ago":      {8 * 24 * time.Hour, false, false},
		"forgotten":     {0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, dir, other := newRepository(t), t.TempDir(), t.TempDir()
			o := interrupted(t, r, dir)
			for i := range 10 { // most of the log will be of no use
				write(t, other+"/file", randomBytes(uint64(1000+i), 300))
				beside := optionsFor(other)
				beside.Time = time.Now().Add(-c.age)
				create(t, r, beside)
			}
			for number := range uint64(8) {
				forget(t, r, 2+number)
			}
			if c.forget {
				forget(t, r, 1)
			}
			s := compact(t, r, CompactOptions{})
			stored := s.StoredBytes - s.RemovedBytes
			if kept := stored > files/2*size; kept != c.stays || s.DeadAfter > 0 {
				t.Fatalf("%d bytes are left, %+v", stored, s)
			}
			if s.Checkpoint == 0 {
				t.Errorf("no checkpoint: %+v", s)
			}
			if again := compact(t, r, CompactOptions{}); again.Removed != 0 || again.StoredBytes != stored+s.NewBytes {
				t.Errorf("again: %+v", again)
			}
			if s := create(t, r, o); (s.StoredBytes < files/2*size) != c.stays {
				t.Errorf("%d bytes are stored by the next run", s.StoredBytes)
			}
			if s := compact(t, r, CompactOptions{}); s.DeadAfter != 0 {
				t.Errorf("in the end: %+v", s)
			}
		})
	}
}

// threeNights makes a log of which most is about what was forgotten, and parts of which all
// is needed.
func threeNights(t *testing.T) *archive.Repository {
	t.Helper()
	r, dir := newRepository(t), t.TempDir()
	for i := range 3 {
		write(t, dir+"/file", randomBytes(uint64(i), 300))
		create(t, r, optionsFor(dir))
	}
	forget(t, r, 1)
	forget(t, r, 2)
	if s := compact(t, r, CompactOptions{hooks: hooks{whole: true}}); s.Removed != 2 || s.DeadAfter != 0 {
		t.Fatalf("%+v", s)
	}
	return r
}

// TestCheckpointTimeLimit: behind the limit of time no checkpoint is begun, also where there
// is nothing else to do.
func TestCheckpointTimeLimit(t *testing.T) {
	r := threeNights(t)
	if s := compact(t, r, CompactOptions{TimeLimit: time.Nanosecond}); s.Checkpoint != 0 || !s.Limited {
		t.Errorf("with a limit: %+v", s)
	}
	if s := compact(t, r, CompactOptions{}); s.Checkpoint == 0 || s.Limited {
		t.Errorf("without: %+v", s)
	}
}

// TestCheckpointInterrupted: an interrupt is answered while a checkpoint is verified.
func TestCheckpointInterrupted(t *testing.T) {
	r := threeNights(t)
	db := openIndex(t, r)
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	verified := false
	h := hooks{at: func(point string) { verified = verified || point == "before checkpoint" }}
	number, _, err := commitCheckpoint(ctx, r, db, checkpointOptions{limit: math.MaxInt64, program: "test", hooks: h})
	if number != 0 || !errors.Is(err, context.Canceled) || verified {
		t.Errorf("%d, %v; verified: %t", number, err, verified)
	}
	if last, err := r.Last(); err != nil || last != db.Number() {
		t.Errorf("the log ends with %d, %v", last, err)
	}
}

// TestCheckpointGivesUp: what would be too large is not written to its end.
func TestCheckpointGivesUp(t *testing.T) {
	const files = 1500
	r, dir := newRepository(t), t.TempDir()
	for i := range files {
		write(t, fmt.Sprintf("%s/%d", dir, i), fmt.Append(nil, i))
	}
	create(t, r, optionsFor(dir))
	db := openIndex(t, r)
	defer db.Close()
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	err = writeState(t.Context(), r, db, draft, 1)
	if n := draft.Counts().Contents; !errors.Is(err, errTooLarge) || n == 0 || n == files {
		t.Errorf("%d contents, %v", n, err)
	}
	number, _, err := commitCheckpoint(t.Context(), r, db, checkpointOptions{limit: 1, program: "test"})
	if number != 0 || err != nil {
		t.Errorf("%d, %v", number, err)
	}
}

// TestDryRunBesideCompact: parts that another compaction deleted after a dry run had opened
// the index are no damage; one that is missing is.
func TestDryRunBesideCompact(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		between func(r *archive.Repository)
		damaged int
	}{
		"compacted": {func(r *archive.Repository) { compact(t, r, CompactOptions{}) }, 0},
		"missing": {func(r *archive.Repository) {
			if err := os.Remove(filepath.Join(r.Dir(), archive.PartStoreName(partsOf(t, r, 3, "kept")[0]))); err != nil {
				t.Error(err)
			}
		}, 1},
	} {
		s := past(t)
		r, err := archive.Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		part := partsOf(t, r, 3, "kept")[0]
		var damages []error
		o := CompactOptions{DryRun: true, Problem: func(err error) { damages = append(damages, err) }}
		o.hooks.at = func(point string) {
			if point == "index opened" {
				c.between(r)
			}
		}
		if sum := compact(t, r, o); sum.Damaged != c.damaged || len(damages) != c.damaged {
			t.Errorf("%s: %+v, %q", name, sum, damages)
		}
		if _, err := os.Stat(filepath.Join(r.Dir(), archive.PartStoreName(part))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the part is there: %v", name, err)
		}
	}
}

// TestSenselessTail: a part with a longer tail than any part has, as a log may say, is a
// damaged one: compact keeps it, and stats counts it.
func TestSenselessTail(t *testing.T) {
	r, err := archive.Init(filepath.Join(t.TempDir(), "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	create(t, r, optionsFor(t.TempDir()))
	const tail = 49 + 40*262_144 + 1
	part := archive.Part{Name: archive.Digest{7}, Stored: tail + 1000, Raw: 8192, TailStored: tail}
	path := filepath.Join(r.Dir(), archive.PartStoreName(part.Name))
	write(t, path, nil)
	if err := os.Truncate(path, part.Stored); err != nil {
		t.Fatal(err)
	}
	live, dead := archive.Content{Hash: archive.Hash{1}, RawOffset: 512, RawLen: 5}, archive.Content{Hash: archive.Hash{2}, RawOffset: 1536, RawLen: 5}
	entry := archive.Entry{Path: "file", Attr: archive.Attr{Type: archive.TypeFile, Size: 5, Nlink: 1}, Data: []archive.Extent{{Len: 5, Hash: live.Hash}}}
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	previous, err := r.RecordDigest(1)
	if err := errors.Join(err, draft.AddPart(archive.PublishedPart{Part: part, Contents: []archive.Content{live, dead}}), draft.Add(archive.Line{Entry: &entry})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := draft.Commit(archive.Header{Kind: archive.KindGeneration, Number: 2, Base: 1, Previous: previous, Name: "2026-11-22T03-00-00Z"}); err != nil {
		t.Fatal(err)
	}
	db := openIndex(t, r)
	defer db.Close()
	if s, err := Stats(r, db); err != nil || s.Parts != 1 || s.DeadBytes != 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if s := compact(t, r, CompactOptions{}); s.Damaged != 1 || s.Removed != 0 {
		t.Errorf("compact: %+v", s)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestCompactTinyShare: what is needed of a part counts, however little of it is. Of
// the frame it is less than a byte here.
func TestCompactTinyShare(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	write(t, source+"/large", bytes.Repeat([]byte("all of it is this line\n"), 40_000))
	write(t, source+"/small", []byte("needed"))
	first := create(t, r, optionsFor(source))
	if err := os.Remove(source + "/large"); err != nil {
		t.Fatal(err)
	}
	second := create(t, r, optionsFor(source))
	forget(t, r, first.Number)
	s := compact(t, r, CompactOptions{})
	if s.Removed != 1 || s.WholeParts != 0 || s.New != 1 {
		t.Errorf("%+v", s)
	}
	create(t, r, optionsFor(source))
	wantContents(t, r, second.Number, map[string]string{"small": "needed"})
}

// TestCompactToItself: a part whose only group of contents is written as it is comes out
// as the same part, and must not be removed for that.
func TestCompactToItself(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	write(t, source+"/file", []byte("needed"))
	create(t, r, optionsFor(source))
	c := compactionOf(t, r)
	if err := c.work(c.usage.parts); err != nil {
		t.Fatal(err)
	}
	if c.summary.Removed != 0 || c.summary.New != 0 {
		t.Errorf("%+v", c.summary)
	}
	create(t, r, optionsFor(source))
	wantContents(t, r, 1, map[string]string{"file": "needed"})
}

// TestCompactWrongContents: a part that holds another content than the log says stays, and
// what is copied of it is not taken for what is needed.
func TestCompactWrongContents(t *testing.T) {
	r, _ := spoiled(t)
	forge(t, r, []string{"first", "other", "third"}, []string{"never", "third"}, func(c []archive.Content) {
		c[0].Hash = archive.HashOf([]byte("never"))
	})
	var problems []error
	s := compact(t, r, CompactOptions{Problem: func(err error) { problems = append(problems, err) }})
	if s.Damaged != 1 || s.Removed != 0 || len(problems) != 1 || !strings.HasSuffix(problems[0].Error(), "of which the log says otherwise") {
		t.Errorf("%+v, %v", s, problems)
	}
}

// halfDead makes a part of which a file is needed, by generation 2, and another one is not.
func halfDead(t *testing.T, r *archive.Repository, source string) {
	t.Helper()
	write(t, source+"/gone", randomBytes(1, 2000))
	write(t, source+"/kept", randomBytes(2, 2000))
	create(t, r, optionsFor(source))
	if err := os.Remove(source + "/gone"); err != nil {
		t.Fatal(err)
	}
	create(t, r, optionsFor(source))
	forget(t, r, 1)
}

// TestCompactDamagedPart: a part of which nothing can be copied stays, and makes no record
// that says nothing.
func TestCompactDamagedPart(t *testing.T) {
	r, source := spoiled(t)
	halfDead(t, r, source)
	damage(t, filepath.Join(r.Dir(), archive.PartStoreName(partsOf(t, r, 2, "kept")[0])))
	c := compactionOf(t, r)
	if err := c.compact(); err != nil {
		t.Fatal(err)
	}
	if last, err := r.Last(); c.summary.Damaged != 1 || last != 3 || err != nil {
		t.Errorf("%+v; the last record is %d, %v", c.summary, last, err)
	}
}

// TestCompactLosesNothing: nothing is committed where less was copied than is needed.
func TestCompactLosesNothing(t *testing.T) {
	r, source := newRepository(t), t.TempDir()
	halfDead(t, r, source)
	c := compactionOf(t, r)
	c.options.hooks.at = func(point string) {
		if point == "part published" { // what was dead when it was copied
			for i := range c.usage.parts[0].spans {
				c.usage.parts[0].spans[i].need = 1
			}
		}
	}
	err := c.work(c.usage.parts[:1])
	if last, _ := r.Last(); err == nil || !strings.HasSuffix(err.Error(), "2 contents are needed, 1 were copied") || last != 3 {
		t.Errorf("%v; the last record is %d", err, last)
	}
	p := &partUse{spans: []span{{need: 1}}}
	s := &survivors{sources: []*partUse{p}, copied: map[archive.Digest][]archive.Hash{p.Name: {{1}}}}
	if err := s.whole(); err == nil || !strings.HasSuffix(err.Error(), "was copied, but is in no new part") {
		t.Error(err)
	}
}

// compactionOf returns a compaction that has not begun.
func compactionOf(t *testing.T, r *archive.Repository) *compaction {
	c := &compaction{ctx: t.Context(), repo: r, options: CompactOptions{Progress: new(CompactProgress)}, damaged: map[archive.Digest]bool{}}
	if err := errors.Join(c.reopen(), c.measure()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.db.Close() })
	return c
}

// TestCheckpointWhenMostIsUseless: the log is made shorter when two thirds of it are
// about what was forgotten, not before, and not again.
func TestCheckpointWhenMostIsUseless(t *testing.T) {
	t.Parallel()
	s := scenario{dir: filepath.Join(t.TempDir(), "repo"), source: t.TempDir()}
	repo, err := archive.Init(s.dir, archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	for g := range 6 {
		for i := range 60 {
			write(t, filepath.Join(s.source, fmt.Sprint(i)), randomBytes(uint64(100*g+i), 300))
		}
		create(t, repo, optionsFor(s.source))
	}
	for _, c := range []struct {
		forget []string
		want   uint64 // the checkpoint; each forget and what it makes useless takes a record, too
	}{{nil, 0}, {[]string{"2"}, 0}, {[]string{"1", "3"}, 0}, {[]string{"4"}, 13}, {[]string{"5"}, 0}, {nil, 0}} {
		if c.forget != nil {
			if _, err := Forget(context.Background(), repo, ForgetOptions{Names: c.forget, Program: "test"}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Compact(context.Background(), repo, CompactOptions{MaxDead: 0.1, Program: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if got.Checkpoint != c.want {
			t.Errorf("forgotten %v: checkpoint %d, want %d", c.forget, got.Checkpoint, c.want)
		}
	}
	if records, err := repo.Records(); err != nil || len(records) != 3 {
		t.Errorf("records %v, %v", records, err)
	}
}
