package main

import (
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// completer completes one argument in the shell: db is the index of the
// repository that the first argument names, args are those before.
type completer func(db *index.DB, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeArgs completes the arguments of a command: a repository, then what the
// completers say, the last of which serves all that follow.
func completeArgs(next ...completer) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		complete := next[min(len(args), len(next))-1]
		repo, err := archive.Open(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer repo.Close()
		db, err := index.Open(repo, index.Options{})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer db.Close()
		return complete(db, args, typed)
	}
}

// generations completes the name of a generation, of any source.
func generations(db *index.DB, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	gens, err := db.Generations()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := map[string]bool{}
	var list []cobra.Completion
	add := func(name string) {
		if strings.HasPrefix(name, typed) && !names[name] {
			names[name] = true
			list = append(list, name)
		}
	}
	for _, g := range gens {
		of := ""
		if g.Source != "" {
			of = g.Source + "/"
		}
		add(of + g.Name)
		add(of + "latest")
	}
	return list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
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

func pathsOf(db *index.DB, g index.Generation, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	dir, start := path.Split(typed)
	view := db.At(g.Number)
	entry, err := view.Resolve(g.Root, cleanPath(dir))
	if err != nil || entry.Dir == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []cobra.Completion
	err = view.List(entry.Dir, "", func(e index.Dirent) bool {
		if strings.HasPrefix(e.Name, start) && !strings.ContainsAny(e.Name, "\n\t") {
			name := dir + e.Name
			if e.Dir != 0 {
				name += "/"
			}
			list = append(list, name)
		}
		return true
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// nothing ends the completion.
func nothing(*index.DB, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// files leaves the completion to the shell.
func files(*index.DB, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}
