package gitignore

import (
	"fmt"
	"strings"
)

// bracket reads a bracket expression from glob[i], behind its "[", into set, and
// returns where it ends.
func bracket(glob string, i int, set *[256]bool) (int, error) {
	negated := i < len(glob) && (glob[i] == '!' || glob[i] == '^')
	if negated {
		i++
	}
	for first, low := true, -1; ; first = false { // low is what a range may start with
		switch {
		case i >= len(glob):
			return 0, errBracket
		case glob[i] == ']' && !first:
			if negated {
				for b := range set {
					set[b] = !set[b]
				}
			}
			set['/'] = false
			return i + 1, nil
		case strings.HasPrefix(glob[i:], "[:"):
			end, ok, err := class(glob, i+2, set)
			if err != nil {
				return 0, err
			}
			if ok {
				i, low = end, -1
				continue
			}
		case glob[i] == '-' && low >= 0 && i+1 < len(glob) && glob[i+1] != ']':
			high, end, err := member(glob, i+1)
			if err != nil {
				return 0, err
			}
			for b := low; b <= int(high); b++ {
				set[b] = true
			}
			i, low = end, -1
			continue
		}
		b, end, err := member(glob, i)
		if err != nil {
			return 0, err
		}
		set[b] = true
		i, low = end, int(b)
	}
}

// member reads one byte, which may be escaped.
func member(glob string, i int) (byte, int, error) {
	if glob[i] == '\\' {
		if i++; i == len(glob) {
			return 0, 0, errBracket
		}
	}
	return glob[i], i + 1, nil
}

// class reads the name of a class such as "alpha" from glob[i], behind "[:", and
// adds it to set. Where no ":]" ends the name it is none.
func class(glob string, i int, set *[256]bool) (end int, ok bool, err error) {
	length := strings.IndexByte(glob[i:], ']')
	if length < 0 {
		return 0, false, errBracket
	}
	name, ok := strings.CutSuffix(glob[i:i+length], ":")
	if !ok {
		return 0, false, nil
	}
	is := classOf(name)
	if is == nil {
		return 0, false, fmt.Errorf("there is no class [:%s:]", name)
	}
	for b := range 128 {
		set[b] = set[b] || is(byte(b))
	}
	return i + length + 1, true, nil
}

// classOf returns the test of a class of ASCII, nil where there is none.
func classOf(name string) func(b byte) bool {
	between := func(low, high byte) func(b byte) bool {
		return func(b byte) bool { return low <= b && b <= high }
	}
	digit, lower, upper, graph := between('0', '9'), between('a', 'z'), between('A', 'Z'), between('!', '~')
	alpha := func(b byte) bool { return lower(b) || upper(b) }
	alnum := func(b byte) bool { return alpha(b) || digit(b) }
	switch name {
	case "alnum":
		return alnum
	case "alpha":
		return alpha
	case "blank":
		return func(b byte) bool { return b == ' ' || b == '\t' }
	case "cntrl":
		return func(b byte) bool { return b < ' ' || b == 0x7f }
	case "digit":
		return digit
	case "graph":
		return graph
	case "lower":
		return lower
	case "print":
		return between(' ', '~')
	case "punct":
		return func(b byte) bool { return graph(b) && !alnum(b) }
	case "space": // without \v and \f, as git has it
		return func(b byte) bool { return strings.IndexByte(" \t\n\r", b) >= 0 }
	case "upper":
		return upper
	case "xdigit":
		return func(b byte) bool { return digit(b) || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F' }
	}
	return nil
}
