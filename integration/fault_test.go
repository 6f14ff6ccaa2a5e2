package integration

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// wantHonest fails the test unless a command that met a fault has either done its work
// or said that it has not, and all that was there before is there. It
// returns whether the generation was made although the command failed: the fault came behind the commit.
// mute says that the fault hit what the command wanted to say, too.
func (s *survivor) wantHonest(what, command, created string, res result, mute bool) (behind bool) {
	s.t.Helper()
	wantNoCrash(s.t, what, res.stderr)
	there := s.survived(what, created, res.code, false)
	switch {
	case res.code == 0:
	case res.code == 1, res.code == 4 && command == "check":
		if res.stderr == "" && !mute {
			s.t.Errorf("%s: it failed and did not say why", what)
		}
	case res.code == 4 && command == "create" && there && strings.Contains(res.stderr, "the record of this generation cannot be read"):
	case res.code == 4 && command == "compact" && strings.Contains(res.stderr, "it cannot be read: part ") && strings.Contains(res.stderr, "left as they are"):
	case res.code == 4 && command == "compact" && strings.Contains(res.stderr, ", named above: the log was not made shorter"):
	default:
		s.t.Errorf("%s: exit code %d\n%s", what, res.code, tail(res.stderr))
	}
	return there && res.code != 0
}

// mayStayUnsynced matches, in the trace of a sync, an index that is made, in the repository
// or for one command alone, or the directory of all of them: what is lost of these is derived again.
var mayStayUnsynced = regexp.MustCompile(`/(index|(backupfs-)?index-\w+(/[^/>]+)?)>`)

// wantSynced fails the test where a command ended with 0 although a sync failed, which does
// not show until the machine crashes. Only that of an index may fail, where that is not all
// that the command is for.
func wantSynced(t *testing.T, what, command string, res result) {
	t.Helper()
	if res.code != 0 {
		return
	}
	for line := range strings.Lines(res.trace) {
		if strings.Contains(line, "(INJECTED)") && (command == "reindex" || !mayStayUnsynced.MatchString(line)) {
			t.Errorf("%s: exit code 0, but this was not synced: %s", what, line)
		}
	}
}

// TestFaultAtEveryCall lets the calls that change something fail, once and for good.
func TestFaultAtEveryCall(t *testing.T) {
	template := newTemplate(t, 103)
	faults := []injection{{fault: "error=EIO", when: "%d"}, {fault: "error=EIO", when: "%d+"}, {fault: "error=ENOSPC", when: "%d+"}, {fault: "error=EINTR", when: "%d+2"}}
	if soak() {
		faults = append(faults, injection{fault: "error=ENOSPC", when: "%d"}, injection{fault: "error=EINTR", when: "%d"}, injection{fault: "error=EDQUOT", when: "%d+"},
			injection{fault: "error=EROFS", when: "%d+"})
	}
	likeENOSPC := []string{"error=EDQUOT", "error=EROFS"} // in full, a third of the calls is enough
	for k, kind := range kinds() {
		points, failed, behind := tally{}, 0, 0
		for c, change := range changing {
			for f, fault := range faults {
				if !soak() && (change.call == "fsync" || k > 0 && (f+c)%len(faults) != 0) { // TestFaultAtEverySync is for these
					continue
				}
				fault.call = change.call
				stride := scale(3*change.stride, 1)
				if soak() && slices.Contains(likeENOSPC, fault.fault) {
					stride = 3
				}
				points.add(sweep(template, fault, 1+(f+k)%stride, stride, kind, func(s *survivor, what, created string, res result) {
					if s.wantHonest(what, kind.command, created, res, fault.call == "write") {
						behind++
						t.Logf("committed, but exit code %d: %s\n%s", res.code, what, res.stderr)
					}
					if fault.call == "fsync" && fault.fault != "error=EINTR" { // that is no failure: the call is repeated
						wantSynced(t, what, kind.command, res)
					}
					if res.code != 0 {
						failed++
					}
				}))
			}
		}
		if failed == 0 {
			t.Errorf("no fault made %s fail", kind.command)
		}
		t.Logf("%s: %d faults at %d different points: %d runs failed, %d of them behind the commit of a generation", kind.command, points.runs(), len(points), failed, behind)
	}
}

