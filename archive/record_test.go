package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/watchdog"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// TestLineBytes fixes the JSON of every kind of line, as docs/FORMAT.md gives it.
func TestLineBytes(t *testing.T) {
	var hash Hash
	var digest, tail Digest
	hash[0], digest[0], tail[31] = 0xab, 0x3f, 0x01
	hashText := "ab" + strings.Repeat("0", 62)
	digestText := "3f" + strings.Repeat("0", 62)
	tailText := strings.Repeat("0", 62) + "01"
	for _, test := range []struct {
		line []byte
		want string
	}{
		{appendPart(nil, Part{Name: digest, Stored: 100, Raw: 2048, TailStored: 60, Tail: tail}),
			`{"part":"` + digestText + `","stored":100,"raw":2048,"tail":60,"tail_digest":"` + tailText + `"}`},
		{appendContent(nil, Placement{Part: digest, Content: Content{Hash: hash, RawOffset: 512, RawLen: 5}}),
			`{"content":"` + hashText + `","part":"` + digestText + `","offset":512,"length":5}`},
		{appendGone(nil, "a/b"), `{"gone":"a/b"}`},
		{appendGone(nil, "a/\xff"), `{"gone64":"YS//"}`},
		{appendForget(nil, 7), `{"forget":7}`},
		{appendRemoved(nil, digest), `{"removed":"` + digestText + `"}`},
		{appendEntry(nil, Entry{Path: "etc/motd", Attr: Attr{Type: TypeFile, Mode: 0o644, UID: 1, GID: 2, Size: 5,
			Mtime: Timespec{-1, 999999999}, Ctime: Timespec{3, 4}, Inode: 1<<64 - 1, Nlink: 1}, Data: []Extent{{0, 5, hash}}}),
			`{"path":"etc/motd","type":"file","mode":"0644","uid":1,"gid":2,"size":5,"mtime":[-1,999999999],"ctime":[3,4],` +
				`"inode":18446744073709551615,"nlink":1,"data":[[0,5,"` + hashText + `"]]}`},
		{appendEntry(nil, Entry{Path: "a\n\"\\", Attr: Attr{Type: TypeSymlink, Mode: 0o777, Nlink: 2}, Target: "\xfe",
			Xattrs: []Xattr{{"user.\xff", ""}, {"user.x", "\x00"}}, Group: "1:2", Changed: true}),
			`{"path":"a\n\"\\","type":"symlink","mode":"0777","uid":0,"gid":0,"size":0,"mtime":[0,0],"ctime":[0,0],"inode":0,"nlink":2,` +
				`"target64":"/g==","xattrs":[{"name64":"dXNlci7/","value":""},{"name":"user.x","value":"\u0000"}],"group":"1:2","changed":true}`},
		{appendEntry(nil, Entry{Path: "null", Attr: Attr{Type: TypeChar, Mode: 0o4666, Nlink: 1, Rdev: Device{1, 3}}}),
			`{"path":"null","type":"char","mode":"4666","uid":0,"gid":0,"size":0,"mtime":[0,0],"ctime":[0,0],"inode":0,"nlink":1,"rdev":[1,3]}`},
	} {
		if got := string(test.line); got != test.want+"\n" {
			t.Errorf("got  %swant %s", got, test.want)
		}
	}
}

