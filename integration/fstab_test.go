package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
)

// TestFstab puts the line of the manual into /etc/fstab, which the sandbox has
// to itself, and lets mount(8) and umount(8) do the rest.
func TestFstab(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(5, treetest.RandomOptions{Owners: true, Files: 50}))
	r := newRepo(t)
	s := r.all(src)
	m := &fuseMount{t: t, dir: mkdir(t, tempDir(t), "backups")}

	fstab := filepath.Join(tempDir(t), "fstab")
	old, err := os.ReadFile("/etc/fstab")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err != nil {
		write(t, "/etc/fstab", "") // there must be something to mount over
		t.Cleanup(func() { os.Remove("/etc/fstab") })
	}
	write(t, fstab, string(old)+"\n"+r.dir+"  "+m.dir+"  fuse.backupfs  ro,_netdev,x-systemd.requires-mounts-for="+r.dir+",cache-size=64M  0 0\n")
	mountAt(t, "/etc/fstab", "--bind", fstab)

	// mount(8) looks for backupfs where it would be installed.
	mountAt(t, "/usr/local/sbin", "--bind", filepath.Dir(backupfs))
	run(t, "mount", m.dir)
	t.Cleanup(m.stop)
	wantTree(t, "mount by fstab", readTree(t, src), m.at(s.Generation), treetest.Options{})
	info := mountInfo(t, m.dir)
	if len(info) != 1 || !strings.Contains(info[0], " fuse.backupfs ") {
		t.Errorf("not of type fuse.backupfs: %q", info)
	}
	for _, option := range []string{"ro", "nosuid", "nodev"} {
		if fields := strings.Fields(info[0]); !strings.Contains(","+fields[5]+",", ","+option+",") {
			t.Errorf("mounted without %s: %s", option, info[0])
		}
	}
	run(t, "umount", m.dir)
	if isMounted(t, m.dir) {
		t.Error("still mounted after umount")
	}
}

// TestFstabAtBoot: by the lines of the manual systemd mounts the file system that the
// repository lies on first.
func TestFstabAtBoot(t *testing.T) {
	line := regexp.MustCompile(`/srv/backup\S*\s+/backups\s+fuse\.backupfs\s+\S+\s+0 0`)
	for _, page := range []string{"README.md", "docs/mounting.md", "cmd/backupfs/main.go"} {
		text, err := os.ReadFile(filepath.Join("..", page))
		must(t, err)
		dir := tempDir(t)
		fstab := filepath.Join(dir, "fstab")
		write(t, fstab, line.FindString(string(text))+"\n")
		cmd := exec.Command("/usr/lib/systemd/system-generators/systemd-fstab-generator", dir, dir, dir)
		cmd.Env = append(os.Environ(), "SYSTEMD_FSTAB="+fstab, "SYSTEMD_PROC_CMDLINE=")
		if r := runCmd(t, cmd); r.code != 0 {
			t.Fatalf("%s: exit code %d: %s", page, r.code, r.stderr)
		}
		unit, err := os.ReadFile(filepath.Join(dir, "backups.mount"))
		must(t, err)
		if !strings.Contains(string(unit), "\nRequiresMountsFor=/srv/backup\n") {
			t.Errorf("%s: the unit does not wait for /srv/backup:\n%s", page, unit)
		}
	}
}
