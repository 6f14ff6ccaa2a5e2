package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFollow: what is behind a ".." is found where the kernel finds it, also by a
// relative path where $PWD has a symlink in it.
func TestFollow(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(base+"/away/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "away/sub", "none": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(base + "/link")
	for path, want := range map[string]string{
		"": "", ".": ".", "a//b/": "a//b/", "/none/x": "/none/x", "a..b/...": "a..b/...", // none has a ".."
		"..": base + "/away", "../x/./y/": base + "/away/x/y", "../../link/../none": base + "/away/none",
		base + "/link/..": base + "/away", base + "/link/../x": base + "/away/x", base + "/away/../link": base + "/link",
		"/..": "/", "/../x": "/x",
	} {
		if got, err := Follow(path); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{base + "/none/..", base + "/none/../link", "../../none/../link", "x/.."} {
		if got, err := Follow(path); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%q: %q, %v", path, got, err)
		}
	}
}
