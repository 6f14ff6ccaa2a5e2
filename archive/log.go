package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/backupfs/backupfs/internal/disk"
	"github.com/klauspost/compress/zstd"
)

const recordSuffix = ".jsonl.zst"

// RecordStoreName returns the name of a log record in its store:
// "log/000000000042.jsonl.zst".
func RecordStoreName(number uint64) string { return fmt.Sprintf("log/%012d%s", number, recordSuffix) }

// recordNumber returns the number of the record stored as name, which is at least 1.
func recordNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(strings.TrimPrefix(name, "log/"), recordSuffix)
	if !ok || len(digits) < 12 {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil && number > 0 && number <= maxRecord && RecordStoreName(number) == name
}

// Records returns the numbers of the records that are there, ascending.
func (r *Repository) Records() ([]uint64, error) {
	var numbers []uint64
	for name, err := range r.store.Names("log/") {
		if err != nil {
			return nil, fmt.Errorf("list the log: %w", err)
		}
		if number, ok := recordNumber(name); ok {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers) // names have more digits from 10^12 on
	return numbers, nil
}

// Last returns the number of the newest record, 0 where there is none.
func (r *Repository) Last() (uint64, error) {
	numbers, err := r.Records()
	if err != nil || len(numbers) == 0 {
		return 0, err
	}
	return numbers[len(numbers)-1], nil
}

// Checkpoint returns the newest checkpoint of those records, which are ascending; 0
// where none is one. A record whose header cannot be read is not taken for one.
func (r *Repository) Checkpoint(numbers []uint64) uint64 {
	for _, number := range slices.Backward(numbers) {
		if h, err := r.RecordHeader(number); err == nil && h.Kind == KindCheckpoint {
			return number
		}
	}
	return 0
}

// RemoveRecord removes a record that a checkpoint made needless.
func (r *Repository) RemoveRecord(number uint64) error {
	return r.store.Remove(RecordStoreName(number))
}

// NextRecord returns the least number above after that a record has; after+1 where
// there is none.
func (r *Repository) NextRecord(after uint64) (uint64, error) {
	numbers, err := r.Records()
	if err != nil {
		return 0, err
	}
	for _, number := range numbers {
		if number > after {
			return number, nil
		}
	}
	return after + 1, nil
}

// SettleRecord returns once a record that is there, and those before it, are on stable
// storage. Their writer may have died before they were. Whatever a crash of the machine
// must not leave behind without the record may be done then. It does nothing for the record
// that it was called for before, or that was committed here: by its stamp, for where an
// older copy of the log is put back another record gets the number.
func (r *Repository) SettleRecord(number uint64) error {
	stamp, err := r.RecordStamp(number)
	if last := r.settled.Load(); err == nil && last != nil && *last == stamp {
		return nil
	}
	if err := r.store.Settle(RecordStoreName(number)); err != nil {
		return err
	}
	r.settled.Store(&stamp)
	return nil
}

// RecordDigest returns the digest of a record's stored bytes, which the next
// record repeats.
func (r *Repository) RecordDigest(number uint64) (Digest, error) {
	object, err := r.store.Open(RecordStoreName(number))
	if err != nil {
		return Digest{}, fmt.Errorf("log record %d: %w", number, err)
	}
	defer object.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(object, 0, object.Size())); err != nil {
		return Digest{}, fmt.Errorf("log record %d: %w", number, err)
	}
	return Digest(sum.Sum(nil)), nil
}

// RecordStamp changes whenever somebody puts another file in the place of a record, or
// writes into it.
type RecordStamp struct {
	device, inode uint64
	stored        int64
	mtime         time.Time
}

