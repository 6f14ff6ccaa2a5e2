package gitignore

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The judge is git itself: which line of a file of patterns decides about a path.

// work is a work tree of git with the given paths; those that end with "/" are directories.
type work struct {
	t     *testing.T
	dir   string
	paths []string
}

func newWork(t *testing.T, paths []string) *work {
	t.Helper()
	w := &work{t: t, dir: t.TempDir(), paths: paths}
	for _, path := range paths {
		full := filepath.Join(w.dir, path)
		dir := filepath.Dir(full)
		if strings.HasSuffix(path, "/") {
			dir = full
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != full {
			if err := os.WriteFile(full, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.git(nil, "init", "-q")
	return w
}

// git runs git without the settings of the user and the machine.
func (w *work) git(stdin []byte, args ...string) []byte {
	w.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", w.dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 1 { // 1: nothing is ignored
		w.t.Fatalf("git %q: %v\n%s", args, err, stderr.String())
	}
	return stdout.Bytes()
}

// verdicts returns for each path the number of the line of content that decides, 0 for none.
func (w *work) verdicts(content []byte) []int {
	w.t.Helper()
	file := filepath.Join(w.dir, ".git", "info", "exclude")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		w.t.Fatal(err)
	}
	var list []byte
	for _, path := range w.paths {
		list = append(append(list, strings.TrimSuffix(path, "/")...), 0)
	}
	fields := strings.Split(string(w.git(list, "check-ignore", "--no-index", "--stdin", "-z", "-v", "-n")), "\x00")
	if len(fields) != 4*len(w.paths)+1 {
		w.t.Fatalf("git check-ignore says %d fields of %d paths", len(fields), len(w.paths))
	}
	lines := make([]int, len(w.paths))
	for i := range lines {
		if number := fields[4*i+1]; number != "" {
			lines[i], _ = strconv.Atoi(number)
		}
	}
	return lines
}

// numbered is a list of patterns and the line of each.
type numbered struct {
	list  List
	lines []int
}

// decide returns the line that decides about a path, as a walk does that does
// not enter excluded directories.
func (n numbered) decide(path string) int {
	path, dir := strings.CutSuffix(path, "/")
	for i := range len(path) {
		if path[i] == '/' && n.list.Match(path[:i], true) != nil {
			return n.line(path[:i], true)
		}
	}
	return n.line(path, dir)
}

func (n numbered) line(path string, dir bool) int {
	p := n.list.last(path, dir)
	if p == nil {
		return 0
	}
	for i := range n.list {
		if p == &n.list[i] {
			return n.lines[i]
		}
	}
	panic("a pattern of another list")
}

// usable parses a file line by line; a line that is an error is left out.
func usable(content []byte) (n numbered, bad int) {
	for i, line := range bytes.Split(content, []byte("\n")) {
		list, err := ParseLines("file", line)
		if err != nil {
			bad++
		}
		for _, p := range list {
			n.list = append(n.list, p)
			n.lines = append(n.lines, i+1)
		}
	}
	return n, bad
}

// compare returns how many pairs of a pattern and a path matched, and how many
// lines were errors, which git must never find to match.
func (w *work) compare(content []byte) (matched, bad int) {
	w.t.Helper()
	n, bad := usable(content)
	for i, line := range w.verdicts(content) {
		got := n.decide(w.paths[i])
		if got != line {
			lines := append([]string{"(none)"}, strings.Split(string(content), "\n")...)
			w.t.Errorf("%q: git says line %d %q, we say %d %q", w.paths[i], line, lines[line], got, lines[got])
		}
		if line != 0 {
			matched++
		}
	}
	return matched, bad
}

// random makes names and patterns of few different bytes, so that many match.
type random struct{ *rand.Rand }

func (r random) pick(from ...string) string { return from[r.IntN(len(from))] }

func (r random) paths(n int) []string {
	set := map[string]bool{}
	for len(set) < n {
		var names []string
		for range 1 + r.IntN(4) {
			name := ""
			for range 1 + r.IntN(3) {
				name += r.pick("a", "b", "c", "a", "b", "-", "]", "[", "*", "?", "\\", "!", "#", " ", "^", "A", "1", ".x", "\n", "\xff", "\xc3\xa9", "\t", "\r")
			}
			names = append(names, name)
		}
		set[strings.Join(names, "/")] = true
	}
	var paths []string
	for path := range set {
		for i := range len(path) { // what has something below is a directory
			if path[i] == '/' {
				set[path[:i]] = false
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(set)) {
		if !set[path] || r.IntN(4) == 0 {
			path += "/"
		}
		paths = append(paths, path)
	}
	return paths
}

func (r random) pattern(paths []string) string {
	if r.IntN(3) == 0 {
		return r.mutated(strings.TrimSuffix(paths[r.IntN(len(paths))], "/"))
	}
	p := r.pick("", "", "", "!", "/", "!/", "**/", "\\", " ", "#")
	for range 1 + r.IntN(6) {
		p += r.pick("a", "b", "c", "a", "b", "c", "/", "/", "*", "*", "**", "/**", "**/", "/**/", "***", "?", "\\a", "\\*", "\\", "\\/", "-", ".x", "A", " ", "\\ ",
			"\xff", "\t", "\r", r.bracket(), r.bracket())
	}
	return p + r.pick("", "", "", "/", " ", "\\ ", "  ", "\r", "/*", "/**")
}

// mutated is a path with some bytes replaced by what could match them.
func (r random) mutated(path string) string {
	p := r.pick("", "", "!", "/", "**/")
	for i := range len(path) {
		switch r.IntN(6) {
		case 0:
			p += r.pick("*", "?", "**", "[!x]", "[^b]", "[a-c]", "[[:print:]]", r.bracket())
		case 1:
			p += "\\" + path[i:i+1]
		default:
			p += path[i : i+1]
		}
	}
	return p + r.pick("", "", "/", "*", "/**")
}

func (r random) bracket() string {
	b := "[" + r.pick("", "", "!", "^")
	for range 1 + r.IntN(4) {
		b += r.pick("a", "b", "c", "a-c", "-", "]", "\\]", "\\-", "\\a-\\c", "c-a", "[", "[:alpha:]", "[:digit:]", "[:upper:]", "[:punct:]", "[:", "[:none:]", "/", "\xc3", "\xf0-\xff", "!", "^", "\\")
	}
	return b + r.pick("]", "]", "]", "]", "]", "]", "]", "")
}

// TestAgainstGit compares thousands of random patterns on random paths with git.
func TestAgainstGit(t *testing.T) {
	r := random{rand.New(rand.NewPCG(1, 2))}
	var patterns, matched, bad int
	for range 12 {
		w := newWork(t, r.paths(120))
		for range 40 {
			var lines []string
			for range 1 + r.IntN(12) {
				lines = append(lines, r.pattern(w.paths))
			}
			m, b := w.compare([]byte(strings.Join(lines, "\n")))
			patterns, matched, bad = patterns+len(lines), matched+m, bad+b
		}
	}
	t.Logf("%d patterns, %d of them errors; %d paths matched", patterns, bad, matched)
	if patterns < 2500 || matched < 20000 || bad < 100 {
		t.Errorf("the random patterns are no test: %d patterns, %d of them errors; %d paths matched", patterns, bad, matched)
	}
}

// TestEveryByteAgainstGit compares every class and other one-byte patterns on every byte that a name may have.
func TestEveryByteAgainstGit(t *testing.T) {
	var paths []string
	for b := 1; b < 256; b++ {
		if b != '/' {
			paths = append(paths, "x"+string([]byte{byte(b)})+"y")
		}
	}
	w := newWork(t, paths)
	for _, class := range []string{"alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "xdigit"} {
		for _, form := range []string{"x[[:%s:]]y", "x[![:%s:]]y", "x[[:%s:]-z]y"} {
			if m, _ := w.compare(fmt.Appendf(nil, form, class)); m == 0 {
				t.Errorf("git finds nothing in the class %s", class)
			}
		}
	}
	for b := 1; b < 256; b++ {
		for _, form := range []string{"x%sy", "x\\%sy", "x[%s]y", "x[a%s]y", "x[\\%s]y", "x[^%s]y", "x[%s-\xff]y"} {
			if b != '\n' && (b%8 == 0 || strings.IndexByte(`*?[\]!^-:# `, byte(b)) >= 0) {
				w.compare(fmt.Appendf(nil, form, string([]byte{byte(b)})))
			}
		}
	}
}
