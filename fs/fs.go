// Package fs shows a repository as a file system: every generation as a plain,
// read-only directory tree. It is the only package that knows FUSE.
//
//	2026-11-22T03-00-00Z/     generations of the unnamed source
//	latest                    a symlink to the newest of them
//	web1/                     another source: its generations, and its latest
//	.versions/etc/passwd/     not listed: the versions of a path; see versionsName
//
// A prefix of a generation's name ("2026-11-22") leads to the last generation
// that has it, but is not listed. What is in a generation never changes, so the
// kernel keeps all of it for as long as it likes and is told when a generation
// comes or goes.
package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// DefaultCacheSize is how many raw bytes of decoded frames a mount keeps in
// memory unless told otherwise: 256 MiB.
const DefaultCacheSize = 256 << 20

// pollInterval is how often the log is looked at for a new record.
const pollInterval = 500 * time.Millisecond

// Options are the choices of a mount. The zero value shows everything to
// everybody, where root mounts it.
type Options struct {
	// Source is the only source to show, its generations at the root of the
	// mount; "" shows all.
	Source string
	// Generation is the only generation to show, at the root of the mount, as
	// index.Find understands it, within Source if there is one; "" shows all.
	Generation string
	// NameFormat is how generations are called in the mount. It has no effect where
	// Generation is given.
	NameFormat NameFormat
	// CacheSize is how many raw bytes of decoded frames are kept in memory; 0
	// means DefaultCacheSize.
	CacheSize int64
	// WatchFrames is told how many bytes of decoded frames lie in memory outside of
	// Go's heap: those of the cache, of requests under way and a few more. It is called
	// by one goroutine at a time, must be quick and may be nil.
	WatchFrames func(bytes int64)
	// Private lets only the mounting user in. Without it everybody may enter,
	// under the permissions of the source; for who is not root that takes
	// user_allow_other in /etc/fuse.conf.
	Private bool
	// NoExec forbids the execution of programs from the mount.
	NoExec bool
	// Mounting is called right before the mount can be seen; nil: nobody wants to know.
	// Until then New can be killed without leaving anything behind.
	Mounting func()
	// Log is told what goes wrong, and when the index is rebuilt. It is called
	// from many goroutines; nil is silent.
	Log func(format string, a ...any)
}

// Mount is a mounted repository. It is safe for concurrent use.
type Mount struct {
	repository *archive.Repository
	options    Options
	mountpoint string           // without symlinks
	owner      fuse.Owner       // of what is above the generations
	pinned     index.Generation // the only one to show; Number 0: all
	parts      *parts
	log        *logger
	counters   counters
	latency    *latency
	paths      *paths
	found      atomic.Pointer[foundVersions]

	lineage     atomic.Pointer[lineage] // of the log as it is; changed under refreshes.mu
	lineageMu   sync.Mutex              // held while it changes, and while a connection begins to use it
	past        []*lineage              // those before it, which old connections show; guarded by refreshes.mu
	refreshes   refreshes
	reconnects  backoff // after a failure; used by poll
	connections connections
	server      atomic.Pointer[server] // of the connection that is mounted; nil at first
	mountMu     sync.Mutex             // held by who changes what is mounted

	done    chan struct{} // closed when everything is released
	aborted error         // why the mount has ended, where nobody unmounted it; set before that
}

// refreshes is the state of bringing the mount up to the log's end.
type refreshes struct {
	mu      sync.Mutex
	shows   atomic.Uint64       // how often something was shown; changed under mu
	stamp   archive.RecordStamp // of the newest log record that is shown
	end     uint64              // least number with which the log ended since
	retry   backoff             // after a failure
	failed  time.Time           // when the last one was
	newest  uint64              // number of the newest published index then
	damaged atomic.Bool         // a request has found the index damaged
	reopen  backoff             // after it was opened anew for that
}

// New mounts a repository at mountpoint, an absolute path of a directory, and
// serves it until it is unmounted. The repository must stay open until Wait
// returns.
func New(r *archive.Repository, mountpoint string, o Options) (*Mount, error) {
	if err := o.NameFormat.Check(); err != nil {
		return nil, fmt.Errorf("name format %w", err)
	}
	where, err := checkMountpoint(mountpoint, r.Dir())
	if err != nil {
		return nil, err
	}
	if o.CacheSize == 0 {
		o.CacheSize = DefaultCacheSize
	}
	m := &Mount{
		repository: r,
		options:    o,
		mountpoint: where,
		owner:      *fuse.CurrentOwner(),
		log:        newLogger(o.Log),
		latency:    newLatency(),
		paths:      newPaths(maxPaths),
		done:       make(chan struct{}),
	}
	m.connections.ended = make(chan struct{})
	if err := m.openFirst(); err != nil {
		m.lineage.Load().leave()
		return nil, err
	}
	m.parts = newParts(r.Store(), o)
	if err := m.serve(); err != nil {
		m.release()
		return nil, err
	}
	return m, nil
}

