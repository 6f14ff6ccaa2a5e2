package cli

import (
	"fmt"
	"path/filepath"

	"github.com/backupfs/backupfs/internal/disk"
)

// Abs is filepath.Abs for a path that may lead up from behind a symlink. The error names
// the path: where its working directory was removed, a program cannot tell what a relative
// one means.
func Abs(path string) (string, error) {
	followed, err := disk.Follow(path)
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(followed)
	if err != nil {
		return "", fmt.Errorf("%s: the working directory: %w: give an absolute path", path, err)
	}
	return abs, nil
}
