// Package watchdog ends a fuzz target whose input never comes to an end: the fuzzing of go test
// sets no limit, and takes an input that its last moment stopped for a good one.
package watchdog

import (
	"fmt"
	"time"
)

// limit is some hundred times what an input takes, and less than the shortest time
// for which a target is fuzzed.
const limit = 10 * time.Second

// Start panics, which ends the process, unless stop is called within the limit.
func Start() (stop func()) {
	timer := time.AfterFunc(limit, func() { panic(fmt.Sprintf("an input takes more than %v", limit)) })
	return func() { timer.Stop() }
}
