package treetest

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Names of the extended attributes that hold POSIX ACLs.
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

// Tags of ACL entries in the order the kernel wants them, linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclVersion = 2
	aclNoID    = 0xffffffff
)

// ACL returns the bytes of an ACL given in setfacl's short form, in the
// kernel's order: "u::rwx,u:1234:r--,g::r-x,g:77:rw-,m::rwx,o::---".
func ACL(text string) (string, error) {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, entry := range strings.Split(text, ",") {
		f := strings.Split(entry, ":")
		if len(f) != 3 {
			return "", fmt.Errorf("acl entry %q: want tag:id:rights", entry)
		}
		tag, id, err := aclTag(f[0], f[1])
		if err != nil {
			return "", fmt.Errorf("acl entry %q: %w", entry, err)
		}
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, aclRights(f[2]))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return string(b), nil
}

func aclTag(tag, id string) (uint16, uint32, error) {
	tags := map[string][2]uint16{"u": {aclUserObj, aclUser}, "g": {aclGroupObj, aclGroup}, "m": {aclMask, 0}, "o": {aclOther, 0}}
	pair, ok := tags[tag]
	if !ok {
		return 0, 0, fmt.Errorf("no such tag %q", tag)
	}
	if id == "" {
		return pair[0], aclNoID, nil
	}
	n, err := strconv.ParseUint(id, 10, 32)
	return pair[1], uint32(n), err
}

func aclRights(s string) uint16 {
	var bits uint16
	for i, c := range []byte("rwx") {
		if strings.IndexByte(s, c) >= 0 {
			bits |= 4 >> i
		}
	}
	return bits
}
