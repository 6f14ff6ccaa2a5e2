package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
)

type createFlags struct {
	backup.CreateOptions
	gentle   gentle
	metrics  metricsFile
	progress progressFlags
	time     string
	verbose  bool
}

func createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create REPO PATH...",
		Short: "Back up: make a generation of PATHs",
		Long: `Make a generation: the complete state of the PATHs now. Only files that are new or
changed since the source's generation before are read; a file is unchanged if its
type, size, times and inode number are.

A PATH that is a symlink is stored as one; with a / at its end it is the directory that
it leads to. With --root, DIR is what / is in PATHs and in symlinks: none leads out of it.
PATHs may overlap: what several of them hold is stored once. What has two names, as by a
bind mount, is read and listed under both; its contents are stored once.

Files that cannot be read are named, the others are backed up, and the exit code
is 3. A mount of backups and the repository itself are left out; /proc, /sys and
their like are not entered.

Excludes: a PATTERN without a / but at its end matches a name at any depth, any other
the whole path from the generation's root on; a / at the end: directories only. * and ?
match no /; /**, **/ and /**/ match directories at any depth; [a-z], [!a-z] one byte of
them; \ takes the next byte as it is. The last PATTERN that matches decides; one that
begins with ! includes again, but nothing below an excluded directory, which is not
entered. A FILE may have blank lines and, behind #, comments. A directory with a
CACHEDIR.TAG or NAME, when so asked, is stored with nothing else in it. A PATH that is
excluded itself is a problem: it is named, and the exit code is 3.

With --dry-run no file is read. So what would be stored is only known to be at most
what would be read, but for what the generation takes in the log: stored_bytes in JSON
is that, too. Contents that are there already are not stored again, and others are
compressed.

A part of the repository that is missing is named. What lay in it is read and stored
again where the source still has it, so that the new generation is whole, and so are
the older ones as far as they have the same contents; the exit code is 4. So it is where
the log has lost its last records, as the index tells.

Exit codes: 0 done; 1 failed, nothing committed unless the message says so; 2 wrong
usage; 3 committed, but some files could not be read or changed while they were read;
4 committed, but something of the repository is missing or damaged; 129, 130, 143
interrupted.`,
		Example: `  mkbackup create /srv/backup /etc /home
  mkbackup create /srv/backup --source web1 --root /mnt/snapshot /
  mkbackup create /srv/backup / --one-file-system --exclude-caches --exclude '*.tmp' --exclude /var/tmp/
  mkbackup create /srv/backup /home --nice 19 --ionice idle --read-rate 20MiB --threads 1`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeArgs(files),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.complete(args[1:]); err != nil {
				return err
			}
			return f.metrics.record(cmd.Context(), outcome{command: "create", repository: args[0], source: f.Source}, func(o *outcome) error {
				return create(cmd, args[0], f, o)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Source, "source", "", "`NAME` of the source that this is a generation of")
	flags.StringVar(&f.Root, "root", "", "take PATHs relative to `DIR`, and store them as if it were /")
	flags.BoolVar(&f.Checksum, "checksum", false, "read every file and compare contents, not times")
	addExcludeFlags(flags, &f.Exclude)
	addReadRateFlag(flags, &f.ReadRate)
	addGentleFlags(flags, &f.gentle)
	flags.StringVar(&f.time, "time", "", "the generation's `TIME` (RFC 3339) instead of now")
	flags.BoolVar(&f.DryRun, "dry-run", false, "say what would be read, and at most stored; change nothing")
	addMetricsFlag(flags, &f.metrics)
	addJSONProgressFlags(flags, &f.progress)
	flags.BoolVarP(&f.progress.quiet, "quiet", "q", false, "print only problems")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print a line for each path that changed: + new, M changed, - gone, ! excluded, and why")
	return cmd
}

func create(cmd *cobra.Command, dir string, f createFlags, o *outcome) error {
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	if err := f.gentle.apply(); err != nil {
		return err
	}
	if os.Geteuid() != 0 && !f.progress.quiet {
		note("not root: files of others that you may not read are named and left out, and trusted.* attributes are not seen")
	}
	progress := newProgress(f.progress, createState(f.Progress))
	f.Events = f.events(progress)
	progress.start()
	summary, err := backup.Create(cmd.Context(), repo, f.CreateOptions)
	progress.stop()
	if err != nil {
		return err
	}
	o.created(summary)
	o.measure(cmd.Context(), repo, false)
	if err := printed(f.print(cmd.OutOrStdout(), progress.summaryEvent(), summary), f.DryRun); err != nil {
		return err
	}
	return f.judge(summary, dir)
}

