package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLostLog: parts without any log record and index are no repository that is well, nor
// one that is damaged: its first run may have been interrupted.
func TestLostLog(t *testing.T) {
	r := fourNights(t)
	log, aside := filepath.Join(r.dir, "log"), filepath.Join(tempDir(t), "log")
	run(t, "mv", log, aside)
	must(t, os.Mkdir(log, 0o700))
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	res := r.mkbackup("check")
	if res.code != 1 || !strings.HasPrefix(res.stdout, "INCOMPLETE: there is no log record, but 4 parts: ") {
		t.Errorf("exit code %d: %s", res.code, res.stdout)
	}
	wantOneLine(t, res.stderr, "or the log is lost", "get the files of log/ from a copy")
	if res := r.mkbackup("check", "-q"); res.code != 1 || res.stdout != "" || res.stderr == "" {
		t.Errorf("-q: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	if c, res := r.checkJSON(1); c.Damages != 0 || !strings.Contains(res.stdout, `"unnamed_parts":4`) {
		t.Errorf("--json: %s", res.stdout)
	}
	must(t, os.Remove(log))
	run(t, "mv", aside, log)
	r.checkJSON(0)
}

// TestImpossibleCheckpoint: a log of nothing but a checkpoint that contradicts itself is
// damaged, and check says how.
func TestImpossibleCheckpoint(t *testing.T) {
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	text := `{"kind":"checkpoint","number":9,"time":"2030-01-01T00:00:00Z","source":"","base":0,"previous":"` + strings.Repeat("5", 64) + `","program":"forger"}
{"directories":0,"inodes":8}
{"generation":5,"time":"2030-01-01T00:00:00Z","source":"","name":"2030-01-01T00-00-00Z","base":0}
` + with(entry(".", "dir"), `"number":258,"directory":1`) + `
{"end":{"parts":0,"contents":0,"entries":1,"extents":0,"gone":0,"forgets":0,"generations":1}}
`
	must(t, os.WriteFile(filepath.Join(r.dir, "log/000000000009.jsonl.zst"), lines(text), 0o400))
	res := r.mkbackup("check", "-q")
	if res.code != 4 || !strings.HasPrefix(res.stdout, "DAMAGED: 1 log record, 1 lost generation") ||
		!strings.Contains(res.stderr, "impossible directory number 1") || strings.Contains(res.stderr, "`mkbackup check` says") {
		t.Errorf("exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
	if res := r.mkbackup("list"); res.code == 0 || !strings.Contains(res.stderr, "`mkbackup check` says what is lost") {
		t.Errorf("list: exit code %d: %s%s", res.code, res.stdout, res.stderr)
	}
}
