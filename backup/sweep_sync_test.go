package backup

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// unsyncedLog is a disk that cannot sync the directory of the log.
type unsyncedLog struct {
	disk.OS
}

func (d unsyncedLog) SyncDir(name string) error {
	if filepath.Base(name) == "log" {
		return unix.EIO
	}
	return d.OS.SyncDir(name)
}

// TestRemovalIsSettled: the file of a part stays where the record that removes the part,
// which another process made, may be lost in a crash.
func TestRemovalIsSettled(t *testing.T) {
	t.Parallel()
	r, dir := newRepository(t), t.TempDir()
	for i := range 2 {
		write(t, filepath.Join(dir, "file"), randomBytes(uint64(i), 5000))
		create(t, r, optionsFor(dir))
	}
	forget(t, r, 1)
	lock, err := r.LockParts()
	if err != nil {
		t.Fatal(err)
	}
	if s := compact(t, r, CompactOptions{}); s.LaterParts != 1 {
		t.Fatalf("%+v", s.Swept)
	}
	lock.Release()

	unsynced, err := archive.OpenOn(unsyncedLog{}, r.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer unsynced.Close()
	if s, err := Compact(context.Background(), unsynced, CompactOptions{}); !errors.Is(err, unix.EIO) || s.Swept.Parts != 0 {
		t.Errorf("compact: %v, %+v", err, s.Swept)
	}
	if s := compact(t, r, CompactOptions{}); s.Swept.Parts != 1 {
		t.Errorf("once it can be synced: %+v", s.Swept)
	}
}
