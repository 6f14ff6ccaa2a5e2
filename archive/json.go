package archive

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// jsonReader reads the JSON (RFC 8259) of one line, value by value. The caller
// knows what must come; anything else is an error. Of numbers only integers are
// known, and invalid UTF-8 is refused. The first error stays: then every call
// returns a zero value.
type jsonReader struct {
	text []byte
	at   int // bytes read
	err  error
}

func (r *jsonReader) failf(format string, a ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("byte %d: %s", r.at, fmt.Sprintf(format, a...))
	}
}

// peek returns the next byte, 0 at the end and after an error.
func (r *jsonReader) peek() byte {
	if r.err != nil || r.at == len(r.text) {
		return 0
	}
	return r.text[r.at]
}

// accept skips c if that comes next.
func (r *jsonReader) accept(c byte) bool {
	if r.peek() != c || r.err != nil || r.at == len(r.text) {
		return false
	}
	r.at++
	return true
}

func (r *jsonReader) expect(c byte) {
	if !r.accept(c) {
		r.failf("want %q", c)
	}
}

// end returns the first error, which may be that something follows.
func (r *jsonReader) end() error {
	if r.err == nil && r.at < len(r.text) {
		r.failf("something follows the end")
	}
	return r.err
}

// object reads an object. field is called behind each name and reads the value.
func (r *jsonReader) object(field func(name []byte)) {
	r.expect('{')
	if r.accept('}') {
		return
	}
	for r.err == nil {
		name := r.bytes()
		r.expect(':')
		field(name)
		if r.accept('}') {
			return
		}
		r.expect(',')
	}
}

// array reads an array. element is called before each value and reads it.
func (r *jsonReader) array(element func()) {
	r.expect('[')
	if r.accept(']') {
		return
	}
	for r.err == nil {
		element()
		if r.accept(']') {
			return
		}
		r.expect(',')
	}
}

// bytes reads a string. What it returns may be a part of the text.
func (r *jsonReader) bytes() []byte {
	r.expect('"')
	start := r.at
	for i := start; i < len(r.text) && r.err == nil; i++ {
		switch c := r.text[i]; {
		case c == '"':
			r.at = i + 1
			return r.text[start:i]
		case c < ' ' || c == '\\' || c >= utf8.RuneSelf:
			return r.unusual(start)
		}
	}
	r.failf("a string without an end")
	return nil
}

// unusual reads a string from the quote before start on, which has escapes or
// is not ASCII.
func (r *jsonReader) unusual(start int) []byte {
	for i := start; i < len(r.text); i++ {
		switch r.text[i] {
		case '\\':
			i++
		case '"':
			r.at = i + 1
			return r.unquote(r.text[start-1 : r.at])
		}
	}
	r.failf("a string without an end")
	return nil
}

func (r *jsonReader) unquote(quoted []byte) []byte {
	var s string
	if !utf8.Valid(quoted) {
		r.failf("a string that is not UTF-8")
	} else if err := json.Unmarshal(quoted, &s); err != nil {
		r.failf("%v", err)
	} else if strings.Count(s, "\ufffd") != bytes.Count(quoted, []byte("\ufffd")) { // what half a surrogate pair becomes
		r.failf("an escape that is half a character, or U+FFFD")
	}
	return []byte(s)
}

func (r *jsonReader) string() string { return string(r.bytes()) }

// base64 reads bytes that travel as base64 (RFC 4648, with padding), because they are not
// UTF-8: nothing has two spellings.
func (r *jsonReader) base64() string {
	text := r.string()
	value, err := base64.StdEncoding.Strict().DecodeString(text)
	switch {
	case err != nil:
		r.failf("%v", err)
	case utf8.Valid(value):
		r.failf("base64 of what is UTF-8")
	case len(text) != base64.StdEncoding.EncodedLen(len(value)):
		r.failf("base64 with line ends")
	}
	return string(value)
}

