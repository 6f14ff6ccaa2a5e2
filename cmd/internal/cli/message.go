package cli

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Remedy says what to do about an error that does not say so itself because it is
// the system's.
func Remedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return ": make room there and run it again"
	case errors.Is(err, fs.ErrPermission) && errors.As(err, new(*fs.PathError)):
		return ": run it as root, or as the owner"
	case errors.Is(err, syscall.EROFS):
		return ": it is mounted read-only"
	}
	return ""
}

// OneLine returns a message with what cannot be printed, as in a path that somebody
// gave, written as in a quoted string: \n, \xff. What is quoted already stays as it is.
func OneLine(message string) string {
	var line strings.Builder
	for message != "" {
		r, length := utf8.DecodeRuneInString(message)
		if first := message[:length]; strconv.IsPrint(r) && utf8.ValidString(first) {
			line.WriteString(first)
		} else {
			line.WriteString(strings.Trim(strconv.Quote(first), `"`))
		}
		message = message[length:]
	}
	return line.String()
}
