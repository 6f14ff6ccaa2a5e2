package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseTrace(t *testing.T) {
	got, err := parseTrace(`read(4</dev/fuse>, ""..., 1114112) = 80
pread64(9</repository/parts/3f/3f9c.tar.zst>, ""..., 16433, 900000) = 16433
pread64(12</repository/parts/3f/3f9c.tar.zst>, ""..., 2000, 500) = 100
pread64(5</repository/index/000001.sst>, ""..., 10, 0) = 10
--- SIGURG {si_signo=SIGURG, si_code=SI_TKILL, si_pid=9, si_uid=0} ---
`)
	want := []partRead{{"/repository/parts/3f/3f9c.tar.zst", 900000, 16433}, {"/repository/parts/3f/3f9c.tar.zst", 500, 100}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, line := range []string{
		`mmap(NULL, 4096, PROT_READ, MAP_SHARED, 9</repository/parts/3f/3f9c.tar.zst>, 0) = 0x7f0000000000`,
		`read(9</repository/parts/3f/3f9c.tar.zst>, ""..., 10) = 10`,
		`pread64(9</repository/parts/3f/3f9c.tar.zst>, 0x7f00, 10, 0) = -1 EIO (Input/output error)`,
	} {
		if _, err := parseTrace(line + "\n"); err == nil {
			t.Errorf("not counted, and no error: %s", line)
		}
	}
}

// TestFrameEnds reads the tail that docs/FORMAT.md gives as an example.
func TestFrameEnds(t *testing.T) {
	part := append(make([]byte, 315+88), 0x5e, 0x2a, 0x4d, 0x18, 0x21, 0, 0, 0)
	for _, v := range []uint32{300, 1024, 15, 1024, 88, 0, 3} {
		part = binary.LittleEndian.AppendUint32(part, v)
	}
	part = append(part, 0, 0xb1, 0xea, 0x92, 0x8f)
	ends, err := frameEnds(bytes.NewReader(part), int64(len(part)))
	if want := []int64{300, 315}; err != nil || !slices.Equal(ends, want) {
		t.Errorf("%v, %v, want %v", ends, err, want)
	}
	part[len(part)-1]++
	if _, err := frameEnds(bytes.NewReader(part), int64(len(part))); err == nil {
		t.Error("a wrong magic number is taken")
	}
}

func TestFrameCount(t *testing.T) {
	ends := []int64{300, 500, 515}
	for _, c := range []struct {
		offset, length int64
		want           frameCount
	}{
		{0, 300, frameCount{frames: 1, bytes: 300}},
		{300, 200, frameCount{frames: 1, bytes: 200}},
		{310, 10, frameCount{frames: 1, bytes: 10}},
		{299, 2, frameCount{frames: 2, bytes: 2}},
		{0, 515, frameCount{frames: 3, bytes: 515}},
		{0, 600, frameCount{frames: 3, bytes: 600}},
		{515, 97, frameCount{tailBytes: 97}},
		{100, 0, frameCount{}},
	} {
		var got frameCount
		if got.add(partRead{"part", c.offset, c.length}, ends); got != c.want {
			t.Errorf("%d bytes at %d: %+v, want %+v", c.length, c.offset, got, c.want)
		}
	}
}

// TestMixed wants the large file to be the same every time, and neither too easy
// nor too hard to compress.
func TestMixed(t *testing.T) {
	var a, b bytes.Buffer
	const length = 8*256<<10 + 12345
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := mixed(w, length); err != nil {
			t.Fatal(err)
		}
	}
	if a.Len() != length || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatalf("%d and %d bytes, want twice the same %d", a.Len(), b.Len(), length)
	}
	zstd := exec.Command("zstd", "-q", "-3")
	zstd.Stdin = &a
	out, err := zstd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if ratio := float64(length) / float64(len(out)); ratio < 2 || ratio > 4 {
		t.Errorf("zstd makes it %.1f times smaller, want 2 to 4", ratio)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-only", "create,tar", "-quick", "-tree", "usr", "bin"})
	if err != nil || o.bin != "bin" || !o.quick || !slices.Equal(o.rows, []string{"create", "tar"}) || !slices.Equal(o.trees, []string{"usr"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for args, want := range map[string]string{
		"":                 "directory of the programs",
		"-only creat bin":  `"creat"`,
		"-tree /home bin":  `"/home"`,
		"bin more":         "one argument",
		"-only create,, b": `""`,
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: error %v, want one with %s", args, err, want)
		}
	}
}

// TestWork wants a contestant that did less than another to be found out.
func TestWork(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	for _, name := range []string{tiny + "/a", "one/a", "two/a", "two/b"} {
		if err := os.MkdirAll(b.path(filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.path(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(b.path("to"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := b.reading(`ls -A "$1/" | wc -l; cp -a "$1/." "$2"`)
	if _, err := r.run(b.path("one")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.run(b.path("one")); err != nil {
		t.Errorf("the same work: %v", err)
	}
	if _, err := r.run(b.path("two")); err == nil {
		t.Error("two files are taken for the same work as one")
	}
}
