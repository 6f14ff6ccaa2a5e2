package main

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/backupfs/backupfs/internal/measure"
)

const (
	mib = 1 << 20
	// cacheBytes is the default of backupfs --cache-size.
	cacheBytes = 256 * mib
	// memoryBytes is what backupfs may hold beside its cache.
	memoryBytes = 64 * mib
	// createBytes is what create may hold.
	createBytes = 256 * mib
)

// Scripts print how much they read; see reading.

// find is a walk over all names and their attributes.
const find = `find "$1/" -printf '%s %p\n' | wc -l`

// tarAll reads everything. GNU tar sees where its output is /dev/null, and then
// reads no content.
const tarAll = `tar -cf - -C "$1" . | wc -c`

func (b *bench) rowCreate() error {
	if err := b.warm(); err != nil {
		return err
	}
	costs, err := measure.Alternate(b.repeat(), b.create, b.makeTarZstd)
	if err != nil {
		return err
	}
	b.made["tar.zst"] = true
	restic, err := resticBackup(b.path("restic"), b.src)
	if err != nil {
		return err
	}
	b.made["restic"] = true
	b.ratio("first create", costs[0], "tar + zstd -T2 -3", costs[1], 1.0)
	b.ratio("first create", costs[0], "restic backup", restic, 0.45)
	b.table.Limit("peak memory of create (VmHWM)", measure.Size(costs[0].Peak), createBytes)
	return nil
}

func (b *bench) rowSize() error {
	if err := errors.Join(b.needRepository(), b.needTarZstd(), b.needRestic()); err != nil {
		return err
	}
	info, err := os.Stat(b.tarZstd())
	if err != nil {
		return err
	}
	restic, err := measure.DiskUse(b.path("restic"))
	if err != nil {
		return err
	}
	const what = "repository after it"
	ours := measure.Size(b.treeSize.all)
	b.table.Ratio(what, ours, ".tar.zst, level 3", measure.Size(info.Size()), 1.08)
	b.table.Ratio(what, ours, "restic", measure.Size(restic), 0.85)
	if b.withSlowPeers() {
		borg, err := b.borgSize()
		if err != nil {
			return err
		}
		b.table.Ratio(what, ours, "borg, zstd,3", measure.Size(borg), 0.85)
	}
	b.table.Note("- of it parts", measure.Size(b.treeSize.parts))
	b.table.Note("- of it log", measure.Size(b.treeSize.log))
	b.table.Note("- of it index", measure.Size(b.treeSize.index))
	return nil
}

func (b *bench) rowUnchanged() error {
	if err := errors.Join(b.needRepository(), b.needRestic()); err != nil {
		return err
	}
	walk := b.reading(find)
	costs, err := measure.Alternate(b.repeat(),
		walk.warm(b.src),
		b.createAgain,
		func() (measure.Cost, error) { return resticAgain(b.path("restic"), b.src) })
	if err != nil {
		return err
	}
	b.ratio("create, nothing changed", costs[1], "find -printf, the source", costs[0], 2.0)
	b.ratio("create, nothing changed", costs[1], "restic backup", costs[2], 0.25)
	return nil
}

func (b *bench) rowFind() error {
	if err := errors.Join(b.needRepository(), b.needSquashfs()); err != nil {
		return err
	}
	var again []measure.Cost
	r := b.reading(find)
	costs, err := measure.Alternate(b.repeat(),
		r.coldAndAgain(b.openBackupfs(""), &again), r.cold(b.openSquashfs), r.warm(b.src))
	if err != nil {
		return err
	}
	b.ratio("find -printf, cold", costs[0], "kernel squashfs", costs[1], 1.0)
	if err := b.squashfuse("find -printf, cold", r, costs[0]); err != nil {
		return err
	}
	b.ratio("find -printf, second time", measure.MedianCost(again), "native, warm", costs[2], 1.5)
	return nil
}

// squashfuse adds a comparison with squashfuse, for which there is no target.
func (b *bench) squashfuse(what string, r reading, ours measure.Cost) error {
	if !b.withSlowPeers() {
		return nil
	}
	cost, err := r.cold(b.openSquashfuse)()
	if err == nil {
		b.ratio(what, ours, "squashfuse", cost, 0)
	}
	return err
}

func (b *bench) rowTar() error {
	if err := errors.Join(b.needRepository(), b.needSquashfs()); err != nil {
		return err
	}
	var again []measure.Cost
	r := b.reading(tarAll)
	costs, err := measure.Alternate(b.repeat(),
		r.coldAndAgain(b.openBackupfs(""), &again), r.cold(b.openSquashfs), r.warm(b.src))
	if err != nil {
		return err
	}
	b.ratio("tar of everything, cold", costs[0], "kernel squashfs", costs[1], 0.6)
	if err := b.squashfuse("tar of everything, cold", r, costs[0]); err != nil {
		return err
	}
	if b.withResticMount() {
		if err := b.needRestic(); err != nil {
			return err
		}
		restic, err := r.cold(b.openRestic(b.path("restic"), b.src))()
		if err != nil {
			return err
		}
		b.ratio("tar of everything, cold", costs[0], "restic mount", restic, 0.15)
	}
	b.ratio("tar of everything, second time", measure.MedianCost(again), "native, warm", costs[2], 1.2)
	return nil
}

