package backup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/backupfs/backupfs/index"
)

// Printable returns a path as messages show it: exactly as it is, or, where that could
// harm a terminal, quoted as a whole. So is what begins with a quote: what is shown with
// one before it is always quoted.
func Printable(path string) string {
	unprintable := func(r rune) bool { return !strconv.IsPrint(r) }
	if utf8.ValidString(path) && !strings.ContainsFunc(path, unprintable) && !strings.HasPrefix(path, `"`) {
		return path
	}
	return strconv.Quote(path)
}

// PathError says of which path of a generation an error is, and what to do where
// the generation has no such path. The path has no leading "/".
func PathError(path string, err error) error {
	if errors.Is(err, index.ErrNotFound) {
		return fmt.Errorf("%s: the generation has no such path: `mkbackup history` tells which ones have it", Printable("/"+path))
	}
	return fmt.Errorf("%s: %w", Printable("/"+path), err)
}
