// Package config reads the files that say what is backed up and where it is
// mounted, /etc/backupfs/NAME.conf. They are TOML (toml.io, version 1.0).
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/backupfs/backupfs/cmd/internal/size"
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

	file  string
	lines map[string]int // of keys, as Wrong has them
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

// Forget holds the rules of mkbackup forget; nil is no such rule. Where there is none
// nothing is forgotten.
type Forget struct {
	KeepLast    *uint  `toml:"keep_last"`
	KeepHourly  *uint  `toml:"keep_hourly"`
	KeepDaily   *uint  `toml:"keep_daily"`
	KeepWeekly  *uint  `toml:"keep_weekly"`
	KeepMonthly *uint  `toml:"keep_monthly"`
	KeepYearly  *uint  `toml:"keep_yearly"`
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
	Nice     *int   `toml:"nice"`      // -20 to 19; nil: that of the run
	IONice   string `toml:"ionice"`    // as mkbackup create --ionice
	ReadRate Size   `toml:"read_rate"` // bytes per second
	Threads  *uint  `toml:"threads"`   // nil: all
}

// Mount is where backupfs shows the repository.
type Mount struct {
	Point         string `toml:"point"` // absolute path; required for a mount
	Source        string `toml:"source"`
	NameFormat    string `toml:"name_format"` // as backupfs --name-format
	CacheSize     Size   `toml:"cache_size"`
	MetricsListen string `toml:"metrics_listen"` // as backupfs --metrics-listen; "": no metrics
}

// Percent is a text as "10%"; "" is not given.
type Percent string

func (p Percent) check() error {
	if p == "" {
		return nil
	}
	digits, ok := strings.CutSuffix(string(p), "%")
	if n, err := strconv.ParseFloat(digits, 64); !ok || err != nil || !(n >= 0 && n <= 100) {
		return fmt.Errorf("%q is no percentage: write it as \"10%%\"", p)
	}
	return nil
}

// Size is a text as "512MiB", as size.Parse takes it; "" is not given.
type Size string

func (s Size) check() error {
	if s == "" {
		return nil
	}
	if n, err := size.Parse(string(s)); err != nil || n == 0 {
		return fmt.Errorf("%q is no size: write it as \"512MiB\"", s)
	}
	return nil
}

// Duration is a text as "90m"; "" is not given.
type Duration string

func (d Duration) check() error {
	if d == "" {
		return nil
	}
	if n, err := time.ParseDuration(string(d)); err != nil || n <= 0 {
		return fmt.Errorf("%q is no duration: write it as \"90m\" or \"2h\"", d)
	}
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

// Names returns the names of the files in Dir.
func Names() []string {
	entries, err := os.ReadDir(Dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".conf"); ok {
			names = append(names, name)
		}
	}
	return names
}

