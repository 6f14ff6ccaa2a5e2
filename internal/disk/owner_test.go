package disk

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const somebody = 65534

// dirOf makes a directory of a user to which, unlike to t.TempDir(), everybody gets.
func dirOf(t *testing.T, user int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes anything for others")
	}
	dir, err := os.MkdirTemp("", "owned-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestOwned: what root makes in a user's directory is the user's; where he may not make it,
// it is root's.
func TestOwned(t *testing.T) {
	dir := dirOf(t, somebody)
	for path, owner := range map[string]uint32{"": somebody, "closed": 0} {
		at := filepath.Join(dir, path)
		if path != "" {
			if err := os.Mkdir(at, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		fsys := Of(dir)
		if err := fsys.Mkdir(at+"/dir", 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := fsys.OpenFile(at+"/dir/file", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		for _, name := range []string{at + "/dir", at + "/dir/file"} {
			var st unix.Stat_t
			if err := unix.Lstat(name, &st); err != nil || st.Uid != owner || st.Gid != owner {
				t.Errorf("%s: %v, of %d:%d, want %d", name, err, st.Uid, st.Gid, owner)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "closed/mine"), nil, 0o600); err != nil {
		t.Errorf("root has lost its rights: %v", err)
	}
}

// TestOwnedElsewhere: the way of a user cannot lead root to where the user may not write
// what is his.
func TestOwnedElsewhere(t *testing.T) {
	dir, closed := dirOf(t, somebody), dirOf(t, 0)
	if err := os.Symlink(closed, filepath.Join(dir, "tmp")); err != nil {
		t.Fatal(err)
	}
	if err := Of(dir).Mkdir(filepath.Join(dir, "tmp/dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(closed, "dir"), &st); err != nil || st.Uid != 0 {
		t.Errorf("%v, of %d", err, st.Uid)
	}
}

// TestOfOwn: nobody but root makes anything for others, and it has nobody to make it for
// where the repository is its own, or not there.
func TestOfOwn(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "nothing")} {
		if fsys := Of(d); fsys != (OS{}) {
			t.Errorf("%s: %T", d, fsys)
		}
	}
}
