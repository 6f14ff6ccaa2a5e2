package fs

import (
	"errors"
	"runtime"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// ReleaseRemoved closes the parts that are no longer in the store.
func (m *Mount) ReleaseRemoved() { m.parts.ReleaseRemoved() }

// LimitPaths bounds the paths below ".versions" that are remembered.
func (m *Mount) LimitPaths(n int) {
	m.paths.mu.Lock()
	defer m.paths.mu.Unlock()
	m.paths.limit = n
}

// CanReconnect reports whether a connection can be replaced.
func CanReconnect() bool { return canReconnect(&fuse.MountOptions{Name: typeName, FsName: "test"}) }

// Refresh shows what was committed, and reports whether there was something.
func (m *Mount) Refresh() bool { return m.refresh(m.refreshes.shows.Load(), true) }

// ReopenDuring opens the index of what is shown anew, once calls have begun that may
// wait for that.
func (m *Mount) ReopenDuring(calls func()) error {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	calls()
	s, err := m.openSnapshot(true)
	if err == nil {
		m.show(s)
	}
	return err
}

// Reconnect replaces the connection that is mounted.
func (m *Mount) Reconnect() error { return m.tryReconnect() }

// FailRefresh makes the mount leave the log alone, as it does after many failures.
func (m *Mount) FailRefresh() {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	m.refreshes.retry.pause = maxRetry
	m.failRefresh(errors.New("a failure of the test"))
}

// LastShown makes a connection, which is mounted nowhere, calls meanwhile before it
// counts as mounted, and returns the number of the newest record that it shows.
func LastShown(r *archive.Repository, meanwhile func(refresh func() bool)) (uint64, error) {
	m := &Mount{repository: r, log: newLogger(nil)}
	m.connections.ended = make(chan struct{})
	err := m.openFirst()
	defer m.lineage.Load().leave()
	if err != nil {
		return 0, err
	}
	s := m.newServer(false)
	defer s.leave()
	meanwhile(m.Refresh)
	m.server.Store(s)
	m.update(s)
	return s.catalog.Load().last, nil
}

// Read answers a READ request.
func (m *Mount) Read(in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	return m.server.Load().Read(nil, in, b)
}

// AskDirectory answers requests for a directory of a generation, and returns the answers.
func (m *Mount) AskDirectory(generation uint64, dir index.DirID) map[string]fuse.Status {
	s, header := m.server.Load(), fuse.InHeader{NodeId: dirNode(generation, dir)}
	_, xattr := s.GetXAttr(nil, &header, aclPrefix+"access", nil)
	return map[string]fuse.Status{
		"getattr":     s.GetAttr(nil, &fuse.GetAttrIn{InHeader: header}, new(fuse.AttrOut)),
		"getxattr":    xattr,
		"readdir":     s.ReadDir(nil, &fuse.ReadIn{InHeader: header}, fuse.NewDirEntryList(make([]byte, 4096), 0)),
		"lookup .":    s.Lookup(nil, &header, ".", new(fuse.EntryOut)),
		"lookup ..":   s.Lookup(nil, &header, "..", new(fuse.EntryOut)),
		"readdirplus": s.ReadDirPlus(nil, &fuse.ReadIn{InHeader: header}, fuse.NewDirEntryList(make([]byte, 4096), 0)),
	}
}

// ReadMeanwhile returns which files are pushed before a READ of a file is answered. The
// kernel knows all files of an ascending list; the two before that one were just read,
// and those of meanwhile are once the READ has moved its stream on.
func (m *Mount) ReadMeanwhile(all []index.Ino, at int, meanwhile ...index.Ino) (pushed []index.Ino) {
	p := &pusher{seen: newSeen(), snapshots: &m.lineage.Load().snapshots, parts: m.parts, closed: true} // nothing in the background
	p.store = func(node uint64, _ int64, _ []byte) fuse.Status {
		pushed = append(pushed, index.Ino(node))
		return fuse.OK
	}
	p.tell(rootNode, all)
	p.heard(rootNode)
	p.read(all[at-2])
	p.read(all[at-1])
	pushed = nil
	p.snapshots.mu.Lock() // whoever pushes waits for it
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		p.read(all[at])
	}()
	for !p.hasCome(3) {
		runtime.Gosched()
	}
	for _, i := range meanwhile {
		p.seen.read(i)
		p.follow(i, true)
	}
	p.snapshots.mu.Unlock()
	<-answered
	return pushed
}

// hasCome reports whether the streams were moved so many times.
func (p *pusher) hasCome(times uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clock == times
}
