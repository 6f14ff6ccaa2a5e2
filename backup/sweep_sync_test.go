package backup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// unsynced is a disk that cannot sync one directory.
type unsynced struct {
	disk.OS
	dir string
}

func (d unsynced) SyncDir(name string) error {
	if name == d.dir {
		return unix.EIO
	}
	return d.OS.SyncDir(name)
}

// TestRemovalIsSettled: the file of a part stays where the record that removes the part,
// which another process made, may be lost in a crash.
func TestRemovalIsSettled(t *testing.T) {
	t.Parallel()
	r, _ := removedAlready(t)
	wantUnsynced(t, r, filepath.Join(r.Dir(), "log"))
	if s := compact(t, r, CompactOptions{}); s.Swept.Parts != 1 {
		t.Errorf("once it can be synced: %+v", s.Swept)
	}
}

// TestDeletionIsSettled: the directory of a part that a killed run deleted is synced before
// it is remembered that nothing is left to delete: a crash may bring the part back.
func TestDeletionIsSettled(t *testing.T) {
	t.Parallel()
	r, part := removedAlready(t)
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	wantUnsynced(t, r, filepath.Dir(part))
	compact(t, r, CompactOptions{})
}

// removedAlready returns a repository whose log has removed a part that is still there, and
// the name of its file.
func removedAlready(t *testing.T) (*archive.Repository, string) {
	t.Helper()
	r, dir := newRepository(t), t.TempDir()
	for i := range 2 {
		write(t, filepath.Join(dir, "file"), randomBytes(uint64(i), 5000))
		create(t, r, optionsFor(dir))
	}
	part := filepath.Join(r.Dir(), archive.PartStoreName(partsOf(t, r, 1, "file")[0]))
	forget(t, r, 1)
	lock, err := r.LockParts()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	if s := compact(t, r, CompactOptions{}); s.LaterParts != 1 {
		t.Fatalf("%+v", s.Swept)
	}
	return r, part
}

// wantUnsynced fails the test unless a compaction deletes nothing, and says why, where a
// directory cannot be synced.
func wantUnsynced(t *testing.T, r *archive.Repository, dir string) {
	t.Helper()
	on, err := archive.OpenOn(unsynced{dir: dir}, r.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer on.Close()
	if s, err := Compact(context.Background(), on, CompactOptions{}); !errors.Is(err, unix.EIO) || s.Swept.Parts != 0 {
		t.Errorf("compact: %v, %+v", err, s.Swept)
	}
}
