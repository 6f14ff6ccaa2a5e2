// Package manual writes what a package manager installs beside a program: its
// manual pages and its shell completions, both made from its commands.
package manual

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Section is a part of a manual page that is no help text.
type Section struct {
	Title string // "EXIT STATUS"
	Text  string // Markdown
}

// Book says what is common to the manual pages of a program.
type Book struct {
	version  string    // of the program
	date     time.Time // printed at the foot of each page
	sections []Section // of every page
	also     []string  // pages of others to see: "mount(8)"
}

// New returns a Book of a version of a program, whose pages end with those of
// others ("mount(8)"). Its date is that of the build:
// now, or SOURCE_DATE_EPOCH seconds after 1970 where that is set
// (reproducible-builds.org).
func New(version string, also []string, sections ...Section) Book {
	b := Book{version: version, date: time.Now().UTC(), sections: sections, also: also}
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		b.date = time.Unix(seconds, 0).UTC()
	}
	return b
}

// Write makes, below dir, a manual page of the command and of each below it
// (man1/), and completions for bash, zsh and fish, laid out as in /usr/share.
func (b Book) Write(cmd *cobra.Command, dir string) error {
	if err := b.pages(cmd, filepath.Join(dir, "man", "man1")); err != nil {
		return err
	}
	return completions(cmd, dir)
}

func (b Book) pages(cmd *cobra.Command, dir string) error {
	cmd.InitDefaultHelpFlag()
	for _, sub := range documented(cmd) {
		if err := b.pages(sub, dir); err != nil {
			return err
		}
	}
	return write(filepath.Join(dir, pageName(cmd)+".1"), b.page(cmd))
}

// page renders one page, its sections in the order of man-pages(7).
func (b Book) page(cmd *cobra.Command) []byte {
	name := pageName(cmd)
	var md strings.Builder
	fmt.Fprintf(&md, "%% %q \"1\" %q %q \"backupfs\"\n", strings.ToUpper(name), b.date.Format(time.DateOnly), cmd.Root().Name()+" "+b.version)
	section(&md, "NAME", name+` \- `+cmd.Short)
	section(&md, "SYNOPSIS", synopsis(cmd))
	description := cmd.Long
	if description == "" {
		description = cmd.Short + "."
	}
	section(&md, "DESCRIPTION", literalBlocks(description))
	section(&md, "COMMANDS", commands(cmd))
	section(&md, "OPTIONS", options(cmd))
	section(&md, "EXAMPLES", literalBlocks(cmd.Example))
	for _, s := range b.sections {
		section(&md, s.Title, s.Text)
	}
	section(&md, "SEE ALSO", b.related(cmd))
	return md2man.Render([]byte(md.String()))
}

// pageName returns what a command's page is called: "mkbackup-create".
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// section writes a section, unless there is nothing in it.
func section(md *strings.Builder, title, text string) {
	if text = strings.Trim(text, "\n"); text != "" {
		fmt.Fprintf(md, "\n# %s\n\n%s\n", title, text)
	}
}

func synopsis(cmd *cobra.Command) string {
	if len(documented(cmd)) > 0 {
		return "**" + cmd.CommandPath() + "** *COMMAND* ..."
	}
	return "**" + cmd.UseLine() + "**"
}

// commands says what each command directly below is for.
func commands(cmd *cobra.Command) string {
	var md strings.Builder
	for _, sub := range documented(cmd) {
		fmt.Fprintf(&md, "**%s**\n: %s.\n\n", strings.TrimSuffix(sub.UseLine(), " [flags]"), sub.Short)
	}
	return md.String()
}

// options describes the flags of a command.
func options(cmd *cobra.Command) string {
	var md strings.Builder
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if f.Shorthand != "" {
			fmt.Fprintf(&md, "**-%s**, ", f.Shorthand)
		}
		fmt.Fprintf(&md, "**--%s**", f.Name)
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			fmt.Fprintf(&md, " *%s*", value)
		}
		fmt.Fprintf(&md, "\n: %s", strings.ReplaceAll(usage, "\n", " "))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" {
			fmt.Fprintf(&md, " (default: %s)", f.DefValue)
		}
		md.WriteString("\n\n")
	})
	return md.String()
}

// related names the pages of the command above, of those below, and of others.
func (b Book) related(cmd *cobra.Command) string {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, pageName(cmd.Parent()))
	}
	for _, sub := range documented(cmd) {
		pages = append(pages, pageName(sub))
	}
	related := slices.Clone(b.also)
	for _, page := range slices.Backward(pages) {
		related = append([]string{page + "(1)"}, related...)
	}
	for i, page := range related {
		name, number, _ := strings.Cut(page, "(")
		related[i] = "**" + name + "**(" + number
	}
	return strings.Join(related, ", ")
}

// documented returns the commands directly below that have pages.
func documented(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(sub *cobra.Command) bool {
		return !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() || sub.Name() == "completion"
	})
}

// literalBlocks makes indented lines of a help text what Markdown takes for
// preformatted text: four more spaces, and an empty line before and behind. In the
// others a "*" is no emphasis.
func literalBlocks(help string) string {
	var b strings.Builder
	literal := false
	for line := range strings.Lines(help) {
		if indented := strings.HasPrefix(line, "  "); indented != literal && strings.TrimSpace(line) != "" {
			b.WriteByte('\n')
			literal = indented
		}
		if literal && strings.TrimSpace(line) != "" {
			b.WriteString("    ")
		} else {
			line = strings.ReplaceAll(line, "*", `\*`)
		}
		b.WriteString(line)
	}
	return b.String()
}

func completions(cmd *cobra.Command, dir string) error {
	root, name := cmd.Root(), cmd.Root().Name()
	var bash, zsh, fish bytes.Buffer
	if err := root.GenBashCompletionV2(&bash, true); err != nil {
		return err
	}
	if err := root.GenZshCompletion(&zsh); err != nil {
		return err
	}
	if err := root.GenFishCompletion(&fish, true); err != nil {
		return err
	}
	for file, text := range map[string][]byte{
		"bash-completion/completions/" + name:         bash.Bytes(),
		"zsh/site-functions/_" + name:                 zsh.Bytes(),
		"fish/vendor_completions.d/" + name + ".fish": fish.Bytes(),
	} {
		if err := write(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return nil
}

func write(name string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}
