package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/index"
)

// progressFlags say how the progress of a run is shown.
type progressFlags struct {
	when  string // auto, always or never
	json  bool
	quiet bool
}

func addProgressFlag(flags *pflag.FlagSet, f *progressFlags) {
	flags.StringVar(&f.when, "progress", "auto", "show progress, `WHEN` is auto: on a terminal, without -q; always:\nalso with -q, elsewhere as a line a minute; or never")
}

// addJSONProgressFlags adds those of a command that has a summary in JSON.
func addJSONProgressFlags(flags *pflag.FlagSet, f *progressFlags) {
	flags.BoolVar(&f.json, "json", false, "print a summary in JSON, as the last line; with --progress always, events before it")
	addProgressFlag(flags, f)
}

func (f *progressFlags) check() error {
	if f.when != "auto" && f.when != "always" && f.when != "never" {
		return &exitError{exitUsage, fmt.Sprintf("bad --progress %q: it is auto, always or never", f.when)}
	}
	return nil
}

// form is how progress is shown, and every how long.
type form time.Duration

// The forms of progress.
const (
	hidden form = 0
	drawn       = form(200 * time.Millisecond) // a bar on a terminal
	events      = form(time.Second)            // lines of JSON on stdout
	lines       = form(time.Minute)            // lines of text
)

// form chooses a form, knowing what TERM is where stderr is a terminal, "" where
// it is none. One that cannot move its cursor gets lines.
func (f *progressFlags) form(terminal string) form {
	switch {
	case f.when == "never" || f.when == "auto" && (f.quiet || terminal == ""):
		return hidden
	case f.when == "always" && f.json:
		return events
	case terminal != "" && terminal != "dumb":
		return drawn
	}
	return lines
}

// progress shows how far a run is. Nothing that it prints is coloured.
type progress struct {
	form    form
	state   func(elapsed time.Duration) state
	stdout  io.Writer
	stderr  io.Writer
	started time.Time
	mutex   sync.Mutex               // the terminal: lines and the bar take turns
	bar     *progressbar.ProgressBar // nil where none is drawn
	end     chan struct{}
	ended   sync.WaitGroup
	done    int64 // what the bar shows
}

// state is how far a run is, as an event of JSON tells it.
type state struct {
	Event     string  `json:"event"`      // "progress"
	Phase     string  `json:"phase"`      // what is being done
	Done      int64   `json:"done"`       // of anything
	Total     int64   `json:"total"`      // less than Done: not known
	Unit      string  `json:"unit"`       // of these two
	ReadBytes int64   `json:"read_bytes"` // raw ones of the source, or 0
	Path      string  `json:"path"`       // that is worked on, or ""
	Seconds   float64 `json:"seconds"`    // since the beginning
	text      string  // all of that in words
}

// message is something that is said during a run, as an event of JSON tells it.
type message struct {
	Event string `json:"event"`
	Path  string `json:"path,omitempty"` // as messages show it
	Text  string `json:"text"`
}

func newProgress(f progressFlags, state func(elapsed time.Duration) state) *progress {
	terminal := ""
	if term.IsTerminal(int(os.Stderr.Fd())) {
		terminal = cmp.Or(os.Getenv("TERM"), "unknown")
	}
	return &progress{form: f.form(terminal), state: state, stdout: os.Stdout, stderr: os.Stderr, end: make(chan struct{})}
}

// createState shows files of those in the generation before, and the ETA from
// that; bytes read and their rate; the current path.
func createState(p *backup.Progress) func(time.Duration) state {
	return func(elapsed time.Duration) state {
		done, before := p.Files()
		read := p.ReadBytes()
		return state{Phase: "create", Done: done, Total: before, Unit: "entries", ReadBytes: read, Path: display(p.Path()),
			text: fmt.Sprintf("%s files, %s read, %s, %s", humanize.Comma(done), bytesOf(read), rate(read, elapsed), shorten(display(p.Path()), 40))}
	}
}

// checkState shows what a check does, and the bytes done of those to do.
func checkState(p *backup.CheckProgress) func(time.Duration) state {
	return func(elapsed time.Duration) state {
		phase, done, total := p.State()
		text := "check: " + phase
		if total > 0 {
			text += fmt.Sprintf(", %s of %s, %s", bytesOf(done), bytesOf(total), rate(done, elapsed))
		}
		return state{Phase: phase, Done: done, Total: total, Unit: "bytes", text: text}
	}
}

