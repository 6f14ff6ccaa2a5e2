package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/archive"
	"github.com/cespare/xxhash/v2"
)

// forger writes log records and parts by hand, as docs/FORMAT.md has them: digests and
// chain are right, whatever else they say.
type forger struct {
	t   *testing.T
	dir string
}

// filler is a block of a frame of zstd of 128 KiB of one byte, in four.
type filler byte

// zstdFrame returns a frame with a content size and a checksum, made of blocks as they
// are (RFC 8878, 3.1.1): bytes, or fillers. size is what it says of its raw length.
func zstdFrame(size int, sum uint64, blocks ...any) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe4} // magic number; content size in 8 bytes, single segment, checksum
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = appendBlocks(b, blocks)
	return binary.LittleEndian.AppendUint32(b, uint32(sum))
}

func appendBlocks(b []byte, blocks []any) []byte {
	for i, block := range blocks {
		header := uint32(0)
		if i == len(blocks)-1 {
			header = 1 // the last one
		}
		switch block := block.(type) {
		case []byte:
			header |= uint32(len(block)) << 3
			b = append(b, byte(header), byte(header>>8), byte(header>>16))
			b = append(b, block...)
		case filler:
			header |= 1<<1 | uint32(128<<10)<<3
			b = append(b, byte(header), byte(header>>8), byte(header>>16), byte(block))
		}
	}
	return b
}

// stream returns a frame without sizes and checksum, as those of a log record: a window of 8 MiB.
func stream(blocks ...any) []byte {
	return appendBlocks([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x68}, blocks)
}

// lines returns the frame of the lines of a record.
func lines(text string) []byte {
	var blocks []any
	for b := []byte(text); len(b) > 0; b = b[min(len(b), 100_000):] {
		blocks = append(blocks, b[:min(len(b), 100_000)])
	}
	return stream(blocks...)
}

// last returns the number of the newest record, and its digest.
func (f *forger) last() (number int, digest [32]byte) {
	f.t.Helper()
	records := (&repo{t: f.t, dir: f.dir}).records()
	if len(records) == 0 {
		return 0, digest
	}
	b, err := os.ReadFile(records[len(records)-1])
	must(f.t, err)
	return len(records), sha256.Sum256(b)
}

// header returns the header of the next record, whose base is the one before. Replacements are
// pairs of what is to be something else.
func (f *forger) header(kind string, replacements ...string) string {
	f.t.Helper()
	last, digest := f.last()
	name := fmt.Sprintf(`"name":"2030-01-01T00-00-%02dZ",`, last)
	base := last
	if kind != "generation" {
		name, base = "", 0
	}
	text := fmt.Sprintf(`{"kind":%q,"number":%d,"time":"2030-01-01T00:00:00Z","source":"",%s"base":%d,"previous":"%x","program":"forger"}`+"\n",
		kind, last+1, name, base, digest)
	return strings.NewReplacer(replacements...).Replace(text)
}

// put makes frames the next record.
func (f *forger) put(frames ...[]byte) {
	f.t.Helper()
	last, _ := f.last()
	must(f.t, os.WriteFile(filepath.Join(f.dir, fmt.Sprintf("log/%012d.jsonl.zst", last+1)), bytes.Join(frames, nil), 0o400))
}

// record makes the next record of a header and lines, with the right counts.
func (f *forger) record(header string, body ...string) {
	f.t.Helper()
	f.put(lines(header + strings.Join(body, "\n") + "\n" + counts(body)))
}

func counts(body []string) string {
	n := map[string]int{}
	for _, line := range body {
		kind, _, _ := strings.Cut(strings.TrimPrefix(line, `{"`), `"`)
		n[strings.TrimSuffix(kind, "64")]++
		n["extent"] += strings.Count(line, `[[`) + strings.Count(line, `"],[`)
	}
	return fmt.Sprintf(`{"end":{"parts":%d,"contents":%d,"entries":%d,"extents":%d,"gone":%d,"forgets":%d,"removed":%d}}`+"\n",
		n["part"], n["content"], n["path"], n["extent"], n["gone"], n["forget"], n["removed"])
}

// entry returns the line of an entry. Replacements are pairs of what is to be something else.
func entry(path, kind string, replacements ...string) string {
	text := fmt.Sprintf(`{"path":"%s","type":"%s","mode":"0755","uid":0,"gid":0,"size":0,"mtime":[0,0],"ctime":[0,0],"inode":1,"nlink":1}`, path, kind)
	return strings.NewReplacer(replacements...).Replace(text)
}

// with returns an entry with one field more.
func with(entry, field string) string { return strings.TrimSuffix(entry, "}") + "," + field + "}" }

// forgedFrame is a frame of a part: its bytes and what the tail says of its raw length.
type forgedFrame struct {
	stored []byte
	raw    int
}

// endOfArchive is the frame that ends every part.
var endOfArchive = forgedFrame{[]byte("\x28\xb5\x2f\xfd\x64\x00\x03\x03\x20\x00\x00\xcd\xac\x85\xf0"), 1024}

// part makes a part of frames, and returns its line for a record, its name and its raw length.
func (f *forger) part(frames ...forgedFrame) (line, name string, raw int) {
	f.t.Helper()
	le := binary.LittleEndian
	frames = append(frames, endOfArchive)
	n := len(frames)
	var body []byte
	tail := le.AppendUint32(nil, 0x184D2A5D)
	tail = le.AppendUint32(tail, uint32(16+32*n))
	tail = append(tail, "b3frames"...)
	tail = le.AppendUint32(le.AppendUint32(tail, 1), uint32(n))
	table := le.AppendUint32(nil, 0x184D2A5E)
	table = le.AppendUint32(table, uint32(8*(n+1)+9))
	for _, frame := range frames {
		hash := archive.HashOf(frame.stored)
		tail = append(tail, hash[:]...)
		table = le.AppendUint32(le.AppendUint32(table, uint32(len(frame.stored))), uint32(frame.raw))
		body = append(body, frame.stored...)
		raw += frame.raw
	}
	table = le.AppendUint32(le.AppendUint32(table, uint32(len(tail))), 0)
	table = append(le.AppendUint32(table, uint32(n+1)), 0)
	tail = append(tail, le.AppendUint32(table, 0x8F92EAB1)...)
	file := append(body, tail...)
	name = fmt.Sprintf("%x", sha256.Sum256(file))
	must(f.t, os.WriteFile(filepath.Join(mkdir(f.t, f.dir, "parts", name[:2]), name+".tar.zst"), file, 0o400))
	return fmt.Sprintf(`{"part":"%s","stored":%d,"raw":%d,"tail":%d,"tail_digest":"%x"}`, name, len(file), raw, len(tail), sha256.Sum256(tail)), name, raw
}

// tarHeader returns the header of a member of a part.
func tarHeader(name string, size int) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        0", size))
	copy(h[257:], "ustar\x0000")
	copy(h[329:], "0000000\x000000000\x00")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// frameOf returns the frame of some bytes, as they are.
func frameOf(raw []byte) forgedFrame {
	return forgedFrame{zstdFrame(len(raw), xxhash.Sum64(raw), raw), len(raw)}
}

// content returns the line that says where a content lies.
func content(hash archive.Hash, part string, offset, length int) string {
	return fmt.Sprintf(`{"content":"%s","part":"%s","offset":%d,"length":%d}`, hash, part, offset, length)
}
