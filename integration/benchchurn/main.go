// Command benchchurn replays histories: it backs up every step of one, forgets by
// rules and compacts every week, with the placement of hot and cold contents and
// without, and does the same with restic. It prints what was written, what a
// compaction copied for each byte that it freed, and how large the repository is.
//
// It calls the engine itself, since the programs have no switch to misplace
// contents, and takes a quarter of an hour for all histories.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
)

func main() {
	only := flag.String("only", "", "names of the histories to replay, separated by commas: server, git, releases; default: all")
	module := flag.String("module", "google.golang.org/grpc", "Go module whose releases are replayed")
	steps := flag.Int("steps", 365, "replay at most so many steps of each history")
	scratch := flag.String("dir", "", "directory to work in; default: a new one in /dev/shm")
	restic := flag.Bool("restic", true, "compare with restic")
	flag.Parse()
	if err := run(*only, *module, *steps, *scratch, *restic); err != nil {
		fmt.Fprintln(os.Stderr, "benchchurn:", err)
		os.Exit(1)
	}
}

// history is something that can be replayed: the tree at dir goes through steps.
type history interface {
	name() string
	steps() int
	time(step int) time.Time
	apply(dir string, step int) error
}

func run(only, module string, steps int, scratch string, withRestic bool) error {
	if scratch == "" {
		var err error
		if scratch, err = os.MkdirTemp("/dev/shm", "benchchurn-"); err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "history\ttool\tsteps\twritten MiB\tof it copied\tfreed MiB\tcopied / freed\tsize MiB\tdead before compaction, mean\tfiles")
	for _, open := range []struct {
		name string
		make func() (history, error)
	}{
		{"server", func() (history, error) { return newServer(), nil }},
		{"git", func() (history, error) { return newCommits(".", 300) }},
		{"releases", func() (history, error) { return newReleases(module) }},
	} {
		if only != "" && !strings.Contains(","+only+",", ","+open.name+",") {
			continue
		}
		tools := []func(string) (tool, error){newBackupfs(false), newBackupfs(true)}
		if withRestic {
			tools = append(tools, newRestic)
		}
		for i, makeTool := range tools {
			h, err := open.make()
			if err != nil {
				return err
			}
			dir := filepath.Join(scratch, fmt.Sprint(open.name, i))
			r, err := replay(h, steps, dir, makeTool)
			if err != nil {
				return fmt.Errorf("%s: %w", h.name(), err)
			}
			r.print(table, h)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return table.Flush()
}

// tool makes backups into a repository.
type tool interface {
	name() string
	backup(src string, at time.Time) error
	prune() error           // by keepDaily and so on, and gives the space back
	repository() string     // directory
	dead() (float64, error) // share of the stored bytes that nothing needs; negative where the tool cannot tell
}

const (
	keepDaily   = 7
	keepWeekly  = 4
	keepMonthly = 12
	pruneEvery  = 7 // steps
	maxDead     = 0.10
)

// result is what a replay found.
type result struct {
	tool           string
	steps          int
	written        int64 // bytes of all files ever made in the repository
	copied, freed  int64 // bytes made and net bytes freed by prunes
	size           int64 // at the end
	files          int
	dead           float64 // mean share before a prune
	deadKnown      bool
	backups, prune time.Duration
}

func replay(h history, steps int, dir string, makeTool func(string) (tool, error)) (result, error) {
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		return result{}, err
	}
	t, err := makeTool(dir)
	if err != nil {
		return result{}, err
	}
	r := result{tool: t.name(), steps: min(steps, h.steps())}
	seen, prunes := map[string]int64{}, 0
	for step := range r.steps {
		if err := h.apply(src, step); err != nil {
			return r, err
		}
		if err := stamp(src, h.time(step)); err != nil {
			return r, err
		}
		began := time.Now()
		if err := t.backup(src, h.time(step)); err != nil {
			return r, err
		}
		r.backups += time.Since(began)
		made, _, err := account(t.repository(), seen)
		if err != nil {
			return r, err
		}
		r.written += made
		if step%pruneEvery != pruneEvery-1 {
			continue
		}
		share, err := t.dead()
		if err != nil {
			return r, err
		}
		began = time.Now()
		if err := t.prune(); err != nil {
			return r, err
		}
		r.prune += time.Since(began)
		made, gone, err := account(t.repository(), seen)
		if err != nil {
			return r, err
		}
		r.written += made
		r.copied += made
		r.freed += gone - made
		r.dead, r.deadKnown = r.dead+share, share >= 0
		prunes++
	}
	for _, bytes := range seen {
		r.size += bytes
	}
	r.files = len(seen)
	r.dead /= float64(max(prunes, 1))
	return r, nil
}

// stamp gives every file that a step has changed the time of the step: what the
// kernel gave it is the time of the replay.
func stamp(dir string, at time.Time) error {
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.ModTime().Nanosecond() == stamped {
			return err
		}
		return os.Chtimes(path, at, at.Truncate(time.Second).Add(stamped))
	})
}

