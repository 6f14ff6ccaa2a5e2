package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

// metricsFile is a file of Prometheus' text format, for the textfile collector of
// node_exporter; "" is none. It holds the last run of each command for each source
// of each repository that was told to write there, so that all may share one file.
type metricsFile string

func addMetricsFlag(flags *pflag.FlagSet, f *metricsFile) {
	flags.StringVar((*string)(f), "metrics", "", "write how the run went to `FILE`, in Prometheus' text format; what other commands wrote there stays")
}

// outcome is how a run went, as metrics tell it.
type outcome struct {
	command    string
	repository string // as the command line gives it
	source     string
	wanted     bool // somebody will look at it

	errors    int64     // problems that the run went on after
	details   []sample  // of what was done; only of a run that succeeded
	measured  []sample  // of the repository, as it is after the run
	ended     time.Time // set, as are the next two, when it has ended
	seconds   float64
	succeeded bool
	code      int
}

// sample is a value of a metric.
type sample struct {
	name  string // without namePrefix
	state string // label of "entries"; else ""
	value float64
}

func (o *outcome) detail(name string, value int64) {
	o.details = append(o.details, sample{name: name, value: float64(value)})
}

// measure notes what the repository takes now, and how much of that is dead where
// it is to be counted, which takes a look at every content. It is the last thing
// that a run does.
func (o *outcome) measure(ctx context.Context, repo *archive.Repository, dead bool) {
	if !o.wanted {
		return
	}
	if err := o.tryMeasure(ctx, repo, dead); err != nil {
		note(fmt.Sprintf("the metrics do not tell what the repository takes: %v", err))
	}
}

func (o *outcome) tryMeasure(ctx context.Context, repo *archive.Repository, dead bool) error {
	db, err := index.Open(repo, index.Options{Log: notef, Interrupted: ctx.Err})
	if err != nil {
		return err
	}
	defer db.Close()
	_, stored := db.Totals()
	o.measured = append(o.measured, sample{name: "repository_stored_bytes", value: float64(stored)})
	if !dead {
		return nil
	}
	stats, err := backup.Stats(repo, db)
	if err == nil {
		o.measured = append(o.measured, sample{name: "repository_dead_bytes", value: float64(stats.DeadBytes)})
	}
	return err
}

// Metrics are named by what becomes of them when the same command runs again: of
// the last run (last_run_); of the last one that succeeded, which a failed one leaves alone;
// of the repository, which any command may renew.
const (
	namePrefix       = "backupfs_"
	successPrefix    = "last_success_"
	repositoryPrefix = "repository_"
)

// help says what each metric is. Its keys are all the metrics that there are.
func help() map[string]string {
	return map[string]string{
		"last_run_timestamp_seconds":         "Time at which the last run ended, however it did.",
		"last_run_duration_seconds":          "Duration of the last run.",
		"last_run_exit_code":                 "Exit code of the last run: 0 done, 3 done, but some files could not be read.",
		"last_run_errors":                    "Problems of the last run: files that could not be read, damages found, steps that failed.",
		"last_success_timestamp_seconds":     "Time at which the last run ended that had the exit code 0 or 3; 0 if none ever did.",
		"last_success_read_bytes":            "Bytes that the last successful run read: raw ones of the source (create), stored ones of parts (check).",
		"last_success_stored_bytes":          "Bytes that the last successful run wrote into the repository.",
		"last_success_freed_bytes":           "Stored bytes that the last successful run gave back.",
		"last_success_raw_bytes":             "Raw bytes of all files of the generation that the last successful run made.",
		"last_success_entries":               "Entries of that generation, by how they differ from the one before.",
		"last_success_forgotten_generations": "Generations that the last successful run dropped.",
		"repository_stored_bytes":            "Stored bytes of the parts of the repository.",
		"repository_dead_bytes":              "Stored bytes that no generation needs, as estimated by the last forget or compact.",
	}
}

// refuseDryRun says that there is nothing to write of a run that does nothing.
func (f metricsFile) refuseDryRun(dryRun bool) error {
	if dryRun && f != "" {
		return &exitError{exitUsage, "--dry-run does nothing that --metrics could tell of: leave one of them out"}
	}
	return nil
}

// record runs a command that was given right, and writes how it went. That this cannot be written is
// said, but changes nothing for the run: whoever watches the file sees that the
// last success does not get newer.
func (f metricsFile) record(ctx context.Context, o outcome, run func(o *outcome) error) error {
	began := time.Now()
	o.wanted = f != ""
	err := run(&o)
	if !o.wanted {
		return err
	}
	o.ended, o.seconds = time.Now(), time.Since(began).Seconds()
	o.code = exitCode(ctx, err)
	o.succeeded = o.code == 0 || o.code == exitIncomplete
	if writeErr := f.write(&o); writeErr != nil {
		note(fmt.Sprintf("the metrics of this run were not written: %v", writeErr))
	}
	return err
}