// moment reads a time of RFC 3339 as it is written: in UTC, with Z, and no zeros behind
// its fraction of at most nine digits.
func (r *jsonReader) moment() time.Time {
	text := r.string()
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		r.failf("%v", err)
	} else if t.UTC().Format(time.RFC3339Nano) != text {
		r.failf("the time %q is not spelled as in a log", text)
	}
	return t
}

// hex reads a digest.
func (r *jsonReader) hex(digest *[32]byte) {
	if err := unhex(digest[:], r.bytes()); err != nil {
		r.failf("%v", err)
	}
}

// int reads an integer between two bounds.
func (r *jsonReader) int(least, most int64) int64 {
	negative := r.accept('-')
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	n := int64(r.uint(limit))
	if negative {
		n = -n
	}
	if negative && n == 0 {
		r.failf("a negative zero")
	}
	if n < least || n > most {
		r.failf("%d is not in %d to %d", n, least, most)
		return 0
	}
	return n
}

// uint reads an integer from 0 to most.
func (r *jsonReader) uint(most uint64) uint64 {
	first := r.peek()
	start, n := r.at, uint64(0)
	for ; r.err == nil && r.at < len(r.text); r.at++ {
		digit := uint64(r.text[r.at] - '0')
		if digit > 9 {
			break
		}
		if n > (math.MaxUint64-digit)/10 {
			r.failf("a number above %d", most)
			return 0
		}
		n = 10*n + digit
	}
	switch digits := r.at - start; {
	case digits == 0:
		r.failf("want a number")
	case digits > 1 && first == '0':
		r.failf("a number with a leading zero")
	case n > most:
		r.failf("%d is above %d", n, most)
	default:
		return n
	}
	return 0
}

// yes reads the value true, the only one that a flag may have.
func (r *jsonReader) yes() bool {
	const word = "true"
	if r.err == nil && len(r.text)-r.at >= len(word) && string(r.text[r.at:r.at+len(word)]) == word {
		r.at += len(word)
		return true
	}
	r.failf("want true")
	return false
}

// time reads [seconds, nanoseconds].
func (r *jsonReader) time() Timespec {
	r.expect('[')
	sec := r.int(math.MinInt64, math.MaxInt64)
	r.expect(',')
	nsec := r.uint(1e9 - 1)
	r.expect(']')
	return Timespec{Sec: sec, Nsec: uint32(nsec)}
}

// device reads [major, minor].
func (r *jsonReader) device() Device {
	r.expect('[')
	major := r.uint(math.MaxUint32)
	r.expect(',')
	minor := r.uint(math.MaxUint32)
	r.expect(']')
	return Device{Major: uint32(major), Minor: uint32(minor)}
}

// mode reads four octal digits, as a string.
func (r *jsonReader) mode() uint32 {
	digits := r.bytes()
	mode := uint32(0)
	for _, c := range digits {
		if c < '0' || c > '7' {
			r.failf("%q is no mode", digits)
			return 0
		}
		mode = mode<<3 | uint32(c-'0')
	}
	if len(digits) != 4 {
		r.failf("%q is no mode", digits)
	}
	return mode
}

// extents reads [[offset, length, "hash"], …] of one line.
func (r *jsonReader) extents() (list []Extent) {
	r.array(func() {
		var e Extent
		r.expect('[')
		e.Offset = r.int(0, math.MaxInt64)
		r.expect(',')
		e.Len = r.int(1, maxContent)
		r.expect(',')
		r.hex((*[32]byte)(&e.Hash))
		r.expect(']')
		list = append(list, e)
	})
	if len(list) == 0 || len(list) > extentsPerLine {
		r.failf("%d extents in one line, want 1 to %d", len(list), extentsPerLine)
	}
	return list
}

