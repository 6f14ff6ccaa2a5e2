// Command benchchurn replays histories: it backs up every step of one, forgets by
// rules and compacts every week, with the placement of hot and cold contents and
// without, and does the same with restic. It prints what was written, what a
// compaction copied for each byte that it freed, how large the repository is, and
// the dead share month by month.
//
// It calls the engine itself, since the programs have no switch to misplace
// contents, and takes a quarter of an hour for all histories on an idle machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/integration/internal/churn"
)

func main() {
	only := flag.String("only", "", "names of the histories to replay, separated by commas: server, git, releases; default: all")
	repository := flag.String("repository", ".", "git repository whose last 300 commits are replayed")
	module := flag.String("module", "google.golang.org/grpc", "Go module whose releases are replayed")
	steps := flag.Int("steps", 365, "replay at most so many steps of each history")
	scratch := flag.String("dir", "", "directory to work in; default: a new one in /dev/shm")
	with := flag.String("tools", "", "names of the tools, separated by commas: backupfs, unplaced, restic; default: all")
	flag.Parse()
	if err := run(*only, *with, *repository, *module, *steps, *scratch); err != nil {
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

func run(only, with, repository, module string, steps int, scratch string) error {
	if scratch == "" {
		var err error
		if scratch, err = os.MkdirTemp("/dev/shm", "benchchurn-"); err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
	}
	tools := []struct {
		name string
		make func(dir string) (tool, error)
	}{{"backupfs", newBackupfs(false)}, {"unplaced", newBackupfs(true)}, {"restic", newRestic}}
	var results []result
	for _, open := range []struct {
		name string
		make func() (history, error)
	}{
		{"server", func() (history, error) { return server{churn.NewServer(6000, 1024)}, nil }},
		{"git", func() (history, error) { return newCommits(repository, 300) }},
		{"releases", func() (history, error) { return newReleases(module) }},
	} {
		for _, t := range tools {
			if !named(only, open.name) || !named(with, t.name) {
				continue
			}
			h, err := open.make()
			if err != nil {
				return err
			}
			dir := filepath.Join(scratch, open.name+"-"+t.name)
			r, err := replay(h, steps, dir, t.make)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", h.name(), t.name, err)
			}
			r.history, r.tool = h.name(), t.name
			results = append(results, r)
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	if len(results) == 0 {
		return fmt.Errorf("no history is named %q, or no tool %q", only, with)
	}
	return printResults(results)
}

// named reports whether a list of names has one; an empty list has all.
func named(list, name string) bool { return list == "" || strings.Contains(","+list+",", ","+name+",") }

// tool makes backups into a repository.
type tool interface {
	backup(src string, at time.Time) error
	prune() (dead, error) // by keepDaily and so on, and gives the space back
	repository() string   // directory
}

// dead tells the share of the stored bytes that nothing needs, before and after a
// prune; negative where a tool does not say.
type dead struct{ before, after float64 }

const (
	keepDaily   = 7
	keepWeekly  = 4
	keepMonthly = 12
	pruneEvery  = 7 // steps
	maxDead     = 0.10
	targetRatio = 0.50 // of bytes copied with the placement to those without
)

// result is what a replay found.
type result struct {
	history, tool  string
	steps          int
	written        int64 // bytes of all files ever made in the repository
	copied, freed  int64 // bytes made and net bytes freed by prunes
	size           int64 // at the end
	files          int
	dead           []dead // of each prune
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
	r := result{steps: min(steps, h.steps())}
	seen := map[string]int64{}
	for step := range r.steps {
		if err := h.apply(src, step); err != nil {
			return r, err
		}
		if err := churn.Stamp(src, h.time(step)); err != nil {
			return r, err
		}
		if err := r.backup(t, src, h.time(step), seen); err != nil {
			return r, err
		}
		if step%pruneEvery == pruneEvery-1 {
			if err := r.pruned(t, seen); err != nil {
				return r, err
			}
		}
	}
	for _, bytes := range seen {
		r.size += bytes
	}
	r.files = len(seen)
	return r, nil
}

func (r *result) backup(t tool, src string, at time.Time, seen map[string]int64) error {
	began := time.Now()
	if err := t.backup(src, at); err != nil {
		return err
	}
	r.backups += time.Since(began)
	made, _, err := account(t.repository(), seen)
	r.written += made
	return err
}

func (r *result) pruned(t tool, seen map[string]int64) error {
	began := time.Now()
	share, err := t.prune()
	if err != nil {
		return err
	}
	r.prune += time.Since(began)
	r.dead = append(r.dead, share)
	made, gone, err := account(t.repository(), seen)
	r.written += made
	r.copied += made
	r.freed += gone - made
	return err
}

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

// printResults prints a line of totals for each replay, and the dead share before
// and after some of its prunes.
func printResults(results []result) error {
	const mib = 1 << 20
	var text strings.Builder
	text.WriteString("history\ttool\tsteps\twritten MiB\tcopied MiB\tfreed MiB\tcopied / freed\tsize MiB\tfiles\tbackups s\tprunes s\n")
	for _, r := range results {
		fmt.Fprintf(&text, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.2f\t%.1f\t%d\t%.0f\t%.0f\n", r.history, r.tool, r.steps, float64(r.written)/mib, float64(r.copied)/mib,
			float64(r.freed)/mib, float64(r.copied)/float64(r.freed), float64(r.size)/mib, r.files, r.backups.Seconds(), r.prune.Seconds())
	}
	copied := map[string]int64{}
	for _, r := range results {
		copied[r.history+" "+r.tool] = r.copied
	}
	text.WriteByte('\n')
	for _, r := range results {
		if without := copied[r.history+" unplaced"]; r.tool == "backupfs" && without > 0 {
			ratio := float64(r.copied) / float64(without)
			verdict := "met"
			if ratio > targetRatio {
				verdict = "MISSED"
			}
			fmt.Fprintf(&text, "%s: with the placement, compaction copies %.2f of what it copies without; target ≤ %.2f: %s\n", r.history, ratio, targetRatio, verdict)
		}
	}
	text.WriteString("\ndead share before > after every fourth compaction, %\n")
	for _, r := range results {
		if len(r.dead) == 0 || r.dead[0].before < 0 {
			continue
		}
		fmt.Fprintf(&text, "%s\t%s\t", r.history, r.tool)
		for i := 3; i < len(r.dead); i += 4 {
			fmt.Fprintf(&text, "%.0f>%.0f ", 100*r.dead[i].before, 100*r.dead[i].after)
		}
		text.WriteByte('\n')
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(table, text.String()); err != nil {
		return err
	}
	return table.Flush()
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

func (o *ours) repository() string { return o.repo.Dir() }

func (o *ours) backup(src string, at time.Time) error {
	_, err := backup.Create(context.Background(), o.repo, backup.CreateOptions{Root: src, Paths: []string{"/"}, Time: at, Unplaced: o.unplaced, Program: "benchchurn"})
	return err
}

func (o *ours) prune() (dead, error) {
	_, err := backup.Forget(context.Background(), o.repo, backup.ForgetOptions{Zone: time.UTC, Program: "benchchurn",
		Rules: backup.Rules{Daily: keepDaily, Weekly: keepWeekly, Monthly: keepMonthly}})
	if err != nil {
		return dead{}, err
	}
	s, err := backup.Compact(context.Background(), o.repo, backup.CompactOptions{MaxDead: maxDead, Unplaced: o.unplaced, Program: "benchchurn"})
	after := s.StoredBytes - s.RemovedBytes + s.NewBytes
	return dead{float64(s.DeadBytes) / float64(s.StoredBytes), float64(s.DeadAfter) / float64(after)}, err
}

// restic is Debian's restic.
type restic struct{ dir string }

func newRestic(dir string) (tool, error) {
	r := &restic{filepath.Join(dir, "repo")}
	return r, r.run("init")
}

func (r *restic) repository() string { return r.dir }

func (r *restic) run(args ...string) error {
	_, err := outputWith([]string{"RESTIC_PASSWORD=churn"}, "restic", append([]string{"--quiet", "--no-cache", "-r", r.dir}, args...)...)
	return err
}

func (r *restic) backup(src string, at time.Time) error {
	return r.run("backup", "--time", at.Format(time.DateTime), src)
}

func (r *restic) prune() (dead, error) {
	return dead{-1, -1}, r.run("forget", "--prune", fmt.Sprint("--keep-daily=", keepDaily), fmt.Sprint("--keep-weekly=", keepWeekly),
		fmt.Sprint("--keep-monthly=", keepMonthly), fmt.Sprint("--max-unused=", 100*maxDead, "%"))
}
