package index

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/backupfs/backupfs/archive"
	"github.com/dgraph-io/badger/v4/fb"
)

const (
	blockRaw     = 4 << 10            // bytes of a block, unless its only entry is longer
	maxBlockRaw  = maxValue + 4<<10   // bytes of any block
	cachedBlocks = 8 << 20 / blockRaw // decoded blocks that an open index keeps
)

// blockCache keeps decoded blocks: in each slot the one that was decoded last of
// those that share it. It is safe for concurrent use.
type blockCache [cachedBlocks]atomic.Pointer[decodedBlock]

// decodedBlock is a block without its compression. It never changes.
type decodedBlock struct {
	table  *mappedTable
	number int
	data   []byte
}

// block returns a block, decoded. Blocks of a table that follow each other do not
// share a slot.
func (t *mappedTable) block(number int) []byte {
	slot := &t.cache[(t.firstSlot+number)%cachedBlocks]
	if b := slot.Load(); b != nil && b.table == t && b.number == number {
		return b.data
	}
	data := t.decode(number)
	if len(data) <= blockRaw {
		slot.Store(&decodedBlock{table: t, number: number, data: data})
	}
	return data
}

// blockScratch is memory for decoding a block.
type blockScratch struct {
	stored []byte
	raw    [maxBlockRaw]byte
}

var blockScratches = sync.Pool{New: func() any { return new(blockScratch) }}

// decode reads a block from mapped memory and decodes it.
func (t *mappedTable) decode(number int) []byte {
	var b fb.BlockOffset
	t.index.Offsets(&b, number)
	s := blockScratches.Get().(*blockScratch)
	defer blockScratches.Put(s)
	s.stored = append(s.stored[:0], t.data[b.Offset():][:b.Len()]...) // no decoder meets memory that vanishes
	raw, err := archive.DecodeBlock(s.raw[:0], s.stored)
	if err != nil {
		panic(fmt.Errorf("block %d: %w", number, err))
	}
	return bytes.Clone(raw)
}
