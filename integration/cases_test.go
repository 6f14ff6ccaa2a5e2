package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// frameRaw is the size of a frame of a part before compression, chunkedRaw the
// size from which a file is cut into chunks.
const (
	frameRaw   = 512 << 10
	chunkedRaw = 1 << 20
)

func acl(t testing.TB, text string) string {
	t.Helper()
	b, err := treetest.ACL(text)
	must(t, err)
	return b
}

// everyCase is a tree of everything that a file system can hold and rsync can
// compare. What rsync cannot is in tests of its own: paths over PATH_MAX, and
// files so large that reading their holes takes minutes.
func everyCase(t testing.TB) []treetest.Node {
	t.Helper()
	var all []treetest.Node
	for _, group := range [][]treetest.Node{typeCases(), modeCases(), timeCases(), xattrCases(), aclCases(t),
		linkCases(), sparseCases(), nameCases(), sizeCases(), symlinkCases()} {
		all = append(all, group...)
	}
	return all
}

func typeCases() []treetest.Node {
	return []treetest.Node{
		{Path: "types/file", Data: []byte("file\n")},
		{Path: "types/dir", Type: treetest.Dir},
		{Path: "types/symlink", Type: treetest.Symlink, Target: "file"},
		{Path: "types/fifo", Type: treetest.FIFO},
		{Path: "types/socket", Type: treetest.Socket, Mode: 0o755},
		{Path: "types/null", Type: treetest.Char, Major: 1, Minor: 3},
		{Path: "types/char-large", Type: treetest.Char, Major: 4095, Minor: 1<<20 - 1},
		{Path: "types/block", Type: treetest.Block, Major: 8, Minor: 1, Mode: 0o660, GID: 6},
		{Path: "types/block-large", Type: treetest.Block, Major: 259, Minor: 70_000},
		{Path: "types/whiteout", Type: treetest.Char},
	}
}

func modeCases() []treetest.Node {
	var nodes []treetest.Node
	for _, mode := range []uint32{treetest.ModeNone, 0o1, 0o222, 0o400, 0o777, 0o1777, 0o2755, 0o2644, 0o4755, 0o4644, 0o6755, 0o7777, 0o7000} {
		name := fmt.Sprintf("%04o", mode&0o7777)
		nodes = append(nodes,
			treetest.Node{Path: "modes/file-" + name, Mode: mode, Data: []byte(name)},
			treetest.Node{Path: "modes/dir-" + name, Type: treetest.Dir, Mode: mode},
			treetest.Node{Path: "modes/fifo-" + name, Type: treetest.FIFO, Mode: mode})
	}
	for i, owner := range [][2]uint32{{1, 2}, {65_534, 65_535}, {65_536, 70_000}, {3_000_000_000, 4_294_967_294}} {
		nodes = append(nodes,
			treetest.Node{Path: fmt.Sprintf("owners/file-%d", i), UID: owner[0], GID: owner[1], Mode: 0o4755, Data: []byte("owned")},
			treetest.Node{Path: fmt.Sprintf("owners/dir-%d", i), Type: treetest.Dir, UID: owner[0], GID: owner[1], Mode: 0o2770},
			treetest.Node{Path: fmt.Sprintf("owners/symlink-%d", i), Type: treetest.Symlink, Target: "x", UID: owner[0], GID: owner[1]})
	}
	return nodes
}

func timeCases() []treetest.Node {
	var nodes []treetest.Node
	for i, mtime := range []time.Time{
		time.Unix(-1, 999_999_999), time.Unix(0, 0), time.Unix(0, 1), time.Unix(1_700_000_000, 123_456_789),
		time.Date(1901, 12, 14, 0, 0, 0, 1, time.UTC), time.Date(1969, 7, 20, 20, 17, 40, 500_000_000, time.UTC),
		time.Date(2038, 1, 19, 3, 14, 7, 0, time.UTC), time.Date(2038, 1, 19, 3, 14, 8, 7, time.UTC),
		time.Date(2106, 2, 7, 6, 28, 16, 0, time.UTC), time.Date(2262, 4, 12, 0, 0, 0, 9, time.UTC), time.Date(2400, 1, 1, 0, 0, 0, 999, time.UTC),
	} {
		nodes = append(nodes,
			treetest.Node{Path: fmt.Sprintf("times/file-%d", i), Mtime: mtime, Data: []byte("then")},
			treetest.Node{Path: fmt.Sprintf("times/dir-%d", i), Type: treetest.Dir, Mtime: mtime},
			treetest.Node{Path: fmt.Sprintf("times/dir-%d/in it", i), Mtime: mtime},
			treetest.Node{Path: fmt.Sprintf("times/symlink-%d", i), Type: treetest.Symlink, Target: "x", Mtime: mtime},
			treetest.Node{Path: fmt.Sprintf("times/fifo-%d", i), Type: treetest.FIFO, Mtime: mtime})
	}
	return nodes
}

