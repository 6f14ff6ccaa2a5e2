// Package measure runs commands, says what they cost, and compares figures with
// targets in a table.
package measure

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cost is what a command took.
type Cost struct {
	Wall time.Duration
	CPU  time.Duration // user and system, of the command and of the daemons that served it
	// Peak is the largest resident set, in bytes, that one process of the
	// command had (VmHWM). It is never less than that of the caller: the kernel
	// counts what a process was before it called exec.
	Peak int64
}

// Run runs a command, which must succeed; what it says on standard error is in
// the error. The processor time of the daemons, given by their process ids, is
// counted with its own.
func Run(cmd *exec.Cmd, daemons ...int) (Cost, error) {
	var said bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &said
	}
	before, err := cpuOf(daemons)
	if err != nil {
		return Cost{}, err
	}
	began := time.Now()
	err = cmd.Run()
	wall := time.Since(began)
	if err != nil {
		return Cost{}, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, tail(said.String()))
	}
	after, err := cpuOf(daemons)
	if err != nil {
		return Cost{}, err
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return Cost{}, errors.New("no resource usage of a process")
	}
	own := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return Cost{Wall: wall, CPU: own + after - before, Peak: usage.Maxrss << 10}, nil
}

func tail(s string) string {
	if s = strings.TrimSpace(s); len(s) > 2000 {
		return "…" + s[len(s)-2000:]
	}
	return s
}

// Shell returns a command that runs a script of bash, in which a failure
// anywhere, in a pipe too, is one of the whole. It finds the arguments in $1
// and so on.
func Shell(script string, args ...string) *exec.Cmd {
	return exec.Command("bash", append([]string{"-euo", "pipefail", "-c", script, "bash"}, args...)...)
}

// Alternate calls every contestant once, then again, n times, so that what
// disturbs the machine meanwhile hits all alike, and returns the median cost of
// each.
func Alternate(n int, contestants ...func() (Cost, error)) ([]Cost, error) {
	costs := make([][]Cost, len(contestants))
	for range n {
		for i, contestant := range contestants {
			c, err := contestant()
			if err != nil {
				return nil, err
			}
			costs[i] = append(costs[i], c)
		}
	}
	medians := make([]Cost, len(contestants))
	for i, c := range costs {
		medians[i] = MedianCost(c)
	}
	return medians, nil
}

// MedianCost returns the median of each figure; of Peak, the largest. There
// must be at least one cost.
func MedianCost(costs []Cost) Cost {
	var wall, cpu []time.Duration
	var peak int64
	for _, c := range costs {
		wall, cpu, peak = append(wall, c.Wall), append(cpu, c.CPU), max(peak, c.Peak)
	}
	return Cost{Wall: Median(wall), CPU: Median(cpu), Peak: peak}
}

// Median returns the middle one of at least one duration; of an even number,
// the mean of the two in the middle.
func Median(durations []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(durations))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// DropCaches writes back and then drops the page cache, directory entries and
// inodes of the whole machine. Files on a tmpfs stay.
func DropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop caches: %w", err)
	}
	return nil
}

// Daemon returns the process id of the program that has the mount point among
// its arguments.
func Daemon(program, mountpoint string) (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		exe, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
		if err == nil && filepath.Base(exe) == program && slices.Contains(strings.Split(string(line), "\x00"), mountpoint) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("no %s serves %s", program, mountpoint)
}

// Memory holds figures of a process from /proc/PID/status, in bytes.
type Memory struct {
	Resident     int64 // VmRSS
	PeakResident int64 // VmHWM
	Anonymous    int64 // RssAnon: what is its own, and not a mapped file that the kernel may drop
}

// MemoryOf returns what memory a process has now.
func MemoryOf(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	return parseStatus(string(text))
}

func parseStatus(text string) (m Memory, err error) {
	for name, field := range map[string]*int64{"VmRSS": &m.Resident, "VmHWM": &m.PeakResident, "RssAnon": &m.Anonymous} {
		_, rest, found := strings.Cut(text, "\n"+name+":")
		if !found {
			return Memory{}, fmt.Errorf("no %s in the status of a process", name)
		}
		line, _, _ := strings.Cut(rest, "\n")
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, "kB")), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("%s in the status of a process: %w", name, err)
		}
		*field = kib << 10
	}
	return m, nil
}

// cpuOf returns the processor time that processes have used until now.
func cpuOf(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		cpu, err := parseStat(string(text))
		if err != nil {
			return 0, err
		}
		sum += cpu
	}
	return sum, nil
}

// parseStat returns the user and system time in /proc/PID/stat: fields 14 and
// 15, in hundredths of a second. Field 2, the name, may hold anything, and ends
// with the last parenthesis.
func parseStat(text string) (time.Duration, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%d fields in the stat of a process", len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("time in the stat of a process: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// DiskUse returns the sum of the lengths of all files below dir, in bytes.
func DiskUse(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
