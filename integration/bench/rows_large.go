package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/backupfs/backupfs/internal/measure"
	"golang.org/x/sys/unix"
)

const (
	largeFile   = "large" // the source, and the file in it
	manyFiles   = "many"  // the source, and the directory in it
	manyEntries = 100_000
	page        = 4096
)

// largeBytes is the length of the large file.
func (b *bench) largeBytes() int64 {
	if b.quick {
		return 512 * mib
	}
	return 2048 * mib
}

func (b *bench) largeName(what string) string {
	return fmt.Sprintf("%s of a file of %d MiB", what, b.largeBytes()/mib)
}

// needSource makes a directory by a function and backs it up as a source of its own.
func (b *bench) needSource(name string, fill func(dir string) error) error {
	return b.once(name, func() error {
		if _, err := os.Stat(b.repository()); err != nil {
			if _, _, err := b.product.Mkbackup("init", b.repository()); err != nil {
				return err
			}
		}
		dir := b.ext4(name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := fill(dir); err != nil {
			return err
		}
		_, _, err := b.product.Mkbackup("create", b.repository(), "--source", name, "--root", dir, "/")
		return err
	})
}

func (b *bench) ext4(name string) string { return filepath.Join(b.path("ext4"), name) }

func (b *bench) needLarge() error {
	return b.needSource(largeFile, func(dir string) error {
		return writeFile(filepath.Join(dir, largeFile), b.largeBytes())
	})
}

func (b *bench) needMany() error {
	return b.needSource(manyFiles, func(dir string) error {
		for i := range manyEntries {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%06d", i)), fmt.Appendln(nil, i), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeFile(path string, length int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, mib)
	if err := mixed(w, length); err != nil {
		return err
	}
	return w.Flush()
}

// mixed writes what a large file of many kinds of things holds, the same every
// time, in pieces of 256 KiB: of eight, five are text of some thousand words, one
// is a table of small numbers, one is noise, and one is half empty.
func mixed(w io.Writer, length int64) error {
	random := rand.NewChaCha8([32]byte{1})
	r := rand.New(random)
	words := vocabulary(r)
	piece := make([]byte, 0, 256<<10)
	for n := 0; length > 0; n++ {
		piece = piece[:0]
		switch n % 8 {
		case 3: // records of 16 bytes: a counter and a small number
			for i := uint64(0); len(piece) < cap(piece); i++ {
				piece = append(piece, fmt.Sprintf("%08d%08d", i, r.IntN(1000))...)
			}
		case 5:
			piece = piece[:cap(piece)]
			if _, err := random.Read(piece); err != nil {
				return err
			}
		case 7:
			piece = append(text(piece, cap(piece)/2, r, words), make([]byte, cap(piece)/2)...)
		default:
			piece = text(piece, cap(piece), r, words)
		}
		piece = piece[:min(int64(len(piece)), length)]
		length -= int64(len(piece))
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// vocabulary makes 8,192 words of 2 to 11 letters.
func vocabulary(r *rand.Rand) [][]byte {
	words := make([][]byte, 8192)
	for i := range words {
		for range 2 + r.IntN(10) {
			words[i] = append(words[i], byte('a'+r.IntN(26)))
		}
		words[i] = append(words[i], ' ')
	}
	return words
}

// text appends words to b until it has exactly the given length. Some words are
// far more frequent than others, as in any language.
func text(b []byte, length int, r *rand.Rand, words [][]byte) []byte {
	for len(b) < length {
		b = append(b, words[r.IntN(1+r.IntN(1+r.IntN(len(words))))]...)
	}
	return b[:length]
}

const (
	catLarge = `cat "$1/large" >/dev/null`
	list     = `ls -l "$1/" | wc -l`
)

func (b *bench) rowCat() error {
	if err := b.needLarge(); err != nil {
		return err
	}
	dir := b.path("large-zstd")
	defer os.RemoveAll(dir)
	if _, err := measure.Run(measure.Shell(`mkdir "$2"; zstd -q -T2 -3 "$1/large" -o "$2/large.zst"`, b.ext4(largeFile), dir)); err != nil {
		return err
	}
	costs, err := measure.Alternate(b.repeat(),
		b.reading(catLarge).cold(b.openBackupfs(largeFile)),
		b.reading(`zstd -dc "$1/large.zst" >/dev/null`).dropped(dir))
	if err != nil {
		return err
	}
	b.ratio(b.largeName("cat"), costs[0], "zstd -dc", costs[1], 1.0)
	return nil
}

// rowRandom reads a page here and there in the large file.
func (b *bench) rowRandom() error {
	if err := b.needLarge(); err != nil {
		return err
	}
	restic := b.path("restic-large")
	defer os.RemoveAll(restic)
	if _, err := resticBackup(restic, b.ext4(largeFile)); err != nil {
		return err
	}
	ours, err := b.randomReads(b.openBackupfs(largeFile))
	if err != nil {
		return err
	}
	theirs, err := b.randomReads(b.openRestic(restic, b.ext4(largeFile)))
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s, cold, p50 of %d", b.largeName("4 KiB"), randomCount)
	cold := measure.Duration(measure.Median(ours.cold))
	b.table.Limit(what, cold, 0.001)
	b.table.Ratio(what, cold, "restic mount", measure.Duration(measure.Median(theirs.cold)), 0.1)
	b.table.Limit("- the same, of a frame just read", measure.Duration(measure.Median(ours.near)), 0.0001)
	return nil
}

// randomCount is how many pages are read at random.
const randomCount = 200

// latencies are of single reads of a page.
type latencies struct {
	cold []time.Duration // each in a MiB of its own
	near []time.Duration // each two pages after a cold one, and right after it
}

func (b *bench) randomReads(opener opener) (l latencies, err error) {
	err = open(opener, func(m *mount) error {
		l, err = randomPages(filepath.Join(m.tree, largeFile), true)
		return err
	})
	return l, err
}

// randomPages reads pages of a file, as a database does: without read-ahead.
func randomPages(path string, near bool) (l latencies, err error) {
	f, err := os.Open(path)
	if err != nil {
		return l, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return l, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return l, fmt.Errorf("advise %s: %w", path, err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	buffer := make([]byte, page)
	for _, i := range r.Perm(int(info.Size() / mib))[:randomCount] {
		at := int64(i)*mib + r.Int64N(mib/page-2)*page
		took, err := readAt(f, buffer, at)
		if err != nil {
			return l, err
		}
		l.cold = append(l.cold, took)
		if !near {
			continue
		}
		if took, err = readAt(f, buffer, at+2*page); err != nil {
			return l, err
		}
		l.near = append(l.near, took)
	}
	return l, nil
}

func readAt(f *os.File, buffer []byte, at int64) (time.Duration, error) {
	began := time.Now()
	_, err := f.ReadAt(buffer, at)
	return time.Since(began), err
}

// rowFrame counts what the daemon reads from parts for a page that is read.
func (b *bench) rowFrame() error {
	if err := b.needLarge(); err != nil {
		return err
	}
	var reads []partRead
	err := open(b.openBackupfs(largeFile), func(m *mount) (err error) {
		reads, err = traceParts(m.pids[0], b.path("trace"), func() error {
			_, err := randomPages(filepath.Join(m.tree, largeFile), false)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	count, err := countFrames(reads)
	if err != nil {
		return err
	}
	// A page that lies across the edge of two frames needs both.
	frames := measure.Figure{Value: float64(count.frames) / randomCount, Unit: measure.Count}
	b.table.Limit("frames read from parts for 4 KiB, cold (strace)", frames, 1.05)
	b.table.Note("- bytes of them", measure.Size(count.bytes/randomCount))
	b.table.Note("- bytes of tails, once for each part", measure.Size(count.tailBytes))
	return nil
}

func (b *bench) rowList() error {
	if err := b.needMany(); err != nil {
		return err
	}
	r := b.reading(list)
	costs, err := measure.Alternate(b.repeat(), r.cold(b.openBackupfs(manyFiles)), r.warm(b.ext4(manyFiles)))
	if err != nil {
		return err
	}
	b.ratio("ls -l of 100,000 entries, cold", costs[0], "native, warm", costs[1], 3.0)
	return nil
}

// readLarge does to the sources of this file, in a mount, what their rows do.
func (b *bench) readLarge(mounted string) error {
	large := filepath.Join(mounted, largeFile, "latest")
	if _, err := b.reading(catLarge).run(large); err != nil {
		return err
	}
	if _, err := randomPages(filepath.Join(large, largeFile), true); err != nil {
		return err
	}
	_, err := b.reading(list).run(filepath.Join(mounted, manyFiles, "latest"))
	return err
}
