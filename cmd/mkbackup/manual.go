package main

import "github.com/backupfs/backupfs/cmd/internal/manual"

// book is what every manual page of mkbackup says besides its command's help.
func book() manual.Book {
	return manual.New(version, []string{"backupfs(1)"}, manual.Section{Title: "EXIT STATUS", Text: `
**0**
: Done.

**1**
: Failed; nothing was committed, unless the message says so.

**2**
: Wrong usage.

**3**
: Committed, but some source files could not be read, or changed while they were read. Each is named on standard error.

**4**
: Damage was found. What could be done, or read, was: **mkbackup check** tells all about it, and what to do.

**129**, **130**, **143**
: Interrupted by SIGHUP, SIGINT or SIGTERM. Nothing half-done remains visible.
`}, manual.Section{Title: "FILES", Text: `
*REPO*/repo.json
: The format version and the id of the repository.

*REPO*/parts/
: The data: immutable **.tar.zst** files, each named by its SHA-256.

*REPO*/log/
: One record for each commit, zstd-compressed lines of JSON: the truth about every generation.

*REPO*/index/
: Derived from the log; can be deleted at any time.

*/etc/backupfs/NAME.conf*
: What **mkbackup run NAME** does.

*/run/backupfs.lock*
: Locks of runs that root makes.

*.NAME.conf.lock*
: Beside a configuration: the lock of runs that another user makes. It is empty, and stays.

*~/.cache/mkbackup/*
: Where the next **check --read-data-subset** begins.

*REPO*/tmp/
: Unpublished work of programs that run, and of those that were killed; the next run removes it.
`}, manual.Section{Title: "ENVIRONMENT", Text: `
**TMPDIR**
: Where a temporary index is built when the repository cannot be written or its disk is full (default: /tmp).

**XDG_CACHE_HOME**
: What is used instead of *~/.cache*.

**TZ**
: The time zone in which days, weeks, months and years of a retention rule begin.
`})
}
