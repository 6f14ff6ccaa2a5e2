package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// ownNetwork gives the test, and what it starts, a network that nobody else has
// and in which every port is free.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(s)
	loopback, err := unix.NewIfreq("lo")
	must(t, err)
	loopback.SetUint16(unix.IFF_UP)
	must(t, unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, loopback))
}

// share is a directory that a Samba server of the test's own shows, with backups
// as previous versions.
type share struct {
	t    *testing.T
	conf string
}

// newShare starts a server that shares dir, until the test ends. snapshots is
// where the mount lists generations of "/".
func newShare(t *testing.T, dir, snapshots string) *share {
	t.Helper()
	base := tempDir(t)
	var conf strings.Builder
	conf.WriteString("[global]\nserver role = standalone server\nmap to guest = bad user\nguest account = root\n" +
		"load printers = no\ndisable netbios = yes\nsmb ports = 445\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n")
	for _, kind := range []string{"lock directory", "state directory", "cache directory", "pid directory", "private dir", "ncalrpc dir"} {
		fmt.Fprintf(&conf, "%s = %s\n", kind, mkdir(t, base, strings.Fields(kind)[0]))
	}
	fmt.Fprintf(&conf, "log file = %s\n", filepath.Join(base, "log"))
	fmt.Fprintf(&conf, "[data]\npath = %s\nguest ok = yes\nvfs objects = shadow_copy2\nshadow:snapdir = %s\nshadow:snapsharepath = %s\nshadow:sort = desc\n",
		dir, snapshots, strings.TrimPrefix(dir, "/"))
	s := &share{t, filepath.Join(base, "smb.conf")}
	write(t, s.conf, conf.String())
	cmd := exec.Command("smbd", "--foreground", "--debug-stdout", "--configfile="+s.conf)
	server := start(t, cmd)
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-server.done:
		case <-time.After(time.Minute):
			t.Error("smbd does not end")
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its children: it makes itself the leader of a group
		if t.Failed() {
			t.Logf("smbd: %s%s", tail(server.stdout.String()), tail(server.stderr.String()))
		}
	})
	waitFor(t, time.Minute, "smbd to answer", func() bool {
		select {
		case <-server.done:
			t.Fatal("smbd does not start")
		default:
		}
		return s.try("ls").code == 0
	})
	return s
}

// try runs a command of smbclient.
func (s *share) try(command string) result {
	s.t.Helper()
	return runCmd(s.t, exec.Command("smbclient", "--configfile="+s.conf, "--no-pass", "//127.0.0.1/data", "--command="+command))
}

// previous returns the previous versions of a file, by the names of their
// generations, newest first.
func (s *share) previous(path string) []string {
	s.t.Helper()
	r := s.try(fmt.Sprintf(`allinfo "%s"`, path))
	if r.code != 0 {
		s.t.Fatalf("allinfo %s: exit code %d\n%s%s", path, r.code, r.stdout, r.stderr)
	}
	var names []string
	lines := strings.Split(r.stdout, "\n")
	for i, line := range lines {
		// What is said of the file follows where it was there.
		if strings.HasPrefix(line, "@GMT-") && i+1 < len(lines) && strings.HasPrefix(lines[i+1], "create_time:") {
			names = append(names, line)
		}
	}
	return names
}

// wantPrevious fetches a file of a generation.
func (s *share) wantPrevious(generation, path, want string) {
	s.t.Helper()
	to := filepath.Join(tempDir(s.t), "fetched")
	r := s.try(fmt.Sprintf(`get "%s\%s" "%s"`, generation, path, to))
	if b, err := os.ReadFile(to); err != nil || string(b) != want {
		s.t.Errorf("%s of %s: %q, %v, want %q\n%s%s", path, generation, b, err, want, r.stdout, r.stderr)
	}
}

const sambaFormat = "@GMT-%Y.%m.%d-%H.%M.%S"

