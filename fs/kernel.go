package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// typeName is the type of the mount in /proc/mounts, behind "fuse.".
const typeName = "backupfs"

// maxRead is the size of a large READ request, and how far the kernel reads
// ahead.
const maxRead = 1 << 20

// mountOptions returns what is asked of go-fuse and the kernel. Splicing fails
// for requests of this size and gains nothing from memory.
//
// Who mounts for himself alone without being root has the repository's bytes
// anyway, so nothing is checked for him: he may read what he owned under
// another number on another machine.
func (m *Mount) mountOptions() *fuse.MountOptions {
	root := os.Geteuid() == 0
	o := &fuse.MountOptions{
		AllowOther:           !m.options.Private,
		FsName:               m.repository.Dir(),
		Name:                 typeName,
		MaxWrite:             maxRead,
		MaxReadAhead:         maxRead,
		DisableSplice:        true,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH, // it counts as a level of stacking below an overlayfs
		EnableSymlinkCaching: true,
		DirectMountStrict:    root,
		DirectMountFlags:     unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV,
		Logger:               m.log.forGoFuse(),
	}
	if !root {
		o.Options = []string{"ro", "nosuid", "nodev"}
	}
	if m.options.NoExec {
		o.Options = append(o.Options, "noexec")
	}
	if root || !m.options.Private {
		// Without ACLs the kernel takes an ACL's mask for the group's rights.
		o.EnableAcl = true
		o.Options = append(o.Options, "default_permissions")
	}
	return o
}

// raiseReadAhead lets the kernel read ahead as far as a request is large. The
// limit that it sets itself at the mount cannot be raised in another way.
// Failing that, reading large files is slower.
func raiseReadAhead(mountpoint string) {
	var st unix.Stat_t
	if unix.Stat(mountpoint, &st) != nil {
		return
	}
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	_ = os.WriteFile(file, []byte(strconv.Itoa(maxRead>>10)), 0)
}

// checkMountpoint finds out what would make mounting fail or hang.
func checkMountpoint(mountpoint, repository string) error {
	info, err := os.Stat(mountpoint)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return fmt.Errorf("%s: a mount whose program is gone: unmount it first", mountpoint)
	case err != nil:
		return fmt.Errorf("mount point: %w", err)
	case !info.IsDir():
		return fmt.Errorf("mount point %s: not a directory", mountpoint)
	}
	where, err := filepath.EvalSymlinks(mountpoint)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	mounted, err := isMounted(where)
	switch {
	case err != nil:
		return err
	case mounted:
		return fmt.Errorf("mount point %s: a repository is mounted there already", mountpoint)
	}
	if repository, err = filepath.EvalSymlinks(repository); err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	if within(repository, where) {
		return fmt.Errorf("mount point %s: it would hide the repository %s", mountpoint, repository)
	}
	return nil
}

// within reports whether path is dir or lies below it. Both are clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// isMounted reports whether a mount of ours is what one sees at a path, which
// has no symlinks.
func isMounted(path string) (mounted bool, err error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		if at, fstype, ok := parseMount(lines.Text()); ok && at == path {
			mounted = fstype == "fuse."+typeName
		}
	}
	return mounted, lines.Err()
}

// parseMount returns the mount point and the type of a line of mountinfo.
func parseMount(line string) (at, fstype string, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	fields := strings.Fields(front)
	if !ok || len(fields) < 5 {
		return "", "", false
	}
	fstype, _, _ = strings.Cut(back, " ")
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return unescape.Replace(fields[4]), fstype, true
}

// mountError explains why a mount failed. fusermount3 has said why itself.
func mountError(mountpoint string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV):
		return fmt.Errorf("mount %s: %w: is the kernel's fuse module loaded?", mountpoint, err)
	case strings.HasPrefix(err.Error(), "fusermount exited"):
		return fmt.Errorf("mount %s: fusermount3 failed", mountpoint)
	}
	return fmt.Errorf("mount %s: %w", mountpoint, err)
}

// unmount takes a mount out of the file tree; lazily, although it is in use.
func unmount(mountpoint string, lazily bool) error {
	flags, args := 0, []string{"-u", mountpoint}
	if lazily {
		flags, args = unix.MNT_DETACH, []string{"-u", "-z", mountpoint}
	}
	if os.Geteuid() == 0 {
		return unix.Unmount(mountpoint, flags)
	}
	fusermount, err := exec.LookPath("fusermount3")
	if err != nil {
		fusermount = "/bin/fusermount3" // mount(8) leaves us no PATH
	}
	out, err := exec.Command(fusermount, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
