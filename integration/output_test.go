package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// TestTimesInJSON lists files of years that RFC 3339 does not have, and one behind them.
func TestTimesInJSON(t *testing.T) {
	r, src := newRepo(t), tmpfs(t, 1<<20)
	r.all(src)
	createTree(t, src, []treetest.Node{
		{Path: "a", Mtime: time.Date(12026, 11, 22, 3, 0, 0, 5, time.UTC)},
		{Path: "b", Mtime: time.Date(-44, 3, 15, 0, 0, 0, 0, time.UTC)},
		{Path: "c", Mtime: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)},
	})
	r.all(src)
	want := []string{`"mtime":"12026-11-22T03:00:00.000000005Z"`, `"mtime":"-0044-03-15T00:00:00Z"`, `"mtime":"2026-11-22T03:00:00Z"`}
	for _, args := range [][]string{{"ls", "latest"}, {"diff", "1", "2"}} {
		res := r.mkbackup(args[0], append(args[1:], "--json")...)
		if res.code != 0 || strings.Count(res.stdout, "\n") < len(want) {
			t.Errorf("%s: exit code %d: %s%s", args[0], res.code, res.stdout, res.stderr)
		}
		for _, mtime := range want {
			if !strings.Contains(res.stdout, mtime) {
				t.Errorf("%s has no %s: %s", args[0], mtime, res.stdout)
			}
		}
	}
	if res := r.mkbackup("history", "/b", "--json"); res.code != 0 || !strings.Contains(res.stdout, want[1]) {
		t.Errorf("history: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
}

// TestPathsInText: a path that can be printed is shown exactly, any other is quoted whole.
func TestPathsInText(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	r.all(src)
	shown := map[string]string{`d/back\slash`: `/d/back\slash`, `d/"q"`: `/d/"q"`, "d/a\n\"b\\": `"/d/a\n\"b\\"`, "d/\xff": `"/d/\xff"`}
	for name := range shown {
		createTree(t, src, []treetest.Node{{Path: name, Data: []byte("1")}})
	}
	r.all(src)
	found, changed := r.mkbackup("find", "/d/*").stdout, r.mkbackup("diff", "1", "2", "/d").stdout
	for _, path := range shown {
		if !strings.Contains(found, "  "+path+"\n") || !strings.Contains(changed, "+ "+path+"\n") {
			t.Errorf("%s is not shown like that:\n%s%s", path, found, changed)
		}
	}
}
