package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/internal/treetest"
)

// metrics are values by name and those labels that are not empty, but for the
// repository: `backupfs_last_run_errors{create web1}`.
type metrics map[string]float64

// parseMetrics reads metrics as Prometheus does, which takes each only once.
func parseMetrics(t *testing.T, text io.Reader) metrics {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(text)
	must(t, err)
	m := metrics{}
	for name, family := range families {
		if family.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, l := range metric.GetLabel() {
				if l.GetName() != "repository" && l.GetValue() != "" {
					labels = append(labels, l.GetValue())
				}
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, " ") + "}"
			}
			if _, twice := m[key]; twice {
				t.Errorf("%s is there twice", key)
			}
			m[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return m
}

func readMetrics(t *testing.T, file string) metrics {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	return parseMetrics(t, bytes.NewReader(text))
}

// want fails the test unless metrics have these values.
func (m metrics) want(t *testing.T, what string, want metrics) {
	t.Helper()
	for name, value := range want {
		if got, ok := m[name]; !ok || got != value {
			t.Errorf("%s: %s is %v (there: %t), want %v", what, name, got, ok, value)
		}
	}
}

// TestMetricsFile follows a repository through successes, failures, an interrupt
// and damage.
func TestMetricsFile(t *testing.T) {
	src, file := tempDir(t), filepath.Join(tempDir(t), "backupfs.prom")
	createTree(t, src, []treetest.Node{{Path: "a", Seed: 1, Size: 300_000}, {Path: "b", Data: []byte("b")}})
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	after := func(code int, command string, args ...string) metrics {
		t.Helper()
		cmd := r.command(command, append(args, "--metrics", file)...)
		res := runCmd(t, exec.Command("sh", append([]string{"-c", `umask 077; exec "$@"`, "sh"}, cmd.Args...)...))
		if res.code != code {
			t.Fatalf("%s %q: exit code %d, want %d: %s", command, args, res.code, code, res.stderr)
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o644 {
			t.Fatalf("node_exporter cannot read the file: %v, %v", st, err)
		}
		return readMetrics(t, file)
	}
	const success = "backupfs_last_success_timestamp_seconds"
	began := float64(time.Now().Unix())
	first := after(0, "create", "--root", src, "/")
	first.want(t, "the first run", metrics{"backupfs_last_run_exit_code{create}": 0, "backupfs_last_run_errors{create}": 0,
		"backupfs_last_success_read_bytes{create}": 300_001, "backupfs_last_success_raw_bytes{create}": 300_001,
		"backupfs_last_success_entries{create new}": 3, "backupfs_last_success_entries{create gone}": 0,
		"backupfs_repository_stored_bytes": float64(r.partBytes())})
	if when := first[success+"{create}"]; when < began || when > float64(time.Now().Unix()) {
		t.Errorf("the first success was at %v, not after %v", when, began)
	}
	if first["backupfs_last_success_stored_bytes{create}"] < float64(r.partBytes()) || first["backupfs_last_run_duration_seconds{create}"] <= 0 {
		t.Errorf("%v", first)
	}

	failed := after(1, "create", "--root", src, "/none")
	failed.want(t, "a failed run", metrics{"backupfs_last_run_exit_code{create}": 1, success + "{create}": first[success+"{create}"],
		"backupfs_last_success_read_bytes{create}": 300_001})

	incomplete := after(3, "create", "--root", src, "/a", "/none")
	incomplete.want(t, "a path that is missing", metrics{"backupfs_last_run_exit_code{create}": 3, "backupfs_last_run_errors{create}": 1})
	if incomplete[success+"{create}"] < first[success+"{create}"] {
		t.Errorf("a run with the exit code 3 is no success: %v", incomplete)
	}

	after(1, "create", "--root", src, "--source", "web1", "/none").want(t, "another source", metrics{
		"backupfs_last_run_exit_code{create}": 3, "backupfs_last_run_exit_code{create web1}": 1, success + "{create web1}": 0})

	forgotten := after(0, "forget", "--keep-last", "1")
	forgotten.want(t, "forget", metrics{"backupfs_last_run_exit_code{forget}": 0, "backupfs_last_success_forgotten_generations{forget}": 1,
		success + "{create}": incomplete[success+"{create}"]})
	stats := struct {
		Dead   float64 `json:"dead_bytes"`
		Stored float64 `json:"stored_bytes"`
	}{}
	must(t, json.Unmarshal([]byte(r.mkbackup("stats", "--json").stdout), &stats))
	if stats.Dead <= 0 {
		t.Error("nothing is dead after a forget")
	}
	forgotten.want(t, "forget", metrics{"backupfs_repository_dead_bytes": stats.Dead, "backupfs_repository_stored_bytes": stats.Stored})

	compacted := after(0, "compact", "--max-dead", "0")
	compacted.want(t, "compact", metrics{"backupfs_repository_dead_bytes": 0, "backupfs_repository_stored_bytes": float64(r.partBytes()),
		"backupfs_last_success_freed_bytes{compact}": stats.Stored - float64(r.partBytes())})

	after(0, "check", "--read-data").want(t, "check", metrics{"backupfs_last_success_read_bytes{check}": float64(r.partBytes())})
	damage(t, r.parts()[0], "truncated")
	damaged := after(4, "check")
	damaged.want(t, "check of damage", metrics{"backupfs_last_run_exit_code{check}": 4, "backupfs_last_run_exit_code{compact}": 0,
		"backupfs_last_success_read_bytes{check}": float64(compacted["backupfs_repository_stored_bytes"])})
	if damaged["backupfs_last_run_errors{check}"] < 1 {
		t.Errorf("damage: %v", damaged)
	}

	unused := filepath.Join(tempDir(t), "unused.prom")
	for _, args := range [][]string{{"create", "/", "--dry-run"}, {"create", "/", "--progress=x"}, {"create", "/", "--time=x"}, {"create", "/", "--source=_"},
		{"forget", "--keep-last=1", "--dry-run"}, {"forget"}, {"forget", "--keep-last=-1"}, {"compact", "--dry-run"}, {"compact", "--limit=x"},
		{"check", "--source=x"}, {"check", "--read-data-subset=0%"}} {
		if res := r.mkbackup(args[0], append(args[1:], "--metrics", unused)...); res.code != 2 {
			t.Errorf("%q: exit code %d, want 2", args, res.code)
		}
		if _, err := os.Stat(unused); err == nil {
			t.Fatalf("%q: wrong usage, but metrics were written", args)
		}
	}
	res := r.mkbackup("create", "-q", "--root", src, "/", "--metrics", filepath.Join(src, "none", "file"))
	if res.code != 0 {
		t.Errorf("metrics that cannot be written: exit code %d", res.code)
	}
	wantOneLine(t, res.stderr, "the metrics of this run were not written", "none")
}

func TestMetricsOfAnInterruptedRun(t *testing.T) {
	file := filepath.Join(tempDir(t), "backupfs.prom")
	pid, _ := slowCreate(t, "--metrics", file)
	must(t, syscall.Kill(pid, syscall.SIGTERM))
	waitFor(t, time.Minute, "the metrics", func() bool { _, err := os.Stat(file); return err == nil })
	readMetrics(t, file).want(t, "interrupted", metrics{"backupfs_last_run_exit_code{create}": 143, "backupfs_last_success_timestamp_seconds{create}": 0})
}

// TestMetricsOfAConfiguration runs all steps of one, and one that fails after it.
func TestMetricsOfAConfiguration(t *testing.T) {
	r, src, file := newRepo(t), tempDir(t), filepath.Join(tempDir(t), "backupfs.prom")
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	text := fmt.Sprintf("repository = %q\nmetrics = %q\n[[backup]]\nroot = %q\npaths = [\"/\"]\n[[backup]]\nsource = \"db\"\nroot = %q\npaths = [\"/a\"]\n[forget]\nkeep_last = 3\n[compact]\nmax_dead = \"5%%\"\n",
		r.dir, file, src, src)
	run(t, mkbackup, "run", configFile(t, "%s", text))
	done := readMetrics(t, file)
	const success = "backupfs_last_success_timestamp_seconds"
	for _, command := range []string{"create", "create db", "forget", "compact", "check", "run"} {
		done.want(t, "all steps", metrics{"backupfs_last_run_exit_code{" + command + "}": 0, "backupfs_last_run_errors{" + command + "}": 0})
		if done[success+"{"+command+"}"] == 0 {
			t.Errorf("%s has no time of a success", command)
		}
	}
	if res := runConfig(t, configFile(t, "%s[hooks]\nbefore = [[\"false\"]]\n", text)); res.code != 1 {
		t.Fatalf("exit code %d", res.code)
	}
	readMetrics(t, file).want(t, "a hook failed", metrics{"backupfs_last_run_exit_code{run}": 1, "backupfs_last_run_errors{run}": 1,
		success + "{run}": done[success+"{run}"], success + "{create}": done[success+"{create}"]})
	other := filepath.Join(tempDir(t), "other.prom")
	run(t, mkbackup, "run", "--metrics", other, configFile(t, "%s", text))
	readMetrics(t, other).want(t, "another file", metrics{"backupfs_last_run_exit_code{run}": 0, "backupfs_last_run_exit_code{create db}": 0})
}

// freeAddress returns an address of this machine that nobody else uses: there are
// 65,000 that are only for it.
func freeAddress() string {
	n := rand.Uint32()
	return fmt.Sprintf("127.77.%d.%d:9750", n&0xff, max(n>>8&0xff, 1))
}

func scrape(t *testing.T, address string) metrics {
	t.Helper()
	client := http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://" + address + "/metrics")
	must(t, err)
	defer answer.Body.Close()
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Fatalf("%s, %s", answer.Status, kind)
	}
	return parseMetrics(t, answer.Body)
}

// TestMetricsOfAMount reads a mount, a whole part of it and a damaged one, and
// follows its metrics.
func TestMetricsOfAMount(t *testing.T) {
	src, address := tempDir(t), freeAddress()
	createTree(t, src, []treetest.Node{{Path: "bad", Seed: 1, Size: 300_000}})
	r := &repo{t: t, dir: filepath.Join(tempDir(t), "repo")}
	run(t, mkbackup, "init", r.dir)
	r.all(src, "--time", "2026-11-22T03:00:00Z")
	damaged := r.parts()[0]
	must(t, os.Remove(filepath.Join(src, "bad")))
	manyFiles(t, src, 200)
	r.all(src, "--time", "2026-11-23T03:00:00Z", "--source", "web1")
	must(t, os.Chmod(damaged, 0o644))
	f, err := os.OpenFile(damaged, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rot"), fileSize(t, damaged)/3)
	must(t, err)
	must(t, f.Close())

	m := r.mount("--metrics-listen", address)
	day := func(text string) float64 {
		when, err := time.Parse(time.RFC3339, text)
		must(t, err)
		return float64(when.Unix())
	}
	idle := scrape(t, address)
	idle.want(t, "idle", metrics{"backupfs_reads_total": 0, "backupfs_io_errors_total": 0, "backupfs_frames_decoded_total": 0,
		"backupfs_refresh_errors_total": 0, "backupfs_generations": 1, "backupfs_generations{web1}": 1,
		"backupfs_newest_generation_timestamp_seconds": day("2026-11-22T03:00:00Z"), "backupfs_newest_generation_timestamp_seconds{web1}": day("2026-11-23T03:00:00Z")})
	wantTree(t, "the mount", readTree(t, src), m.path("web1", "latest"), treetest.Options{})
	read := scrape(t, address)
	for _, name := range []string{"backupfs_reads_total", "backupfs_read_bytes_total", "backupfs_frames_decoded_total", "backupfs_frames_decoded_bytes_total",
		"backupfs_frame_cache_misses_total", "backupfs_frame_cache_bytes", "process_resident_memory_bytes", "go_goroutines"} {
		if read[name] < 1 {
			t.Errorf("%s is %v after all was read", name, read[name])
		}
	}
	read.want(t, "after all was read", metrics{"backupfs_io_errors_total": 0, "backupfs_frame_errors_total": 0})
	if _, err := os.ReadFile(m.path("latest", "bad")); err == nil {
		t.Error("the damaged file can be read")
	}
	if broken := scrape(t, address); broken["backupfs_io_errors_total"] < 1 || broken["backupfs_frame_errors_total"] < 1 {
		t.Errorf("after an I/O error: %v", broken)
	}
	r.all(src, "--source", "web1")
	waitFor(t, time.Minute, "a new generation to be counted", func() bool { return scrape(t, address)["backupfs_generations{web1}"] == 2 })

	wantTaken(t, r, address)
	m.stop()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("somebody listens after the unmount")
	}
}

// wantTaken fails the test unless a mount whose port is taken is refused.
func wantTaken(t *testing.T, r *repo, address string) {
	t.Helper()
	for _, foreground := range []bool{false, true} {
		point := tempDir(t)
		args := []string{"--metrics-listen", address, r.dir, point}
		if foreground {
			args = append(args, "-f")
		}
		res := runCmd(t, exec.Command(backupfs, args...))
		if res.code != 1 || isMounted(t, point) {
			t.Errorf("a port that is taken: exit code %d, mounted: %t", res.code, isMounted(t, point))
		}
		wantOneLine(t, res.stderr, address, "choose another one")
	}
}

// TestMetricsListenIsConfigured takes the address from a configuration, in the
// foreground as the systemd unit does, and from an option as fstab does.
func TestMetricsListenIsConfigured(t *testing.T) {
	r, src, point := newRepo(t), tempDir(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	r.all(src)
	address := freeAddress()
	file := configFile(t, "repository = %q\n[mount]\npoint = %q\nmetrics_listen = %q\n", r.dir, point, address)
	b := start(t, exec.Command(backupfs, "-f", "--config", file))
	waitFor(t, time.Minute, "the mount", func() bool { return isMounted(t, point) })
	scrape(t, address).want(t, "by a configuration", metrics{"backupfs_generations": 1})
	b.cmd.Process.Signal(syscall.SIGTERM)
	if code := b.wait(t, time.Minute); code != 0 {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
	m := r.mount("-o", "metrics-listen="+address)
	scrape(t, address).want(t, "by an option", metrics{"backupfs_generations": 1})
	m.stop()
	for _, wrong := range []string{"", "9750", "127.0.0.1:", "http://127.0.0.1:9750/metrics"} {
		if res := runCmd(t, exec.Command(backupfs, "--metrics-listen", wrong, r.dir, point)); res.code != 2 || !strings.Contains(res.stderr, "127.0.0.1:9750") {
			t.Errorf("%q: exit code %d: %s", wrong, res.code, res.stderr)
		}
	}
}

// TestUnitAllowsMetrics compares the sockets that a mount with metrics makes, in
// the foreground and told to notify, with those that its systemd unit allows.
func TestUnitAllowsMetrics(t *testing.T) {
	unit, err := os.ReadFile("../internal/packaging/systemd/backupfs@.service")
	must(t, err)
	allowed := regexp.MustCompile(`(?m)^RestrictAddressFamilies=(.*)$`).FindStringSubmatch(string(unit))
	if allowed == nil || !strings.Contains(string(unit), "\nIPAddressAllow=localhost\n") {
		t.Fatalf("the unit has no rules for sockets, or does not let this machine in:\n%s", unit)
	}
	r, src, point := newRepo(t), tempDir(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	r.all(src)
	address, trace := freeAddress(), filepath.Join(tempDir(t), "trace")
	notify, ready := notifySocket(t)
	cmd := exec.Command("strace", "-f", "-qq", "-o", trace, "-e", "trace=socket", backupfs, "-f", "--metrics-listen", address, r.dir, point)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	b := start(t, cmd)
	select {
	case <-ready:
	case <-b.done:
		t.Fatalf("it ended: %s", b.stderr.String())
	case <-time.After(time.Minute):
		t.Fatal("no sd_notify")
	}
	scrape(t, address)
	must(t, unix.Unmount(point, 0))
	if code := b.wait(t, time.Minute); code != 0 {
		t.Errorf("exit code %d: %s", code, b.stderr.String())
	}
	text, err := os.ReadFile(trace)
	must(t, err)
	made := map[string]bool{}
	for _, call := range regexp.MustCompile(`socket\((AF_\w+)`).FindAllStringSubmatch(string(text), -1) {
		made[call[1]] = true
	}
	if !made["AF_UNIX"] || !made["AF_INET"] {
		t.Errorf("sockets of %v were made, want some of AF_UNIX and AF_INET", made)
	}
	for family := range made {
		if !slices.Contains(strings.Fields(allowed[1]), family) {
			t.Errorf("the unit allows %s, but %s is needed", allowed[1], family)
		}
	}
}

// Without an address only this machine may ask.
func TestMetricsListenOnLoopback(t *testing.T) {
	r, src := newRepo(t), tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "a", Data: []byte("1")}})
	r.all(src)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	must(t, l.Close())
	m := r.mount("--metrics-listen", ":"+port)
	scrape(t, "127.0.0.1:"+port)
	n, err := strconv.Atoi(port)
	must(t, err)
	table, err := os.ReadFile("/proc/net/tcp")
	must(t, err)
	if !regexp.MustCompile(fmt.Sprintf(`0100007F:%04X 00000000:0000 0A`, n)).Match(table) {
		t.Errorf("not bound to 127.0.0.1:\n%s", table)
	}
	m.stop()
}

// TestProgressEvents reads the events of a run whose reading takes some seconds.
func TestProgressEvents(t *testing.T) {
	src := tempDir(t)
	createTree(t, src, []treetest.Node{{Path: "dir/a", Seed: 2, Size: 6 << 20}, {Path: "dir/b", Seed: 3, Size: 1 << 20}})
	must(t, unix.Mkfifo(filepath.Join(src, "fifo"), 0o600))
	r := newRepo(t)
	res := r.mkbackup("create", "-v", "--json", "--progress", "always", "--read-rate", "3MiB", "--root", src, "--exclude", "b", "/dir", "/fifo", "/none")
	if res.code != 3 {
		t.Fatalf("exit code %d: %s", res.code, res.stderr)
	}
	count := map[string]int{}
	type event struct {
		Event, Phase, Unit, Path, Text string
		Done, Total                    int64
		ReadBytes                      int64 `json:"read_bytes"`
		Files                          int64
		Seconds                        float64
	}
	var last, progress event
	for line := range strings.Lines(res.stdout) {
		last = event{}
		must(t, json.Unmarshal([]byte(line), &last))
		count[last.Event]++
		if last.Event == "progress" {
			progress = last
		}
	}
	if count["progress"] < 2 || count["change"] != 4 || count["problem"] != 1 || count["excluded"] != 1 || count["summary"] != 1 || len(count) != 5 {
		t.Errorf("events: %v\n%s", count, res.stdout)
	}
	if last.Event != "summary" || last.Files != 2 {
		t.Errorf("the last event is %+v", last)
	}
	if progress.Phase != "create" || progress.Unit != "entries" || progress.Done != 5 || progress.ReadBytes != 6<<20 || progress.Seconds < 1 {
		t.Errorf("the last event of progress is %+v", progress)
	}
	if want := "mkbackup: /none: "; !strings.Contains(res.stderr, want) {
		t.Errorf("the problem is not on stderr: %s", res.stderr)
	}
	for command, args := range map[string][]string{"check": {"--read-data"}, "compact": nil, "reindex": nil} {
		res := r.mkbackup(command, append(args, "--json", "--progress", "always")...)
		lines := strings.Split(strings.TrimSpace(res.stdout), "\n")
		if res.code != 0 || len(lines) < 2 || res.stderr != "" {
			t.Fatalf("%s: exit code %d, %q: %s", command, res.code, lines, res.stderr)
		}
		if !strings.HasPrefix(lines[0], `{"event":"progress","phase":"`) || !strings.HasPrefix(lines[len(lines)-1], `{"event":"summary",`) {
			t.Errorf("%s: %q", command, lines)
		}
	}
}
