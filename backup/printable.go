package backup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/backupfs/backupfs/index"
)

// Printable returns a path as messages show it: as it is, or quoted where that
// could be mistaken or harm a terminal.
func Printable(path string) string {
	quoted := strconv.Quote(path)
	if quoted[1:len(quoted)-1] == path && !strings.ContainsAny(path, `"`) {
		return path
	}
	return quoted
}

// PathError says of which path of a generation an error is, and what to do where
// the generation has no such path. The path has no leading "/".
func PathError(path string, err error) error {
	if errors.Is(err, index.ErrNotFound) {
		return fmt.Errorf("/%s: the generation has no such path: `mkbackup history` tells which ones have it", Printable(path))
	}
	return fmt.Errorf("/%s: %w", Printable(path), err)
}
