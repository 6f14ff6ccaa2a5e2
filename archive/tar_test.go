package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/backupfs/backupfs/internal/watchdog"
)

// block joins the fields of a header block, each padded with NULs to its width.
func block(fields ...any) string {
	var b strings.Builder
	for i := 0; i < len(fields); i += 2 {
		s := fields[i+1].(string)
		b.WriteString(s + strings.Repeat("\x00", fields[i].(int)-len(s)))
	}
	if b.Len() != tarBlock {
		panic(b.Len())
	}
	return b.String()
}

func TestTarPlainHeader(t *testing.T) {
	got := appendMember(nil, Member{Name: "etc/motd", Mode: 0o4755, UID: 1000, GID: 2097151, Mtime: Timespec{Sec: 1_700_000_000, Nsec: 999_999_999}}, 6)
	want := block(
		100, "etc/motd", // name
		8, "0004755", // mode
		8, "0001750", // uid 1000
		8, "7777777", // gid, the largest that fits
		12, "00000000006", // size
		12, "14524770400", // mtime 1700000000, nanoseconds dropped
		// Sum of all bytes with 8 spaces here: "etc/motd" 799, mode 357,
		// uid 349, gid 385, size 534, mtime 562, spaces 256, type 48, magic and
		// version 655, two device numbers 672: 4617, octal 11011.
		8, "011011\x00 ",
		1, "0", // regular file
		100, "", // link target
		8, "ustar\x0000", // magic and version
		32, "", 32, "", // user and group name
		8, "0000000", 8, "0000000", // device number
		155, "", // prefix
		12, "")
	if string(got) != want {
		t.Errorf("header\n%q, want\n%q", got, want)
	}
}

func TestTarExtendedHeader(t *testing.T) {
	name := strings.Repeat("n", 101) // no "/" to split it at
	got := appendMember(nil, Member{Name: name, Mode: 0o600, UID: 2097152, Mtime: Timespec{Sec: -1, Nsec: 5}}, 1)
	records := "111 path=" + name + "\n" + // 3 + 1 + 4 + 1 + 101 + 1 bytes
		"15 uid=2097152\n" + // 2 + 1 + 3 + 1 + 7 + 1
		"12 mtime=-1\n" // 2 + 1 + 5 + 1 + 2 + 1
	want := block(100, "PaxHeaders", 8, "0000644", 8, "0000000", 8, "0000000",
		12, "00000000212", // 138 bytes of records
		12, "00000000000", 8, "011257\x00 ", 1, "x", 100, "", 8, "ustar\x0000", 64, "", 8, "0000000", 8, "0000000", 155, "", 12, "") +
		records + strings.Repeat("\x00", 512-138) +
		block(100, strings.Repeat("n", 100), // the beginning of the name
			8, "0000600",
			8, "0000000", // uid: see above
			8, "0000000",
			12, "00000000001",
			12, "00000000000", // mtime: see above
			8, "034556\x00 ", 1, "0", 100, "", 8, "ustar\x0000", 64, "", 8, "0000000", 8, "0000000", 155, "", 12, "")
	if string(got) != want {
		t.Errorf("header\n%q, want\n%q", got, want)
	}
}

func TestTarBytesThatAreNotUTF8(t *testing.T) {
	short := appendMember(nil, Member{Name: "a\xff\n"}, 1)
	if len(short) != tarBlock || !bytes.HasPrefix(short, []byte("a\xff\n\x00")) {
		t.Errorf("short name: %q", short)
	}
	long := strings.Repeat("\xff", 101)
	got := appendMember(nil, Member{Name: long}, 1)
	want := "21 hdrcharset=BINARY\n111 path=" + long + "\n"
	if len(got) != 3*tarBlock || !strings.HasPrefix(string(got[tarBlock:]), want+"\x00") {
		t.Errorf("long name: %q", got[tarBlock:])
	}
}

func TestTarSplitNames(t *testing.T) {
	for _, c := range []struct {
		prefix, name string // lengths
		split        bool
	}{
		{"", strings.Repeat("n", 100), true},
		{strings.Repeat("p", 155), strings.Repeat("n", 100), true},
		{strings.Repeat("p", 156), strings.Repeat("n", 100), false},
		{strings.Repeat("p", 155), strings.Repeat("n", 101), false},
		{"p", strings.Repeat("n", 100), true},
		{"p", strings.Repeat("n", 101), false},
	} {
		full := c.name
		if c.prefix != "" {
			full = c.prefix + "/" + c.name
		}
		prefix, name, ok := splitName(full)
		if ok != c.split || ok && (prefix != c.prefix || name != c.name) {
			t.Errorf("%d/%d bytes: %v, %d/%d", len(c.prefix), len(c.name), ok, len(prefix), len(name))
		}
	}
}

