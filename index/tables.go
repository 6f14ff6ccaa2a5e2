package index

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/internal/disk"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/zeebo/blake3"
	"google.golang.org/protobuf/proto"
)

// An index directory is a badger directory at rest: a MANIFEST and tables, no
// value log and no memtable. badger could read it; this package does so itself, and
// writes it with badger's table builder. badger's own way to write maps every file that it is
// going to write into memory, and a full disk is then a SIGBUS, which kills the
// process. Written with write(2), it is an error like any other.

const (
	manifestName = "MANIFEST"
	compression  = options.ZSTD // of the blocks of tables
)

// tableFile is one table of an index directory, as the seal lists it.
type tableFile struct {
	ID     uint64       `json:"id"`     // badger's number of the table
	Level  int          `json:"level"`  // badger's level, which is that of its run: 1 to maxLevels-1
	Stored int64        `json:"stored"` // bytes
	BLAKE3 archive.Hash `json:"blake3"` // of all of them
}

// name returns the name of the file.
func (t tableFile) name() string { return table.IDToFilename(t.ID) }

// newTableBuilder returns a builder for a table of about so many bytes of keys and
// values. Blocks, and what they are compressed to, take two and a half times as much
// until it is closed; badger's builder begins with twice the size that it is given.
func newTableBuilder(raw int) *table.Builder {
	return table.NewTableBuilder(table.Options{TableSize: uint64(raw + raw/4), BlockSize: blockRaw, BloomFalsePositive: 0.01,
		Compression: compression, ZSTDCompressionLevel: 1})
}

// writeTable writes what was added to b as a table to stable storage.
func writeTable(fsys disk.FS, dir string, b *table.Builder, id uint64) (tableFile, error) {
	data := b.Finish()
	b.Close()
	t := tableFile{ID: id, Stored: int64(len(data)), BLAKE3: blake3.Sum256(data)}
	return t, writeFile(fsys, filepath.Join(dir, t.name()), data)
}

// writeFile makes a file with the given bytes on stable storage.
func writeFile(fsys disk.FS, name string, data []byte) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return f.Close()
}

// manifest returns the bytes of a MANIFEST that names the given tables: magic
// and version, then one change set behind its length and CRC.
func manifest(tables []tableFile) ([]byte, error) {
	const magic, version = "Bdgr", 8
	set := &pb.ManifestChangeSet{}
	for _, t := range tables {
		set.Changes = append(set.Changes, &pb.ManifestChange{Id: t.ID, Op: pb.ManifestChange_CREATE, Level: uint32(t.Level), Compression: uint32(compression)})
	}
	changes, err := proto.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	b := binary.BigEndian.AppendUint32([]byte(magic), version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(changes)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(changes, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, changes...), nil
}

// writeManifest makes dir the badger database of the given tables.
func writeManifest(fsys disk.FS, dir string, tables []tableFile) (fileSeal, error) {
	b, err := manifest(tables)
	if err != nil {
		return fileSeal{}, err
	}
	return fileSeal{Stored: int64(len(b)), BLAKE3: blake3.Sum256(b)}, writeFile(fsys, filepath.Join(dir, manifestName), b)
}
