// Command mkbackup makes backups and looks after their repository.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/backupfs/backupfs/cmd/internal/cli"
)

// version is set by the build.
var version = "unknown"

// Exit codes. docs and scripts rely on them.
const (
	exitFailed     = 1 // nothing was committed, unless the message says so
	exitUsage      = 2
	exitIncomplete = 3 // committed, but some source files could not be read or changed meanwhile
	exitDamage     = 4 // damage was found
	exitSignal     = 128
)

// exitError ends the program with a code; its text, if any, is printed.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

func main() {
	debug.SetGCPercent(50) // the memory of a backed-up server belongs to its own work
	ctx := withSignals()
	err := cli.Execute(ctx, command())
	code := exitCode(ctx, err)
	if err != nil && ctx.Err() != nil && !errors.As(err, new(*exitError)) {
		err = context.Cause(ctx)
	}
	if err != nil && err.Error() != "" {
		note(err.Error() + cli.Remedy(err))
	}
	os.Exit(code)
}

// exitCode returns the exit code of a command that ended with err. The context is
// that of withSignals.
func exitCode(ctx context.Context, err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case caught(ctx) != 0:
		return exitSignal + int(caught(ctx))
	}
	return exitFailed
}

// interrupt is the signal that ended a run.
type interrupt syscall.Signal

// Error implements error.
func (i interrupt) Error() string {
	return fmt.Sprintf("interrupted by %s: nothing half-done remains", syscall.Signal(i))
}

// caught returns the signal that ended a context of withSignals, 0 where none did.
func caught(ctx context.Context) syscall.Signal {
	var signal interrupt
	_ = errors.As(context.Cause(ctx), &signal) // it stays 0
	return syscall.Signal(signal)
}

// withSignals returns a context that ends with the first SIGINT, SIGTERM or SIGHUP, its
// cause an interrupt. A second SIGINT or SIGTERM that nobody else catches kills at once; not
// so SIGHUP, which comes from the shell and from the kernel when a terminal is closed.
func withSignals() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cli.Catch(syscall.SIGHUP)
	signals := cli.Catch(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		caught, _ := (<-signals).(syscall.Signal)
		signal.Stop(signals)
		cancel(interrupt(caught))
	}()
	return ctx
}

func command() *cobra.Command {
	var shareDir string
	root := &cobra.Command{
		Use:   "mkbackup",
		Short: "Make backups that backupfs mounts, and look after their repository",
		Long: `mkbackup writes file trees into a repository: what is new goes into immutable
compressed parts, each run commits one generation. "backupfs REPO MOUNTPOINT"
shows all generations as plain directories; a restore is cp.`,
		Example: `  mkbackup init /srv/backup
  mkbackup create /srv/backup /etc /home
  mkbackup list /srv/backup
  mkbackup run main`,
		Version:                    version,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if shareDir != "" {
				return book().Write(cmd, shareDir)
			}
			cmd.SetOut(os.Stderr)
			_ = cmd.Usage()
			return &exitError{exitUsage, "a command is missing"}
		},
	}
	root.Flags().StringVar(&shareDir, "write-manual", "", "write manual pages and shell completions below `DIR`, as in /usr/share")
	_ = root.Flags().MarkHidden("write-manual") // the flag exists
	root.SetVersionTemplate("mkbackup {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{exitUsage, fmt.Sprintf("%v: see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(initCommand(), createCommand(), listCommand(), lsCommand(), diffCommand(), historyCommand(), findCommand(), exportCommand(),
		statsCommand(), checkCommand(), forgetCommand(), compactCommand(), reindexCommand(), runCommand())
	root.SetUsageFunc(cli.Usage)
	for _, sub := range root.Commands() {
		cli.CompleteFlags(sub, flagValues)
		sub.Args = usageErrors(sub.Args)
	}
	root.Args = unknownCommand
	root.SetHelpCommand(helpCommand())
	return root
}

// helpCommand is cobra's, but for a command that there is not.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
			for _, sub := range cmd.Root().Commands() {
				if len(args) == 0 && sub.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || about == cmd.Root() {
				err = unknownCommand(cmd.Root(), rest)
			}
			if err != nil {
				return err
			}
			return about.Help()
		},
	}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := ""
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		meant = "; is it " + strings.Join(similar, " or ") + "?"
	}
	return &exitError{exitUsage, fmt.Sprintf("unknown command %q%s: see mkbackup --help", args[0], meant)}
}

// usageErrors makes wrong arguments exit with the code for wrong usage.
func usageErrors(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &exitError{exitUsage, fmt.Sprintf("%v: the usage is %q: see %s --help", err, cmd.UseLine(), cmd.CommandPath())}
		}
		return emptyWords(cmd, args)
	}
}

// emptyWords refuses arguments and values of flags that are empty: a variable of a script
// was not set. The unnamed source and no metrics are spelled like that.
func emptyWords(cmd *cobra.Command, args []string) error {
	names := strings.Fields(cmd.Use)[1:]
	for i, arg := range args {
		if arg == "" {
			name := strings.Trim(names[min(i, len(names)-1)], "[].")
			return &exitError{exitUsage, fmt.Sprintf("bad %s \"\": it is empty: see %s --help", name, cmd.CommandPath())}
		}
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Value.String() == "" && f.Name != "source" && f.Name != "metrics" {
			err = &exitError{exitUsage, fmt.Sprintf("bad --%s \"\": it is empty: see %s --help", f.Name, cmd.CommandPath())}
		}
	})
	return err
}

// printed returns how a command ends that has changed something, where its result
// could not be printed: that is said, but it is done, and to do it again is no remedy.
func printed(err error, dryRun bool) error {
	if err == nil || dryRun {
		return err
	}
	note(fmt.Sprintf("it is done, but what was done could not be printed: %v", err))
	return nil
}
