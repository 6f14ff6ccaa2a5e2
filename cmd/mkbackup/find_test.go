package main

import (
	"path"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern    string
		ignoreCase bool
		match      []string
		not        []string
	}{
		{"*.conf", false, []string{"a.conf", ".conf", "x/y/b.conf"}, []string{"a.CONF", "conf", "a.conf/x"}},
		{"*.Conf", true, []string{"a.conf", "x/A.CONF"}, []string{"a.conf2"}},
		{"Ä?", true, []string{"äx", "ÄX"}, []string{"ax", "ä"}},
		{"[!a-c]", false, []string{"d", "x/e"}, []string{"a", "x/b", "dd"}},
		{`\[!a]`, false, []string{"[!a]"}, []string{"b"}},
		{`\\[!a]`, false, []string{`\b`}, []string{`\a`, "b"}},
		{"?", false, []string{"\xff", "é", "x/\n"}, []string{"", "ab"}},
		{"\xff", false, []string{"\xff"}, []string{"\xfe"}},
		{"A\xff", true, []string{"a\xff", "A\xff"}, []string{"a\xfe"}},
		{"**", false, []string{"a", "x/y"}, nil},
		{"/etc/*.conf", false, []string{"etc/a.conf"}, []string{"etc/x/a.conf", "srv/etc/a.conf", "etc"}},
		{"etc/*.conf", false, []string{"etc/a.conf"}, []string{"x/etc/a.conf"}},
		{"etc/**/*.conf", false, []string{"etc/a.conf", "etc/x/a.conf", "etc/x/y/a.conf"}, []string{"a.conf", "etc/x/a"}},
		{"**/x/**", false, []string{"x", "x/y", "a/x", "a/b/x/y/z"}, []string{"a/b", "xx/y"}},
		{"/home/*/", false, []string{"home/alice"}, []string{"home", "home/alice/x"}},
		{"/HOME/*", true, []string{"home/alice", "Home/Bob"}, []string{"homes/alice"}},
	} {
		match, err := compilePattern(c.pattern, c.ignoreCase)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		try := func(p string, want bool) {
			dir, name := path.Split(p)
			if got := match(strings.TrimSuffix(dir, "/"), name); got != want {
				t.Errorf("%q matches %q: %t, want %t", c.pattern, p, got, want)
			}
		}
		for _, p := range c.match {
			try(p, true)
		}
		for _, p := range c.not {
			try(p, false)
		}
	}
	for _, bad := range []string{"", "/", "[a", `a\`, "a//b", "../a", "a/[", "./a"} {
		if _, err := compilePattern(bad, false); err == nil {
			t.Errorf("the pattern %q is taken", bad)
		}
	}
}
