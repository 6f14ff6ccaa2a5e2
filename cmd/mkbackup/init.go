package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/cmd/internal/size"
)

const maxPartSize = 1 << 40 // stored bytes

func initCommand() *cobra.Command {
	partSize := "64MiB"
	cmd := &cobra.Command{
		Use:   "init REPO",
		Short: "Make an empty repository",
		Long: `Make an empty repository in the directory REPO, which must be new or empty. The
directories above it are made where they are missing.

The part size is the size at which one archive file ends and the next begins. It
cannot be changed later.`,
		Example: `  mkbackup init /srv/backup
  mkbackup init /mnt/usb/backup --part-size 256MiB`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cli.Dirs,
		RunE: func(_ *cobra.Command, args []string) error {
			bytes, err := size.Parse(partSize)
			if err != nil || bytes < archive.MinPartSize || bytes > maxPartSize {
				return &exitError{exitUsage, fmt.Sprintf("bad --part-size %q: give a number with a unit, as 64MiB, from 64KiB to 1TiB", partSize)}
			}
			repo, err := archive.Init(args[0], archive.InitOptions{PartSize: int64(bytes)})
			if err != nil {
				return err
			}
			return repo.Close()
		},
	}
	cmd.Flags().StringVar(&partSize, "part-size", partSize, "`SIZE` of the archive files;\n"+size.Units)
	return cmd
}
