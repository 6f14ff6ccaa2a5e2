package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// forget drops generations.
func (r *repo) forget(numbers ...uint64) {
	r.t.Helper()
	repo, err := archive.Open(r.dir)
	must(r.t, err)
	defer repo.Close()
	last, err := repo.Last()
	must(r.t, err)
	previous, err := repo.RecordDigest(last)
	must(r.t, err)
	record, err := repo.NewRecord()
	must(r.t, err)
	defer record.Discard()
	for _, n := range numbers {
		must(r.t, record.Add(archive.Line{Forget: n}))
	}
	_, _, err = record.Commit(archive.Header{Kind: archive.KindForget, Number: last + 1, Time: time.Now(), Previous: previous, Program: "test"})
	must(r.t, err)
}

// past is what a source was at each of the generations that are kept.
type past struct {
	names []string
	trees []*treetest.Tree
	other int // the one that the only generation of the source "other" is equal to
}

// paths returns every path that was there once.
func (p *past) paths() []string {
	all := map[string]bool{}
	for _, tree := range p.trees {
		for path := range tree.Entries {
			all[path] = true
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return slices.Compare(components(a), components(b))
	})
}

// components returns the names in a path; the root has none.
func components(path string) []string {
	if path == "." {
		return nil
	}
	return strings.Split(path, "/")
}

// differences returns what diff is to say of two states of a path.
func differences(a, b *treetest.Entry) []string {
	if a.Type != b.Type {
		return []string{"type"}
	}
	var what []string
	for _, d := range []struct {
		differs bool
		name    string
	}{
		{a.Hash != b.Hash || a.Type == treetest.File && a.Size != b.Size, "content"},
		{a.Type == treetest.File && a.Size != b.Size, "size"},
		{a.Target != b.Target, "target"},
		{a.Major != b.Major || a.Minor != b.Minor, "device"},
		{a.Mode != b.Mode, "mode"},
		{a.UID != b.UID || a.GID != b.GID, "owner"},
		{a.Sec != b.Sec || a.Nsec != b.Nsec, "mtime"},
		{!maps.Equal(a.Xattrs, b.Xattrs), "xattrs"},
	} {
		if d.differs {
			what = append(what, d.name)
		}
	}
	return what
}

// versionLine is a version as `mkbackup history --json` prints it, as far as the
// test looks at it.
type versionLine struct {
	First, Last, Type string
	Deleted           bool
}

// versions returns the versions of a path, and its gaps, newest first.
func (p *past) versions(path string) []versionLine {
	var lines []versionLine
	var before *treetest.Entry
	for i, tree := range p.trees {
		e, name := tree.Entries[path], p.names[i]
		switch {
		case e == nil && len(lines) == 0:
		case e == nil && before == nil || e != nil && before != nil && len(differences(before, e)) == 0:
			lines[len(lines)-1].Last = name
		case e == nil:
			lines = append(lines, versionLine{First: name, Last: name, Deleted: true})
		default:
			lines = append(lines, versionLine{First: name, Last: name, Type: e.Type.String()})
		}
		before = e
	}
	slices.Reverse(lines)
	return lines
}

// decodeLines decodes a JSON object per line.
func decodeLines[T any](t testing.TB, text string) []T {
	t.Helper()
	var list []T
	for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
		var v T
		must(t, d.Decode(&v))
		list = append(list, v)
	}
	return list
}

// bytesOf returns the path of a JSON object, which is one of two fields.
func bytesOf(path string, path64 []byte) string { return strings.TrimPrefix(path+string(path64), "/") }

// TestHistory edits a tree at random, forgets some generations, and compares what
// diff, history, find and .versions say with what the source was each time.
func TestHistory(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(31, treetest.RandomOptions{Owners: true, Files: 120, MaxSize: 20_000}))
	r := newRepo(t)
	editor := treetest.NewEditor(src, 31)
	kept := &past{}
	var forgotten []uint64
	for n := range 12 {
		s := r.all(src)
		if n == 0 || n == 4 || n == 5 || n == 9 {
			forgotten = append(forgotten, s.Number)
		} else {
			kept.names, kept.trees = append(kept.names, s.Generation), append(kept.trees, readTree(t, src))
		}
		if n == 7 { // another source has no part in the history
			r.all(src, "--source", "other")
			kept.other = len(kept.names) - 1
		}
		_, err := editor.Edit(25)
		must(t, err)
	}
	r.forget(forgotten...)
	t.Run("diff", func(t *testing.T) { historyDiff(t, r.on(t), kept) })
	t.Run("history", func(t *testing.T) { historyOfPaths(t, r.on(t), kept) })
	t.Run("find", func(t *testing.T) { historyFind(t, r.on(t), kept) })
	t.Run("mount", func(t *testing.T) { historyMount(t, r.on(t), kept) })
}

