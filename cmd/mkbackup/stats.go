package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/index"
)

func statsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stats REPO",
		Short: "Show the figures of a repository",
		Long: `Show how much a repository holds and what it takes.

  generations    and the raw bytes of the files of all of them, holes included
  contents       what files consist of, each stored once, and their raw bytes
  parts          their raw bytes (tar streams) and their stored bytes (files)
  dead           stored bytes of the parts that no generation needs: "mkbackup compact"
                 gives them back
  log, index     their stored bytes
  deduplication  raw bytes of all generations / raw bytes of the contents
  compression    raw bytes of the parts / stored bytes of the parts`,
		Example: `  mkbackup stats /srv/backup
  mkbackup stats /srv/backup --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRepository(cmd.Context(), args[0], func(repo *archive.Repository, db *index.DB) error {
				s, err := backup.Stats(repo, db)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
				}
				return statsTable(cmd.OutOrStdout(), s)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object, sizes in bytes")
	return cmd
}

func statsTable(w io.Writer, s backup.RepositoryStats) error {
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"generations", fmt.Sprintf("%s of %s, %s raw", humanize.Comma(int64(s.Generations)), plural(int64(s.Sources), "source"), size(s.GenerationBytes))},
		{"contents", fmt.Sprintf("%s, %s raw", humanize.Comma(s.Contents), size(s.ContentBytes))},
		{"parts", fmt.Sprintf("%s, %s raw, %s stored", humanize.Comma(int64(s.Parts)), size(s.RawBytes), size(s.StoredBytes))},
		{"dead", size(s.DeadBytes) + " stored"},
		{"log", size(s.LogBytes) + " stored"},
		{"index", size(s.IndexBytes) + " stored"},
		{"deduplication", fmt.Sprintf("%.2f", s.Deduplication)},
		{"compression", fmt.Sprintf("%.2f", s.Compression)},
	} {
		_, _ = fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
	}
	return table.Flush()
}
