package main

import (
	"testing"

	"github.com/spf13/pflag"

	"github.com/backupfs/backupfs/archive"
)

// TestSizes: the flags and keys of all commands mean the same by a size.
func TestSizes(t *testing.T) {
	if limit, err := parseLimit("1G"); err != nil || limit != 1<<30 {
		t.Errorf("a limit of 1G is %d, %v", limit, err)
	}
	var rate int64
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	addReadRateFlag(flags, &rate)
	if err := flags.Set("read-rate", "20M"); err != nil || rate != 20<<20 {
		t.Errorf("a rate of 20M is %d, %v", rate, err)
	}
	dir := t.TempDir() + "/repo"
	i := initCommand()
	i.SetArgs([]string{dir, "--part-size", "1M"})
	if err := i.Execute(); err != nil {
		t.Fatal(err)
	}
	repo, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if repo.PartSize != 1<<20 {
		t.Errorf("a part size of 1M is %d", repo.PartSize)
	}
}