func (b *bench) rowCopy() error {
	if err := errors.Join(b.needRepository(), b.needTarZstd(), b.needRestic()); err != nil {
		return err
	}
	fromMount := b.reading(`cp -a "$1/." "$2"`)
	fromArchive := b.reading(`zstd -dc "$1/tree.tar.zst" | tar -xpf - -C "$2"`)
	fromArchive.work = fromMount.work
	var again []measure.Cost
	costs, err := measure.Alternate(b.repeat(), fromMount.coldAndAgain(b.openBackupfs(""), &again),
		fromArchive.dropped(filepath.Dir(b.tarZstd())), fromMount.warm(b.src))
	if err != nil {
		return err
	}
	restic, err := b.resticRestore(fromMount)
	if err != nil {
		return err
	}
	b.ratio("cp -a to a tmpfs, cold", costs[0], "zstd -dc + tar x", costs[1], 0.8)
	b.ratio("cp -a to a tmpfs, cold", costs[0], "restic restore", restic, 1.0)
	b.ratio("- second time, all of it in the page cache", measure.MedianCost(again), "zstd -dc + tar x", costs[1], 0)
	b.ratio("- cp -a of the tree itself, warm", costs[2], "zstd -dc + tar x", costs[1], 0)
	return nil
}

// resticRestore restores the snapshot of the tree; the same must come out as of
// the other restores.
func (b *bench) resticRestore(other reading) (measure.Cost, error) {
	if err := measure.DropCaches(); err != nil {
		return measure.Cost{}, err
	}
	// The program is warm after it.
	if _, err := measure.Run(exec.Command("restic", "-q", "-r", b.path("restic"), "snapshots")); err != nil {
		return measure.Cost{}, err
	}
	restore := b.reading(`restic -q -r "$1" restore latest --target "$2"`)
	cost, work, err := restore.once(b.path("restic"))
	if err != nil {
		return cost, err
	}
	return cost, other.did(work, "restic")
}

func (b *bench) rowRsync() error {
	if err := b.needRepository(); err != nil {
		return err
	}
	var again []measure.Cost
	r := b.reading(`rsync -a "$1/" "$2/"`)
	costs, err := measure.Alternate(b.repeat(), r.coldAndAgain(b.openBackupfs(""), &again), r.warm(b.src))
	if err != nil {
		return err
	}
	b.ratio("rsync -a to a tmpfs, cold", costs[0], "native, warm", costs[1], 1.3)
	b.ratio("- second time, all of it in the page cache", measure.MedianCost(again), "native, warm", costs[1], 0)
	return nil
}

// rowFirstByte opens small files here and there and reads a byte of each.
func (b *bench) rowFirstByte() error {
	if err := b.needRepository(); err != nil {
		return err
	}
	files, err := smallFiles(b.src)
	if err != nil {
		return err
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	var took []time.Duration
	err = open(b.openBackupfs(""), func(m *mount) error {
		for _, name := range files[:min(len(files), 300)] {
			d, err := firstByte(filepath.Join(m.tree, name))
			if err != nil {
				return err
			}
			took = append(took, d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.table.Limit("first byte of a random small file, cold, p50 of 300", measure.Duration(measure.Median(took)), 0.002)
	slices.Sort(took)
	b.table.Note("- the same, p95", measure.Duration(took[len(took)*95/100]))
	return nil
}

// smallFiles returns the names of all files of 1 to 65,536 bytes, relative to dir.
func smallFiles(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 || info.Size() > 65_536 {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, name)
		return err
	})
	return names, err
}

func firstByte(path string) (time.Duration, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	return time.Since(began), err
}

// rowMemory does to one mount all that the other rows do, and then looks at the
// memory of its daemon.
func (b *bench) rowMemory() error {
	if err := b.needRepository(); err != nil {
		return err
	}
	if b.isFirst {
		if err := errors.Join(b.needLarge(), b.needMany()); err != nil {
			return err
		}
	}
	var memory measure.Memory
	err := open(b.openBackupfs(""), func(m *mount) (err error) {
		for _, script := range []string{find, tarAll, `cp -a "$1/." "$2"`, tarAll} {
			if _, err := b.reading(script).run(m.tree); err != nil {
				return err
			}
		}
		if b.isFirst {
			if err := b.readLarge(filepath.Dir(m.tree)); err != nil {
				return err
			}
		}
		memory, err = measure.MemoryOf(m.pids[0])
		return err
	})
	if err != nil {
		return err
	}
	b.table.Limit("memory of backupfs after all that, VmRSS", measure.Size(memory.Resident), cacheBytes+memoryBytes)
	b.table.Limit("- the same, VmHWM", measure.Size(memory.PeakResident), cacheBytes+memoryBytes)
	b.table.Note("- of VmRSS its own (RssAnon)", measure.Size(memory.Anonymous))
	return nil
}
