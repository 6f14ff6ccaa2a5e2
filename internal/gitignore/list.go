package gitignore

import (
	"fmt"
	"strings"
)

// List is an ordered list of patterns. It is safe for concurrent use while
// nobody changes it.
type List []Pattern

// ParseLines returns the patterns of a file: one a line; blank lines and those
// that begin with "#" are none, trailing spaces do not count unless escaped by
// "\". name is that of the file, for errors.
func ParseLines(name string, content []byte) (List, error) {
	var list List
	text := strings.TrimPrefix(string(content), "\ufeff")
	number := 0
	for line := range strings.SplitSeq(text, "\n") {
		number++
		if strings.HasPrefix(line, "#") {
			continue
		}
		if line = trimSpaces(strings.TrimSuffix(line, "\r")); line == "" {
			continue
		}
		p, err := Parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// trimSpaces removes trailing spaces but those behind "\".
func trimSpaces(line string) string {
	end := 0 // behind the last byte that stays
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case ' ':
			continue
		case '\\':
			i++
		}
		end = min(i+1, len(line))
	}
	return line[:end]
}

// Match returns the pattern that excludes a path, nil where none does. The path
// is relative to the root, without "." and "..". What lies below an excluded
// directory is excluded, but Match does not look at the directories above: the
// caller does not descend into what is excluded.
func (l List) Match(path string, dir bool) *Pattern {
	if p := l.last(path, dir); p != nil && !p.negated {
		return p
	}
	return nil
}

// last returns the last pattern that matches.
func (l List) last(path string, dir bool) *Pattern {
	base := path[strings.LastIndexByte(path, '/')+1:]
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].match(path, base, dir) {
			return &l[i]
		}
	}
	return nil
}