func TestTarPAXLengthsCountThemselves(t *testing.T) {
	for n := range 1100 {
		b := appendPAX(nil, "k", strings.Repeat("v", n))
		if digits, _, _ := strings.Cut(string(b), " "); digits != fmt.Sprint(len(b)) {
			t.Fatalf("record of %d bytes says %s", len(b), digits)
		}
	}
}

// awkwardMembers are members that test every field's limit.
func awkwardMembers() []Member {
	var out []Member
	for _, name := range []string{"a", "-n", "./x", "a b\\c\nd\te", "\xff\xfe", "ü/é", strings.Repeat("n", 100), strings.Repeat("n", 101),
		strings.Repeat("d/", 49) + "xyz", strings.Repeat("d/", 60) + "x", strings.Repeat("d", 156) + "/x", strings.Repeat("\xff", 255) + "/" + strings.Repeat("ü", 127),
		"=", "9 path=x\n", strings.Repeat("k/", 2000) + "end", strings.Repeat("a", 100) + "/" + strings.Repeat("b", 100)} {
		out = append(out, Member{Name: name, Mode: 0o644})
	}
	for _, id := range []uint32{0, 2097151, 2097152, 1<<32 - 1} {
		out = append(out, Member{Name: "u", Mode: 0o7777, UID: id, GID: 1}, Member{Name: "g", GID: id})
	}
	for _, sec := range []int64{0, 1, -1, 1<<33 - 1, 1 << 33, -1 << 40, 1 << 40} {
		out = append(out, Member{Name: "t", Mtime: Timespec{Sec: sec}})
	}
	return out
}