// write replaces the file, in one step for who reads it.
func (f metricsFile) write(o *outcome) error {
	name := string(f)
	repository, err := cli.Abs(o.repository)
	if err != nil {
		return err
	}
	o.repository = backup.Printable(repository)
	unlock, err := lockDirectory(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer unlock()
	before, err := readMetrics(name)
	if err != nil {
		return err
	}
	return prometheus.WriteToTextfile(name, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return o.merge(before), nil }))
}

// How long another command may take to write the same file.
const (
	lockPatience = 10 * time.Second
	lockPause    = 20 * time.Millisecond
)

// lockDirectory keeps others from changing a file of metrics in it meanwhile.
func lockDirectory(dir string) (unlock func(), err error) {
	for began := time.Now(); ; time.Sleep(lockPause) {
		lock, err := tryLock(dir)
		if err == nil {
			return func() { lock.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Since(began) > lockPatience {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// readMetrics returns the metrics in a file by their names; none where there is
// no file. A file that holds anything else is not ours to replace.
func readMetrics(name string) (map[string]*dto.MetricFamily, error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(file)
	if err != nil {
		return nil, fmt.Errorf("%s is no file of metrics, and stays as it is: remove it, or give another --metrics: %w", name, err)
	}
	for family := range families {
		if !strings.HasPrefix(family, namePrefix) {
			return nil, fmt.Errorf("%s has metrics of others (%s), and stays as it is: give another --metrics", name, family)
		}
	}
	return families, nil
}

// merge returns the metrics of the run, and of those before what it leaves alone.
func (o *outcome) merge(before map[string]*dto.MetricFamily) []*dto.MetricFamily {
	var list []*dto.MetricFamily
	for name, text := range help() {
		full := namePrefix + name
		family := &dto.MetricFamily{Name: &full, Help: &text, Type: dto.MetricType_GAUGE.Enum()}
		family.Metric = slices.DeleteFunc(before[full].GetMetric(), func(m *dto.Metric) bool { return o.replaces(name, m) })
		for _, s := range o.samples() {
			if s.name == name {
				family.Metric = append(family.Metric, o.metric(s))
			}
		}
		if name == "last_success_timestamp_seconds" && !slices.ContainsFunc(family.Metric, o.sameRun) {
			family.Metric = append(family.Metric, o.metric(sample{name: name})) // an alert needs something to compare
		}
		if len(family.Metric) > 0 {
			list = append(list, family)
		}
	}
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return list
}

// replaces reports whether a metric from before is not to be kept.
func (o *outcome) replaces(name string, m *dto.Metric) bool {
	switch {
	case strings.HasPrefix(name, repositoryPrefix):
		return label(m, "repository") == o.repository && slices.ContainsFunc(o.measured, func(s sample) bool { return s.name == name })
	case strings.HasPrefix(name, successPrefix):
		return o.succeeded && o.sameRun(m)
	}
	return o.sameRun(m)
}

// sameRun reports whether a metric is of a run of the same command on the same.
func (o *outcome) sameRun(m *dto.Metric) bool {
	return label(m, "command") == o.command && label(m, "repository") == o.repository && label(m, "source") == o.source
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// samples returns all that the run has to tell.
func (o *outcome) samples() []sample {
	list := []sample{
		{name: "last_run_timestamp_seconds", value: float64(o.ended.Unix())},
		{name: "last_run_duration_seconds", value: o.seconds},
		{name: "last_run_exit_code", value: float64(o.code)},
		{name: "last_run_errors", value: float64(o.errors)},
	}
	if o.succeeded {
		list = append(list, sample{name: "last_success_timestamp_seconds", value: float64(o.ended.Unix())})
		list = append(list, o.details...)
	}
	return append(list, o.measured...)
}

// metric gives a sample its labels.
func (o *outcome) metric(s sample) *dto.Metric {
	m := &dto.Metric{Gauge: &dto.Gauge{Value: &s.value}}
	add := func(name, value string) { m.Label = append(m.Label, &dto.LabelPair{Name: &name, Value: &value}) }
	if strings.HasPrefix(s.name, repositoryPrefix) {
		add("repository", o.repository)
		return m
	}
	add("command", o.command)
	add("repository", o.repository)
	add("source", o.source)
	if s.state != "" {
		add("state", s.state)
	}
	return m
}

// created notes what create has done.
func (o *outcome) created(s backup.Summary) {
	o.errors = s.Errors + s.Missing + int64(s.LostRecords)
	o.detail("last_success_read_bytes", s.ReadBytes)
	o.detail("last_success_stored_bytes", s.StoredBytes)
	o.detail("last_success_raw_bytes", s.RawBytes)
	const entries = "last_success_entries"
	o.details = append(o.details, sample{entries, "new", float64(s.New)}, sample{entries, "changed", float64(s.Changed)},
		sample{entries, "unchanged", float64(s.Unchanged)}, sample{entries, "gone", float64(s.Gone)})
}