// compactState shows the bytes of parts done of those to do.
func compactState(p *backup.CompactProgress) func(time.Duration) state {
	return func(time.Duration) state {
		done, total := p.Bytes()
		return state{Phase: "compact", Done: done, Total: total, Unit: "bytes", text: fmt.Sprintf("compact: %s of %s", bytesOf(done), bytesOf(total))}
	}
}

// reindexState shows the records done of those to do.
func reindexState(p *index.Progress) func(time.Duration) state {
	return func(time.Duration) state {
		done, total := p.Records()
		return state{Phase: "reindex", Done: done, Total: total, Unit: "records",
			text: fmt.Sprintf("reindex: %s of %s log records, %s lines", humanize.Comma(done), humanize.Comma(total), humanize.Comma(p.Lines()))}
	}
}

// exportState shows the bytes of files done of those to do.
func exportState(p *backup.ExportProgress) func(time.Duration) state {
	return func(elapsed time.Duration) state {
		done, total := p.Bytes()
		return state{Phase: "export", Done: done, Total: total, Unit: "bytes", Path: display(p.Path()),
			text: fmt.Sprintf("export: %s, %s, %s", bytesOf(done), rate(done, elapsed), shorten(display(p.Path()), 40))}
	}
}

func rate(bytes int64, elapsed time.Duration) string {
	return bytesOf(int64(float64(bytes)/max(elapsed, time.Millisecond).Seconds())) + "/s"
}

func (p *progress) start() {
	if p.form == hidden {
		return
	}
	p.started = time.Now()
	if p.form == drawn {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(p.stderr), progressbar.OptionSetWidth(12),
			progressbar.OptionSetPredictTime(true), progressbar.OptionShowCount(), progressbar.OptionSetElapsedTime(false),
			progressbar.OptionClearOnFinish(), progressbar.OptionUseANSICodes(true))
	}
	p.ended.Go(func() {
		tick := time.NewTicker(time.Duration(p.form))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-p.end:
				return
			}
		}
	})
}

// stop shows the last state and ends the display.
func (p *progress) stop() {
	if p.form == hidden {
		return
	}
	close(p.end)
	p.ended.Wait()
	if p.form != drawn {
		p.show()
		return
	}
	_ = p.bar.Clear()
}

// show shows the state of this moment.
func (p *progress) show() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	elapsed := time.Since(p.started)
	s := p.state(elapsed)
	switch p.form {
	case drawn:
		p.draw(s)
	case events:
		s.Event, s.Seconds = "progress", elapsed.Seconds()
		_ = json.NewEncoder(p.stdout).Encode(s)
	case lines:
		_, _ = fmt.Fprintf(p.stderr, "mkbackup: %s%s: %s\n", took(elapsed.Seconds()), s.share(), s.text)
	}
}

func (p *progress) draw(s state) {
	if s.Done < p.done { // something else is done now
		p.bar.Reset()
	}
	p.done = s.Done
	if s.Total > 0 && s.Done <= s.Total {
		p.bar.ChangeMax64(s.Total)
	}
	p.bar.Describe(s.text)
	_ = p.bar.Set64(s.Done)
}

// share says how much is done, where that is known.
func (s state) share() string {
	if s.Total <= 0 || s.Done > s.Total {
		return ""
	}
	return fmt.Sprintf(", %d%%", s.Done*100/s.Total)
}

// shorten keeps the end of a text, which tells more of a path.
func shorten(text string, length int) string {
	runes := []rune(text)
	if len(runes) <= length {
		return text
	}
	return "…" + string(runes[len(runes)-length+1:])
}

// warn prints a line on stderr, above the bar where one is drawn, and makes an
// event of what it says.
func (p *progress) warn(line string, m message) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	_, _ = fmt.Fprintln(p.stderr, "mkbackup: "+cli.OneLine(line))
	if p.form == events {
		_ = json.NewEncoder(p.stdout).Encode(m)
	}
}

// note says what is worth to know.
func (p *progress) note(text string) { p.warn(text, message{Event: "note", Text: text}) }

// tell prints a line of results on stdout, or an event instead of it.
func (p *progress) tell(line string, m message) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
	if p.form == events {
		_ = json.NewEncoder(p.stdout).Encode(m)
		return
	}
	_, _ = fmt.Fprintln(p.stdout, line)
}

// summaryEvent returns what the field "event" of a summary in JSON says: nothing
// where there were no events before.
func (p *progress) summaryEvent() string {
	if p.form == events {
		return "summary"
	}
	return ""
}
