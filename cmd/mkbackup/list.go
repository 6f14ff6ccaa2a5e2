package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// listed is a generation as list --json prints it.
type listed struct {
	Generation string    `json:"generation"`
	Number     uint64    `json:"number"`
	Source     string    `json:"source"`
	Time       time.Time `json:"time"`
	Files      int64     `json:"files"`
	Dirs       int64     `json:"dirs"`
	RawBytes   int64     `json:"raw_bytes"`
}

func listCommand() *cobra.Command {
	var source string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list REPO",
		Short: "List the generations",
		Long: `List the generations: number, name, source, how many files and directories, and the
bytes of all files, holes included. Every command takes a generation by its number,
or by its name; behind SOURCE/ where it has a source.

Exit codes: 0 done; 1 failed; 2 wrong usage; 4 the log is damaged, or has lost its
last records: what is printed is what can be read, and "mkbackup check" says what is
lost; 129, 130, 143 interrupted. The other commands that only read keep to the same.`,
		Example: `  mkbackup list /srv/backup
  mkbackup list /srv/backup --source web1 --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withIndex(cmd.Context(), args[0], func(db *index.DB) error {
				gens, err := db.Generations()
				if cmd.Flags().Changed("source") {
					gens, err = generationsOf(db, source)
				}
				if err != nil {
					return err
				}
				if asJSON {
					return listJSON(cmd.OutOrStdout(), gens)
				}
				return listTable(cmd.OutOrStdout(), gens)
			})
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "only generations of the source `NAME`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

// withIndex opens a repository and its index for a command that reads.
func withIndex(ctx context.Context, dir string, read func(db *index.DB) error) error {
	return withRepository(ctx, dir, func(_ *archive.Repository, db *index.DB) error { return read(db) })
}

// withRepository is withIndex for a command that reads more than the index. Where the
// log is damaged or has lost its last records, it shows what can be read, and exits as
// for damage. The context is that of withSignals.
func withRepository(ctx context.Context, dir string, read func(repo *archive.Repository, db *index.DB) error) error {
	repo, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer repo.Close()
	db, lost, err := openPartial(ctx, repo)
	if err != nil {
		return err
	}
	defer db.Close()
	defer endAtOnce(ctx, repo)()
	switch err := read(repo, db); {
	case err != nil:
		return err
	case db.Problem() != nil:
		return &exitError{exitDamage, "the log is damaged, and this is what can be read: `mkbackup check` says what is lost, and what to do"}
	case lost:
		return &exitError{exitDamage, "the log has lost its last records, and this is what can be read: `mkbackup check` says what to do"}
	}
	return nil
}

// openPartial opens what there is of an index, unless ctx ends, and reports whether an
// index has more records than the log.
func openPartial(ctx context.Context, repo *archive.Repository) (db *index.DB, lost bool, err error) {
	log := func(format string, a ...any) {
		if ctx.Err() == nil { // what is said of an interrupt would be taken for damage
			notef(format, a...)
		}
	}
	damaged := func(number uint64, err error) {
		lost = lost || errors.Is(err, index.ErrBeyondLog)
		log("index %d is not used: %v", number, err)
	}
	db, err = index.Open(repo, index.Options{Log: log, Damaged: damaged, Partial: true, Interrupted: ctx.Err})
	if err == nil && db.Number() == 0 { // no index was looked at
		err = index.Check(repo, damaged)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && db != nil {
		err = errors.Join(err, db.Close())
	}
	return db, lost, err
}

// endAtOnce makes a signal end the program wherever it is, until stop is called: it
// only reads, and it may be waiting for whoever reads its output. It prints nothing, for
// which it may have to wait as well.
func endAtOnce(ctx context.Context, repo *archive.Repository) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = repo.Close() // removes what it had to add to the index, if anything
		os.Exit(exitCode(ctx, ctx.Err()))
	})
}

// findGeneration returns the generation that spec means, as index.Find understands it.
func findGeneration(db *index.DB, spec string) (index.Generation, error) {
	gens, err := db.Generations()
	if err != nil {
		return index.Generation{}, err
	}
	return index.Find(gens, spec)
}

func notef(format string, a ...any) { note(fmt.Sprintf(format, a...)) }

func listJSON(w io.Writer, gens []index.Generation) error {
	list := []listed{}
	for _, g := range gens {
		list = append(list, listed{g.Name, g.Number, g.Source, g.Time, g.Files, g.Dirs, g.Raw})
	}
	return json.NewEncoder(w).Encode(list)
}

func listTable(w io.Writer, gens []index.Generation) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "NUMBER\tGENERATION\tSOURCE\tFILES\tDIRS\tBYTES")
	for _, g := range gens {
		_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%s\n", g.Number, g.Name, g.Source, g.Files, g.Dirs, humanize.IBytes(uint64(g.Raw)))
	}
	return table.Flush()
}
