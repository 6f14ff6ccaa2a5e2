package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
)

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check REPO",
		Short: "Verify that a repository is whole",
		Long: `Verify the structure of a repository: that every log record is there, whole and
follows the one before; that the index is the log's; that every part is there
with its size and its table of digests.

Exit codes: 0 all is well; 1 it could not be checked; 4 there is damage.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := archive.Open(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			result, err := backup.Check(cmd.Context(), repo, backup.CheckOptions{
				Damage: func(text string) { fmt.Fprintln(os.Stderr, "mkbackup: damage:", text) },
				Note:   note,
			})
			if err != nil {
				return err
			}
			return checked(cmd, result, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result in JSON, as the last line")
	return cmd
}

func checked(cmd *cobra.Command, r backup.CheckResult, asJSON bool) error {
	w, err := cmd.OutOrStdout(), error(nil)
	switch {
	case asJSON:
		err = json.NewEncoder(w).Encode(r)
	case r.Damages == 0:
		_, err = fmt.Fprintf(w, "no damage: %s, %s, %s of %s\n", plural(int64(r.Generations), "generation"),
			plural(int64(r.Records), "log record"), plural(int64(r.Parts), "part"), humanize.IBytes(uint64(r.StoredBytes)))
	}
	if r.Damages > 0 {
		return &exitError{exitDamage, plural(int64(r.Damages), "damage") + ", named above"}
	}
	return err
}
