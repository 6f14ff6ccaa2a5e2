package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/backupfs/backupfs/fs"
	"github.com/spf13/pflag"
)

func parse(args ...string) (config, error) {
	var c config
	flags := pflag.NewFlagSet("backupfs", pflag.ContinueOnError)
	c.define(flags)
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	return c, c.complete(flags.Args(), flags)
}

func TestConfig(t *testing.T) {
	c, err := parse("repo", "/mnt", "-o", "rw,nosuid,_netdev,x-systemd.automount,cache-size=512M,source=web1,name-format=@GMT-%Y", "-o", "noexec")
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if c.repository != wd+"/repo" || c.mountpoint != "/mnt" || c.CacheSize != 512<<20 || c.Source != "web1" || c.NameFormat != "@GMT-%Y" || !c.NoExec {
		t.Errorf("%+v", c)
	}
	if c.Private != (os.Geteuid() != 0) {
		t.Error("the mount is private by default where it should not be, or the other way round")
	}
	if c, err = parse("r", "m"); err != nil || c.CacheSize != fs.DefaultCacheSize {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = parse("r", "m", "-o", "allow_other"); err != nil || c.Private {
		t.Errorf("allow_other: %+v, %v", c, err)
	}
	if c, err = parse("r", "m", "--source", "web1", "--generation", "web1/latest"); err != nil {
		t.Errorf("the same source twice: %+v, %v", c, err)
	}
	for _, args := range [][]string{{"--private"}, {"-o", "private"}, {"-o", "noallow_other"}} {
		if c, err = parse(append(args, "r", "m")...); err != nil || !c.Private {
			t.Errorf("%q: %+v, %v", args, c, err)
		}
	}
}

// TestFlagAndOption: what a flag and -o say differently is not guessed. Of several -o the last
// one counts, as in mount(8).
func TestFlagAndOption(t *testing.T) {
	for name, values := range map[string][2]string{"source": {"web1", "x"}, "generation": {"1", "2"}, "name-format": {"%Y", "%y"},
		"cache-size": {"1G", "2G"}, "metrics-listen": {":1", ":2"}} {
		option, flag := []string{"-o", name + "=" + values[0]}, []string{"--" + name, values[1]}
		for _, args := range [][]string{append(option, flag...), append(flag, option...)} {
			_, err := parse(append(args, "r", "m")...)
			if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), "--"+name) {
				t.Errorf("%q: %v", args, err)
			}
		}
	}
	if c, err := parse("r", "m", "--cache-size", "512MiB", "-o", "cache-size=512M"); err != nil || c.CacheSize != 512<<20 {
		t.Errorf("the same size twice: %+v, %v", c, err)
	}
	if c, err := parse("r", "m", "-o", "source=a,source=b", "-o", "source=c"); err != nil || c.Source != "c" {
		t.Errorf("-o alone: %+v, %v", c, err)
	}
}

// TestOptionsOverFile: what -o says counts more than the file does, as flags do.
func TestOptionsOverFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web1.conf")
	if err := os.WriteFile(file, []byte("repository = \"/r\"\n[mount]\npoint = \"/m\"\nsource = \"web1\"\nname_format = \"%Y\"\ncache_size = \"1G\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-o", "generation=web2/latest,cache-size=512M"}, {"--generation", "web2/latest", "--cache-size", "512M"}} {
		c, err := parse(append(args, "--config", file)...)
		if err != nil || c.Source != "" || c.NameFormat != "" || c.Generation != "web2/latest" || c.CacheSize != 512<<20 {
			t.Errorf("%q: %+v, %v", args, c, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web1.conf")
	if err := os.WriteFile(file, []byte("repository = \"/r\"\n[mount]\npoint = \"/m\"\nname_format = \"%!\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"r m -o writable", `unknown mount option "writable"`},
		{"r m -o ro,cache-size=big", `"big" is no size`},
		{"r m -o source=", `unknown mount option "source="`},
		{"r m -o private,allow_other", "exclude"},
		{"r m --cache-size 1K", "too small"},
		{"r m --source=", "--source"},
		{"r m --generation=", "--generation"},
		{"r m --name-format %Y-%Q-%q", "a conversion that strftime(3) does not have"},
		{"r m --name-format %D", "no name can hold"},
		{"r m -o name-format=today", "all generations"},
		{"r m -o name-format=", `unknown mount option "name-format="`},
		{"r m --name-format %F --generation latest", "exclude each other"},
		{"r m --source web1 --generation db/latest", `the generation "db/latest" is not of the source "web1"`},
		{"r m -o source=web1,generation=db/5", "is not of the source"},
		{"--config FILE", "web1.conf:4: mount.name_format: "},
		{"--config FILE --name-format %q", "name format \"%q\""},
	} {
		_, err := parse(strings.Fields(strings.ReplaceAll(c.args, "FILE", file))...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}
