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
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// These tests run several commands at the same time, one step of one of them
// after the other, in every order there is, but for orders that differ only in
// steps that do not see each other. A step ends at a point that hooks name. After
// each order, every generation must read back whole.
//
// What a command looks up in an index that it has open never changes, so nothing
// can come between there; and a commit that is lost, and the look at the new
// index, are one step: whoever commits between them could have done so before.

// command is a command that a test runs beside others.
type command struct {
	name   string
	points []string // where it lets others go on
	run    func(r *archive.Repository, h hooks) error
	reads  bool // it takes no lock
}

// task is a command that runs, and waits at a point or has ended.
type task struct {
	command
	resume chan bool // false: it dies
	paused chan struct{}
	point  string // where it waits; "" before its start
	ended  bool
	err    error
}

var errKilled = errors.New("killed")

// kill says that a command dies at a point, the first time it gets there.
type kill struct {
	task  int
	point string
}

// begin prepares a command on a repository of its own.
func begin(dir string, c command, mutant hooks) *task {
	t := &task{command: c, resume: make(chan bool), paused: make(chan struct{})}
	mutant.at = func(point string) {
		if slices.Contains(c.points, point) {
			t.wait(point)
		}
	}
	go func() {
		defer close(t.paused)
		defer func() {
			if r := recover(); r == errKilled { //nolint:errorlint // what wait panicked with
				t.err = errKilled
			} else if r != nil {
				t.err = fmt.Errorf("panic: %v", r)
			}
			t.ended = true
		}()
		if !<-t.resume {
			panic(errKilled)
		}
		repo, err := archive.Open(dir)
		if err == nil {
			defer repo.Close()
			err = c.run(repo, mutant)
		}
		t.err = err
	}()
	return t
}

func (t *task) wait(point string) {
	t.point = point
	t.paused <- struct{}{}
	if !<-t.resume {
		panic(errKilled)
	}
}

// step lets the task go on to its next point, or to its end.
func (t *task) step(alive bool) {
	t.resume <- alive
	<-t.paused
}

// state says where the task is.
func (t *task) state() string {
	switch {
	case t.err == errKilled: //nolint:errorlint // what wait panicked with
		return "death"
	case t.ended:
		return "end"
	}
	return t.point
}

// runnable returns the tasks that can make a step. Nobody can begin while files
// are deleted: the kernel makes them wait for the lock.
func runnable(tasks []*task) (list []int) {
	deleting := slices.ContainsFunc(tasks, func(t *task) bool {
		return !t.ended && (t.point == "before unlink" || t.point == "before record unlink")
	})
	for i, t := range tasks {
		if !t.ended && (t.point != "" || !deleting || t.reads) {
			list = append(list, i)
		}
	}
	return list
}

// conflicts says which steps see each other, named by the points where they
// begin. The others may change places, and nothing is different.
var conflicts = map[[2]string]bool{
	{"", "before commit"}:              true, // an index is opened, a record is made
	{"", "before sweep"}:               true, // the lock
	{"", "before unlink"}:              true,
	{"index opened", "index opened"}:   true, // parts are published, and listed
	{"index opened", "before unlink"}:  true,
	{"before commit", "before commit"}: true,
	{"before commit", "before sweep"}:  true,
	{"before commit", "before unlink"}: true,
	{"before sweep", "before sweep"}:   true,
	{"before sweep", "before unlink"}:  true,
	{"before unlink", "before unlink"}: true,
}

// conflict reports whether the steps of two tasks that begin at the given points
// see each other. The table is only about tasks that stop at all its points.
func conflict(a, b *task, from, to string) bool {
	return !a.stops() || !b.stops() || conflicts[[2]string{from, to}] || conflicts[[2]string{to, from}]
}

func (t *task) stops() bool {
	return t.name == "forget" || !slices.ContainsFunc(allPoints, func(point string) bool { return !slices.Contains(t.points, point) })
}

