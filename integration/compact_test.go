package integration

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// compacted is the JSON that `compact --json` prints.
type compacted struct {
	Parts        int   `json:"parts"`
	StoredBytes  int64 `json:"stored_bytes"`
	DeadBytes    int64 `json:"dead_bytes"`
	Removed      int   `json:"removed_parts"`
	New          int   `json:"new_parts"`
	NewBytes     int64 `json:"new_bytes"`
	Verbatim     int64 `json:"verbatim_bytes"`
	DeadAfter    int64 `json:"dead_bytes_after"`
	LogBytes     int64 `json:"log_bytes"`
	Checkpoint   int64 `json:"checkpoint"`
	Records      int   `json:"deleted_records"`
	Damaged      int   `json:"damaged_parts"`
	Limited      bool  `json:"limited"`
	DeletedParts int   `json:"deleted_parts"`
	DeletedBytes int64 `json:"deleted_bytes"`
	LaterParts   int   `json:"later_parts"`
}

// compact runs `compact --json` and wants the given exit code.
func (r *repo) compact(code int, args ...string) compacted {
	r.t.Helper()
	res := r.mkbackup("compact", append([]string{"--json"}, args...)...)
	if res.code != code {
		r.t.Fatalf("compact %q: exit code %d, want %d\n%s%s", args, res.code, code, tail(res.stdout), tail(res.stderr))
	}
	var c compacted
	must(r.t, json.Unmarshal([]byte(res.stdout), &c))
	return c
}

func (r *repo) forgets(args ...string) string {
	r.t.Helper()
	res := r.mkbackup("forget", args...)
	if res.code != 0 {
		r.t.Fatalf("forget %q: exit code %d\n%s", args, res.code, tail(res.stderr))
	}
	return res.stdout
}

// history is a source that is edited and backed up again and again.
type history struct {
	*repo
	src    string
	editor *treetest.Editor
	trees  map[string]*treetest.Tree // of the generations that are kept, by name
}

func newHistory(t *testing.T, r *repo, seed uint64, files int) *history {
	t.Helper()
	h := &history{repo: r, src: tempDir(t), trees: map[string]*treetest.Tree{}}
	createTree(t, h.src, treetest.Random(seed, treetest.RandomOptions{Owners: true, Files: files}))
	createTree(t, h.src, []treetest.Node{{Path: "large", Seed: seed, Size: 6 << 20}})
	h.editor = treetest.NewEditor(h.src, seed)
	h.next(0)
	return h
}

// next edits the source and makes a generation.
func (h *history) next(edits int) {
	h.t.Helper()
	_, err := h.editor.Edit(edits)
	must(h.t, err)
	s := h.all(h.src)
	h.trees[s.Generation] = readTree(h.t, h.src)
}

// keep forgets all but the newest n generations.
func (h *history) keep(n int) {
	h.t.Helper()
	h.forgets("--keep-last", fmt.Sprint(n))
	kept := h.generations()
	if len(kept) != n {
		h.t.Fatalf("%d generations are kept, want %d", len(kept), n)
	}
	for name := range h.trees {
		if !slices.Contains(kept, name) {
			delete(h.trees, name)
		}
	}
}

// wantWhole compares every generation that is kept, in a new mount.
func (h *history) wantWhole(what string) {
	h.t.Helper()
	m := h.mount("--cache-size", "16MiB")
	defer m.stop()
	for name, tree := range h.trees {
		wantTree(h.t, what+": "+name, tree, m.at(name), treetest.Options{})
	}
}

