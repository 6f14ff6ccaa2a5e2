package cli

import (
	"os"
	"os/signal"
)

// Catch returns a channel for signals. One that our caller had ignored, as nohup(1) does,
// stays so.
func Catch(list ...os.Signal) chan os.Signal {
	signals := make(chan os.Signal, 1)
	for _, s := range list {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals
}
