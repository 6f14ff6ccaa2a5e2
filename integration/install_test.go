package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
)

// makeTarget runs a target of the Makefile with variables.
func makeTarget(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "make", append([]string{"-s", "-C", ".."}, args...)...)
}

// TestInstall installs into an empty directory, uses what is there, and
// uninstalls it again.
func TestInstall(t *testing.T) {
	dest := tempDir(t)
	makeTarget(t, "install", "DESTDIR="+dest, "PREFIX=/opt/backupfs")
	at := func(parts ...string) string {
		return filepath.Join(append([]string{dest, "opt/backupfs"}, parts...)...)
	}
	for _, program := range []string{"mkbackup", "backupfs"} {
		if out := run(t, at("bin", program), "--version"); !strings.HasPrefix(out, program+" ") {
			t.Errorf("%s --version: %q", program, out)
		}
		if out := run(t, "file", "-b", at("bin", program)); !strings.Contains(out, "statically linked") {
			t.Errorf("%s: %s", program, out)
		}
	}
	unit, err := os.ReadFile(at("lib/systemd/system/mkbackup@.service"))
	must(t, err)
	if !strings.Contains(string(unit), "ExecStart=/opt/backupfs/bin/mkbackup run %i\n") {
		t.Errorf("the unit does not start what was installed:\n%s", unit)
	}
	wantManual(t, at("share/man/man1"))
	makeTarget(t, "uninstall", "DESTDIR="+dest, "PREFIX=/opt/backupfs")
	if left := run(t, "find", dest, "-not", "-type", "d"); left != "" {
		t.Errorf("left after uninstall:\n%s", left)
	}
}

// wantManual fails the test unless every command has a page that says, word for
// word, what its help says, and man finds nothing wrong with any.
func wantManual(t *testing.T, dir string) {
	t.Helper()
	help := run(t, mkbackup, "--help")
	_, commands, _ := strings.Cut(help, "Available Commands:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	pages := []string{"mkbackup", "backupfs"}
	for line := range strings.Lines(commands) {
		if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
			pages = append(pages, "mkbackup-"+name)
		}
	}
	for _, page := range pages {
		cmd := exec.Command("man", "--warnings", "-l", filepath.Join(dir, page+".1"))
		cmd.Env = append(os.Environ(), "MANWIDTH=5000") // no line is broken, no word divided
		r := runCmd(t, cmd)
		if r.code != 0 || r.stderr != "" {
			t.Errorf("man %s: exit code %d: %s", page, r.code, r.stderr)
		}
		for _, section := range []string{"SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"} {
			if !strings.Contains(r.stdout, "\n"+section+"\n") {
				t.Errorf("%s has no section %s", page, section)
			}
		}
		program, command, _ := strings.Cut(page, "-")
		text, _, _ := strings.Cut(run(t, filepath.Join(filepath.Dir(mkbackup), program), append(strings.Fields(command), "--help")...), "\n\nUsage:")
		if words := strings.Join(strings.Fields(text), " "); !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), words) {
			t.Errorf("man %s does not have the words of the help:\n%s\n%s", page, words, r.stdout)
		}
	}
}

// debianPackage builds the package and returns its path.
func debianPackage(t *testing.T) string {
	t.Helper()
	clone := filepath.Join(tempDir(t), "main")
	run(t, "cp", "-a", "..", clone)
	run(t, "rm", "-rf", filepath.Join(clone, "bin"))
	run(t, "make", "-s", "-C", clone, "deb")
	packages, err := filepath.Glob(filepath.Join(clone, "bin", "backupfs_*.deb"))
	must(t, err)
	if len(packages) != 1 {
		t.Fatalf("packages: %q", packages)
	}
	return packages[0]
}

