package archive

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// maxPAX is the longest PAX extended header that is read.
const maxPAX = 1 << 20

// tarWalker decodes a tar stream of regular files that is fed to it in pieces
// of any length. It holds a header at a time, never a content.
type tarWalker struct {
	// member is told of each member once its last byte was fed: its header and
	// the content, whose RawOffset counts from the start of the stream.
	member func(Member, Content) error

	offset int64 // of the next byte to be fed

	block [tarBlock]byte // header block, or end-of-archive block
	have  int            // bytes of it

	pax     []byte // extended header, as far as it was fed
	paxLeft int64  // bytes of it to come
	isPAX   bool   // an extended header was fed: the next block is the header it extends

	current Member
	content Content
	left    int64 // bytes of the content to come
	pad     int   // zero bytes to come after an extended header or a content
	hash    *blake3.Hasher

	zeros int // end-of-archive blocks seen
}

func newTarWalker(member func(Member, Content) error) *tarWalker {
	return &tarWalker{member: member, hash: blake3.New()}
}

// feed takes the next bytes of the stream. After an error the walker is of no more use.
func (w *tarWalker) feed(b []byte) error {
	for len(b) > 0 {
		n, err := w.step(b)
		if err != nil {
			return fmt.Errorf("tar: raw offset %d: %w", w.offset, err)
		}
		b = b[n:]
		w.offset += int64(n)
	}
	return nil
}

// close fails where the stream is not whole.
func (w *tarWalker) close() error {
	if w.zeros < 2 || w.have > 0 {
		return fmt.Errorf("tar: raw offset %d: the stream ends early", w.offset)
	}
	return nil
}

// between reports whether the last byte fed was the last one of a member, or
// none was fed.
func (w *tarWalker) between() bool {
	return w.have == 0 && w.paxLeft == 0 && w.left == 0 && w.pad == 0 && !w.isPAX && w.zeros == 0
}

// step takes a first piece of b and returns its length.
func (w *tarWalker) step(b []byte) (int, error) {
	switch {
	case w.paxLeft > 0:
		n := min(int64(len(b)), w.paxLeft)
		w.pax = append(w.pax, b[:n]...)
		w.paxLeft -= n
		return int(n), nil
	case w.left > 0:
		return w.data(b)
	case w.pad > 0:
		n := min(len(b), w.pad)
		w.pad -= n
		return n, nil
	}
	n := copy(w.block[w.have:], b)
	w.have += n
	if w.have < tarBlock {
		return n, nil
	}
	w.have = 0
	return n, w.header()
}

// data takes bytes of a content.
func (w *tarWalker) data(b []byte) (int, error) {
	n := int(min(int64(len(b)), w.left))
	w.hash.Write(b[:n])
	w.left -= int64(n)
	if w.left > 0 {
		return n, nil
	}
	w.hash.Sum(w.content.Hash[:0])
	return n, w.member(w.current, w.content)
}

// header takes a whole block that is not data.
func (w *tarWalker) header() error {
	if w.block == ([tarBlock]byte{}) {
		if w.isPAX {
			return errors.New("the stream ends after an extended header")
		}
		w.zeros++
		return nil
	}
	if w.zeros > 0 {
		return errors.New("a header after the end of the archive")
	}
	m, size, kind, err := parseUstar(&w.block)
	if err != nil {
		return err
	}
	switch {
	case kind == 'x' && !w.isPAX:
		return w.startPAX(size)
	case kind == '0':
		return w.startContent(m, size)
	}
	return fmt.Errorf("header of type %q", kind)
}

func (w *tarWalker) startPAX(size int64) error {
	if size == 0 || size > maxPAX {
		return fmt.Errorf("extended header of %d bytes, want 1 to %d", size, maxPAX)
	}
	w.pax, w.paxLeft, w.pad, w.isPAX = w.pax[:0], size, tarPadding(size), true
	return nil
}

