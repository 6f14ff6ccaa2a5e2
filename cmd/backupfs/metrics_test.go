package main

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// serveMetrics serves metrics of no mount, with a timeout for clients, and returns where.
func serveMetrics(t *testing.T, timeout time.Duration) (address string) {
	t.Helper()
	s, err := listenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.timeout = timeout
	s.serve(nil, func(string, ...any) {})
	t.Cleanup(s.close)
	return s.listener.Addr().String()
}

// ask connects and asks for what is not there, which needs no mount; the connection stays.
func ask(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: metrics\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMetricsTimeout: a connection on which nothing more is asked is closed.
func TestMetricsTimeout(t *testing.T) {
	c := ask(t, serveMetrics(t, 50*time.Millisecond))
	if answer, err := io.ReadAll(c); err != nil || len(answer) == 0 {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestMetricsConnections: more connections than are allowed take no more descriptors, and
// are answered when others end.
func TestMetricsConnections(t *testing.T) {
	const more = 20
	address, before := serveMetrics(t, time.Hour), descriptors(t)
	answered := make(chan net.Conn, maxConnections+more)
	for range maxConnections + more {
		c := ask(t, address)
		go func() {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				answered <- c
			}
		}()
	}
	var open []net.Conn
	for range maxConnections {
		open = append(open, next(t, answered))
	}
	select {
	case <-answered:
		t.Error("one more was answered")
	case <-time.After(100 * time.Millisecond):
	}
	if took := descriptors(t) - before - (maxConnections + more); took > maxConnections {
		t.Errorf("%d descriptors of the server", took)
	}
	for _, c := range open {
		c.Close()
	}
	for range more {
		next(t, answered).Close()
	}
}

// next returns the next connection that was answered.
func next(t *testing.T, answered chan net.Conn) net.Conn {
	t.Helper()
	select {
	case c := <-answered:
		return c
	case <-time.After(time.Minute):
		t.Fatal("nobody is answered")
	}
	return nil
}

// descriptors returns how many this process has.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