// RecordStamp returns the stamp of a record, without reading it. The error wraps
// fs.ErrNotExist where there is none.
func (r *Repository) RecordStamp(number uint64) (RecordStamp, error) {
	info, err := os.Lstat(r.store.path(RecordStoreName(number)))
	if err != nil {
		return RecordStamp{}, fmt.Errorf("log record %d: %w", number, err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return RecordStamp{device: stat.Dev, inode: stat.Ino, stored: info.Size(), mtime: info.ModTime()}, nil
}

// RecordReader reads one record. It is used by one goroutine and must be closed.
type RecordReader struct {
	number uint64
	object io.Closer
	stored io.Reader // the record's bytes, which sum sees
	sum    hash.Hash
	zstd   *zstd.Decoder
	lines  *bufio.Reader
	long   []byte // a line that is longer than the buffer of lines
	line   int    // lines read so far
	header Header
	parsed jsonLine // the newest line
	ahead  bool     // it was not returned yet
	counts Counts
	ended  bool
}

// OpenRecord opens a record and reads its header.
func (r *Repository) OpenRecord(number uint64) (*RecordReader, error) {
	object, err := r.store.Open(RecordStoreName(number))
	if err != nil {
		return nil, fmt.Errorf("log record %d: %w", number, err)
	}
	rr, err := newRecordReader(number, object)
	if err != nil {
		object.Close()
		return nil, err
	}
	return rr, nil
}

func newRecordReader(number uint64, object Object) (*RecordReader, error) {
	return newStoredReader(number, io.NewSectionReader(object, 0, object.Size()), object)
}

// newStoredReader reads the header of a record. object is closed with the reader.
func newStoredReader(number uint64, stored io.Reader, object io.Closer) (*RecordReader, error) {
	rr := &RecordReader{number: number, object: object, sum: sha256.New()}
	rr.stored = io.TeeReader(bufio.NewReaderSize(stored, 128<<10), rr.sum)
	var err error
	rr.zstd, err = zstd.NewReader(rr.stored, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, rr.fail(err)
	}
	rr.lines = bufio.NewReaderSize(rr.zstd, 64<<10)
	if err := rr.readHeader(); err != nil {
		rr.zstd.Close()
		return nil, err
	}
	return rr, nil
}

func (rr *RecordReader) fail(err error) error {
	return fmt.Errorf("log record %d, line %d: %w", rr.number, rr.line, err)
}

// scan returns the next line, of at most limit bytes, valid until the next call.
func (rr *RecordReader) scan(limit int) ([]byte, error) {
	rr.line++
	rr.long = rr.long[:0]
	for {
		text, err := rr.lines.ReadSlice('\n')
		if len(rr.long)+len(text) > limit {
			return nil, rr.fail(fmt.Errorf("it is longer than %d KiB", limit>>10))
		}
		if err == nil && len(rr.long) == 0 {
			return text, nil
		}
		rr.long = append(roomFor(rr.long, len(text), limit), text...)
		switch {
		case err == nil:
			return rr.long, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, rr.fail(noEOF(err))
		}
	}
}

// roomFor returns a buffer that takes n bytes more, where it is to have limit at most. It
// grows twice only: the runtime cannot stop a goroutine that copies megabytes, and spins
// while a garbage collection waits for it.
func roomFor(buf []byte, n, limit int) []byte {
	const most = 1 << 20 // bytes of nearly all lines
	switch need := len(buf) + n; {
	case need <= cap(buf):
		return buf
	case need <= most:
		return append(make([]byte, 0, most), buf...)
	default:
		return append(make([]byte, 0, max(need, limit)), buf...)
	}
}

func (rr *RecordReader) readHeader() error {
	text, err := rr.scan(maxHeader)
	if err != nil {
		return err
	}
	if rr.header, err = parseHeader(text); err != nil {
		return rr.fail(err)
	}
	if rr.header.Number != rr.number {
		return rr.fail(fmt.Errorf("it calls itself record %d", rr.header.Number))
	}
	return rr.header.validate()
}

// Header returns the first line of the record.
func (rr *RecordReader) Header() Header { return rr.header }

// Next returns the next line of the body. It returns io.EOF once the whole
// record was read and its counts agree; only then was it whole.
func (rr *RecordReader) Next() (Line, error) {
	if rr.ended {
		return Line{}, io.EOF
	}
	if err := rr.next(); err != nil {
		return Line{}, err
	}
	if rr.parsed.seen == fieldEnd {
		return Line{}, rr.finish(rr.parsed.end)
	}
	line, err := rr.parsed.line()
	if err != nil {
		return Line{}, rr.fail(err)
	}
	if line.Entry != nil {
		if err := rr.completeEntry(line.Entry); err != nil {
			return Line{}, err
		}
	}
	if err := rr.header.Kind.allows(line); err != nil {
		return Line{}, rr.fail(err)
	}
	if line.Forget >= rr.header.Number {
		return Line{}, rr.fail(fmt.Errorf("it forgets a generation %d that was not there yet", line.Forget))
	}
	rr.counts.add(line)
	return line, nil
}

// next parses the next line, unless that was done ahead.
func (rr *RecordReader) next() error {
	if rr.ahead {
		rr.ahead = false
		return nil
	}
	text, err := rr.scan(maxLine)
	if err != nil {
		return err
	}
	if err := rr.parsed.parse(text); err != nil {
		return rr.fail(err)
	}
	return nil
}

// completeEntry appends the extents of the "more" lines that follow an entry. Those of a
// line are checked before the next one is read: lines that repeat each other would take
// next to no stored bytes, and memory without end.
func (rr *RecordReader) completeEntry(e *Entry) error {
	for checked := 0; len(e.Data) == checked+extentsPerLine; {
		if err := e.validateExtents(checked); err != nil {
			return rr.fail(err)
		}
		checked = len(e.Data)
		if err := rr.next(); err != nil {
			return err
		}
		if rr.parsed.seen != fieldMore {
			rr.ahead = true
			break
		}
		if e.Data = append(e.Data, rr.parsed.more...); len(e.Data) > maxExtents {
			return rr.fail(fmt.Errorf("%.300q: too many extents", e.Path))
		}
	}
	if err := e.validate(); err != nil {
		return rr.fail(err)
	}
	return nil
}

func (rr *RecordReader) finish(end Counts) error {
	if end != rr.counts {
		return rr.fail(fmt.Errorf("the record says that it has %+v, it has %+v", end, rr.counts))
	}
	switch _, err := rr.lines.ReadByte(); {
	case err == nil:
		return rr.fail(errors.New("lines after the last one"))
	case !errors.Is(err, io.EOF):
		return rr.fail(err)
	}
	if _, err := io.Copy(io.Discard, rr.stored); err != nil {
		return rr.fail(err)
	}
	rr.ended = true
	return io.EOF
}

// Digest returns the digest of the record's stored bytes. It is known once Next
// has returned io.EOF.
func (rr *RecordReader) Digest() (Digest, error) {
	if !rr.ended {
		return Digest{}, rr.fail(errors.New("its digest is not known before its end"))
	}
	return Digest(rr.sum.Sum(nil)), nil
}

// ReadRecord reads a record to its end, and returns its header and its digest.
func (r *Repository) ReadRecord(number uint64) (Header, Digest, error) {
	record, err := r.OpenRecord(number)
	if err != nil {
		return Header{}, Digest{}, err
	}
	defer record.Close()
	for err == nil {
		_, err = record.Next()
	}
	if !errors.Is(err, io.EOF) {
		return Header{}, Digest{}, err
	}
	digest, err := record.Digest()
	return record.Header(), digest, err
}

// RecordHeader returns the header of a record.
func (r *Repository) RecordHeader(number uint64) (Header, error) {
	record, err := r.OpenRecord(number)
	if err != nil {
		return Header{}, err
	}
	return record.Header(), record.Close()
}

// Close ends the reading.
func (rr *RecordReader) Close() error {
	rr.zstd.Close()
	return rr.object.Close()
}

// RecordDraft collects the lines of a record whose number is not known yet. It
// keeps them compressed in two unnamed files: the parts and contents in one,
// the changes in the other, so that a record can be committed again under
// another number when somebody else took the first. The two halves may be
// written by two goroutines at the same time. It must be discarded.
type RecordDraft struct {
	repository *Repository
	contents   *spool
	changes    *spool
}

// NewRecord starts a record.
func (r *Repository) NewRecord() (*RecordDraft, error) {
	contents, err := r.newSpool()
	if err != nil {
		return nil, err
	}
	changes, err := r.newSpool()
	if err != nil {
		contents.close()
		return nil, err
	}
	return &RecordDraft{repository: r, contents: contents, changes: changes}, nil
}

// AddPart adds a part that is on stable storage, and its contents.
func (d *RecordDraft) AddPart(p PublishedPart) error {
	if err := d.contents.write(Line{Part: &p.Part}); err != nil {
		return err
	}
	for _, c := range p.Contents {
		if c.RawLen > maxContent {
			return fmt.Errorf("part %s: a content of %d bytes, want at most %d", p.Part.Name, c.RawLen, maxContent)
		}
		if err := d.contents.write(Line{Content: &Placement{Part: p.Part.Name, Content: c}}); err != nil {
			return err
		}
	}
	return nil
}

// Add adds any line: a part or a content, which come before all others in the
// record, or else what the record changes.
// Entries and gone paths come in path order: depth first, a directory before
// what is in it, names in the order of their bytes.
func (d *RecordDraft) Add(l Line) error {
	if l.Part != nil || l.Content != nil {
		return d.contents.write(l)
	}
	if l.Entry != nil {
		if err := l.Entry.validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrEntry, err)
		}
	}
	if l.Gone != "" {
		if err := validatePath(l.Gone); err != nil {
			return err
		}
	}
	return d.changes.write(l)
}

