package archive

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	tarBlock = 512 // everything in a tar stream is a multiple of it

	// Bytes of the name fields of a ustar header.
	ustarNameLen   = 100
	ustarPrefixLen = 155

	// Largest numbers that the fields of a ustar header hold.
	ustarMaxID   = 1<<21 - 1 // 7 octal digits
	ustarMaxSize = 1<<33 - 1 // 11 octal digits; also of the time

	// maxMemberName is the longest name that a file can be opened by (PATH_MAX).
	// Nobody could extract a member with a longer one.
	maxMemberName = 4095

	// chunkDir is where tar extracts chunks.
	chunkDir = ".chunks/"

	// paxName is the name of every extended header. Only a tar that knows
	// neither PAX nor its type shows it.
	paxName = "PaxHeaders"
)

// Member is what the tar header of a content says: where and as what stock
// tar restores it. It has no part in what our own programs restore.
type Member struct {
	Name  string   // path of a file, relative, of any bytes but NUL; longer than 4,095 bytes: the content gets its ChunkName
	Mode  uint32   // 07777
	UID   uint32   // owner
	GID   uint32   // group
	Mtime Timespec // stored in whole seconds
}

// ChunkName returns the member name of a content that is a chunk of a larger
// file: ".chunks/ab/ab12…".
func ChunkName(h Hash) string {
	s := h.String()
	return chunkDir + s[:2] + "/" + s
}

// check fails where the member's name is none that tar could restore.
func (m Member) check() error {
	switch {
	case m.Name == "" || strings.HasPrefix(m.Name, "/") || strings.HasSuffix(m.Name, "/") || strings.Contains(m.Name, "\x00"):
		return fmt.Errorf("member name %q: not the relative path of a file", m.Name)
	case m.Name == ".." || strings.HasPrefix(m.Name, "../") || strings.HasSuffix(m.Name, "/..") || strings.Contains(m.Name, "/../"):
		return fmt.Errorf("member name %q: leads upwards", m.Name)
	}
	return nil
}

// appendMember appends the tar header of a member of rawLen bytes: a ustar
// header, preceded by a PAX extended header only where ustar cannot hold the
// name, the owner, the group, the time or the length. The same member always
// gives the same bytes.
func appendMember(b []byte, m Member, rawLen int64) []byte {
	prefix, name, split := splitName(m.Name)
	var pax []byte
	if !split {
		if !utf8.ValidString(m.Name) {
			pax = appendPAX(pax, "hdrcharset", "BINARY")
		}
		pax = appendPAX(pax, "path", m.Name)
	}
	size := paxNumber(&pax, "size", rawLen, ustarMaxSize)
	uid := paxNumber(&pax, "uid", int64(m.UID), ustarMaxID)
	gid := paxNumber(&pax, "gid", int64(m.GID), ustarMaxID)
	mtime := paxNumber(&pax, "mtime", m.Mtime.Sec, ustarMaxSize)
	if len(pax) > 0 {
		b = appendUstar(b, ustar{name: paxName, mode: 0o644, size: int64(len(pax)), kind: 'x'})
		b = append(b, pax...)
		b = appendZeros(b, tarPadding(int64(len(pax))))
	}
	return appendUstar(b, ustar{prefix: prefix, name: name, mode: int64(m.Mode & 0o7777),
		uid: uid, gid: gid, size: size, mtime: mtime, kind: '0'})
}

// paxNumber returns n for the ustar header if it fits there, else 0 after
// appending a PAX record.
func paxNumber(pax *[]byte, key string, n, limit int64) int64 {
	if n >= 0 && n <= limit {
		return n
	}
	*pax = appendPAX(*pax, key, fmt.Sprint(n))
	return 0
}

// splitName divides a name between the fields of a ustar header. Where they
// cannot hold it, ok is false and name is the beginning of the name.
func splitName(s string) (prefix, name string, ok bool) {
	if len(s) <= ustarNameLen {
		return "", s, true
	}
	for i := max(1, len(s)-ustarNameLen-1); i <= min(ustarPrefixLen, len(s)-2); i++ {
		if s[i] == '/' {
			return s[:i], s[i+1:], true
		}
	}
	return "", strings.TrimRight(s[:ustarNameLen], "/"), false
}

// appendPAX appends a PAX record: "<length> <key>=<value>\n", where the length
// counts its own digits as well.
func appendPAX(b []byte, key, value string) []byte {
	rest := len(" =\n") + len(key) + len(value)
	n := rest + len(fmt.Sprint(rest))
	if len(fmt.Sprint(n)) > len(fmt.Sprint(rest)) {
		n++
	}
	return fmt.Appendf(b, "%d %s=%s\n", n, key, value)
}

// ustar is a header block.
type ustar struct {
	prefix, name                string
	mode, uid, gid, size, mtime int64 // each fits its field
	kind                        byte
}

// appendUstar appends a header block. Offset and length of its fields:
//
//	  0 100 name          108 8 uid     136 12 mtime      257 6 "ustar\0"   329   8 devmajor
//	100   8 mode          116 8 gid     148  8 checksum   263 2 "00"        337   8 devminor
//	                      124 12 size   156  1 typeflag   265 32 uname      345 155 prefix
//	                                    157 100 linkname  297 32 gname      500  12 zeros
func appendUstar(b []byte, u ustar) []byte {
	start := len(b)
	b = appendZeros(b, tarBlock)
	h := b[start:]
	copy(h[0:100], u.name)
	octal(h[100:108], u.mode)
	octal(h[108:116], u.uid)
	octal(h[116:124], u.gid)
	octal(h[124:136], u.size)
	octal(h[136:148], u.mtime)
	h[156] = u.kind
	copy(h[257:265], "ustar\x0000")
	octal(h[329:337], 0)
	octal(h[337:345], 0)
	copy(h[345:500], u.prefix)
	octal(h[148:155], tarChecksum(h))
	h[155] = ' '
	return b
}

// octal fills a field with octal digits and a final NUL.
func octal(field []byte, n int64) {
	last := len(field) - 1
	field[last] = 0
	for i := last - 1; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
}

// tarChecksum is the sum of all bytes of a header block, those of the checksum
// counted as spaces.
func tarChecksum(block []byte) int64 {
	sum := int64(8 * ' ')
	for i, c := range block[:tarBlock] {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	return sum
}

// tarPadding returns how many zero bytes follow n bytes of a member.
func tarPadding(n int64) int { return int(-n & (tarBlock - 1)) }

func appendZeros(b []byte, n int) []byte {
	for ; n >= 8; n -= 8 {
		b = binary.LittleEndian.AppendUint64(b, 0)
	}
	for ; n > 0; n-- {
		b = append(b, 0)
	}
	return b
}
