package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/backupfs/backupfs/integration/internal/churn"
)

// server is a fiftieth of a small real one; 90% of its bytes never change.
type server struct{ *churn.Server }

func (s server) name() string { return "server" }

func (s server) steps() int { return 365 }

func (s server) time(step int) time.Time { return nightly(step) }

func (s server) apply(dir string, step int) error { return s.Apply(dir, step) }

// commits replays the last commits of a git repository, checked out one by one.
type commits struct {
	repository string
	list       []string // oldest first
}

// newCommits finds the last n commits of the history of HEAD, those of one branch
// after those of another.
func newCommits(repository string, n int) (*commits, error) {
	out, err := output("git", "-C", repository, "rev-list", "--topo-order", fmt.Sprintf("--max-count=%d", n), "--reverse", "HEAD")
	return &commits{repository, strings.Fields(out)}, err
}

func (c *commits) name() string { return "git" }

func (c *commits) steps() int { return len(c.list) }

func (c *commits) time(step int) time.Time { return nightly(step) }

func (c *commits) apply(dir string, step int) error {
	tree, err := os.MkdirTemp("", "commit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if _, err := output("sh", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "sh", c.repository, c.list[step], tree); err != nil {
		return err
	}
	return replace(dir, tree)
}

// releases replays all releases of a Go module, as its proxy has them.
type releases struct {
	module   string
	versions []string // oldest first
}

func newReleases(module string) (*releases, error) {
	out, err := output("go", "list", "-m", "-versions", module)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(out)
	return &releases{module, words[1:]}, nil
}

func (r *releases) name() string { return r.module }

func (r *releases) steps() int { return len(r.versions) }

func (r *releases) time(step int) time.Time { return nightly(step) }

func (r *releases) apply(dir string, step int) error {
	out, err := output("go", "mod", "download", "-json", r.module+"@"+r.versions[step])
	if err != nil {
		return err
	}
	var m struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return err
	}
	return replace(dir, m.Dir)
}

// replace makes the tree at dir equal to another one. What is equal already is
// not touched.
func replace(dir, tree string) error {
	_, err := output("rsync", "-r", "--checksum", "--delete", "--chmod=u+w", tree+"/", dir+"/")
	return err
}

// nightly gives a history without times of its own one step a night.
func nightly(step int) time.Time {
	return time.Date(2025, 1, 1, 3, 0, 0, 0, time.UTC).AddDate(0, 0, step)
}

func output(name string, args ...string) (string, error) { return outputWith(nil, name, args...) }

func outputWith(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, stderr.String())
	}
	return string(out), nil
}