// ErrEntry says that an entry cannot be in a log record: its name is too long, say, or
// it has too many extended attributes. The record is as it was before.
var ErrEntry = errors.New("it cannot be stored")

// Reset drops the changes, not the parts: to compare again against another base.
func (d *RecordDraft) Reset() error {
	changes, err := d.repository.newSpool()
	if err != nil {
		return err
	}
	d.changes.close()
	d.changes = changes
	return nil
}

// Counts returns how many lines of each kind were added so far.
func (d *RecordDraft) Counts() Counts {
	c, changes := d.contents.counts, d.changes.counts
	c.Entries, c.Extents, c.Gone, c.Forgets, c.Removed = changes.Entries, changes.Extents, changes.Gone, changes.Forgets, changes.Removed
	c.Generations = changes.Generations
	return c
}

// Commit publishes the record as number h.Number. The error wraps fs.ErrExist
// when somebody else took that number: give it another header and commit again.
// It returns the digest and the stored bytes of the record. Where the error is that of
// Draft.Publish, the digest is there, too: the record may be visible all the same.
func (d *RecordDraft) Commit(h Header) (digest Digest, stored int64, err error) {
	if err := h.validate(); err != nil {
		return Digest{}, 0, err
	}
	if d.changes.counts.Removed > 0 && h.Kind != KindCompaction && h.Kind != KindCheckpoint {
		return Digest{}, 0, fmt.Errorf("log record %d: only a compaction removes parts", h.Number)
	}
	if d.changes.counts.Generations > 0 && h.Kind != KindCheckpoint {
		return Digest{}, 0, fmt.Errorf("log record %d: only a checkpoint states generations", h.Number)
	}
	draft, err := d.repository.store.Create()
	if err != nil {
		return Digest{}, 0, fmt.Errorf("log record %d: %w", h.Number, err)
	}
	defer draft.Discard()
	sum := sha256.New()
	record, err := d.stored(h)
	if err == nil {
		stored, err = io.Copy(io.MultiWriter(draft, sum), record)
	}
	if err != nil {
		return Digest{}, 0, fmt.Errorf("log record %d: %w", h.Number, err)
	}
	digest = Digest(sum.Sum(nil))
	if err := draft.Publish(RecordStoreName(h.Number)); err != nil {
		return digest, 0, fmt.Errorf("log record %d: %w", h.Number, err)
	}
	if stamp, err := d.repository.RecordStamp(h.Number); err == nil {
		d.repository.settled.Store(&stamp)
	}
	return digest, stored, nil
}

