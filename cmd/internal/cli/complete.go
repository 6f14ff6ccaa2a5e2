package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/cmd/internal/config"
	"github.com/backupfs/backupfs/index"
)

// Completer completes a word in the shell: db is the index of the repository that
// the first argument names, args are the arguments before the word.
type Completer func(db *index.DB, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// WithIndex completes a word behind the argument that names a repository.
func WithIndex(complete Completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		repo, err := archive.Open(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer repo.Close()
		db, err := index.Open(repo, index.Options{Interrupted: cmd.Context().Err})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer db.Close()
		return complete(db, args, typed)
	}
}

// Generations completes the name of a generation, of any source.
func Generations(db *index.DB, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return generationNames(db, typed, func(g index.Generation) (dir string, wanted bool) {
		if g.Source == "" {
			return "", true
		}
		return g.Source + "/", true
	})
}

// GenerationsOf completes the name of a generation of a source.
func GenerationsOf(source string) Completer {
	return func(db *index.DB, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return generationNames(db, typed, func(g index.Generation) (string, bool) { return "", g.Source == source })
	}
}

// generationNames returns the names of generations that begin as typed, behind
// the directory that place gives them.
func generationNames(db *index.DB, typed string, place func(index.Generation) (dir string, wanted bool)) ([]cobra.Completion, cobra.ShellCompDirective) {
	gens, err := db.Generations()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list := words{typed: typed}
	for _, g := range gens {
		if dir, wanted := place(g); wanted {
			list.add(dir + g.Name)
			list.add(dir + "latest")
		}
	}
	return list.list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// Sources completes the name of a source.
func Sources(db *index.DB, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	gens, err := db.Generations()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list := words{typed: typed}
	for _, g := range gens {
		if g.Source != "" {
			list.add(g.Source)
		}
	}
	return list.list, cobra.ShellCompDirectiveNoFileComp
}

// words are what a word may be completed to: each once, in the order of add.
type words struct {
	typed string
	list  []cobra.Completion
	known map[string]bool
}

func (w *words) add(word string) {
	if !strings.HasPrefix(word, w.typed) || w.known[word] {
		return
	}
	if w.known == nil {
		w.known = map[string]bool{}
	}
	w.known[word] = true
	w.list = append(w.list, word)
}

// Configurations completes the name of a file in config.Dir, or the path of another.
func Configurations(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return config.Names(), cobra.ShellCompDirectiveDefault
}

// Dirs completes the name of a directory.
func Dirs(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// Files leaves the completion to the shell.
func Files(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// CompleteFlags completes the values of a command's flags by their names. A flag
// that is not among them has a value that no shell can know.
func CompleteFlags(cmd *cobra.Command, values map[string]cobra.CompletionFunc) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.NoOptDefVal != "" {
			return
		}
		complete := values[f.Name]
		if complete == nil {
			complete = cobra.NoFileCompletions
		}
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete) // the flag exists, and has none
	})
}