func TestForget(t *testing.T) {
	r := newRepo(t)
	src := tempDir(t)
	for _, at := range []string{"2026-03-28T23:30:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T22:30:00Z", "2026-03-30T09:00:00Z"} {
		write(t, filepath.Join(src, "file"), at)
		r.all(src, "--time", at)
	}
	r.all(src, "--source", "web1", "--time", "2020-01-01T00:00:00Z")
	refused := map[string][]string{
		"nothing says": {}, "at least 1": {"--keep-last", "0"}, "keep-daily": {"--keep-daily=-1"}, "14d": {"--keep-within", "14"},
		"both": {"--keep-last", "1", "latest"}, "SOURCE/GEN": {"--source", "web1", "latest"},
	}
	for want, args := range refused {
		res := r.mkbackup("forget", args...)
		if res.code != 2 {
			t.Errorf("forget %q: exit code %d, want 2", args, res.code)
		}
		wantOneLine(t, res.stderr, want)
	}
	if res := r.mkbackup("forget", "2030"); res.code != 1 || !strings.Contains(res.stderr, "no such generation") {
		t.Errorf("forget of what is not there: exit code %d, %s", res.code, res.stderr)
	}
	for _, number := range []string{"2026", "/2026"} {
		if res := r.mkbackup("forget", number); res.code != 1 || !strings.Contains(res.stderr, "none has the number 2026") || len(r.generations()) != 6 {
			t.Errorf("forget of a number that is not there, but a year: exit code %d, %s", res.code, res.stderr)
		}
	}

	// Days of Berlin: two on the 29th, although three are in UTC, one on the 30th
	// before dawn. Summer time begins meanwhile.
	cmd := r.command("forget", "--keep-daily", "2", "--source", "", "--dry-run")
	cmd.Env = append(os.Environ(), "TZ=Europe/Berlin")
	got := strings.Fields(runCmd(t, cmd).stdout)
	want := strings.Fields(`unnamed source GENERATION KEPT BY
		keep 2026-03-30T09-00-00Z newest, daily
		drop 2026-03-29T22-30-00Z
		keep 2026-03-29T01-30-00Z daily
		drop 2026-03-29T00-30-00Z
		drop 2026-03-28T23-30-00Z
		dry run: 3 generations would be dropped`)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := len(r.generations()); n != 6 {
		t.Fatalf("a dry run left %d generations", n)
	}
	r.forgets("--keep-within", "24h", "--keep-yearly", "9")
	if got := strings.Join(r.generations(), " "); got != "2026-03-29T22-30-00Z 2026-03-30T09-00-00Z 2020-01-01T00-00-00Z" {
		t.Errorf("kept: %s", got)
	}
	if n := len(r.records()); n != 7 {
		t.Errorf("%d records, want one for all that was forgotten: 7", n)
	}
	if out := r.forgets("--keep-last", "5"); !strings.Contains(out, "nothing to drop") || len(r.records()) != 7 {
		t.Errorf("nothing to drop: %s", out)
	}

	// By name: all of a source; the next generation of it is complete.
	res := r.mkbackup("forget", "web1/latest", "--json")
	if res.code != 0 || !strings.Contains(res.stderr, "none is left") || !strings.Contains(res.stdout, `"dropped":1`) {
		t.Errorf("forget web1/latest: exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	if s := r.all(src, "--source", "web1"); s.New != 2 || s.Unchanged != 0 {
		t.Errorf("after the last generation was dropped: %+v", s)
	}
	r.forgets("latest")
	if got := strings.Join(r.generations("--source", ""), " "); got != "2026-03-29T22-30-00Z" {
		t.Errorf("after the newest one was dropped: %s", got)
	}
}

// TestForgetOfDamagedLog drops nothing where it cannot see everything.
func TestForgetOfDamagedLog(t *testing.T) {
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	src := tempDir(t)
	for i := range 3 {
		write(t, filepath.Join(src, "file"), fmt.Sprint(i))
		r.all(src)
	}
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	record := r.records()[1]
	must(t, os.Chmod(record, 0o600))
	must(t, os.Truncate(record, fileSize(t, record)-5))
	for _, command := range []string{"forget", "compact"} {
		args := []string{"--max-dead", "0"}
		if command == "forget" {
			args = []string{"--keep-last", "1"}
		}
		if res := r.mkbackup(command, args...); res.code != 1 || !strings.Contains(res.stderr, "record 2") {
			t.Errorf("%s: exit code %d, %s", command, res.code, res.stderr)
		}
	}
	if n := len(r.records()); n != 3 {
		t.Errorf("%d records, want 3", n)
	}
}

func TestCompact(t *testing.T) {
	h := newHistory(t, newRepo(t, "--part-size", "512KiB"), 91, 200)
	for range 5 {
		h.next(25)
	}
	if c := h.compact(0, "--max-dead", "0"); c.Removed != 0 || c.DeadBytes != 0 {
		t.Errorf("nothing was forgotten: %+v", c)
	}
	h.keep(2)
	parts := h.parts()
	dry := h.compact(0, "--max-dead", "0", "--dry-run")
	if dry.Removed == 0 || dry.DeadBytes == 0 || !slices.Equal(h.parts(), parts) {
		t.Errorf("dry run: %+v", dry)
	}
	half := h.compact(0, "--max-dead", "0", "--limit", "1KB")
	if !half.Limited || half.New != 1 || half.Removed == 0 || half.Removed >= dry.Removed {
		t.Errorf("with a limit: %+v", half)
	}
	h.wantWhole("after a part of it")
	c := h.compact(0, "--max-dead", "0")
	if c.Removed == 0 || c.Verbatim == 0 || c.DeadAfter != 0 || c.DeletedParts != c.Removed || c.Removed+half.Removed < dry.Removed {
		t.Errorf("the rest: %+v", c)
	}
	if again := h.compact(0, "--max-dead", "0"); again.Removed != 0 || again.DeadBytes != 0 {
		t.Errorf("again: %+v", again)
	}
	if res := h.mkbackup("compact"); !strings.Contains(res.stdout, "nothing to do") || res.code != 0 {
		t.Errorf("again, in words: exit code %d, %s", res.code, res.stdout)
	}
	h.wantWhole("compacted")
	before := h.partBytes()
	if s := h.all(h.src, "--checksum"); s.Parts != 0 || h.partBytes() != before {
		t.Errorf("what survived is not found again: %+v", s)
	}
	for _, args := range [][]string{{"--max-dead", "x"}, {"--max-dead", "101%"}, {"--limit", "0"}, {"--time-limit", "0s"}} {
		res := h.mkbackup("compact", args...)
		if res.code != 2 {
			t.Errorf("compact %q: exit code %d, want 2", args, res.code)
		}
		wantOneLine(t, res.stderr, strings.TrimPrefix(args[0], "--"))
	}
}

// TestCompactSpace: what is left of ten generations of the Go source is hardly
// larger than a repository that only has the last one.
func TestCompactSpace(t *testing.T) {
	src := tempDir(t)
	shell(t, `cp -a "$(go env GOROOT)/src" "$1/"`, src)
	rnd := rand.New(rand.NewPCG(92, 1))
	r := newRepo(t, "--part-size", "16MiB")
	var last summary
	for i := range 10 {
		if i > 0 {
			editGoFiles(t, src, rnd)
		}
		last = r.all(src)
	}
	r.forgets("--keep-last", "1")
	c := r.compact(0, "--max-dead", "0")
	fresh := newRepo(t, "--part-size", "16MiB")
	fresh.all(src)
	got, want := r.partBytes(), fresh.partBytes()
	t.Logf("parts: %d of %d before, fresh %d (%+.1f%%); log %d, fresh %d; index %d, fresh %d", got, c.StoredBytes, want, 100*(float64(got)/float64(want)-1),
		r.bytesBelow("log"), fresh.bytesBelow("log"), r.newestIndexBytes(), fresh.newestIndexBytes())
	if float64(got) > 1.03*float64(want) {
		t.Errorf("%d bytes of parts, a fresh repository has %d", got, want)
	}
	if got, want := r.bytesBelow("."), fresh.bytesBelow("."); float64(got) > 1.03*float64(want) {
		t.Errorf("%d bytes in all, a fresh repository has %d", got, want)
	}
	m := r.mount()
	wantSameByRsync(t, src, m.at(last.Generation))
}

// editGoFiles changes every twentieth Go file, a line in it or all of it, and
// removes every hundredth.
func editGoFiles(t *testing.T, dir string, rnd *rand.Rand) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.HasSuffix(path, ".go") || rnd.IntN(20) > 0 {
			return err
		}
		if rnd.IntN(5) == 0 {
			return os.Remove(path)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lines := strings.SplitAfter(string(text), "\n")
		lines[rnd.IntN(len(lines))] = fmt.Sprintf("// changed %d\n", rnd.Uint64())
		return os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644)
	}))
}