func (w *tarWalker) startContent(m Member, size int64) error {
	if w.isPAX {
		if err := parsePAX(w.pax, &m, &size); err != nil {
			return err
		}
		w.isPAX = false
	}
	if err := m.check(); err != nil {
		return err
	}
	start := w.offset - w.offset%tarBlock + tarBlock
	if size > math.MaxInt64-start-tarBlock {
		return fmt.Errorf("content of %d bytes", size)
	}
	w.current, w.content = m, Content{RawOffset: start, RawLen: size}
	w.left, w.pad = size, tarPadding(size)
	w.hash.Reset()
	if size > 0 {
		return nil
	}
	w.hash.Sum(w.content.Hash[:0])
	return w.member(m, w.content)
}

// parseUstar decodes a header block.
func parseUstar(h *[tarBlock]byte) (m Member, size int64, kind byte, err error) {
	if string(h[257:265]) != "ustar\x0000" {
		return m, 0, 0, errors.New("not a ustar header")
	}
	p := octalParser{h: h}
	sum := p.field("checksum", 148, 156)
	mode := p.field("mode", 100, 108)
	uid := p.field("uid", 108, 116)
	gid := p.field("gid", 116, 124)
	size = p.field("size", 124, 136)
	mtime := p.field("mtime", 136, 148)
	if p.err != nil {
		return m, 0, 0, p.err
	}
	if want := tarChecksum(h[:]); sum != want {
		return m, 0, 0, fmt.Errorf("header checksum %o, want %o", sum, want)
	}
	m = Member{Name: cString(h[0:100]), Mode: uint32(mode & 0o7777), UID: uint32(uid), GID: uint32(gid), Mtime: Timespec{Sec: mtime}}
	if prefix := cString(h[345:500]); prefix != "" {
		m.Name = prefix + "/" + m.Name
	}
	return m, size, h[156], nil
}

// octalParser decodes numeric fields until the first one that is malformed.
type octalParser struct {
	h   *[tarBlock]byte
	err error
}

// field decodes octal digits, after which there is nothing but NULs and spaces.
func (p *octalParser) field(name string, from, to int) int64 {
	s := bytes.TrimRight(p.h[from:to], "\x00 ")
	n, err := strconv.ParseUint(string(s), 8, 63)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("header field %s: %q is no octal number", name, p.h[from:to])
	}
	return int64(n)
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parsePAX applies the records of an extended header. Keys that are not known
// do not change the meaning of the content, and are skipped.
func parsePAX(b []byte, m *Member, size *int64) error {
	s := string(b)
	for s != "" {
		key, value, rest, err := paxRecord(s)
		if err != nil {
			return err
		}
		if err := applyPAX(key, value, m, size); err != nil {
			return fmt.Errorf("extended header: %s=%.40q: %w", key, value, err)
		}
		s = rest
	}
	return nil
}

// paxRecord splits "<length> <key>=<value>\n" off the front of s.
func paxRecord(s string) (key, value, rest string, err error) {
	digits, _, _ := strings.Cut(s[:min(len(s), 10)], " ")
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || int(n) > len(s) || int(n) < len(digits)+2 || s[len(digits)] != ' ' || s[n-1] != '\n' {
		return "", "", "", fmt.Errorf("extended header: record %.40q has a wrong length", s)
	}
	key, value, ok := strings.Cut(s[len(digits)+1:n-1], "=")
	if !ok || key == "" {
		return "", "", "", fmt.Errorf("extended header: record %.40q has no key", s)
	}
	return key, value, s[n:], nil
}

func applyPAX(key, value string, m *Member, size *int64) error {
	var n uint64
	var err error
	switch key {
	case "path":
		m.Name = value
	case "size":
		n, err = strconv.ParseUint(value, 10, 63)
		*size = int64(n)
	case "uid":
		n, err = strconv.ParseUint(value, 10, 32)
		m.UID = uint32(n)
	case "gid":
		n, err = strconv.ParseUint(value, 10, 32)
		m.GID = uint32(n)
	case "mtime":
		m.Mtime.Sec, err = strconv.ParseInt(value, 10, 64)
	}
	if err != nil {
		return errors.New("not a number in range")
	}
	return nil
}
