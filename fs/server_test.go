package fs

import (
	"errors"
	"testing"

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
