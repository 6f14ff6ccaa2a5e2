package backup

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
)

// unnamed is a disk on which nothing gets a name in one directory.
type unnamed struct {
	disk.OS
	dir string
}

func (d unnamed) RenameNew(from, to string) error {
	if filepath.Dir(to) == d.dir {
		return unix.EIO
	}
	return d.OS.RenameNew(from, to)
}

// TestCommittedNevertheless: where the log cannot be synced, each command that makes a record
// fails and says that the record is there; where the record gets no name, it does not say so.
func TestCommittedNevertheless(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, c := range []struct {
		name, what string
		run        func(r *archive.Repository, source string) error
	}{
		{"create", "generation web1/2026-11-22T03-00-00Z", func(r *archive.Repository, source string) error {
			o := optionsFor(source)
			o.Source, o.Time = "web1", time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
			_, err := Create(ctx, r, o)
			return err
		}},
		{"forget", "log record 4", func(r *archive.Repository, _ string) error {
			_, err := Forget(ctx, r, ForgetOptions{Names: []string{"2"}})
			return err
		}},
		{"compact", "log record 4", func(r *archive.Repository, _ string) error {
			_, err := Compact(ctx, r, CompactOptions{})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, source := newRepository(t), t.TempDir()
			for i := range 2 {
				write(t, filepath.Join(source, "file"), randomBytes(uint64(i), 5000))
				create(t, r, optionsFor(source))
			}
			forget(t, r, 1)
			log := filepath.Join(r.Dir(), "log")
			try := func(fsys disk.FS) error {
				t.Helper()
				on, err := archive.OpenOn(fsys, r.Dir())
				if err != nil {
					t.Fatal(err)
				}
				defer on.Close()
				return c.run(on, source)
			}
			if err := try(unnamed{dir: log}); !errors.Is(err, unix.EIO) || strings.Contains(err.Error(), "nevertheless") {
				t.Errorf("without a name: %v", err)
			}
			if last, err := r.Last(); last != 3 || err != nil {
				t.Errorf("without a name: the log ends with record %d, %v", last, err)
			}
			if err := try(unsynced{dir: log}); !errors.Is(err, unix.EIO) || !strings.HasPrefix(err.Error(), c.what+" is committed nevertheless, ") {
				t.Errorf("without a sync: %v", err)
			}
			if last, err := r.Last(); last != 4 || err != nil {
				t.Errorf("without a sync: the log ends with record %d, %v", last, err)
			}
			create(t, r, optionsFor(source))
		})
	}
}