// Read returns a reader of the record as Commit would publish it, digest included.
// It must be closed before anything else is done with the draft.
func (d *RecordDraft) Read(h Header) (*RecordReader, error) {
	stored, err := d.stored(h)
	if err != nil {
		return nil, err
	}
	return newStoredReader(h.Number, stored, io.NopCloser(nil))
}

// Written returns how many stored bytes of the record there are so far, which are fewer
// than it would have: the last lines are not compressed yet. It must not be called while
// lines are added.
func (d *RecordDraft) Written() (stored int64, err error) {
	for _, s := range [...]*spool{d.contents, d.changes} {
		end, err := s.file.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, fmt.Errorf("log: %w", err)
		}
		stored += end
	}
	return stored, nil
}

// Stored returns how many stored bytes the record would have.
func (d *RecordDraft) Stored(h Header) (int64, error) {
	record, err := d.stored(h)
	if err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, record)
}

// stored returns the bytes of the whole record: the header, what is in both spools and the
// counts, each in zstd streams of its own.
func (d *RecordDraft) stored(h Header) (io.Reader, error) {
	h.Time = h.Time.UTC()
	first, err := compressedJSON(h)
	if err != nil {
		return nil, err
	}
	last, err := compressedJSON(struct {
		End Counts `json:"end"`
	}{d.Counts()})
	if err != nil {
		return nil, err
	}
	contents, err := d.contents.reader()
	if err != nil {
		return nil, err
	}
	changes, err := d.changes.reader()
	if err != nil {
		return nil, err
	}
	return io.MultiReader(bytes.NewReader(first), contents, changes, bytes.NewReader(last)), nil
}

