package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func readText(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "web1.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Read(file)
	if err != nil {
		text, ok := strings.CutPrefix(err.Error(), file)
		if !ok {
			t.Errorf("error without the file's name: %v", err)
		}
		t.Log(text)
	}
	return c, err
}

func TestErrorsNameTheLine(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"repository = \"/r\"\nrepositry = \"/r\"\n", `:2: unknown key "repositry"`},
		{"repository = \"/r\"\n\n[forget]\nkeep_dayly = 7\n", `:4: unknown key "forget.keep_dayly"`},
		{"repository = \"/r\"\n[[backup]]\npath = [\"/etc\"]\n", `:3: unknown key "backup.path"`},
		{"repository = 5\n", ":1: repository: a text in quotes is needed"},
		{"[repository]\npath = 1\n", ":1: repository: a text in quotes is needed"},
		{"repository = \"/r\"\n[forget]\nkeep_daily = \"seven\"\n", ":3: forget.keep_daily: a whole number, 0 or more, is needed"},
		{"repository = \"/r\"\n[forget]\nkeep_daily = -7\n", ":3: forget.keep_daily: a whole number, 0 or more, is needed"},
		{"repository = \"/r\"\n[forget]\nkeep_within = 14\n", ":3: forget.keep_within: a text in quotes is needed"},
		{"repository = \"/r\"\n[priority]\nnice = 1.5\n", ":3: priority.nice: a whole number is needed"},
		{"repository = \"/r\"\n[[backup]]\npaths = \"/etc\"\n", `:3: backup.paths: a list of texts, as ["/etc", "/home"], is needed`},
		{"repository = \"/r\"\n[[backup]]\npaths = [\"/etc\",\n1]\n", `:4: backup.paths: a list of texts`},
		{"repository = \"/r\"\n[[backup]]\nexclude_caches = \"yes\"\n", ":3: backup.exclude_caches: true or false is needed"},
		{"repository = \"/r\"\n[[backup]]\nexclude_caches = yes\n", ":3: this is no TOML: "},
		{"repository = \"/r\"\n[compact]\nmax_dead = 10\n", `:3: compact.max_dead: a percentage in quotes, as "10%", is needed`},
		{"repository = \"/r\"\n[compact]\nmax_dead = \"lots\"\n", `:3: compact.max_dead: "lots" is no percentage`},
		{"repository = \"/r\"\n[compact]\nmax_dead = \"1 0%\"\n", `:3: compact.max_dead: "1 0%" is no percentage`},
		{"repository = \"/r\"\n[check]\nread_data_subset = \"101%\"\n", `:3: check.read_data_subset: "101%" is no percentage`},
		{"repository = \"/r\"\n[priority]\nread_rate = \"fast\"\n", `:3: priority.read_rate: "fast" is no size`},
		{"repository = \"/r\"\n[priority]\nread_rate = 50\n", `:3: priority.read_rate: a size in quotes, as "512MiB", is needed`},
		{"repository = \"/r\"\n[compact]\ntime_limit = \"2 hours\"\n", `:3: compact.time_limit: "2 hours" is no duration`},
		{"repository = \"/r\"\n[compact]\ntime_limit = 2\n", `:3: compact.time_limit: a duration in quotes, as "90m" or "2h", is needed`},
		{"repository = /r\n", ":1: this is no TOML: "},
		{"repository = \"/r\"\n[forget]\nkeep_last = 1\nkeep_last = 2\n", ":4: "},
		{"[hooks]\nbefore = [\"systemctl stop db\"]\nrepository = \"/r\"\n", `:2: hooks.before: a list of commands, each a list of a program`},
		{"repository = \"/r\"\nhooks = 3\n", ":2: hooks: a table, a line [hooks] with its keys below it, is needed"},
		{"repository = \"/r\"\nbackup = 3\n", ":2: backup: a table, a line [[backup]] with its keys below it, is needed"},
		{"# comment\nrepository = \"r\"", ":2: repository: an absolute path is needed"},
		{"repository = \"/r\"\nmetrics = \"backupfs.prom\"", ":2: metrics: an absolute path is needed"},
		{"", ": repository: an absolute path is needed"},
	} {
		_, err := readText(t, test.text)
		if err == nil || !strings.Contains(err.Error(), ".conf"+test.want) {
			t.Errorf("%q: got %v, want %q in it", test.text, err, test.want)
		}
	}
}

// TestWrong: a value that only its user can judge is named with its line.
func TestWrong(t *testing.T) {
	c, err := readText(t, "repository = \"/r\"\nforget.keep_last = 1\nmount = {point = \"p\"}\n[[backup]]\npaths = [\n\"/a\"]\n[[backup]]\n'source' = \"\"\"\nb\"\"\"\n[priority]\nnice = 40\n")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"priority.nice": ":11: priority.nice: bad", "backup.0.paths": ":5: backup.paths: bad", "backup.1.source": ":8: backup.source: bad",
		"backup.1.paths": ":7: backup.paths: bad", "forget.keep_last": ":2: forget.keep_last: bad", "mount.point": ":3: mount.point: bad", "hooks.before": ": hooks.before: bad",
	} {
		if got := c.Wrong(key, errors.New("bad")).Error(); !strings.HasSuffix(got, "web1.conf"+want) {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

func TestRead(t *testing.T) {
	c, err := readText(t, `
repository = "/srv/backup"

[[backup]]
paths = ["/etc", "/home"]
exclude = ["*.tmp"]
one_file_system = true

[[backup]]
source = "db"
paths = ["/var/lib/mysql"]

[forget]
keep_daily = 7

[hooks]
before = [["systemctl", "stop", "mysql"], ["sync"]]

[mount]
point = "/backups"
cache_size = "512MiB"
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Repository != "/srv/backup" || len(c.Backup) != 2 || c.Backup[1].Source != "db" || !c.Backup[0].OneFileSystem ||
		c.Backup[0].Exclude[0] != "*.tmp" || *c.Forget.KeepDaily != 7 || c.Mount.CacheSize != "512MiB" {
		t.Errorf("got %+v", c)
	}
	if b := c.Hooks.Before; len(b) != 2 || strings.Join(b[0], " ") != "systemctl stop mysql" || len(b[1]) != 1 {
		t.Errorf("hooks: got %v", b)
	}
}

func TestPath(t *testing.T) {
	for name, want := range map[string]string{"web1": "/etc/backupfs/web1.conf", "./web1": "./web1", "/a/b.toml": "/a/b.toml"} {
		if got := Path(name); got != want {
			t.Errorf("Path(%q) = %q, want %q", name, got, want)
		}
	}
}
