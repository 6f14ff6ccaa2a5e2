package backup

import (
	"encoding/binary"
	"io"
	"math/bits"

	"github.com/backupfs/backupfs/archive"
)

// Content-defined chunking after FastCDC (Xia et al., USENIX ATC 2016): a chunk
// ends where a rolling "gear" hash of the last 64 bytes has zeros under a mask.
// Before the average length the mask is stricter, behind it laxer, so that
// lengths gather around the average. Inserted bytes move one boundary, not all.

// largeFile is the raw size from which a file is cut into chunks.
const largeFile = 1 << 20

// hugeFile is the raw size from which chunks are 16 times longer, so that the
// list of them stays short: 16 GiB.
const hugeFile = 16 << 30

type chunkSizes struct {
	least, average, most int // raw bytes; average is a power of two
}

func chunkSizesFor(size int64) chunkSizes {
	if size >= hugeFile {
		return chunkSizes{least: 256 << 10, average: 1 << 20, most: 4 << 20}
	}
	return chunkSizes{least: 16 << 10, average: 64 << 10, most: 256 << 10}
}

// gear maps a byte to 64 random bits. It is the same in every version: other
// values would cut unchanged files elsewhere and store them again.
var gear = makeGear()

func makeGear() (table [256]uint64) {
	for i := range table {
		digest := archive.HashOf([]byte{byte(i)})
		table[i] = binary.LittleEndian.Uint64(digest[:])
	}
	return table
}

// cut returns the length of the first chunk of data: all of it where it is short.
func (c chunkSizes) cut(data []byte) int {
	if len(data) <= c.least {
		return len(data)
	}
	data = data[:min(len(data), c.most)]
	width := bits.Len(uint(c.average)) - 1
	strict := ^uint64(0) << (64 - width - 2)
	lax := ^uint64(0) << (64 - width + 2)
	middle := min(len(data), c.average)
	hash := uint64(0)
	for i, b := range data[c.least:middle] {
		if hash = hash<<1 + gear[b]; hash&strict == 0 {
			return c.least + i + 1
		}
	}
	for i, b := range data[middle:] {
		if hash = hash<<1 + gear[b]; hash&lax == 0 {
			return middle + i + 1
		}
	}
	return len(data)
}

// chunker cuts what it reads. The buffer is reused by the next file.
type chunker struct {
	buffer []byte
}

// each calls yield with every chunk of the stream, in order. The chunk is valid
// until yield returns.
func (c *chunker) each(r io.Reader, sizes chunkSizes, yield func(chunk []byte) error) error {
	if need := 4 * sizes.most; len(c.buffer) < need {
		c.buffer = make([]byte, need)
	}
	start, end := 0, 0
	for eof := false; ; {
		if !eof && end-start < sizes.most {
			end = copy(c.buffer, c.buffer[start:end])
			start = 0
			n, err := io.ReadFull(r, c.buffer[end:])
			end += n
			eof = err == io.EOF || err == io.ErrUnexpectedEOF
			if err != nil && !eof {
				return err
			}
		}
		if start == end {
			return nil
		}
		length := sizes.cut(c.buffer[start:end])
		if err := yield(c.buffer[start : start+length]); err != nil {
			return err
		}
		start += length
	}
}
