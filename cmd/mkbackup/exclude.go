package main

import (
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/internal/gitignore"
)

// addExcludeFlags adds the flags that fill x. Patterns stay in the order in
// which the command line has them, whichever flag they come from.
func addExcludeFlags(flags *pflag.FlagSet, x *backup.Excludes) {
	flags.Func("exclude", "leave out what matches `PATTERN`, as in .gitignore: see \"Excludes\"; repeatable", func(text string) error {
		p, err := gitignore.Parse(text)
		x.Patterns = append(x.Patterns, p)
		return err
	})
	flags.Func("exclude-from", "leave out what matches the patterns in `FILE`, one a line; - is standard input; repeatable", func(name string) error {
		list, err := readPatterns(name)
		x.Patterns = append(x.Patterns, list...)
		return err
	})
	flags.BoolVar(&x.Caches, "exclude-caches", false, "of a directory with a CACHEDIR.TAG store only itself and the tag")
	flags.BoolVar(&x.NoDump, "exclude-nodump", false, "leave out what has the attribute nodump (chattr +d), with all below")
	flags.Func("exclude-if-present", "of a directory with a `NAME` in it store only itself and that; repeatable", func(name string) error {
		if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
			return errors.New("give a name without a directory")
		}
		x.IfPresent = append(x.IfPresent, name)
		return nil
	})
	flags.BoolVar(&x.OneFileSystem, "one-file-system", false, "store mount points below the PATHs as empty directories")
}

// readPatterns reads a file of patterns, or standard input where it is "-".
func readPatterns(name string) (gitignore.List, error) {
	if name == "-" {
		content, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, err
		}
		return gitignore.ParseLines("standard input", content)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return gitignore.ParseLines(backup.Printable(name), content)
}
