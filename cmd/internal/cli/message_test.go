package cli

import (
	"strconv"
	"testing"
)

func TestOneLine(t *testing.T) {
	for message, want := range map[string]string{
		"":                           "",
		"/a/b: no such file":         "/a/b: no such file",
		`C:\n "q" ä €`:               `C:\n "q" ä €`,
		"a\nb\tc\x1b[31m\x00":        `a\nb\tc\x1b[31m\x00`,
		"\xff/\xe4\xb8/\u00a0\u2028": `\xff/\xe4\xb8/\u00a0\u2028`,
		"\ufffd":                     "\ufffd",
		strconv.Quote("a\n\"b\\"):    `"a\n\"b\\"`,
	} {
		if got := OneLine(message); got != want {
			t.Errorf("%q: got %s, want %s", message, got, want)
		}
	}
}
