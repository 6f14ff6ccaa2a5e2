package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// values reads a file of metrics as Prometheus does, and returns the values by
// name and labels but the repository: `last_run_errors{create,web1}`.
func values(t *testing.T, name string) map[string]float64 {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(file)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for name, family := range families {
		if family.GetHelp() == "" || family.GetType().String() != "GAUGE" {
			t.Errorf("%s is a %s with the help %q", name, family.GetType(), family.GetHelp())
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "repository" {
					labels = append(labels, l.GetValue())
				}
			}
			key := fmt.Sprintf("%s{%s}", strings.TrimPrefix(name, namePrefix), strings.Join(labels, ","))
			if _, twice := found[key]; twice {
				t.Errorf("%s is there twice", key)
			}
			found[key] = m.GetGauge().GetValue()
		}
	}
	return found
}

// record writes the metrics of a run that ends with err.
func record(file metricsFile, command, source string, err error, more func(*outcome)) {
	_ = file.record(context.Background(), outcome{command: command, repository: "/repo", source: source}, func(o *outcome) error {
		if more != nil {
			more(o)
		}
		return err
	})
}

func TestAFailureKeepsTheLastSuccess(t *testing.T) {
	file := metricsFile(filepath.Join(t.TempDir(), "backupfs.prom"))
	record(file, "create", "", errors.New("no disk"), nil)
	if v := values(t, string(file)); v["last_success_timestamp_seconds{create,}"] != 0 || v["last_run_exit_code{create,}"] != 1 || len(v) != 5 {
		t.Errorf("a failure alone: %v", v)
	}
	record(file, "create", "", &exitError{exitIncomplete, "3 problems"}, func(o *outcome) {
		o.errors = 3
		o.detail("last_success_read_bytes", 100)
	})
	succeeded := values(t, string(file))
	when := succeeded["last_success_timestamp_seconds{create,}"]
	if when < 1e9 || succeeded["last_run_errors{create,}"] != 3 || succeeded["last_run_exit_code{create,}"] != 3 || succeeded["last_success_read_bytes{create,}"] != 100 {
		t.Errorf("files that could not be read: %v", succeeded)
	}
	record(file, "create", "", errors.New("no disk"), func(o *outcome) { o.detail("last_success_read_bytes", 7) })
	failed := values(t, string(file))
	if failed["last_success_timestamp_seconds{create,}"] != when || failed["last_run_exit_code{create,}"] != 1 || failed["last_success_read_bytes{create,}"] != 100 || failed["last_run_errors{create,}"] != 0 {
		t.Errorf("a failure after a success: %v", failed)
	}
}

func TestRunsShareAFileOfMetrics(t *testing.T) {
	file := metricsFile(filepath.Join(t.TempDir(), "backupfs.prom"))
	var runs sync.WaitGroup
	for i := range 20 {
		runs.Go(func() { record(file, "create", fmt.Sprint("s", i), nil, func(o *outcome) { o.errors = int64(i) }) })
	}
	runs.Wait()
	record(file, "compact", "", nil, func(o *outcome) { o.measured = []sample{{name: "repository_dead_bytes", value: 5}} })
	record(file, "create", "s3", nil, nil)
	got := values(t, string(file))
	for i := range 20 {
		want := float64(i)
		if i == 3 {
			want = 0
		}
		if got := got[fmt.Sprintf("last_run_errors{create,s%d}", i)]; got != want {
			t.Errorf("errors of source s%d: %v, want %v", i, got, want)
		}
	}
	if got["repository_dead_bytes{}"] != 5 || got["last_run_exit_code{compact,}"] != 0 {
		t.Errorf("%v", got)
	}
	if left, _ := filepath.Glob(string(file) + "?*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestOtherFilesAreNotOverwritten(t *testing.T) {
	for _, text := range []string{"root:x:0:0:root:/root:/bin/sh\n", "# TYPE node_load1 gauge\nnode_load1 0.5\n"} {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		err := metricsFile(name).write(&outcome{command: "create", repository: "/repo"})
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "another --metrics") {
			t.Errorf("%q: %v", text, err)
		}
		if after, _ := os.ReadFile(name); string(after) != text {
			t.Errorf("%q was overwritten: %q", text, after)
		}
	}
}

// A path that is no text must not spoil the file for whoever reads it.
func TestMetricsOfAnyRepository(t *testing.T) {
	file := metricsFile(filepath.Join(t.TempDir(), "backupfs.prom"))
	for range 2 {
		if err := file.write(&outcome{command: "create", repository: "/a\xff\n\"b", succeeded: true}); err != nil {
			t.Fatal(err)
		}
	}
	if v := values(t, string(file)); len(v) != 5 {
		t.Errorf("%v", v)
	}
}
