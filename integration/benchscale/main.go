// Command benchscale backs up one million files in 50,000 directories and
// compares memory, times and sizes with their limits. It prints each figure and
// exits with 1 if a limit is missed. Run it as root: make bench-scale.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dirs        = 50_000
	filesPerDir = 20
	changes     = 1_000
	cacheMiB    = 64 // of the mount, given as an option

	limitCreateMiB = 512
	limitMount     = 200 * time.Millisecond
	limitMountMiB  = 64 + cacheMiB
	limitRecordKiB = 300
	limitIndex     = 200 * time.Millisecond
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: benchscale BIN")
		os.Exit(2)
	}
	b := &bench{bin: os.Args[1]}
	err := b.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchscale:", err)
	}
	if err != nil || b.missed > 0 {
		os.Exit(1)
	}
}

type bench struct {
	bin    string
	dir    string // everything is made in it and removed at the end
	missed int
}

// limit prints a figure and counts it if it is above its limit.
func (b *bench) limit(what string, got, limit float64, unit string) {
	verdict := "ok"
	if got > limit {
		verdict = "MISSED"
		b.missed++
	}
	fmt.Printf("%-58s %9.3f %-4s limit %8.3f  %s\n", what, got, unit, limit, verdict)
}

func figure(what string, got float64, unit string) {
	fmt.Printf("%-58s %9.3f %s\n", what, got, unit)
}

func (b *bench) run() (err error) {
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "backupfs-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	began := time.Now()
	if err := b.makeFiles(); err != nil {
		return err
	}
	figure("files made", time.Since(began).Seconds(), "s")
	if _, _, err := b.mkbackup("init", b.repo()); err != nil {
		return err
	}
	if err := b.first(); err != nil {
		return err
	}
	if err := b.mounted(); err != nil {
		return err
	}
	return b.second()
}

func (b *bench) src() string  { return filepath.Join(b.dir, "src") }
func (b *bench) repo() string { return filepath.Join(b.dir, "repo") }

func (b *bench) file(dir, n int) string {
	return filepath.Join(b.src(), fmt.Sprintf("group-%03d/directory-%05d/file-%02d", dir/200, dir, n))
}

func (b *bench) makeFiles() error {
	for d := range dirs {
		if err := os.MkdirAll(filepath.Dir(b.file(d, 0)), 0o755); err != nil {
			return err
		}
		for n := range filesPerDir {
			text := fmt.Sprintf("file %d of directory %d\n", n, d)
			if err := os.WriteFile(b.file(d, n), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// mkbackup runs a command and returns its standard output and its peak memory.
func (b *bench) mkbackup(args ...string) (stdout string, peakMiB float64, err error) {
	cmd := exec.Command(filepath.Join(b.bin, "mkbackup"), args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", 0, fmt.Errorf("mkbackup %s: %w", strings.Join(args, " "), err)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return "", 0, errors.New("no resource usage of a process")
	}
	return string(out), float64(usage.Maxrss) / 1024, nil
}

// create makes a generation and prints what it cost.
func (b *bench) create(what string) error {
	out, peak, err := b.mkbackup("create", b.repo(), "--json", "--root", b.src(), "/")
	if err != nil {
		return err
	}
	var s struct {
		Files, New, Changed, Gone int64
		Seconds                   float64
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return fmt.Errorf("summary %q: %w", out, err)
	}
	fmt.Printf("%s generation: %d files, %d new, %d changed, %d gone\n", what, s.Files, s.New, s.Changed, s.Gone)
	figure(what+" generation", s.Seconds, "s")
	b.limit(what+" generation, peak memory", peak, limitCreateMiB, "MiB")
	return nil
}

func (b *bench) first() error {
	if err := b.create("first"); err != nil {
		return err
	}
	for _, dir := range []string{"log", "index", "parts"} {
		size, err := diskSize(filepath.Join(b.repo(), dir))
		if err != nil {
			return err
		}
		figure("size of "+dir, float64(size)/(1<<20), "MiB")
	}
	return nil
}

func diskSize(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
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

func (b *bench) mounted() (err error) {
	mnt := filepath.Join(b.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	began := time.Now()
	cmd := exec.Command(filepath.Join(b.bin, "backupfs"), "--cache-size", fmt.Sprint(cacheMiB, "MiB"), b.repo(), mnt)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("backupfs: %w", err)
	}
	b.limit("mount ready", time.Since(began).Seconds(), limitMount.Seconds(), "s")
	defer func() { err = errors.Join(err, unix.Unmount(mnt, 0)) }()
	pid, err := daemon(mnt)
	if err != nil {
		return err
	}
	for _, step := range []struct{ what, script string }{
		{"find -ls of everything", `find "$1/latest/" -ls | wc -l`},
		{"find again", `find "$1/latest/" | wc -l`},
		{"reading 20,000 files", `find "$1/latest/group-000" "$1/latest/group-249" "$1/latest/group-100" "$1/latest/group-101" "$1/latest/group-102" -type f -exec cat {} + | wc -c`},
	} {
		began := time.Now()
		out, err := exec.Command("sh", "-euc", step.script, "sh", mnt).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		figure(step.what+" ("+strings.TrimSpace(string(out))+")", time.Since(began).Seconds(), "s")
		if err := b.memory(step.what, pid); err != nil {
			return err
		}
	}
	return nil
}

// daemon finds the process that serves a mount point.
func daemon(mnt string) (string, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return "", err
	}
	for _, p := range lines {
		b, err := os.ReadFile(p)
		exe, _ := os.Readlink(filepath.Join(filepath.Dir(p), "exe"))
		if err == nil && filepath.Base(exe) == "backupfs" && strings.Contains(string(b), mnt) {
			return filepath.Base(filepath.Dir(p)), nil
		}
	}
	return "", errors.New("the daemon is not to be found")
}

// memory compares what the daemon holds with the limit, pages of the index that it
// maps included; what is its own is shown apart.
func (b *bench) memory(after, pid string) error {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return err
	}
	kib := map[string]float64{}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
			n, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return err
			}
			kib[strings.TrimSuffix(f[0], ":")] = n
		}
	}
	b.limit("  resident after "+after, kib["VmRSS"]/1024, limitMountMiB, "MiB")
	figure("  of it mapped files", kib["RssFile"]/1024, "MiB")
	figure("  of it its own (anonymous)", (kib["RssAnon"]+kib["RssShmem"])/1024, "MiB")
	return nil
}