func xattrCases() []treetest.Node {
	binary := "\x00\x01\xff\n\"\\\x00"
	all := map[string]string{"user.text": "text", "user.empty": "", "user.binary": binary,
		"trusted.text": "t", "trusted.empty": "", "trusted.binary": binary, "security.text": "s", "security.empty": "", "security.binary": binary}
	special := map[string]string{"trusted.a": binary, "security.b": "b"}
	many := map[string]string{}
	for i := range 40 {
		many[fmt.Sprintf("user.number-%d", i)] = strings.Repeat("v", i)
	}
	odd := map[string]string{"user.\n\\\t\xff =": "odd name", "user." + strings.Repeat("n", 250): "long name"}
	large := string(treetest.Content(11, 64<<10))
	// cap_net_raw+ep, as setcap writes it.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return []treetest.Node{
		{Path: "xattrs/file", Xattrs: all, Data: []byte("with xattrs")},
		{Path: "xattrs/dir", Type: treetest.Dir, Xattrs: all},
		{Path: "xattrs/symlink", Type: treetest.Symlink, Target: "file", Xattrs: special},
		{Path: "xattrs/fifo", Type: treetest.FIFO, Xattrs: special},
		{Path: "xattrs/socket", Type: treetest.Socket, Xattrs: special},
		{Path: "xattrs/char", Type: treetest.Char, Major: 1, Minor: 5, Xattrs: special},
		{Path: "xattrs/many", Xattrs: many},
		{Path: "xattrs/odd", Xattrs: odd},
		{Path: "xattrs/large", Xattrs: map[string]string{"user.large": large, "trusted.large": large, "security.large": large[:60_000]}},
		{Path: "xattrs/large-dir", Type: treetest.Dir, Xattrs: map[string]string{"user.large": large}},
		{Path: "xattrs/capability", Mode: 0o755, Xattrs: map[string]string{"security.capability": capability}},
	}
}

func aclCases(t testing.TB) []treetest.Node {
	access := acl(t, "u::rwx,u:1000:r--,u:70000:rw-,g::r-x,g:100:---,m::rwx,o::---")
	masked := acl(t, "u::rw-,u:1000:rwx,g::rwx,m::r--,o::r--")
	inherit := acl(t, "u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---")
	return []treetest.Node{
		{Path: "acls/file", Xattrs: map[string]string{treetest.AccessACL: access}},
		{Path: "acls/masked", Xattrs: map[string]string{treetest.AccessACL: masked, "user.too": "x"}},
		{Path: "acls/default", Type: treetest.Dir, Xattrs: map[string]string{treetest.DefaultACL: inherit}},
		{Path: "acls/both", Type: treetest.Dir, Xattrs: map[string]string{treetest.AccessACL: access, treetest.DefaultACL: inherit}},
		{Path: "acls/fifo", Type: treetest.FIFO, Xattrs: map[string]string{treetest.AccessACL: access}},
	}
}

func linkCases() []treetest.Node {
	hard := func(path, target string) treetest.Node {
		return treetest.Node{Path: path, Type: treetest.HardLink, Target: target}
	}
	return []treetest.Node{
		{Path: "links/a/file", Data: []byte("three names"), Xattrs: map[string]string{"user.x": "y"}},
		hard("links/a/file-2", "links/a/file"),
		hard("links/b/file-3", "links/a/file"),
		{Path: "links/a/large", Seed: 12, Size: 3 << 20},
		hard("links/b/large", "links/a/large"),
		{Path: "links/a/empty"},
		hard("links/b/empty", "links/a/empty"),
		{Path: "links/fifo", Type: treetest.FIFO},
		hard("links/a/fifo", "links/fifo"),
		{Path: "links/socket", Type: treetest.Socket},
		hard("links/a/socket", "links/socket"),
		{Path: "links/char", Type: treetest.Char, Major: 1, Minor: 7},
		hard("links/b/char", "links/char"),
		{Path: "links/symlink", Type: treetest.Symlink, Target: "a/file"},
		hard("links/b/symlink", "links/symlink"),
	}
}

