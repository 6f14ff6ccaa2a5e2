package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// numbered writes a tree of which every file has its generation in it, and one
// directory in its name. Its files are so many, and their names so long, that
// neither the names nor the list of what is to be copied fit ahead into the
// buffers of a program that copies them.
func numbered(t testing.TB, dir string, generation int) *treetest.Tree {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(dir, "etc")))
	for i := range 60 {
		sub := mkdir(t, dir, "etc", fmt.Sprintf("d%02d", i))
		for j := range 25 {
			write(t, filepath.Join(sub, fmt.Sprintf("%s-%02d", strings.Repeat("n", 150), j)), fmt.Sprintf("generation %d\n", generation))
		}
	}
	write(t, filepath.Join(mkdir(t, dir, "etc", fmt.Sprintf("only in generation %d", generation)), "file"), "x")
	return readTree(t, dir)
}

// slowly runs a program that prints the name of each file that it copies, and
// calls between when it has begun and can go on only after that: nobody reads
// what it prints.
func slowly(t *testing.T, cmd *exec.Cmd, between func()) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	names, w, err := os.Pipe()
	must(t, err)
	defer names.Close()
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	must(t, err)
	cmd.Stdout = w
	must(t, cmd.Start())
	w.Close()
	timer := time.AfterFunc(commandLimit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewReaderSize(names, 64)
	_, err = lines.ReadString('\n')
	must(t, err)
	between()
	rest, err := io.ReadAll(lines)
	must(t, err)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	if n := bytes.Count(rest, []byte("\n")); n < 1000 {
		t.Errorf("%s printed only %d names after that: it was not in the middle", cmd, n)
	}
}

// TestLatestMovesOn copies "latest" while new generations come in which every file
// is another one. Who goes into it once gets one generation; who takes the path
// again for each file gets some of both.
func TestLatestMovesOn(t *testing.T) {
	src := tempDir(t)
	r := newRepo(t)
	m := r.mount()
	generation := 0
	next := func() *treetest.Tree {
		generation++
		tree := numbered(t, src, generation)
		s := r.all(src)
		waitFor(t, time.Minute, "latest to move on", func() bool { target, _ := os.Readlink(m.path("latest")); return target == s.Generation })
		return tree
	}
	want := next()
	for _, c := range []struct {
		name, script string // of sh, with the mount's "latest" as $1 and a directory to copy to as $2
		part         string // of the tree that is copied
		mixed        bool
	}{
		{"rsync", `exec rsync -aAXH --numeric-ids --out-format=%n "$1/" "$2"`, ".", false},
		{"rsync of a directory", `exec rsync -aAXH --numeric-ids --out-format=%n "$1/etc/" "$2"`, "etc", false},
		{"cp inside", `cd "$1"; exec cp -av . "$2"`, ".", false},
		{"cp of a resolved path", `exec cp -av "$(readlink -f "$1")/." "$2"`, ".", false},
		{"tar", `exec tar -C "$1" --format=posix -cvf "$2/tar" etc`, "etc", false},
		{"file by file", `cd "$1"; find etc -type f ! -path "*only*" >"$2/list"; while read -r f; do echo "$f"; cat "$1/$f" >>"$2/all"; done <"$2/list"`, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := tempDir(t)
			cmd := exec.Command("sh", "-euc", c.script, "sh", m.path("latest"), to)
			was := want
			slowly(t, cmd, func() { want = next() })
			switch {
			case c.mixed:
				b, err := os.ReadFile(filepath.Join(to, "all"))
				must(t, err)
				old, new := fmt.Sprintf("generation %d\n", generation-1), fmt.Sprintf("generation %d\n", generation)
				if !strings.Contains(string(b), old) || !strings.Contains(string(b), new) {
					t.Error("a copy that must be mixed is not: the others prove nothing")
				}
				return
			case c.name == "tar":
				run(t, "tar", "-C", to, "-xf", filepath.Join(to, "tar"))
				to = filepath.Join(to, "etc")
			}
			wantTree(t, "copy", was.Sub(c.part), to, treetest.Options{NoRoot: c.part == "."})
		})
	}
}