// xattrs reads [{"name": …, "value": …}, …].
func (r *jsonReader) xattrs() (list []Xattr) {
	r.array(func() {
		var x Xattr
		seen := fields(0)
		r.object(func(name []byte) {
			switch string(name) {
			case "name":
				x.Name = seen.string(r, fieldName)
			case "name64":
				x.Name = seen.base64(r, fieldName)
			case "value":
				x.Value = seen.string(r, fieldValue)
			case "value64":
				x.Value = seen.base64(r, fieldValue)
			default:
				r.failf("unknown field %q", name)
			}
		})
		if seen != fieldName|fieldValue {
			r.failf("an extended attribute without name or value")
		}
		list = append(list, x)
	})
	if len(list) == 0 {
		r.failf("an empty list of extended attributes")
	}
	return list
}

// fields is a set of fields of a JSON object.
type fields uint64

// The fields of all lines. A string and its base64 form are one.
const (
	fieldPart fields = 1 << iota
	fieldStored
	fieldRaw
	fieldTail
	fieldTailDigest
	fieldContent
	fieldOffset
	fieldLength
	fieldPath
	fieldType
	fieldMode
	fieldUID
	fieldGID
	fieldSize
	fieldMtime
	fieldCtime
	fieldInode
	fieldNlink
	fieldRdev
	fieldTarget
	fieldXattrs
	fieldData
	fieldGroup
	fieldChanged
	fieldMore
	fieldGone
	fieldForget
	fieldRemoved
	fieldEnd
	fieldName
	fieldValue
	fieldNumber
	fieldDirectory
	fieldRecord
	fieldDirectories
	fieldInodes
	fieldGeneration
	fieldTime
	fieldSource
	fieldBase
	fieldKind
	fieldPrevious
	fieldProgram

	headerFields  = fieldKind | fieldNumber | fieldTime | fieldSource | fieldBase | fieldPrevious | fieldProgram
	partFields    = fieldPart | fieldStored | fieldRaw | fieldTail | fieldTailDigest
	contentFields = fieldContent | fieldPart | fieldOffset | fieldLength
	givenFields   = fieldDirectories | fieldInodes
	entryFields   = fieldPath | fieldType | fieldMode | fieldUID | fieldGID | fieldSize | fieldMtime | fieldCtime | fieldInode | fieldNlink
	entryOptional = fieldRdev | fieldTarget | fieldXattrs | fieldData | fieldGroup | fieldChanged | fieldNumber | fieldDirectory

	generationFields = fieldGeneration | fieldTime | fieldSource | fieldName | fieldBase
)

// add notes that a field was given, which it may be only once.
func (f *fields) add(r *jsonReader, field fields) {
	if *f&field != 0 {
		r.failf("a field is given twice")
	}
	*f |= field
}

func (f *fields) string(r *jsonReader, field fields) string {
	f.add(r, field)
	return r.string()
}

func (f *fields) base64(r *jsonReader, field fields) string {
	f.add(r, field)
	return r.base64()
}

// jsonLine holds any line but the header, as JSON spells it.
type jsonLine struct {
	seen    fields
	part    Part
	content Content
	entry   Entry    // of an entry line, with the extents of that line
	more    []Extent // of a "more" line
	gone    string
	forget  uint64
	removed Digest
	record  uint64 // of a content line
	given   Given
	header  Header // of a generation line
	end     Counts
}

// parse reads a line, which has no space between its tokens: nobody writes any, and a
// gigabyte of it would take hardly a byte. It keeps nothing of text.
func (j *jsonLine) parse(text []byte) error {
	*j = jsonLine{}
	r := jsonReader{text: bytes.TrimSuffix(text, []byte("\n"))}
	r.object(func(name []byte) { j.field(&r, name) })
	return r.end()
}