// inOrder leaves out the tasks whose next step could as well have come before the
// one that the task last made from the point: that order is another one's turn.
func inOrder(tasks []*task, list []int, last int, point string) []int {
	return slices.DeleteFunc(slices.Clone(list), func(i int) bool {
		return i < last && !conflict(tasks[i], tasks[last], tasks[i].point, point)
	})
}

// choice is a step of an order: which task made it, of those that could.
type choice struct {
	runnable []int
	next     int // index into runnable
}

// follow runs the commands in the order that begins with prefix and goes on with
// the first task that can run. It reports whether that order was carried to its
// end: it is not where another one does the same.
func follow(dir string, commands []command, mutant hooks, prefix []choice, death kill) (order []choice, trace []string, whole bool, failures []error) {
	tasks := make([]*task, len(commands))
	for i, c := range commands {
		tasks[i] = begin(dir, c, mutant)
	}
	last, from := -1, ""
	for {
		list := runnable(tasks)
		if len(list) == 0 {
			break
		}
		if list = inOrder(tasks, list, last, from); len(list) == 0 {
			abandon(tasks)
			return order, trace, false, nil
		}
		c := choice{runnable: list}
		if len(order) < len(prefix) {
			c.next = prefix[len(order)].next
		}
		order = append(order, c)
		t := tasks[list[c.next]]
		last, from = list[c.next], t.point
		dies := last == death.task && from == death.point && death.point != ""
		t.step(!dies)
		trace = append(trace, t.name+"→"+t.state())
	}
	for _, t := range tasks {
		if t.err != nil && !errors.Is(t.err, errKilled) {
			failures = append(failures, fmt.Errorf("%s: %w", t.name, t.err))
		}
	}
	return order, trace, true, failures
}

// abandon ends the tasks where they are.
func abandon(tasks []*task) {
	for _, t := range tasks {
		for !t.ended {
			t.step(false)
		}
	}
}

// nextOrder returns the prefix of the next order in depth-first order, nil after
// the last one.
func nextOrder(order []choice) []choice {
	for i := len(order) - 1; i >= 0; i-- {
		if order[i].next+1 < len(order[i].runnable) {
			next := slices.Clone(order[:i+1])
			next[i].next++
			return next
		}
	}
	return nil
}

// scenario is a repository, commands that run at the same time, and the files
// that generations must have then.
type scenario struct {
	dir      string // of the repository, copied for each order
	source   string
	commands []command
	files    map[string]map[string]string // by the generation's name; "" of every other one
	dropped  string                       // a generation that must not be there any more; "": none
}

