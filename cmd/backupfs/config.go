package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/backupfs/backupfs/cmd/internal/cli"
	conf "github.com/backupfs/backupfs/cmd/internal/config"
	"github.com/backupfs/backupfs/cmd/internal/size"
	"github.com/backupfs/backupfs/fs"
	"github.com/spf13/pflag"
)

// minCache is the least cache: a frame or two.
const minCache size.Bytes = 1 << 20

// config is what the command line asks for.
type config struct {
	fs.Options
	repository string // absolute
	mountpoint string // absolute
	foreground bool
	cache      size.Bytes
	mount      []string // values of -o
	metrics    string   // address and port where metrics are served; "" for none
	file       string   // name or path of a configuration file; "" for none
}

func (c *config) define(flags *pflag.FlagSet) {
	c.cache = fs.DefaultCacheSize
	flags.SortFlags = false
	flags.BoolVarP(&c.foreground, "foreground", "f", false, "stay in the foreground and log to stderr; tell systemd when ready")
	flags.StringVar(&c.Source, "source", "", "show only the source `NAME`, its generations at the root")
	flags.StringVar(&c.Generation, "generation", "", "show only the generation `GEN`, at the root: a name, a number,\na date or time (the last one then), latest, or latest~2")
	flags.StringVar((*string)(&c.NameFormat), "name-format", "", "call generations by their time, `FORMAT` as of strftime(3):\n@GMT-%Y.%m.%d-%H.%M.%S for Samba; local time, or UTC behind @GMT\n(default: their own names)")
	flags.StringVar(&c.file, "config", "", "take REPO, MOUNTPOINT, and what else [mount] says, from\n/etc/backupfs/`NAME`.conf, or from a file with a \"/\" in its name")
	flags.Var(&c.cache, "cache-size", "keep so much decoded data in memory, `SIZE` as in 512M or 1GiB:\n"+size.Units)
	flags.StringVar(&c.metrics, "metrics-listen", "", "serve Prometheus metrics by HTTP at `[ADDR]:PORT`, path /metrics;\nwithout ADDR at 127.0.0.1")
	flags.BoolVar(&c.Private, "private", false, "let only the mounting user in")
	flags.StringArrayVarP(&c.mount, "options", "o", nil, "mount options as in fstab, `OPT[,OPT]`: source=, generation=,\nname-format=, cache-size=, metrics-listen=, noexec, allow_other, and\nnoallow_other, which is --private; the mount is always ro, nosuid and nodev, and other\ncommon options are accepted")
}

// complete checks the command line and makes its paths absolute.
func (c *config) complete(args []string, flags *pflag.FlagSet) error {
	allowOther, least, given := false, minCache, givenValues(flags)
	for _, list := range c.mount {
		for option := range strings.SplitSeq(list, ",") {
			if err := c.mountOption(option, flags, &allowOther); err != nil {
				return usageError{err}
			}
		}
	}
	if err := contradiction(given, flags); err != nil {
		return usageError{err}
	}
	args, err := c.readFile(args, flags)
	if err != nil {
		return usageError{err}
	}
	switch {
	case flags.Changed("source") && c.Source == "":
		return usageError{fmt.Errorf("--source: the name is empty; without the flag all sources are shown")}
	case flags.Changed("generation") && c.Generation == "":
		return usageError{fmt.Errorf("--generation: the name is empty")}
	case c.ofAnother():
		return usageError{fmt.Errorf("the generation %q is not of the source %q: leave one of the sources out", c.Generation, c.Source)}
	case c.NameFormat != "" && c.Generation != "":
		return usageError{fmt.Errorf("a name format and a generation exclude each other: at the root of the mount it has no name")}
	case allowOther && c.Private:
		return usageError{fmt.Errorf("private and allow_other exclude each other")}
	case c.cache < minCache:
		return usageError{fmt.Errorf("a cache of %s is too small: at least %s are needed", &c.cache, &least)}
	}
	if err := c.NameFormat.Check(); err != nil {
		return usageError{fmt.Errorf("name format %w", err)}
	}
	if os.Geteuid() != 0 && !allowOther {
		c.Private = true
	}
	c.CacheSize = int64(c.cache)
	if c.metrics != "" || flags.Changed("metrics-listen") {
		if c.metrics, err = metricsAddress(c.metrics); err != nil {
			return usageError{fmt.Errorf("--metrics-listen %w", err)}
		}
	}
	if c.repository, err = cli.Abs(args[0]); err != nil {
		return err
	}
	c.mountpoint, err = cli.Abs(args[1])
	return err
}