type diffLine struct {
	Change, Path string
	Path64       []byte
	What         []string
}

func historyDiff(t *testing.T, r *repo, kept *past) {
	compare := func(i, j int, from, to string) {
		t.Helper()
		res := r.mkbackup("diff", from, to, "--json")
		if res.code != 0 || res.stderr != "" {
			t.Fatalf("diff %s %s: exit code %d, %s", from, to, res.code, res.stderr)
		}
		var got, want []string
		for _, l := range decodeLines[diffLine](t, res.stdout) {
			got = append(got, fmt.Sprintf("%s %q %s", l.Change, bytesOf(l.Path, l.Path64), l.What))
		}
		for _, path := range kept.paths() {
			a, b := kept.trees[i].Entries[path], kept.trees[j].Entries[path]
			shown := path
			if path == "." {
				shown = ""
			}
			switch {
			case a == nil && b != nil:
				want = append(want, fmt.Sprintf("+ %q []", shown))
			case a != nil && b == nil:
				want = append(want, fmt.Sprintf("- %q []", shown))
			case a != nil && b != nil:
				if what := differences(a, b); len(what) > 0 {
					want = append(want, fmt.Sprintf("M %q %s", shown, what))
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("diff %s %s:\n%s\nwant\n%s", from, to, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if i != j && len(want) == 0 {
			t.Errorf("%s and %s do not differ: the test tests nothing", from, to)
		}
	}
	for i := range kept.names {
		for j := range kept.names {
			compare(i, j, kept.names[i], kept.names[j])
		}
	}
	// Of another source, with no directory in common.
	for i := range kept.names {
		compare(kept.other, i, "other/latest", kept.names[i])
	}
}

func historyOfPaths(t *testing.T, r *repo, kept *past) {
	paths := kept.paths()
	slices.SortStableFunc(paths, func(a, b string) int { return len(kept.versions(b)) - len(kept.versions(a)) })
	for _, path := range append(paths[:60:60], paths[len(paths)-10:]...) {
		if strings.Contains(path, "//") || path == "" {
			t.Fatalf("bad path %q", path)
		}
		res := r.mkbackup("history", "--json", "--", "/"+path)
		if res.code != 0 {
			t.Fatalf("history of %q: exit code %d, %s", path, res.code, res.stderr)
		}
		if got, want := decodeLines[versionLine](t, res.stdout), kept.versions(path); !slices.Equal(got, want) {
			t.Errorf("history of %q:\n%+v\nwant\n%+v", path, got, want)
		}
		table := strings.Split(strings.TrimSpace(r.mkbackup("history", "--", path).stdout), "\n")
		if len(table) != 1+len(kept.versions(path)) {
			t.Errorf("history of %q prints %q", path, table)
		}
	}
}

type findLine struct {
	Path, Source, Type string
	Path64             []byte
	Spans              []struct{ First, Last string }
}

func historyFind(t *testing.T, r *repo, kept *past) {
	res := r.mkbackup("find", "*", "--source", "", "--json")
	if res.code != 0 {
		t.Fatalf("find: exit code %d, %s", res.code, res.stderr)
	}
	var got, want []string
	for _, l := range decodeLines[findLine](t, res.stdout) {
		got = append(got, fmt.Sprintf("%q %s %v", bytesOf(l.Path, l.Path64), l.Type, l.Spans))
	}
	for _, path := range kept.paths() {
		if path == "." {
			continue
		}
		var spans []struct{ First, Last string }
		kind := ""
		for i, tree := range kept.trees {
			e := tree.Entries[path]
			if e == nil {
				continue
			}
			kind = e.Type.String()
			if i == 0 || kept.trees[i-1].Entries[path] == nil {
				spans = append(spans, struct{ First, Last string }{kept.names[i], kept.names[i]})
			}
			spans[len(spans)-1].Last = kept.names[i]
		}
		want = append(want, fmt.Sprintf("%q %s %v", path, kind, spans))
	}
	if !slices.Equal(got, want) {
		t.Errorf("find:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func historyMount(t *testing.T, r *repo, kept *past) {
	m := r.mount()
	for _, path := range kept.paths() {
		var want []string
		for _, v := range kept.versions(path) {
			if !v.Deleted {
				want = append(want, v.First)
			}
		}
		dir := m.path(".versions", path)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Errorf("versions of %q: %v", path, err)
			continue
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
			var a, b unix.Stat_t
			must(t, unix.Lstat(filepath.Join(dir, e.Name()), &a))
			must(t, unix.Lstat(m.path(e.Name(), path), &b))
			if a.Mode&unix.S_IFMT == unix.S_IFDIR {
				a.Ino = b.Ino // every path of a directory is another one
			}
			if a != b {
				t.Errorf("version %s of %q: %+v, its generation has %+v", e.Name(), path, a, b)
			}
		}
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("versions of %q: %q, want %q", path, got, want)
		}
	}
	if res := shell(t, `find "$1" | wc -l`, m.path(".versions")); strings.TrimSpace(res) == "1" {
		t.Error("find sees no version of the root")
	}
}

// TestHistoryOutput shows what users see, and what is refused.
func TestHistoryOutput(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "conf"), "one\n")
	mkdir(t, src, "a dir")
	old := time.Date(2020, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	must(t, os.Chtimes(filepath.Join(src, "conf"), old, old))
	r := newRepo(t)
	times := []string{"2026-11-20T03:00:00Z", "2026-11-21T03:00:00Z", "2026-11-22T03:00:00Z", "2026-11-23T03:00:00Z"}
	r.all(src, "--time", times[0])
	must(t, os.Remove(filepath.Join(src, "conf")))
	r.all(src, "--time", times[1])
	write(t, filepath.Join(src, "conf"), "three\n")
	must(t, os.Chmod(filepath.Join(src, "conf"), 0o600))
	must(t, os.Chtimes(filepath.Join(src, "conf"), old, old))
	r.all(src, "--time", times[2])
	write(t, filepath.Join(src, "a dir", "new\nline"), "")
	r.all(src, "--time", times[3], "--source", "web1")

	wantOutput := func(want string, command string, args ...string) {
		t.Helper()
		if res := r.mkbackup(command, args...); res.code != 0 || res.stdout != want || res.stderr != "" {
			t.Errorf("%s %q: exit code %d\n%s%s\nwant\n%s", command, args, res.code, res.stdout, res.stderr, want)
		}
	}
	// The hashes are what b3sum says of "one\n" and "three\n".
	wantOutput(`FIRST                 LAST                  MODE        UID  GID  SIZE  MODIFIED                CONTENT
2026-11-22T03-00-00Z  2026-11-22T03-00-00Z  -rw-------  0    0    6     2020-01-02T03:04:05.6Z  `+b3("three\n")+`
2026-11-21T03-00-00Z  2026-11-21T03-00-00Z  deleted     -    -    -     -                       -
2026-11-20T03-00-00Z  2026-11-20T03-00-00Z  -rw-r--r--  0    0    4     2020-01-02T03:04:05.6Z  `+b3("one\n")+"\n", "history", "/conf")
	wantOutput("M /  (mtime)\n- /conf\n", "diff", "2026-11-20", "2026-11-21")
	wantOutput("+ /conf\n", "diff", "2026-11-21", "2026-11-22", "conf")
	wantOutput("M /conf  (content, size, mode)\n", "diff", "2026-11-20", "2026-11-22", "/conf/")
	wantOutput("", "diff", "2026-11-22", "2026-11-22")
	wantOutput("M /a dir  (mtime)\n+ \"/a dir/new\\nline\"\n", "diff", "latest", "web1/latest")
	wantOutput(`2026-11-20T03-00-00Z .. 2026-11-20T03-00-00Z  /conf
2026-11-22T03-00-00Z .. 2026-11-22T03-00-00Z  /conf
web1/2026-11-23T03-00-00Z .. 2026-11-23T03-00-00Z  /conf
`, "find", "c*")
	wantOutput("web1/2026-11-23T03-00-00Z .. 2026-11-23T03-00-00Z  \"/a dir/new\\nline\"\n", "find", "/A*/**/NEW*", "-i", "--source", "web1")
	wantOutput("", "find", "NEW*")

	for _, c := range []struct {
		code int
		args []string
		what string
	}{
		{1, []string{"history", "/none"}, "/none"},
		{1, []string{"history", "/a dir/new\nline"}, `"/a dir/new\nline"`},
		{1, []string{"history", "/conf", "--source", "web9"}, "web9"},
		{2, []string{"history"}, "--help"},
		{2, []string{"find", "[a"}, "[a"},
		{2, []string{"find", "a//b"}, "a//b"},
		{1, []string{"find", "a", "--source", "web9"}, "web9"},
		{1, []string{"diff", "latest", "1999"}, "1999"},
		{1, []string{"diff", "latest~1", "latest~1", "/none"}, "/none"},
		{2, []string{"diff", "latest"}, "--help"},
		{1, []string{"export", "1999"}, "1999"},
		{1, []string{"export", "latest", "/none"}, "/none"},
	} {
		res := r.mkbackup(c.args[0], c.args[1:]...)
		if res.code != c.code || res.stdout != "" {
			t.Errorf("%q: exit code %d, want %d, output %q", c.args, res.code, c.code, res.stdout)
		}
		wantOneLine(t, res.stderr, c.what)
	}
}

// b3 returns the hash of a text as history prints it.
func b3(text string) string { return archive.HashOf([]byte(text)).String()[:16] }

func TestStats(t *testing.T) {
	src := tempDir(t)
	content := treetest.Content(3, 300_000)
	for _, name := range []string{"a", "b"} {
		write(t, filepath.Join(src, name), string(content))
	}
	r := newRepo(t)
	empty := decodeLines[map[string]float64](t, r.mkbackup("stats", "--json").stdout)[0]
	if empty["generations"] != 0 || empty["parts"] != 0 || empty["stored_bytes"] != 0 || empty["deduplication"] != 0 || empty["compression"] != 0 {
		t.Errorf("stats of nothing: %v", empty)
	}
	r.all(src)
	r.all(src, "--source", "web1")
	write(t, filepath.Join(src, "c"), "12345")
	r.all(src)
	s := decodeLines[map[string]float64](t, r.mkbackup("stats", "--json").stdout)[0]
	var logBytes, rawBytes int64
	for _, p := range r.records() {
		logBytes += fileSize(t, p)
	}
	for _, p := range r.parts() {
		rawBytes += int64(len(run(t, "zstd", "-dc", p)))
	}
	for name, want := range map[string]float64{
		"generations": 3, "sources": 2, "generation_bytes": 1_800_005, "contents": 2, "content_bytes": 300_005,
		"parts": float64(len(r.parts())), "raw_bytes": float64(rawBytes), "stored_bytes": float64(r.partBytes()), "log_bytes": float64(logBytes),
		"deduplication": 1_800_005.0 / 300_005, "compression": float64(rawBytes) / float64(r.partBytes()),
	} {
		if s[name] != want {
			t.Errorf("stats: %s is %v, want %v", name, s[name], want)
		}
	}
	var indexBytes float64
	if n, err := fmt.Sscan(shell(t, `du -sb --apparent-size "$1" | cut -f1`, filepath.Join(r.dir, "index")), &indexBytes); n != 1 || err != nil {
		t.Fatal(err)
	}
	// du counts the directories, too.
	if got := s["index_bytes"]; got <= 0 || got > indexBytes || got < indexBytes-4*4096 {
		t.Errorf("stats: index_bytes is %v, du says %v", got, indexBytes)
	}
	table := r.mkbackup("stats")
	for _, want := range []string{"generations    3 of 2 sources, 1.7 MiB raw\n", "contents       2, 293 KiB raw\n", "dead           0 B stored\n", "deduplication  6.00\n"} {
		if table.code != 0 || !strings.Contains(table.stdout, want) {
			t.Errorf("stats prints no %q:\n%s", want, table.stdout)
		}
	}
	// What only a forgotten generation had is dead, until a compaction.
	must(t, os.Remove(filepath.Join(src, "c")))
	r.all(src)
	run(t, mkbackup, "forget", r.dir, "3")
	dead := func() float64 {
		return decodeLines[map[string]float64](t, r.mkbackup("stats", "--json").stdout)[0]["dead_bytes"]
	}
	if got := dead(); got <= 0 || got > 2000 {
		t.Errorf("stats: %v dead bytes for a part with 5 bytes", got)
	}
	run(t, mkbackup, "compact", r.dir, "--max-dead", "0")
	if got := dead(); got != 0 {
		t.Errorf("stats: %v dead bytes after a compaction", got)
	}
}
