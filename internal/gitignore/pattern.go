// Package gitignore decides which paths of a tree the patterns of gitignore(5)
// exclude, exactly as git does, its undocumented corners included. Patterns and
// paths are bytes: nothing is taken for UTF-8, and upper case is not lower case.
package gitignore

import (
	"errors"
	"fmt"
	"strings"
)

// Pattern is one rule. It is safe for concurrent use.
type Pattern struct {
	text     string
	negated  bool // what matches is included again
	dirOnly  bool // matches directories only
	baseName bool // is compared with the last name of a path, else with the whole path
	literal  string
	glob     []token // what follows the literal; nil means nothing does
}

// Parse returns the pattern that text is. Unlike a line of a file it may begin
// with "#", end with spaces and hold newlines. A pattern that could never match
// anything is an error.
func Parse(text string) (Pattern, error) {
	p := Pattern{text: text}
	rest, negated := strings.CutPrefix(text, "!")
	rest, p.dirOnly = strings.CutSuffix(rest, "/")
	p.negated = negated
	p.baseName = !strings.Contains(rest, "/")
	rest = strings.TrimPrefix(rest, "/")
	if rest == "" {
		return Pattern{}, fmt.Errorf("pattern %q is empty", text)
	}
	if strings.Contains(rest, "\x00") {
		return Pattern{}, fmt.Errorf("pattern %q: %w", text, errNUL)
	}
	literal := strings.IndexAny(rest, `*?[\`)
	if literal < 0 {
		literal = len(rest)
	}
	// git compares what comes before the first wildcard by itself, so that "**"
	// behind it is at the start of a pattern, and may match "/".
	p.literal = rest[:literal]
	var err error
	if p.glob, err = compile(rest[literal:]); err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", text, err)
	}
	if odd := oddName(rest); odd != "" {
		return Pattern{}, fmt.Errorf("pattern %q matches nothing: no path has %s", text, odd)
	}
	return p, nil
}

// oddName returns what a pattern has that no path has. Next to "**" a "/" may match
// nothing, and between brackets it parts no names: there nothing is said.
func oddName(pattern string) string {
	if strings.Contains(pattern, "[") || strings.Contains(pattern, "**") {
		return ""
	}
	for name := range strings.SplitSeq(pattern, "/") {
		switch name {
		case "":
			return `"//"`
		case ".", "..":
			return fmt.Sprintf("a name %q", name)
		}
	}
	return ""
}

// String returns the pattern as it was written.
func (p Pattern) String() string { return p.text }

// match reports whether the pattern alone matches a path; negated ones too.
func (p *Pattern) match(path, base string, dir bool) bool {
	if p.dirOnly && !dir {
		return false
	}
	if p.baseName {
		path = base
	}
	rest, ok := strings.CutPrefix(path, p.literal)
	return ok && matchGlob(p.glob, rest)
}

// token is what one element of a pattern matches.
type token struct {
	kind tokenKind
	set  [256]bool // of oneOf
}

type tokenKind byte

const (
	oneOf   tokenKind = iota // one byte of set, which never has "/" unless it is a literal
	star                     // any bytes but "/", or none
	anyPath                  // any bytes, or none
	anyDirs                  // nothing, or any bytes up to and with a "/"
)

var (
	errBackslash = errors.New(`it ends with \`)
	errBracket   = errors.New("[ without ]")
	errNUL       = errors.New("it has a NUL byte, which no name has")
)

func compile(glob string) ([]token, error) {
	var tokens []token
	for i := 0; i < len(glob); {
		var t token
		var err error
		if t, i, err = next(glob, i); err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

// next returns the token that starts at glob[i], and where it ends.
func next(glob string, i int) (t token, end int, err error) {
	switch glob[i] {
	case '*':
		t.kind, end = stars(glob, i)
		return t, end, nil
	case '[':
		end, err = bracket(glob, i+1, &t.set)
		return t, end, err
	case '?':
		for b := range t.set {
			t.set[b] = b != '/'
		}
		return t, i + 1, nil
	case '\\':
		if i++; i == len(glob) {
			return t, i, errBackslash
		}
	}
	t.set[glob[i]] = true
	return t, i + 1, nil
}

// stars reads a run of "*". Two and more are special only as a whole name.
func stars(glob string, i int) (tokenKind, int) {
	end := i
	for end < len(glob) && glob[end] == '*' {
		end++
	}
	rest := glob[end:]
	switch {
	case end-i == 1 || i > 0 && glob[i-1] != '/':
		return star, end
	case strings.HasPrefix(rest, "/"):
		return anyDirs, end + 1
	case rest == "" || strings.HasPrefix(rest, `\/`):
		return anyPath, end
	}
	return star, end
}

// matchGlob reports whether the tokens match the whole text. It goes back to
// the last star, and where that may not take more, to the last of the others:
// what an earlier one of the same kind could take, the last one can, too.
func matchGlob(glob []token, text string) bool {
	inName, inPath := retry{token: -1}, retry{token: -1}
	for g, t := 0, 0; ; {
		if g == len(glob) && t == len(text) {
			return true
		}
		switch {
		case g < len(glob) && glob[g].kind == star:
			inName = retry{g, t}
			g++
			continue
		case g < len(glob) && glob[g].kind != oneOf:
			inName, inPath = retry{token: -1}, retry{g, t}
			g++
			continue
		case g < len(glob) && t < len(text) && glob[g].set[text[t]]:
			g++
			t++
			continue
		case inName.longer(glob, text):
			g, t = inName.token+1, inName.text
		case inPath.longer(glob, text):
			inName = retry{token: -1}
			g, t = inPath.token+1, inPath.text
		default:
			return false
		}
	}
}

// retry is a star, or its like, and where in the text its match ends.
type retry struct {
	token, text int
}

// longer makes the match longer by as little as possible.
func (r *retry) longer(glob []token, text string) bool {
	if r.token < 0 || r.text == len(text) {
		return false
	}
	switch glob[r.token].kind {
	case star:
		if text[r.text] == '/' {
			return false
		}
	case anyDirs:
		slash := strings.IndexByte(text[r.text:], '/')
		if slash < 0 {
			return false
		}
		r.text += slash
	}
	r.text++
	return true
}
