package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Execute runs a program's command line. Help that cannot be printed, or that is wanted of
// a command that there is not, is an error, as it is not to cobra.
func Execute(ctx context.Context, root *cobra.Command) error {
	root.SetOut(os.Stdout) // cobra prints there, too, that it could not print: our caller says it
	var failed error
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { failed = help(cmd) })
	return cmp.Or(root.ExecuteContext(ctx), failed)
}

// help prints the help of a command. Where it has others below it, its arguments are the
// name of one that there is not.
func help(cmd *cobra.Command) error {
	if cmd.HasSubCommands() {
		if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n\n%s", strings.TrimSpace(cmp.Or(cmd.Long, cmd.Short)), cmd.UsageString())
	return err
}
