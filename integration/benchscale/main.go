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
	"github.com/backupfs/backupfs/integration/internal/sandbox"
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
	randomReads     = 20_000
	changes         = 1_000
	repeats         = 3 // of what is quick
	defaultCacheMiB = 64
)

type options struct {
	bin      string
	files    []int
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
	flags.IntVar(&o.cacheMiB, "cache", defaultCacheMiB, "the cache of the mount, in `MiB`")
	flags.StringVar(&o.costDir, "cost", "", "write cost.tsv and cost.svg into the directory `DIR`")
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
	var costs []cost
	for _, n := range o.files {
		fmt.Fprintf(os.Stderr, "%s %d files\n", time.Now().Format(time.TimeOnly), n)
		b := &bench{options: o, product: product, dir: filepath.Join(scratch, strconv.Itoa(n)), files: n}
		err := b.run()
		fmt.Printf("\n%d files in %d directories, a cache of %d MiB\n\n", n, n/filesPerDir, o.cacheMiB)
		if err = errors.Join(err, b.table.Print(os.Stdout, "measured")); err != nil {
			return missed, fmt.Errorf("%d files: %w", n, err)
		}
		missed += b.table.Missed()
		costs = append(costs, b.cost)
	}
	if o.costDir == "" {
		return missed, nil
	}
	return missed, writeCosts(o.costDir, costs)
}

// writeCosts writes the cost curves as a table and as a picture.
func writeCosts(dir string, costs []cost) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "cost.tsv"), []byte(tsv(costs)), 0o644),
		os.WriteFile(filepath.Join(dir, "cost.svg"), []byte(svg(costs)), 0o644))
}
