package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// terminal opens a new pseudo terminal of 200 columns.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close() })
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { slave.Close() })
	must(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}))
	return master, slave
}

// onTerminal runs a command whose error stream is a terminal and returns what
// that showed.
func onTerminal(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	master, slave := terminal(t)
	cmd.Stderr = slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	must(t, slave.Close())
	var shown bytes.Buffer
	_, err := io.Copy(&shown, master) // ends with EIO when the last user of the terminal is gone
	if err != nil && !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", cmd, err, shown.String())
	}
	return shown.String()
}

func TestProgress(t *testing.T) {
	src := tempDir(t)
	manyFiles(t, src, 2000)
	createTree(t, src, []treetest.Node{{Path: "z-large", Seed: 95, Size: 200 << 20}})
	r := newRepo(t)
	shown := onTerminal(t, r.command("create", "--root", src, "/"))
	for _, part := range []string{"files", "B/s", "/z-large"} {
		if !strings.Contains(shown, part) {
			t.Errorf("the progress on a terminal does not show %q: %q", part, tail(shown))
		}
	}
	shell(t, `find "$1" -type f -exec touch {} +`, src)
	if again := onTerminal(t, r.command("create", "--root", src, "/")); !strings.Contains(again, "%") {
		t.Errorf("a second generation shows no share of the first: %q", tail(again))
	}
	if regexp.MustCompile("\x1b\\[[0-9;]*m").MatchString(shown) {
		t.Errorf("colours are shown, whatever NO_COLOR says: %q", tail(shown))
	}
	for flags, want := range map[string]bool{"": false, "--progress always": true, "--progress never": false, "-q": false} {
		res := r.mkbackup("create", append([]string{"--checksum", "--root", src, "/"}, strings.Fields(flags)...)...)
		if res.code != 0 {
			t.Fatalf("create %s: exit code %d\n%s", flags, res.code, res.stderr)
		}
		if got := strings.Contains(res.stderr, "files"); got != want {
			t.Errorf("without a terminal and with %q: progress %v, want %v: %q", flags, got, want, tail(res.stderr))
		}
		if !want && res.stderr != "" {
			t.Errorf("with %q: says %q", flags, res.stderr)
		}
	}
	if res := r.mkbackup("create", "--progress", "always", "--root", src, "/"); !regexp.MustCompile(`^mkbackup: [0-9.ms]+, 100%: 2,022 files, .*\n$`).MatchString(res.stderr) {
		t.Errorf("progress without a terminal is no line of text: %q", res.stderr)
	}
	if shown := onTerminal(t, r.command("create", "-q", "--root", src, "/")); shown != "" {
		t.Errorf("-q on a terminal shows %q", shown)
	}
}

func TestVerboseNamesChanges(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "changed", Data: []byte("1")}, {Path: "gone", Data: []byte("2")}, {Path: "same", Data: []byte("3")}})
	r := newRepo(t)
	r.all(src)
	shell(t, `cd "$1"; echo more >>changed; rm gone; echo new >new`, src)
	res := r.mkbackup("create", "-v", "--root", src, "/")
	if res.code != 0 {
		t.Fatalf("create -v: exit code %d\n%s", res.code, res.stderr)
	}
	for _, name := range []string{"changed", "gone", "new"} {
		if n := strings.Count(res.stdout, "/"+name+"\n"); n != 1 {
			t.Errorf("-v names %s %d times: %q", name, n, res.stdout)
		}
	}
	if strings.Contains(res.stdout, "same") {
		t.Errorf("-v names what did not change: %q", res.stdout)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	src := tempDir(t)
	write(t, filepath.Join(src, "file"), "x")
	r := newRepo(t)
	r.all(src)
	write(t, filepath.Join(src, "file"), "longer")
	before := shell(t, `cd "$1"; find . -type f -exec sha256sum {} + | sort`, r.dir)
	s := r.create("--dry-run", "--root", src, "/")
	if s.Changed < 1 || s.ReadBytes != 6 || s.StoredBytes != 6 {
		t.Errorf("summary of a dry run: %+v", s)
	}
	if text := r.mkbackup("create", "--dry-run", "--root", src, "/").stdout; !strings.HasSuffix(text, "; 6 B of contents would be read, and at most as much stored\n") {
		t.Errorf("a dry run says %q", text)
	}
	if after := shell(t, `cd "$1"; find . -type f -exec sha256sum {} + | sort`, r.dir); after != before {
		t.Errorf("a dry run changed the repository:\n%s", firstDifference(before, after))
	}
}

// TestProgressOfExportAndReindex shows bars on a terminal. They are drawn five
// times a second, so reading is made to take a while.
func TestProgressOfExportAndReindex(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "large", Seed: 96, Size: 50 << 20}})
	r := newRepo(t)
	for range 20 {
		r.all(src)
	}
	for _, test := range []struct {
		command, call, delay string
		args, want           []string
	}{
		{"export", "pread64", "50000", []string{"latest"}, []string{"export: ", "%", "B/s", "large"}},
		{"reindex", "openat", "20000", nil, []string{"reindex: ", "%", " of 20 log records, "}},
	} {
		cmd := r.command(test.command, test.args...)
		slow := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + test.call, "-e", "inject=" + test.call + ":delay_enter=" + test.delay}, cmd.Args...)...)
		shown := onTerminal(t, slow)
		for _, want := range test.want {
			if !strings.Contains(shown, want) {
				t.Errorf("the bar of %s shows no %q: %q", test.command, want, tail(shown))
			}
		}
	}
	for _, args := range [][]string{{"export", r.dir, "latest", "--progress", "always"}, {"export", r.dir, "latest", "/large", "--progress", "always"}} {
		res := runCmd(t, exec.Command("sh", append([]string{"-c", `exec "$@" >/dev/null`, "sh", mkbackup}, args...)...))
		if res.code != 0 || !strings.Contains(res.stderr, "export: 50 MiB, ") {
			t.Errorf("%q: exit code %d, %q", args, res.code, res.stderr)
		}
	}
}
