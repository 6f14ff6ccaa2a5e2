package measure

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []time.Duration
		want time.Duration
	}{
		{[]time.Duration{5}, 5},
		{[]time.Duration{9, 1}, 5},
		{[]time.Duration{100, 3, 1}, 3},
		{[]time.Duration{8, 2, 100, 4}, 6},
	} {
		given := slices.Clone(c.in)
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %d, want %d", c.in, got, c.want)
		}
		if !slices.Equal(given, c.in) {
			t.Errorf("Median changed %v to %v", given, c.in)
		}
	}
}

func TestMedianCost(t *testing.T) {
	got := MedianCost([]Cost{{Wall: 3, CPU: 10, Peak: 1}, {Wall: 1, CPU: 30, Peak: 7}, {Wall: 2, CPU: 20, Peak: 5}})
	if want := (Cost{Wall: 2, CPU: 20, Peak: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAlternate(t *testing.T) {
	var order []string
	contestant := func(name string, walls ...time.Duration) func() (Cost, error) {
		return func() (Cost, error) {
			order = append(order, name)
			wall := walls[0]
			walls = walls[1:]
			return Cost{Wall: wall}, nil
		}
	}
	costs, err := Alternate(3, contestant("a", 1, 9, 2), contestant("b", 30, 10, 20))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "ababab" {
		t.Errorf("order %s, want ababab", got)
	}
	if costs[0].Wall != 2 || costs[1].Wall != 20 {
		t.Errorf("medians %d and %d, want 2 and 20", costs[0].Wall, costs[1].Wall)
	}
	broken := errors.New("broken")
	if _, err := Alternate(2, contestant("a", 1, 1), func() (Cost, error) { return Cost{}, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v, want that of the contestant", err)
	}
}

func TestRun(t *testing.T) {
	cost, err := Run(Shell(`i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; head -c 100000000 /dev/zero | tail -c 100000000 >/dev/null`))
	if err != nil {
		t.Fatal(err)
	}
	if cost.CPU < 50*time.Millisecond || cost.Wall <= 0 {
		t.Errorf("%v of processor time in %v, for 300,000 turns of a loop", cost.CPU, cost.Wall)
	}
	if cost.Peak < 95<<20 || cost.Peak > 1<<30 {
		t.Errorf("a peak of %d bytes, for a tail that keeps 100,000,000", cost.Peak)
	}
}

// TestRunCountsDaemons runs a command that only waits while a daemon works.
func TestRunCountsDaemons(t *testing.T) {
	daemon := Shell(`while :; do :; done`)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer daemon.Wait()
	defer daemon.Process.Kill()
	pid := daemon.Process.Pid
	// until the daemon has had 0.2 s of processor time: field 14 of its stat
	cost, err := Run(Shell(`now() { cut -d ' ' -f 14 "/proc/$1/stat"; }; begin=$(now "$1"); while [ $(($(now "$1") - begin)) -lt 20 ]; do sleep 0.02; done`, strconv.Itoa(pid)), pid)
	if err != nil {
		t.Fatal(err)
	}
	if cost.CPU < 200*time.Millisecond {
		t.Errorf("%v of processor time, want that of the daemon too: 0.2 s", cost.CPU)
	}
}

func TestRunFails(t *testing.T) {
	for script, want := range map[string]string{
		`echo wrong >&2; exit 3`:  "wrong",
		`cat /nonexistent | true`: "No such file",
		`true "$undefined"`:       "unbound",
	} {
		if _, err := Run(Shell(script)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", script, err, want)
		}
	}
	if _, err := Run(exec.Command("true"), 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v of a daemon that is not there", err)
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("12 (a ) 9 b) S 1 12 12 0 -1 4194560 900 800 0 0 150 25 7 8 20 0 9 0 100 0 0")
	if want := 1750 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := parseStat("12 (a) S 1"); err == nil {
		t.Error("a line that ends early has a time")
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\nRssAnon:\t     500 kB\nRssFile:\t    1500 kB\n")
	if want := (Memory{Resident: 2_048_000, PeakResident: 3_072_000, Anonymous: 512_000}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := parseStatus("Name:\tx\nVmRSS:\t 1 kB\n"); err == nil {
		t.Error("a status without VmHWM is taken")
	}
	own, err := MemoryOf(os.Getpid())
	if err != nil || own.Resident < own.Anonymous || own.PeakResident < 1<<20 {
		t.Errorf("of this process: %+v, %v", own, err)
	}
}

func TestDaemon(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("tail", "-f", "--", dir+"/file")
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid, err := Daemon("tail", dir+"/file")
	for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		pid, err = Daemon("tail", dir+"/file") // fork, but not yet exec
	}
	if err != nil || pid != cmd.Process.Pid {
		t.Errorf("%d, %v, want %d", pid, err, cmd.Process.Pid)
	}
	if pid, err := Daemon("tail", dir); err == nil {
		t.Errorf("%d serves a directory that is only the beginning of an argument", pid)
	}
	if pid, err := Daemon("head", dir+"/file"); err == nil {
		t.Errorf("%d is no head", pid)
	}
}

func TestDiskUse(t *testing.T) {
	dir := t.TempDir()
	for name, length := range map[string]int{"a": 10, "d/b": 5000, "d/e/c": 1} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, length), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := DiskUse(dir); err != nil || got != 5011 {
		t.Errorf("%d, %v, want 5011", got, err)
	}
	if _, err := DiskUse(dir + "/none"); err == nil {
		t.Error("a directory that is not there has a size")
	}
}
