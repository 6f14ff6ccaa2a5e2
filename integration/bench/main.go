// Command bench measures mkbackup and backupfs side by side with the programs
// that people use for the same, in one run, and prints tables of ratios with
// targets. It exits with 1 if a target is missed or anything fails. Run it as
// root: make bench. docs/PERFORMANCE.md says what each row measures.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/backupfs/backupfs/integration/internal/programs"
	"github.com/backupfs/backupfs/internal/measure"
	"github.com/backupfs/backupfs/internal/sandbox"
	"golang.org/x/sys/unix"
)

// row is a group of comparisons that is measured in one go.
type row struct {
	name string
	run  func(*bench) error
	// own is set where the row makes its own files: it is measured once, not for
	// each tree.
	own bool
}

func rows() []row {
	return []row{
		{"create", (*bench).rowCreate, false},
		{"size", (*bench).rowSize, false},
		{"unchanged", (*bench).rowUnchanged, false},
		{"gentle", (*bench).rowGentle, false},
		{"find", (*bench).rowFind, false},
		{"tar", (*bench).rowTar, false},
		{"cp", (*bench).rowCopy, false},
		{"rsync", (*bench).rowRsync, false},
		{"first-byte", (*bench).rowFirstByte, false},
		{"cat", (*bench).rowCat, true},
		{"random", (*bench).rowRandom, true},
		{"frame", (*bench).rowFrame, true},
		{"ls", (*bench).rowList, true},
		{"memory", (*bench).rowMemory, false},
	}
}

// options are what the command line asks for.
type options struct {
	bin   string
	rows  []string // all where empty
	trees []string
	quick bool
}

func main() {
	os.Exit(sandbox.Main(func() int {
		o, err := parse(os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 2
		}
		missed, err := measureAll(o)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		if err != nil || missed > 0 {
			return 1
		}
		return 0
	}))
}

func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "measure only these `ROWS`, with commas between: "+strings.Join(names(), ","))
	trees := flags.String("tree", "linux,usr", "measure these `TREES`: linux, usr")
	quick := flags.Bool("quick", false, "measure each thing once, and leave out what is slow: borg, squashfuse")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bench [FLAGS] BIN")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() != 1 {
		return options{}, errors.New("want one argument: the directory of the programs")
	}
	o := options{bin: flags.Arg(0), trees: strings.Split(*trees, ","), quick: *quick}
	if *only != "" {
		o.rows = strings.Split(*only, ",")
	}
	if err := known("row", o.rows, names()); err != nil {
		return options{}, err
	}
	return o, known("tree", o.trees, []string{"linux", "usr"})
}

func known(what string, words, all []string) error {
	for _, word := range words {
		if !slices.Contains(all, word) {
			return fmt.Errorf("no %s is called %q: there are %s", what, word, strings.Join(all, ", "))
		}
	}
	return nil
}

func names() (all []string) {
	for _, r := range rows() {
		all = append(all, r.name)
	}
	return all
}

// measureAll prints a table for every tree and returns how many targets were missed.
func measureAll(o options) (missed int, err error) {
	scratch, err := sandbox.Scratch()
	if err != nil {
		return 0, err
	}
	for name, value := range map[string]string{
		"HOME": scratch, "TMPDIR": scratch, "LC_ALL": "C.UTF-8", "TZ": "UTC",
		"RESTIC_PASSWORD": "benchmark", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
	} {
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	product, err := programs.Copy(o.bin, filepath.Join(scratch, "bin"))
	if err != nil {
		return 0, err
	}
	for i, tree := range o.trees {
		b := &bench{options: o, product: product, dir: filepath.Join(scratch, tree), tree: tree, isFirst: i == 0}
		if err := b.measure(); err != nil {
			return missed, fmt.Errorf("%s: %w", tree, err)
		}
		missed += b.table.Missed()
	}
	return missed, nil
}

// measure makes one table and removes all that was made for it.
func (b *bench) measure() (err error) {
	began := time.Now()
	if err := b.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	for _, r := range rows() {
		if len(b.rows) > 0 && !slices.Contains(b.rows, r.name) || r.own && !b.isFirst {
			continue
		}
		b.say("%s", r.name)
		if err = r.run(b); err != nil {
			err = fmt.Errorf("row %s: %w", r.name, err)
			break
		}
	}
	fmt.Printf("\n%s; %s; %d CPUs; measured in %s\n%s\nnot compared: %s\n\n",
		b.describe, kernel(), cpus(), time.Since(began).Round(time.Second), versions(), b.leftOut())
	return errors.Join(err, b.table.Print(os.Stdout, "backupfs"))
}

// leftOut names the peers that have no row in the table.
func (b *bench) leftOut() string {
	names := "kopia (not in Debian)"
	if !b.withSlowPeers() {
		names += ", borg, squashfuse (slow)"
	}
	if !b.withResticMount() {
		names += ", restic mount (slow)"
	}
	return names
}

// versions names the packages of the peers, with what is installed of each.
func versions() string {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Package} ${Version}; ", "restic", "borgbackup", "squashfs-tools", "squashfuse", "zstd", "tar", "rsync").Output()
	if err != nil {
		return "peers of unknown versions"
	}
	return strings.TrimSuffix(string(out), "; ")
}

// say tells, on standard error, what is measured now.
func (b *bench) say(format string, a ...any) {
	fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().Format(time.TimeOnly), b.tree, fmt.Sprintf(format, a...))
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "an unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0
	}
	return set.Count()
}

// repeat is how often a thing is measured, but for the slow peers: once.
func (b *bench) repeat() int {
	if b.quick || b.tree == "usr" {
		return 1
	}
	return 3
}

// withSlowPeers tells whether peers are measured that take longer than all the rest.
func (b *bench) withSlowPeers() bool { return !b.quick && b.tree == "linux" }

// withResticMount tells whether the tree is read through restic's mount. Of a
// larger tree that takes longer than all the rest.
func (b *bench) withResticMount() bool { return b.tree == "linux" }

func (b *bench) ratio(what string, ours measure.Cost, peer string, theirs measure.Cost, target float64) {
	b.table.Ratio(what, ours.Of(), peer, theirs.Of(), target)
}
