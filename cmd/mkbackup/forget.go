package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
)

type forgetFlags struct {
	backup.ForgetOptions
	source  string
	within  string
	metrics metricsFile
	json    bool
	quiet   bool
}

func forgetCommand() *cobra.Command {
	var f forgetFlags
	cmd := &cobra.Command{
		Use:   "forget REPO [GEN...]",
		Short: "Drop generations, by name or by rule",
		Long: `Drop generations: those that are named, or, of every source, those that no rule
keeps. Their space comes back with "mkbackup compact".

GEN is what "mkbackup ls" takes: a name or number, a date (the last generation of that
day), "latest" or "latest~2"; "web1/latest" is one of the source web1.

A rule keeps the last generation of each of the N newest hours, days, weeks (from
Monday), months or years that have any, in local time; --keep-last the N newest
ones; --keep-within all that are at most so long before the source's latest:
14d, 36h, 1y6m (m are months). A generation that any rule keeps is kept. The
newest generation of a source is never dropped by a rule; by its name it is.

Exit codes: 0 done, also when nothing was to drop; 1 failed, nothing dropped
unless the message says so; 2 wrong usage; 129, 130, 143 interrupted, nothing dropped.`,
		Example: `  mkbackup forget /srv/backup --keep-daily 14 --keep-weekly 8 --keep-monthly 24 --dry-run
  mkbackup forget /srv/backup 2026-11-22T03-00-00Z web1/latest~3`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeArgs(cli.Generations),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(cmd.Flags(), args[1:]); err != nil {
				return err
			}
			return f.metrics.record(cmd.Context(), outcome{command: "forget", repository: args[0], source: f.source}, func(o *outcome) error {
				return forget(cmd, args[0], f, o)
			})
		},
	}
	flags := cmd.Flags()
	r := &f.Rules
	flags.IntVar(&r.Last, "keep-last", 0, "keep the `N` newest generations of a source")
	flags.IntVar(&r.Hourly, "keep-hourly", 0, "keep the last one of each of `N` hours")
	flags.IntVar(&r.Daily, "keep-daily", 0, "keep the last one of each of `N` days")
	flags.IntVar(&r.Weekly, "keep-weekly", 0, "keep the last one of each of `N` weeks (ISO 8601)")
	flags.IntVar(&r.Monthly, "keep-monthly", 0, "keep the last one of each of `N` months")
	flags.IntVar(&r.Yearly, "keep-yearly", 0, "keep the last one of each of `N` years")
	flags.StringVar(&f.within, "keep-within", "", "keep all within this `TIME` before the source's latest: 14d, 36h, 1y6m")
	flags.StringVar(&f.source, "source", "", "apply the rules to the source `NAME` only")
	flags.BoolVar(&f.DryRun, "dry-run", false, "say what would be dropped, and which rule keeps what; change nothing")
	addMetricsFlag(flags, &f.metrics)
	flags.BoolVar(&f.json, "json", false, "print the result in JSON, as the last line")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print only problems")
	return cmd
}

func forget(cmd *cobra.Command, dir string, f forgetFlags, o *outcome) error {
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	result, err := backup.Forget(cmd.Context(), repo, f.ForgetOptions)
	if err != nil {
		return err
	}
	o.detail("last_success_forgotten_generations", int64(len(result.Dropped())))
	o.measure(cmd.Context(), repo, true)
	switch {
	case f.json:
		return printed(forgetJSON(cmd.OutOrStdout(), result, f.DryRun), f.DryRun)
	case f.quiet:
		return nil
	}
	return printed(forgetTables(cmd.OutOrStdout(), result, f.DryRun), f.DryRun)
}

// complete checks the flags and fills the options that are not flags.
func (f *forgetFlags) complete(flags *pflag.FlagSet, names []string) error {
	f.Names = names
	f.Program = "mkbackup " + version
	if !f.quiet {
		f.Note = note
	}
	if flags.Changed("keep-within") {
		var err error
		if f.Rules.Within, err = backup.ParseSpan(f.within); err != nil {
			return &exitError{exitUsage, fmt.Sprintf("--keep-within: %v", err)}
		}
	}
	var bad error
	flags.Visit(func(flag *pflag.Flag) {
		if n, err := flags.GetInt(flag.Name); err == nil && n <= 0 {
			bad = &exitError{exitUsage, fmt.Sprintf("bad --%s %d: it keeps at least 1; leave the flag out for no such rule", flag.Name, n)}
		}
	})
	if bad != nil {
		return bad
	}
	if err := f.metrics.refuseDryRun(f.DryRun); err != nil {
		return err
	}
	if flags.Changed("source") {
		f.Source = &f.source
	}
	switch {
	case len(names) == 0 && f.Rules.None():
		return &exitError{exitUsage, "nothing says what to drop: name generations, or give rules as --keep-daily 7"}
	case len(names) > 0 && !f.Rules.None():
		return &exitError{exitUsage, "generations and --keep rules are both given: drop them one after the other"}
	case len(names) > 0 && f.Source != nil:
		return &exitError{exitUsage, "--source goes with --keep rules; a generation of a source is named as SOURCE/GEN"}
	}
	return nil
}

// forgotten is a generation as forget --json prints it.
type forgotten struct {
	Generation string    `json:"generation"`
	Number     uint64    `json:"number"`
	Source     string    `json:"source"`
	Time       time.Time `json:"time"`
	Keep       bool      `json:"keep"`
	Reasons    []string  `json:"reasons"`
}

func forgetJSON(w io.Writer, r backup.Forgotten, dryRun bool) error {
	out := struct {
		DryRun      bool        `json:"dry_run"`
		Dropped     int         `json:"dropped"`
		Generations []forgotten `json:"generations"`
	}{DryRun: dryRun, Dropped: len(r.Dropped()), Generations: []forgotten{}}
	for _, d := range r.Decisions {
		reasons := append([]string{}, d.Reasons...)
		out.Generations = append(out.Generations, forgotten{d.Name, d.Number, d.Source, d.Time, d.Keep, reasons})
	}
	return json.NewEncoder(w).Encode(out)
}

// forgetTables prints a table for each source, and what was done.
func forgetTables(w io.Writer, r backup.Forgotten, dryRun bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, d := range r.Decisions {
		if i == 0 || d.Source != r.Decisions[i-1].Source {
			if i > 0 {
				_, _ = fmt.Fprintln(table)
			}
			_, _ = fmt.Fprintf(table, "%s\tGENERATION\tKEPT BY\n", sourceTitle(d.Source))
		}
		what := "drop"
		if d.Keep {
			what = "keep"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", what, d.Name, strings.Join(d.Reasons, ", "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	dropped := len(r.Dropped())
	text := plural(int64(dropped), "generation") + " dropped; `mkbackup compact` reclaims the space"
	switch {
	case dropped == 0:
		text = "nothing to drop"
	case dryRun:
		text = "dry run: " + plural(int64(dropped), "generation") + " would be dropped"
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func sourceTitle(source string) string {
	if source == "" {
		return "unnamed source"
	}
	return "source " + source
}
