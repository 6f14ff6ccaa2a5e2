package fs

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"golang.org/x/sys/unix"
)

// The device of a server that has ended may be that of another mount.
func TestEndedServerIsNowhere(t *testing.T) {
	dir := t.TempDir()
	root, err := openMount(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	s := &server{device: deviceOf(root), ended: make(chan struct{})}
	if !s.isAt(dir) {
		t.Error("it is not where it is")
	}
	close(s.ended)
	if s.isAt(dir) {
		t.Error("it has ended, and is somewhere")
	}
	if err := s.giveWay(dir, root); !errors.Is(err, errEnded) {
		t.Errorf("it gives way: %v", err)
	}
}

// notMounted returns the state of a mount of an empty repository, without a connection.
func notMounted(t *testing.T) *Mount {
	t.Helper()
	r, err := archive.Init(filepath.Join(t.TempDir(), "repo"), archive.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	m := &Mount{repository: r, mountpoint: t.TempDir(), log: newLogger(nil)}
	m.connections.ended = make(chan struct{})
	if err := m.openFirst(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.lineage.Load().leave)
	return m
}

// Where the log vanishes in the moment in which it is opened, its generations stay.
func TestVanishedLogIsNotShown(t *testing.T) {
	m := notMounted(t)
	s, err := m.openAbove(0)
	if err == nil {
		s.release()
		t.Error("an index of nothing is shown")
	} else if !strings.Contains(err.Error(), "is its disk mounted?") {
		t.Error(err)
	}
}

// A failure to replace the mount is counted, and not repeated at once.
func TestReconnectBacksOff(t *testing.T) {
	m := notMounted(t)
	root, err := openMount(m.mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	s := m.newServer(false)
	defer s.leave()
	s.device = deviceOf(root) // of what is no mount, and so cannot be replaced
	m.server.Store(s)
	m.connections.add()
	defer m.connections.done()
	said := 0
	m.log.print = func(format string, _ ...any) {
		if strings.HasPrefix(format, "new generations are not shown") { // go-fuse has something to say, too
			said++
		}
	}
	for range 3 {
		m.reconnect()
	}
	if n := m.counters.refreshFailures.Load(); n != 1 {
		t.Errorf("%d failures are counted", n)
	}
	m.reconnects.until = time.Time{}
	m.reconnect()
	if n := m.counters.refreshFailures.Load(); n != 2 || m.reconnects.pause != 2*minRetry {
		t.Errorf("%d failures are counted, and the pause is %s", n, m.reconnects.pause)
	}
	m.reconnects = backoff{} // a success
	m.reconnect()
	if said != 2 {
		t.Errorf("%d messages, want one for each streak", said)
	}
}

// Of a streak of failures each kind is logged once.
func TestFailuresAreLoggedOnce(t *testing.T) {
	m := notMounted(t)
	var said []string
	m.log.print = func(format string, a ...any) { said = append(said, fmt.Sprintf(format, a...)) }
	for _, why := range []string{"one", "one", "two", "two"} {
		m.failRefresh(errors.New(why))
	}
	want := []string{"new generations are not shown: one", "new generations are not shown: two"}
	if !slices.Equal(said, want) {
		t.Errorf("logged %q, want %q", said, want)
	}
}

// What fails in a connection that was replaced is not to be found in the mount.
func TestFailureInAnOldConnection(t *testing.T) {
	m := notMounted(t)
	var said []string
	m.log.print = func(_ string, a ...any) { said = append(said, fmt.Sprint(a...)) }
	s := m.newServer(false)
	defer s.leave()
	s.fail("read", 7, errors.New("a failure of the test"))
	m.lineage.Store(newLineage())
	s.fail("read", 8, errors.New("a failure of the test"))
	if len(said) != 2 || !strings.Contains(said[0], "-inum 7") || strings.Contains(said[1], "-inum") {
		t.Errorf("logged %q", said)
	}
}
