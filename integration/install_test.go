package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
)

// makeTarget runs a target of the Makefile with variables.
func makeTarget(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "make", append([]string{"-s", "-C", ".."}, args...)...)
}

// TestInstall installs into an empty directory, under an umask that keeps others
// out, uses what is there, and uninstalls it again.
func TestInstall(t *testing.T) {
	dest := tempDir(t)
	shell(t, `umask 077; exec make -s -C .. install DESTDIR="$1" PREFIX=/opt/backupfs`, dest)
	if closed := run(t, "find", filepath.Join(dest, "opt"), "-not", "-perm", "-a+r"); closed != "" {
		t.Errorf("not for everybody to read:\n%s", closed)
	}
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
	wantLinks(t, at("share/doc/backupfs"))
	makeTarget(t, "uninstall", "DESTDIR="+dest, "PREFIX=/opt/backupfs")
	if left := run(t, "find", dest, "-not", "-type", "d"); left != "" {
		t.Errorf("left after uninstall:\n%s", left)
	}
}

// wantLinks fails the test unless every link from a page below dir to another file
// leads to one.
func wantLinks(t *testing.T, dir string) {
	t.Helper()
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	found := 0
	for _, page := range strings.Fields(run(t, "find", dir, "-name", "*.md")) {
		text, err := os.ReadFile(page)
		must(t, err)
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			found++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), match[1])); err != nil {
				t.Errorf("%s: a link leads nowhere: %v", filepath.Base(page), err)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d links", found)
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
		for _, section := range []string{"SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"} {
			if !strings.Contains(r.stdout, "\n"+section+"\n") {
				t.Errorf("%s has no section %s", page, section)
			}
		}
		program, command, _ := strings.Cut(page, "-")
		help := run(t, filepath.Join(filepath.Dir(mkbackup), program), append(strings.Fields(command), "--help")...)
		if strings.Contains(help, "true|false") {
			t.Errorf("%s --help offers to set a switch to false", page)
		}
		text, _, _ := strings.Cut(help, "\n\nUsage:")
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
	write(t, filepath.Join(mkdir(t, clone, "bin"), "backupfs_0.0.1_all.deb"), "an older one")
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
	for _, file := range []string{"man/man1/mkbackup-create.1.gz", "bash-completion/completions/mkbackup", "zsh/vendor-completions/_mkbackup", "fish/vendor_completions.d/backupfs.fish"} {
		if _, err := os.Stat(filepath.Join(root, "usr/share", file)); err != nil {
			t.Error(err)
		}
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		file := filepath.Join(root, "var/lib/dpkg/info/backupfs."+script)
		run(t, "sh", "-n", file)
		if script != "postinst" {
			must(t, os.Remove(file)) // it concerns the machine, not the directory
		}
	}
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

// completionRepo makes a repository with generations of two sources, and returns it.
func completionRepo(t *testing.T) *repo {
	t.Helper()
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "etc/fstab", Data: []byte("1")}, {Path: "etc/fuse.conf", Data: []byte("2")},
		{Path: "etc/$(date)a"}, {Path: "etc/$(date)b"}, {Path: "etc/two words"}})
	r.all(src, "--time", "2026-11-22T03:00:00Z")
	r.all(src, "--time", "2026-11-23T03:00:00Z", "--source", "web1")
	return r
}

