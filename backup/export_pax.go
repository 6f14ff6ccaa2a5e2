package backup

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/index"
)

// This file is what the standard library's tar does not write: the records of
// extended attributes and ACLs, and sparse members.

const tarBlock = 512 // everything in a tar stream is a multiple of it

// xattrKey writes the name of an extended attribute as GNU tar does.
var xattrKey = strings.NewReplacer("%", "%25", "=", "%3D")

// xattrRecord returns the PAX record of an extended attribute, as star invented
// them and GNU tar and bsdtar read them: ACLs as text, which neither restores
// otherwise.
func xattrRecord(x archive.Xattr) (key, value string, err error) {
	switch x.Name {
	case accessACL:
		key = "SCHILY.acl.access"
	case defaultACL:
		key = "SCHILY.acl.default"
	default:
		return "SCHILY.xattr." + xattrKey.Replace(x.Name), x.Value, nil
	}
	value, err = aclText([]byte(x.Value))
	return key, value, err
}

// aclText returns an ACL, which is in the kernel's binary form (linux/posix_acl_xattr.h:
// version 2, then tag, permissions and id of each entry, little-endian), as text
// with numbers for users and groups: "user::rwx,user:1000:r--,group::r-x,…".
func aclText(b []byte) (string, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != 2 {
		return "", fmt.Errorf("an ACL of %d bytes that is not in the kernel's form", len(b))
	}
	names := map[uint16]string{1: "user", 2: "user", 4: "group", 8: "group", 16: "mask", 32: "other"}
	var entries []string
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, perm := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
		name, ok := names[tag]
		if !ok || perm > 7 {
			return "", fmt.Errorf("an ACL with an entry of tag %d, permissions %o", tag, perm)
		}
		who := ""
		if tag == 2 || tag == 8 {
			who = strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[4:])), 10)
		}
		rights := []byte("---")
		for i := range rights {
			if perm>>(2-i)&1 != 0 {
				rights[i] = "rwx"[i]
			}
		}
		entries = append(entries, name+":"+who+":"+string(rights))
	}
	return strings.Join(entries, ","), nil
}

// region is a range of a file that is no hole.
type region struct{ offset, length int64 }

// regions returns the ranges of a file that are no holes, and at last an empty one
// where the file ends in a hole.
func (x *export) regions(ino index.Ino, size int64) ([]region, error) {
	var all []region
	for end := int64(0); end < size; {
		start, err := x.db.NextData(ino, end)
		if errors.Is(err, io.EOF) {
			return append(all, region{size, 0}), nil
		}
		if err != nil {
			return nil, err
		}
		if end, err = x.db.NextHole(ino, start); err != nil {
			return nil, err
		}
		all = append(all, region{start, end - start})
	}
	return all, nil
}

// sparse writes a file with holes as GNU tar's "PAX format, version 1.0" has it
// (GNU tar manual, "Storing Sparse Files"): the name and size in records, the
// regions in decimal before the data.
func (x *export) sparse(e index.Dirent, h *tar.Header) error {
	regions, err := x.regions(e.Ino, h.Size)
	if err != nil {
		return err
	}
	data := fmt.Appendf(nil, "%d\n", len(regions))
	stored := int64(0)
	for _, r := range regions {
		data = fmt.Appendf(data, "%d\n%d\n", r.offset, r.length)
		stored += r.length
	}
	data = append(data, make([]byte, padding(int64(len(data))))...)
	stored += int64(len(data))
	if err := x.sparseHeader(fmt.Sprintf("GNUSparseFile.0/%d", e.Ino), h, stored); err != nil {
		return err
	}
	if _, err := x.out.Write(data); err != nil {
		return err
	}
	for _, r := range regions {
		if err := x.copy(x.out, e.Ino, r.offset, r.length); err != nil {
			return err
		}
	}
	_, err = x.out.Write(make([]byte, padding(stored)))
	return err
}

// padding returns how many bytes n are short of a whole block.
func padding(n int64) int64 { return -n & (tarBlock - 1) }

// sparseHeader writes the headers of a sparse member of so many bytes, which has
// its true name and size in records.
func (x *export) sparseHeader(name string, h *tar.Header, stored int64) error {
	records := maps.Clone(h.PAXRecords)
	maps.Copy(records, map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(h.Size, 10),
		"size": strconv.FormatInt(stored, 10), "uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid), "mtime": paxTime(h.ModTime),
	})
	extended, err := extendedHeader(records)
	if err != nil {
		return err
	}
	const ustarMax = 1<<33 - 1 // of the size
	var b bytes.Buffer
	b.Write(extended)
	err = tar.NewWriter(&b).WriteHeader(&tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: name, Mode: h.Mode,
		Size: min(stored, ustarMax), ModTime: time.Unix(0, 0)})
	if err != nil {
		return err
	}
	if err := x.tar.Flush(); err != nil { // ends the member before
		return err
	}
	_, err = x.out.Write(b.Bytes())
	return err
}

// extendedHeader returns an extended header of the given records. The standard
// library refuses those of sparse files but in a global header, which has the
// same form and another type.
func extendedHeader(records map[string]string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "PaxHeaders.0/sparse", PAXRecords: records})
	if err == nil {
		err = w.Flush() // pads the last block
	}
	if err != nil {
		return nil, err
	}
	const sumAt, typeAt = 148, 156 // in the header block
	b := out.Bytes()
	sum, err := strconv.ParseInt(string(b[sumAt:sumAt+6]), 8, 64)
	if err != nil || b[typeAt] != tar.TypeXGlobalHeader {
		return nil, fmt.Errorf("unexpected tar header %q", b[:tarBlock])
	}
	b[typeAt] = tar.TypeXHeader
	copy(b[sumAt:], fmt.Sprintf("%06o", sum+tar.TypeXHeader-tar.TypeXGlobalHeader))
	return b, nil
}

// paxTime returns a time as PAX has it: decimal seconds, of negative ones too.
func paxTime(t time.Time) string {
	sec, nsec := t.Unix(), t.Nanosecond()
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -(sec + 1), 1e9-nsec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}