func (r *repo) bytesBelow(dir string) (sum int64) {
	r.t.Helper()
	must(r.t, filepath.Walk(filepath.Join(r.dir, dir), func(_ string, info fs.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	}))
	return sum
}

func (r *repo) newestIndexBytes() int64 {
	r.t.Helper()
	indexes := r.glob("index/0*")
	return r.bytesBelow("index/" + filepath.Base(indexes[len(indexes)-1]))
}

// TestCompactKilled kills compactions at random points. Nothing that is kept may
// suffer, and whatever a killed one left is of use to a later run.
func TestCompactKilled(t *testing.T) {
	rnd := rand.New(rand.NewPCG(93, 1))
	h := newHistory(t, newRepo(t, "--part-size", "256KiB"), 93, 150)
	killed, finished, committed := 0, 0, 0 // committed: killed ones that had made a record
	for round := 0; killed < 30 && round < 300; round++ {
		h.next(12)
		h.next(12)
		h.keep(2)
		began, records := time.Now(), len(h.records())
		b := start(t, h.command("compact", "--max-dead", "0", "-q"))
		if round%2 == 0 { // behind a record, however slow the machine is
			waitFor(t, time.Minute, "a record, or the end", func() bool {
				select {
				case <-b.done:
					return true
				default:
					return len(h.records()) > records
				}
			})
		}
		time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
		b.cmd.Process.Kill()
		switch code := b.wait(t, time.Minute); code {
		case 128 + 9:
			killed++
			if len(h.records()) > records {
				committed++
			}
		case 0:
			finished++
		default:
			t.Fatalf("compact: exit code %d after %v\n%s", code, time.Since(began), b.stderr.String())
		}
		if c := h.mkbackup("check"); c.code != 0 {
			t.Fatalf("check after %d kills: exit code %d\n%s", killed, c.code, c.stderr)
		}
		h.wantWhole(fmt.Sprintf("after %d kills", killed))
	}
	if killed < 30 {
		t.Errorf("only %d were killed, %d were faster", killed, finished)
	}
	if committed == 0 {
		t.Error("none was killed after it had made a record")
	}
	h.all(h.src) // takes over what a killed run has published
	if c := h.compact(0, "--max-dead", "0"); c.DeadAfter != 0 {
		t.Errorf("at last: %+v", c)
	}
	h.wantWhole("at last")
	if c := h.mkbackup("check", "--json"); !strings.Contains(c.stdout, `"unnamed_parts":0,"undeleted_parts":0`) {
		t.Errorf("files of no use are left: %s", c.stdout)
	}
	h.wantNoLeftovers()
	t.Logf("%d killed, %d of them behind their first record; %d finished", killed, committed, finished)
}

