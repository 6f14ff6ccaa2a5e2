package fs

import (
	"encoding/binary"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// A stream is at least streamLength requests in each streamPeriod.
const (
	streamLength = 16
	streamPeriod = 20 * time.Millisecond
)

// latency keeps the cores of a virtual machine from halting while requests
// stream. Each request has the kernel wake a thread of ours, and then that of
// the program that waits for the answer; to wake a halted core takes some 20 µs
// there, more than most answers. The kernel's CPU latency request that is made
// (Documentation/power/pm_qos_interface.rst) ends with the stream, and with the
// process. It is safe for concurrent use.
type latency struct {
	device   string // to write the request to; "" where it is of no use
	requests atomic.Uint64
	last     atomic.Int64 // when the last streamLength of them were full, in Unix ns
	held     atomic.Bool
}

// newLatency returns a latency that has an effect where idle cores halt, and the
// kernel lets us have a say in that.
func newLatency() *latency {
	driver, err := os.ReadFile("/sys/devices/system/cpu/cpuidle/current_driver")
	if err != nil || strings.TrimSpace(string(driver)) != "haltpoll" || os.Geteuid() != 0 {
		return &latency{}
	}
	return &latency{device: "/dev/cpu_dma_latency"}
}

// request is told of each request.
func (l *latency) request() {
	if l.requests.Add(1)%streamLength != 0 || l.device == "" || l.held.Load() {
		return
	}
	now := time.Now().UnixNano()
	if now-l.last.Swap(now) < int64(streamPeriod) && l.held.CompareAndSwap(false, true) {
		go l.hold()
	}
}

// hold makes the request for no latency at all, until the stream has ended. Where
// the kernel refuses it, it is not asked again.
func (l *latency) hold() {
	f, err := os.OpenFile(l.device, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Write(binary.NativeEndian.AppendUint32(nil, 0)); err != nil {
		return
	}
	for before := l.requests.Load(); ; {
		time.Sleep(streamPeriod)
		now := l.requests.Load()
		if now-before < streamLength {
			l.held.Store(false)
			return
		}
		before = now
	}
}
