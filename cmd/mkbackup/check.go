package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

type checkFlags struct {
	backup.CheckOptions
	subset   string
	length   uint64 // of the subsets, as subsetLength returns it
	gentle   gentle
	metrics  metricsFile
	progress progressFlags
	verbose  bool
}

func checkCommand() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check REPO",
		Short: "Verify that a repository is whole",
		Long: `Verify the structure of a repository: that every log record is there, whole and
follows the one before; that the index is sound and says the same generations
and parts as the log; that every part is there with its size and its table of
digests. That finds what is missing, truncated or replaced. A byte that rotted
inside a part is only found by --read-data: it reads and decodes all of every
part, compares each content with its hash, and the index with one that is derived
from the log anew.

For each damaged part it says where, and which files of which generations cannot
be read because of it (--json all of them); every other file can. Nothing is changed, unless --repair
says so, and no byte of data ever.

When there is damage: remove nothing, and run no compact, forget or reindex. If the
disk is dying, copy the repository to another one first. Is there another copy of
the repository? Put its file of the same name in the place of a part or a log record
that is damaged or missing. If there is none, create stores what lay in a missing part
again, where the source still has it. --repair mends an index, a log of which an index
still has all, and a repo.json that is gone. What is not named as damaged can be read: list and backupfs show it, cp restores
it; of a file that is hit, "mkbackup history" and .versions in a mount name other
versions, which may be whole.
The page "Check your backups" (checking.md) has more, case by case.

Exit codes: 0 all is well; 1 it could not be checked, or not all of it, or there are
parts but no log; 2 wrong usage; 4 there is damage, a repo.json that is gone or damaged included; 129, 130, 143
interrupted.`,
		Example: `  mkbackup check /srv/backup
  mkbackup check /srv/backup --read-data-subset 5%
  mkbackup check /srv/backup --against / --source web1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(); err != nil {
				return err
			}
			return f.metrics.record(cmd.Context(), outcome{command: "check", repository: args[0], source: f.Source}, func(o *outcome) error {
				return check(cmd, args[0], f, o)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.ReadData, "read-data", false, "read, decode and verify every part")
	flags.StringVar(&f.subset, "read-data-subset", "", "the same of `N%` of the parts, the next ones each time")
	flags.StringVar(&f.Against, "against", "", "compare the newest generation with `DIR`, contents included; DIR is what --root was, or /")
	flags.StringVar(&f.Source, "source", "", "`NAME` of the source that --against compares")
	flags.BoolVar(&f.Repair, "repair", false, "rebuild the index where it is damaged or missing; write the log again where only the index has all of it; write a repo.json that is missing")
	f.Program = "mkbackup " + version
	addGentleFlags(flags, &f.gentle)
	addMetricsFlag(flags, &f.metrics)
	addJSONProgressFlags(flags, &f.progress)
	flags.BoolVarP(&f.progress.quiet, "quiet", "q", false, "print only damage")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print all files that are hit, and all that are not in the backup")
	return cmd
}

func check(cmd *cobra.Command, dir string, f checkFlags, o *outcome) error {
	if info, err := os.Stat(f.Against); f.Against != "" && err != nil {
		return fmt.Errorf("--against: %w", err)
	} else if f.Against != "" && !info.IsDir() {
		return fmt.Errorf("--against %s: not a directory", f.Against)
	}
	repo, err := archive.Open(dir)
	if f.Repair && errors.Is(err, archive.ErrNoConfig) {
		repo, err = restoreConfig(dir)
	}
	if errors.Is(err, archive.ErrBadConfig) || errors.Is(err, archive.ErrNoConfig) {
		o.errors = 1
		result := backup.CheckResult{Damages: 1, DamagedConfig: true, DamagedParts: []*backup.DamagedPart{}}
		progress := newProgress(f.progress, nil)
		progress.warn(err.Error(), message{Event: "damage", Text: err.Error()})
		if err := f.print(cmd.OutOrStdout(), progress.summaryEvent(), result, nil); err != nil {
			return err
		}
		return &exitError{exitDamage, ""}
	}
	if err != nil {
		return err
	}
	defer repo.Close()
	if err := f.gentle.apply(); err != nil {
		return err
	}
	if f.length != 0 {
		f.Subset = nextSubset(repo, f.length)
	}
	f.Progress = new(backup.CheckProgress)
	progress := newProgress(f.progress, checkState(f.Progress))
	f.report(progress)
	progress.start()
	result, err := backup.Check(cmd.Context(), repo, f.CheckOptions)
	progress.stop()
	o.errors = int64(result.Damages) + result.Differ + result.Uncompared
	o.detail("last_success_read_bytes", result.ReadBytes)
	f.printHits(os.Stderr, result.DamagedParts)
	if err != nil {
		if cmd.Context().Err() != nil {
			err = context.Cause(cmd.Context())
		}
		return f.incomplete(cmd.OutOrStdout(), progress.summaryEvent(), result, err)
	}
	if f.length != 0 && result.DataRead {
		rememberSubset(repo, f.Subset)
	}
	return f.finish(cmd.OutOrStdout(), progress.summaryEvent(), result)
}

// restoreConfig writes the repo.json of a repository that has lost it.
func restoreConfig(dir string) (*archive.Repository, error) {
	dir, err := cli.Abs(dir)
	if err != nil {
		return nil, err
	}
	id, err := index.RepositoryID(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	repo, err := archive.RestoreConfig(dir, id)
	if err != nil {
		return nil, err
	}
	from := "with the repository's id, as its index has it"
	if id == "" {
		from = "with a new id, as no index has the old one"
	}
	notef("repo.json is written again %s; the size of new parts is %s now", from, humanize.IBytes(uint64(repo.PartSize)))
	return repo, nil
}

// complete checks the flags and fills what is no flag.
func (f *checkFlags) complete() (err error) {
	if err := f.progress.check(); err != nil {
		return err
	}
	if f.Source != "" && f.Against == "" {
		return &exitError{exitUsage, "--source says what --against compares: give both"}
	}
	f.length, err = f.subsetLength()
	return err
}

// subsetLength reads --read-data-subset; 0 is no subset.
func (f *checkFlags) subsetLength() (uint64, error) {
	if f.subset == "" {
		return 0, nil
	}
	if f.ReadData {
		return 0, &exitError{exitUsage, "--read-data reads all parts, --read-data-subset some: give one of them"}
	}
	f.ReadData = true
	length, err := backup.ParsePercentage(f.subset)
	if err != nil {
		return 0, &exitError{exitUsage, "bad --read-data-subset: " + err.Error()}
	}
	return length, nil
}

func (f *checkFlags) report(p *progress) {
	f.Damage = func(text string) { p.warn("damage: "+text, message{Event: "damage", Text: text}) }
	if !f.progress.quiet {
		f.Note = p.note
	}
	f.Difference = func(d backup.Difference) {
		path := display(d.Path)
		line := path + ": " + d.What
		switch {
		case d.Kind == backup.Silent:
			p.warn("damage: "+line+", although it looks unchanged", message{"damage", path, d.What})
		case d.Kind == backup.Uncompared:
			p.warn(line, message{"problem", path, d.What})
		case d.Kind == backup.Since && !f.progress.quiet:
			p.tell("changed since: "+line, message{"changed_since", path, d.What})
		case d.Kind == backup.NotStored && f.verbose:
			p.tell(line, message{"not_stored", path, d.What})
		}
	}
}

// maxHits is how many files of one part are printed unless all are asked for.
const maxHits = 100

func (f *checkFlags) printHits(w io.Writer, parts []*backup.DamagedPart) {
	for _, p := range parts {
		if p.Unknown {
			_, _ = fmt.Fprintf(w, "mkbackup: part %s: which files are hit could not be found out\n", p.Part)
			continue
		}
		if len(p.Files) == 0 {
			_, _ = fmt.Fprintf(w, "mkbackup: part %s: no file of any generation is hit%s\n", p.Part, unhit(p))
			continue
		}
		which := fmt.Sprintf("part %s", p.Part)
		if p.Part == (archive.Digest{}) {
			which = "parts that were removed"
		}
		_, _ = fmt.Fprintf(w, "mkbackup: %s: cannot be read because of that:\n", which)
		files := p.Files
		if !f.verbose {
			files = files[:min(len(files), maxHits)]
		}
		for _, holder := range files {
			_, _ = fmt.Fprintf(w, "  %s (%s)\n", display(holder.Path), span(holder.Source, holder.Generations))
		}
		if more := len(p.Files) - len(files); more > 0 {
			_, _ = fmt.Fprintf(w, "  and %s more: -v or --json names all\n", humanize.Comma(int64(more)))
		}
	}
}

// unhit says why a damaged part hits no file, and what to do about it.
func unhit(p *backup.DamagedPart) string {
	switch {
	case p.Needless:
		return "; `mkbackup compact` removes it"
	case p.Elsewhere > 0:
		return "; what files have of it lies in another part, too"
	}
	return ""
}

// span says which generations of a source are meant.
func span(source string, gens []index.Generation) string {
	text := gens[0].Name
	if source != "" {
		text = source + "/" + text
	}
	if last := len(gens) - 1; last > 0 {
		text += fmt.Sprintf(" to %s, %d generations", gens[last].Name, last+1)
	}
	return text
}

// finish prints the result and says how it is to be judged.
func (f *checkFlags) finish(w io.Writer, event string, r backup.CheckResult) error {
	err := f.print(w, event, r, nil)
	switch {
	case r.Damaged() && f.progress.json:
		return &exitError{exitDamage, verdict(r, f.CheckOptions)}
	case r.Damaged():
		return &exitError{exitDamage, "what to do now: see \"When there is damage\" in `mkbackup check --help`"}
	case r.Uncompared > 0:
		return &exitError{exitFailed, uncompared(r) + ", named above"}
	case r.Logless():
		return &exitError{exitFailed, logless(r) + ": if there were backups, get the files of log/ from a copy of the repository; if not, run create, which uses the parts"}
	}
	return err
}

// print prints the result; unfinished is why it is not that of a whole check.
func (f *checkFlags) print(w io.Writer, event string, r backup.CheckResult, unfinished error) (err error) {
	switch {
	case f.progress.json:
		rootPaths(r.DamagedParts)
		result := struct {
			Event string `json:"event,omitempty"`
			backup.CheckResult
			Incomplete string `json:"incomplete,omitempty"`
		}{Event: event, CheckResult: r}
		if unfinished != nil {
			result.Incomplete = unfinished.Error()
		}
		return json.NewEncoder(w).Encode(result)
	case r.Damaged() || !f.progress.quiet:
		_, err = fmt.Fprintln(w, verdict(r, f.CheckOptions))
	}
	return err
}

// rootPaths gives the paths of files that are hit as all JSON has them, from the root on.
func rootPaths(parts []*backup.DamagedPart) {
	for _, p := range parts {
		for i := range p.Files {
			p.Files[i].Path = rooted(p.Files[i].Path)
		}
	}
}

// incomplete is the end of a check that could not go on, or not do all. Damage that it
// found is printed, and is what counts. Without damage there is nothing to print
// but for JSON, which says what is missing.
func (f *checkFlags) incomplete(w io.Writer, event string, r backup.CheckResult, err error) error {
	if r.Damaged() || f.progress.json {
		_ = f.print(w, event, r, err) // err, or the damage, counts more than an error of that
	}
	if !r.Damaged() {
		return err
	}
	text := fmt.Sprintf("the check did not come to its end: %v%s", err, cli.Remedy(err))
	if f.progress.json {
		text = damages(r) + "; " + text
	}
	return &exitError{exitDamage, text}
}

// verdict is the last line: what was found, in one sentence.
func verdict(r backup.CheckResult, o backup.CheckOptions) string {
	switch {
	case r.Damaged():
		return damages(r)
	case r.Uncompared > 0:
		return "INCOMPLETE: " + uncompared(r) + "; " + extent(r, o)
	case r.Logless():
		return "INCOMPLETE: " + logless(r)
	case r.Repaired:
		what := "the index was rebuilt"
		if r.DamagedRecords > 0 {
			what = "the log was written again"
		}
		return "REPAIRED: " + what + "; " + extent(r, o)
	}
	return "OK: " + extent(r, o)
}

func uncompared(r backup.CheckResult) string {
	return plural(r.Uncompared, "path") + " could not be compared"
}

// logless says what it may mean that there is no log.
func logless(r backup.CheckResult) string {
	return fmt.Sprintf("there is no log record, but %s: a first run is under way or was interrupted, or the log is lost", plural(int64(r.Unnamed), "part"))
}

func damages(r backup.CheckResult) string {
	var what []string
	for _, d := range []struct {
		n    int
		noun string
	}{{r.DamagedRecords, "log record"}, {r.Lost, "lost generation"}, {len(r.DamagedParts), "part"}} {
		if d.n > 0 {
			what = append(what, plural(int64(d.n), d.noun))
		}
	}
	if r.DamagedConfig {
		what = append(what, "repo.json")
	}
	switch {
	case r.DamagedIndexes > 0 && r.Repaired:
		what = append(what, "the index (it was rebuilt)")
	case r.DamagedIndexes > 0:
		what = append(what, "the index (--repair rebuilds it)")
	}
	if r.DamagedFiles > 0 {
		what = append(what, fmt.Sprintf("%s in %s", plural(int64(r.DamagedFiles), "file"), plural(int64(r.HitGenerations), "generation")))
	}
	switch {
	case r.Differ == 1:
		what = append(what, "1 path differs from what is there although it looks unchanged")
	case r.Differ > 1:
		what = append(what, humanize.Comma(r.Differ)+" paths differ from what is there although they look unchanged")
	}
	if len(what) == 0 {
		return "DAMAGED: see above"
	}
	return "DAMAGED: " + strings.Join(what, ", ") + ": see above"
}

// extent says what was checked.
func extent(r backup.CheckResult, o backup.CheckOptions) string {
	stored := humanize.IBytes(uint64(r.StoredBytes))
	text := fmt.Sprintf("%s, %s", plural(int64(r.Generations), "generation"), plural(int64(r.Parts), "part"))
	switch {
	case o.ReadData && o.Subset.Length != 0:
		text += fmt.Sprintf(" of %s, of which %s with %s read and verified", stored, plural(int64(r.ReadParts), "part"), humanize.IBytes(uint64(r.ReadBytes)))
	case o.ReadData:
		text += fmt.Sprintf(", %s read and verified", humanize.IBytes(uint64(r.ReadBytes)))
	default:
		text += fmt.Sprintf(" of %s there (structure; --read-data reads them)", stored)
	}
	if o.Against != "" {
		text += fmt.Sprintf("; %s compared with %s: %s changed since, %s not in the backup", plural(r.Compared, "path"), o.Against,
			humanize.Comma(r.Changed), humanize.Comma(r.NotStored))
	}
	return text + ", " + took(r.Seconds)
}
