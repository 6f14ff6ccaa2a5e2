package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// administers reports whether the caller has CAP_SYS_ADMIN, as Linux asks of
// those to whom it lists names like "trusted.*"; the values it guards itself.
//
// The request tells only a user and a thread, so its capabilities come from
// proc(5). Where the thread cannot be seen from here, or the kernel acts for it as
// somebody else, as an overlayfs above does as who mounted it, root has it.
func administers(caller fuse.Caller) bool {
	uid, effective, err := credentials(caller.Pid)
	if err != nil || uid != caller.Uid {
		return caller.Uid == 0
	}
	return effective>>unix.CAP_SYS_ADMIN&1 != 0 && inOurUserNamespace(caller.Pid)
}

// credentials returns the user as whom a thread uses files, and its effective capabilities.
func credentials(thread uint32) (uid uint32, effective uint64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return 0, 0, err
	}
	return parseStatus(string(status))
}

// parseStatus reads the file of proc(5): "Uid:" has the real, effective, saved
// and file system's user, "CapEff:" a mask in hexadecimal.
func parseStatus(status string) (uid uint32, effective uint64, err error) {
	var uids, mask string
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			uids = rest
		} else if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask = strings.TrimSpace(rest)
		}
	}
	fields := strings.Fields(uids)
	if len(fields) != 4 {
		return 0, 0, fmt.Errorf("status of a process: users %q", uids)
	}
	user, err := strconv.ParseUint(fields[3], 10, 32)
	if err != nil {
		return 0, 0, err
	}
	effective, err = strconv.ParseUint(mask, 16, 64)
	return uint32(user), effective, err
}

// inOurUserNamespace reports whether a thread's capabilities count where this
// process lives: everybody has all of them in a name space of his own.
func inOurUserNamespace(thread uint32) bool {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", thread))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/user")
	return err == nil && ours == theirs
}
