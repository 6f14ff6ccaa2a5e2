package fs

import (
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
		ExtraCapabilities:    fuse.CAP_EXPORT_SUPPORT,
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
func raiseReadAhead(device uint64) {
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(device), unix.Minor(device))
	_ = os.WriteFile(file, []byte(strconv.Itoa(maxRead>>10)), 0)
}

// canReconnect reports whether a mount with those options can be made, and be put
// beneath another one: by root, on Linux 6.5 or later.
func canReconnect(o *fuse.MountOptions) bool {
	// Who may not, or does not know the flag, says so before it looks at the
	// descriptors.
	if os.Geteuid() != 0 || !errors.Is(moveBeneath(-1, -1), unix.EBADF) {
		return false
	}
	connection, root, err := mountDetached(o)
	if err != nil {
		return false
	}
	return errors.Join(unix.Close(connection), unix.Close(root)) == nil
}

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h.
const moveMountBeneath = 0x200

// moveBeneath attaches a detached mount beneath another one, of the same mount
// point. Both are named by an O_PATH descriptor of their roots.
func moveBeneath(mount, top int) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH | moveMountBeneath
	if err := unix.MoveMount(mount, "", top, "", flags); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	return nil
}

// detach unmounts the mount of which root is an O_PATH descriptor, although it
// is in use.
func detach(root int) error {
	return os.NewSyscallError("umount", unix.Unmount(openPath(root), unix.MNT_DETACH))
}

// openMount opens the root of what is mounted at a path, without a request to
// whoever serves it. Go's own os.File might make one.
func openMount(path string) (root int, err error) {
	root, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return root, nil
}

// resolve returns a directory's path without symlinks, as the kernel lists it where
// something is mounted there. Unlike filepath.EvalSymlinks it asks nobody who serves the
// directory, who may be dead.
func resolve(dir string) (string, error) {
	fd, err := openMount(dir)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(openPath(fd))
}

// openPath returns a path that leads to what is open.
func openPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// deviceOf returns the device of a mount, 0 where it is not known.
func deviceOf(root int) uint64 {
	var st unix.Statx_t
	if unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st) != nil {
		return 0
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor)
}

// mountDetached makes a mount that is nowhere in the file tree, with the same
// options as go-fuse would mount with. fuse is the connection, root an O_PATH
// descriptor of the mount's root.
func mountDetached(o *fuse.MountOptions) (connection, root int, err error) {
	connection, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	if root, err = newMount(connection, o); err != nil {
		return 0, 0, errors.Join(os.NewSyscallError("mount", err), unix.Close(connection))
	}
	return connection, root, nil
}

func newMount(connection int, o *fuse.MountOptions) (root int, err error) {
	config, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(config)
	flags := []string{"ro"}
	attributes := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	for _, option := range o.Options {
		if option == "noexec" {
			attributes |= unix.MOUNT_ATTR_NOEXEC
		} else {
			flags = append(flags, option)
		}
	}
	if o.AllowOther {
		flags = append(flags, "allow_other")
	}
	for _, name := range flags {
		if err := unix.FsconfigSetFlag(config, name); err != nil {
			return 0, fmt.Errorf("option %s: %w", name, err)
		}
	}
	for name, value := range map[string]string{
		"source":   shortened(o.FsName),
		"subtype":  o.Name,
		"fd":       strconv.Itoa(connection),
		"rootmode": strconv.FormatInt(unix.S_IFDIR, 8),
		"user_id":  strconv.Itoa(os.Geteuid()),
		"group_id": strconv.Itoa(os.Getegid()),
		"max_read": strconv.Itoa(o.MaxWrite),
	} {
		if err := unix.FsconfigSetString(config, name, value); err != nil {
			return 0, fmt.Errorf("option %s=%s: %w", name, value, err)
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return 0, err
	}
	return unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, attributes)
}

// maxSetting is how many bytes a value that fsconfig(2) sets may have.
const maxSetting = 255

// shortened returns the end of what is too long for fsconfig(2).
func shortened(value string) string {
	const dots = "..."
	if len(value) <= maxSetting {
		return value
	}
	return dots + value[len(value)-maxSetting+len(dots):]
}

