package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

func lsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls REPO GEN [PATH]",
		Short: "List a directory of a generation, as ls -l does",
		Long: `List a directory of a generation, or one file of it, as ls -l does.

GEN is a generation's name or number, a date or the beginning of a name (the last
generation that has it), a time as list --json prints it, "latest" or "latest~2";
"web1/latest" is one of the source web1. The time of day may have ":" for "-".`,
		Example: `  mkbackup ls /srv/backup latest /etc
  mkbackup ls /srv/backup web1/2026-11-22 /etc/nginx`,
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: completeArgs(cli.Generations, paths, nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "/"
			if len(args) == 3 {
				name = args[2]
			}
			return withIndex(cmd.Context(), args[0], func(db *index.DB) error {
				g, err := findGeneration(db, args[1])
				if err != nil {
					return err
				}
				return ls(cmd.OutOrStdout(), db, g, name, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per line")
	return cmd
}

func ls(w io.Writer, db *index.DB, g index.Generation, name string, asJSON bool) error {
	view := db.At(g.Number)
	entry, err := view.Resolve(g.Root, cleanPath(name))
	if err != nil {
		return fmt.Errorf("%s: %w", g.Name, backup.PathError(cleanPath(name), err))
	}
	show := showLine
	if asJSON {
		show = showJSON
	}
	if entry.Dir == 0 {
		return show(w, db, view, entry)
	}
	var showErr error
	err = view.List(entry.Dir, "", func(e index.Dirent) bool {
		showErr = show(w, db, view, e)
		return showErr == nil
	})
	if err == nil {
		err = showErr
	}
	return err
}

// attributes completes an entry: those of a directory are not in its listing.
func attributes(db *index.DB, view index.View, e *index.Dirent) (target string, err error) {
	if e.Dir != 0 {
		node, err := view.Dir(e.Dir)
		e.Attr = node.Attr
		return "", err
	}
	return linkTarget(db, *e)
}

// linkTarget returns the target of a symlink, "" of anything else.
func linkTarget(db *index.DB, e index.Dirent) (string, error) {
	if e.Attr.Type != archive.TypeSymlink {
		return "", nil
	}
	i, err := db.Inode(e.Ino)
	return i.Target, err
}

func showLine(w io.Writer, db *index.DB, view index.View, e index.Dirent) error {
	target, err := attributes(db, view, &e)
	if err != nil {
		return err
	}
	a := e.Attr
	arrow := ""
	if target != "" {
		arrow = " -> " + backup.Printable(target)
	}
	_, err = fmt.Fprintf(w, "%s %3d %5d %5d %12s %s %s%s\n", modeString(a), a.Nlink, a.UID, a.GID, sizeString(a),
		a.Mtime.Time().Format("2006-01-02 15:04:05Z"), backup.Printable(e.Name), arrow)
	return err
}

// sizeString returns the size as ls -l shows it: of a device its number.
func sizeString(a archive.Attr) string {
	if device(a) {
		return fmt.Sprintf("%d,%d", a.Rdev.Major, a.Rdev.Minor)
	}
	return fmt.Sprint(a.Size)
}

func device(a archive.Attr) bool { return a.Type == archive.TypeChar || a.Type == archive.TypeBlock }

// modeString returns type and mode as ls -l shows them: "drwxr-sr-t".
func modeString(a archive.Attr) string {
	text := []byte("----------")
	text[0] = "?-dlpscb"[a.Type]
	for i := range 9 {
		if a.Mode>>(8-i)&1 != 0 {
			text[1+i] = "rwx"[i%3]
		}
	}
	for i, letters := range []string{"sS", "sS", "tT"} { // setuid, setgid, sticky
		if a.Mode>>(11-i)&1 == 0 {
			continue
		}
		execute := &text[3+3*i]
		if *execute == 'x' {
			*execute = letters[0]
		} else {
			*execute = letters[1]
		}
	}
	return string(text)
}

// lsEntry is an entry as ls --json prints it. A name or target that is not
// UTF-8 is given as base64 in the field that ends with 64.
type lsEntry struct {
	Name   string `json:"name,omitempty"`
	Name64 []byte `json:"name64,omitempty"`
	attributesJSON
}

// attributesJSON are attributes, and the target of a symlink, in JSON.
type attributesJSON struct {
	Type     string  `json:"type"`
	Mode     string  `json:"mode"`
	UID      uint32  `json:"uid"`
	GID      uint32  `json:"gid"`
	Size     int64   `json:"size"`
	Mtime    anyTime `json:"mtime"`
	Nlink    uint32  `json:"nlink"`
	Major    *uint32 `json:"major,omitempty"` // of a device, as is the next
	Minor    *uint32 `json:"minor,omitempty"`
	Target   string  `json:"target,omitempty"`
	Target64 []byte  `json:"target64,omitempty"`
}

// anyTime is a time in JSON as RFC 3339 writes it, also of a year that has more than four
// digits or is negative, which encoding/json refuses.
type anyTime time.Time

// MarshalJSON implements json.Marshaler.
func (t anyTime) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Time(t).Format(time.RFC3339Nano))
}

func showJSON(w io.Writer, db *index.DB, view index.View, e index.Dirent) error {
	target, err := attributes(db, view, &e)
	if err != nil {
		return err
	}
	entry := lsEntry{attributesJSON: describeAttr(e.Attr, target)}
	entry.Name, entry.Name64 = jsonText(e.Name)
	return json.NewEncoder(w).Encode(entry)
}

func describeAttr(a archive.Attr, target string) attributesJSON {
	d := attributesJSON{Type: a.Type.String(), Mode: fmt.Sprintf("%04o", a.Mode), UID: a.UID, GID: a.GID, Size: a.Size,
		Mtime: anyTime(a.Mtime.Time()), Nlink: a.Nlink}
	if device(a) {
		d.Major, d.Minor = &a.Rdev.Major, &a.Rdev.Minor
	}
	d.Target, d.Target64 = jsonText(target)
	return d
}
