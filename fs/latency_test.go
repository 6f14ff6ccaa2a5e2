package fs

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// isOpen reports whether this process has a file open.
func isOpen(t *testing.T, file string) bool {
	t.Helper()
	descriptors, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		if target, err := os.Readlink(d); err == nil && target == file {
			return true
		}
	}
	return false
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A latency asks the kernel for none while requests stream, and only then.
func TestLatency(t *testing.T) {
	device := filepath.Join(t.TempDir(), "cpu_dma_latency")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &latency{device: device}
	for range 3 * streamLength {
		l.request()
		time.Sleep(2 * streamPeriod / streamLength)
	}
	if l.held.Load() {
		t.Error("single requests were taken for a stream")
	}
	for range 2 {
		until(t, "a stream is not noticed", func() bool {
			for range streamLength {
				l.request()
			}
			written, err := os.ReadFile(device)
			return err == nil && string(written) == "\x00\x00\x00\x00" && isOpen(t, device)
		})
		until(t, "the end of the stream is not noticed", func() bool { return !isOpen(t, device) && !l.held.Load() })
	}
}
