package index

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/backupfs/backupfs/archive"
)

// StoredBytes returns how many bytes the sealed indexes of a repository take. They
// share files, each of which counts once.
func StoredBytes(r *archive.Repository) (stored int64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(r.IndexDir(), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if inode := info.Sys().(*syscall.Stat_t).Ino; !seen[inode] {
			seen[inode] = true
			stored += info.Size()
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("index: %w", err)
	}
	return stored, nil
}
