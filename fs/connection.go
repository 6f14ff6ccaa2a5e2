package fs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// connections counts the connections to the kernel. There is more than one
// where one was replaced while programs used it.
type connections struct {
	mu    sync.Mutex
	live  int
	ended chan struct{} // closed with the last one
}

// add counts a connection, and is false where the last one has ended already.
func (c *connections) add() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupted() != nil {
		return false
	}
	c.live++
	return true
}

func (c *connections) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live--; c.live == 0 {
		close(c.ended)
	}
}

// interrupted returns an error once the last connection has ended: then nobody needs
// what somebody is still at work on.
func (c *connections) interrupted() error {
	select {
	case <-c.ended:
		return errEnded
	default:
		return nil
	}
}

// newServer returns a server that shows the newest snapshot. It uses its lineage until
// its end. replaceable says that another one can be put in its place.
func (m *Mount) newServer(replaceable bool) *server {
	l := m.useLineage()
	snap := l.snapshots.at(0)
	defer snap.release()
	s := &server{
		readOnly: readOnly{fuse.NewDefaultRawFileSystem()},
		lineage:  l,
		m:        m,
		mute:     m.mayMute(snap, replaceable),
		told:     snap.catalog,
		ended:    make(chan struct{}),
	}
	s.catalog.Store(snap.catalog)
	s.pusher = &pusher{seen: newSeen(), snapshots: &l.snapshots, parts: m.parts, store: s.store}
	return s
}

// mayMute reports whether the kernel may be told that there are no extended attributes:
// none are in a generation that is shown for ever, or the connection can be replaced
// once there are. Of a repository without generations nothing can be told yet.
func (m *Mount) mayMute(snap *snapshot, replaceable bool) bool {
	if snap.db.HasXattrs() || len(snap.generations) == 0 {
		return false
	}
	return m.pinned.Number != 0 || replaceable
}

// store stores a file's content in the kernel's page cache.
func (s *server) store(node uint64, offset int64, data []byte) fuse.Status {
	status := s.fuse.InodeNotifyStoreCache(node, offset, data)
	if status.Ok() {
		s.m.counters.pushes.Add(1)
		s.m.counters.pushedRaw.Add(int64(len(data)))
	}
	return status
}

// show makes a server show a snapshot, if it may: what has, or may have,
// extended attributes is not for a connection that has told the kernel that
// there are none, and another history of the log is for a new one.
func (s *server) show(snap *snapshot) {
	if s.mute && s.m.pinned.Number == 0 && snap.db.HasXattrs() || s.lineage != s.m.lineage.Load() {
		s.outdated.Store(true)
	}
	if s.outdated.Load() {
		return
	}
	if old := s.catalog.Load(); old != nil {
		s.before.Store(&replaced{old, time.Now().Add(grace)})
	}
	s.catalog.Store(snap.catalog)
}

// connect opens a connection that is mounted at the mount point.
func (m *Mount) connect() (*server, error) {
	options := m.mountOptions()
	s := m.newServer(canReconnect(options))
	var err error
	if s.fuse, err = fuse.NewServer(s, m.mountpoint, options); err != nil {
		s.leave()
		return nil, err
	}
	m.connections.add()
	go s.serve()
	// Makes the kernel know that files here need no polling. It fails where
	// the root of the mount is closed to us, and then nothing depends on it.
	_ = s.fuse.WaitMount()
	root, err := openMount(m.mountpoint)
	if err != nil {
		return nil, errors.Join(err, unmount(m.mountpoint, true))
	}
	defer unix.Close(root)
	s.settle(root)
	return s, nil
}

// reconnect puts a new connection in the place of the one that is mounted,
// which is outdated. The old one goes on serving what is open in it, and ends
// when that is let go. Where it is not there for the moment, because something
// else is mounted over it, nothing happens. After a failure it is let be for a while.
func (m *Mount) reconnect() {
	if m.reconnects.lasts() {
		return
	}
	err := m.tryReconnect()
	switch {
	case err == nil:
		m.reconnects = backoff{}
		return
	case !m.server.Load().isAt(m.mountpoint): // it was unmounted meanwhile, or is not there for the moment
		return
	}
	m.counters.refreshFailures.Add(1)
	if m.reconnects.isNews(err) {
		m.log.print("new generations are not shown: the mount cannot be replaced, which they need: %v (it is tried again; else unmount %s, and mount it anew)",
			err, m.mountpoint)
	}
	m.reconnects.begin()
}