// explore runs the commands in every order and returns the number of orders and
// the first few failures. In one of them at least, the death must happen.
func (s scenario) explore(t *testing.T, mutant hooks, death kill) (orders int, failures []string) {
	t.Helper()
	work := memoryDir(t)
	dir := filepath.Join(work, "repo")
	deaths := 0
	for prefix := []choice{}; prefix != nil && len(failures) < 3; {
		copyDir(t, s.dir, dir)
		order, trace, whole, errs := follow(dir, s.commands, mutant, prefix, death)
		if whole {
			orders++
			deaths += strings.Count(fmt.Sprint(trace), "→death")
			errs = append(errs, s.verify(dir)...)
		}
		if death.point != "" && whole && len(errs) == 0 {
			errs = s.after(dir)
		}
		if len(errs) > 0 {
			failures = append(failures, fmt.Sprintf("%v: %v", trace, errors.Join(errs...)))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		prefix = nextOrder(order)
	}
	if death.point != "" && deaths == 0 && len(failures) == 0 {
		failures = []string{fmt.Sprintf("nobody died at %q in %d orders", death.point, orders)}
	}
	return orders, failures
}

// after makes one more generation and compacts once more: whatever happened
// before must not hurt those.
func (s scenario) after(dir string) []error {
	repo, err := archive.Open(dir)
	if err != nil {
		return []error{err}
	}
	defer repo.Close()
	if _, err := Create(context.Background(), repo, optionsFor(s.source)); err != nil {
		return []error{fmt.Errorf("create afterwards: %w", err)}
	}
	if _, err := Compact(context.Background(), repo, CompactOptions{Program: "test"}); err != nil {
		return []error{fmt.Errorf("compact afterwards: %w", err)}
	}
	return s.verify(dir)
}

// verify reads all files of all generations and checks the repository.
func (s scenario) verify(dir string) (errs []error) {
	repo, err := archive.Open(dir)
	if err != nil {
		return []error{err}
	}
	defer repo.Close()
	result, err := Check(context.Background(), repo, CheckOptions{Damage: func(text string) { errs = append(errs, errors.New(text)) }})
	if err != nil || result.Damages > 0 {
		return append(errs, err)
	}
	db, err := index.Open(repo, index.Options{})
	if err != nil {
		return []error{err}
	}
	defer db.Close()
	gens, err := db.Generations()
	if err != nil {
		return []error{err}
	}
	if len(gens) == 0 {
		return []error{errors.New("no generation is left")}
	}
	for _, g := range gens {
		if g.Name == s.dropped {
			errs = append(errs, fmt.Errorf("generation %d was dropped, and is there", g.Number))
		}
		want, ok := s.files[g.Name]
		if !ok {
			want = s.files[""]
		}
		got, err := filesOf(repo, db, g)
		if err != nil {
			errs = append(errs, fmt.Errorf("generation %d: %w", g.Number, err))
		} else if !maps.Equal(got, want) {
			errs = append(errs, fmt.Errorf("generation %d has the files %v", g.Number, slices.Sorted(maps.Keys(got))))
		}
	}
	return errs
}

// filesOf reads all files of a generation.
func filesOf(repo *archive.Repository, db *index.DB, g index.Generation) (map[string]string, error) {
	reader := archive.NewReader(repo.Store(), 1<<20)
	defer reader.Close()
	files := make(map[string]string)
	var failure error
	err := db.At(g.Number).List(g.Root, "", func(e index.Dirent) bool {
		data := make([]byte, e.Attr.Size)
		if n, err := db.ReadAt(reader, e.Ino, data, 0); int64(n) != e.Attr.Size {
			failure = fmt.Errorf("%s: %w", e.Name, err)
		}
		files[e.Name] = string(data)
		return true
	})
	return files, errors.Join(err, failure)
}

// memoryDir returns a directory in memory, where the machine has one: thousands of
// syncs would take long elsewhere.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "backupfs-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o400)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// steps of the commands.
func createStep(source string, points ...string) command {
	return command{name: "create", points: points, run: func(r *archive.Repository, h hooks) error {
		o := optionsFor(source)
		o.hooks = h
		_, err := Create(context.Background(), r, o)
		return err
	}}
}

func compactStep(points ...string) command {
	c := checkpointStep(points...)
	run := c.run
	c.run = func(r *archive.Repository, h hooks) error {
		h.whole = true
		return run(r, h)
	}
	return c
}

// checkpointStep is a compaction that makes a checkpoint.
func checkpointStep(points ...string) command {
	return command{name: "compact", points: points, run: func(r *archive.Repository, h hooks) error {
		_, err := Compact(context.Background(), r, CompactOptions{Program: "test", hooks: h})
		return err
	}}
}

func checkStep() command {
	return command{name: "check", reads: true, run: func(r *archive.Repository, _ hooks) error {
		var damages []error
		_, err := Check(context.Background(), r, CheckOptions{Damage: func(text string) { damages = append(damages, errors.New(text)) }})
		return errors.Join(append(damages, err)...)
	}}
}

func forgetStep(name string, points ...string) command {
	return command{name: "forget", points: points, run: func(r *archive.Repository, h hooks) error {
		_, err := Forget(context.Background(), r, ForgetOptions{Names: []string{name}, Program: "test", hooks: h})
		return err
	}}
}

// past makes a repository of three generations. The first has the files kept and
// dropped in one part, the second also again in a part of its own, the third only
// kept. The first two are forgotten, so dropped and again are dead. It returns the
// source as it was in the third. They are of long ago: a name that is forgotten is free, and
// a generation made within the same second would take it.
func past(t *testing.T) scenario {
	t.Helper()
	base := memoryDir(t)
	s := scenario{dir: filepath.Join(base, "repo"), source: filepath.Join(base, "source"), files: map[string]map[string]string{}}
	repo, err := archive.Init(s.dir, archive.InitOptions{PartSize: archive.MinPartSize})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	s.write(t, "kept")
	s.write(t, "dropped")
	o := optionsFor(s.source)
	o.Time = time.Unix(1_700_000_000, 0)
	create(t, repo, o)
	s.write(t, "again")
	create(t, repo, o)
	for _, name := range []string{"again", "dropped"} {
		if err := os.Remove(filepath.Join(s.source, name)); err != nil {
			t.Fatal(err)
		}
	}
	third := create(t, repo, o)
	s.files[third.Generation] = map[string]string{"kept": contentOf("kept")}
	if _, err := Forget(context.Background(), repo, ForgetOptions{Names: []string{"1", "2"}, Program: "test"}); err != nil {
		t.Fatal(err)
	}
	if third.Number != 3 {
		t.Fatalf("generation %d, want 3", third.Number)
	}
	return s
}

// contentOf returns what a file of a scenario holds.
func contentOf(name string) string { return string(randomBytes(uint64(len(name)), 8<<10)) }

// write makes a file of the source, always with the same time, so that a part that
// holds it alone is always the same.
func (s scenario) write(t testing.TB, name string) {
	t.Helper()
	path := filepath.Join(s.source, name)
	write(t, path, []byte(contentOf(name)))
	at := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// revived returns the scenario past with a file in the source again.
func revived(t *testing.T, name string) scenario {
	t.Helper()
	s := past(t)
	s.write(t, name)
	s.files[""] = map[string]string{"kept": contentOf("kept"), name: contentOf(name)}
	return s
}

func wantSound(t *testing.T, s scenario, death kill) int {
	t.Helper()
	orders, failures := s.explore(t, hooks{}, death)
	for _, f := range failures {
		t.Error(f)
	}
	t.Logf("%d orders", orders)
	return orders
}

// allPoints are those at which it makes a difference what others do.
var allPoints = []string{"index opened", "before commit", "before sweep", "before unlink"}

// TestCreateBesideCompact: a run takes a content for stored that a compaction is
// about to remove: alone in its part, and beside a content that stays.
func TestCreateBesideCompact(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"again", "dropped"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := revived(t, name)
			s.commands = []command{createStep(s.source, allPoints...), compactStep(allPoints...)}
			if orders := wantSound(t, s, kill{}); orders < 20 {
				t.Errorf("only %d orders", orders)
			}
		})
	}
}