func sparseCases() []treetest.Node {
	data := func(offset int64, size int64) treetest.Extent {
		return treetest.Extent{Offset: offset, Data: treetest.Content(uint64(offset)+13, size)}
	}
	return []treetest.Node{
		{Path: "sparse/start", Size: 2<<20 + 4096, Extents: []treetest.Extent{data(2<<20, 4096)}},
		{Path: "sparse/middle", Size: 3 << 20, Extents: []treetest.Extent{data(0, 1<<20), data(2<<20, 1<<20)}},
		{Path: "sparse/end", Size: 2 << 20, Extents: []treetest.Extent{data(0, 4096)}},
		{Path: "sparse/only-hole", Size: 5 << 20},
		{Path: "sparse/small-hole", Size: 100},
		{Path: "sparse/many", Size: 10 << 20, Extents: []treetest.Extent{data(1<<20, 8192), data(3<<20, 4096), data(5<<20, 12288), data(9<<20, 4096)}},
		{Path: "sparse/odd-end", Size: 3<<20 + 1234, Extents: []treetest.Extent{data(1<<20, 4096)}},
		// The block of the attribute makes up for the hole in st_blocks.
		{Path: "sparse/no-blocks-missing", Size: 3*4096 + 100, Extents: []treetest.Extent{data(0, 3*4096)}, Xattrs: map[string]string{"user.large": strings.Repeat("x", 2000)}},
		{Path: "sparse/zeros-not-hole", Data: make([]byte, 200_000)},
	}
}

func nameCases() []treetest.Node {
	var nodes []treetest.Node
	for i, name := range []string{strings.Repeat("n", 255), strings.Repeat("\xff", 255), strings.Repeat("ü", 127), "new\nline", "back\\slash", "back\\\\n",
		"tab\tname", "\xff", "\xfe\xff", "-rf", "--help", ".wh.x", ".wh..wh..opq", " ", " lead", "trail ", "\x01\x7f", "star*", "?", "[a]", "$HOME", "`id`", "'", "\"",
		"a:b", "a=b", "%41", "#", "~", "..x", "...", "latest", ".versions", "2026-11-22T03-00-00Z", ".chunks", "e\u0301", "\u00e9", "\u2028", "\xed\xa0\x80", "repo.json"} {
		nodes = append(nodes,
			treetest.Node{Path: "names/" + name, Data: []byte{byte(i)}},
			treetest.Node{Path: "dirs/" + name, Type: treetest.Dir},
			treetest.Node{Path: "dirs/" + name + "/" + name, Data: []byte{byte(i), 1}},
			treetest.Node{Path: "targets/" + fmt.Sprint(i), Type: treetest.Symlink, Target: name})
	}
	// Ordered by bytes, "a-b" stands between "a" and "a/x"; by components it does not.
	for _, p := range []string{"order/a/x", "order/a-b/x", "order/a.b", "order/a/x-y", "order/a/x/y", "order/A", "order/a0"} {
		if p == "order/a/x" {
			nodes = append(nodes, treetest.Node{Path: p, Type: treetest.Dir})
			continue
		}
		nodes = append(nodes, treetest.Node{Path: p, Data: []byte(p)})
	}
	return nodes
}

func sizeCases() []treetest.Node {
	nodes := []treetest.Node{{Path: "sizes/empty"}, {Path: "sizes/empty-dir", Type: treetest.Dir}}
	for _, size := range []int64{0, 1, 511, 512, 513, 4095, 4096, 4097, frameRaw - 512, frameRaw - 1, frameRaw, frameRaw + 1,
		chunkedRaw - 1, chunkedRaw, chunkedRaw + 1, 3*chunkedRaw + 7} {
		nodes = append(nodes,
			treetest.Node{Path: fmt.Sprintf("sizes/noise-%d", size), Data: treetest.Content(uint64(size)+14, size)},
			treetest.Node{Path: fmt.Sprintf("sizes/text-%d", size), Data: []byte(strings.Repeat("text that compresses\n", int(size)/21+1))[:size]})
	}
	return nodes
}

func symlinkCases() []treetest.Node {
	return []treetest.Node{
		{Path: "symlinks/long", Type: treetest.Symlink, Target: strings.Repeat("0123456789abcde/", 256)[:4095]},
		{Path: "symlinks/long-bytes", Type: treetest.Symlink, Target: strings.Repeat("\xff\n", 2048)[:4095]},
		{Path: "symlinks/dangling", Type: treetest.Symlink, Target: "not there"},
		{Path: "symlinks/self", Type: treetest.Symlink, Target: "self"},
		{Path: "symlinks/absolute", Type: treetest.Symlink, Target: "/etc/passwd"},
		{Path: "symlinks/up", Type: treetest.Symlink, Target: "../../../../.."},
		{Path: "symlinks/slashes", Type: treetest.Symlink, Target: "a//b/./c/"},
	}
}
