package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestClosedToOthers: a backup holds what only root may read, so nobody else
// may read the repository, whatever the umask.
func TestClosedToOthers(t *testing.T) {
	r := newTestRepository(t)
	draft, err := r.Store().Create()
	if err != nil {
		t.Fatal(err)
	}
	if err := draft.Publish("parts/ab/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.TempDir("work-"); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(r.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestInitAgain: an Init that was interrupted is done again; what others put there stays.
func TestInitAgain(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"parts", "tmp/w-dead"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Init(dir, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := os.Remove(filepath.Join(dir, configName)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log/000000000001.jsonl.zst"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, InitOptions{}); !errors.Is(err, ErrNoConfig) {
		t.Errorf("over the log of a repository: %v", err)
	}
	if err := os.Rename(filepath.Join(dir, "log/000000000001.jsonl.zst"), filepath.Join(dir, "log/file")); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, InitOptions{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("over a file in log/: %v", err)
	}
}

// TestRestoreConfig: only what has lost its repo.json gets one, with the id that is given.
func TestRestoreConfig(t *testing.T) {
	r := newTestRepository(t)
	if _, err := RestoreConfig(r.Dir(), ""); err == nil || !strings.Contains(err.Error(), "is there") {
		t.Errorf("nothing is lost: %v", err)
	}
	if err := os.Remove(filepath.Join(r.Dir(), configName)); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreConfig(r.Dir(), r.ID); !errors.Is(err, ErrNoRepository) {
		t.Errorf("no log: %v", err)
	}
	if err := os.WriteFile(filepath.Join(r.Dir(), "log/000000000001.jsonl.zst"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.Dir()); !errors.Is(err, ErrNoConfig) {
		t.Errorf("open: %v", err)
	}
	if _, err := RestoreConfig(r.Dir(), "short"); err == nil {
		t.Error("an id of 5 letters: no error")
	}
	restored, err := RestoreConfig(r.Dir(), r.ID)
	if err != nil || restored.ID != r.ID || restored.PartSize != DefaultPartSize {
		t.Fatalf("restored: %+v, %v", restored, err)
	}
	restored.Close()
	again, err := Open(r.Dir())
	if err != nil || again.Config != restored.Config {
		t.Fatalf("opened: %+v, %v", again, err)
	}
	again.Close()
}

func TestInitRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file + "/a", file + "/a/b"} {
		if _, err := Init(dir, InitOptions{}); err == nil || !strings.Contains(err.Error(), "file is not a directory") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := Init(t.TempDir(), InitOptions{PartSize: 1}); err == nil {
		t.Error("a part size of 1: no error")
	}
	full := t.TempDir()
	if err := os.WriteFile(full+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(full, InitOptions{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with files: %v", err)
	}
	own := t.TempDir() // what a tmp/ holds that nobody has initialized is not ours to remove
	if err := os.MkdirAll(own+"/tmp/photos", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(own, InitOptions{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with files in tmp: %v", err)
	}
	if _, err := os.Stat(own + "/tmp/photos"); err != nil {
		t.Error(err)
	}
	r := newTestRepository(t)
	if _, err := Init(r.Dir(), InitOptions{}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a repository: %v", err)
	}
}

// TestAboveALink: a repository that a path with ".." behind a symlink leads to is made and
// opened where the kernel finds it, not where the path without both is.
func TestAboveALink(t *testing.T) {
	dir, away := t.TempDir(), t.TempDir()
	if err := os.Mkdir(away+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(away+"/sub", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	beside, err := Init(dir+"/repo", InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	beside.Close()
	t.Chdir(dir + "/link") // of which $PWD has the symlink
	made, err := Init("../repo", InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
	for _, path := range []string{away + "/repo", dir + "/link/../repo", "../repo"} {
		r, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if there, err := os.Stat(r.Dir()); err != nil || r.ID != made.ID {
			t.Errorf("%s: the repository %s, want %s, %v", path, r.ID, made.ID, err)
		} else if want, err := os.Stat(away + "/repo"); err != nil || !os.SameFile(there, want) {
			t.Errorf("%s: its directory is %s, %v", path, r.Dir(), err)
		}
		r.Close()
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNoRepository) {
		t.Errorf("an empty directory: %v", err)
	}
	const good = `{"format":1,"id":"0123456789abcdef0123456789abcdef","part_size":65536}`
	for text, want := range map[string]error{
		good: nil,
		strings.Replace(good, `"format":1`, `"format":2`, 1): ErrNewerFormat,
		strings.Replace(good, `"format":1`, `"format":0`, 1): ErrBadConfig,
		strings.Replace(good, "65536", "1", 1):               ErrBadConfig,
		good[:20]:                                            ErrBadConfig,
		good + strings.Repeat(" ", maxConfig):                ErrBadConfig,
		"":                                                   ErrBadConfig,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, configName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(dir)
		if !errors.Is(err, want) {
			t.Errorf("%.100q: %v, want %v", text, err, want)
		}
		if err == nil {
			r.Close()
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, configName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrBadConfig) {
		t.Errorf("a directory: %v", err)
	}
	// What cannot be read now may be whole.
	loop := t.TempDir()
	if err := os.Symlink(configName, filepath.Join(loop, configName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(loop); !errors.Is(err, syscall.ELOOP) || errors.Is(err, ErrBadConfig) {
		t.Errorf("what cannot be opened: %v", err)
	}
}

// The stamp of a record tells that another one has come in its place.
func TestRecordStamp(t *testing.T) {
	r, err := Init(filepath.Join(t.TempDir(), "repo"), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.RecordStamp(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no record: %v", err)
	}
	file := filepath.Join(r.Dir(), RecordStoreName(1))
	put := func(text string) RecordStamp {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		stamp, err := r.RecordStamp(1)
		if err != nil {
			t.Fatal(err)
		}
		return stamp
	}
	first := put("one")
	if again, err := r.RecordStamp(1); err != nil || again != first {
		t.Errorf("the same record: %v, %v and %v", err, first, again)
	}
	if other := put("two"); other == first {
		t.Errorf("another record: %v", other)
	}
}