// TestDebianPackage installs the package into a directory of its own with dpkg, and
// removes it.
func TestDebianPackage(t *testing.T) {
	file := debianPackage(t)
	root := tempDir(t)
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + root, "--force-not-root", "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	}
	mkdir(t, root, "var/lib/dpkg/info")
	mkdir(t, root, "var/lib/dpkg/updates")
	write(t, filepath.Join(root, "var/lib/dpkg/status"), "")
	dpkg("--unpack", file)
	if out := run(t, filepath.Join(root, "usr/bin/mkbackup"), "--version"); !strings.HasPrefix(out, "mkbackup ") {
		t.Errorf("mkbackup --version: %q", out)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/share/man/man1/mkbackup-create.1.gz")); err != nil {
		t.Error(err)
	}
	run(t, "sh", "-n", filepath.Join(root, "var/lib/dpkg/info/backupfs.postinst"))
	run(t, "sh", "-n", filepath.Join(root, "var/lib/dpkg/info/backupfs.postrm"))
	run(t, "rm", filepath.Join(root, "var/lib/dpkg/info/backupfs.postrm")) // it concerns the machine, not the directory
	dpkg("--purge", "backupfs")
	if left := run(t, "find", root, "-path", "*/usr/*", "-type", "f"); left != "" {
		t.Errorf("left after the purge:\n%s", left)
	}
}

// TestUnits lets systemd read the units as they are installed.
func TestUnits(t *testing.T) {
	dest := tempDir(t)
	makeTarget(t, "install", "DESTDIR="+dest, "PREFIX=/usr")
	units := filepath.Join(dest, "usr/lib/systemd/system")
	shell(t, `cp /usr/lib/systemd/system/*.target /usr/lib/systemd/system/*.slice "$1"`, units)
	for _, unit := range []string{"mkbackup@web1.service", "mkbackup@web1.timer", "backupfs@web1.service"} {
		template := strings.Replace(unit, "web1", "", 1)
		run(t, "cp", filepath.Join(units, template), filepath.Join(units, unit))
		r := runCmd(t, exec.Command("systemd-analyze", "verify", "--man=no", "--root="+dest, filepath.Join("/usr/lib/systemd/system", unit)))
		if r.code != 0 || strings.Contains(r.stderr, units) || strings.Contains(r.stderr, "nknown") {
			t.Errorf("%s: exit code %d\n%s", unit, r.code, r.stderr)
		}
	}
}

// TestExampleConfiguration runs the written example, with the paths changed.
func TestExampleConfiguration(t *testing.T) {
	r, dir := newRepo(t), tempDir(t)
	createTree(t, mkdir(t, dir, "etc"), []treetest.Node{{Path: "a", Data: []byte("1")}})
	example, err := os.ReadFile("../internal/packaging/example.conf")
	must(t, err)
	file := configFile(t, "%s", strings.NewReplacer("/srv/backup", r.dir, `"/etc", "/home", "/root", "/usr/local", "/var"`, `"`+dir+`/etc"`).Replace(string(example)))
	run(t, mkbackup, "run", file)
	if n := len(r.generations()); n != 1 {
		t.Errorf("%d generations", n)
	}
}

// TestCompletion asks the programs as the shells' scripts do.
func TestCompletion(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "etc/fstab", Data: []byte("1")}, {Path: "etc/fuse.conf", Data: []byte("2")}})
	r.all(src, "--time", "2026-11-22T03:00:00Z")
	r.all(src, "--time", "2026-11-23T03:00:00Z", "--source", "web1")
	complete := func(args ...string) []string {
		t.Helper()
		out := strings.Split(strings.TrimSpace(run(t, mkbackup, append([]string{"__completeNoDesc"}, args...)...)), "\n")
		return out[:len(out)-1] // the last line is for the script
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"ls", r.dir, ""}, "2026-11-22T03-00-00Z latest web1/2026-11-23T03-00-00Z web1/latest"},
		{[]string{"ls", r.dir, "web1/"}, "web1/2026-11-23T03-00-00Z web1/latest"},
		{[]string{"ls", r.dir, "latest", "/e"}, "/etc/"},
		{[]string{"ls", r.dir, "web1/latest", "/etc/f"}, "/etc/fstab /etc/fuse.conf"},
		{[]string{"ls", r.dir, "latest", "/none/"}, ""},
		{[]string{"cre"}, "create"},
	} {
		if got := strings.Join(complete(test.args...), " "); got != test.want {
			t.Errorf("%v: got %q, want %q", test.args, got, test.want)
		}
	}
	for shell, script := range map[string]string{"bash": "bash", "zsh": "zsh", "fish": "fish"} {
		dir := tempDir(t)
		run(t, backupfs, "--write-manual", dir)
		for _, file := range strings.Fields(run(t, "find", dir, "-path", "*"+script+"*", "-type", "f")) {
			if _, err := exec.LookPath(shell); err == nil {
				run(t, shell, "-n", file)
			} else if shell == "bash" {
				t.Error("bash is missing")
			}
		}
	}
}