func newTestRepository(t testing.TB) *Repository {
	t.Helper()
	r, err := Init(filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func randomEntry(rng *rand.Rand, n int) Entry {
	e := Entry{Path: fmt.Sprintf("dir/%06d-\xff\n", n), Attr: Attr{Type: TypeFile, Mode: rng.Uint32() & 0o7777, UID: rng.Uint32(),
		GID: rng.Uint32(), Mtime: Timespec{rng.Int64() - 1<<62, rng.Uint32() % 1e9}, Ctime: Timespec{rng.Int64(), 0},
		Inode: rng.Uint64(), Nlink: 1 + rng.Uint32()%3}}
	for range rng.IntN(4) * rng.IntN(1200) {
		e.Attr.Size += rng.Int64N(3)
		x := Extent{Offset: e.Attr.Size, Len: 1 + rng.Int64N(1<<16)}
		x.Hash[rng.IntN(32)] = byte(rng.Uint32())
		e.Attr.Size += x.Len
		e.Data = append(e.Data, x)
	}
	if e.Attr.Nlink > 1 {
		e.Group = fmt.Sprintf("fd:%d", n)
	}
	return e
}

func readRecord(t testing.TB, r *Repository, number uint64) (Header, []Line, Digest) {
	t.Helper()
	rr, err := r.OpenRecord(number)
	if err != nil {
		t.Fatal(err)
	}
	defer rr.Close()
	var lines []Line
	for {
		line, err := rr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	digest, err := rr.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return rr.Header(), lines, digest
}

func TestRecordRoundTrip(t *testing.T) {
	r := newTestRepository(t)
	rng := rand.New(rand.NewPCG(1, 2))
	part := PublishedPart{Part: Part{Name: Digest{1}, Stored: 1000, Raw: 5000, TailStored: 100, Tail: Digest{2}},
		Contents: []Content{{Hash{3}, 512, 77}, {Hash{4}, 2048, 8 << 20}}}
	want := []Line{{Part: &part.Part}, {Content: &Placement{Part: Digest{1}, Content: part.Contents[0]}}, {Content: &Placement{Part: Digest{1}, Content: part.Contents[1]}}}
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	if err := draft.AddPart(part); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		e := randomEntry(rng, i)
		line := Line{Entry: &e}
		if i%7 == 3 {
			line = Line{Gone: e.Path}
		}
		if err := draft.Add(line); err != nil {
			t.Fatal(err)
		}
		want = append(want, line)
	}
	h := Header{Kind: KindGeneration, Number: 1, Time: time.Date(2026, 11, 22, 3, 0, 0, 5, time.UTC), Source: "web1",
		Name: "2026-11-22T03-00-00Z", Program: "test"}
	digest, stored, err := draft.Commit(h)
	if err != nil {
		t.Fatal(err)
	}
	gotHeader, got, gotDigest := readRecord(t, r, 1)
	if gotHeader != h || gotDigest != digest {
		t.Errorf("header %+v, digest %v; want %+v, %v", gotHeader, gotDigest, h, digest)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%d lines differ from the %d written", len(got), len(want))
	}
	if d, err := r.RecordDigest(1); err != nil || d != digest {
		t.Errorf("RecordDigest = %v, %v, want %v", d, err, digest)
	}
	if info, err := os.Stat(filepath.Join(r.Dir(), "log/000000000001.jsonl.zst")); err != nil || info.Size() != stored {
		t.Errorf("stored %d: %v, %v", stored, info, err)
	}
}

// TestCommitAgain: the loser of a number commits the same lines under the next one.
func TestCommitAgain(t *testing.T) {
	r := newTestRepository(t)
	h := Header{Kind: KindForget, Number: 3, Time: time.Unix(0, 0).UTC()}
	var drafts [2]*RecordDraft
	for i := range drafts {
		d, err := r.NewRecord()
		if err != nil {
			t.Fatal(err)
		}
		defer d.Discard()
		if err := d.Add(Line{Forget: uint64(i) + 1}); err != nil {
			t.Fatal(err)
		}
		drafts[i] = d
	}
	first, _, err := drafts[0].Commit(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := drafts[1].Commit(h); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("committed over another record: %v", err)
	}
	h.Number, h.Previous = 4, first
	if _, _, err := drafts[1].Commit(h); err != nil {
		t.Fatal(err)
	}
	if _, lines, _ := readRecord(t, r, 3); len(lines) != 1 || lines[0].Forget != 1 {
		t.Errorf("record 3: %+v", lines)
	}
	if _, lines, _ := readRecord(t, r, 4); len(lines) != 1 || lines[0].Forget != 2 {
		t.Errorf("record 4: %+v", lines)
	}
	if last, err := r.Last(); err != nil || last != 4 {
		t.Errorf("Last = %d, %v", last, err)
	}
	for after, want := range map[uint64]uint64{0: 3, 2: 3, 3: 4, 4: 5} {
		if next, err := r.NextRecord(after); err != nil || next != want {
			t.Errorf("NextRecord(%d) = %d, %v, want %d", after, next, err, want)
		}
	}
}

func TestResetKeepsParts(t *testing.T) {
	r := newTestRepository(t)
	d, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	part := PublishedPart{Part: Part{Name: Digest{1}, Stored: 1000, Raw: 5000, TailStored: 100}}
	if err := errors.Join(d.AddPart(part), d.Add(Line{Gone: "x"}), d.Reset(), d.Add(Line{Gone: "y"})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Commit(Header{Kind: KindGeneration, Number: 1, Name: "2026-11-22T03-00-00Z"}); err != nil {
		t.Fatal(err)
	}
	if _, lines, _ := readRecord(t, r, 1); len(lines) != 2 || lines[1].Gone != "y" {
		t.Errorf("lines %+v", lines)
	}
}

type memoryObject struct{ *bytes.Reader }

func (memoryObject) Close() error { return nil }

func compressed(t testing.TB, text string) memoryObject {
	t.Helper()
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<16))
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	return memoryObject{bytes.NewReader(encoder.EncodeAll([]byte(text), nil))}
}

// read reads a record to its end.
func read(o Object) error {
	r, err := newRecordReader(1, o)
	if err != nil {
		return err
	}
	defer r.Close()
	for err == nil {
		_, err = r.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

const (
	goodHeader = `{"kind":"generation","number":1,"time":"2026-11-22T03:00:00Z","source":"","name":"2026-11-22T03-00-00Z","base":0,"previous":"0000000000000000000000000000000000000000000000000000000000000000","program":"x"}` + "\n"
	goodEntry  = `{"path":"a","type":"file","mode":"0644","uid":0,"gid":0,"size":0,"mtime":[0,0],"ctime":[0,0],"inode":0,"nlink":1}` + "\n"
	goodEnd    = `{"end":{"parts":0,"contents":0,"entries":1,"extents":0,"gone":0,"forgets":0}}` + "\n"
)

func TestHostileRecords(t *testing.T) {
	if err := read(compressed(t, goodHeader+goodEntry+goodEnd)); err != nil {
		t.Fatal(err)
	}
	entry := func(old, new string) string {
		if !strings.Contains(goodEntry, old) {
			t.Fatalf("%q is not in the entry", old)
		}
		return goodHeader + strings.Replace(goodEntry, old, new, 1) + goodEnd
	}
	for name, text := range map[string]string{
		"empty":             "",
		"no end":            goodHeader + goodEntry,
		"counts":            goodHeader + goodEntry + goodEntry + goodEnd,
		"lines behind":      goodHeader + goodEntry + goodEnd + goodEntry,
		"other number":      strings.Replace(goodHeader, `"number":1`, `"number":2`, 1) + goodEntry + goodEnd,
		"unknown kind":      strings.Replace(goodHeader, "generation", "migration", 1) + goodEntry + goodEnd,
		"base of itself":    strings.Replace(goodHeader, `"base":0`, `"base":1`, 1) + goodEntry + goodEnd,
		"generation name":   strings.Replace(goodHeader, "03-00-00Z", "../../etc", 1) + goodEntry + goodEnd,
		"one-digit hour":    strings.Replace(goodHeader, "03-00-00Z", "3-00-00Z", 1) + goodEntry + goodEnd,
		"fraction":          strings.Replace(goodHeader, "03-00-00Z", "03-00-00,123Z", 1) + goodEntry + goodEnd,
		"long fraction":     strings.Replace(goodHeader, "03-00-00Z", "03-00-00,"+strings.Repeat("1", 2000)+"Z", 1) + goodEntry + goodEnd,
		"source name":       strings.Replace(goodHeader, `"source":""`, `"source":"../x"`, 1) + goodEntry + goodEnd,
		"unknown field":     entry(`"uid"`, `"euid"`),
		"dot dot":           entry(`"a"`, `"a/../b"`),
		"absolute":          entry(`"a"`, `"/a"`),
		"empty path":        entry(`"a"`, `""`),
		"NUL":               entry(`"a"`, `"a\u0000"`),
		"long name":         entry(`"a"`, `"`+strings.Repeat("a", 256)+`"`),
		"negative size":     entry(`"size":0`, `"size":-1`),
		"size over 64 bits": entry(`"size":0`, `"size":18446744073709551616`),
		"mode":              entry(`0644`, `10000`),
		"nanoseconds":       entry(`"mtime":[0,0]`, `"mtime":[0,1000000000]`),
		"no mtime":          entry(`"mtime":[0,0],`, ``),
		"nlink 0":           entry(`"nlink":1`, `"nlink":0`),
		"type":              entry(`"file"`, `"door"`),
		"file with target":  entry(`"nlink":1`, `"nlink":1,"target":"x"`),
		"extent behind end": entry(`"nlink":1`, `"nlink":1,"data":[[0,1,"`+strings.Repeat("0", 64)+`"]]`),
		"huge extent":       entry(`"nlink":1`, `"nlink":1,"data":[[9223372036854775807,9223372036854775807,"`+strings.Repeat("0", 64)+`"]]`),
		"short hash":        entry(`"nlink":1`, `"nlink":1,"data":[[0,1,"00"]]`),
		"given twice":       entry(`"uid":0`, `"uid":0,"uid":0`),
		"no rdev":           entry(`"file"`, `"block"`),
		"a file's rdev":     entry(`"nlink":1`, `"nlink":1,"rdev":[0,0]`),
		"empty data":        entry(`"nlink":1`, `"nlink":1,"data":[]`),
		"empty xattrs":      entry(`"nlink":1`, `"nlink":1,"xattrs":[]`),
		"empty group":       entry(`"nlink":1`, `"nlink":1,"group":""`),
		"base64 of UTF-8":   entry(`"path":"a"`, `"path64":"YQ=="`),
		"base64, line end":  entry(`"path":"a"`, `"path64":"/w\n=="`),
		"half a character":  entry(`"a"`, `"a\ud800"`),
		"header, no time":   strings.Replace(goodHeader, `"time":"2026-11-22T03:00:00Z",`, ``, 1) + goodEntry + goodEnd,
		"header, no source": strings.Replace(goodHeader, `"source":"",`, ``, 1) + goodEntry + goodEnd,
		"header, no base":   strings.Replace(goodHeader, `"base":0,`, ``, 1) + goodEntry + goodEnd,
		"header, a field":   strings.Replace(goodHeader, `"base":0,`, `"base":0,"to":1,`, 1) + goodEntry + goodEnd,
		"header, twice":     strings.Replace(goodHeader, `"base":0,`, `"base":0,"base":0,`, 1) + goodEntry + goodEnd,
		"header, capitals":  strings.Replace(goodHeader, `"base"`, `"Base"`, 1) + goodEntry + goodEnd,
		"header, spaces":    strings.Replace(goodHeader, `"base":0,`, `"base": 0,`, 1) + goodEntry + goodEnd,
		"previous, capital": strings.Replace(goodHeader, `"0000`, `"A000`, 1) + goodEntry + goodEnd,
		"time, zone":        strings.Replace(goodHeader, `:00Z"`, `:00+00:00"`, 1) + goodEntry + goodEnd,
		"time, 12 digits":   strings.Replace(goodHeader, `:00Z"`, `:00.000000000001Z"`, 1) + goodEntry + goodEnd,
		"time, zeros":       strings.Replace(goodHeader, `:00Z"`, `:00.500Z"`, 1) + goodEntry + goodEnd,
		"a forget of paths": strings.NewReplacer(`"generation"`, `"forget"`, `"name":"2026-11-22T03-00-00Z",`, ``).Replace(goodHeader) + goodEntry + goodEnd,
		"a forget's source": strings.NewReplacer(`"generation"`, `"forget"`, `"name":"2026-11-22T03-00-00Z",`, ``, `"source":""`, `"source":"web1"`).Replace(goodHeader) + strings.Replace(goodEnd, `"entries":1`, `"entries":0`, 1),
		"negative zero":     entry(`"mtime":[0,0]`, `"mtime":[-0,0]`),
		"null":              entry(`"uid":0`, `"uid":null`),
		"leading zero":      entry(`"uid":0`, `"uid":00`),
		"a fraction":        entry(`"uid":0`, `"uid":0.5`),
		"no uid":            entry(`"uid":0,`, ``),
		"not UTF-8":         entry(`"a"`, "\"\xff\""),
		"gone in an entry":  entry(`"uid":0`, `"uid":0,"gone":"x"`),
		"two kinds of line": goodHeader + `{}` + "\n" + goodEnd,
		"a line of 1 GiB":   goodHeader + strings.Repeat("\x00", maxLine+1),
	} {
		if err := read(compressed(t, text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestRecordNumbers: numbers of records have a bound, beyond which nothing is a record.
func TestRecordNumbers(t *testing.T) {
	r := newTestRepository(t)
	for _, number := range []uint64{7, maxRecord, maxRecord + 1, math.MaxUint64} {
		if err := os.WriteFile(filepath.Join(r.Dir(), RecordStoreName(number)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if numbers, err := r.Records(); !slices.Equal(numbers, []uint64{7, maxRecord}) || err != nil {
		t.Errorf("%d, %v", numbers, err)
	}
	d := must(r.NewRecord())
	defer d.Discard()
	if _, _, err := d.Commit(Header{Kind: KindForget, Number: maxRecord + 1}); err == nil || !strings.Contains(err.Error(), "want a number of at most 9223372036854775807") {
		t.Errorf("a record beyond: %v", err)
	}
}

// TestSettledAgain: that a record was settled says nothing about one that has its number later,
// in an older copy of the log that was put back.
func TestSettledAgain(t *testing.T) {
	fsys := &faultyFS{base: "log"}
	r := must(InitOn(fsys, filepath.Join(t.TempDir(), "repo"), InitOptions{}))
	defer r.Close()
	for number := uint64(1); number <= 2; number++ {
		d := must(r.NewRecord())
		defer d.Discard()
		if _, _, err := d.Commit(Header{Kind: KindForget, Number: number}); err != nil {
			t.Fatal(err)
		}
	}
	fsys.operation = "sync"
	if err := r.SettleRecord(2); err != nil {
		t.Errorf("of what was committed: %v", err)
	}
	if err := r.SettleRecord(1); !errors.Is(err, unix.EIO) {
		t.Errorf("of an older one: %v", err)
	}
	name := filepath.Join(r.Dir(), RecordStoreName(2))
	text := must(os.ReadFile(name))
	if err := errors.Join(os.Remove(name), os.WriteFile(name, append(text, 0), 0o400)); err != nil {
		t.Fatal(err)
	}
	if err := r.SettleRecord(2); !errors.Is(err, unix.EIO) {
		t.Errorf("of another one by the number: %v", err)
	}
}

// TestLinesOfKinds: a record has the lines of its kind.
func TestLinesOfKinds(t *testing.T) {
	lines := map[string]Line{"part": {Part: &Part{}}, "content": {Content: &Placement{}}, "entry": {Entry: &Entry{}}, "gone": {Gone: "a"},
		"forget": {Forget: 1}, "removed": {Removed: &Digest{}}, "given": {Given: &Given{}}, "generation": {Generation: &Header{}}}
	stated := map[string]Line{"content": {Content: &Placement{Record: 1}}, "entry": {Entry: &Entry{Number: 1}}}
	for kind, want := range map[Kind]string{
		KindGeneration: "content entry gone part",
		KindForget:     "forget",
		KindCompaction: "content part removed",
		KindCheckpoint: "content entry generation given gone part removed",
	} {
		var got []string
		for name, l := range lines {
			if of, ok := stated[name]; ok && kind == KindCheckpoint {
				l = of
			}
			if kind.allows(l) == nil {
				got = append(got, name)
			}
		}
		if slices.Sort(got); strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}

// TestRepeatedExtents: the extents of an entry are refused with the line that they are in,
// however many follow.
func TestRepeatedExtents(t *testing.T) {
	extents := func(from, n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf(`[%d,1,"%064d"]`, from+i, 0)
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	entry := strings.Replace(goodEntry, `"size":0`, `"size":2001,"data":`+extents(0, extentsPerLine), 1)
	more := func(list string) string { return `{"more":` + list + "}\n" }
	good := entry + more(extents(extentsPerLine, extentsPerLine)) + more(extents(2*extentsPerLine, 1))
	if err := read(compressed(t, goodHeader+good+strings.Replace(goodEnd, `"extents":0`, `"extents":2001`, 1))); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"the first again": more(extents(0, extentsPerLine)),
		"the last again":  more(extents(extentsPerLine-1, extentsPerLine)),
		"behind the end":  more(extents(1002, extentsPerLine)),
	} {
		err := read(compressed(t, goodHeader+entry+text)) // what follows is never looked at
		if err == nil || !strings.Contains(err.Error(), "line 3: ") || !strings.Contains(err.Error(), "impossible extent") {
			t.Errorf("%s: %v", name, err)
		}
	}
	end := strings.Replace(goodEnd, `"extents":0`, `"extents":1001`, 1)
	for name, text := range map[string]string{
		"too many in a line":      strings.Replace(goodEntry, `"size":0`, `"size":2001,"data":`+extents(0, extentsPerLine+1), 1),
		"more behind a part list": strings.Replace(goodEntry, `"size":0`, `"size":2001,"data":`+extents(0, 1), 1) + more(extents(1, extentsPerLine)),
		"an empty list":           entry + more(extents(extentsPerLine, 1)) + more("[]"),
	} {
		if err := read(compressed(t, goodHeader+text+end)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestRemovedLines: a compaction may say that parts are removed, and how many; no
// other record may.
func TestRemovedLines(t *testing.T) {
	header := strings.Replace(strings.Replace(goodHeader, "generation", "compaction", 1), `"name":"2026-11-22T03-00-00Z",`, "", 1)
	line := `{"removed":"` + strings.Repeat("3f", 32) + `"}` + "\n"
	end := func(more string) string {
		return `{"end":{"parts":0,"contents":0,"entries":0,"extents":0,"gone":0,"forgets":0` + more + "}}\n"
	}
	for name, c := range map[string]struct {
		text string
		good bool
	}{
		"one":             {header + line + end(`,"removed":1`), true},
		"none, not said":  {header + end(""), true},
		"none, said":      {header + end(`,"removed":0`), true},
		"one, not said":   {header + line + end(""), false},
		"two said":        {header + line + end(`,"removed":2`), false},
		"said twice":      {header + line + end(`,"removed":1,"removed":1`), false},
		"short name":      {header + `{"removed":"3f"}` + "\n" + end(`,"removed":1`), false},
		"with more":       {header + strings.Replace(line, "}", `,"forget":1}`, 1) + end(`,"removed":1`), false},
		"in a generation": {goodHeader + line + end(`,"removed":1`), false},
		"in a forget":     {strings.Replace(header, "compaction", "forget", 1) + line + end(`,"removed":1`), false},
	} {
		if err := read(compressed(t, c.text)); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	draft, err := newTestRepository(t).NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	if err := draft.Add(Line{Removed: &Digest{1}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := draft.Commit(Header{Kind: KindForget, Number: 1, Time: time.Unix(0, 0)}); err == nil {
		t.Error("a forget that removes a part was committed")
	}
}

// TestEntriesThatCannotBeStored: they are refused, and the record is good without them.
func TestEntriesThatCannotBeStored(t *testing.T) {
	r := newTestRepository(t)
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	good := func(path string) *Entry {
		return &Entry{Path: path, Attr: Attr{Type: TypeFile, Nlink: 1}}
	}
	long, attrs, target, extent := good(strings.Repeat("n", 256)), good("a"), good("b"), good("c")
	for i := range 50 { // six bytes for each of these
		attrs.Xattrs = append(attrs.Xattrs, Xattr{Name: fmt.Sprintf("user.%03d", i), Value: strings.Repeat("\x00", 64<<10)})
	}
	target.Attr.Type = TypeSymlink
	longTarget := good("t")
	longTarget.Attr.Type, longTarget.Target = TypeSymlink, strings.Repeat("t", MaxTarget+1)
	extent.Data = []Extent{{Len: 1}}
	root := good(".")
	root.Attr.Type = TypeDir
	for _, e := range []*Entry{root, long, attrs, target, longTarget, extent, good("d")} {
		err := draft.Add(Line{Entry: e})
		if bad := e != root && e.Path != "d"; errors.Is(err, ErrEntry) != bad || !bad && err != nil {
			t.Errorf("%.20s: %v", e.Path, err)
		}
	}
	h := Header{Kind: KindGeneration, Number: 1, Name: "2026-11-22T03-00-00Z", Time: time.Unix(0, 0).UTC()}
	if _, _, err := draft.Commit(h); err != nil {
		t.Fatal(err)
	}
	record, err := r.OpenRecord(1)
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	n := 0
	for ; err == nil; n++ {
		_, err = record.Next()
	}
	if !errors.Is(err, io.EOF) || n != 3 {
		t.Errorf("%d lines, %v", n-1, err)
	}
}

// TestLongestEntry: an entry of a generation has room for the numbers that a checkpoint
// gives it, and one byte more is refused.
func TestLongestEntry(t *testing.T) {
	r := newTestRepository(t)
	newDraft := func() *RecordDraft {
		draft, err := r.NewRecord()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(draft.Discard)
		return draft
	}
	e := Entry{Path: ".", Attr: Attr{Type: TypeDir, Nlink: 1}}
	for i := range maxEntryLine / (maxXattrValue + 64) {
		e.Xattrs = append(e.Xattrs, Xattr{Name: fmt.Sprintf("user.%04d", i), Value: strings.Repeat("x", maxXattrValue)})
	}
	room := maxEntryLine - len(appendEntry(nil, e)) - len(`,{"name":"user.last","value":""}`)
	e.Xattrs = append(e.Xattrs, Xattr{Name: "user.last", Value: strings.Repeat("x", room)})
	last := &e.Xattrs[len(e.Xattrs)-1]
	if err := newDraft().Add(Line{Entry: &e}); err != nil {
		t.Fatal(err)
	}
	numbered := e
	numbered.Number, numbered.Directory = maxInodeNumber, math.MaxInt64
	checkpoint := newDraft()
	if err := checkpoint.Add(Line{Entry: &numbered}); err != nil {
		t.Error(err)
	}
	if got := len(appendEntry(nil, numbered)); got != maxLine {
		t.Errorf("in a checkpoint its line has %d bytes, want %d", got, maxLine)
	}
	record, err := checkpoint.Read(Header{Kind: KindCheckpoint, Number: 9, Time: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	if line, err := record.Next(); err != nil || !reflect.DeepEqual(*line.Entry, numbered) {
		t.Errorf("read from a checkpoint: %v", err)
	}
	last.Value += "x"
	if err := newDraft().Add(Line{Entry: &e}); !errors.Is(err, ErrEntry) {
		t.Errorf("a byte more: %v", err)
	}
}

// TestCommitMore: a draft whose commit was lost takes more parts and changes, and
// commits all of them.
func TestCommitMore(t *testing.T) {
	r := newTestRepository(t)
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	other, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Discard()
	part := func(n byte) PublishedPart {
		return PublishedPart{Part: Part{Name: Digest{n}, Stored: 100, Raw: 2048, TailStored: 60}, Contents: []Content{{Hash{n}, 512, 5}}}
	}
	h := Header{Kind: KindCompaction, Number: 1, Time: time.Unix(0, 0).UTC()}
	if _, _, err := other.Commit(h); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(draft.AddPart(part(1)), draft.Add(Line{Removed: &Digest{7}})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := draft.Commit(h); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("the number is taken: %v", err)
	}
	if err := errors.Join(draft.AddPart(part(2)), draft.Add(Line{Removed: &Digest{8}})); err != nil {
		t.Fatal(err)
	}
	h.Number = 2
	if _, _, err := draft.Commit(h); err != nil {
		t.Fatal(err)
	}
	record, err := r.OpenRecord(2)
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	var got []string
	for {
		line, err := record.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case line.Part != nil:
			got = append(got, fmt.Sprint("part ", line.Part.Name[0]))
		case line.Content != nil:
			got = append(got, fmt.Sprint("content ", line.Content.Hash[0]))
		case line.Removed != nil:
			got = append(got, fmt.Sprint("removed ", line.Removed[0]))
		}
	}
	if want := "part 1, content 1, part 2, content 2, removed 7, removed 8"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
}

const (
	checkpointHeader = `{"kind":"checkpoint","number":9,"time":"2026-11-22T03:00:00Z","source":"","base":0,"previous":"0000000000000000000000000000000000000000000000000000000000000000","program":"x"}` + "\n"
	checkpointBody   = `{"part":"0100000000000000000000000000000000000000000000000000000000000000","stored":1000,"raw":5000,"tail":100,"tail_digest":"0200000000000000000000000000000000000000000000000000000000000000"}` + "\n" +
		`{"content":"0300000000000000000000000000000000000000000000000000000000000000","part":"0100000000000000000000000000000000000000000000000000000000000000","offset":512,"length":77,"record":4}` + "\n" +
		`{"removed":"0900000000000000000000000000000000000000000000000000000000000000"}` + "\n" +
		`{"directories":3,"inodes":8}` + "\n" +
		`{"generation":5,"time":"2026-11-21T03:00:00.5Z","source":"web1","name":"2026-11-21T03-00-00Z","base":0}` + "\n" +
		`{"path":".","type":"dir","mode":"0755","uid":0,"gid":0,"size":60,"mtime":[1,2],"ctime":[3,4],"inode":5,"nlink":2,"number":256,"directory":1}` + "\n" +
		`{"path":"a","type":"file","mode":"0644","uid":0,"gid":0,"size":77,"mtime":[1,2],"ctime":[3,4],"inode":6,"nlink":2,"data":[[0,77,"0300000000000000000000000000000000000000000000000000000000000000"]],"group":"1:6","number":258}` + "\n" +
		`{"generation":7,"time":"2026-11-22T03:00:00Z","source":"web1","name":"2026-11-22T03-00-00Z","base":5}` + "\n" +
		`{"gone":"a"}` + "\n"
	checkpointEnd = `{"end":{"parts":1,"contents":1,"entries":2,"extents":1,"gone":1,"forgets":0,"removed":1,"generations":2}}` + "\n"
)

// checkpointLines are the lines of checkpointBody.
func checkpointLines() []Line {
	at := func(day, ns int) time.Time { return time.Date(2026, 11, day, 3, 0, 0, ns, time.UTC) }
	dir := Attr{Type: TypeDir, Mode: 0o755, Size: 60, Mtime: Timespec{1, 2}, Ctime: Timespec{3, 4}, Inode: 5, Nlink: 2}
	file := dir
	file.Type, file.Mode, file.Size, file.Inode = TypeFile, 0o644, 77, 6
	return []Line{
		{Part: &Part{Name: Digest{1}, Stored: 1000, Raw: 5000, TailStored: 100, Tail: Digest{2}}},
		{Content: &Placement{Part: Digest{1}, Content: Content{Hash{3}, 512, 77}, Record: 4}},
		{Removed: &Digest{9}},
		{Given: &Given{Directories: 3, Inodes: 8}},
		{Generation: &Header{Kind: KindGeneration, Number: 5, Time: at(21, 5e8), Source: "web1", Name: "2026-11-21T03-00-00Z"}},
		{Entry: &Entry{Path: ".", Attr: dir, Number: 256, Directory: 1}},
		{Entry: &Entry{Path: "a", Attr: file, Data: []Extent{{0, 77, Hash{3}}}, Group: "1:6", Number: 258}},
		{Generation: &Header{Kind: KindGeneration, Number: 7, Time: at(22, 0), Source: "web1", Name: "2026-11-22T03-00-00Z", Base: 5}},
		{Gone: "a"},
	}
}

// TestCheckpointRecord writes a checkpoint and compares it with what was written by
// hand, and reads both.
func TestCheckpointRecord(t *testing.T) {
	r := newTestRepository(t)
	draft, err := r.NewRecord()
	if err != nil {
		t.Fatal(err)
	}
	defer draft.Discard()
	for _, l := range checkpointLines() {
		if err := draft.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	h := Header{Kind: KindCheckpoint, Number: 9, Time: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC), Program: "x"}
	early, err := draft.Read(h)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = early.Next()
	}
	early.Close()
	size, sizeErr := draft.Stored(h)
	digest, stored, err := draft.Commit(h)
	if err != nil || sizeErr != nil || stored != size {
		t.Fatalf("%v, %v: %d bytes stored, %d foretold", err, sizeErr, stored, size)
	}
	if before, err := early.Digest(); err != nil || before != digest {
		t.Errorf("read before the commit: %v, %v, want %v", before, err, digest)
	}
	object, err := r.Store().Open(RecordStoreName(9))
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	decoder, err := zstd.NewReader(io.NewSectionReader(object, 0, object.Size()))
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	text, err := io.ReadAll(decoder)
	if want := checkpointHeader + checkpointBody + checkpointEnd; err != nil || string(text) != want {
		t.Errorf("%v: it says\n%swant\n%s", err, text, want)
	}
	gotHeader, got, _ := readRecord(t, r, 9)
	if gotHeader != h || !reflect.DeepEqual(got, checkpointLines()) {
		t.Errorf("read: %+v\n%+v\nwant\n%+v", gotHeader, got, checkpointLines())
	}
	if n := r.Checkpoint([]uint64{3, 9, 12}); n != 9 {
		t.Errorf("the newest checkpoint is %d, want 9", n)
	}
	if n := r.Checkpoint([]uint64{3}); n != 0 {
		t.Errorf("record 3, which is not there, is a checkpoint: %d", n)
	}
	if _, _, err := draft.Commit(Header{Kind: KindCompaction, Number: 10, Time: h.Time}); err == nil {
		t.Error("generations were stated by a compaction")
	}
}

// TestRecordNames: only what is the name of a record, of number 1 and up, is one.
func TestRecordNames(t *testing.T) {
	r := newTestRepository(t)
	if err := os.MkdirAll(filepath.Join(r.Dir(), "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000000000000", "00000000001", "0000000000002", "-00000000003", "000000000004", "1000000000005", "00000000006x"} {
		if err := os.WriteFile(filepath.Join(r.Dir(), "log", name+recordSuffix), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Records(); err != nil || !slices.Equal(got, []uint64{4, 1000000000005}) {
		t.Errorf("records %d, %v", got, err)
	}
}

// TestLongPaths: the longest path is that of something in a directory of the longest path that
// is stored. A longer one is refused by writers and by readers, who show little of it.
func TestLongPaths(t *testing.T) {
	longest := strings.Repeat("aa/", (MaxDirectoryPath-1)/3) + "a/" + strings.Repeat("n", maxName)
	if len(longest) != 16640 {
		t.Fatalf("%d bytes", len(longest))
	}
	goneEnd := strings.NewReplacer(`"entries":1`, `"entries":0`, `"gone":0`, `"gone":1`).Replace(goodEnd)
	for _, c := range []struct {
		path string
		good bool
	}{{longest, true}, {"a" + longest, false}} {
		d, err := newTestRepository(t).NewRecord()
		if err != nil {
			t.Fatal(err)
		}
		defer d.Discard()
		e := randomEntry(rand.New(rand.NewPCG(1, 2)), 1)
		e.Path = c.path
		entry := strings.Replace(goodEntry, `"a"`, `"`+c.path+`"`, 1)
		for what, err := range map[string]error{
			"write an entry": d.Add(Line{Entry: &e}),
			"write a gone":   d.Add(Line{Gone: c.path}),
			"read an entry":  read(compressed(t, goodHeader+entry+goodEnd)),
			"read a gone":    read(compressed(t, goodHeader+`{"gone":"`+c.path+`"}`+"\n"+goneEnd)),
		} {
			switch {
			case c.good && err != nil:
				t.Errorf("%s, %d bytes: %v", what, len(c.path), err)
			case !c.good && (err == nil || len(err.Error()) > 500 || !strings.Contains(err.Error(), "it has 16641 bytes, want at most 16640")):
				t.Errorf("%s, %d bytes: %v", what, len(c.path), err)
			case !c.good && strings.HasPrefix(what, "read") && !strings.Contains(err.Error(), "log record 1"):
				t.Errorf("%s: the record is not named: %v", what, err)
			}
		}
	}
}

// TestHostileCheckpoints changes a checkpoint in ways that no writer does.
func TestHostileCheckpoints(t *testing.T) {
	good := strings.Replace(checkpointHeader, `"number":9`, `"number":1`, 1) + checkpointBody + checkpointEnd
	if err := read(compressed(t, good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"a content without a record":  {`,"record":4`, ``},
		"record 0":                    {`"record":4`, `"record":0`},
		"an entry without a number":   {`,"number":258`, ``},
		"a directory without number":  {`,"directory":1`, ``},
		"a file with a directory":     {`"number":258`, `"number":258,"directory":2`},
		"a huge number":               {`"number":258`, `"number":9223372036854775807`},
		"it forgets":                  {`{"gone":"a"}`, `{"forget":5}`},
		"no inodes given":             {`,"inodes":8`, ``},
		"a generation without a name": {`"name":"2026-11-21T03-00-00Z",`, ``},
		"a bad name":                  {`"name":"2026-11-21T03-00-00Z"`, `"name":"latest"`},
		"a bad source":                {`"source":"web1"`, `"source":"../x"`},
		"a base in the future":        {`"base":5`, `"base":7`},
		"generation 0":                {`"generation":5`, `"generation":0`},
		"a bad time":                  {`"2026-11-21T03:00:00.5Z"`, `"yesterday"`},
		"a generation too few":        {`,"generations":2`, `,"generations":1`},
		"none counted":                {`,"generations":2`, ``},
		"in a compaction":             {`"checkpoint"`, `"compaction"`},
		"in a forget":                 {`"checkpoint"`, `"forget"`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if text == good {
			t.Fatalf("%s: %q is not in it", name, c[0])
		}
		if err := read(compressed(t, text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, line := range []string{`{"directories":3,"inodes":8}`, `{"generation":1,"time":"2026-11-21T03:00:00Z","source":"","name":"2026-11-21T03-00-00Z","base":0}`} {
		if err := read(compressed(t, goodHeader+line+"\n"+goodEntry+goodEnd)); err == nil {
			t.Errorf("%s in a generation: no error", line)
		}
	}
	if err := read(compressed(t, goodHeader+strings.Replace(goodEntry, `"nlink":1`, `"nlink":1,"number":256`, 1)+goodEnd)); err == nil {
		t.Error("a number in a generation: no error")
	}
}

// TestTruncatedRecord: a record that lacks any number of bytes is not taken for whole.
func TestTruncatedRecord(t *testing.T) {
	whole := compressed(t, goodHeader+goodEntry+goodEnd)
	stored, err := io.ReadAll(whole)
	if err != nil {
		t.Fatal(err)
	}
	for n := range stored {
		if err := read(memoryObject{bytes.NewReader(stored[:n])}); err == nil {
			t.Errorf("%d of %d bytes: no error", n, len(stored))
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(goodHeader + goodEntry + goodEnd)
	f.Add(strings.Replace(checkpointHeader, `"number":9`, `"number":1`, 1) + checkpointBody + checkpointEnd)
	f.Add(goodHeader + `{"gone64":"YS//"}` + "\n" + `{"forget":7}` + "\n" + `{"more":[[1,2,"00"]]}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		defer watchdog.Start()()
		_ = read(compressed(t, text)) // an error or not, but no panic
		_ = read(compressed(t, strings.Replace(checkpointHeader, `"number":9`, `"number":1`, 1)+text))
		r, err := newRecordReader(1, compressed(t, goodHeader+text))
		if err != nil {
			return
		}
		defer r.Close()
		for {
			line, err := r.Next()
			if err != nil {
				return
			}
			if line.Entry == nil {
				continue
			}
			if err := line.Entry.validate(); err != nil {
				t.Errorf("an entry that is not valid was read: %v", err)
			}
		}
	})
}

// FuzzLine: whatever is taken for a line is JSON, and says the same to
// encoding/json.
func FuzzLine(f *testing.F) {
	for line := range strings.Lines(goodEntry + goodEnd + checkpointBody + checkpointEnd + `{"gone":"a\u00e4\n"}` + "\n" + ` { "forget" : 7 } ` + "\n" +
		`{"path64":"/w==","xattrs":[{"name":"user.a","value64":"AA=="}],"data":[[0,1,"00"]],"inode":18446744073709551615}` + "\n") {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		defer watchdog.Start()()
		var j jsonLine
		if j.parse(text) != nil {
			return
		}
		var oracle struct {
			Path   string
			Size   int64
			Inode  uint64
			Gone   string
			Forget uint64
			Record uint64
			Number uint64
			Base   uint64
			Mtime  []int64
		}
		if err := json.Unmarshal(text, &oracle); err != nil {
			t.Fatalf("%q is taken for JSON: %v", text, err)
		}
		e := j.entry
		if !bytes.Contains(text, []byte("64\"")) && (e.Path != oracle.Path || j.gone != oracle.Gone) ||
			j.record != oracle.Record || e.Number != oracle.Number || j.header.Base != oracle.Base || e.Attr.Size != oracle.Size || e.Attr.Inode != oracle.Inode || j.forget != oracle.Forget ||
			j.seen&fieldMtime != 0 && (e.Attr.Mtime.Sec != oracle.Mtime[0] || int64(e.Attr.Mtime.Nsec) != oracle.Mtime[1]) {
			t.Errorf("%q is read as %+v, want %+v", text, j, oracle)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"0123456789abcdef0123456789abcdef","created":"2026-11-22T03:00:00Z","part_size":67108864}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		defer watchdog.Start()()
		c, err := parseConfig(text)
		if err == nil && (c.Format != FormatVersion || c.PartSize < MinPartSize) {
			t.Errorf("accepted %+v", c)
		}
	})
}

// BenchmarkRecordReader reads a record of 10,000 files and their contents.
func BenchmarkRecordReader(b *testing.B) {
	const files = 10000
	r := newTestRepository(b)
	draft, err := r.NewRecord()
	if err != nil {
		b.Fatal(err)
	}
	defer draft.Discard()
	part := PublishedPart{Part: Part{Name: Digest{1}, Stored: 1000, Raw: 5000, TailStored: 100}}
	for i := range files {
		part.Contents = append(part.Contents, Content{Hash: HashOf(fmt.Append(nil, i)), RawOffset: int64(i) * 1024, RawLen: 100})
	}
	if err := draft.AddPart(part); err != nil {
		b.Fatal(err)
	}
	for i, c := range part.Contents {
		e := Entry{Path: fmt.Sprintf("usr/share/doc/package-%d/file-%d", i/20, i), Attr: Attr{Type: TypeFile, Mode: 0o644, Size: 100, Nlink: 1,
			Mtime: Timespec{1763780000, 123456789}, Ctime: Timespec{1763780001, 1}, Inode: uint64(i)}, Data: []Extent{{0, 100, c.Hash}}}
		if err := draft.Add(Line{Entry: &e}); err != nil {
			b.Fatal(err)
		}
	}
	if _, _, err := draft.Commit(Header{Kind: KindGeneration, Number: 1, Name: "2026-11-22T03-00-00Z"}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		readRecord(b, r, 1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
}

// TestDigestSpelling: 64 hexadecimal digits, no capitals, and the quotes around them.
func TestDigestSpelling(t *testing.T) {
	digest := strings.Repeat("0123456789abcdef", 4)
	read := func(text string) (got Hash, err error) {
		r := &jsonReader{text: []byte(text)}
		r.hex((*[32]byte)(&got))
		return got, r.end()
	}
	if got, err := read(`"` + digest + `"`); err != nil || got.String() != digest {
		t.Errorf("read as %s, %v", got, err)
	}
	for _, text := range []string{digest, `"` + digest, `"` + digest[1:] + `"`, `"0` + digest + `"`, `"` + digest + `x`, `"` + digest + `""`,
		`"` + strings.ToUpper(digest) + `"`, `"` + digest[:10] + `"` + digest[11:] + `"`, `"` + digest[:63] + `g"`, `"` + digest[:60] + "\x00\xff\\\\" + `"`, ``, `"`} {
		if got, err := read(text); err == nil {
			t.Errorf("%q: no error, read as %s", text, got)
		}
	}
}

// TestLongLineIsCopiedOnce: copying megabytes again and again took ten times the CPU time
// of all else.
func TestLongLineIsCopiedOnce(t *testing.T) {
	var line, piece = []byte(nil), make([]byte, 64<<10)
	copied := 0
	for len(line) < maxLine {
		grown := roomFor(line, len(piece), maxLine)
		if cap(grown) != cap(line) {
			copied += len(line)
		}
		line = append(grown, piece...)
	}
	if len(line) != maxLine || cap(line) > maxLine || copied > 1<<20 {
		t.Errorf("a line of %d bytes in %d, after %d bytes were copied", len(line), cap(line), copied)
	}
}
