package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/backupfs/backupfs/index"
)

func findCommand() *cobra.Command {
	var source string
	var asJSON, ignoreCase bool
	cmd := &cobra.Command{
		Use:   "find REPO PATTERN",
		Short: "Find paths in all generations at once",
		Long: `Find the paths that match a pattern in any generation, and say from which to which
generation each was there: one line per span, so a path that was deleted and came
again has several.

PATTERN is compared with the last component of a path, as "find -name" does:
"*" is any characters, "?" any one, "[a-z]" one of these, "[!a-z]" none of these,
"\" takes the next one as it is. A pattern with a "/" is compared with the whole
path; there "**" stands for any number of directories.

No match is no error: the exit code is 0 and nothing is printed.`,
		Example: `  mkbackup find /srv/backup 'invoice*.pdf'
  mkbackup find /srv/backup -i '/home/*/**/report?.odt' --source web1`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeArgs(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			match, err := compilePattern(args[1], ignoreCase)
			if err != nil {
				return &exitError{exitUsage, fmt.Sprintf("bad PATTERN %q: %v", args[1], err)}
			}
			return withIndex(cmd.Context(), args[0], func(db *index.DB) error {
				gens, err := db.Generations()
				if err != nil {
					return err
				}
				if cmd.Flags().Changed("source") {
					if gens, err = generationsOf(db, source); err != nil {
						return err
					}
				}
				found, err := db.Search(gens, match)
				if err != nil {
					return err
				}
				if asJSON {
					return foundJSON(cmd.OutOrStdout(), found)
				}
				return foundLines(cmd.OutOrStdout(), found)
			})
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "only paths of the source `NAME`")
	cmd.Flags().BoolVarP(&ignoreCase, "ignore-case", "i", false, "take upper and lower case for the same")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object per path")
	return cmd
}

// compilePattern returns what tells whether the entry of a directory matches.
func compilePattern(pattern string, ignoreCase bool) (func(dir, name string) bool, error) {
	fold := func(s string) string { return s }
	if ignoreCase {
		fold = lower
	}
	// path.Match spells the negation of a class "[^".
	pattern = strings.NewReplacer(`\\`, `\\`, `\[`, `\[`, "[!", "[^").Replace(fold(pattern))
	whole := strings.Contains(pattern, "/")
	components := strings.Split(strings.Trim(pattern, "/"), "/")
	for _, c := range components {
		if _, err := path.Match(c, ""); err != nil {
			return nil, err
		}
		if c == "" || c == "." || c == ".." {
			return nil, fmt.Errorf("the component %q matches nothing", c)
		}
	}
	if !whole {
		return func(_, name string) bool {
			ok, _ := path.Match(pattern, fold(name)) // the pattern is good
			return ok
		}, nil
	}
	return func(dir, name string) bool {
		var names []string
		if dir != "" {
			names = strings.Split(fold(dir), "/")
		}
		return matchComponents(components, append(names, fold(name)))
	}, nil
}

// matchComponents reports whether names match patterns, of which "**" matches any
// number of names.
func matchComponents(patterns, names []string) bool {
	for ; len(patterns) > 0; patterns, names = patterns[1:], names[1:] {
		if patterns[0] == "**" {
			for i := range len(names) + 1 {
				if matchComponents(patterns[1:], names[i:]) {
					return true
				}
			}
			return false
		}
		if len(names) == 0 {
			return false
		}
		if ok, _ := path.Match(patterns[0], names[0]); !ok {
			return false
		}
	}
	return len(names) == 0
}

// lower returns s in lower case; where it is not UTF-8, only its ASCII letters.
func lower(s string) string {
	if utf8.ValidString(s) {
		return strings.ToLower(s)
	}
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// foundPath is a path as find --json prints it.
type foundPath struct {
	Path   string      `json:"path,omitempty"`
	Path64 []byte      `json:"path64,omitempty"`
	Source string      `json:"source"`
	Type   string      `json:"type"`
	Spans  []foundSpan `json:"spans"`
}

type foundSpan struct {
	First string `json:"first"`
	Last  string `json:"last"`
}

func foundJSON(w io.Writer, found []index.Found) error {
	out := json.NewEncoder(w)
	for _, f := range found {
		p := foundPath{Source: f.Source, Type: f.Type.String()}
		p.Path, p.Path64 = jsonText(rooted(f.Path))
		for _, s := range f.Spans {
			p.Spans = append(p.Spans, foundSpan{s.First.Name, s.Last.Name})
		}
		if err := out.Encode(p); err != nil {
			return err
		}
	}
	return nil
}

// foundLines prints a line per span: first and last generation, and the path.
func foundLines(w io.Writer, found []index.Found) error {
	for _, f := range found {
		name := display(f.Path)
		source := ""
		if f.Source != "" {
			source = f.Source + "/"
		}
		for _, s := range f.Spans {
			if _, err := fmt.Fprintf(w, "%s%s .. %s  %s\n", source, s.First.Name, s.Last.Name, name); err != nil {
				return err
			}
		}
	}
	return nil
}
