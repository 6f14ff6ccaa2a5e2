package gitignore

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/watchdog"
)

// TestManual has the rules of gitignore(5), one by one.
func TestManual(t *testing.T) {
	for _, c := range []struct {
		file string
		yes  []string // excluded; those that end with "/" are directories
		no   []string
	}{
		{"a", []string{"a", "a/", "x/a", "x/y/a/"}, []string{"ab", "A"}},
		{"/a", []string{"a", "a/"}, []string{"x/a"}},
		{"x/a", []string{"x/a"}, []string{"a", "y/x/a"}},
		{"a/", []string{"a/", "x/a/"}, []string{"a", "x/a"}},
		{"*.o\n!keep.o", []string{"a.o", "x/b.o", ".o"}, []string{"keep.o", "x/keep.o"}},
		{"!keep.o\n*.o", []string{"keep.o"}, nil},
		{"x/*", []string{"x/a", "x/b/"}, []string{"x/", "x/b/c", "y/x/a"}},
		{"a?c", []string{"abc", "a\xffc", "a\nc"}, []string{"ac", "abbc", "a/c"}},
		{"**/a", []string{"a", "x/a", "x/y/a"}, []string{"xa"}},
		{"x/**", []string{"x/a", "x/a/b"}, []string{"x/", "x"}},
		{"x/**/a", []string{"x/a", "x/y/a", "x/y/z/a"}, []string{"xa", "x/ya", "a"}},
		{"x/a**b/c", []string{"x/ab/c", "x/aab/c"}, []string{"x/a"}},
		{"[a-c]1", []string{"a1", "c1"}, []string{"d1", "-1"}},
		{"[!a-c]1", []string{"d1", "\xff1"}, []string{"a1"}},
		{"#a\n\\#b\n\\!c", []string{"#b", "!c"}, []string{"#a", "a", "c", "\\#b"}},
		{"a  \nb\\ \n\n   \n", []string{"a", "b "}, []string{"a  ", "b", " "}},
		{"\ufeffa\r\nb\r\n", []string{"a", "b"}, []string{"a\r"}},
		{"a\\*b", []string{"a*b"}, []string{"axb", "a\\*b"}},
		{"\xc3?", []string{"\xc3\xa9"}, []string{"é\xa9"}},
	} {
		list, err := ParseLines("file", []byte(c.file))
		if err != nil {
			t.Errorf("%q: %v", c.file, err)
		}
		for _, path := range slices.Concat(c.yes, c.no) {
			name, dir := strings.CutSuffix(path, "/")
			if got, want := list.Match(name, dir) != nil, slices.Contains(c.yes, path); got != want {
				t.Errorf("%q excludes %q: %v, want %v", c.file, path, got, want)
			}
		}
	}
}

// TestParse: a pattern by itself is no line: nothing of it is dropped.
func TestParse(t *testing.T) {
	for text, path := range map[string]string{"#a": "#a", "a ": "a ", "a\nb": "a\nb", "\ufeffa": "\ufeffa", "a\r": "a\r"} {
		p, err := Parse(text)
		if err != nil || (List{p}).Match(path, false) == nil || p.String() != text {
			t.Errorf("%q does not exclude %q: %v", text, path, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":           `pattern "" is empty`,
		"!":          `pattern "!" is empty`,
		"/":          `pattern "/" is empty`,
		"a[b":        `pattern "a[b": [ without ]`,
		"[]":         `pattern "[]": [ without ]`,
		"[a\\":       `pattern "[a\\": [ without ]`,
		"[[:al":      `pattern "[[:al": [ without ]`,
		"[[:word:]]": `pattern "[[:word:]]": there is no class [:word:]`,
		"a\\":        `pattern "a\\": it ends with \`,
		"a\\/":       `pattern "a\\/": it ends with \`,
		"a\x00b":     `pattern "a\x00b": it has a NUL byte, which no name has`,
		"./a":        `pattern "./a" matches nothing: no path has a name "."`,
		"a/../b":     `pattern "a/../b" matches nothing: no path has a name ".."`,
		"a//b":       `pattern "a//b" matches nothing: no path has "//"`,
	} {
		if _, err := Parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	_, err := ParseLines("/etc/ex", []byte("# fine\na\n\nb[\n"))
	if err == nil || err.Error() != `/etc/ex:4: pattern "b[": [ without ]` {
		t.Errorf("a bad line: %v", err)
	}
}

// TestManyStars: what takes forever where every star tries every length.
func TestManyStars(t *testing.T) {
	list, err := ParseLines("file", []byte("x/"+strings.Repeat("*a", 60)+"b\n"+strings.Repeat("**/*a*/", 30)+"b"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() {
		done <- list.Match("x/"+strings.Repeat("a", 250), false) != nil || list.Match(strings.Repeat("aaa/", 900)+"c", false) != nil
	}()
	select {
	case matched := <-done:
		if matched {
			t.Error("something matches")
		}
	case <-time.After(time.Minute):
		t.Fatal("not done after a minute")
	}
}

// FuzzParse: whatever parses can be matched, and no input panics.
func FuzzParse(f *testing.F) {
	f.Add("!/a[[:alpha:]-z]**/x\\ \n# c\n*?/", "a/b")
	f.Fuzz(func(t *testing.T, file, path string) {
		defer watchdog.Start()()
		list, err := ParseLines("file", []byte(file))
		if err != nil {
			return
		}
		p := list.Match(path, true)
		if p != nil && p.negated {
			t.Errorf("%q is excluded by %q", path, p)
		}
	})
}
