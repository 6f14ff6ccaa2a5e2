package main

import (
	"fmt"

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
does not: this can be done at any time.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := archive.Open(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			db, err := index.Rebuild(repo, index.Options{Log: notef})
			if err != nil {
				return err
			}
			defer db.Close()
			gens, err := db.Generations()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "index rebuilt from %d log records: %d generations\n", db.Number(), len(gens))
			return err
		},
	}
}