// tryReconnect leaves the mount to others before it waits for what is being opened.
func (m *Mount) tryReconnect() error {
	s, err := m.replaceServer()
	if s != nil {
		m.update(s)
	}
	return err
}

// replaceServer puts a new server in the place of the one that is mounted. It returns nil
// where that is not there.
func (m *Mount) replaceServer() (*server, error) {
	m.mountMu.Lock()
	defer m.mountMu.Unlock()
	old := m.server.Load()
	if !old.isAt(m.mountpoint) {
		return nil, nil
	}
	s, root, err := m.connectDetached()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	if err := old.giveWay(m.mountpoint, root); err != nil {
		return nil, err
	}
	why := "there are extended attributes now"
	if s.lineage != old.lineage {
		why = "the log has lost records, and has others by their numbers"
	}
	m.log.print("%s: the mount was replaced; copies of it elsewhere (bind mounts, "+
		"containers) show no new generations until they are made anew", why)
	m.server.Store(s)
	return s, nil
}

// update shows in the server that is mounted what became the newest since it was made.
func (m *Mount) update(s *server) {
	m.refreshes.mu.Lock()
	defer m.refreshes.mu.Unlock()
	if snap := s.snapshots.at(0); snap != nil { // it has not ended
		defer snap.release()
		s.show(snap)
	}
}

// connectDetached opens a connection whose mount is nowhere in the file tree.
// root is its root, an O_PATH descriptor. The connection ends when that is
// closed, unless the mount was moved to some place before.
func (m *Mount) connectDetached() (s *server, root int, err error) {
	options := m.mountOptions()
	device, root, err := mountDetached(options)
	if err != nil {
		return nil, 0, err
	}
	s = m.newServer(true)
	options.DirectMountStrict = false // it is mounted
	if s.fuse, err = fuse.NewServer(s, fmt.Sprintf("/dev/fd/%d", device), options); err != nil {
		s.leave()
		return nil, 0, errors.Join(err, unix.Close(root))
	}
	if !m.connections.add() {
		s.leave()
		return nil, 0, errors.Join(errEnded, unix.Close(root))
	}
	go s.serve()
	if err := refusePolls(root); err != nil {
		return nil, 0, errors.Join(err, unix.Close(root))
	}
	s.settle(root)
	return s, root, nil
}

var errEnded = errors.New("it has ended")

// serve answers requests until the kernel lets go.
func (s *server) serve() {
	s.fuse.Serve()
	s.pusher.close()
	close(s.ended)
	s.leave()
	s.m.connections.done()
}

// settle finishes what can be done only once requests are answered. root is an
// O_PATH descriptor of the mount's root.
func (s *server) settle(root int) {
	s.device = deviceOf(root)
	if os.Geteuid() == 0 {
		raiseReadAhead(s.device)
	}
	if s.mute {
		silenceXattrs(root)
	}
}

// isAt reports whether the server's mount is what one sees at a path.
func (s *server) isAt(path string) bool {
	root, err := openMount(path)
	if err != nil {
		return false
	}
	defer unix.Close(root)
	return s.has(root)
}

// has reports whether what is open belongs to the server's mount. The kernel gives the
// device of a server that has ended to others.
func (s *server) has(fd int) bool { return !s.hasEnded() && deviceOf(fd) == s.device }

func (s *server) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// giveWay puts the mount whose root is given in the place of the server's own,
// if that is what one sees at path, and is not unmounted meanwhile. There is
// always one of them to see: the new one comes beneath the old one, which is
// then taken away. The old one is named by a descriptor in both steps, so
// nothing else can be hit by them, whatever others mount and unmount there, but
// for what is mounted inside of the old one: it would go with it. So that one
// stays as long as there is something.
func (s *server) giveWay(path string, root int) error {
	old, err := openMount(path)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if !s.has(old) {
		return errEnded
	}
	if inside, err := mountedBelow(old); err != nil {
		return err
	} else if inside != "" {
		return fmt.Errorf("%s is mounted inside of it: unmount that", inside)
	}
	if err := moveBeneath(root, old); err != nil {
		return err
	}
	if err := detach(old); err != nil {
		// Somebody has unmounted it since, who wants to see none.
		return errors.Join(err, detach(root))
	}
	return nil
}
