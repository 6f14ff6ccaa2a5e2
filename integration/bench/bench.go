package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/backupfs/backupfs/integration/internal/programs"
	"github.com/backupfs/backupfs/internal/measure"
	"github.com/backupfs/backupfs/internal/sandbox"
)

// linuxSource is what Debian's package linux-source-6.1 installs.
const linuxSource = "/usr/src/linux-source-6.1.tar.xz"

// tiny is a directory on which every script runs first, so that its programs are
// warm: it holds an empty file and an empty archive.
const tiny = "tiny"

// bench measures one tree. Everything it makes lies in dir, on a tmpfs; what is
// made once is made when a row first asks for it.
type bench struct {
	options
	product  programs.Programs
	dir      string
	tree     string // its name
	isFirst  bool   // of all trees: also measures what needs none
	describe string
	src      string // the tree itself, on ext4
	table    measure.Table

	made     map[string]bool // what once has made
	treeSize sizes           // of the repository with the tree alone
}

// sizes are the bytes of the files of a repository.
type sizes struct{ parts, log, index, all int64 }

// prepare makes the directories and the tree.
func (b *bench) prepare() error {
	b.made = map[string]bool{}
	for _, dir := range []string{b.dir, b.path(tiny), b.path("to")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if _, err := measure.Run(measure.Shell(`cd "$1"; : >large; zstd -q large; tar -cf - large | zstd -q -o tree.tar.zst`, b.path(tiny))); err != nil {
		return err
	}
	b.say("the tree")
	if err := b.makeTree(); err != nil {
		return err
	}
	count, err := measure.Shell(`find "$1" | wc -l`, b.src).Output()
	if err != nil {
		return fmt.Errorf("count %s: %w", b.src, err)
	}
	raw, err := measure.DiskUse(b.src)
	if err != nil {
		return err
	}
	b.describe = fmt.Sprintf("%s: %s entries, %s", b.describe, count[:len(count)-1], measure.Size(raw))
	return b.warm()
}

// makeTree unpacks Linux on an ext4 of its own, or takes /usr where it is.
func (b *bench) makeTree() error {
	if err := sandbox.Ext4(b.path("ext4"), 16<<30, 400_000); err != nil {
		return err
	}
	if b.tree == "usr" {
		b.describe, b.src = "/usr of this machine", "/usr"
		return nil
	}
	b.describe, b.src = "linux-source-6.1", b.path("ext4/linux")
	if err := os.Mkdir(b.src, 0o755); err != nil {
		return err
	}
	_, err := measure.Run(exec.Command("tar", "-xJf", linuxSource, "-C", b.src, "--strip-components=1"))
	return err
}

// warm reads the tree, so that the page cache holds it.
func (b *bench) warm() error {
	_, err := measure.Run(measure.Shell(`tar -cf - -C "$1" . | cat >/dev/null`, b.src))
	return err
}

// cleanUp takes the ext4 away and removes everything.
func (b *bench) cleanUp() error {
	return errors.Join(programs.Unmount(b.path("ext4"), 0), os.RemoveAll(b.dir))
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// once makes something that rows share when the first of them asks for it.
func (b *bench) once(what string, make func() error) error {
	if b.made[what] {
		return nil
	}
	b.made[what] = true
	if err := make(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (b *bench) repository() string { return b.path("repository") }

// create makes a repository with a first generation of the tree, and says what
// the latter took. One from before goes.
func (b *bench) create() (measure.Cost, error) {
	if err := os.RemoveAll(b.repository()); err != nil {
		return measure.Cost{}, err
	}
	if _, _, err := b.product.Mkbackup("init", b.repository()); err != nil {
		return measure.Cost{}, err
	}
	b.made["repository"] = true
	cost, err := b.createAgain()
	if err != nil {
		return cost, err
	}
	b.treeSize, err = sizesOf(b.repository())
	return cost, err
}

func (b *bench) createAgain() (measure.Cost, error) {
	cost, _, err := b.product.Mkbackup("create", b.repository(), "--root", b.src, "/")
	return cost, err
}

// needRepository makes the repository where no row has yet.
func (b *bench) needRepository() error {
	return b.once("repository", func() error {
		_, err := b.create()
		return err
	})
}

func sizesOf(repository string) (s sizes, err error) {
	for dir, size := range map[string]*int64{"parts": &s.parts, "log": &s.log, "index": &s.index, "": &s.all} {
		if *size, err = measure.DiskUse(filepath.Join(repository, dir)); err != nil {
			return sizes{}, err
		}
	}
	return s, nil
}

// tarZstd is the file that stands for all archives that one streams.
func (b *bench) tarZstd() string { return b.path("archive/tree.tar.zst") }

func (b *bench) makeTarZstd() (measure.Cost, error) {
	if err := os.MkdirAll(filepath.Dir(b.tarZstd()), 0o755); err != nil {
		return measure.Cost{}, err
	}
	return measure.Run(measure.Shell(`tar -cf - -C "$1" . | zstd -q -f -T2 -3 -o "$2"`, b.src, b.tarZstd()))
}

func (b *bench) needTarZstd() error {
	return b.once("tar.zst", func() error {
		_, err := b.makeTarZstd()
		return err
	})
}

// resticBackup makes a new repository of restic, with a snapshot of what is at src.
func resticBackup(repository, src string) (measure.Cost, error) {
	if err := os.RemoveAll(repository); err != nil {
		return measure.Cost{}, err
	}
	if _, err := measure.Run(exec.Command("restic", "-q", "-r", repository, "init")); err != nil {
		return measure.Cost{}, err
	}
	return resticAgain(repository, src)
}

func resticAgain(repository, src string) (measure.Cost, error) {
	return measure.Run(exec.Command("restic", "-q", "-r", repository, "backup", src))
}

func (b *bench) needRestic() error {
	return b.once("restic", func() error {
		_, err := resticBackup(b.path("restic"), b.src)
		return err
	})
}

// borgSize makes a repository of borg, without encryption and with zstd at
// level 3, and returns its size. Nothing else is asked of it, so it goes again.
func (b *bench) borgSize() (int64, error) {
	dir := b.path("borg")
	_, err := measure.Run(measure.Shell(`borg init -e none "$1"; borg create -C zstd,3 "$1::tree" "$2"`, dir, b.src))
	if err != nil {
		return 0, err
	}
	size, err := measure.DiskUse(dir)
	return size, errors.Join(err, os.RemoveAll(dir))
}

func (b *bench) needSquashfs() error {
	return b.once("squashfs", func() error {
		_, err := measure.Run(exec.Command("mksquashfs", b.src, b.path("squashfs"), "-comp", "zstd", "-Xcompression-level", "3", "-no-progress", "-quiet"))
		return err
	})
}