// stamped marks a time that stamp gave: the kernel hardly ever gives it.
const stamped = 123456789

// account compares the files of a repository with those seen before: files never
// change. What only helps to read is left out: indexes, caches and locks.
func account(dir string, seen map[string]int64) (made, gone int64, err error) {
	now := map[string]int64{}
	err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel, _ := filepath.Rel(dir, path); rel == "index" && isOurs(dir) || rel == "locks" {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err == nil {
			now[path] = info.Size()
		}
		return err
	})
	for path, bytes := range now {
		if _, old := seen[path]; !old {
			made += bytes
			seen[path] = bytes
		}
	}
	for path, bytes := range seen {
		if _, there := now[path]; !there {
			gone += bytes
			delete(seen, path)
		}
	}
	return made, gone, err
}

func isOurs(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "repo.json"))
	return err == nil
}

func (r result) print(table *tabwriter.Writer, h history) {
	dead := "-"
	if r.deadKnown {
		dead = fmt.Sprintf("%.1f%%", 100*r.dead)
	}
	const mib = 1 << 20
	fmt.Fprintf(table, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.2f\t%.1f\t%s\t%d\n", h.name(), r.tool, r.steps, float64(r.written)/mib,
		float64(r.copied)/mib, float64(r.freed)/mib, float64(r.copied)/float64(r.freed), float64(r.size)/mib, dead, r.files)
	fmt.Fprintf(os.Stderr, "%s, %s: backups %v, prunes %v\n", h.name(), r.tool, r.backups.Round(time.Second), r.prune.Round(time.Second))
}

// ours is backupfs.
type ours struct {
	repo     *archive.Repository
	unplaced bool
}

func newBackupfs(unplaced bool) func(string) (tool, error) {
	return func(dir string) (tool, error) {
		repo, err := archive.Init(filepath.Join(dir, "repo"), archive.InitOptions{})
		return &ours{repo, unplaced}, err
	}
}

func (o *ours) name() string {
	if o.unplaced {
		return "backupfs, unplaced"
	}
	return "backupfs"
}

func (o *ours) repository() string { return o.repo.Dir() }

func (o *ours) backup(src string, at time.Time) error {
	_, err := backup.Create(context.Background(), o.repo, backup.CreateOptions{Root: src, Paths: []string{"/"}, Time: at, Unplaced: o.unplaced, Program: "benchchurn"})
	return err
}

func (o *ours) prune() error {
	_, err := backup.Forget(context.Background(), o.repo, backup.ForgetOptions{Zone: time.UTC, Program: "benchchurn",
		Rules: backup.Rules{Daily: keepDaily, Weekly: keepWeekly, Monthly: keepMonthly}})
	if err != nil {
		return err
	}
	_, err = backup.Compact(context.Background(), o.repo, backup.CompactOptions{MaxDead: maxDead, Program: "benchchurn"})
	return err
}

func (o *ours) dead() (float64, error) {
	s, err := backup.Compact(context.Background(), o.repo, backup.CompactOptions{MaxDead: maxDead, DryRun: true})
	return float64(s.DeadBytes) / float64(max(s.StoredBytes, 1)), err
}

// restic is Debian's restic.
type restic struct{ dir string }

func newRestic(dir string) (tool, error) {
	r := &restic{filepath.Join(dir, "repo")}
	return r, r.run("init")
}

func (r *restic) name() string { return "restic" }

func (r *restic) repository() string { return r.dir }

func (r *restic) run(args ...string) error {
	_, err := outputWith([]string{"RESTIC_PASSWORD=churn"}, "restic", append([]string{"--quiet", "--no-cache", "-r", r.dir}, args...)...)
	return err
}

func (r *restic) backup(src string, at time.Time) error {
	return r.run("backup", "--time", at.Format(time.DateTime), src)
}

func (r *restic) prune() error {
	return r.run("forget", "--prune", fmt.Sprint("--keep-daily=", keepDaily), fmt.Sprint("--keep-weekly=", keepWeekly),
		fmt.Sprint("--keep-monthly=", keepMonthly), fmt.Sprint("--max-unused=", 100*maxDead, "%"))
}

func (r *restic) dead() (float64, error) { return -1, nil }
