package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/backupfs/backupfs/fs"
)

// metricsPath is where the metrics are, as Prometheus expects it.
const metricsPath = "/metrics"

// Any user of this machine may ask, and must not take the descriptors that the mount opens
// parts with: a client may take so long to ask, to read the answer, and to ask again, and
// there are so many connections at most. Others wait.
const (
	clientTimeout  = 10 * time.Second
	maxConnections = 16
)

// metricsAddress checks what --metrics-listen says and completes it: without a
// host, only this machine may ask.
func metricsAddress(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || port == "" || strings.Contains(text, "/") {
		return "", fmt.Errorf("%q: give an address and a port, as 127.0.0.1:9750; without the address it is 127.0.0.1", text)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// metricsServer answers for the metrics of a mount by HTTP.
type metricsServer struct {
	listener net.Listener
	timeout  time.Duration // of a client
	http     http.Server
	ended    sync.WaitGroup
}

// limitedListener accepts a connection when fewer than the capacity of slots are open.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

// Accept implements net.Listener. Whoever closes the listener closes the connections as well,
// and so ends its waiting.
func (l limitedListener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { <-l.slots })}, nil
}

// limitedConn is a connection of a limitedListener.
type limitedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// listenMetrics reserves an address, so that it is known to be free before
// anything is mounted. It returns nil where there is no address. The caller
// closes what it returns.
func listenMetrics(address string) (*metricsServer, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--metrics-listen %s: another program has that port: choose another one", address)
	case err != nil:
		return nil, fmt.Errorf("--metrics-listen %s: %w", address, err)
	}
	return &metricsServer{listener: limitedListener{l, make(chan struct{}, maxConnections)}, timeout: clientTimeout}, nil
}

// serve begins to answer for a mount; nil does nothing.
func (s *metricsServer) serve(m *fs.Mount, say func(string, ...any)) {
	if s == nil {
		return
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(m), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET "+metricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true}))
	s.http.Handler = mux
	s.http.ReadTimeout, s.http.WriteTimeout, s.http.IdleTimeout = s.timeout, s.timeout, s.timeout
	s.http.ErrorLog = log.New(sayWriter(say), "metrics: ", 0)
	s.ended.Go(func() {
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			say("metrics are not served any more: %v", err)
		}
	})
}

// close frees the address, and cuts off who is being answered; nil does nothing.
func (s *metricsServer) close() {
	if s == nil {
		return
	}
	_ = s.http.Close()     // closes the listener, too, where it serves
	_ = s.listener.Close() // where it never did
	s.ended.Wait()
}

// sayWriter makes a message of each write.
type sayWriter func(string, ...any)

// Write implements io.Writer.
func (say sayWriter) Write(p []byte) (int, error) {
	say("%s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// collector translates the metrics of a mount for Prometheus.
type collector struct {
	mount       *fs.Mount
	plain       []plainMetric
	generations *prometheus.Desc
	newest      *prometheus.Desc
	build       *prometheus.Desc
}

// plainMetric is one without labels.
type plainMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(m *fs.Metrics) int64
}

func newCollector(m *fs.Mount) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("backupfs_"+name, help, labels, nil)
	}
	c := &collector{mount: m,
		generations: desc("generations", "Generations of a source that are shown.", "source"),
		newest:      desc("newest_generation_timestamp_seconds", "Time of the newest generation of a source.", "source"),
		build:       desc("build_info", "Always 1; the version of the program is its label.", "version"),
	}
	counter := func(name, help string, of func(m *fs.Metrics) int64) {
		c.plain = append(c.plain, plainMetric{desc(name, help), prometheus.CounterValue, of})
	}
	counter("reads_total", "READ requests of the kernel that were answered.", func(m *fs.Metrics) int64 { return m.Reads })
	counter("read_bytes_total", "Raw bytes of those answers.", func(m *fs.Metrics) int64 { return m.ReadRaw })
	counter("pushes_total", "Files stored in the kernel's page cache ahead of who reads.", func(m *fs.Metrics) int64 { return m.Pushes })
	counter("pushed_bytes_total", "Raw bytes of those files.", func(m *fs.Metrics) int64 { return m.PushedRaw })
	counter("io_errors_total", "Requests answered with an I/O error (EIO).", func(m *fs.Metrics) int64 { return m.Failures })
	counter("refresh_errors_total", "Times that new generations could not be shown, each of which is tried again, or that the log ended before what is shown.", func(m *fs.Metrics) int64 { return m.RefreshFailures })
	counter("frame_cache_hits_total", "Frames needed that were in the cache, or being decoded.", func(m *fs.Metrics) int64 { return m.Frames.Hits })
	counter("frame_cache_misses_total", "Frames needed that had to be read and decoded first.", func(m *fs.Metrics) int64 { return m.Frames.Misses })
	counter("frames_decoded_total", "Frames read, verified and decoded, ahead of readers too.", func(m *fs.Metrics) int64 { return m.Frames.Decoded })
	counter("frames_decoded_bytes_total", "Raw bytes of those frames.", func(m *fs.Metrics) int64 { return m.Frames.DecodedRaw })
	counter("frame_errors_total", "Frames that could not be read, verified or decoded.", func(m *fs.Metrics) int64 { return m.Frames.Failed })
	c.plain = append(c.plain, plainMetric{desc("frame_cache_bytes", "Bytes that the cache of decoded frames takes."),
		prometheus.GaugeValue, func(m *fs.Metrics) int64 { return m.Frames.Cached }})
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, p := range c.plain {
		out <- p.desc
	}
	out <- c.generations
	out <- c.newest
	out <- c.build
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	m := c.mount.Metrics()
	for _, p := range c.plain {
		out <- prometheus.MustNewConstMetric(p.desc, p.kind, float64(p.of(&m)))
	}
	for _, s := range m.Sources {
		out <- prometheus.MustNewConstMetric(c.generations, prometheus.GaugeValue, float64(s.Generations), s.Source)
		if !s.Newest.IsZero() {
			out <- prometheus.MustNewConstMetric(c.newest, prometheus.GaugeValue, float64(s.Newest.Unix()), s.Source)
		}
	}
	out <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1, version)
}
