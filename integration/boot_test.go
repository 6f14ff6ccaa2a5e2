//go:build soak

package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootScript makes a container of the directory $1 and becomes systemd in it, whose
// process id it writes to the file $2.
const bootScript = `
read -r pid _ </proc/self/stat
mount --make-rprivate /
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty fuse; do
	touch "dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
echo "$pid" >"$2"
pivot_root . mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . sh -c '
	umount -l /mnt
	exec /lib/systemd/systemd --unit=basic.target --log-target=console --show-status=0'
`

// booted is a copy of the machine that systemd has booted.
type booted struct {
	t    *testing.T
	root string
	pid  string // of systemd
}

// bootMachine boots a copy of the machine, without the services that are enabled on
// it, for the time of the test.
func bootMachine(t *testing.T) *booted {
	t.Helper()
	root, file := machineCopy(t), filepath.Join(tempDir(t), "pid")
	shell(t, `rm -rf "$1"/etc/systemd/system/*.wants; echo 5f8d0000000000000000000000000001 >"$1"/etc/machine-id`, root)
	machine := start(t, exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net", "sh", "-euc", bootScript, "sh", root, file))
	b := &booted{t: t, root: root}
	waitFor(t, 3*time.Minute, "systemd to boot", func() bool {
		select {
		case <-machine.done:
			t.Fatalf("no container:\n%s%s", machine.stdout.String(), machine.stderr.String())
		default:
		}
		text, err := os.ReadFile(file)
		b.pid = strings.TrimSpace(string(text))
		return err == nil && b.pid != "" && b.try("systemctl", "is-active", "basic.target").code == 0
	})
	return b
}

// try runs a program in the container.
func (b *booted) try(args ...string) result {
	b.t.Helper()
	return runCmd(b.t, exec.Command("nsenter", append([]string{"--target=" + b.pid, "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--"}, args...)...))
}

// run runs a program that must end with exit code 0 and returns its output.
func (b *booted) run(args ...string) string {
	b.t.Helper()
	r := b.try(args...)
	if r.code != 0 {
		b.t.Fatalf("%s: exit code %d\n%s%s\n%s", strings.Join(args, " "), r.code, tail(r.stdout), tail(r.stderr), tail(b.try("journalctl", "--no-pager", "-n", "50").stdout))
	}
	return r.stdout
}

// TestBootedPackage installs the package on a machine that runs systemd, and starts
// its units.
func TestBootedPackage(t *testing.T) {
	file := debianPackage(t)
	b := bootMachine(t)
	run(t, "cp", file, filepath.Join(b.root, "backupfs.deb"))
	b.run("dpkg", "--install", "/backupfs.deb")
	b.run("mkdir", "/backups")
	b.run("mkbackup", "init", "/srv/backup")
	write(t, filepath.Join(b.root, "etc/backupfs/main.conf"), "repository = \"/srv/backup\"\n[[backup]]\npaths = [\"/etc\"]\n[mount]\npoint = \"/backups\"\n")
	// What a service could be kept from seeing.
	write(t, filepath.Join(mkdir(t, b.root, "usr/lib/modules/kernel"), "driver.ko"), "module")
	write(t, filepath.Join(b.root, "etc/backupfs/all.conf"), `repository = "/srv/all"
[[backup]]
paths = ["/usr/lib/modules", "/dev"]
[hooks]
before = [["mkdir", "-p", "/run/snapshot"], ["mount", "-t", "tmpfs", "none", "/run/snapshot"], ["sh", "-c", "exec 3<>/dev/fuse"]]
`)
	b.run("mkbackup", "init", "/srv/all")
	b.run("systemctl", "start", "mkbackup@all.service")
	b.run("umount", "/run/snapshot") // what a hook mounts is mounted for all
	if got := b.run("mkbackup", "ls", "/srv/all", "latest", "/usr/lib/modules/kernel"); !strings.Contains(got, "driver.ko") {
		t.Errorf("below /usr/lib/modules a service backs up %q", got)
	}
	b.stopRun()
	b.run("systemctl", "start", "mkbackup@main.service")
	b.run("systemctl", "enable", "--now", "mkbackup@main.timer")
	if next := b.run("systemctl", "show", "--property=NextElapseUSecRealtime", "--value", "mkbackup@main.timer"); strings.TrimSpace(next) == "" {
		t.Error("the timer has no next time")
	}
	b.run("systemctl", "enable", "--now", "backupfs@main.service")
	b.run("diff", "-r", "--no-dereference", "/etc/apt", "/backups/latest/etc/apt")
	b.run("sh", "-c", "echo changed >/etc/changed")
	b.run("systemctl", "start", "mkbackup@main.service")
	waitFor(t, 10*time.Second, "the generation to appear", func() bool { return b.try("cmp", "/etc/changed", "/backups/latest/etc/changed").code == 0 })

	mainPID := func() string {
		return strings.TrimSpace(b.run("systemctl", "show", "--property=MainPID", "--value", "backupfs@main.service"))
	}
	for _, signal := range []string{"KILL", "QUIT"} { // of the second Go makes a crash
		killed := mainPID()
		b.run("systemctl", "kill", "--signal="+signal, "backupfs@main.service")
		waitFor(t, 2*time.Minute, "the service to be started again", func() bool {
			pid := mainPID()
			return pid != killed && pid != "0" && b.try("systemctl", "is-active", "backupfs@main.service").code == 0
		})
		b.run("cmp", "/etc/changed", "/backups/latest/etc/changed")
	}
	b.run("systemctl", "stop", "backupfs@main.service")
	if b.try("mountpoint", "-q", "/backups").code == 0 {
		t.Error("it is mounted although the service was stopped")
	}
	if failed := b.run("systemctl", "--failed", "--quiet", "--plain"); strings.Contains(failed, "backup") {
		t.Errorf("failed units: %s", failed)
	}
	b.run("dpkg", "--purge", "backupfs")
	if _, err := os.Lstat(filepath.Join(b.root, "usr/lib/systemd/system/backupfs@.service")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unit after the purge: %v", err)
	}
}

// stopRun stops the service of a run in its hook, which must be left to its end, and
// those that start again what it stopped must follow.
func (b *booted) stopRun() {
	b.t.Helper()
	write(b.t, filepath.Join(b.root, "etc/backupfs/stop.conf"), `repository = "/srv/all"
[[backup]]
paths = ["/etc"]
[hooks]
before = [["sh", "-c", "touch /run/began; until [ -e /run/go ]; do sleep 0.1; done; touch /run/ended"]]
after = [["touch", "/run/after"]]
`)
	b.run("systemctl", "start", "--no-block", "mkbackup@stop.service")
	waitFor(b.t, time.Minute, "the hook to begin", func() bool { return b.try("test", "-e", "/run/began").code == 0 })
	b.run("systemctl", "stop", "--no-block", "mkbackup@stop.service")
	state := func() string {
		return strings.TrimSpace(b.try("systemctl", "is-active", "mkbackup@stop.service").stdout)
	}
	waitFor(b.t, time.Minute, "the service to be stopped", func() bool { return strings.HasPrefix(state(), "deactivating") || state() == "failed" })
	b.run("touch", "/run/go")
	waitFor(b.t, time.Minute, "the run to end", func() bool { return state() == "failed" || state() == "inactive" })
	b.run("ls", "/run/ended", "/run/after")
	b.run("systemctl", "reset-failed")
}
