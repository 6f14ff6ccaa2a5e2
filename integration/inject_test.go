package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// changing are the system calls by which a command changes something, or opens what
// it changes, and which share of them a short test tries.
var changing = []struct {
	call   string
	stride int
}{{"openat", 12}, {"write", 6}, {"unlinkat", 6}, {"fsync", 3}, {"mkdirat", 3}, {"renameat", 1}, {"renameat2", 1}, {"linkat", 1},
	{"pwrite64", 1}, {"ftruncate", 1}, {"sync_file_range", 1}, {"fchmodat", 1}, {"flock", 1}}

// injection is a fault at the n-th system call of a kind.
type injection struct {
	call  string
	fault string   // as strace(1) has it: "signal=KILL", "error=EIO"
	when  string   // the format of its "when", of n: "%d", "%d+"
	paths []string // only calls on these count; none: all do
}

// inject runs a command of a survivor with a fault at the n-th call, which strace
// counts in each thread by itself. point says which call that was, "" where there were not that many.
func (s *survivor) inject(i injection, n int, command string, args ...string) (res result, point string) {
	s.t.Helper()
	trace := filepath.Join(filepath.Dir(s.dir), "trace")
	words := []string{"-f", "-q", "-y", "-o", trace, "-e", "trace=" + i.call,
		"-e", fmt.Sprintf("inject=%s:%s:when="+i.when, i.call, i.fault, n), mkbackup, command, s.dir}
	words = append(words, args...)
	for _, path := range i.paths {
		if !filepath.IsAbs(path) {
			path = filepath.Join(s.dir, path)
		}
		words = append([]string{"-P", path}, words...)
	}
	cmd := exec.Command("strace", words...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // hardly a call is made by another thread
	res = runCmd(s.t, cmd)
	text, err := os.ReadFile(trace)
	must(s.t, err)
	res.trace = string(text)
	return res, s.pointOf(res.trace, i.call)
}

// random are the parts of names that differ from run to run.
var random = regexp.MustCompile(`[A-Z2-7]{26}|[0-9a-f]{64}|/[0-9a-f]{2}\b|0{6}[0-9]+|\d{3,}|"\(.*"\.\.\.|\d+<|= .*|/f\d+`)

// ownWake is the point of a fault that hit the Go runtime, too, which wakes itself by a
// write to an eventfd. When it cannot, it ends the process, whatever became of files.
const ownWake = "eventfd"

// ownWakeFailed finds such a write in a trace.
func ownWakeFailed(trace string) bool {
	waking := map[string]bool{} // threads that strace saw begin one, but not end
	for line := range strings.Lines(trace) {
		thread, call, _ := strings.Cut(line, " ")
		call = strings.TrimSpace(call)
		wake := strings.HasPrefix(call, "write(") && strings.Contains(call, "<anon_inode:[eventfd]>") ||
			waking[thread] && strings.HasPrefix(call, "<... write resumed>")
		if wake && strings.HasSuffix(call, "(INJECTED)") {
			return true
		}
		waking[thread] = wake && strings.HasSuffix(call, "<unfinished ...>")
	}
	return false
}

// pointOf finds the call in a trace that got the fault.
func (s *survivor) pointOf(trace, call string) string {
	if ownWakeFailed(trace) {
		return ownWake
	}
	lines := strings.Split(strings.TrimSpace(trace), "\n")
	killed := strings.HasSuffix(lines[len(lines)-1], "killed by SIGKILL +++")
	last := ""
	for _, line := range lines {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, call+"(") {
			continue
		}
		if last = line; strings.Contains(line, "(INJECTED)") {
			break
		}
		if !killed {
			last = ""
		}
	}
	if strings.Contains(call, "write") {
		last, _, _ = strings.Cut(last, ", ") // what is written differs
	}
	return random.ReplaceAllString(strings.ReplaceAll(last, s.dir, "REPO"), "*")
}

// TestOwnWake: in traces as strace writes them, faults of the runtime's own writes are
// told from those of files.
func TestOwnWake(t *testing.T) {
	t.Parallel()
	s := &survivor{repo: &repo{dir: "/r"}}
	const table = `write(8</r/tmp/000001.sst>, "\0"..., 6093) = -1 EIO (Input/output error) (INJECTED)`
	const wake = `write(6<anon_inode:[eventfd]>, "\1\0\0\0\0\0\0\0", 8) = `
	const injected = "-1 EIO (Input/output error) (INJECTED)\n"
	for trace, want := range map[string]string{
		"17 " + table + "\n17 +++ exited with 1 +++":                                               "write(8<REPO/tmp/000001.sst>",
		"17 " + wake + "8\n17 " + table + "\n":                                                     "write(8<REPO/tmp/000001.sst>",
		"17 " + wake + injected + "17 +++ exited +++":                                              ownWake,
		"17 " + table + "\n19  " + wake + injected:                                                 ownWake,
		"17 " + wake + "<unfinished ...>\n18 " + table + "\n17 <... write resumed>) = " + injected: ownWake,
		"17 " + wake + "<unfinished ...>\n17 <... write resumed>) = 8\n17 " + table + "\n":         "write(8<REPO/tmp/000001.sst>",
	} {
		if got := s.pointOf(trace, "write"); random.ReplaceAllString(want, "*") != got {
			t.Errorf("%q, want %q, of\n%s", got, want, trace)
		}
	}
}