// TestTarOracle has the standard library read what appendMember writes.
func TestTarOracle(t *testing.T) {
	var stream []byte
	members := awkwardMembers()
	for i, m := range members {
		stream = append(appendMember(stream, m, int64(i)), noise(i, 1)...)
		stream = appendZeros(stream, tarPadding(int64(i)))
	}
	stream = appendZeros(stream, 2*tarBlock)
	r := tar.NewReader(bytes.NewReader(stream))
	for i, m := range members {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		got := Member{Name: h.Name, Mode: uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: Timespec{Sec: h.ModTime.Unix()}}
		if got != m || h.Typeflag != tar.TypeReg || h.Uname != "" || h.Gname != "" {
			t.Errorf("read %+v, want %+v", h, m)
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, noise(i, 1)) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	checkWalk(t, stream, members)
}

// checkWalk walks a stream in which content i is noise(i, 1).
func checkWalk(t *testing.T, stream []byte, members []Member) {
	t.Helper()
	for name, r := range map[string]io.Reader{
		"whole":    bytes.NewReader(stream),
		"halves":   iotest.HalfReader(bytes.NewReader(stream)),
		"one byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		i := 0
		w := newTarWalker(func(m Member, c Content) error {
			want := noise(i, 1)
			if m != members[i] || c.Hash != HashOf(want) || c.RawLen != int64(i) || !bytes.HasPrefix(stream[c.RawOffset:], want) {
				t.Errorf("%s: %d: %+v at %+v", name, i, m, c)
			}
			i++
			return nil
		})
		buf := make([]byte, 100_000)
		for {
			n, err := r.Read(buf)
			if err == io.EOF {
				break
			}
			if err := w.feed(buf[:n]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.close(); err != nil || i != len(members) {
			t.Fatal(i, err)
		}
	}
}

func TestTarGNU(t *testing.T) {
	var stream []byte
	for i, m := range awkwardMembers() {
		m.Name = fmt.Sprintf("%d%s", i, m.Name)
		stream = append(appendMember(stream, m, 1), 'x')
		stream = appendZeros(stream, tarPadding(1))
	}
	stream = appendZeros(stream, 2*tarBlock)
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(file, stream, 0o666); err != nil {
		t.Fatal(err)
	}
	list := run(t, "sh", "-c", `tar -tvf "$1" --numeric-owner --full-time --quoting-style=escape 2>/dev/null`, "sh", file)
	for i, want := range []string{
		"-rw-r--r-- 0/0               1 1970-01-01 00:00:00 0a\n",
		"-n\n", "2./x\n", `3a b\\c\nd\te`, `4\377\376`, `5\303\274/\303\251`,
		"-rwsrwsrwt 4294967295/1", " 0/4294967295 ", "1969-12-31 23:59:59", "2242-03-16 12:56:31", "2242-03-16 12:56:32",
		strings.Repeat("k/", 2000) + "end\n",
	} {
		if !strings.Contains(list, want) {
			t.Errorf("%d: tar does not list %q", i, want)
		}
	}
}

func TestTarLargeNumbers(t *testing.T) {
	for _, size := range []int64{1<<33 - 1, 1 << 33, 1 << 50} {
		b := appendMember(nil, Member{Name: "big"}, size)
		h, err := tar.NewReader(bytes.NewReader(append(b, make([]byte, 1024)...))).Next()
		if err != nil || h.Size != size {
			t.Errorf("size %d: %v %v", size, h, err)
		}
		w := newTarWalker(nil)
		if err := w.feed(b); err != nil || w.left != size {
			t.Errorf("size %d: %d left, %v", size, w.left, err)
		}
	}
}

// refuses fails the test unless the stream is refused with an error that contains want.
func refuses(t *testing.T, stream []byte, want string) {
	t.Helper()
	w := newTarWalker(func(Member, Content) error { return nil })
	err := w.feed(stream)
	if err == nil {
		err = w.close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestTarHostile(t *testing.T) {
	zeros := make([]byte, 2*tarBlock)
	good := appendZeros(append(appendMember(nil, Member{Name: "a"}, 3), "abc"...), tarPadding(3))
	for i := range 500 { // the last 12 bytes are padding
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		refuses(t, append(bad, zeros...), "")
	}
	for n := range good {
		refuses(t, good[:n], "ends early")
	}
	refuses(t, append(bytes.Clone(good), zeros[:tarBlock]...), "ends early")
	refuses(t, append(append(bytes.Clone(good), zeros...), 1), "ends early")
	refuses(t, append(append(bytes.Clone(good), zeros...), good...), "after the end")
	pax := func(size int, records string) []byte {
		b := appendUstar(nil, ustar{name: "x", size: int64(size), kind: 'x'})
		return appendZeros(append(b, records...), tarPadding(int64(len(records))))
	}
	extended := func(records string) []byte { return append(append(pax(len(records), records), good...), zeros...) }
	refuses(t, pax(maxPAX+1, ""), "extended header of")
	refuses(t, pax(0, ""), "extended header of")
	refuses(t, append(pax(6, "6 a=b\n"), zeros...), "after an extended header")
	refuses(t, append(pax(6, "6 a=b\n"), pax(6, "6 a=b\n")...), "type")
	refuses(t, extended("7 a=b\n"), "wrong length")
	refuses(t, extended("5 a=b\n"), "wrong length")
	refuses(t, extended("0 a=b\n"), "wrong length")
	refuses(t, extended("-6 a=b\n"), "wrong length")
	refuses(t, extended("99999999999999999999 a=b\n"), "wrong length")
	refuses(t, extended("a=b\n"), "wrong length")
	refuses(t, extended("5 ab\n"), "no key")
	refuses(t, extended("5 =b\n"), "no key")
	refuses(t, extended("12 uid=-999\n"), "not a number")
	refuses(t, extended("18 uid=9999999999\n"), "not a number")
	refuses(t, extended("10 size=x\n"), "not a number")
	refuses(t, extended("28 size=9223372036854775807\n"), "content of")
	refuses(t, extended("29 mtime=9999999999999999999\n"), "not a number")
	refuses(t, extended("14 path=../a/\n"), "member name")
	for _, kind := range "1234567gLKS\x00" {
		refuses(t, append(appendUstar(nil, ustar{name: "x", kind: byte(kind)}), zeros...), "type")
	}
	w := newTarWalker(func(Member, Content) error { return errors.New("no more") })
	if err := w.feed(good); err == nil || !strings.Contains(err.Error(), "no more") {
		t.Error(err)
	}
}

func FuzzTarMember(f *testing.F) {
	for _, m := range awkwardMembers() {
		f.Add(m.Name, m.Mode, m.UID, m.GID, m.Mtime.Sec, []byte("content"))
	}
	f.Fuzz(func(t *testing.T, name string, mode, uid, gid uint32, sec int64, content []byte) {
		defer watchdog.Start()()
		m := Member{Name: name, Mode: mode & 0o7777, UID: uid, GID: gid, Mtime: Timespec{Sec: sec}}
		w := newTarWalker(func(got Member, c Content) error {
			if got != m || c.RawLen != int64(len(content)) || c.Hash != HashOf(content) {
				t.Errorf("%+v %+v, want %+v", got, c, m)
			}
			return nil
		})
		newTarWalker(w.member).feed(content) // hostile bytes: no more than an error
		if m.check() != nil || len(name) > maxMemberName {
			return
		}
		b := append(appendMember(nil, m, int64(len(content))), content...)
		b = appendZeros(b, tarPadding(int64(len(content)))+2*tarBlock)
		if err := w.feed(b); err != nil {
			t.Fatal(err)
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
	})
}