// refusePolls makes the kernel know that files of a connection need no polling,
// as go-fuse does for what it mounts itself: at the file of this name it
// answers so. Without it a file of our own mount that Go polls in this process
// could stop the process.
func refusePolls(root int) error {
	fd, err := unix.Openat(root, ".go-fuse-epoll-hack", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("refuse polls: %w", err)
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// silenceXattrs makes the kernel ask for extended attributes, so that it hears
// at once that it need not. The name is one that the kernel itself does not
// answer for. It is no loss where it fails: then the kernel hears it later.
func silenceXattrs(root int) {
	_, _ = unix.Getxattr(openPath(root), "security.backupfs", nil)
	_, _ = unix.Listxattr(openPath(root), nil)
}

// checkMountpoint finds out what would make mounting fail or hang. Where a process
// that had mounted a repository at the mount point was killed, what is left of that
// mount is taken away, so that it can be started again. where is the mount point's path
// without symlinks.
func checkMountpoint(mountpoint, repository string) (where string, err error) {
	where, unresolved := resolve(mountpoint)
	if unresolved == nil {
		removeDead(where)
	}
	info, err := os.Stat(mountpoint)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return "", fmt.Errorf("%s: a mount whose program is gone: unmount it first", mountpoint)
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mount point: %w: make it first", err)
	case err != nil:
		return "", fmt.Errorf("mount point: %w", err)
	case !info.IsDir():
		return "", fmt.Errorf("mount point %s: not a directory", mountpoint)
	case unresolved != nil:
		return "", fmt.Errorf("mount point: %w", unresolved)
	}
	mounted, err := isMounted(where)
	switch {
	case err != nil:
		return "", err
	case mounted:
		return "", fmt.Errorf("mount point %s: a repository is mounted there already", mountpoint)
	}
	if repository, err = filepath.EvalSymlinks(repository); err != nil {
		return "", fmt.Errorf("repository: %w", err)
	}
	if within(repository, where) {
		return "", fmt.Errorf("mount point %s: it would hide the repository %s", mountpoint, repository)
	}
	if within(where, repository) {
		return "", fmt.Errorf("mount point %s: it would hide a part of the repository %s", mountpoint, repository)
	}
	return where, nil
}

// removeDead unmounts what answers no more at a path without symlinks, if it is a mount of
// ours, and reports whether there was one. Who looks at the mount point afterwards sees whether it worked.
func removeDead(mountpoint string) (found bool) {
	// Unlike those of its root, the numbers of a file system are never cached.
	err := unix.Statfs(mountpoint, new(unix.Statfs_t))
	if ours, _ := isMounted(mountpoint); ours && errors.Is(err, unix.ENOTCONN) {
		_ = unmount(mountpoint, true)
		return true
	}
	return false
}

// within reports whether path is dir or lies below it. Both are clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// isMounted reports whether a mount of ours is what one sees at a path, which
// has no symlinks.
func isMounted(path string) (mounted bool, err error) {
	table, err := mounts()
	for _, e := range table {
		if e.at == path {
			mounted = e.fstype == "fuse."+typeName
		}
	}
	return mounted, err
}

// mountedBelow returns a mount point that lies in the mount of which root is an O_PATH
// descriptor, or over it; "" where there is none.
func mountedBelow(root int) (at string, err error) {
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	table, err := mounts()
	for _, e := range table {
		if e.parent == st.Mnt_id {
			return e.at, nil
		}
	}
	return "", err
}

// mountedAt returns where a device is mounted, as far as that can be seen; "" where it is
// nowhere.
func mountedAt(device uint64) (at string, err error) {
	table, err := mounts()
	name := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	for _, e := range table {
		if e.device == name {
			return e.at, nil
		}
	}
	return "", err
}

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	parent uint64 // the number of the mount that it lies in
	device string // as "major:minor"
	at     string
	fstype string
}

// mounts returns the mounts that can be seen, those on top behind those below.
func mounts() ([]mountEntry, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var table []mountEntry
	for line := range strings.Lines(string(text)) {
		if e, ok := parseMount(line); ok {
			table = append(table, e)
		}
	}
	return table, nil
}

func parseMount(line string) (e mountEntry, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	fields := strings.Split(front, " ") // of blanks, only this one, tabs and newlines are escaped
	if !ok || len(fields) < 5 {
		return mountEntry{}, false
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	e.device, e.at = fields[2], unescape.Replace(fields[4])
	e.fstype, _, _ = strings.Cut(back, " ")
	e.parent, _ = strconv.ParseUint(fields[1], 10, 64) // 0 is no mount
	return e, true
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
