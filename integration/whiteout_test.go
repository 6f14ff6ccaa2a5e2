package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/internal/treetest"
	"golang.org/x/sys/unix"
)

// overlay mounts lower and upper and returns the merged directory.
func overlay(t testing.TB, lower, upper, options string) string {
	t.Helper()
	work := mkdir(t, filepath.Dir(upper), "work-of-"+filepath.Base(upper))
	merged := mkdir(t, tempDir(t), "merged")
	mountAt(t, merged, "-t", "overlay", "-o", "lowerdir="+lower+",upperdir="+upper+",workdir="+work+options, "overlay")
	return merged
}

func lowerTree() []treetest.Node {
	return []treetest.Node{
		{Path: "deleted", Data: []byte("deleted")},
		{Path: "deleted-too", Data: []byte("deleted too")},
		{Path: "renamed", Data: []byte("renamed")},
		{Path: "changed-mode", Data: []byte("mode"), Mode: 0o600},
		{Path: "changed", Data: []byte("before")},
		{Path: "deleted-dir/file", Data: []byte("in a deleted directory")},
		{Path: "replaced-dir/old", Data: []byte("of the old directory")},
		{Path: "replaced-dir/sub/old", Data: []byte("of the old directory")},
		{Path: "kept/file", Data: []byte("kept")},
		{Path: "kept/deleted-below", Data: []byte("deleted below")},
		{Path: "to-dir", Data: []byte("a file that becomes a directory")},
		{Path: "link", Type: treetest.Symlink, Target: "kept"},
	}
}

// TestWhiteouts makes an upper directory through a real overlay, backs it up,
// restores it by cp -a, and compares the merged trees.
func TestWhiteouts(t *testing.T) {
	base := tempDir(t)
	lower, upper := mkdir(t, base, "lower"), mkdir(t, base, "upper")
	createTree(t, lower, lowerTree())
	merged := overlay(t, lower, upper, "")
	shell(t, `cd "$1"
		rm deleted deleted-too link
		mv renamed renamed-away
		chmod 4755 changed-mode
		echo after >>changed
		rm -r deleted-dir
		rm -r replaced-dir; mkdir -m 2750 replaced-dir; echo new >replaced-dir/new
		rm kept/deleted-below
		rm to-dir; mkdir to-dir; echo in >to-dir/in
		ln -s elsewhere link
		mkdir new-dir; echo new >new-dir/file`, merged)
	want := readTree(t, merged)
	run(t, "umount", merged)

	wantUpper := readTree(t, upper)
	if e := wantUpper.Entries["deleted"]; e == nil || e.Type != treetest.Char || e.Major != 0 || e.Minor != 0 {
		t.Fatalf("overlayfs made no whiteout of a deleted file: %+v", e)
	}
	r := newRepo(t)
	s, res := r.createExit(0, "--root", upper, "/")
	if res.stderr != "" {
		t.Errorf("create of an upper directory says: %s", res.stderr)
	}
	m := r.mount()
	wantTree(t, "mount", wantUpper, m.at(s.Generation), treetest.Options{})
	wantSameByRsync(t, upper, m.at(s.Generation), "--no-hard-links") // whiteouts share an inode at the source only

	restored := filepath.Join(base, "restored")
	run(t, "cp", "-a", m.at(s.Generation), restored)
	again := overlay(t, lower, restored, "")
	wantTree(t, "merged again", want, again, treetest.Options{})
	for _, name := range []string{"deleted", "deleted-too", "deleted-dir", "kept/deleted-below", "replaced-dir/old", "renamed"} {
		if _, err := os.Lstat(filepath.Join(again, name)); !os.IsNotExist(err) {
			t.Errorf("%s is back: %v", name, err)
		}
	}
}

// TestWhiteoutSpellings stores the other forms of a whiteout as they are.
func TestWhiteoutSpellings(t *testing.T) {
	src := mkdir(t, imageDir(t), "src")
	createTree(t, src, []treetest.Node{
		{Path: "char", Type: treetest.Char},
		{Path: "shared", Type: treetest.HardLink, Target: "char"},
		{Path: "sub/shared", Type: treetest.HardLink, Target: "char"},
		{Path: "opaque", Type: treetest.Dir, Xattrs: map[string]string{"trusted.overlay.opaque": "y"}},
		{Path: "opaque-user", Type: treetest.Dir, Xattrs: map[string]string{"user.overlay.opaque": "y"}},
		{Path: "opaque-x", Type: treetest.Dir, Xattrs: map[string]string{"trusted.overlay.opaque": "x"}},
		{Path: "opaque-x/xattr-whiteout", Xattrs: map[string]string{"trusted.overlay.whiteout": ""}},
		{Path: ".wh.aufs", Data: nil},
		{Path: "dir/.wh..wh..opq"},
	})
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(src, "char"), &st))
	if st.Nlink != 3 {
		t.Fatalf("the whiteouts do not share an inode: %d links", st.Nlink)
	}
	r := newRepo(t)
	s := r.all(src)
	m := r.mount()
	wantTree(t, "mount", readTree(t, src), m.at(s.Generation), treetest.Options{})
	must(t, unix.Lstat(m.at(s.Generation, "char"), &st))
	if st.Nlink != 1 {
		t.Errorf("a whiteout is shown with %d links", st.Nlink)
	}
	to := filepath.Join(tempDir(t), "restored")
	run(t, "cp", "-a", m.at(s.Generation), to)
	wantTree(t, "cp -a", readTree(t, src), to, treetest.Options{})
}

// TestMetacopyAndRedirect wants entries whose data lies in another directory
// stored as they are, with a warning that names them.
func TestMetacopyAndRedirect(t *testing.T) {
	base := tempDir(t)
	lower, upper := mkdir(t, base, "lower"), mkdir(t, base, "upper")
	createTree(t, lower, lowerTree())
	merged := overlay(t, lower, upper, ",metacopy=on,redirect_dir=on")
	shell(t, `cd "$1"; chmod 0711 changed-mode; mv kept moved-directory`, merged)
	run(t, "umount", merged)

	want := readTree(t, upper)
	if _, ok := want.Entries["changed-mode"].Xattrs["trusted.overlay.metacopy"]; !ok {
		t.Fatalf("overlayfs made no metacopy entry: %+v", want.Entries["changed-mode"])
	}
	if _, ok := want.Entries["moved-directory"].Xattrs["trusted.overlay.redirect"]; !ok {
		t.Fatalf("overlayfs made no redirect: %+v", want.Entries["moved-directory"])
	}
	r := newRepo(t)
	s, res := r.createExit(0, "--root", upper, "/")
	for _, name := range []string{"changed-mode", "moved-directory"} {
		if !strings.Contains(res.stderr, name) {
			t.Errorf("no warning about %s: %q", name, res.stderr)
		}
	}
	m := r.mount()
	wantTree(t, "mount", want, m.at(s.Generation), treetest.Options{})
}
