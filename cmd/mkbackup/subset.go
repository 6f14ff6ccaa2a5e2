package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
)

// Where the subsets of a repository go on is remembered on the machine that
// checks, never in the repository: a check works on one that cannot be written.
// What is lost when the place is forgotten is only that the next check may read
// again what was read lately.

// subsetFile returns the file that remembers where the next subset of a
// repository begins: 16 hexadecimal digits.
func subsetFile(repo *archive.Repository) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "mkbackup", "check-"+repo.ID), nil
}

// nextSubset returns the subset that follows the last one that was read. Where
// nothing is remembered it follows the date.
func nextSubset(repo *archive.Repository, length uint64) backup.Subset {
	byDate := backup.OnDay(uint64(time.Now().Unix())/(24*60*60), length)
	name, err := subsetFile(repo)
	if err != nil {
		return byDate
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return byDate
	}
	start, err := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
	if err != nil {
		return byDate
	}
	return backup.Subset{Start: start, Length: length}
}

// rememberSubset notes that a subset was read.
func rememberSubset(repo *archive.Repository, s backup.Subset) {
	name, err := subsetFile(repo)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o700)
	}
	if err == nil {
		err = replaceFile(name, fmt.Sprintf("%016x\n", s.Next().Start))
	}
	if err != nil {
		notef("where the next subset begins cannot be remembered, so it follows the date: %v", err)
	}
}

func replaceFile(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".check-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails where it was renamed
	_, err = f.WriteString(text)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
