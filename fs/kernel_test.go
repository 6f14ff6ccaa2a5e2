package fs

import (
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	for written, at := range map[string]string{`/mnt/a\040b\134c`: `/mnt/a b\c`, "/mnt/\u00a0\v\f\r\u0085\u3000": "/mnt/\u00a0\v\f\r\u0085\u3000"} {
		want := mountEntry{parent: 20, device: "0:44", at: at, fstype: "fuse.backupfs"}
		if got, ok := parseMount("98 20 0:44 / " + written + " ro,nosuid,nodev shared:9 - fuse.backupfs /srv/backup ro,user_id=0"); !ok || got != want {
			t.Errorf("%+v, %t", got, ok)
		}
	}
	for _, bad := range []string{"", "1 2 3", "98 20 0:44 / - ext4 /dev/sda"} {
		if _, ok := parseMount(bad); ok {
			t.Errorf("%q is taken for a mount", bad)
		}
	}
}

func TestShortened(t *testing.T) {
	for value, want := range map[string]string{
		"":                                 "",
		strings.Repeat("x", 255):           strings.Repeat("x", 255),
		strings.Repeat("x", 255) + "/repo": "..." + strings.Repeat("x", 247) + "/repo",
	} {
		if got := shortened(value); got != want {
			t.Errorf("%q is shortened to %q", value, got)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/a", "/a/b", false}, {"/a/..b", "/a", true}, {"/x", "/", true},
	} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("within(%q, %q) = %t", c.path, c.dir, got)
		}
	}
}