// TestPreviousVersions lists and fetches previous versions of the files of a Samba
// share, as Windows does.
func TestPreviousVersions(t *testing.T) {
	dir := tempDir(t)
	createTree(t, dir, []treetest.Node{{Path: "reports/q3.txt", Data: []byte("draft")}, {Path: "deleted.txt", Data: []byte("was here")}})
	r := newRepo(t)
	r.create(dir, "--time", "2026-11-22T03:00:00Z")
	write(t, filepath.Join(dir, "reports/q3.txt"), "final")
	must(t, os.Remove(filepath.Join(dir, "deleted.txt")))
	r.create(dir, "--time", "2026-11-23T03:00:00Z")
	write(t, filepath.Join(dir, "reports/q3.txt"), "broken")
	m := r.mount("--name-format", sambaFormat)
	const first, second, third = "@GMT-2026.11.22-03.00.00", "@GMT-2026.11.23-03.00.00", "@GMT-2026.11.23-04.00.00"
	wantNames(t, m.dir, first, second, "latest")

	ownNetwork(t)
	s := newShare(t, dir, m.dir)
	want := func(path string, generations ...string) {
		t.Helper()
		if got := s.previous(path); strings.Join(got, " ") != strings.Join(generations, " ") {
			t.Errorf("previous versions of %s: %q, want %q", path, got, generations)
		}
	}
	want(`reports\q3.txt`, second, first)
	s.wantPrevious(first, `reports\q3.txt`, "draft")
	s.wantPrevious(second, `reports\q3.txt`, "final")
	s.wantPrevious(first, "deleted.txt", "was here")

	r.create(dir, "--time", "2026-11-23T04:00:00Z")
	m.at(third)
	want(`reports\q3.txt`, third, second, first)
	s.wantPrevious(third, `reports\q3.txt`, "broken")
	run(t, mkbackup, "forget", r.dir, "2026-11-22T03-00-00Z")
	waitFor(t, 10*time.Second, "the generation to go", func() bool { _, err := os.Lstat(m.path(first)); return err != nil })
	want(`reports\q3.txt`, third, second)
}

// TestNameFormat looks at all that a mount shows under names of its own.
func TestNameFormat(t *testing.T) {
	r, src := timedRepo(t)
	for _, test := range []struct {
		args []string
		want map[string]string // contents of "number" by generation
		list []string
	}{
		{[]string{"--name-format", sambaFormat}, map[string]string{"@GMT-2024.03.01-22.30.00": "1", "@GMT-2024.03.01-22.30.00.2": "1", "latest": "2", "2024-03-01": "1",
			"2024-03-01T10-00-00Z": "0", "@GMT-2024.03.01": "1", "web1/@GMT-2024.03.03-10.00.00": "web1", "web1/latest": "web1", "web1/2024-03-03": "web1"},
			[]string{"@GMT-2024.03.01-10.00.00", "@GMT-2024.03.01-22.30.00", "@GMT-2024.03.02-10.00.00", "latest", "web1"}},
		{[]string{"--name-format", "%d.%m.%Y"}, map[string]string{"01.03.2024": "0", "01.03.2024.2": "1", "01.03.2024.1": "0", "02.03.2024": "2", "latest": "2"},
			[]string{"01.03.2024", "01.03.2024.2", "02.03.2024", "latest", "web1"}},
		{[]string{"-o", "name-format=%Y", "--source", "web1"}, map[string]string{"2024": "web1", "latest": "web1"}, []string{"2024", "latest"}},
	} {
		m := r.mount(test.args...)
		wantNames(t, m.dir, test.list...)
		for generation, want := range test.want {
			wantContent(t, m.path(generation, "number"), want)
		}
		m.stop()
	}
	m := r.mount("--name-format", "%d.%m.%Y")
	wantNames(t, m.path(".versions/number"), "01.03.2024", "01.03.2024.2", "02.03.2024")
	wantContent(t, m.path(".versions/number/01.03.2024.2"), "1")
	wantTree(t, "the newest", readTree(t, src), m.path("web1/03.03.2024"), treetest.Options{})
	run(t, mkbackup, "forget", r.dir, "2024-03-01T10-00-00Z")
	waitFor(t, 10*time.Second, "the name to go over", func() bool { b, _ := os.ReadFile(m.path("01.03.2024/number")); return string(b) == "1" })
	wantContent(t, m.path("01.03.2024.2", "number"), "1")
	wantNames(t, m.dir, "01.03.2024", "02.03.2024", "latest", "web1")

	named := &fuseMount{t: t, dir: mkdir(t, tempDir(t), "mnt")}
	file := configFile(t, "repository = %q\n[mount]\npoint = %q\nname_format = \"%%d.%%m.%%Y\"\n", r.dir, named.dir)
	t.Cleanup(func() {
		named.stop()
		waitFor(t, 10*time.Second, "the daemon to end", func() bool { return len(daemons(t, file)) == 0 })
	})
	run(t, backupfs, "--config", file)
	wantNames(t, named.dir, "01.03.2024", "02.03.2024", "latest", "web1")
}
