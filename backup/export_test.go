package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
	"github.com/backupfs/backupfs/internal/watchdog"
)

// An ACL as the kernel gives it, and as acl_to_text(3) shows it.
const (
	binaryACL = "\x02\x00\x00\x00" + // version
		"\x01\x00\x07\x00\xff\xff\xff\xff" + // owner
		"\x02\x00\x04\x00\xe8\x03\x00\x00" + // user 1000
		"\x02\x00\x06\x00\x70\x11\x01\x00" + // user 70000
		"\x04\x00\x05\x00\xff\xff\xff\xff" + // group
		"\x08\x00\x00\x00\x64\x00\x00\x00" + // group 100
		"\x10\x00\x07\x00\xff\xff\xff\xff" + // mask
		"\x20\x00\x01\x00\xff\xff\xff\xff" // others
	textACL = "user::rwx,user:1000:r--,user:70000:rw-,group::r-x,group:100:---,mask::rwx,other::--x"
)

func TestXattrRecord(t *testing.T) {
	for _, c := range []struct{ name, value, key, want string }{
		{"system.posix_acl_access", binaryACL, "SCHILY.acl.access", textACL},
		{"system.posix_acl_default", binaryACL, "SCHILY.acl.default", textACL},
		{"user.a", "\x00\n", "SCHILY.xattr.user.a", "\x00\n"},
		{"user.a=%b", "", "SCHILY.xattr.user.a%3D%25b", ""},
	} {
		key, value, err := xattrRecord(archive.Xattr{Name: c.name, Value: c.value})
		if err != nil || key != c.key || value != c.want {
			t.Errorf("%q: %q, %q, %v", c.name, key, value, err)
		}
	}
	for _, bad := range []string{"", "\x02\x00\x00", "\x01\x00\x00\x00", binaryACL + "x", binaryACL + "\x03\x00\x00\x00\x00\x00\x00\x00", "\x02\x00\x00\x00\x01\x00\x08\x00\x00\x00\x00\x00"} {
		if _, _, err := xattrRecord(archive.Xattr{Name: "system.posix_acl_access", Value: bad}); err == nil {
			t.Errorf("an ACL %q is taken", bad)
		}
	}
}

func FuzzACLText(f *testing.F) {
	f.Add([]byte(binaryACL))
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watchdog.Start()()
		text, err := aclText(b)
		if err == nil && strings.Count(text, ":") != (len(b)-4)/8*2 {
			t.Errorf("%q gives %q", b, text)
		}
	})
}

func TestPAXTime(t *testing.T) {
	for want, at := range map[string]time.Time{
		"0": time.Unix(0, 0), "1700000000.123456789": time.Unix(1_700_000_000, 123_456_789), "-1": time.Unix(-1, 0),
		"-0.000000001": time.Unix(-1, 999_999_999), "-1.500000000": time.Unix(-2, 500_000_000), "13569465600.000000999": time.Unix(13_569_465_600, 999),
	} {
		if got := paxTime(at); got != want {
			t.Errorf("%v: %s, want %s", at, got, want)
		}
	}
}

func TestOutermost(t *testing.T) {
	for _, c := range []struct{ paths, want []string }{
		{nil, []string{"."}},
		{[]string{"b", "."}, []string{"."}},
		{[]string{"\x01", "."}, []string{"."}},
		{[]string{"a.b", "a/b", "a", "a", "a/b/c"}, []string{"a", "a.b"}},
		{[]string{"a/c", "a/b/d", "a-b"}, []string{"a/b/d", "a/c", "a-b"}},
	} {
		if got := outermost(c.paths); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.paths, got, c.want)
		}
	}
}

// TestSparseHeader reads the headers of a sparse member with more than 8 GiB of
// data back, as the standard library understands them.
func TestSparseHeader(t *testing.T) {
	const stored, size = 9<<30 + 512, 10 << 30
	var out bytes.Buffer
	x := &export{out: &out, tar: tar.NewWriter(&out)}
	records := map[string]string{"SCHILY.xattr.user.a": "b", "hdrcharset": "BINARY"}
	h := &tar.Header{Name: "dir/\xff", Mode: 0o4640, Uid: 1 << 31, Gid: 7, Size: size, ModTime: time.Unix(-2, 5), PAXRecords: records}
	if err := x.sparseHeader("GNUSparseFile.0/1", h, stored); err != nil {
		t.Fatal(err)
	}
	// The map is in front of the data: one region of 9 GiB, padded to a block.
	out.WriteString("2\n0\n9663676416\n10737418240\n0\n")
	out.Write(make([]byte, padding(int64(len("2\n0\n9663676416\n10737418240\n0\n")))))
	got, err := tar.NewReader(&out).Next()
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != h.Name || got.Mode != h.Mode || got.Uid != h.Uid || got.Gid != h.Gid || got.Size != size || !got.ModTime.Equal(h.ModTime) ||
		got.PAXRecords["SCHILY.xattr.user.a"] != "b" || got.PAXRecords["size"] != "9663676928" || got.Typeflag != tar.TypeReg {
		t.Errorf("read back: %+v", got)
	}
	if len(records) != 2 {
		t.Errorf("the records were changed: %v", records)
	}
}

// TestExportBesideCompact: what a compaction moves while an export is under way is read where
// it lies now. Of what it removes, and of a part that is missing, the error says so.
func TestExportBesideCompact(t *testing.T) {
	t.Parallel()
	s := past(t)
	repo, err := archive.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	o := optionsFor(s.source)
	o.Time = time.Unix(1_700_000_000, 0)
	s.write(t, "brief")
	create(t, repo, o)
	db := openIndex(t, repo)
	defer db.Close()
	gens, err := db.Generations()
	if err != nil || len(gens) != 2 {
		t.Fatalf("%+v, %v", gens, err)
	}
	export := func(g index.Generation) (string, error) {
		var out bytes.Buffer
		err := Export(t.Context(), &out, repo, db, g, ExportOptions{Note: func(text string) { t.Errorf("noted: %s", text) }})
		return out.String(), err
	}
	before := partsOf(t, repo, 3, "kept")
	forget(t, repo, gens[1].Number)
	compact(t, repo, CompactOptions{})
	if after := partsOf(t, repo, 3, "kept"); slices.Equal(before, after) {
		t.Fatal("nothing was moved")
	}
	if text, err := export(gens[0]); err != nil || !strings.Contains(text, contentOf("kept")) {
		t.Errorf("of what was moved: %v", err)
	}
	if _, err := export(gens[1]); !errors.Is(err, index.ErrNotFound) || !strings.Contains(err.Error(), "/brief: the generation was forgotten") {
		t.Errorf("of what was removed: %v", err)
	}
	for _, part := range partsOf(t, repo, 3, "kept") {
		if err := os.Remove(filepath.Join(repo.Dir(), archive.PartStoreName(part))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := export(gens[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is missing: %v", err)
	}
}