// givenValues returns the values of the flags that are given, by name.
func givenValues(flags *pflag.FlagSet) map[string]string {
	values := make(map[string]string)
	flags.Visit(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return values
}

// contradiction returns an error where an option of -o has changed the value of a flag that
// was given, too: which of them is meant nobody knows.
func contradiction(given map[string]string, flags *pflag.FlagSet) (err error) {
	for name, value := range givenValues(flags) {
		if before, twice := given[name]; twice && before != value {
			err = fmt.Errorf("--%s is %q, and -o says %q: leave one of them out", name, before, value)
		}
	}
	return err
}

// ofAnother reports whether the generation is given with a source that is not the one
// that was chosen.
func (c *config) ofAnother() bool {
	source, _, named := strings.Cut(c.Generation, "/")
	return named && c.Source != "" && source != c.Source
}

// readFile returns the arguments that a configuration file stands for, and takes
// over what it says and the flags do not. Without a file they are as they were.
func (c *config) readFile(args []string, flags *pflag.FlagSet) ([]string, error) {
	if c.file == "" {
		return args, nil
	}
	f, err := conf.Read(conf.Path(c.file))
	switch {
	case err != nil:
		return nil, err
	case !filepath.IsAbs(f.Mount.Point):
		return nil, f.Wrong("mount.point", fmt.Errorf("an absolute path is needed, it is %q", f.Mount.Point))
	case f.Mount.CacheSize != "" && !flags.Changed("cache-size"):
		if err := c.cache.Set(string(f.Mount.CacheSize)); err != nil {
			return nil, f.Wrong("mount.cache_size", err)
		}
	}
	if !flags.Changed("source") && !strings.Contains(c.Generation, "/") {
		c.Source = f.Mount.Source
	}
	if !flags.Changed("name-format") && !flags.Changed("generation") {
		c.NameFormat = fs.NameFormat(f.Mount.NameFormat)
		if err := c.NameFormat.Check(); err != nil {
			return nil, f.Wrong("mount.name_format", err)
		}
	}
	if !flags.Changed("metrics-listen") && f.Mount.MetricsListen != "" {
		if c.metrics, err = metricsAddress(f.Mount.MetricsListen); err != nil {
			return nil, f.Wrong("mount.metrics_listen", err)
		}
	}
	return []string{f.Repository, f.Mount.Point}, nil
}

// mountOption takes one option of -o; one with a value is the flag of that name. noallow_other is for fstab, where mount(8)
// keeps "private" to itself: to it that is a kind of propagation.
func (c *config) mountOption(option string, flags *pflag.FlagSet, allowOther *bool) error {
	key, value, _ := strings.Cut(option, "=")
	valued := []string{"source", "generation", "name-format", "cache-size", "metrics-listen"}
	switch {
	case value != "" && slices.Contains(valued, key):
		return flags.Set(key, value)
	case option == "private" || option == "noallow_other":
		c.Private = true
	case option == "allow_other":
		*allowOther = true
	case option == "noexec":
		c.NoExec = true
	case option == "exec":
		c.NoExec = false
	case !ignored(option):
		return fmt.Errorf("unknown mount option %q", option)
	}
	return nil
}

// ignored reports whether a mount option is for others, or says what a mount of
// ours is anyway, or asks for what it never is: writable, or with devices and
// setuid programs that work.
func ignored(option string) bool {
	for _, prefix := range []string{"x-", "X-", "comment="} {
		if strings.HasPrefix(option, prefix) {
			return true
		}
	}
	switch option {
	case "", "defaults", "ro", "rw", "dev", "nodev", "suid", "nosuid", "async", "sync",
		"auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group",
		"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime",
		"strictatime", "nostrictatime", "lazytime", "nolazytime", "default_permissions":
		return true
	}
	return false
}