// sweep tries an injection at call number first and every stride-th after it, until a
// command ends without it, each in a fresh copy of the template; try looks at what the command did.
// The next run must work. sweep returns how often each point was hit.
func sweep(template *survivor, i injection, first, stride int, kind kind, try func(s *survivor, what, created string, res result)) (points map[string]int) {
	t := template.t
	t.Helper()
	base := tempDir(t)
	points = map[string]int{}
	missed := 0
	for n := first; missed < 2; n += stride {
		s := template.copyTo(base)
		name, args := kind.prepare(s)
		res, point := s.inject(i, n, kind.command, args...)
		if point == "" {
			missed++ // calls may be spread over more threads than the last time
		} else {
			what := fmt.Sprintf("%s, when="+i.when+", of %s: %s", i.fault, n, kind.command, point)
			if point != ownWake {
				points[point]++
				try(s, what, name, res)
			}
			s.whole()
			s.survived("after "+what, "", 0, false)
		}
		must(t, os.RemoveAll(s.dir))
		if t.Failed() {
			t.FailNow()
		}
	}
	return points
}

// tally adds up the points of sweeps.
type tally map[string]int

func (a tally) add(points map[string]int) {
	for point, n := range points {
		a[point] += n
	}
}

func (a tally) runs() (sum int) {
	for _, n := range a {
		sum += n
	}
	return sum
}

// newTemplate makes a survivor whose next run has something to do, on a tmpfs.
func newTemplate(t *testing.T, seed uint64) *survivor {
	t.Helper()
	s := newSurvivor(t, tmpfs(t, 256<<20), seed)
	for range 4 {
		s.edit()
	}
	return s
}

// leastKilled says how often a sweep kills a command at such a call at the least, however
// its threads share them. check publishes nothing.
var leastKilled = map[string]map[string]int{
	"create":  {"fsync": 5, "renameat2": 1, "unlinkat": 8, "write": 5},
	"reindex": {"fsync": 3, "renameat2": 1, "unlinkat": 6, "write": 2},
	"check":   {"fsync": 1, "unlinkat": 3, "write": 1},
	"forget":  {"fsync": 3, "renameat2": 1, "unlinkat": 6, "write": 5},
	"compact": {"fsync": 7, "renameat2": 1, "unlinkat": 12, "write": 5},
}

// TestKilledAtEveryCall kills commands before each call that changes something.
func TestKilledAtEveryCall(t *testing.T) {
	template := newTemplate(t, 102)
	for _, kind := range kinds() {
		points, committed := tally{}, 0
		for _, c := range changing {
			stride := scale(c.stride, 1)
			kills := tally(sweep(template, injection{call: c.call, fault: "signal=KILL", when: "%d"}, 1, stride, kind, func(s *survivor, what, created string, res result) {
				if res.code != 128+9 {
					t.Errorf("%s: exit code %d\n%s", what, res.code, tail(res.stderr))
				}
				if s.survived(what, created, res.code, false) {
					committed++
				}
			}))
			if least := (leastKilled[kind.command][c.call] + stride - 1) / stride; kills.runs() < least {
				t.Errorf("%s was killed at %s %d times only, want %d", kind.command, c.call, kills.runs(), least)
			}
			points.add(kills)
		}
		t.Logf("%s: %d kills at %d different points, %d of them behind the commit of a generation", kind.command, points.runs(), len(points), committed)
	}
}

// TestAdoptedPartIsSynced kills a run between the publication of a part and the sync
// of its directory. The run that takes the part over must sync it before it commits.
func TestAdoptedPartIsSynced(t *testing.T) {
	s := newTemplate(t, 106)
	before := s.parts()
	for n := 1; len(s.parts()) == len(before); n++ {
		name, args := s.next()
		res, point := s.inject(injection{call: "fsync", fault: "signal=KILL", when: "%d"}, n, "create", args...)
		if point == "" {
			t.Fatalf("no fsync %d behind the publication of a part: exit code %d", n, res.code)
		}
		s.survived(point, name, res.code, false)
	}
	adopted := slices.DeleteFunc(s.parts(), func(part string) bool { return slices.Contains(before, part) })
	if len(s.records()) != 3 || len(adopted) != 1 {
		t.Fatalf("%d records, %d parts that none names", len(s.records()), len(adopted))
	}
	name, args := s.next()
	trace := filepath.Join(tempDir(t), "trace")
	run(t, "strace", append([]string{"-f", "-qq", "-y", "-o", trace, "-e", "trace=fsync,renameat2", mkbackup, "create", s.dir}, args...)...)
	s.acknowledge(name)
	text, err := os.ReadFile(trace)
	must(t, err)
	calls, _, committed := strings.Cut(string(text), ".jsonl.zst")
	if !committed {
		t.Fatalf("no record was published:\n%s", text)
	}
	if dir := filepath.Dir(adopted[0]); !strings.Contains(calls, "<"+dir+">") {
		t.Errorf("%s was not synced before the commit:\n%s", dir, calls)
	}
	s.survived("adopted", name, 0, true)
}