// openFirst opens the index for the first time, and finds the source and the
// generation that the options name.
func (m *Mount) openFirst() error {
	m.lineage.Store(newLineage())
	snap, err := m.openSnapshot(true)
	if err != nil {
		return err
	}
	m.show(snap)
	all, err := snap.db.Generations()
	if err != nil {
		return err
	}
	if err := checkSource(all, m.options.Source); err != nil {
		return err
	}
	if m.options.Generation == "" {
		return nil
	}
	m.pinned, err = findGeneration(all, m.options.Source, m.options.Generation)
	return err
}

// serve mounts, and starts what runs until the mount ends.
func (m *Mount) serve() error {
	if m.options.Mounting != nil {
		m.options.Mounting()
	}
	s, err := m.connect()
	if err != nil {
		return mountError(m.mountpoint, err)
	}
	m.server.Store(s)
	m.update(s)
	go m.run()
	return nil
}

// run keeps the mount up to date until its last connection has ended, and then
// releases everything.
func (m *Mount) run() {
	m.poll()
	m.aborted = m.removeAborted()
	m.release()
	close(m.done)
}

func (m *Mount) release() {
	m.refreshes.mu.Lock() // nobody adds to it afterwards
	m.lineage.Load().leave()
	m.refreshes.mu.Unlock()
	_ = m.parts.Close() // it was only read from
}

// Wait returns when the mount has ended, by Unmount or from outside.
func (m *Mount) Wait() { <-m.done }

// Err returns, once Wait has returned, why the mount has ended, nil where it was unmounted.
func (m *Mount) Err() error { return m.aborted }

// removeAborted takes away what is left at the mount point where the kernel has ended the
// connection, but not the mount: somebody has forced that while it was in use.
func (m *Mount) removeAborted() error {
	if ours, _ := isMounted(m.mountpoint); !ours {
		return nil
	}
	time.Sleep(forcedPause) // to look at the mount keeps it busy
	if !removeDead(m.mountpoint) {
		return nil
	}
	return fmt.Errorf("%s: its connection was aborted while it was in use, as `umount -f` does: it was unmounted; mount it anew", m.mountpoint)
}

// forcedPause is how long `umount -f` has, once it has ended the connection, to unmount.
const forcedPause = 100 * time.Millisecond

// Unmount ends the mount. Where programs use it the kernel refuses that: then
// it is taken out of the file tree all the same, and busy is true. It lives on
// for those programs, out of everybody else's sight, until they let it go or
// the process ends, after which they get errors. busy is true, too, where the
// mount lives on in another mount namespace. What others have mounted over it
// is theirs and stays, and the mount with it: then the error says so.
func (m *Mount) Unmount() (busy bool, err error) {
	m.mountMu.Lock()
	defer m.mountMu.Unlock()
	s := m.server.Load()
	for try := range unmountTries {
		if !s.isAt(m.mountpoint) {
			return m.lives(), s.checkHidden(m.mountpoint)
		}
		lazily := try == unmountTries-1
		if err = unmount(m.mountpoint, lazily); err == nil {
			return lazily || m.lives(), nil
		}
		closed(s.ended, unmountPause)
	}
	return true, fmt.Errorf("unmount %s: %w", m.mountpoint, err)
}

// checkHidden returns an error where the server's mount, which one does not see at the
// mount point, is mounted all the same.
func (s *server) checkHidden(mountpoint string) error {
	if s.hasEnded() {
		return nil
	}
	at, err := mountedAt(s.device)
	if err != nil || at == "" {
		return err
	}
	return fmt.Errorf("unmount %s: something else lies over it, or it was moved: it is still mounted at %s, where nothing answers any more: "+
		"unmount what lies over that, and then it", mountpoint, at)
}

// lives reports whether a connection goes on although its mount was taken away. It
// gives the kernel a while to end it.
func (m *Mount) lives() bool { return !closed(m.connections.ended, unmountPatience) }

// How often Unmount tries, the last time although the mount is busy, and how long it
// waits for the kernel to let go.
const (
	unmountTries    = 6
	unmountPause    = 30 * time.Millisecond
	unmountPatience = 2 * time.Second
)

// closed waits for a channel to be closed, at most for a while, and reports
// whether it was.
func closed(c <-chan struct{}, wait time.Duration) bool {
	select {
	case <-c:
		return true
	case <-time.After(wait):
		return false
	}
}