func (j *jsonLine) field(r *jsonReader, name []byte) {
	e, a := &j.entry, &j.entry.Attr
	switch string(name) {
	case "part":
		j.seen.add(r, fieldPart)
		r.hex((*[32]byte)(&j.part.Name))
	case "stored":
		j.seen.add(r, fieldStored)
		j.part.Stored = r.int(1, math.MaxInt64)
	case "raw":
		j.seen.add(r, fieldRaw)
		j.part.Raw = r.int(1, math.MaxInt64)
	case "tail":
		j.seen.add(r, fieldTail)
		j.part.TailStored = r.int(1, math.MaxInt64)
	case "tail_digest":
		j.seen.add(r, fieldTailDigest)
		r.hex((*[32]byte)(&j.part.Tail))
	case "content":
		j.seen.add(r, fieldContent)
		r.hex((*[32]byte)(&j.content.Hash))
	case "offset":
		j.seen.add(r, fieldOffset)
		j.content.RawOffset = r.int(0, math.MaxInt64)
	case "length":
		j.seen.add(r, fieldLength)
		j.content.RawLen = r.int(1, maxContent)
	case "path":
		e.Path = j.seen.string(r, fieldPath)
	case "path64":
		e.Path = j.seen.base64(r, fieldPath)
	case "type":
		j.seen.add(r, fieldType)
		if err := a.Type.UnmarshalText(r.bytes()); err != nil {
			r.failf("%v", err)
		}
	case "mode":
		j.seen.add(r, fieldMode)
		a.Mode = r.mode()
	case "uid":
		j.seen.add(r, fieldUID)
		a.UID = uint32(r.uint(math.MaxUint32))
	case "gid":
		j.seen.add(r, fieldGID)
		a.GID = uint32(r.uint(math.MaxUint32))
	case "size":
		j.seen.add(r, fieldSize)
		a.Size = r.int(0, math.MaxInt64)
	case "mtime":
		j.seen.add(r, fieldMtime)
		a.Mtime = r.time()
	case "ctime":
		j.seen.add(r, fieldCtime)
		a.Ctime = r.time()
	case "inode":
		j.seen.add(r, fieldInode)
		a.Inode = r.uint(math.MaxUint64)
	case "nlink":
		j.seen.add(r, fieldNlink)
		a.Nlink = uint32(r.uint(math.MaxUint32))
	case "rdev":
		j.seen.add(r, fieldRdev)
		a.Rdev = r.device()
	case "target":
		e.Target = j.seen.string(r, fieldTarget)
	case "target64":
		e.Target = j.seen.base64(r, fieldTarget)
	case "xattrs":
		j.seen.add(r, fieldXattrs)
		e.Xattrs = r.xattrs()
	case "data":
		j.seen.add(r, fieldData)
		e.Data = r.extents()
	case "group":
		if e.Group = j.seen.string(r, fieldGroup); e.Group == "" {
			r.failf("an empty name of a hard-link group")
		}
	case "changed":
		j.seen.add(r, fieldChanged)
		e.Changed = r.yes()
	default:
		j.rareField(r, name)
	}
}

func (j *jsonLine) rareField(r *jsonReader, name []byte) {
	switch string(name) {
	case "more":
		j.seen.add(r, fieldMore)
		j.more = r.extents()
	case "gone":
		j.gone = j.seen.string(r, fieldGone)
	case "gone64":
		j.gone = j.seen.base64(r, fieldGone)
	case "forget":
		j.seen.add(r, fieldForget)
		j.forget = r.uint(math.MaxInt64)
	case "removed":
		j.seen.add(r, fieldRemoved)
		r.hex((*[32]byte)(&j.removed))
	case "number":
		j.seen.add(r, fieldNumber)
		j.entry.Number = uint64(r.int(1, math.MaxInt64))
	case "directory":
		j.seen.add(r, fieldDirectory)
		j.entry.Directory = uint64(r.int(1, math.MaxInt64))
	case "record":
		j.seen.add(r, fieldRecord)
		j.record = uint64(r.int(1, math.MaxInt64))
	case "directories":
		j.seen.add(r, fieldDirectories)
		j.given.Directories = r.uint(math.MaxInt64)
	case "inodes":
		j.seen.add(r, fieldInodes)
		j.given.Inodes = r.uint(maxInodeNumber)
	case "generation":
		j.seen.add(r, fieldGeneration)
		j.header.Number = r.uint(math.MaxInt64)
	case "end":
		j.seen.add(r, fieldEnd)
		j.end = r.counts()
	default:
		j.header.field(r, &j.seen, name)
	}
}

