package config

import (
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
		{"repository = \"/r\"\n[forget]\nkeep_daily = \"seven\"\n", `:3: forget.keep_daily: `},
		{"repository = \"/r\"\n[forget]\nkeep_daily = -7\n", `:3: `},
		{"repository = \"/r\"\n[compact]\nmax_dead = \"lots\"\n", `:3: `},
		{"repository = \"/r\"\n[check]\nread_data_subset = \"101%\"\n", `:3: `},
		{"repository = \"/r\"\n[priority]\nread_rate = \"fast\"\n", `:3: `},
		{"repository = \"/r\"\n[compact]\ntime_limit = \"2 hours\"\n", `:3: `},
		{"repository = /r\n", `:1: `},
		{"[hooks]\nbefore = [\"systemctl stop db\"]\nrepository = \"/r\"\n", `:2: `},
		{"", ": repository: an absolute path is needed"},
		{"repository = \"r\"", ": repository: an absolute path is needed"},
		{"repository = \"/r\"\nmetrics = \"backupfs.prom\"", ": metrics: an absolute path is needed"},
	} {
		_, err := readText(t, test.text)
		if err == nil || !strings.Contains(err.Error(), ".conf"+test.want) {
			t.Errorf("%q: got %v, want %q in it", test.text, err, test.want)
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
		c.Backup[0].Exclude[0] != "*.tmp" || c.Forget.KeepDaily != 7 || c.Mount.CacheSize.String() != "512MiB" {
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