// TestMutants: what the tests here would not notice is not proved by them.
func TestMutants(t *testing.T) {
	t.Parallel()
	for name, mutant := range map[string]hooks{"not validated again": {blind: true}, "deleted without the lock": {unlocked: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := revived(t, "again")
			s.commands = []command{createStep(s.source, allPoints...), compactStep(allPoints...)}
			orders, failures := s.explore(t, mutant, kill{})
			if len(failures) == 0 {
				t.Errorf("not noticed in %d orders", orders)
			} else {
				t.Logf("noticed after %d orders: %s", orders, failures[0])
			}
		})
	}
}

// beforeForget returns the scenario past with the third generation about to be dropped, and
// a new file in the source.
func beforeForget(t *testing.T) scenario {
	t.Helper()
	s := past(t)
	s.dropped = slices.Collect(maps.Keys(s.files))[0]
	s.write(t, "new")
	s.files[""] = map[string]string{"kept": contentOf("kept"), "new": contentOf("new")}
	return s
}

// TestCreateBesideForgetAndCompact: the base of a run is forgotten, and its data
// reclaimed, while it goes on.
func TestCreateBesideForgetAndCompact(t *testing.T) {
	t.Parallel()
	s := beforeForget(t)
	s.commands = []command{
		createStep(s.source, "before commit"),
		forgetStep(s.dropped),
		compactStep("before commit"),
	}
	wantSound(t, s, kill{})
}

