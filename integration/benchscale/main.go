// Command benchscale backs up trees of up to a million small files and shows how
// the cost of everything grows. At a million files, 20 in each of 50,000
// directories, it compares memory, times and sizes with their limits, and exits
// with 1 if one is missed. Run it as root: make bench-scale.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/integration/internal/programs"
	"github.com/backupfs/backupfs/internal/sandbox"
)

const (
	filesPerDir = 20
	mib         = 1 << 20

	// limitsAt is the number of files for which there are limits.
	limitsAt        = 1_000_000
	limitCreate     = 512 * mib
	limitReady      = 200 * time.Millisecond
	limitMount      = 64 * mib // beside the cache
	limitRecord     = 300 << 10
	limitPublish    = 200 * time.Millisecond
	limitUnchanged  = 2.0 // times find
	limitCheck      = 2 * time.Second
	limitVersions   = 5 * time.Millisecond
	limitSearch     = 3 * time.Second
	randomReads     = 20_000
	firstReads      = 50
	changes         = 1_000
	repeats         = 3 // of what is quick
	defaultCacheMiB = 64
)

type options struct {
	bin      string
	files    []int
	history  int // files of the tree with generations; 0 for none
	cacheMiB int
	costDir  string // "" for none
}

func main() {
	os.Exit(sandbox.Main(func() int {
		o, err := parse(os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "benchscale:", err)
			return 2
		}
		missed, err := run(o)
		if err != nil {
			fmt.Fprintln(os.Stderr, "benchscale:", err)
		}
		if err != nil || missed > 0 {
			return 1
		}
		return 0
	}))
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("benchscale", flag.ContinueOnError)
	files := flags.String("files", "1000,10000,100000,1000000", "measure trees of so many `FILES`, multiples of 20; the limits are for 1000000")
	flags.IntVar(&o.history, "history", 100_000, "measure 1, 30 and 300 generations of a tree of so many `FILES`, a multiple of 20, 0 for none")
	flags.IntVar(&o.cacheMiB, "cache", defaultCacheMiB, "the cache of the mount, in `MiB`")
	flags.StringVar(&o.costDir, "cost", "", "write the curves, cost.tsv and cost.svg and the same for generations, into the directory `DIR`")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: benchscale [FLAGS] BIN")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 1 {
		return o, errors.New("want one argument: the directory of the programs")
	}
	o.bin = flags.Arg(0)
	for word := range strings.SplitSeq(*files, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < filesPerDir || n%filesPerDir != 0 {
			return o, fmt.Errorf("-files %q: want multiples of %d", word, filesPerDir)
		}
		o.files = append(o.files, n)
	}
	if o.history < 0 || o.history%filesPerDir != 0 || o.history > 0 && o.history < 100*filesPerDir {
		return o, fmt.Errorf("-history %d: want 0, or a multiple of %d from %d on", o.history, filesPerDir, 100*filesPerDir)
	}
	return o, nil
}

// run measures every tree and returns how many limits were missed.
func run(o options) (missed int, err error) {
	scratch, err := sandbox.Scratch()
	if err != nil {
		return 0, err
	}
	product, err := programs.Copy(o.bin, filepath.Join(scratch, "bin"))
	if err != nil {
		return 0, err
	}
	newBench := func(name string, files int) *bench {
		fmt.Fprintf(os.Stderr, "%s %s: %d files\n", time.Now().Format(time.TimeOnly), name, files)
		return &bench{options: o, product: product, dir: filepath.Join(scratch, name), files: files}
	}
	print := func(title string, b *bench, err error) error {
		fmt.Printf("\n%s, %d files in %d directories, a cache of %d MiB\n\n", title, b.files, b.files/filesPerDir, o.cacheMiB)
		missed += b.table.Missed()
		return errors.Join(err, b.table.Print(os.Stdout, "measured"))
	}
	var costs []cost
	for _, n := range o.files {
		b := newBench(strconv.Itoa(n), n)
		if err := print("One generation and another", b, b.size()); err != nil {
			return missed, fmt.Errorf("%d files: %w", n, err)
		}
		costs = append(costs, b.cost)
	}
	if err := o.writeCosts("cost", "files", costs); err != nil || o.history == 0 {
		return missed, err
	}
	b := newBench("history", o.history)
	costs, err = b.generations()
	if err := print("Many generations", b, err); err != nil {
		return missed, fmt.Errorf("generations: %w", err)
	}
	return missed, o.writeCosts("cost-generations", "generations", costs)
}

// writeCosts writes cost curves as a table and as a picture.
func (o options) writeCosts(name, counted string, costs []cost) error {
	if o.costDir == "" {
		return nil
	}
	path := filepath.Join(o.costDir, name)
	return errors.Join(
		os.WriteFile(path+".tsv", []byte(tsv(counted, costs)), 0o644),
		os.WriteFile(path+".svg", []byte(svg(counted, costs)), 0o644))
}
