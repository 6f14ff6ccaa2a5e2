package crashes

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain lets memory be collected by its amount, not its growth: each command of these
// tests takes buffers of megabytes, for moments, where next to nothing else is kept, and
// clearing and returning them took most of the time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
	os.Exit(m.Run())
}