func (b *bench) second() error {
	for i := range changes {
		if err := b.change(i); err != nil {
			return err
		}
	}
	watch, err := watchRename(filepath.Join(b.repo(), "log"), filepath.Join(b.repo(), "index"))
	if err != nil {
		return err
	}
	if err := b.create("second"); err != nil {
		return err
	}
	took, err := watch()
	if err != nil {
		return err
	}
	records, err := filepath.Glob(filepath.Join(b.repo(), "log", "*"))
	if err != nil || len(records) != 2 {
		return fmt.Errorf("%d log records, want 2: %w", len(records), err)
	}
	info, err := os.Stat(records[1])
	if err != nil {
		return err
	}
	b.limit(fmt.Sprintf("log record of %d changes", changes), float64(info.Size())/1024, limitRecordKiB, "KiB")
	b.limit("from the log record to its published index", took.Seconds(), limitIndex.Seconds(), "s")
	_, _, err = b.mkbackup("check", b.repo())
	return err
}

// change makes one of the changes: most contents, some modes, deletions and new files.
func (b *bench) change(i int) error {
	p := b.file(i*dirs/changes, i%filesPerDir)
	switch i % 10 {
	case 7:
		return os.Chmod(p, 0o600)
	case 8:
		return os.Remove(p)
	case 9:
		return os.WriteFile(p+"-new", []byte(fmt.Sprint("new ", i)), 0o644)
	}
	return os.WriteFile(p, []byte(fmt.Sprint("changed ", i)), 0o644)
}

// watchRename starts to watch two directories for something that appears in
// them. The function that it returns gives the time from the first that
// appeared in one to the last that appeared in the other.
func watchRename(first, then string) (func() (time.Duration, error), error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	const events = unix.IN_MOVED_TO | unix.IN_CREATE
	if _, err = unix.InotifyAddWatch(fd, first, events); err != nil {
		return nil, fmt.Errorf("watch %s: %w", first, err)
	}
	last, err := unix.InotifyAddWatch(fd, then, events)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", then, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	var mutex sync.Mutex
	var from, to time.Time
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := f.Read(buffer)
			if err != nil {
				return // closed
			}
			mutex.Lock()
			for now, rest := time.Now(), buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
				watch, length := int(binary.NativeEndian.Uint32(rest)), int(binary.NativeEndian.Uint32(rest[12:]))
				if watch == last {
					to = now
				} else if from.IsZero() {
					from = now
				}
				rest = rest[unix.SizeofInotifyEvent+length:]
			}
			mutex.Unlock()
		}
	}()
	return func() (time.Duration, error) {
		defer f.Close()
		time.Sleep(100 * time.Millisecond) // the last events may still be on their way
		mutex.Lock()
		defer mutex.Unlock()
		if from.IsZero() || to.Before(from) {
			return 0, io.ErrUnexpectedEOF
		}
		return to.Sub(from), nil
	}, nil
}
