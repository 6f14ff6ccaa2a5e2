package index

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/watchdog"
)

// TestValues gives the bytes of every value, written by hand.
func TestValues(t *testing.T) {
	t.Parallel()
	attr := archive.Attr{Type: archive.TypeChar, Mode: 0o644, UID: 1000, GID: 5, Size: 300,
		Mtime: archive.Timespec{Sec: -2, Nsec: 7}, Ctime: archive.Timespec{Sec: 3, Nsec: 999999999}, Inode: 9, Nlink: 2,
		Rdev: archive.Device{Major: 1, Minor: 3}}
	const attrHex = "06" + "a403" + "e807" + "05" + "ac02" + // char, 0644, 1000, 5, 300
		"03" + "07" + "06" + "ff93ebdc03" + "09" + "02" + "01" + "03" // -2, 7, 3, 999999999, 9, 2, 1, 3
	const hash = "0102030000000000000000000000000000000000000000000000000000000000"
	h := archive.Hash{1, 2, 3}
	data := []archive.Extent{{Offset: 10, Len: 4, Hash: h}, {Offset: 20, Len: 1, Hash: h}}
	at := time.Unix(100, 5).UTC()
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"dirent, gone":      {appendDirent(nil, dirent{}), "00"},
		"dirent, directory": {appendDirent(nil, dirent{kind: kindDir, dir: 200}), "01" + "c801"},
		"dirent, other":     {appendDirent(nil, dirent{kind: kindLeaf, ino: 257, attr: attr}), "02" + "8102" + attrHex},
		"dirent, file":      {appendDirent(nil, dirent{kind: kindLeaf, ino: 256, attr: archive.Attr{Type: archive.TypeFile, Size: 3}, dataBytes: 3}), "02" + "8002" + "01000000" + "03" + "0000000000000000"},
		"dirent, holes":     {appendDirent(nil, dirent{kind: kindLeaf, ino: 256, attr: archive.Attr{Type: archive.TypeFile, Size: 300}, dataBytes: 5}), "03" + "8002" + "01000000" + "ac02" + "0000000000000000" + "05"},
		"node":              {appendNode(nil, Node{Ino: 256, Attr: attr, Children: 3, Parent: 200}), "01" + "8002" + attrHex + "03" + "c801"},
		"inode":             {appendInode(nil, Inode{Attr: attr, Target: "t", DataBytes: 5, Changed: true}, data), attrHex + "01" + "0174" + "05" + "02" + "0a04" + hash + "0601" + hash},
		"inode, segmented":  {appendInode(nil, Inode{Attr: attr, DataBytes: 33}, slices.Repeat(data[:1], 33)), attrHex + "02" + "00" + "21" + "0a"},
		"inode, grouped":    {appendInode(nil, Inode{Attr: attr, DataBytes: 5, Group: "8:1"}, data), attrHex + "04" + "00" + "05" + "03383a31" + "02" + "0a04" + hash + "0601" + hash},
		"segment":           {appendSegment(nil, 300, data), "ac02" + "02" + "0004" + hash + "0601" + hash},
		"place":             {appendPlace(nil, place{part: 1, rawOffset: 512, rawLen: 3}), "01" + "8004" + "03"},
		"part":              {appendPart(nil, archive.Part{Name: archive.Digest(h), Stored: 1, Raw: 2, TailStored: 3, Tail: archive.Digest(h)}), hash + "010203" + hash},
		"group":             {appendGroup(nil, group{ino: 256, print: [16]byte{1}}), "8002" + "01000000000000000000000000000000"},
		"generation":        {appendGeneration(nil, Generation{Source: "s", Name: "n", Time: at, Root: 1, Files: 2, Dirs: 3, Raw: 4}), "01" + "0173" + "016e" + "c801" + "05" + "01020304"},
		"forgotten":         {appendForgotten(nil, at), "00" + "c801" + "05"},
		"source":            {appendHead(nil, head{number: 7, tree: tree{root: 1, files: 2, dirs: 3, raw: 4}}), "07" + "01020304"},
		"meta":              {appendMeta(nil, meta{digest: archive.Digest(h), time: at, dirs: 1, inos: 2, parts: 3, raw: 4, stored: 5, removal: 6, begins: 7, hasXattrs: true}), hash + "c80105" + "01020304050607" + "01"},
		"meta with labels":  {appendMeta(nil, meta{digest: archive.Digest(h), time: at, hasXattrs: true, hasLabels: true}), hash + "c80105" + "00000000000000" + "02"},
		"sealed":            {sealValue([]byte("k"), 1, []byte("v")), "76" + "87296d22"},
		"key of a dirent":   {appendDirentKey(nil, 258, "n"), "64" + "0000000000000102" + "6e"},
		"key of a segment":  {appendSegmentKey(nil, 256, 1), "65" + "0000000000000100" + "0000000000000001"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestSums checks that a value is bound to its key and version.
func TestSums(t *testing.T) {
	t.Parallel()
	sealed := sealValue([]byte("key"), 7, []byte("value"))
	if v, err := openValue([]byte("key"), 7, sealed); err != nil || string(v) != "value" {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := openValue([]byte("kez"), 7, sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := openValue([]byte("key"), 8, sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another version: %v", err)
	}
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		if _, err := openValue([]byte("key"), 7, b); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %v", i, err)
		}
		if _, err := openValue([]byte("key"), 7, sealed[:i]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d: %v", i, err)
		}
	}
}

// FuzzValue decodes any bytes as each kind of value: no panic, and what is taken
// for a value is one that survives being written and read again.
func FuzzValue(f *testing.F) {
	attr := fileAttr(100)
	data := []archive.Extent{{Offset: 10, Len: 4}, {Offset: 20, Len: 1}}
	for _, b := range [][]byte{{}, {0}, {1}, {2}, appendDirent(nil, dirent{kind: kindLeaf, ino: 300, attr: attr}),
		appendDirent(nil, dirent{kind: kindLeaf, ino: 300, attr: attr, dataBytes: attr.Size}),
		appendNode(nil, Node{Ino: 300, Attr: attr, Children: 7, Parent: 5}), appendInode(nil, Inode{Attr: attr, Target: "t"}, data),
		appendInode(nil, Inode{Attr: attr}, slices.Repeat(data[:1], 40)), appendSegment(nil, 0, data), appendPlace(nil, place{1, 2, 3}),
		appendPart(nil, archive.Part{Stored: 9, Raw: 8, TailStored: 7}), appendGroup(nil, group{ino: 300}),
		appendGeneration(nil, Generation{Source: "s", Name: "n"}), appendForgotten(nil, time.Unix(1, 0)),
		appendHead(nil, head{number: 3}), appendMeta(nil, meta{raw: 1}), bytes.Repeat([]byte{0xff}, 90)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watchdog.Start()()
		again(t, b, decodeDirent, func(e dirent) []byte { return appendDirent(nil, e) })
		again(t, b, decodePlace, func(p place) []byte { return appendPlace(nil, p) })
		again(t, b, decodePart, func(p archive.Part) []byte { return appendPart(nil, p) })
		again(t, b, decodeGroup, func(g group) []byte { return appendGroup(nil, g) })
		again(t, b, decodeHead, func(h head) []byte { return appendHead(nil, h) })
		again(t, b, decodeMeta, func(m meta) []byte { return appendMeta(nil, m) })
		again(t, b, func(b []byte) (Node, error) {
			n, there, err := decodeNode(b)
			if err == nil && !there {
				err = ErrNotFound
			}
			return n, err
		}, func(n Node) []byte { return appendNode(nil, n) })
		again(t, b, func(b []byte) (generation, error) { return decodeGeneration(1, b) }, func(g generation) []byte {
			if g.gone {
				return appendForgotten(nil, g.forgotten)
			}
			return appendGeneration(nil, g.Generation)
		})
		if i, err := decodeInode(b); err == nil && !i.segmented {
			fuzzExtents(t, i.extents, 0)
		}
		if _, extents, err := decodeSegment(b); err == nil {
			fuzzExtents(t, extents, 1<<40)
		}
		openValue(b, 1, b)
	})
}

func again[V any](t *testing.T, b []byte, decode func([]byte) (V, error), encode func(V) []byte) {
	t.Helper()
	v, err := decode(b)
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
			t.Fatalf("%T: %v", v, err)
		}
		return
	}
	if w, err := decode(encode(v)); err != nil || !reflect.DeepEqual(v, w) {
		t.Fatalf("%T: %+v, then %+v, %v", v, v, w, err)
	}
}

func fuzzExtents(t *testing.T, b []byte, base int64) {
	t.Helper()
	end := base
	decodeExtents(b, base, func(e archive.Extent) bool {
		if e.Offset < end || e.Len <= 0 {
			t.Fatalf("extent %+v behind %d", e, end)
		}
		end = e.Offset + e.Len
		return true
	})
}

// FuzzSeal parses any bytes as a seal.
func FuzzSeal(f *testing.F) {
	f.Add([]byte(`{"schema":2,"repository":"ab","record":3,"record_digest":"","manifest":{"stored":1},"tables":[{"id":1,"level":31,"stored":5}]}`))
	f.Add([]byte(`{"tables":[{"id":1,"level":31,"stored":5},{"id":1,"level":30,"stored":5}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		defer watchdog.Start()()
		s, err := parseSeal(text)
		if err != nil {
			return
		}
		if len(s.files()) != 1+len(s.Tables) {
			t.Fatalf("%d tables in %d files", len(s.Tables), len(s.files()))
		}
		planMerge(s.Tables, 1)
		if _, err := manifest(s.Tables); err != nil {
			t.Fatal(err)
		}
	})
}