// judge returns how a run is to be judged that came to its end.
func (f *createFlags) judge(s backup.Summary, dir string) error {
	var problems []string
	code := 0
	if s.Errors > 0 {
		code = exitIncomplete
		text := plural(s.Errors, "problem") + " with files, named above"
		if !f.DryRun {
			text += "; everything else is committed"
		}
		problems = append(problems, text)
	}
	if s.Missing > 0 {
		code = exitDamage
		problems = append(problems, fmt.Sprintf("the repository has lost %s, named above: `mkbackup check %s` says what is gone with it", plural(s.Missing, "part"), dir))
	}
	if s.LostRecords > 0 {
		code = exitDamage
		problems = append(problems, "records of the log are missing or damaged, see above")
	}
	if code == 0 {
		return nil
	}
	return &exitError{code, strings.Join(problems, "; ")}
}

// complete checks the flags and fills the options that are not flags.
func (f *createFlags) complete(paths []string) error {
	f.Paths = paths
	f.Program = "mkbackup " + version
	f.Progress = new(backup.Progress)
	f.Threads = f.gentle.threads
	if f.time != "" {
		t, err := time.Parse(time.RFC3339, f.time)
		if err != nil || t.IsZero() { // the zero Time stands for now
			return &exitError{exitUsage, fmt.Sprintf("bad --time %q: give it as 2026-11-22T03:00:00Z", f.time)}
		}
		f.Time = t
	}
	if err := f.progress.check(); err != nil {
		return err
	}
	if err := f.metrics.refuseDryRun(f.DryRun); err != nil {
		return err
	}
	if !archive.ValidSourceName(f.Source) {
		return &exitError{exitUsage, fmt.Sprintf("bad --source %v", badSource(f.Source))}
	}
	if f.Root != "" {
		root, err := cli.Abs(f.Root)
		if err != nil {
			return err
		}
		f.Root = root
	}
	return nil
}

// badSource says why a name is none of a source.
func badSource(name string) error {
	return fmt.Errorf("%q: it begins with a letter, has only letters, digits, '.', '_' and '-', and is not \"latest\"", name)
}

func (f *createFlags) events(p *progress) backup.Events {
	e := backup.Events{
		Problem: func(path string, err error) {
			path = display(path)
			p.warn(fmt.Sprintf("%s: %v", path, err), message{"problem", path, err.Error()})
		},
		Damage: func(text string) { p.warn("damage: "+text, message{Event: "damage", Text: text}) },
	}
	if !f.progress.quiet {
		e.Note = p.note
	}
	if f.verbose {
		e.Excluded = func(path string, why error) {
			path = display(path)
			p.tell(fmt.Sprintf("! %s: %v", path, why), message{"excluded", path, why.Error()})
		}
		e.Change = func(change backup.Change, path string) {
			path = display(path)
			p.tell(fmt.Sprintf("%c %s", change, path), message{"change", path, string(change)})
		}
	}
	return e
}

func (f *createFlags) print(w io.Writer, event string, s backup.Summary) error {
	if f.progress.json {
		return json.NewEncoder(w).Encode(struct {
			Event string `json:"event,omitempty"`
			backup.Summary
		}{event, s})
	}
	if f.progress.quiet {
		return nil
	}
	counts := fmt.Sprintf("%s new, %s changed, %s gone, %s unchanged", humanize.Comma(s.New), humanize.Comma(s.Changed), humanize.Comma(s.Gone), humanize.Comma(s.Unchanged))
	if s.Excluded > 0 {
		counts += fmt.Sprintf(", %s excluded", plural(s.Excluded, "path"))
	}
	if f.DryRun {
		_, err := fmt.Fprintf(w, "dry run: %s; %s of contents would be read, and at most as much stored\n", counts, humanize.IBytes(uint64(s.ReadBytes)))
		return err
	}
	name := s.Generation
	if f.Source != "" {
		name = f.Source + "/" + name
	}
	_, err := fmt.Fprintf(w, "%s: %s files and directories, %s\n%s; read %s, stored %s (%s), %s\n", name, humanize.Comma(s.Files+s.Dirs), humanize.IBytes(uint64(s.RawBytes)), counts, humanize.IBytes(uint64(s.ReadBytes)),
		humanize.IBytes(uint64(s.StoredBytes)), plural(s.Parts, "new part"), took(s.Seconds))
	return err
}