// TestCreateBesideForget: only one of the two can have the next number.
func TestCreateBesideForget(t *testing.T) {
	t.Parallel()
	s := beforeForget(t)
	s.commands = []command{createStep(s.source, allPoints...), forgetStep(s.dropped, "before commit", "commit lost")}
	wantSound(t, s, kill{})
}

func TestTwoCompactions(t *testing.T) {
	t.Parallel()
	s := revived(t, "dropped")
	s.commands = []command{compactStep(allPoints...), compactStep(allPoints...)}
	wantSound(t, s, kill{})
}

// TestKilled: one of two commands dies, at each of its points.
func TestKilled(t *testing.T) {
	t.Parallel()
	for victim, points := range [][]string{{"index opened", "content known", "before commit", "commit lost", "before sweep"},
		{"index opened", "part published", "before commit", "commit lost", "before sweep", "before unlink"}} {
		for _, point := range points {
			t.Run(fmt.Sprint(victim, " ", point), func(t *testing.T) {
				t.Parallel()
				s := revived(t, "dropped")
				s.commands = []command{createStep(s.source, "before commit"), compactStep("before commit", "before unlink")}
				if c := &s.commands[victim]; !slices.Contains(c.points, point) {
					c.points = append(c.points, point)
				}
				wantSound(t, s, kill{victim, point})
			})
		}
	}
}

// logPoints are those of a compaction at which it makes a difference for the log what
// others do.
var logPoints = []string{"before checkpoint", "checkpoint committed", "before log sweep", "before record unlink"}

// TestCreateBesideCheckpoint: a run begins before a checkpoint, or while its records
// are there beside it, and commits behind it.
func TestCreateBesideCheckpoint(t *testing.T) {
	t.Parallel()
	s := revived(t, "dropped")
	s.commands = []command{createStep(s.source, "index opened", "before commit", "before sweep"), checkpointStep(logPoints...)}
	wantSound(t, s, kill{})
}

// fourth returns the scenario beforeForget with a fourth generation, number 5, made.
func fourth(t *testing.T) scenario {
	t.Helper()
	s := beforeForget(t)
	repo, err := archive.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	create(t, repo, optionsFor(s.source))
	return s
}

// TestForgetBesideCheckpoint: a forget that looked at the log before a checkpoint does
// not take the number of a record that is deleted; a mutant without the lock does.
func TestForgetBesideCheckpoint(t *testing.T) {
	t.Parallel()
	for name, mutant := range map[string]hooks{"": {}, "deleted without the lock": {unlocked: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fourth(t)
			s.commands = []command{forgetStep(s.dropped, "index opened", "before commit"), checkpointStep("before checkpoint", "before log sweep")}
			orders, failures := s.explore(t, mutant, kill{})
			if (len(failures) > 0) != mutant.unlocked {
				t.Errorf("%d orders: %v", orders, failures)
			}
			t.Logf("%d orders, %d failures", orders, len(failures))
		})
	}
}

// TestCheckBesideCheckpoint: whoever only reads finds a log that is whole, at any
// point of the deletion of records.
func TestCheckBesideCheckpoint(t *testing.T) {
	t.Parallel()
	s := past(t)
	s.commands = []command{checkStep(), checkpointStep(logPoints...)}
	if orders := wantSound(t, s, kill{}); orders < 8 {
		t.Errorf("only %d orders", orders)
	}
}

func TestTwoCheckpoints(t *testing.T) {
	t.Parallel()
	s := past(t)
	s.commands = []command{checkpointStep("before checkpoint", "checkpoint committed", "before log sweep"), checkpointStep("before checkpoint", "before log sweep")}
	wantSound(t, s, kill{})
}

// TestKilledAtCheckpoint: a compaction dies at each point of its checkpoint, beside a
// run. The next run and the next compaction end well.
func TestKilledAtCheckpoint(t *testing.T) {
	t.Parallel()
	for _, point := range logPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := revived(t, "dropped")
			s.commands = []command{createStep(s.source, "before commit"), checkpointStep(logPoints...)}
			wantSound(t, s, kill{1, point})
		})
	}
}
