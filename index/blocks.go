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

// blockCache decodes blocks and keeps those that were decoded lately: in each slot
// the last one of those that share it. It is safe for concurrent use.
type blockCache struct {
	decoder *archive.BlockDecoder
	scratch sync.Pool // of *blockScratch
	slots   [cachedBlocks]atomic.Pointer[decodedBlock]
	busy    atomic.Bool   // something was decoded since the last release
	era     atomic.Uint64 // how often mapped memory was released
}

// decodedBlock is a block without its compression. It never changes.
type decodedBlock struct {
	table  *mappedTable
	number int
	data   []byte
}

// blockScratch is memory for decoding a block.
type blockScratch struct {
	stored []byte
	raw    [maxBlockRaw]byte
}

// block returns a block, decoded. Blocks of a table that follow each other do not
// share a slot.
func (t *mappedTable) block(number int) []byte {
	slot := &t.cache.slots[(t.firstSlot+number)%cachedBlocks]
	if b := slot.Load(); b != nil && b.table == t && b.number == number {
		return b.data
	}
	data := t.decode(number)
	if len(data) <= blockRaw {
		slot.Store(&decodedBlock{table: t, number: number, data: data})
	}
	return data
}

// decode reads a block from mapped memory and decodes it.
func (t *mappedTable) decode(number int) []byte {
	var b fb.BlockOffset
	t.index.Offsets(&b, number)
	c := t.cache
	c.busy.Store(true)
	s, ok := c.scratch.Get().(*blockScratch)
	if !ok {
		s = new(blockScratch)
	}
	defer c.scratch.Put(s)
	s.stored = append(s.stored[:0], t.data[b.Offset():][:b.Len()]...) // no decoder meets memory that vanishes
	raw, err := c.decoder.Decode(s.raw[:0], s.stored)
	if err != nil {
		panic(fmt.Errorf("block %d: %w", number, err))
	}
	return bytes.Clone(raw)
}

// release drops all blocks if none was decoded since it was called last: nobody
// reads the index then, or what is needed is soon there again.
func (c *blockCache) release() {
	if c.busy.Swap(false) {
		return
	}
	for i := range c.slots {
		if c.slots[i].Load() != nil {
			c.slots[i].Store(nil)
		}
	}
}
