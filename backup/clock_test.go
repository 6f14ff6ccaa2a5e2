package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// jumps is a clock of the machine that somebody turns, and a repository that must not care.
type jumps struct {
	t      *testing.T
	repo   *archive.Repository
	source string
	years  int                          // by which the clock is wrong
	files  map[uint64]map[string]string // of each generation that is kept
	names  map[string]uint64            // the number of the last generation of each name
	runs   int                          // of create
}

func newJumps(t *testing.T) *jumps {
	return &jumps{t: t, repo: newRepository(t), source: t.TempDir(), files: map[uint64]map[string]string{}, names: map[string]uint64{}}
}

func (j *jumps) now() time.Time { return time.Now().AddDate(j.years, 0, 0) }

// hooks turn the clock, when a point is reached.
func (j *jumps) hooks(point string, years int) hooks {
	return hooks{clock: j.now, at: func(at string) {
		if at == point {
			j.years = years
		}
	}}
}

// create makes a generation; its time is that of its beginning. One file is replaced, one is
// new and stays, and one is new and goes: of a part something is needed, and something not.
func (j *jumps) create(h hooks) Summary {
	j.t.Helper()
	text, want := fmt.Sprint(j.runs), j.now()
	write(j.t, filepath.Join(j.source, "file"), []byte(text))
	write(j.t, filepath.Join(j.source, "new"+text), []byte("new "+text))
	write(j.t, filepath.Join(j.source, "brief"+text), []byte("brief "+text))
	_ = os.Remove(filepath.Join(j.source, fmt.Sprint("brief", j.runs-1)))
	j.runs++
	o := optionsFor(j.source)
	o.hooks = h
	before, _ := j.repo.Last()
	s := create(j.t, j.repo, o)
	if s.Number <= before || j.files[j.names[s.Generation]] != nil || s.Seconds < 0 || s.Seconds > 60 {
		j.t.Errorf("behind record %d: %+v", before, s)
	}
	j.made(s)
	db := openIndex(j.t, j.repo)
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		j.t.Fatal(err)
	}
	g := gens[len(gens)-1]
	if d := g.Time.Sub(want); g.Number != s.Number || d < 0 || d > time.Minute {
		j.t.Errorf("made was %d at %v, the last one is %+v", s.Number, want, g)
	}
	return s
}

// made takes note of a generation of the source as it is.
func (j *jumps) made(s Summary) {
	files := map[string]string{}
	entries, err := os.ReadDir(j.source)
	for _, e := range entries {
		data, readErr := os.ReadFile(filepath.Join(j.source, e.Name()))
		err = errors.Join(err, readErr)
		files[e.Name()] = string(data)
	}
	if err != nil {
		j.t.Fatal(err)
	}
	j.files[s.Number], j.names[s.Generation] = files, s.Number
}

// wantAll reads all generations, and wants those that there are in the order of their
// numbers, the last one as the latest.
func (j *jumps) wantAll() {
	j.t.Helper()
	db := openIndex(j.t, j.repo)
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		j.t.Fatal(err)
	}
	var numbers []uint64
	for _, g := range gens {
		numbers = append(numbers, g.Number)
		wantContents(j.t, j.repo, g.Number, j.files[g.Number])
	}
	want := slices.Sorted(maps.Keys(j.files))
	if !slices.Equal(numbers, want) {
		j.t.Errorf("the generations are %v, want %v", numbers, want)
	}
	for back := range want {
		if g, err := index.Find(gens, fmt.Sprintf("latest~%d", back)); err != nil || g.Number != want[len(want)-1-back] {
			j.t.Errorf("latest~%d is %d, %v, want %d", back, g.Number, err, want[len(want)-1-back])
		}
	}
}

// oldest names the first generation that is kept.
func (j *jumps) oldest() string { return fmt.Sprint(slices.Min(slices.Collect(maps.Keys(j.files)))) }

// forget forgets, and takes what was dropped for gone.
func (j *jumps) forget(o ForgetOptions) {
	j.t.Helper()
	o.Program = "test"
	f, err := Forget(context.Background(), j.repo, o)
	if err != nil {
		j.t.Fatal(err)
	}
	for _, g := range f.Dropped() {
		delete(j.files, g.Number)
	}
}

// TestClockBetweenRuns: the clock jumps by ten years between runs, there and back.
func TestClockBetweenRuns(t *testing.T) {
	t.Parallel()
	j := newJumps(t)
	for _, years := range []int{0, 10, 10, 0, -10, 0, 0} {
		j.years = years
		j.create(hooks{clock: j.now})
		j.wantAll()
	}
	for i, years := range []int{10, -10, 0} {
		j.years = years
		j.forget(ForgetOptions{Rules: Rules{Last: 4 - i}, hooks: hooks{clock: j.now}})
		last := slices.Max(slices.Collect(maps.Keys(j.files)))
		for number := last - uint64(2-i); number <= last; number++ {
			if number <= 7 && j.files[number] == nil {
				t.Errorf("generation %d, one of the last, was dropped", number)
			}
		}
		s := compact(t, j.repo, CompactOptions{hooks: hooks{clock: j.now}})
		if s.Checkpoint == 0 {
			t.Errorf("%d years: %+v", years, s)
		}
		j.wantAll()
		j.create(hooks{clock: j.now})
		j.wantAll()
	}
}

