package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/cmd/internal/size"
)

// gentle are the priorities of the process, for a machine that has other work.
type gentle struct {
	threads    int // 0 where none were given
	nice       int
	niceGiven  bool
	ioPriority int // of ioprio_set(2): class<<13 | level; 0 where none was given
}

// maxThreads bounds the memory: each thread takes some MiB.
const maxThreads = 256

// addReadRateFlag adds the flag that bounds how fast files are read.
func addReadRateFlag(flags *pflag.FlagSet, bytesPerSecond *int64) {
	flags.Func("read-rate", "read at most `SIZE` of the files in a second, as 20MiB:\n"+size.Units, func(text string) error {
		rate, err := size.Parse(text)
		if err != nil || rate == 0 || rate > 1<<50 {
			return errors.New("give a number of bytes per second with a unit, as 20MiB")
		}
		*bytesPerSecond = int64(rate)
		return nil
	})
}

// addGentleFlags adds the flags that fill g.
func addGentleFlags(flags *pflag.FlagSet, g *gentle) {
	flags.Func("nice", "run with the nice value `N`, -20 to 19: at 19 all others have the CPU first", func(text string) (err error) {
		if g.nice, err = strconv.Atoi(text); err != nil || g.nice < -20 || g.nice > 19 {
			return errors.New("give a number from -20 to 19")
		}
		g.niceGiven = true
		return nil
	})
	flags.Func("ionice", "run with the I/O priority `CLASS[:LEVEL]`: idle, best-effort or realtime; level 0, the first, to 7", func(text string) (err error) {
		g.ioPriority, err = parseIOPriority(text)
		return err
	})
	flags.Func("threads", "use at most `N` CPUs", func(text string) (err error) {
		if g.threads, err = strconv.Atoi(text); err != nil || g.threads < 1 || g.threads > maxThreads {
			return fmt.Errorf("give a number from 1 to %d", maxThreads)
		}
		return nil
	})
}

// parseIOPriority parses a class, and the level behind a colon, in the words of ionice(1).
func parseIOPriority(text string) (int, error) {
	name, level, leveled := strings.Cut(text, ":")
	if !leveled && name != "idle" {
		level = "4"
	}
	classes := map[string]int{"realtime": 1, "best-effort": 2}
	switch class := classes[name]; {
	case name == "idle" && !leveled:
		return 3 << 13, nil
	case class != 0 && len(level) == 1 && "0" <= level && level <= "7":
		return class<<13 | int(level[0]-'0'), nil
	}
	return 0, errors.New("give idle, best-effort, realtime, or one of the last two with :0 to :7")
}

// apply changes the priorities of this process and how many CPUs it uses.
func (g *gentle) apply() error {
	if g.threads != 0 {
		runtime.GOMAXPROCS(g.threads)
	}
	if g.niceGiven {
		if err := eachThread(func(tid int) error { return unix.Setpriority(unix.PRIO_PROCESS, tid, g.nice) }); err != nil {
			return priorityError("--nice", err)
		}
	}
	if g.ioPriority != 0 {
		if err := eachThread(func(tid int) error { return setIOPriority(tid, g.ioPriority) }); err != nil {
			return priorityError("--ionice", err)
		}
	}
	return nil
}

func priorityError(flag string, err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: only root may raise a priority", flag, err)
	}
	return fmt.Errorf("%s: %w", flag, err)
}

func setIOPriority(tid, priority int) error {
	const process = 1 // IOPRIO_WHO_PROCESS, which is a thread
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, process, uintptr(tid), uintptr(priority)); errno != 0 {
		return errno
	}
	return nil
}

// eachThread calls set for every thread of the process. The kernel keeps
// priorities for each thread apart; a new one gets those of the one that made it,
// so that all have them once a look at the threads finds none that is new.
func eachThread(set func(tid int) error) error {
	for done := map[int]bool{}; ; {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		before := len(done)
		for _, thread := range threads {
			tid, err := strconv.Atoi(thread.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := set(tid); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return err
			}
			done[tid] = true
		}
		if len(done) == before {
			return nil
		}
	}
}
