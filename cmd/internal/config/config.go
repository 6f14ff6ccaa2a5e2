// Package config reads the files that say what is backed up and where it is
// mounted, /etc/backupfs/NAME.conf. They are TOML (toml.io, version 1.0).
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pelletier/go-toml/v2"
)

// Dir is where files are looked up by name.
const Dir = "/etc/backupfs"

// Config is what a file says. A key that is not in it has its zero value.
type Config struct {
	Repository string `toml:"repository"` // absolute path; required
	Metrics    string `toml:"metrics"`    // absolute path, as mkbackup run --metrics; "": none

	Backup   []Backup `toml:"backup"` // one generation each; at least one
	Forget   Forget   `toml:"forget"`
	Compact  Compact  `toml:"compact"`
	Check    Check    `toml:"check"`
	Hooks    Hooks    `toml:"hooks"`
	Priority Priority `toml:"priority"`

	Mount Mount `toml:"mount"`
}

// Backup is one source.
type Backup struct {
	Source           string   `toml:"source"` // "" is the unnamed source
	Root             string   `toml:"root"`   // as mkbackup create --root
	Paths            []string `toml:"paths"`  // at least one
	Exclude          []string `toml:"exclude"`
	ExcludeFrom      []string `toml:"exclude_from"`
	ExcludeIfPresent []string `toml:"exclude_if_present"`
	ExcludeCaches    bool     `toml:"exclude_caches"`
	ExcludeNodump    bool     `toml:"exclude_nodump"`
	OneFileSystem    bool     `toml:"one_file_system"`
}

// Forget holds the rules of mkbackup forget. Where all are zero nothing is
// forgotten.
type Forget struct {
	KeepLast    uint   `toml:"keep_last"`
	KeepHourly  uint   `toml:"keep_hourly"`
	KeepDaily   uint   `toml:"keep_daily"`
	KeepWeekly  uint   `toml:"keep_weekly"`
	KeepMonthly uint   `toml:"keep_monthly"`
	KeepYearly  uint   `toml:"keep_yearly"`
	KeepWithin  string `toml:"keep_within"` // "14d"
}

// Compact says how mkbackup compact is run.
type Compact struct {
	MaxDead   Percent  `toml:"max_dead"`   // "10%"; "": no compaction
	TimeLimit Duration `toml:"time_limit"` // "2h"
	Limit     Size     `toml:"limit"`
}

// Check says how mkbackup check is run after each backup.
type Check struct {
	ReadDataSubset Percent `toml:"read_data_subset"` // "2%"; "": structure only
	Skip           bool    `toml:"skip"`             // do not check at all
}

// Hooks are commands that are run around the backup. Each is a program and its
// arguments; no shell is between.
type Hooks struct {
	Before    []Command `toml:"before"`
	After     []Command `toml:"after"`
	OnFailure []Command `toml:"on_failure"`
}

// Command is a program and its arguments.
type Command []string

// Priority says how much of the machine a run may take.
type Priority struct {
	Nice     int    `toml:"nice"`      // -20 to 19
	IONice   string `toml:"ionice"`    // as mkbackup create --ionice
	ReadRate Size   `toml:"read_rate"` // bytes per second
	Threads  uint   `toml:"threads"`
}

// Mount is where backupfs shows the repository.
type Mount struct {
	Point         string `toml:"point"` // absolute path; required for a mount
	Source        string `toml:"source"`
	NameFormat    string `toml:"name_format"` // as backupfs --name-format
	CacheSize     Size   `toml:"cache_size"`
	MetricsListen string `toml:"metrics_listen"` // as backupfs --metrics-listen; "": no metrics
}

// Percent is a text as "10%". The zero value is not given.
type Percent struct{ text string }

// String returns the text, "" where it is not given.
func (p Percent) String() string { return p.text }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Percent) UnmarshalText(text []byte) error {
	var n float64
	digits, ok := strings.CutSuffix(string(text), "%")
	if _, err := fmt.Sscanf(digits+"\n", "%g\n", &n); !ok || err != nil || !(n >= 0 && n <= 100) {
		return fmt.Errorf("%q is no percentage: write it as \"10%%\"", text)
	}
	p.text = string(text)
	return nil
}

// Size is a text as "512MiB". The zero value is not given.
type Size struct{ text string }

// String returns the text, "" where it is not given.
func (s Size) String() string { return s.text }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	if n, err := humanize.ParseBytes(string(text)); err != nil || n == 0 {
		return fmt.Errorf("%q is no size: write it as \"512MiB\"", text)
	}
	s.text = string(text)
	return nil
}

// Duration is a text as "90m". The zero value is not given.
type Duration struct{ text string }

// String returns the text, "" where it is not given.
func (d Duration) String() string { return d.text }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	if n, err := time.ParseDuration(string(text)); err != nil || n <= 0 {
		return fmt.Errorf("%q is no duration: write it as \"90m\" or \"2h\"", text)
	}
	d.text = string(text)
	return nil
}

// Path returns the file that name means: a path if there is a "/" in it, else
// Dir/name.conf.
func Path(name string) string {
	if strings.ContainsRune(name, '/') {
		return name
	}
	return filepath.Join(Dir, name+".conf")
}

// Read reads a file. An error says in which line a wrong key or value is.
func Read(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("there is no configuration %s: begin with the example.conf of the documentation (a file elsewhere has a \"/\" in its name, as ./main.conf)", file)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	var c Config
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		return Config{}, positioned(file, err)
	}
	if c.Repository == "" || !filepath.IsAbs(c.Repository) {
		return Config{}, fmt.Errorf("%s: repository: an absolute path is needed, it is %q", file, c.Repository)
	}
	if c.Metrics != "" && !filepath.IsAbs(c.Metrics) {
		return Config{}, fmt.Errorf("%s: metrics: an absolute path is needed, it is %q", file, c.Metrics)
	}
	return c, nil
}

// positioned puts the file and the line before an error of the TOML decoder.
func positioned(file string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := &unknown.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("%s:%d: unknown key %q", file, line, strings.Join(first.Key(), "."))
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		message := strings.TrimPrefix(wrong.Error(), "toml: ")
		if key := strings.Join(wrong.Key(), "."); key != "" {
			message = key + ": " + message
		}
		return fmt.Errorf("%s:%d: %s", file, line, message)
	}
	return fmt.Errorf("%s: %w", file, err)
}
