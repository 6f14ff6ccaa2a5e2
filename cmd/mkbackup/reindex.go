package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

func reindexCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reindex REPO",
		Short: "Rebuild the index from the log",
		Long: `Rebuild the index from the log, and put it in the place of the one that is there.
Mounts and other commands go on meanwhile. The index holds nothing that the log
does not: this can be done at any time. A log that is damaged gives no index: the
one that is there stays, and "mkbackup check" says what is lost.

Exit codes: 0 done; 1 failed, the index stays as it was; 4 rebuilt, but the log has
lost its last records.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := archive.Open(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			return reindex(cmd.OutOrStdout(), repo)
		},
	}
}

func reindex(w io.Writer, repo *archive.Repository) error {
	db, err := index.Rebuild(repo, index.Options{Log: notef})
	if err != nil {
		return fmt.Errorf("the index stays as it was, `mkbackup check` says what can be read: %w", err)
	}
	defer db.Close()
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
	}
	records := db.Number()
	if begins := db.Begins(); begins > 0 {
		records -= begins - 1
	}
	if _, err := fmt.Fprintf(w, "index rebuilt from %d log records: %d generations\n", records, len(gens)); err != nil {
		return err
	}
	if lost > 0 {
		return &exitError{exitDamage, ""}
	}
	return nil
}
