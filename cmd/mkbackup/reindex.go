package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// reindexed is what reindex has done, in JSON.
type reindexed struct {
	Event       string  `json:"event,omitempty"`
	Records     uint64  `json:"records"`
	Generations int     `json:"generations"`
	Lost        uint64  `json:"lost_records"` // that the log has lost from its end
	Seconds     float64 `json:"seconds"`
}

func reindexCommand() *cobra.Command {
	var f progressFlags
	cmd := &cobra.Command{
		Use:   "reindex REPO",
		Short: "Rebuild the index from the log",
		Long: `Rebuild the index from the log, and put it in the place of the one that is there.
Mounts and other commands go on meanwhile. The index holds nothing that the log
does not: this can be done at any time. A log that is damaged, or ends with another
record than the index was made with, gives no index: the one that is there stays,
and "mkbackup check" says what is lost.

Exit codes: 0 done; 1 failed, the index stays as it was; 4 rebuilt, but the log has
lost its last records; 129, 130, 143 interrupted, the index stays as it was.`,
		Example:           `  mkbackup reindex /srv/backup`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			repo, err := archive.Open(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			return reindex(cmd.Context(), cmd.OutOrStdout(), repo, f)
		},
	}
	addJSONProgressFlags(cmd.Flags(), &f)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print only problems")
	return cmd
}

func reindex(ctx context.Context, w io.Writer, repo *archive.Repository, f progressFlags) error {
	began, counts := time.Now(), new(index.Progress)
	progress := newProgress(f, reindexState(counts))
	progress.start()
	log := func(format string, a ...any) { progress.note(fmt.Sprintf(format, a...)) }
	db, err := index.Rebuild(repo, index.Options{Progress: counts, Log: log, Interrupted: ctx.Err})
	progress.stop()
	if err != nil {
		return fmt.Errorf("the index stays as it was: %w", err)
	}
	defer db.Close()
	if !db.Kept() {
		return errors.New("the index stays as it was: the new one cannot be kept in the repository")
	}
	gens, err := db.Generations()
	if err != nil {
		return err
	}
	lost := uint64(0)
	if err := index.Check(repo, func(number uint64, err error) {
		if errors.Is(err, index.ErrBeyondLog) {
			lost = max(lost, number)
		}
	}); err != nil {
		return err
	}
	if lost > 0 {
		note(fmt.Sprintf("damage: an index was made with records up to %d, but the log ends with record %d: the last records are missing, and the generations they made", lost, db.Number()))
		lost -= db.Number()
	}
	records := db.Number()
	if begins := db.Begins(); begins > 0 {
		records -= begins - 1
	}
	done := reindexed{progress.summaryEvent(), records, len(gens), lost, time.Since(began).Seconds()}
	if err := printed(done.print(w, f), false); err != nil {
		return err
	}
	if lost > 0 {
		return &exitError{exitDamage, ""}
	}
	return nil
}

func (r reindexed) print(w io.Writer, f progressFlags) (err error) {
	switch {
	case f.json:
		return json.NewEncoder(w).Encode(r)
	case !f.quiet:
		_, err = fmt.Fprintf(w, "index rebuilt from %s: %s, %s\n", plural(int64(r.Records), "log record"), plural(int64(r.Generations), "generation"), took(r.Seconds))
	}
	return err
}