// TestClockDuringRun: the clock jumps by ten years at each point of a run.
func TestClockDuringRun(t *testing.T) {
	t.Parallel()
	for _, years := range []int{10, -10} {
		j := newJumps(t)
		j.create(hooks{})
		for _, point := range []string{"index opened", "base chosen", "before commit", "committed", "before sweep"} {
			j.create(j.hooks(point, years))
			if j.years != years {
				t.Errorf("a run does not come to %q", point)
			}
			j.create(j.hooks(point, 0))
			j.wantAll()
		}
		for _, point := range []string{"index opened", "before commit"} {
			j.forget(ForgetOptions{Names: []string{j.oldest()}, hooks: j.hooks(point, years)})
			if j.years != years {
				t.Errorf("a forget does not come to %q", point)
			}
			j.forget(ForgetOptions{Names: []string{j.oldest()}, hooks: j.hooks(point, 0)})
			j.wantAll()
		}
		for _, point := range []string{"index opened", "part published", "before commit", "before sweep", "before unlink",
			"before checkpoint", "checkpoint committed", "before log sweep", "before record unlink"} {
			for _, years := range []int{years, 0} {
				j.create(hooks{clock: j.now})
				j.forget(ForgetOptions{Names: []string{j.oldest()}, hooks: hooks{clock: j.now}})
				compact(t, j.repo, CompactOptions{Program: "test", hooks: j.hooks(point, years)})
				if j.years != years {
					t.Errorf("a compaction does not come to %q", point)
				}
				j.wantAll()
			}
		}
	}
}

// TestClockDuringForget: what rules keep does not depend on a clock that jumps before they
// are applied, where the generations are of the right time.
func TestClockDuringForget(t *testing.T) {
	t.Parallel()
	for _, years := range []int{10, -10} {
		j := newJumps(t)
		for range 3 {
			j.create(hooks{})
		}
		for _, c := range []struct {
			rules Rules
			left  int
		}{{Rules{Within: Span{Days: 1}}, 3}, {Rules{Last: 2}, 2}, {Rules{Hourly: 1, Yearly: 1}, 1}} {
			j.forget(ForgetOptions{Rules: c.rules, Zone: time.UTC, hooks: j.hooks("index opened", years)})
			if len(j.files) != c.left || j.files[3] == nil {
				t.Errorf("%d years, %+v: %d generations are left, want %d", years, c.rules, len(j.files), c.left)
			}
			j.years = 0
			j.wantAll()
		}
	}
}

// TestClockBesideRun: while one run is under way another one commits, with a clock of ten
// years later, or earlier. The first one has the greater number.
func TestClockBesideRun(t *testing.T) {
	t.Parallel()
	for _, years := range []int{10, 0, -10} {
		for _, point := range []string{"index opened", "base chosen", "before commit"} {
			j := newJumps(t)
			j.create(hooks{})
			other := t.TempDir()
			var second Summary
			first := j.create(hooks{at: func(at string) {
				if at != point || second.Number != 0 {
					return
				}
				write(t, filepath.Join(other, "file"), []byte("other"))
				j.years = years
				o := optionsFor(other)
				o.hooks.clock = j.now
				second = create(t, j.repo, o)
			}})
			j.files[second.Number] = map[string]string{"file": "other"}
			if second.Number != 2 || first.Number != 3 || first.Generation == second.Generation {
				t.Errorf("%d years, %s: %+v, %+v", years, point, first, second)
			}
			j.years = 0
			j.create(hooks{})
			j.wantAll()
		}
	}
}

// TestFutureTimes: files of the future are backed up without waiting for it, and what
// changes in them is seen.
func TestFutureTimes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, years := range []int{-100, -10, 10, 100, 400} {
		at := archive.Timespec{Sec: now.AddDate(years, 0, 0).Unix()}
		for _, at.Nsec = range []uint32{0, 1} {
			if wait := young(archive.Attr{Ctime: at}); wait != 0 {
				t.Errorf("a file that changed in %d years: waits for %v", years, wait)
			}
		}
	}
	for _, ahead := range []time.Duration{0, clockGrain / 2, secondGrain} {
		at := archive.Timespec{Sec: now.Add(ahead).Unix()}
		if wait := young(archive.Attr{Ctime: at}); wait > 2*secondGrain {
			t.Errorf("a file that changed in %v: waits for %v", ahead, wait)
		}
	}
	j := newJumps(t)
	future := now.AddDate(10, 0, 0)
	for range 3 {
		text := fmt.Sprint(len(j.names))
		write(t, filepath.Join(j.source, "file"), []byte(text))
		if err := os.Chtimes(filepath.Join(j.source, "file"), future, future); err != nil {
			t.Fatal(err)
		}
		s := create(t, j.repo, optionsFor(j.source))
		j.made(s)
		if s.Seconds > 10 {
			t.Errorf("%+v", s)
		}
	}
	j.wantAll()
}
