package disk

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Follow returns a path without ".." of what the kernel finds at path: what package filepath
// takes away as "x/.." may be a symbolic link to elsewhere. A path without ".." stays as
// it is; it need not exist.
func Follow(path string) (string, error) {
	above, below := CutUp(path)
	if above == "" {
		return path, nil
	}
	if !filepath.IsAbs(above) {
		here, err := unix.Getwd() // os.Getwd may have symbolic links in it
		if err != nil {
			return "", fmt.Errorf("%s: the working directory: %w: give an absolute path", path, err)
		}
		above = here + "/" + above
	}
	above, err := filepath.EvalSymlinks(above)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return filepath.Join(above, below), nil
}

// CutUp cuts a path behind its last ".."; above is "" where there is none.
func CutUp(path string) (above, below string) {
	end, at := 0, 0
	for name := range strings.SplitSeq(path, "/") {
		at += len(name)
		if name == ".." {
			end = at
		}
		at++ // the "/"
	}
	return path[:end], path[end:]
}
