package integration

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/integration/internal/churn"
	"github.com/backupfs/backupfs/internal/measure"
)

// Bounds of a server's life. A part holds at least a third of the part size in the mean,
// apart from those of the nights since the last compaction and as many small ones as are
// not merged yet (docs/PERFORMANCE.md, "The policy"). An index has at most 17 runs, and tables, MANIFEST and seal
// (docs/FORMAT.md, 4.2).
const (
	lifePartSize    = 1 << 20
	youngParts      = 128
	indexFiles      = 2 * 24   // of the two that are kept
	lifeCache       = 8 << 20  // of the mount
	lifeDescriptors = 256 + 64 // parts that a mount keeps open, and the rest
	lifeTables      = 6 * 24   // that it has mapped: of the index, of those before it that are still read
	lifeMemory      = 48 << 20 // bytes of its own memory that nobody minds
	lifeSlack       = 8 << 20  // bytes by which its own memory may differ besides a quarter
)

// life is a server that is backed up every night, by the real programs, while one
// mount of the repository stays open and is read.
type life struct {
	*survivor
	server *churn.Server
	m      *fuseMount
	pid    int // of the daemon
	files  int // read in the mount and compared
	held   []held
}

// held is what the daemon holds after a night.
type held struct {
	anonymous   int64 // bytes
	descriptors int
	tables      int // of indexes, mapped
}

// TestServersLife makes a year of backups of a server whose files change, with forget and
// compact every week and a mount that is read all the time: every generation that is
// kept is right to the last, the mount holds no more than it did after the first tenth, and
// the number of files in the repository follows its data.
func TestServersLife(t *testing.T) {
	nights := scale(30, 340)
	src := mkdir(t, tmpfs(t, 1<<30), "src")
	l := &life{server: churn.NewServer(scale(200, 3000), scale(64, 1024)),
		survivor: &survivor{src: src, rng: rand.New(rand.NewPCG(107, 1)), want: map[string]snapshot{}, acked: map[string]bool{}, dropping: map[string]bool{}, gone: map[string]bool{}}}
	l.repo = newRepo(t, "--part-size", fmt.Sprint(lifePartSize))
	// What is forgotten now leaves the index a day before the newest record: the
	// nights are those to come.
	began := time.Now().UTC().Truncate(24 * time.Hour).Add(27 * time.Hour)
	l.night(began, 0)
	l.m = l.mount("--cache-size", fmt.Sprint(lifeCache))
	pids := daemons(t, l.m.dir)
	if len(pids) != 1 {
		t.Fatalf("%d daemons serve the mount", len(pids))
	}
	l.pid = pids[0]
	stop := l.readAllTheTime()
	kept := 0
	for night := 1; night < nights; night++ {
		l.night(began, night)
		if night%7 == 6 {
			kept = l.prune()
			l.wantFilesFollowData(night)
		}
		l.held = append(l.held, l.holds())
		if t.Failed() {
			t.FailNow()
		}
	}
	stop()
	l.wantFlat()
	l.wantAllKept()
	if l.files < 10*nights {
		t.Errorf("only %d files were read meanwhile", l.files)
	}
	m := l.m
	m.stop()
	l.wantSound("at last")
	t.Logf("%d nights, %d generations after the last forget, %d files read in the mount meanwhile, all right; %d records, %d parts of %d MB",
		nights, kept, l.files, len(l.records()), len(l.parts()), l.partBytes()>>20)
}

// night lets a day pass and makes a generation.
func (l *life) night(began time.Time, night int) {
	l.t.Helper()
	at := began.AddDate(0, 0, night)
	must(l.t, l.server.Apply(l.src, night))
	must(l.t, churn.Stamp(l.src, at))
	l.clock = at
	name, args := l.next()
	if res := l.mkbackup("create", args...); res.code != 0 {
		l.t.Fatalf("night %d: exit code %d\n%s", night, res.code, tail(res.stderr))
	}
	l.acknowledge(name)
}

