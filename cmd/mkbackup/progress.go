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

// bar shows the progress of a run on stderr. A bar that is not shown only prints
// lines.
type bar struct {
	shown   bool
	state   func(elapsed time.Duration) barState
	started time.Time
	mutex   sync.Mutex // the terminal: lines and the bar take turns
	bar     *progressbar.ProgressBar
	end     chan struct{}
	ended   sync.WaitGroup
	done    int64 // what the bar shows
}

// barState is what a bar shows.
type barState struct {
	done, total int64 // of anything; a total that is less than done is not known
	text        string
}

const barInterval = 200 * time.Millisecond

func newBar(when string, quiet bool, state func(elapsed time.Duration) barState) *bar {
	shown := when == "always" || when == "auto" && !quiet && term.IsTerminal(int(os.Stderr.Fd()))
	return &bar{shown: shown, state: state, end: make(chan struct{})}
}

// createState shows files of those in the generation before, and the ETA from
// that; bytes read and their rate; the current path.
func createState(p *backup.Progress) func(time.Duration) barState {
	return func(elapsed time.Duration) barState {
		done, before := p.Files()
		read := p.ReadBytes()
		rate := float64(read) / elapsed.Seconds()
		return barState{done, before, fmt.Sprintf("%s files, %s read, %s/s, %s", humanize.Comma(done), humanize.IBytes(uint64(read)),
			humanize.IBytes(uint64(rate)), shorten(display(p.Path()), 40))}
	}
}

// checkState shows what a check does, and the bytes done of those to do.
func checkState(p *backup.CheckProgress) func(time.Duration) barState {
	return func(elapsed time.Duration) barState {
		phase, done, total := p.State()
		text := "check: " + phase
		if total > 0 {
			text += fmt.Sprintf(", %s of %s, %s/s", humanize.IBytes(uint64(done)), humanize.IBytes(uint64(total)),
				humanize.IBytes(uint64(float64(done)/elapsed.Seconds())))
		}
		return barState{done, total, text}
	}
}

// compactState shows the bytes of parts done of those to do.
func compactState(p *backup.CompactProgress) func(time.Duration) barState {
	return func(time.Duration) barState {
		done, total := p.Bytes()
		return barState{done, total, fmt.Sprintf("%s of %s", humanize.IBytes(uint64(done)), humanize.IBytes(uint64(total)))}
	}
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
	if s.done < b.done { // something else is done now
		b.bar.Reset()
	}
	b.done = s.done
	if s.total > 0 && s.done <= s.total {
		b.bar.ChangeMax64(s.total)
	}
	b.bar.Describe(s.text)
	_ = b.bar.Set64(s.done)
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