func compressedJSON(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer encoder.Close()
	return encoder.EncodeAll(append(line, '\n'), nil), nil
}

// Discard drops what was written.
func (d *RecordDraft) Discard() {
	d.contents.close()
	d.changes.close()
}

// spool is an unnamed file of compressed lines, in one zstd stream or, where it was
// written to again after it was read, in several. Its first error stays.
type spool struct {
	file   disk.File
	zstd   *zstd.Encoder
	ended  bool // the stream is: the next line begins another one
	buffer []byte
	counts Counts
	err    error
}

func (r *Repository) newSpool() (*spool, error) {
	file, err := r.unnamedFile()
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	encoder, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		file.Close()
		return nil, err
	}
	return &spool{file: file, zstd: encoder}, nil
}

func (s *spool) write(l Line) error {
	if s.err != nil {
		return s.err
	}
	if s.ended {
		s.zstd.Reset(s.file)
		s.ended = false
	}
	b := s.buffer[:0]
	switch {
	case l.Part != nil:
		b = appendPart(b, *l.Part)
	case l.Content != nil:
		b = appendContent(b, *l.Content)
	case l.Entry != nil:
		b = appendEntry(b, *l.Entry)
	case l.Gone != "":
		b = appendGone(b, l.Gone)
	case l.Forget != 0:
		b = appendForget(b, l.Forget)
	case l.Removed != nil:
		b = appendRemoved(b, *l.Removed)
	case l.Given != nil:
		b = appendGiven(b, *l.Given)
	case l.Generation != nil:
		b = appendGeneration(b, *l.Generation)
	}
	s.buffer = b
	limit := maxLine
	if l.Entry != nil && l.Entry.Number == 0 { // a checkpoint must have room for it, too
		limit = maxEntryLine
	}
	if len(b) > limit {
		for line := range bytes.Lines(b) {
			if len(line) > limit {
				return fmt.Errorf("%w: its line in the log would have %d bytes, want at most %d", ErrEntry, len(line), limit)
			}
		}
	}
	s.counts.add(l)
	if _, err := s.zstd.Write(b); err != nil {
		s.err = fmt.Errorf("log: %w", err)
	}
	return s.err
}

// reader returns the compressed lines written so far.
func (s *spool) reader() (io.Reader, error) {
	if s.err != nil {
		return nil, s.err
	}
	if !s.ended {
		if err := s.zstd.Close(); err != nil {
			s.err = fmt.Errorf("log: %w", err)
			return nil, s.err
		}
		s.ended = true
	}
	end, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return io.NewSectionReader(s.file, 0, end), nil
}

func (s *spool) close() {
	_ = s.zstd.Close() // what it could not write is not needed any more
	s.file.Close()
}
