package main

import (
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

// completeArgs completes the arguments of a command: a repository, then what the
// completers say, the last of which serves all that follow.
func completeArgs(next ...cli.Completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return cli.Dirs(cmd, args, typed)
		}
		return cli.WithIndex(next[min(len(args), len(next))-1])(cmd, args, typed)
	}
}

// flagValues completes the values of flags. What the others take is neither a file
// nor in the repository.
var flagValues = map[string]cobra.CompletionFunc{
	"source":       cli.WithIndex(cli.Sources),
	"root":         cli.Dirs,
	"against":      cli.Dirs,
	"exclude-from": cli.Files,
	"metrics":      cli.Files,
	"progress":     choice("auto\ton a terminal", "always\telsewhere as a line a minute", "never"),
	"ionice":       choice("idle\twhen nobody else wants the disk", "best-effort", "realtime\tbefore all others; root only"),
	"nice":         choice("10\tafter most others", "19\tafter all others"),
}

// choice completes to one of some words, behind which a description may stand.
func choice(words ...cobra.Completion) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)
}

// paths completes a path inside the generation that the second argument names.
func paths(db *index.DB, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	g, err := findGeneration(db, args[1])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return pathsOf(db, g, typed)
}

// latestPaths completes a path inside the newest generation.
func latestPaths(db *index.DB, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	gens, err := db.Generations()
	if err != nil || len(gens) == 0 {
		return nil, cobra.ShellCompDirectiveError
	}
	return pathsOf(db, gens[len(gens)-1], typed)
}

// pathsOf offers no name that a shell would not take as it stands: some insert what
// several names have in common as it is, and anybody may have made up such a name.
func pathsOf(db *index.DB, g index.Generation, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	dir, start := path.Split(typed)
	view := db.At(g.Number)
	entry, err := view.Resolve(g.Root, cleanPath(dir))
	if err != nil || entry.Dir == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []cobra.Completion
	directive := cobra.ShellCompDirectiveNoFileComp
	err = view.List(entry.Dir, "", func(e index.Dirent) bool {
		if strings.HasPrefix(e.Name, start) && isPlain(e.Name) {
			name := dir + e.Name
			if e.Dir != 0 {
				name += "/"
				directive |= cobra.ShellCompDirectiveNoSpace // the path may go on
			}
			list = append(list, name)
		}
		return true
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return list, directive
}

// nothing ends the completion.
func nothing(*index.DB, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// files leaves the completion to the shell.
func files(*index.DB, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}
