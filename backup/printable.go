package backup

import (
	"strconv"
	"strings"
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