// field reads a field that the header of a record and the line of a generation have.
func (h *Header) field(r *jsonReader, seen *fields, name []byte) {
	switch string(name) {
	case "time":
		seen.add(r, fieldTime)
		h.Time = r.moment()
	case "source":
		h.Source = seen.string(r, fieldSource)
	case "name":
		h.Name = seen.string(r, fieldName)
	case "base":
		seen.add(r, fieldBase)
		h.Base = r.uint(math.MaxInt64)
	default:
		r.failf("unknown field %q: written by a newer program?", name)
	}
}

// parseHeader reads the first line of a record.
func parseHeader(text []byte) (h Header, err error) {
	r := jsonReader{text: bytes.TrimSuffix(text, []byte("\n"))}
	seen := fields(0)
	r.object(func(name []byte) {
		switch string(name) {
		case "kind":
			h.Kind = Kind(seen.string(&r, fieldKind))
		case "number":
			seen.add(&r, fieldNumber)
			h.Number = r.uint(math.MaxInt64)
		case "previous":
			seen.add(&r, fieldPrevious)
			r.hex((*[32]byte)(&h.Previous))
		case "program":
			h.Program = seen.string(&r, fieldProgram)
		default:
			h.field(&r, &seen, name)
		}
	})
	if seen&headerFields != headerFields {
		r.failf("a header with too few fields")
	}
	return h, r.end()
}

// counts reads the value of an "end" line. The counts of removed parts and of
// generations may be absent: most records have none.
func (r *jsonReader) counts() (c Counts) {
	places := map[string]*int64{"parts": &c.Parts, "contents": &c.Contents, "entries": &c.Entries,
		"extents": &c.Extents, "gone": &c.Gone, "forgets": &c.Forgets, "removed": &c.Removed, "generations": &c.Generations}
	r.object(func(name []byte) {
		place := places[string(name)]
		if place == nil {
			r.failf("unknown or repeated count %q", name)
			return
		}
		delete(places, string(name))
		*place = r.int(0, math.MaxInt64)
	})
	delete(places, "removed")
	delete(places, "generations")
	if len(places) > 0 {
		r.failf("%d counts are missing", len(places))
	}
	return c
}

// line translates a line that is neither "more" nor "end". The entry is not
// complete before the extents of "more" lines are added to it.
func (j *jsonLine) line() (Line, error) {
	switch {
	case j.seen == partFields:
		p := j.part
		return Line{Part: &p}, p.validate()
	case j.seen&^fieldRecord == contentFields:
		if j.content.RawOffset%tarBlock != 0 {
			return Line{}, fmt.Errorf("content %s: its offset %d is no multiple of %d", j.content.Hash, j.content.RawOffset, tarBlock)
		}
		return Line{Content: &Placement{Part: j.part.Name, Content: j.content, Record: j.record}}, nil
	case j.seen&entryFields == entryFields && j.seen&^(entryFields|entryOptional) == 0:
		e := j.entry
		if device := e.Attr.Type == TypeChar || e.Attr.Type == TypeBlock; device != (j.seen&fieldRdev != 0) {
			return Line{}, fmt.Errorf("%.300q: a %s with a device number or without one", e.Path, e.Attr.Type)
		}
		return Line{Entry: &e}, nil
	case j.seen == fieldGone:
		return Line{Gone: j.gone}, validatePath(j.gone)
	case j.seen == fieldForget && j.forget > 0:
		return Line{Forget: j.forget}, nil
	case j.seen == fieldRemoved:
		removed := j.removed
		return Line{Removed: &removed}, nil
	case j.seen == givenFields:
		given := j.given
		return Line{Given: &given}, nil
	case j.seen == generationFields:
		h := j.header
		h.Kind = KindGeneration
		return Line{Generation: &h}, h.validate()
	}
	return Line{}, errors.New("a line of no known kind, or with too few or too many fields")
}