// TestCompactFullDisk: a compaction on a full disk leaves the old state as it is.
func TestCompactFullDisk(t *testing.T) {
	disk := tmpfs(t, 256<<20)
	h := newHistory(t, initRepo(t, filepath.Join(disk, "repo"), "--part-size", "1MiB"), 94, 200)
	for range 3 {
		h.next(30)
	}
	h.keep(1)
	failed := 0
	for free := int64(0); free < 4<<20; free += 400 << 10 {
		leaveFree(t, disk, free)
		res := h.mkbackup("compact", "--max-dead", "0", "-q")
		leaveFree(t, disk, 256<<20)
		if res.code == 1 {
			failed++
			wantOneLine(t, res.stderr, "space")
		} else if res.code != 0 {
			t.Errorf("%d bytes free: exit code %d\n%s", free, res.code, res.stderr)
		}
		if c := h.mkbackup("check"); c.code != 0 {
			t.Fatalf("%d bytes free: check: exit code %d\n%s", free, c.code, c.stderr)
		}
	}
	if failed == 0 {
		t.Error("no disk was too full")
	}
	h.all(h.src)
	if c := h.compact(0, "--max-dead", "0"); c.DeadAfter != 0 {
		t.Errorf("with space: %+v", c)
	}
	h.wantWhole("at last")
}

// TestCompactFreesRoomFirst: a disk that is too full to copy what is needed of a part has
// room once the parts are deleted of which nothing is: the next run goes on by itself.
func TestCompactFreesRoomFirst(t *testing.T) {
	disk := tmpfs(t, 256<<20)
	r := initRepo(t, filepath.Join(disk, "repo"), "--part-size", "1MiB")
	src := tempDir(t)
	write(t, filepath.Join(src, "large"), string(treetest.Content(1, 48<<20)))
	for i := range 200 {
		write(t, filepath.Join(src, fmt.Sprint("f", i)), string(treetest.Content(uint64(2*i+3), 4<<10)))
	}
	r.all(src)
	must(t, os.Remove(filepath.Join(src, "large")))
	for i := range 100 {
		must(t, os.Remove(filepath.Join(src, fmt.Sprint("f", 2*i))))
	}
	r.all(src)
	if res := r.mkbackup("forget", "--keep-last", "1"); res.code != 0 {
		t.Fatal(res.stderr)
	}
	parts := len(r.parts())
	leaveFree(t, disk, 100<<10)
	if res := r.mkbackup("compact", "--max-dead", "0", "-q"); res.code != 1 || len(r.parts()) > parts-4 {
		t.Errorf("on the full disk: exit code %d, %d of %d parts are left\n%s", res.code, len(r.parts()), parts, res.stderr)
	}
	if res := r.mkbackup("compact", "--max-dead", "0", "-q"); res.code != 0 {
		t.Errorf("again: exit code %d\n%s", res.code, res.stderr)
	}
}

