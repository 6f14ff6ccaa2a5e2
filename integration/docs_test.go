package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machineCopy returns a directory that shows the whole machine, of which
// everything may be changed: the root of other processes.
func machineCopy(t *testing.T) string {
	t.Helper()
	base := tmpfs(t, 1<<30)
	root := mkdir(t, base, "root")
	mountAt(t, root, "-t", "overlay", "overlay", "-o", "lowerdir=/,upperdir="+mkdir(t, base, "upper")+",workdir="+mkdir(t, base, "work"))
	return root
}

// onCopy runs a script of bash on a copy of the machine, from this project's
// directory, in a mount name space of its own.
const onCopy = `
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
mkdir -p "$1$2"
mount --bind "$2" "$1$2"
exec chroot "$1" env -C "$2" bash -euxo pipefail -c "$3"
`

// scriptOf returns the blocks marked "sh" of a page, one behind the other.
func scriptOf(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	must(t, err)
	var script strings.Builder
	inside := false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.TrimSpace(line) == "```sh"
		case inside:
			script.WriteString(line)
		}
	}
	return script.String()
}

// TestDocumentedCommands runs every block marked "sh" of README and of each page,
// page by page, on a copy of the machine. A page whose blocks need a repository
// that an earlier page made has one from "Getting started".
func TestDocumentedCommands(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	must(t, err)
	project, err := filepath.Abs("..")
	must(t, err)
	ran := 0
	for _, page := range append([]string{"../README.md"}, pages...) {
		script := scriptOf(t, page)
		if script == "" {
			continue
		}
		ran++
		t.Run(filepath.Base(page), func(t *testing.T) {
			root := machineCopy(t)
			makeTarget(t, "install", "DESTDIR="+root, "PREFIX=/usr/local")
			if !strings.Contains(script, "mkbackup init") {
				script = "mkbackup init /srv/backup; mkbackup create -q /srv/backup /etc; mkbackup create -q /srv/backup /etc\n" + script
			}
			script = "trap 'if mountpoint -q /backups; then umount /backups; fi' EXIT\n" + script
			r := runCmd(t, exec.Command("unshare", "--mount", "sh", "-euc", onCopy, "sh", root, project, script))
			if r.code != 0 {
				t.Errorf("exit code %d\n%s%s", r.code, tail(r.stdout), tail(r.stderr))
			}
		})
	}
	if ran < 3 {
		t.Errorf("only %d pages with commands", ran)
	}
}