// TestCompletion asks the programs as the shells' scripts do.
func TestCompletion(t *testing.T) {
	r := completionRepo(t)
	const files, none, dirs = ":0", ":4", ":16" // what else the shell may offer
	for _, test := range []struct {
		program string
		args    []string
		want    string
	}{
		{mkbackup, []string{"ls", r.dir, ""}, "2026-11-22T03-00-00Z latest web1/2026-11-23T03-00-00Z web1/latest :36"},
		{mkbackup, []string{"ls", r.dir, "web1/"}, "web1/2026-11-23T03-00-00Z web1/latest :36"},
		{mkbackup, []string{"ls", r.dir, "latest", "/e"}, "/etc/ :6"},
		{mkbackup, []string{"ls", r.dir, "web1/latest", "/etc/f"}, "/etc/fstab /etc/fuse.conf " + none},
		{mkbackup, []string{"ls", r.dir, "latest", "/etc/"}, "/etc/fstab /etc/fuse.conf " + none}, // no words of a shell
		{mkbackup, []string{"ls", r.dir, "latest", "/none/"}, none},
		{mkbackup, []string{"cre"}, "create " + none},
		{mkbackup, []string{"init", ""}, dirs},
		{mkbackup, []string{"create", r.dir, "/e"}, files},
		{mkbackup, []string{"create", r.dir, "--source", ""}, "web1 " + none},
		{mkbackup, []string{"create", "--source", ""}, none},
		{mkbackup, []string{"list", r.dir, "--source=w"}, "web1 " + none},
		{mkbackup, []string{"create", "--progress", ""}, "auto always never :36"},
		{mkbackup, []string{"export", "--progress", ""}, "auto always never :36"},
		{mkbackup, []string{"create", "--ionice", ""}, "idle best-effort realtime :36"},
		{mkbackup, []string{"create", "--nice", ""}, "10 19 :36"},
		{mkbackup, []string{"create", "--root", ""}, dirs},
		{mkbackup, []string{"check", "--against", ""}, dirs},
		{mkbackup, []string{"create", "--exclude-from", ""}, files},
		{mkbackup, []string{"run", "--metrics", ""}, files},
		{mkbackup, []string{"forget", "--keep-daily", ""}, none},
		{backupfs, []string{""}, dirs},
		{backupfs, []string{r.dir, "/tmp", "--source", ""}, "web1 " + none},
		{backupfs, []string{r.dir, "/tmp", "--generation", "web"}, "web1/2026-11-23T03-00-00Z web1/latest :36"},
		{backupfs, []string{r.dir, "/tmp", "--source", "web1", "--generation", ""}, "2026-11-23T03-00-00Z latest :36"},
		{backupfs, []string{"--cache-size", ""}, none},
	} {
		out := run(t, test.program, append([]string{"__completeNoDesc"}, test.args...)...)
		if got := strings.Join(strings.Fields(out), " "); got != test.want {
			t.Errorf("%v: got %q, want %q", test.args, got, test.want)
		}
	}
}

// bashCompletion prints what bash offers for the line $3, by the scripts in $2, with the
// programs in $1.
const bashCompletion = `
PATH=$1:$PATH
. /usr/share/bash-completion/bash_completion
for program in mkbackup backupfs; do . "$2/bash-completion/completions/$program"; done
compopt() { :; }
COMP_LINE=$3 COMP_POINT=${#3} COMP_TYPE=9
eval "COMP_WORDS=($3)"
case $3 in *' ') COMP_WORDS+=("");; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"__start_${COMP_WORDS[0]}"
printf '%s\n' "${COMPREPLY[@]}"
`

// fishCompletion does that in fish.
const fishCompletion = `
set -x PATH $argv[1] $PATH
for program in mkbackup backupfs; source $argv[2]/fish/vendor_completions.d/$program.fish; end
complete -C $argv[3]
`

// zshCompletion does that in zsh, of which the part that shows what is offered is
// replaced by one that prints it.
const zshCompletion = `
PATH=$1:$PATH
compdef() { :; }
_describe() { print -l -- "${(@)completions}"; }
words=(${(z)3})
[[ $3 == *' ' ]] && words+=('')
CURRENT=$#words
fpath=($2/zsh/site-functions $fpath)
autoload -Uz _$words[1]
_$words[1]
`

// TestShellsComplete lets the shells themselves complete, by what is installed.
func TestShellsComplete(t *testing.T) {
	r, dest := completionRepo(t), tempDir(t)
	run(t, mkbackup, "--write-manual", dest)
	run(t, backupfs, "--write-manual", dest)
	for _, test := range []struct{ line, want string }{
		{"mkbackup ls " + r.dir + " web1/", "web1/2026-11-23T03-00-00Z"},
		{"mkbackup ls " + r.dir + " latest /etc/f", "/etc/fuse.conf"},
		{"mkbackup create " + r.dir + " --source ", "web1"},
		{"mkbackup create " + r.dir + " --progress a", "always"},
		{"mkbackup create " + r.dir + " --ionice b", "best-effort"},
		{"backupfs " + r.dir + " /mnt --generation 2026", "2026-11-22T03-00-00Z"},
	} {
		for _, shell := range [][]string{{"bash", "-c", bashCompletion, "bash"}, {"zsh", "-fc", zshCompletion, "zsh"}, {"fish", "--no-config", "-c", fishCompletion}} {
			out := run(t, shell[0], append(shell[1:], filepath.Dir(mkbackup), dest, test.line)...)
			offered := strings.FieldsFunc(out, func(c rune) bool { return c == '\n' || c == '\t' || c == ' ' || c == ':' })
			if !slices.Contains(offered, test.want) {
				t.Errorf("%s: %s: got %q, want %q among it", shell[0], test.line, out, test.want)
			}
		}
	}
}