// Read reads a file. An error says in which line a wrong key or value is.
func Read(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("there is no configuration %s: begin with share/doc/backupfs/example.conf (a file elsewhere has a \"/\" in its name, as ./main.conf)", file)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	c := Config{file: file, lines: keyLines(text)}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		return Config{}, positioned(file, err)
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// check checks the values whose types say what they look like, and paths.
func (c *Config) check() error {
	if !filepath.IsAbs(c.Repository) {
		return c.Wrong("repository", fmt.Errorf("an absolute path is needed, it is %q", c.Repository))
	}
	if c.Metrics != "" && !filepath.IsAbs(c.Metrics) {
		return c.Wrong("metrics", fmt.Errorf("an absolute path is needed, it is %q", c.Metrics))
	}
	for _, value := range []struct {
		key string
		err error
	}{
		{"compact.max_dead", c.Compact.MaxDead.check()},
		{"compact.time_limit", c.Compact.TimeLimit.check()},
		{"compact.limit", c.Compact.Limit.check()},
		{"check.read_data_subset", c.Check.ReadDataSubset.check()},
		{"priority.read_rate", c.Priority.ReadRate.check()},
		{"mount.cache_size", c.Mount.CacheSize.check()},
	} {
		if value.err != nil {
			return c.Wrong(value.key, value.err)
		}
	}
	return nil
}

// Wrong returns err as what is wrong with the value of a key, "forget.keep_daily"
// or, of the first [[backup]], "backup.0.source", behind the file and the line.
func (c *Config) Wrong(key string, err error) error {
	place := c.file
	for part := key; part != ""; part = part[:max(strings.LastIndexByte(part, '.'), 0)] {
		if line, ok := c.lines[part]; ok {
			place = fmt.Sprintf("%s:%d", c.file, line)
			break
		}
	}
	words := slices.DeleteFunc(strings.Split(key, "."), func(word string) bool { return word[0] <= '9' })
	return fmt.Errorf("%s: %s: %w", place, strings.Join(words, "."), err)
}

// keyLines returns the line of each key and table of a document, up to where it
// is no TOML. Keys are those of [Config.Wrong].
func keyLines(text []byte) map[string]int {
	var p unstable.Parser
	p.Reset(text)
	lines, count, table := map[string]int{}, map[string]int{}, ""
	for p.NextExpression() {
		node := p.Expression()
		var words []string
		line := 0
		for key := node.Key(); key.Next(); {
			words = append(words, string(key.Node().Data))
			line = p.Shape(key.Node().Raw).Start.Line
		}
		name := strings.Join(words, ".")
		switch node.Kind {
		case unstable.ArrayTable:
			count[name]++
			table = fmt.Sprintf("%s.%d.", name, count[name]-1)
			lines[strings.TrimSuffix(table, ".")] = line
		case unstable.Table:
			table = name + "."
			lines[name] = line
		default:
			lines[table+name] = line
		}
	}
	return lines
}

// positioned puts the file and the line before an error of the TOML decoder, and
// says what a value of a wrong type should be.
func positioned(file string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := &unknown.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("%s:%d: unknown key %q", file, line, strings.Join(first.Key(), "."))
	}
	var wrong *toml.DecodeError
	if !errors.As(err, &wrong) {
		return fmt.Errorf("%s: %w", file, err)
	}
	line, _ := wrong.Position()
	message := strings.TrimPrefix(wrong.Error(), "toml: ")
	if strings.HasPrefix(message, "cannot ") || strings.Contains(message, "cannot be stored") {
		if shape := shapeOf(wrong.Key()); shape != "" {
			message = shape + " is needed"
		}
		message = strings.Join(wrong.Key(), ".") + ": " + message
	} else {
		message = "this is no TOML: " + message
		if strings.HasSuffix(message, "at start of value") {
			message += ": a text stands in \"quotes\", yes and no are true and false"
		}
	}
	return fmt.Errorf("%s:%d: %s", file, line, message)
}

// shapeOf says what the value of a key looks like; "" where there is no such key.
func shapeOf(key []string) string {
	t := reflect.TypeFor[Config]()
	for _, word := range key {
		for t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return ""
		}
		index := slices.IndexFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Tag.Get("toml") == word })
		if index < 0 {
			return ""
		}
		t = t.Field(index).Type
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[Percent]():
		return `a percentage in quotes, as "10%",`
	case reflect.TypeFor[Size]():
		return `a size in quotes, as "512MiB",`
	case reflect.TypeFor[Duration]():
		return `a duration in quotes, as "90m" or "2h",`
	case reflect.TypeFor[[]string]():
		return `a list of texts, as ["/etc", "/home"],`
	case reflect.TypeFor[[]Command]():
		return `a list of commands, each a list of a program and its arguments, as [["systemctl", "stop", "db"]],`
	}
	switch t.Kind() {
	case reflect.String:
		return "a text in quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Uint:
		return "a whole number, 0 or more,"
	case reflect.Struct:
		return fmt.Sprintf("a table, a line [%s] with its keys below it,", strings.Join(key, "."))
	case reflect.Slice:
		return fmt.Sprintf("a table, a line [[%s]] with its keys below it,", strings.Join(key, "."))
	}
	return ""
}