// TestCompactUnderReaders: programs read a mount that is older than a compaction,
// and files that they have open, while their data is moved and deleted.
func TestCompactUnderReaders(t *testing.T) {
	h := newHistory(t, newRepo(t, "--part-size", "512KiB"), 95, 150)
	for range 3 {
		h.next(25)
	}
	m := h.mount("--cache-size", "1MiB")
	names := h.generations()
	kept, dropped := names[len(names)-1], names[0]
	tree := h.trees[kept]
	held, err := os.Open(m.at(kept, "large"))
	must(t, err)
	defer held.Close()
	gone, err := os.Open(m.at(dropped, "large"))
	must(t, err)
	defer gone.Close()
	was := treetest.Content(95, 6<<20)

	var stop atomic.Bool
	var readers sync.WaitGroup
	var rounds atomic.Int64
	read := func(script string) {
		readers.Go(func() {
			first := ""
			for !stop.Load() {
				cmd := exec.Command("sh", "-euc", script, "sh", m.path(kept))
				out, err := cmd.CombinedOutput()
				if first == "" {
					first = string(out)
				}
				if err != nil || string(out) != first {
					t.Errorf("%s: %v\n%s", script, err, tail(string(out)))
					return
				}
				rounds.Add(1)
			}
		})
	}
	dropCaches := func() { _ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0) } // so that the mount is asked
	read(`cd "$1" && tar -cf - --exclude=./large . 2>&1 | md5sum`)
	read(`cd "$1" && find . -type f -exec md5sum {} + | sort`)
	for round := range 4 {
		seen := rounds.Load()
		waitFor(t, time.Minute, "the readers", func() bool { return rounds.Load() >= seen+2 })
		if round == 1 {
			h.forgets(names[:3]...)
		}
		if round > 0 {
			h.compact(0, "--max-dead", "0")
		}
		dropCaches()
		b := make([]byte, 1<<20)
		if n, err := held.ReadAt(b, int64(round)<<20); err != nil || n != len(b) {
			t.Errorf("a file that was open, round %d: %d bytes, %v", round, n, err)
		}
		if n, err := gone.ReadAt(b, int64(round)<<20); err == nil && string(b[:n]) != string(was[int64(round)<<20:][:n]) {
			t.Errorf("an open file of a dropped generation, round %d: wrong bytes", round)
		}
	}
	stop.Store(true)
	readers.Wait()
	wantTree(t, "the old mount", tree, m.path(kept), treetest.Options{})
	for name := range h.trees {
		if name != kept {
			delete(h.trees, name)
		}
	}
	h.wantWhole("a new mount")
}

// TestCompactBesideCreate: the files of removed parts stay for as long as a run is
// under way, and go when it has ended.
func TestCompactBesideCreate(t *testing.T) {
	h := newHistory(t, newRepo(t, "--part-size", "256KiB"), 96, 80)
	h.next(40)
	h.keep(1)
	fifo := filepath.Join(tempDir(t), "lock")
	must(t, syscall.Mkfifo(fifo, 0o600))
	holder := start(t, exec.Command("flock", "--shared", filepath.Join(h.dir, "repo.json"), "sh", "-c", `echo >"$0"; read x <"$0"`, fifo))
	_, err := os.ReadFile(fifo) // it has the lock now
	must(t, err)
	c := h.compact(0, "--max-dead", "0")
	if c.Removed == 0 || c.LaterParts != c.Removed || c.DeletedParts != 0 {
		t.Errorf("beside a run: %+v", c)
	}
	if res := h.mkbackup("check"); res.code != 0 || !strings.Contains(res.stderr, "deletes the files") {
		t.Errorf("check: exit code %d, %s", res.code, res.stderr)
	}
	write(t, fifo, "go\n")
	if code := holder.wait(t, 30*time.Second); code != 0 {
		t.Fatalf("flock ended with %d", code)
	}
	before := len(h.parts())
	h.all(h.src)
	if after := len(h.parts()); after != before-c.Removed {
		t.Errorf("%d parts after the next run, %d before it, %d were removed", after, before, c.Removed)
	}
	h.wantWhole("after the next run")
}

