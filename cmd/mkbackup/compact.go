package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/size"
)

type compactFlags struct {
	backup.CompactOptions
	maxDead  string
	limit    string
	gentle   gentle
	metrics  metricsFile
	progress progressFlags
}

func compactCommand() *cobra.Command {
	f := compactFlags{maxDead: "10%"}
	cmd := &cobra.Command{
		Use:   "compact REPO",
		Short: "Reclaim the space of what no generation needs",
		Long: `Reclaim the space of data that no generation needs any more: what is needed of
the parts with much dead data is copied into new parts, and verified on the way;
then the old ones are deleted. Backups and mounts go on meanwhile. Where a backup
is under way, the old parts are deleted when it has ended, by itself.

The log is made shorter, too, when much of it is about generations that were dropped:
one record then stands for all before it, which are deleted.

It can be interrupted at any time: what was done stays done.

Exit codes: 0 done, also when there was nothing to do; 1 failed;
2 wrong usage; 4 done, but parts or log records are damaged, named above, and were kept;
129, 130, 143 interrupted.`,
		Example: `  mkbackup compact /srv/backup --dry-run
  mkbackup compact /srv/backup --time-limit 1h
  mkbackup compact /srv/backup --max-dead 0`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(cmd.Flags().Changed("time-limit")); err != nil {
				return err
			}
			return f.metrics.record(cmd.Context(), outcome{command: "compact", repository: args[0]}, func(o *outcome) error {
				return compact(cmd, args[0], f, o)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.maxDead, "max-dead", f.maxDead, "how much of the stored bytes may stay dead, in `PERCENT`; 0 reclaims all")
	flags.StringVar(&f.limit, "limit", "", "begin nothing new after copying so much: a `SIZE` as 10GiB;\n"+size.Units)
	flags.DurationVar(&f.TimeLimit, "time-limit", 0, "begin nothing new after this `TIME`, as 90m or 2h")
	flags.BoolVar(&f.DryRun, "dry-run", false, "say what would be freed; change nothing")
	addGentleFlags(flags, &f.gentle)
	addMetricsFlag(flags, &f.metrics)
	addJSONProgressFlags(flags, &f.progress)
	flags.BoolVarP(&f.progress.quiet, "quiet", "q", false, "print only problems")
	return cmd
}

func compact(cmd *cobra.Command, dir string, f compactFlags, o *outcome) error {
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	if err := f.gentle.apply(); err != nil {
		return err
	}
	progress := newProgress(f.progress, compactState(f.Progress))
	f.Problem = func(err error) {
		progress.warn(fmt.Sprintf("damage: %v", err), message{Event: "damage", Text: err.Error()})
	}
	if !f.progress.quiet {
		f.Note = progress.note
	}
	progress.start()
	summary, err := backup.Compact(cmd.Context(), repo, f.CompactOptions)
	progress.stop()
	if err != nil {
		return err
	}
	o.errors = int64(summary.Damaged + summary.DamagedRecords)
	o.detail("last_success_stored_bytes", summary.NewBytes)
	o.detail("last_success_freed_bytes", summary.RemovedBytes-summary.NewBytes)
	o.measure(cmd.Context(), repo, true)
	if err := printed(f.print(cmd.OutOrStdout(), progress.summaryEvent(), summary), f.DryRun); err != nil {
		return err
	}
	return compactDamage(summary)
}

// compactDamage returns the error that ends a run which found damage.
func compactDamage(s backup.CompactSummary) error {
	var problems []string
	if s.Damaged > 0 {
		problems = append(problems, plural(int64(s.Damaged), "damaged part")+", named above, left as they are: see `mkbackup check`")
	}
	if s.DamagedRecords > 0 {
		problems = append(problems, plural(int64(s.DamagedRecords), "damaged log record")+", named above: the log was not made shorter, `mkbackup check --repair` writes it again")
	}
	if len(problems) == 0 {
		return nil
	}
	return &exitError{exitDamage, strings.Join(problems, "; ")}
}

// complete checks the flags and fills the options that are not flags.
func (f *compactFlags) complete(timeLimited bool) error {
	f.Program = "mkbackup " + version
	f.Progress = new(backup.CompactProgress)
	percent, err := strconv.ParseFloat(strings.TrimSuffix(f.maxDead, "%"), 64)
	if err != nil || !(percent >= 0 && percent <= 100) {
		return &exitError{exitUsage, fmt.Sprintf("bad --max-dead %q: give it as 10%%, from 0 to 100", f.maxDead)}
	}
	f.MaxDead = percent / 100
	if f.limit != "" {
		if f.Limit, err = parseLimit(f.limit); err != nil {
			return &exitError{exitUsage, fmt.Sprintf("bad --limit %v", err)}
		}
	}
	if timeLimited && f.TimeLimit <= 0 {
		return &exitError{exitUsage, fmt.Sprintf("bad --time-limit %s: give it as 90m or 2h", f.TimeLimit)}
	}
	if err := f.metrics.refuseDryRun(f.DryRun); err != nil {
		return err
	}
	return f.progress.check()
}

// parseLimit parses how much may be copied: more than 0, at most 4 EiB.
func parseLimit(text string) (int64, error) {
	limit, err := size.Parse(text)
	if err != nil || limit == 0 || limit > 1<<62 {
		return 0, fmt.Errorf("%q: give a number with a unit, as 10GiB", text)
	}
	return int64(limit), nil
}

func (f *compactFlags) print(w io.Writer, event string, s backup.CompactSummary) error {
	if f.progress.json {
		return json.NewEncoder(w).Encode(struct {
			Event string `json:"event,omitempty"`
			backup.CompactSummary
		}{event, s})
	}
	if f.progress.quiet {
		return nil
	}
	_, err := fmt.Fprintln(w, strings.Join(f.words(s), "\n"))
	return err
}

// words says what was done.
func (f *compactFlags) words(s backup.CompactSummary) (lines []string) {
	share := 0.0
	if s.StoredBytes > 0 {
		share = 100 * float64(s.DeadBytes) / float64(s.StoredBytes)
	}
	lines = append(lines, fmt.Sprintf("%s of %s: %s dead (%.1f%%)", plural(int64(s.Parts), "part"), bytesOf(s.StoredBytes), bytesOf(s.DeadBytes), share))
	switch {
	case s.Removed == 0 && s.Limited:
		lines = append(lines, "nothing done before the limit")
	case s.Removed == 0:
		lines = append(lines, fmt.Sprintf("nothing to do: up to %s may stay dead", f.maxDead))
	case f.DryRun:
		lines = append(lines, fmt.Sprintf("dry run: %s would be removed (of %d nothing is needed), %s copied, %s freed; %s would stay dead",
			plural(int64(s.Removed), "part"), s.WholeParts, bytesOf(s.NewBytes), bytesOf(s.RemovedBytes-s.NewBytes), bytesOf(s.DeadAfter)))
	default:
		lines = append(lines, fmt.Sprintf("%s of %s removed (of %d nothing was needed), %s of %s written, %s of them unchanged; %s freed, %s stays dead, %s",
			plural(int64(s.Removed), "part"), bytesOf(s.RemovedBytes), s.WholeParts, plural(int64(s.New), "new part"), bytesOf(s.NewBytes),
			bytesOf(s.VerbatimBytes), bytesOf(s.RemovedBytes-s.NewBytes), bytesOf(s.DeadAfter), took(s.Seconds)))
	}
	if s.Limited && s.Removed > 0 {
		lines = append(lines, "ended early by a limit: the next run goes on")
	}
	if s.Swept.Parts > 0 {
		lines = append(lines, fmt.Sprintf("%s deleted: %s", plural(int64(s.Swept.Parts), "file"), bytesOf(s.Swept.StoredBytes)))
	}
	if s.Checkpoint > 0 {
		lines = append(lines, fmt.Sprintf("the log begins with record %d now: %s deleted", s.Checkpoint, plural(int64(s.Records), "log record")))
	}
	if s.LaterParts > 0 {
		lines = append(lines, fmt.Sprintf("%s, %s, will be deleted when the run under way has ended", plural(int64(s.LaterParts), "part"), bytesOf(s.LaterBytes)))
	}
	return lines
}
