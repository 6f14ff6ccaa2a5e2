package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/backupfs/backupfs/backup"
)

// bar shows the progress of a command on stderr. A bar that is not shown only
// prints lines.
type bar struct {
	shown   bool
	state   func(elapsed time.Duration) barState
	started time.Time
	mutex   sync.Mutex // the terminal: lines and the bar take turns
	bar     *progressbar.ProgressBar
	done    int64 // what the bar shows
	end     chan struct{}
	ended   sync.WaitGroup
}

// barState is what a bar shows: how much is done of a total, 0 where that is not
// known and no ETA can be, and in words what is being done.
type barState struct {
	done, total int64
	text        string
}

const barInterval = 200 * time.Millisecond

func newBar(when string, quiet bool, state func(elapsed time.Duration) barState) *bar {
	shown := when == "always" || when == "auto" && !quiet && term.IsTerminal(int(os.Stderr.Fd()))
	return &bar{shown: shown, state: state, end: make(chan struct{})}
}

// checkProgressFlag refuses a value of --progress that newBar does not know.
func checkProgressFlag(when string) error {
	if when != "auto" && when != "always" && when != "never" {
		return &exitError{exitUsage, fmt.Sprintf("bad --progress %q: it is auto, always or never", when)}
	}
	return nil
}

func (b *bar) start() {
	if !b.shown {
		return
	}
	b.started = time.Now()
	b.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetWidth(12),
		progressbar.OptionSetPredictTime(true), progressbar.OptionShowCount(), progressbar.OptionSetElapsedTime(false),
		progressbar.OptionClearOnFinish(), progressbar.OptionUseANSICodes(true))
	b.ended.Go(func() {
		tick := time.NewTicker(barInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				b.update()
			case <-b.end:
				return
			}
		}
	})
}

// update draws the bar.
func (b *bar) update() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	s := b.state(time.Since(b.started))
	if s.done < b.done { // another task has begun
		b.bar.Reset()
	}
	b.done = s.done
	if s.total > 0 && s.done <= s.total {
		b.bar.ChangeMax64(s.total)
	} else {
		b.bar.ChangeMax64(-1)
	}
	b.bar.Describe(s.text)
	_ = b.bar.Set64(s.done)
}

// creating tells how far a backup is: files of those in the generation before,
// and the ETA from that; bytes read and their rate; the current path.
func creating(p *backup.Progress) func(time.Duration) barState {
	return func(elapsed time.Duration) barState {
		done, before := p.Files()
		return barState{done, before, fmt.Sprintf("%s files, %s read, %s, %s", humanize.Comma(done), humanize.IBytes(uint64(p.ReadBytes())),
			rate(p.ReadBytes(), elapsed), shorten(display(p.Path()), 40))}
	}
}

func rate(bytes int64, elapsed time.Duration) string {
	return humanize.IBytes(uint64(float64(bytes)/elapsed.Seconds())) + "/s"
}

// shorten keeps the end of a text, which tells more of a path.
func shorten(text string, length int) string {
	runes := []rune(text)
	if len(runes) <= length {
		return text
	}
	return "…" + string(runes[len(runes)-length+1:])
}

func (b *bar) stop() {
	if !b.shown {
		return
	}
	close(b.end)
	b.ended.Wait()
	_ = b.bar.Clear()
}

// print prints a line, above the bar where one is shown.
func (b *bar) print(w io.Writer, line string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.bar != nil {
		_ = b.bar.Clear()
	}
	_, _ = fmt.Fprintln(w, line)
}