// prune forgets by the rules and compacts, and returns how many generations are kept.
func (l *life) prune() int {
	l.t.Helper()
	rules := []string{"--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "12"}
	var plan struct {
		Generations []struct {
			Generation string
			Keep       bool
		}
	}
	must(l.t, json.Unmarshal([]byte(l.prunes("forget", append(rules, "--dry-run", "--json")...)), &plan))
	l.mu.Lock()
	kept := 0
	for _, g := range plan.Generations {
		if l.dropping[g.Generation] = !g.Keep; g.Keep {
			delete(l.dropping, g.Generation)
			kept++
		}
	}
	dropped := len(l.dropping)
	l.mu.Unlock()
	l.prunes("forget", rules...)
	listed := l.generations()
	l.settleDrop("forget", listed)
	if len(listed) != kept {
		l.t.Errorf("%d generations are there, %d were to be kept and %d dropped", len(listed), kept, dropped)
	}
	l.mu.Lock()
	for name := range l.gone {
		l.want[name] = nil // 23 trees are enough to hold
	}
	l.mu.Unlock()
	l.prunes("compact")
	return kept
}

func (l *life) prunes(command string, args ...string) string {
	l.t.Helper()
	res := l.mkbackup(command, args...)
	if res.code != 0 {
		l.t.Fatalf("%s: exit code %d\n%s", command, res.code, tail(res.stderr))
	}
	return res.stdout
}

// wantFilesFollowData fails the test where there are more files than the data and the
// records explain.
func (l *life) wantFilesFollowData(night int) {
	l.t.Helper()
	if parts, most := len(l.parts()), int(3*l.partBytes()/lifePartSize)+youngParts; parts > most {
		l.t.Errorf("night %d: %d parts hold %d bytes, want at most %d", night, parts, l.partBytes(), most)
	}
	if n := len(l.glob("index/*/*")); n > indexFiles {
		l.t.Errorf("night %d: the index has %d files, want at most %d", night, n, indexFiles)
	}
	if n := len(l.glob("tmp/w-*.lock")); n > 2 {
		l.t.Errorf("night %d: %d writers in tmp/", night, n)
	}
}

// holds looks at the daemon.
func (l *life) holds() held {
	l.t.Helper()
	memory, err := measure.MemoryOf(l.pid)
	must(l.t, err)
	proc := fmt.Sprint("/proc/", l.pid)
	open, err := os.ReadDir(filepath.Join(proc, "fd"))
	must(l.t, err)
	maps, err := os.ReadFile(filepath.Join(proc, "maps"))
	must(l.t, err)
	return held{anonymous: memory.Anonymous, descriptors: len(open), tables: strings.Count(string(maps), ".sst")}
}

// wantFlat compares what the daemon held in the last tenth of the nights with the first
// one. The garbage collector lets its memory vary by a part of what it needs; in a short
// life, the cache is not full after a tenth.
func (l *life) wantFlat() {
	l.t.Helper()
	tenth := max(len(l.held)/10, 1)
	most := func(nights []held) (m held) {
		for _, h := range nights {
			m = held{max(m.anonymous, h.anonymous), max(m.descriptors, h.descriptors), max(m.tables, h.tables)}
		}
		return m
	}
	first, last := most(l.held[:tenth]), most(l.held[len(l.held)-tenth:])
	all := most(l.held)
	l.t.Logf("the daemon, in the first and in the last %d nights, and at most: %d, %d, %d KiB of its own, %d, %d, %d descriptors, %d, %d, %d tables mapped", tenth,
		first.anonymous>>10, last.anonymous>>10, all.anonymous>>10, first.descriptors, last.descriptors, all.descriptors, first.tables, last.tables, all.tables)
	base := max(first.anonymous, lifeMemory)
	if last.anonymous > base+base/4+lifeSlack {
		l.t.Errorf("the daemon's own memory grew from %d to %d bytes", first.anonymous, last.anonymous)
	}
	if all.descriptors > lifeDescriptors || all.tables > lifeTables {
		l.t.Errorf("the daemon had %d descriptors and %d tables, want at most %d and %d", all.descriptors, all.tables, lifeDescriptors, lifeTables)
	}
}

// wantAllKept compares every generation that is kept, by export and in the mount.
func (l *life) wantAllKept() {
	l.t.Helper()
	listed := l.generations()
	for _, name := range listed {
		if l.want[name] == nil {
			l.t.Errorf("generation %s is there, and should not", name)
			continue
		}
		l.wantExported("at last", name)
		got, err := snapshotOf(l.m.at(name))
		must(l.t, err)
		if d := l.want[name].differences(got); d != "" {
			l.t.Errorf("generation %s in the mount:\n%s", name, d)
		}
	}
	for name := range l.acked {
		if !l.gone[name] && !slices.Contains(listed, name) {
			l.t.Errorf("generation %s is lost", name)
		}
	}
}

// readAllTheTime reads random files of random generations in the mount and compares
// them, until stop is called.
func (l *life) readAllTheTime() (stop func()) {
	stopped := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		rng := rand.New(rand.NewPCG(8, 8))
		for {
			select {
			case <-stopped:
				return
			case <-time.After(time.Millisecond): // the backups want a share of the processors
				l.readOne(rng)
			}
		}
	})
	stop = sync.OnceFunc(func() {
		close(stopped)
		ended.Wait()
	})
	l.t.Cleanup(stop)
	return stop
}

func (l *life) readOne(rng *rand.Rand) {
	entries, err := os.ReadDir(l.m.dir)
	if err != nil {
		l.t.Error(err)
		return
	}
	shown := slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() || !strings.HasPrefix(e.Name(), "20") })
	if len(shown) == 0 {
		l.t.Error("the mount shows no generation")
		return
	}
	name := shown[rng.IntN(len(shown))].Name()
	l.mu.Lock()
	want := l.want[name]
	l.mu.Unlock()
	for file := range want { // in no order: any one
		got := snapshot{}
		err := got.read(l.m.path(name), file)
		l.mu.Lock()
		dropped := l.dropping[name] || l.gone[name]
		l.mu.Unlock()
		switch {
		case err != nil && !dropped:
			l.t.Error(err)
		case err == nil && got[file] != want[file]:
			l.t.Errorf("%s of %s in the mount: %q, want %q", file, name, got[file], want[file])
		}
		l.files++
		return
	}
}
