package integration

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// wantHonest fails the test unless a command that met a fault has either done its work
// or said that it has not, and all that was there before is there. It
// returns whether the generation was made although the command failed: the fault came behind the commit.
// mute says that the fault hit what the command wanted to say, too.
func (s *survivor) wantHonest(what, created string, res result, mute bool) (behind bool) {
	s.t.Helper()
	wantNoCrash(s.t, what, res.stderr)
	switch res.code {
	case 0:
	case 1, 4: // 4 is for check alone, which cannot read what it should
		if res.stderr == "" && !mute {
			s.t.Errorf("%s: it failed and did not say why", what)
		}
	default:
		s.t.Errorf("%s: exit code %d\n%s", what, res.code, tail(res.stderr))
	}
	return s.survived(what, created, res.code, false) && res.code != 0
}

// TestFaultAtEveryCall lets the calls that change something fail, once and for good.
func TestFaultAtEveryCall(t *testing.T) {
	template := newTemplate(t, 103)
	faults := []injection{{fault: "error=EIO", when: "%d"}, {fault: "error=EIO", when: "%d+"}, {fault: "error=ENOSPC", when: "%d+"}, {fault: "error=EINTR", when: "%d+2"}}
	if soak() {
		faults = append(faults, injection{fault: "error=ENOSPC", when: "%d"}, injection{fault: "error=EINTR", when: "%d"}, injection{fault: "error=EDQUOT", when: "%d+"},
			injection{fault: "error=EROFS", when: "%d+"})
	}
	for k, kind := range kinds() {
		points, failed, behind := tally{}, 0, 0
		for c, change := range changing {
			for f, fault := range faults {
				if !soak() && k > 0 && (f+c)%len(faults) != 0 {
					continue
				}
				fault.call = change.call
				stride := scale(3*change.stride, 1)
				points.add(sweep(template, fault, 1+(f+k)%stride, stride, kind, func(s *survivor, what, created string, res result) {
					if s.wantHonest(what, created, res, fault.call == "write") {
						behind++
						t.Logf("committed, but exit code 1: %s\n%s", what, res.stderr)
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

// TestNoRoom lets commands meet a full disk, a disk without inodes, and a limit of
// the size of files, which makes writes short.
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
		name    string
		limit   func(i int)
		command func(i int, cmd *exec.Cmd) *exec.Cmd
	}{
		{"bytes", func(i int) { leaveFree(t, disk, int64(i)*160<<10/int64(attempts)) }, nil},
		{"inodes", func(i int) { inodes(uint64(i * 24 / attempts)) }, nil},
		{"file size", nil, func(i int, cmd *exec.Cmd) *exec.Cmd {
			return exec.Command("prlimit", slices.Concat([]string{fmt.Sprintf("--fsize=%d", i*i*40_000/attempts/attempts+1)}, cmd.Args)...)
		}},
	}
	for _, room := range rooms {
		for _, kind := range kinds() {
			failed := 0
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
				what := fmt.Sprintf("%s without room, of %s, attempt %d", kind.command, room.name, i)
				if s.wantHonest(what, name, res, false) {
					t.Errorf("%s: committed, but exit code %d\n%s", what, res.code, res.stderr)
				}
				if res.code != 0 {
					failed++
				}
				s.whole()
				s.survived("after "+what, "", 0, false)
				s.wantSound("after " + what)
				must(t, os.RemoveAll(s.dir))
			}
			if failed == 0 && kind.command == "create" {
				t.Errorf("%s had always enough %s", kind.command, room.name)
			}
			t.Logf("%s, %s: %d of %d attempts failed", kind.command, room.name, failed, attempts)
		}
	}
}
