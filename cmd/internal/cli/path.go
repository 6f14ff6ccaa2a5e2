package cli

import (
	"fmt"
	"path/filepath"
)

// Abs is filepath.Abs with an error that names the path: where its working directory
// was removed, a program cannot tell what a relative one means.
func Abs(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: the working directory: %w: give an absolute path", path, err)
	}
	return abs, nil
}
