package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/backupfs/backupfs/internal/treetest"
)

// atOnce runs n commands at the same time and wants each to end with 0.
func atOnce(t *testing.T, n int, command func(i int) *exec.Cmd) []result {
	t.Helper()
	results := make([]result, n)
	var wait sync.WaitGroup
	for i := range n {
		b := start(t, command(i))
		wait.Go(func() {
			<-b.done
			results[i] = result{code: b.cmd.ProcessState.ExitCode(), stdout: b.stdout.String(), stderr: b.stderr.String()}
		})
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(commandLimit):
		t.Fatalf("%d commands at once hang", n)
	}
	for i, r := range results {
		if r.code != 0 {
			t.Errorf("command %d of %d at once: exit code %d\n%s", i, n, r.code, tail(r.stderr))
		}
	}
	return results
}

func TestTwoRunsOfOneSource(t *testing.T) {
	for round := range 3 {
		src := tempDir(t)
		createTree(t, src, treetest.Random(uint64(round)+21, treetest.RandomOptions{Owners: true}))
		r := newRepo(t)
		if round > 0 {
			r.all(src)
			_, err := treetest.NewEditor(src, 21).Edit(30)
			must(t, err)
		}
		want := readTree(t, src)
		results := atOnce(t, 2, func(int) *exec.Cmd { return r.command("create", "--json", "--root", src, "/") })
		m := r.mount()
		seen := map[string]bool{}
		for _, res := range results {
			s := parseSummary(t, res.stdout)
			if seen[s.Generation] {
				t.Errorf("two generations are called %s", s.Generation)
			}
			seen[s.Generation] = true
			wantTree(t, s.Generation, want, m.at(s.Generation), treetest.Options{})
		}
		if s := r.all(src); s.ReadBytes != 0 || s.Parts != 0 || s.New+s.Changed+s.Gone != 0 {
			t.Errorf("unchanged after two runs at once: %+v", s)
		}
	}
}

// TestManyRunsAtOnce runs eight backups of four sources at once, three times.
func TestManyRunsAtOnce(t *testing.T) {
	r := newRepo(t)
	m := r.mount()
	src := make([]string, 4)
	for i := range src {
		src[i] = tempDir(t)
		createTree(t, src[i], treetest.Random(uint64(i)+31, treetest.RandomOptions{Owners: true, Files: 80}))
	}
	records := 0
	for round := range 3 {
		want := make([]*treetest.Tree, len(src))
		for i := range src {
			want[i] = readTree(t, src[i])
		}
		results := atOnce(t, 8, func(i int) *exec.Cmd {
			return r.command("create", "--json", "--source", fmt.Sprint("source", i%4), "--root", src[i%4], "/")
		})
		records += 8
		for i, res := range results {
			s := parseSummary(t, res.stdout)
			path := m.path(fmt.Sprint("source", i%4), s.Generation)
			waitFor(t, 5*time.Second, path, func() bool { _, err := os.Lstat(path); return err == nil })
			wantTree(t, path, want[i%4], path, treetest.Options{})
		}
		if got := len(r.records()); got != records {
			t.Errorf("%d log records, want %d", got, records)
		}
		for i := range src {
			_, err := treetest.NewEditor(src[i], uint64(round)).Edit(10)
			must(t, err)
		}
	}
}

// TestNewGenerationsAppear wants a generation in the mount at most two seconds
// after the run that made it ended; what was listed before must not be stale.
func TestNewGenerationsAppear(t *testing.T) {
	src := tempDir(t)
	r := newRepo(t)
	write(t, filepath.Join(src, "file"), "0")
	first := r.all(src)
	m := r.mount()
	held, err := os.Open(m.at(first.Generation, "file"))
	must(t, err)
	defer held.Close()
	slowest := time.Duration(0)
	for i := 1; i <= 5; i++ {
		names(t, m.dir) // so that the kernel has the listing
		wantContent(t, m.path("latest", "file"), fmt.Sprint(i-1))
		write(t, filepath.Join(src, "file"), fmt.Sprint(i))
		s := r.all(src)
		began := time.Now()
		waitFor(t, 2*time.Second, "a new generation in the listing", func() bool {
			for _, name := range names(t, m.dir) {
				if name == s.Generation {
					return true
				}
			}
			return false
		})
		slowest = max(slowest, time.Since(began))
		wantContent(t, m.at(s.Generation, "file"), fmt.Sprint(i))
		waitFor(t, 2*time.Second-time.Since(began), "latest to follow", func() bool {
			target, err := os.Readlink(m.path("latest"))
			return err == nil && target == s.Generation
		})
		wantContent(t, m.path("latest", "file"), fmt.Sprint(i))
	}
	t.Logf("the slowest took %v", slowest)
	r.all(src, "--source", "web")
	waitFor(t, 2*time.Second, "a new source", func() bool { _, err := os.Lstat(m.path("web", "latest", "file")); return err == nil })
	web := r.mount("--source", "web")
	second := r.all(src, "--source", "web")
	shown := web.path(second.Generation, "file")
	waitFor(t, 2*time.Second, "a new generation of the source alone", func() bool { _, err := os.Lstat(shown); return err == nil })
	wantContent(t, shown, "5")
	b := make([]byte, 1)
	if _, err := held.ReadAt(b, 0); err != nil || b[0] != '0' {
		t.Errorf("a file that is open since the start: %q, %v", b, err)
	}
}

// TestReindexAndRunsWhileMounted rebuilds the index, and takes it away altogether,
// under a mount that is read all the time.
func TestReindexAndRunsWhileMounted(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, treetest.Random(41, treetest.RandomOptions{Owners: true}))
	r := newRepo(t)
	first := r.all(src)
	want := readTree(t, src)
	m := r.mount("--cache-size", "4MiB")
	stop := make(chan struct{})
	var wait sync.WaitGroup
	reads := 0
	wait.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := treetest.Read(m.at(first.Generation))
			if err != nil {
				t.Errorf("reading meanwhile: %v", err)
				return
			}
			if d := treetest.Diff(want, got, treetest.Options{}); len(d) > 0 {
				t.Errorf("reading meanwhile: %q", d[:min(len(d), 5)])
				return
			}
			reads++
		}
	})
	for i := range 5 {
		began := time.Now()
		if res := r.mkbackup("reindex"); res.code != 0 {
			t.Errorf("reindex while mounted: exit code %d\n%s", res.code, res.stderr)
		}
		_, err := treetest.NewEditor(src, uint64(i)).Edit(10)
		must(t, err)
		s := r.all(src)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("reindex and create while mounted took %v: does the mount block them?", took)
		}
		path := m.at(s.Generation)
		wantTree(t, path, readTree(t, src), path, treetest.Options{})
	}
	must(t, os.RemoveAll(filepath.Join(r.dir, "index")))
	atOnce(t, 3, func(i int) *exec.Cmd {
		if i == 0 {
			return r.command("create", "--root", src, "/")
		}
		return r.command("reindex")
	})
	close(stop)
	wait.Wait()
	if reads == 0 {
		t.Error("the tree was never read whole meanwhile")
	}
	wantTree(t, "after all", want, m.at(first.Generation), treetest.Options{})
}
