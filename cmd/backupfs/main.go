// Command backupfs mounts a repository: every generation is a plain directory
// tree, so that a restore is cp.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/cmd/internal/cli"
)

// version is set by the build.
var version = "unknown"

// Exit codes besides 0.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	cmd := newCommand()
	cmd.SetArgs(args)
	err := cli.Execute(context.Background(), cmd)
	if err == nil {
		return 0
	}
	var failed exitError
	if errors.As(err, &failed) {
		return int(failed) // the background process has said why
	}
	if errors.As(err, new(usageError)) {
		printMessage("%v: see backupfs --help", err)
		return exitUsage
	}
	printMessage("%v%s", err, cli.Remedy(err))
	return exitFailed
}

func newCommand() *cobra.Command {
	var c config
	var shareDir string
	cmd := &cobra.Command{
		Use:                   "backupfs [flags] [REPO MOUNTPOINT]",
		Short:                 "Mount a repository: every generation is a plain directory tree",
		Long:                  longHelp,
		Example:               examples,
		Version:               version,
		SilenceUsage:          true,
		SilenceErrors:         true,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cli.Dirs,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
		Args: func(_ *cobra.Command, args []string) error {
			switch elsewhere := c.file != "" || shareDir != ""; {
			case elsewhere && len(args) > 0:
				return usageError{fmt.Errorf("REPO and MOUNTPOINT come from the file: %q is too much", args[0])}
			case !elsewhere && len(args) != 2:
				return usageError{fmt.Errorf("two arguments are needed, REPO and MOUNTPOINT; there are %d", len(args))}
			case slices.Contains(args, ""):
				return usageError{errors.New("REPO or MOUNTPOINT is empty")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if shareDir != "" {
				return book().Write(cmd, shareDir)
			}
			if err := c.complete(args, cmd.Flags()); err != nil {
				return err
			}
			return c.start()
		},
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.SetUsageFunc(cli.Usage)
	c.define(cmd.Flags())
	cmd.Flags().StringVar(&shareDir, "write-manual", "", "write manual pages and shell completions below `DIR`, as in /usr/share")
	_ = cmd.Flags().MarkHidden("write-manual") // the flag exists
	cli.CompleteFlags(cmd, flagValues)
	return cmd
}

// flagValues completes the values of flags. What the others take no shell can know.
var flagValues = map[string]cobra.CompletionFunc{
	"source": cli.WithIndex(cli.Sources),
	"config": cli.Configurations,
	"generation": func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if source := cmd.Flag("source"); source.Changed {
			return cli.WithIndex(cli.GenerationsOf(source.Value.String()))(cmd, args, typed)
		}
		return cli.WithIndex(cli.Generations)(cmd, args, typed)
	},
}

const longHelp = `backupfs mounts the repository REPO, which mkbackup made, on the directory
MOUNTPOINT. Every generation is a plain, read-only directory tree with the
files, owners, permissions, times, extended attributes and links of its source,
so that a restore is cp:

  MOUNTPOINT/2026-11-22T03-00-00Z/etc/fstab   generations of the unnamed source
  MOUNTPOINT/2026-11-22/...                   the last one of that day
                                              (listed only by its full name)
  MOUNTPOINT/latest/...                       a symlink to the newest
  MOUNTPOINT/web1/2026-11-22T03-00-00Z/...    generations of the source "web1"

With --name-format generations have other names, made of their times. Of those
with the same name the first one has it, and each later one has its number behind
it, as in 2026-11-22.57; these numbered names, the generations' own names and
their prefixes lead there, too, but are not listed.

New generations appear within 2 seconds, forgotten ones disappear; backups and
compaction go on while the repository is mounted. df shows the repository's raw
bytes as the size and its stored bytes as what is used.

backupfs goes to the background once the mount is ready, and its messages then
go to the system log; if mounting fails it says why and exits with 1. "umount
MOUNTPOINT" (or "fusermount3 -u MOUNTPOINT") ends it, and so does SIGTERM: if the
mount is busy, it is detached, and the programs that use it get errors.

Mounted by root, everybody may enter, under the original permissions. Mounted by
another user only that user may enter, and sees everything that is in REPO.

In /etc/fstab:

  /srv/backup/web1  /backups  fuse.backupfs  ro,_netdev,x-systemd.requires-mounts-for=/srv/backup,cache-size=512M  0 0`

const examples = `  backupfs /srv/backup /backups
  backupfs -f --cache-size 1GiB /srv/backup /backups
  backupfs --name-format @GMT-%Y.%m.%d-%H.%M.%S /srv/backup /backups
  backupfs --generation latest --source web1 /srv/backup /mnt
  backupfs --metrics-listen 127.0.0.1:9750 /srv/backup /backups
  cp -a /backups/2026-11-22/home/me/letter.txt .`
