package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

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

Exit codes: 0 done; 1 failed; 2 wrong usage; 4 the log ends with damage, or lacks
records: what is printed is what can be read, and "mkbackup check" says what is
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
