package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// progressFor shows the progress of a run of some length in a form, and returns
// what it prints.
func progressFor(t *testing.T, f form, length time.Duration) (stdout, stderr string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out, err bytes.Buffer
		p := newProgress(progressFlags{when: "never"}, func(elapsed time.Duration) state {
			return state{Phase: "test", Done: int64(elapsed / time.Minute), Total: 4, Unit: "minutes", text: "some text"}
		})
		p.form, p.stdout, p.stderr = f, &out, &err
		p.start()
		time.Sleep(length)
		synctest.Wait()
		p.stop()
		stdout, stderr = out.String(), err.String()
	})
	return stdout, stderr
}

func TestALineEveryMinute(t *testing.T) {
	stdout, stderr := progressFor(t, lines, 3*time.Minute+10*time.Second)
	want := "mkbackup: 1m0s, 25%: some text\nmkbackup: 2m0s, 50%: some text\nmkbackup: 3m0s, 75%: some text\nmkbackup: 3m10s, 75%: some text\n"
	if stderr != want || stdout != "" {
		t.Errorf("stderr %q, want %q; stdout %q", stderr, want, stdout)
	}
	if stdout, stderr := progressFor(t, hidden, time.Hour); stdout+stderr != "" {
		t.Errorf("hidden progress shows %q%q", stdout, stderr)
	}
}

func TestAnEventEverySecond(t *testing.T) {
	stdout, stderr := progressFor(t, events, 90*time.Second+500*time.Millisecond)
	if n := strings.Count(stdout, "\n"); n != 91 || stderr != "" {
		t.Errorf("%d events, want 90 and one at the end; stderr %q", n, stderr)
	}
	last := stdout[strings.LastIndex(strings.TrimSpace(stdout), "\n")+1:]
	var got state
	if err := json.Unmarshal([]byte(last), &got); err != nil {
		t.Fatal(err)
	}
	if want := (state{Event: "progress", Phase: "test", Done: 1, Total: 4, Unit: "minutes", Seconds: 90.5}); got != want {
		t.Errorf("the last event is %+v, want %+v", got, want)
	}
}

// In events, every line of standard output is one.
func TestMessagesAreEvents(t *testing.T) {
	for f, want := range map[form][2]string{
		events: {`{"event":"change","path":"/a","text":"+"}` + "\n" + `{"event":"problem","path":"/b","text":"gone"}` + "\n", "mkbackup: /b: gone\n"},
		hidden: {"+ /a\n", "mkbackup: /b: gone\n"},
	} {
		var stdout, stderr bytes.Buffer
		p := &progress{form: f, stdout: &stdout, stderr: &stderr}
		p.tell("+ /a", message{"change", "/a", "+"})
		p.warn("/b: gone", message{"problem", "/b", "gone"})
		if stdout.String() != want[0] || stderr.String() != want[1] {
			t.Errorf("form %d prints %q and %q, want %q", f, stdout.String(), stderr.String(), want)
		}
	}
}

func TestFormOfProgress(t *testing.T) {
	for _, test := range []struct {
		flags    progressFlags
		terminal string
		want     form
	}{
		{progressFlags{when: "auto"}, "", hidden},
		{progressFlags{when: "auto", json: true}, "", hidden},
		{progressFlags{when: "auto"}, "xterm", drawn},
		{progressFlags{when: "auto"}, "dumb", lines},
		{progressFlags{when: "auto", json: true}, "xterm", drawn},
		{progressFlags{when: "auto", quiet: true}, "xterm", hidden},
		{progressFlags{when: "never", json: true}, "xterm", hidden},
		{progressFlags{when: "always"}, "", lines},
		{progressFlags{when: "always", quiet: true}, "", lines},
		{progressFlags{when: "always"}, "xterm", drawn},
		{progressFlags{when: "always", json: true}, "", events},
		{progressFlags{when: "always", json: true, quiet: true}, "xterm", events},
	} {
		if got := test.flags.form(test.terminal); got != test.want {
			t.Errorf("%+v on %q: form %d, want %d", test.flags, test.terminal, got, test.want)
		}
	}
}
