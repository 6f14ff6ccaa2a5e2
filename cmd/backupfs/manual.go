package main

import "github.com/backupfs/backupfs/cmd/internal/manual"

// book is what the manual page says besides the help.
func book() manual.Book {
	return manual.New(version, []string{"mkbackup(1)", "fusermount3(1)", "fstab(5)", "mount(8)"}, manual.Section{Title: "EXIT STATUS", Text: `
**0**
: The mount is ready, and in the background; with **-f**: it has ended.

**1**
: Failed; the reason is on standard error.

**2**
: Wrong usage.
`}, manual.Section{Title: "FILES", Text: `
*/etc/backupfs/NAME.conf*
: What **--config NAME** takes the repository, the mount point and the options from.

*/etc/fstab*
: Mounts at boot: see DESCRIPTION, and **fstab**(5).

*/etc/fuse.conf*
: **user_allow_other** lets users who are not root mount for others.
`}, manual.Section{Title: "ENVIRONMENT", Text: `
**TZ**
: The time zone of the names that **--name-format** makes.

**TMPDIR**
: Where a temporary index is built when the repository cannot be written or its disk is full (default: /tmp).

**NOTIFY_SOCKET**
: Set by systemd: with **-f**, it is told when the mount is ready.
`})
}
