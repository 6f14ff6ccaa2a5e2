package main

import (
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

func exportCommand() *cobra.Command {
	var f progressFlags
	cmd := &cobra.Command{
		Use:   "export REPO GEN [PATH...]",
		Short: "Write a generation to standard output as a tar stream",
		Long: `Write a generation, or PATHs of it with all below them, to standard output as a PAX
tar stream: types, owners, modes, times in ns, hard links, holes, device numbers,
extended attributes and ACLs, names of any bytes. Members are called by their paths
without the leading "/"; the root is "./".

Both of these, run by root, restore all of it (but "=" and "%" in the name of an
extended attribute, which only GNU tar restores):

  tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C DIR
  bsdtar -x -p --numeric-owner --acls --xattrs -C DIR

Sockets are left out, and named: tar has no type for them; so is what a file has of
extended attributes beyond 960 KiB. When something cannot be
read, it is named, the stream ends in the middle, and the exit code is 1.

GEN is what "mkbackup ls" takes.`,
		Example: `  mkbackup export /srv/backup latest | ssh web2 tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C /mnt
  mkbackup export /srv/backup 2026-11-22 /etc /home/alice >alice.tar`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeArgs(cli.Generations, paths),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if term.IsTerminal(int(os.Stdout.Fd())) {
				return &exitError{exitUsage, "standard output is a terminal: send the archive to a file or a program"}
			}
			var paths []string
			for _, path := range args[2:] {
				paths = append(paths, cleanPath(path))
			}
			return withRepository(cmd.Context(), args[0], func(repo *archive.Repository, db *index.DB) error {
				g, err := findGeneration(db, args[1])
				if err != nil {
					return err
				}
				counts := new(backup.ExportProgress)
				progress := newProgress(f, exportState(counts))
				progress.start()
				defer progress.stop()
				return backup.Export(cmd.Context(), os.Stdout, repo, db, g, backup.ExportOptions{Paths: paths, Note: progress.note, Progress: counts})
			})
		},
	}
	addProgressFlag(cmd.Flags(), &f)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress; print only problems, and what is left out")
	return cmd
}
