package archive

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// MaxFrameRaw is the largest raw length of a frame. It is the window size that
// every zstd decoder is asked to support.
const MaxFrameRaw = 8 << 20

// decodeSlack is how much larger than its frame a decoder's buffer should be,
// so that it can copy in wide strides up to the very end.
const decodeSlack = 64

// frameRef says where a frame of a part lies, in both spaces, and how to verify it.
type frameRef struct {
	RawOffset    int64 // in the tar stream
	StoredOffset int64 // in the file
	RawLen       int   // 1 to MaxFrameRaw
	StoredLen    int   // 1 to maxFrameStored(RawLen)
	Digest       [32]byte
}

// rawEnd returns the raw offset of the first byte after the frame.
func (f frameRef) rawEnd() int64 { return f.RawOffset + int64(f.RawLen) }

// maxFrameStored is the largest stored length that a frame may have. Raw blocks
// cost 3 bytes for each 64 KiB or more, header and checksum up to 18.
func maxFrameStored(raw int) int { return raw + raw/256 + 64 }

// endFrame is the last frame of every part: the 1,024 zero bytes that end a tar
// stream. It is a constant, the same whatever compressor packs the part.
//
//	28 b5 2f fd  zstd magic number
//	64           single segment, content checksum, content size in 2 bytes
//	00 03        content size, less 256: 768
//	03 20 00     block header: last, RLE, 1024 bytes
//	00           the byte
//	cd ac 85 f0  content checksum: XXH64 of the content, the low 4 bytes
const endFrame = "\x28\xb5\x2f\xfd\x64\x00\x03\x03\x20\x00\x00\xcd\xac\x85\xf0"

// endFrameRaw is the raw length of endFrame.
const endFrameRaw = 2 * tarBlock

// newFrameDecoder returns a decoder of frames for n goroutines at a time; 0: as many
// as Go runs.
func newFrameDecoder(n int, more ...zstd.DOption) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, append(more, zstd.WithDecoderConcurrency(n), zstd.WithDecoderMaxMemory(MaxFrameRaw))...)
}

// BlockDecoder decodes zstd frames of small blocks, those of the index's tables. It
// is safe for concurrent use.
type BlockDecoder struct{ dec *zstd.Decoder }

// NewBlockDecoder returns a decoder for as many goroutines at a time as Go runs.
func NewBlockDecoder() (*BlockDecoder, error) {
	dec, err := newFrameDecoder(0, zstd.WithDecodeAllCapLimit(true))
	return &BlockDecoder{dec}, err
}

// Decode decodes a block into dst, whose capacity must suffice. It verifies the
// content checksum where there is one.
func (d *BlockDecoder) Decode(dst, stored []byte) ([]byte, error) {
	raw, err := d.dec.DecodeAll(stored, dst[:0])
	return raw, noEOF(err)
}

// decodeFrame decodes a stored frame of rawLen raw bytes, which is known from
// the part's tail, into dst, whose capacity must suffice. The content checksum
// is verified.
func decodeFrame(dec *zstd.Decoder, dst, stored []byte, rawLen int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return nil, fmt.Errorf("frame header: %w", noEOF(err))
	}
	switch {
	case h.Skippable || !h.HasFCS || !h.HasCheckSum || h.DictionaryID != 0:
		return nil, errors.New("frame header: not a frame with content size, content checksum and no dictionary")
	case h.FrameContentSize != uint64(rawLen):
		return nil, fmt.Errorf("frame header: content size %d, want %d", h.FrameContentSize, rawLen)
	case cap(dst) < rawLen:
		return nil, fmt.Errorf("frame of %d bytes does not fit a buffer of %d", rawLen, cap(dst))
	}
	raw, err := dec.DecodeAll(stored, dst[:0])
	if err != nil {
		return nil, fmt.Errorf("decode frame: %w", noEOF(err))
	}
	if len(raw) != rawLen {
		return nil, fmt.Errorf("decode frame: %d bytes, want %d", len(raw), rawLen)
	}
	return raw, nil
}

// noEOF keeps a decoder's io.EOF from being taken for the end of a stream.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
