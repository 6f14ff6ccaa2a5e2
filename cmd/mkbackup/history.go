package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/index"
)

func historyCommand() *cobra.Command {
	var source string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history REPO PATH",
		Short: "List the versions of a path, newest first",
		Long: `List every distinct version of a path, newest first: the generations from the first
to the last one that have it, its attributes, and a hash of its content; between
them, the generations in which the path was deleted.

A version ends where content, type, mode, owner, time, target or extended
attributes change. The hash of a file that is one content is the BLAKE3 of its
bytes, as b3sum prints it; that of a larger one, marked "~", is one over the hashes
of its chunks: it tells versions apart. Only the first 16 of its 64 digits are
printed, all with --json.

In a mount, .versions/PATH/ holds the same versions.`,
		Example: `  mkbackup history /srv/backup /etc/nginx/nginx.conf
  mkbackup history /srv/backup --source web1 /etc/passwd --json`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeArgs(latestPaths, nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withIndex(cmd.Context(), args[0], func(db *index.DB) error {
				gens, err := generationsOf(db, source)
				if err != nil {
					return err
				}
				versions, err := db.Timeline(gens).Versions(cleanPath(args[1]))
				if err != nil {
					return err
				}
				if len(versions) == 0 {
					return fmt.Errorf("no generation of %s has the path %s", index.DescribeSource(source), display(cleanPath(args[1])))
				}
				h := history{db: db, gens: gens, versions: versions, w: cmd.OutOrStdout()}
				if asJSON {
					return h.printJSON()
				}
				return h.printTable()
			})
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "of the source `NAME` instead of the unnamed one")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per line")
	return cmd
}

// generationsOf returns the generations of a source, which must have some.
func generationsOf(db *index.DB, source string) ([]index.Generation, error) {
	all, err := db.Generations()
	if err != nil {
		return nil, err
	}
	gens := index.OfSource(all, source)
	if len(gens) == 0 {
		return nil, fmt.Errorf("%s has no generation: `mkbackup list` shows those there are", index.DescribeSource(source))
	}
	return gens, nil
}

// history prints the versions of one path.
type history struct {
	db       *index.DB
	gens     []index.Generation // of the source
	versions []index.Version
	w        io.Writer
}

// deletedBehind returns the generations between a version and the next one, or
// the end.
func (h *history) deletedBehind(i int) []index.Generation {
	number := func(g index.Generation, n uint64) int { return cmp.Compare(g.Number, n) }
	from, _ := slices.BinarySearchFunc(h.gens, h.versions[i].Last.Number+1, number)
	to := len(h.gens)
	if i+1 < len(h.versions) {
		to, _ = slices.BinarySearchFunc(h.gens, h.versions[i+1].First.Number, number)
	}
	return h.gens[from:to]
}

// versionJSON is a version as history --json prints it. Exactly one of the hashes is
// there for a file, none for anything else.
type versionJSON struct {
	First string `json:"first"`
	Last  string `json:"last"`
	*attributesJSON
	BLAKE3       *archive.Hash `json:"blake3,omitempty"`
	ChunksBLAKE3 *archive.Hash `json:"chunks_blake3,omitempty"`
	Deleted      bool          `json:"deleted,omitempty"`
}

func (h *history) printJSON() error {
	out := json.NewEncoder(h.w)
	for i, v := range slices.Backward(h.versions) {
		if gap := h.deletedBehind(i); len(gap) > 0 {
			if err := out.Encode(versionJSON{First: gap[0].Name, Last: gap[len(gap)-1].Name, Deleted: true}); err != nil {
				return err
			}
		}
		entry, err := h.json(v)
		if err != nil {
			return err
		}
		if err := out.Encode(entry); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) json(v index.Version) (versionJSON, error) {
	target, err := linkTarget(h.db, v.Dirent)
	if err != nil {
		return versionJSON{}, err
	}
	attr := describeAttr(v.Attr, target)
	out := versionJSON{First: v.First.Name, Last: v.Last.Name, attributesJSON: &attr}
	if v.Attr.Type != archive.TypeFile {
		return out, nil
	}
	hash, whole, err := h.db.ContentHash(v.Ino)
	if whole {
		out.BLAKE3 = &hash
	} else {
		out.ChunksBLAKE3 = &hash
	}
	return out, err
}

func (h *history) printTable() error {
	table := tabwriter.NewWriter(h.w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "FIRST\tLAST\tMODE\tUID\tGID\tSIZE\tMODIFIED\tCONTENT")
	for i, v := range slices.Backward(h.versions) {
		if gap := h.deletedBehind(i); len(gap) > 0 {
			_, _ = fmt.Fprintf(table, "%s\t%s\tdeleted\t-\t-\t-\t-\t-\n", gap[0].Name, gap[len(gap)-1].Name)
		}
		content, err := h.content(v)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", v.First.Name, v.Last.Name, modeString(v.Attr), v.Attr.UID, v.Attr.GID,
			sizeString(v.Attr), v.Attr.Mtime.Time().Format(time.RFC3339Nano), content)
	}
	return table.Flush()
}

// content returns what the table shows of what is in a version.
func (h *history) content(v index.Version) (string, error) {
	switch v.Attr.Type {
	case archive.TypeSymlink:
		target, err := linkTarget(h.db, v.Dirent)
		return "-> " + backup.Printable(target), err
	case archive.TypeFile:
		hash, whole, err := h.db.ContentHash(v.Ino)
		if whole {
			return hash.String()[:16], err
		}
		return "~" + hash.String()[:16], err
	}
	return v.Attr.Type.String(), nil
}