// TestCompactDamage keeps a damaged part, says so, and goes on with the others.
func TestCompactDamage(t *testing.T) {
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", "--part-size", "256KiB", r.dir)
	src := tempDir(t)
	for i := range 20 {
		createTree(t, src, []treetest.Node{{Path: fmt.Sprint("f", i), Seed: uint64(i) + 1, Size: 100 << 10}})
	}
	r.all(src)
	for i := range 20 {
		if i%5 == 0 {
			must(t, os.Remove(filepath.Join(src, fmt.Sprint("f", i))))
		}
	}
	last := r.all(src)
	r.forgets("1")
	broken := r.parts()[0]
	b, err := os.ReadFile(broken)
	must(t, err)
	b[1000] ^= 1
	must(t, os.Chmod(broken, 0o600))
	must(t, os.WriteFile(broken, b, 0o600))
	res := r.mkbackup("compact", "--max-dead", "0")
	if res.code != 4 || !strings.Contains(res.stderr, strings.TrimSuffix(filepath.Base(broken), ".tar.zst")) {
		t.Errorf("exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
	if !slices.Contains(r.parts(), broken) || len(r.parts()) > 5 {
		t.Errorf("parts: %q", r.parts())
	}
	m := r.mount()
	readable := 0
	for i := range 20 {
		if b, err := os.ReadFile(m.at(last.Generation, fmt.Sprint("f", i))); err == nil {
			readable++
			if string(b) != string(treetest.Content(uint64(i)+1, 100<<10)) {
				t.Errorf("f%d has wrong bytes", i)
			}
		}
	}
	if readable < 16-10 { // those of 16 that are not in the damaged frame, which has 1 MiB
		t.Errorf("only %d files can be read", readable)
	}
	m.stop()
}

// TestRecoveryAfterCompaction restores generations with the script after their
// contents were moved.
func TestRecoveryAfterCompaction(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, recoverable(treetest.Random(97, treetest.RandomOptions{Owners: true, Files: 80})))
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 97, Size: 5 << 20}})
	r := newRepo(t, "--part-size", "512KiB")
	var trees []*treetest.Tree
	var numbers []string
	for i := range 4 {
		for n := range 10 {
			createTree(t, src, []treetest.Node{{Path: fmt.Sprintf("new%d-%d", i, n), Seed: uint64(100*i+n) + 1, Size: 50_000}})
		}
		if i > 0 {
			must(t, os.Remove(filepath.Join(src, fmt.Sprintf("new%d-3", i-1))))
		}
		s := r.all(src)
		trees, numbers = append(trees, readTree(t, src)), append(numbers, fmt.Sprint(s.Number))
	}
	r.forgets(numbers[0], numbers[2])
	c := r.compact(0, "--max-dead", "0")
	if c.Removed == 0 || c.Checkpoint == 0 || c.Records != int(c.Checkpoint)-1 {
		t.Fatalf("%+v", c)
	}
	must(t, os.Rename(filepath.Join(src, "new3-4"), filepath.Join(src, "new3-5"))) // behind the checkpoint
	numbers = append(numbers, fmt.Sprint(r.all(src).Number))
	trees = append(trees, readTree(t, src))
	path := toolsOnly(t)
	for _, i := range []int{1, 3, 4} {
		to := filepath.Join(tempDir(t), "restored")
		if res := runCmd(t, recovery(path, r.dir, numbers[i], to)); res.code != 0 {
			t.Fatalf("recovery of generation %s: exit code %d\n%s%s", numbers[i], res.code, tail(res.stdout), tail(res.stderr))
		}
		for p, e := range trees[i].Entries {
			if e.Type == treetest.Socket { // no stock tool makes one
				delete(trees[i].Entries, p)
			}
		}
		wantTree(t, "recovery of generation "+numbers[i], trees[i], to, treetest.Options{NoXattrs: true})
	}
}
