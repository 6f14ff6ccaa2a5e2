package main

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
)

func note(text string) { fmt.Fprintln(os.Stderr, "mkbackup:", cli.OneLine(text)) }

func notef(format string, a ...any) { note(fmt.Sprintf(format, a...)) }

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return humanize.Comma(n) + " " + noun + "s"
}

// took says how long something took, as exactly as anybody wants to know.
func took(seconds float64) string {
	grain := 10 * time.Millisecond
	if seconds >= 60 {
		grain = time.Second
	}
	return time.Duration(seconds * float64(time.Second)).Round(grain).String()
}

func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// display returns a path of a generation as it is shown.
func display(path string) string { return backup.Printable(rooted(path)) }

// cleanPath returns a path that a user gave as the index takes it.
func cleanPath(name string) string {
	if clean := strings.TrimPrefix(path.Clean("/"+name), "/"); clean != "" {
		return clean
	}
	return "."
}

// rooted is the inverse of cleanPath.
func rooted(path string) string {
	if path == "." {
		return "/"
	}
	return "/" + path
}

func jsonText(s string) (plain string, encoded []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	return "", []byte(s)
}