// TestFaultAtEverySync lets each sync fail once, and those of single directories. A command
// that ends with 0 all the same has lost nothing but an index.
func TestFaultAtEverySync(t *testing.T) {
	template := newTemplate(t, 108)
	directories := map[string][]string{"create": {".", "parts", "log"}, "reindex": {"index"}, "forget": {".", "log"}, "compact": {".", "parts", "log"}}
	for _, kind := range kinds() {
		failed := 0
		try := func(s *survivor, what, created string, res result) {
			if s.wantHonest(what, kind.command, created, res, false) && !strings.Contains(res.stderr, " is committed nevertheless, ") {
				t.Errorf("%s: exit code %d, and it did not say that the generation is there\n%s", what, res.code, res.stderr)
			}
			wantSynced(t, what, kind.command, res)
			if res.code != 0 {
				failed++
			}
		}
		fault := injection{call: "fsync", fault: "error=EIO", when: "%d"}
		points := tally(sweep(template, fault, 1, scale(2, 1), kind, try))
		for _, directory := range directories[kind.command] {
			fault.paths = []string{directory}
			hits := sweep(template, fault, 1, 1, kind, try)
			if len(hits) == 0 {
				t.Errorf("%s did not sync %s", kind.command, directory)
			}
			points.add(hits)
		}
		t.Logf("%s: %d faults at %d different points: %d runs failed", kind.command, points.runs(), len(points), failed)
	}
}

// TestNoRoom lets commands meet a full disk, one with about the room that an index needs
// whatever it is (32 MiB), a disk without inodes, and a limit of the size of files,
// which makes writes short.
func TestNoRoom(t *testing.T) {
	template := newTemplate(t, 104)
	disk := tmpfs(t, 256<<20)
	attempts := scale(8, 40)
	inodes := func(free uint64) {
		t.Helper()
		var st unix.Statfs_t
		must(t, unix.Statfs(disk, &st))
		run(t, "mount", "-o", fmt.Sprintf("remount,nr_inodes=%d", st.Files-st.Ffree+free), disk)
	}
	rooms := []struct {
		what, name string // of what there is little, and of how little
		limit      func(i int)
		command    func(i int, cmd *exec.Cmd) *exec.Cmd
	}{
		{"bytes", "none", func(i int) { leaveFree(t, disk, int64(i)*160<<10/int64(attempts)) }, nil},
		{"bytes", "an index", func(i int) { leaveFree(t, disk, 31<<20+int64(i)*5<<20/int64(attempts)) }, nil},
		{"inodes", "none", func(i int) { inodes(uint64(i * 24 / attempts)) }, nil},
		{"file size", "none", nil, func(i int, cmd *exec.Cmd) *exec.Cmd {
			return exec.Command("prlimit", slices.Concat([]string{fmt.Sprintf("--fsize=%d", i*i*200_000/attempts/attempts+1)}, cmd.Args)...)
		}},
	}
	for _, kind := range kinds() {
		failed, done := map[string]int{}, map[string]int{}
		for _, room := range rooms {
			for i := range attempts {
				s := template.copyTo(disk)
				name, args := kind.prepare(s)
				cmd := s.command(kind.command, args...)
				if room.limit != nil {
					room.limit(i)
				}
				if room.command != nil {
					cmd = room.command(i, cmd)
				}
				res := runCmd(t, cmd)
				leaveFree(t, disk, 200<<20)
				inodes(100_000)
				what := fmt.Sprintf("%s short of %s, from %s up, attempt %d", kind.command, room.what, room.name, i)
				if s.wantHonest(what, kind.command, name, res, false) {
					t.Errorf("%s: committed, but exit code %d\n%s", what, res.code, res.stderr)
				}
				if res.code == 0 {
					done[room.what]++
				} else {
					failed[room.what]++
				}
				s.whole()
				s.survived("after "+what, "", 0, false)
				s.wantSound("after " + what)
				must(t, os.RemoveAll(s.dir))
			}
		}
		for _, what := range []string{"bytes", "inodes", "file size"} {
			writes := kind.command == "create" || kind.command == "reindex" || kind.command == "compact"
			if writes && (failed[what] == 0 || done[what] == 0) {
				t.Errorf("%s never failed, or always did, short of %s", kind.command, what)
			}
			t.Logf("%s short of %s: %d attempts failed, %d did not", kind.command, what, failed[what], done[what])
		}
	}
}
