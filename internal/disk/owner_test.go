package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// TestOwnedElsewhere: the way of a user cannot lead root to where the user has no rights,
// neither with root's rights nor with those that the user has not.
func TestOwnedElsewhere(t *testing.T) {
	dir, closed := dirOf(t, somebody), dirOf(t, 0)
	secret := filepath.Join(closed, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"tmp": closed, "file": secret} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	fsys := Of(dir)
	there := filepath.Join(dir, "tmp", "secret")
	open := func(name string, flag int) error {
		f, err := fsys.OpenFile(name, flag, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	for what, err := range map[string]error{
		"Mkdir":                fsys.Mkdir(filepath.Join(dir, "tmp", "dir"), 0o700),
		"OpenFile to create":   open(filepath.Join(dir, "tmp", "new"), os.O_WRONLY|os.O_CREATE),
		"OpenFile to truncate": open(filepath.Join(dir, "file"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC),
		"OpenFile to read":     open(there, os.O_RDONLY),
		"Chmod":                fsys.Chmod(there, 0o777),
		"Chmod of a link":      fsys.Chmod(filepath.Join(dir, "file"), 0o777),
		"Link":                 fsys.Link(there, filepath.Join(dir, "mine")),
		"Rename":               fsys.Rename(there, filepath.Join(dir, "mine")),
		"RenameNew":            fsys.RenameNew(there, filepath.Join(dir, "mine")),
		"Exchange":             fsys.Exchange(there, filepath.Join(dir, "file")),
		"Remove":               fsys.Remove(there),
		"RemoveAll":            fsys.RemoveAll(there),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	text, err := os.ReadFile(secret)
	info, statErr := os.Stat(secret)
	if err != nil || string(text) != "secret" || statErr != nil || info.Mode() != 0o600 {
		t.Errorf("the file outside: %q, %v, %v", text, info, err)
	}
	if list, err := os.ReadDir(closed); err != nil || len(list) != 1 {
		t.Errorf("the directory outside has %v, %v", list, err)
	}
}

// TestOwnedByRoot: what root has made in a user's directory, or keeps from him, is changed by
// root.
func TestOwnedByRoot(t *testing.T) {
	above := dirOf(t, 0)
	dir := filepath.Join(above, "dir")
	for _, d := range []string{dir, dir + "/a", dir + "/b"} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, somebody, somebody); err != nil {
		t.Fatal(err)
	}
	fsys := Of(dir)
	f, err := fsys.OpenFile(dir+"/a/one", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, step := range []struct {
		what string
		err  error
	}{
		{"Chmod", fsys.Chmod(dir+"/a/one", 0o400)},
		{"Link", fsys.Link(dir+"/a/one", dir+"/b/two")},
		{"RenameNew", fsys.RenameNew(dir+"/a/one", dir+"/b/three")},
		{"Rename", fsys.Rename(dir+"/b/three", dir+"/three")},
		{"Exchange", fsys.Exchange(dir+"/a", dir+"/b")},
		{"Remove", fsys.Remove(dir + "/a/two")},
		{"Mkdir", fsys.Mkdir(dir+"/b/c", 0o700)},
		{"RemoveAll", fsys.RemoveAll(dir + "/b")},
		{"SyncDir", fsys.SyncDir(dir + "/a")},
	} {
		if step.err != nil {
			t.Errorf("%s: %v", step.what, step.err)
		}
	}
	if err := fsys.RenameNew(dir+"/three", dir+"/a"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("RenameNew to a name that is taken: %v", err)
	}
	var names []string
	for _, d := range []string{dir, dir + "/a"} {
		list, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			names = append(names, e.Name())
		}
	}
	if want := []string{"a", "three"}; !slices.Equal(names, want) {
		t.Errorf("left are %q, want %q", names, want)
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
