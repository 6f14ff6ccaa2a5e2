package integration

import (
	"os"
	"path/filepath"
	"slices"
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

// TestDevicesInJSON: every device has its numbers, a whiteout, which is 0:0, included.
func TestDevicesInJSON(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a-whiteout", Type: treetest.Char}, {Path: "b-null", Type: treetest.Char, Major: 1, Minor: 3},
		{Path: "c-disk", Type: treetest.Block, Major: 8}, {Path: "file"}})
	r.all(src)
	out := r.mkbackup("ls", "latest", "--json").stdout
	var got []string
	for line := range strings.Lines(out) {
		_, numbers, _ := strings.Cut(strings.TrimSpace(line), `"nlink":1`)
		got = append(got, numbers)
	}
	if want := []string{`,"major":0,"minor":0}`, `,"major":1,"minor":3}`, `,"major":8,"minor":0}`, `}`}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestDamagedPathsInJSON: the files that damage hits have paths like all others.
func TestDamagedPathsInJSON(t *testing.T) {
	r, src := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}, tempDir(t)
	run(t, mkbackup, "init", r.dir)
	createTree(t, src, []treetest.Node{{Path: "d/file", Seed: 1, Size: 300_000}})
	r.all(src)
	must(t, os.Remove(r.parts()[0]))
	if c, _ := r.checkJSON(4); len(c.DamagedParts) != 1 || len(c.DamagedParts[0].Files) != 1 || c.DamagedParts[0].Files[0].Path != "/d/file" {
		t.Errorf("%+v", c.DamagedParts)
	}
}
