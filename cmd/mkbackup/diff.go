package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

func diffCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "diff REPO GEN1 GEN2 [PATH]",
		Short: "Say what differs between two generations",
		Long: `Say which paths differ between two generations, at and below PATH, a line for each:

  + PATH          only GEN2 has it
  - PATH          only GEN1 has it
  M PATH  (WHAT)  both have it, WHAT differs: type, content, size, target, device,
                  mode, owner, mtime, xattrs (ACLs are xattrs)

Below a directory that came or went every path is listed. Between generations of
one source this takes time in proportion to what changed, not to what there is.
To see how contents differ, compare the mounted generations with diff.

GEN is what "mkbackup ls" takes. The exit code is 0 whether there are differences
or not.`,
		Example: `  mkbackup diff /srv/backup latest~1 latest
  mkbackup diff /srv/backup 2026-11-20 2026-11-22 /etc --json`,
		Args:              cobra.RangeArgs(3, 4),
		ValidArgsFunction: completeArgs(cli.Generations, cli.Generations, paths, nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/"
			if len(args) == 4 {
				path = args[3]
			}
			return withRepository(cmd.Context(), args[0], func(repo *archive.Repository, db *index.DB) error {
				from, err := findGeneration(db, args[1])
				if err != nil {
					return err
				}
				to, err := findGeneration(db, args[2])
				if err != nil {
					return err
				}
				show := func(c backup.PathChange) error { return changeLine(cmd.OutOrStdout(), c) }
				if asJSON {
					show = func(c backup.PathChange) error { return changeJSON(cmd.OutOrStdout(), db, c) }
				}
				err = backup.Diff(cmd.Context(), repo, db, from, to, cleanPath(path), show)
				if errors.Is(err, index.ErrNotFound) {
					return fmt.Errorf("neither %s nor %s has the path %s: `mkbackup find` says where it is", from.Name, to.Name, display(cleanPath(path)))
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per line")
	return cmd
}

func changeLine(w io.Writer, c backup.PathChange) error {
	what := ""
	if c.Change == backup.Changed {
		what = "  (" + strings.Join(c.Difference.Names(), ", ") + ")"
	}
	_, err := fmt.Fprintf(w, "%c %s%s\n", c.Change, display(c.Path), what)
	return err
}

// pathChange is a difference as diff --json prints it.
type pathChange struct {
	Change string          `json:"change"` // "+", "-" or "M"
	Path   string          `json:"path,omitempty"`
	Path64 []byte          `json:"path64,omitempty"`
	What   []string        `json:"what,omitempty"`
	Before *attributesJSON `json:"before,omitempty"`
	After  *attributesJSON `json:"after,omitempty"`
}

func changeJSON(w io.Writer, db *index.DB, c backup.PathChange) error {
	out := pathChange{Change: string(c.Change), What: c.Difference.Names()}
	out.Path, out.Path64 = jsonText(rooted(c.Path))
	for _, side := range []struct {
		entry index.Dirent
		attr  **attributesJSON
	}{{c.Before, &out.Before}, {c.After, &out.After}} {
		if side.entry.Ino != 0 {
			target, err := linkTarget(db, side.entry)
			if err != nil {
				return err
			}
			attr := describeAttr(side.entry.Attr, target)
			*side.attr = &attr
		}
	}
	return json.NewEncoder(w).Encode(out)
}
