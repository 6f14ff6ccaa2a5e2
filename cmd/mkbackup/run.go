package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/backupfs/backupfs/archive"
	"github.com/backupfs/backupfs/backup"
	"github.com/backupfs/backupfs/cmd/internal/cli"
	"github.com/backupfs/backupfs/cmd/internal/config"
	"github.com/backupfs/backupfs/index"
)

// exitVariable tells hooks how the run has gone so far: the exit code.
const exitVariable = "BACKUPFS_EXIT"

func runCommand() *cobra.Command {
	var dryRun, quiet bool
	var metrics metricsFile
	cmd := &cobra.Command{
		Use:   "run NAME",
		Short: "Do all that a configuration file says: back up, forget, compact, check",
		Long: `Do all that /etc/backupfs/NAME.conf says, for cron and systemd timers; a NAME with
a "/" in it is the path of another file. The steps, in this order:

  hooks before   a command that fails ends the run
  create         of each [[backup]]
  hooks after    also after a failure: what "before" stopped is started again
  forget         by the rules of [forget]; not where a backup failed
  compact        with a max_dead in [compact]; not where a backup failed
  check          unless [check] says skip = true
  hooks on_failure   where anything above failed

Hooks are programs with their arguments; no shell is between, and they have no
terminal. They are told the exit code so far in BACKUPFS_EXIT and the repository in
BACKUPFS_REPOSITORY. An interrupt ends the step under way, but no hook; a second one has
that step end at once. While a run is under way, another one of the same file ends at
once, with 1.

The exit code is that of the first step that failed: 1, 3 where some source files
could not be read (the later steps are done all the same), 4 for damage,
129, 130 or 143 for an interrupt (a terminal that is closed is one). A wrong key or value in the file is a usage error, 2,
with its line.`,
		Example: `  mkbackup run web1
  mkbackup run --dry-run ./test.conf`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cli.Configurations,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readConfig(config.Path(args[0]))
			if err != nil {
				return &exitError{exitUsage, err.Error()}
			}
			if cmd.Flags().Changed("metrics") {
				c.Metrics = string(metrics)
			}
			if dryRun {
				return printSteps(cmd, steps(c, quiet))
			}
			unlock, err := lockRun(config.Path(args[0]))
			if err != nil {
				return err
			}
			defer unlock()
			outliveReader()
			return metricsFile(c.Metrics).record(cmd.Context(), outcome{command: "run", repository: c.Repository}, func(o *outcome) error {
				return runSteps(cmd.Context(), c.Repository, steps(c, quiet), o)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the steps; do nothing")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only problems, and what hooks print")
	addMetricsFlag(cmd.Flags(), &metrics)
	return cmd
}

// lockRun locks a configuration, until the process ends at the latest: the hooks of two
// runs would undo each other's work. Where it cannot be locked there is no lock.
func lockRun(file string) (unlock func(), err error) {
	lock, err := tryLockFile(file)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: another run of it is under way: wait for its end%s", file, othersMayLock(file))
	}
	return lock.Close, nil
}

// outliveReader keeps this process going where nobody reads its messages any more: there
// are hooks to come. Its steps get the signal as ever.
func outliveReader() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// readConfig reads a file, and checks what the steps of a run take from it: what is
// wrong is said before the first one, not by it.
func readConfig(file string) (config.Config, error) {
	c, err := config.Read(file)
	if err != nil {
		return c, err
	}
	if len(c.Backup) == 0 {
		return c, fmt.Errorf("%s: no [[backup]]: nothing to do", file)
	}
	return c, cmp.Or(checkBackups(c), checkForget(c), checkCompact(c), checkCheck(c), checkHooks(c), checkPriority(c))
}

// checkBackups checks each [[backup]], and that no two are of one source: each would
// be forgotten in favour of the other.
func checkBackups(c config.Config) error {
	for i, b := range c.Backup {
		key := fmt.Sprintf("backup.%d", i)
		if err := checkBackup(c, key, b); err != nil {
			return err
		}
		if slices.ContainsFunc(c.Backup[:i], func(other config.Backup) bool { return other.Source == b.Source }) {
			return c.Wrong(key+".source", fmt.Errorf("%s is backed up already: give this backup a name of its own, as source = \"db\"", index.DescribeSource(b.Source)))
		}
	}
	return nil
}

func checkForget(c config.Config) error {
	for _, rule := range keepRules(c.Forget) {
		if rule.n != nil && *rule.n == 0 {
			return c.Wrong("forget."+strings.ReplaceAll(rule.flag, "-", "_"), errors.New("0 keeps nothing: leave the line out for no such rule"))
		}
	}
	if c.Forget.KeepWithin == "" {
		return nil
	}
	if _, err := backup.ParseSpan(c.Forget.KeepWithin); err != nil {
		return c.Wrong("forget.keep_within", err)
	}
	return nil
}

// checkCompact checks what a size has to be besides for mkbackup compact, and that there is
// something to limit.
func checkCompact(c config.Config) error {
	if c.Compact.Limit != "" {
		if _, err := parseLimit(string(c.Compact.Limit)); err != nil {
			return c.Wrong("compact.limit", err)
		}
	}
	needless := errors.New("nothing is compacted without max_dead: add max_dead = \"10%\", or leave this line out")
	switch {
	case c.Compact.MaxDead != "":
	case c.Compact.TimeLimit != "":
		return c.Wrong("compact.time_limit", needless)
	case c.Compact.Limit != "":
		return c.Wrong("compact.limit", needless)
	}
	return nil
}

// checkCheck checks what a percentage has to be besides for mkbackup check, and that there
// is one.
func checkCheck(c config.Config) error {
	if c.Check.ReadDataSubset == "" {
		return nil
	}
	if c.Check.Skip {
		return c.Wrong("check.read_data_subset", errors.New("nothing is checked with skip = true: leave one of the two out"))
	}
	if _, err := backup.ParsePercentage(string(c.Check.ReadDataSubset)); err != nil {
		return c.Wrong("check.read_data_subset", err)
	}
	return nil
}

func checkPriority(c config.Config) error {
	return checkValues(c, "priority", append(priorityArgs(c), readRateArgs(c)...))
}

func checkHooks(c config.Config) error {
	for _, hooks := range []struct {
		key  string
		list []config.Command
	}{{"before", c.Hooks.Before}, {"after", c.Hooks.After}, {"on_failure", c.Hooks.OnFailure}} {
		if slices.ContainsFunc(hooks.list, func(argv config.Command) bool { return len(argv) == 0 || argv[0] == "" }) {
			return c.Wrong("hooks."+hooks.key, errors.New("an empty command"))
		}
	}
	return nil
}

// checkBackup checks a [[backup]], whose key is given.
func checkBackup(c config.Config, key string, b config.Backup) error {
	if len(b.Paths) == 0 || slices.Contains(b.Paths, "") {
		return c.Wrong(key+".paths", errors.New("there are no paths, or an empty one"))
	}
	if !archive.ValidSourceName(b.Source) {
		return c.Wrong(key+".source", badSource(b.Source))
	}
	if slices.Contains(b.ExcludeFrom, "-") {
		return c.Wrong(key+".exclude_from", errors.New(`"-": a run has no standard input: give a file`))
	}
	var f flagList
	f.texts("exclude", b.Exclude)
	f.texts("exclude-from", b.ExcludeFrom)
	f.texts("exclude-if-present", b.ExcludeIfPresent)
	return checkValues(c, key, f)
}

// checkValues lets mkbackup create check the values of flags that stand for the keys
// of a table.
func checkValues(c config.Config, table string, list flagList) error {
	flags := createCommand().Flags()
	for _, flag := range list {
		name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		err := flags.Set(name, value)
		var invalid *pflag.InvalidValueError
		if errors.As(err, &invalid) {
			err = fmt.Errorf("%q: %w", value, invalid.Unwrap())
		}
		if err != nil {
			return c.Wrong(table+"."+strings.ReplaceAll(name, "-", "_"), err)
		}
	}
	return nil
}

// step is one command of a run.
type step struct {
	phase phase
	argv  []string // without the program where it is this one
}

// phase is a stage of a run, in the order in which they come.
type phase string

const (
	phaseBefore  phase = "before"
	phaseCreate  phase = "create"
	phaseAfter   phase = "after"
	phaseForget  phase = "forget"
	phaseCompact phase = "compact"
	phaseCheck   phase = "check"
	phaseFailure phase = "on_failure"
)

// own reports whether the step is a command of this program.
func (s step) own() bool {
	return s.phase == phaseCreate || s.phase == phaseForget || s.phase == phaseCompact || s.phase == phaseCheck
}

// steps returns everything that a configuration asks for, in order; quiet is -q of
// each command of this program.
func steps(c config.Config, quiet bool) []step {
	var list []step
	add := func(p phase, commands ...config.Command) {
		for _, argv := range commands {
			list = append(list, step{p, argv})
		}
	}
	add(phaseBefore, c.Hooks.Before...)
	for _, b := range c.Backup {
		add(phaseCreate, createArgs(c, b))
	}
	add(phaseAfter, c.Hooks.After...)
	if c.Forget != (config.Forget{}) {
		add(phaseForget, forgets(c)...)
	}
	if c.Compact.MaxDead != "" {
		add(phaseCompact, compactArgs(c))
	}
	if !c.Check.Skip {
		add(phaseCheck, checkArgs(c))
	}
	add(phaseFailure, c.Hooks.OnFailure...)
	for i, s := range list {
		if quiet && s.own() {
			list[i].argv = slices.Insert(s.argv, 1, "-q")
		}
	}
	return list
}

// flagList collects flags that were given.
type flagList []string

func (f *flagList) text(name, value string) {
	if value != "" {
		*f = append(*f, "--"+name+"="+value)
	}
}

func (f *flagList) texts(name string, values []string) {
	for _, v := range values {
		*f = append(*f, "--"+name+"="+v)
	}
}

func (f *flagList) number(name string, n *uint) {
	if n != nil {
		*f = append(*f, "--"+name+"="+strconv.FormatUint(uint64(*n), 10))
	}
}

func (f *flagList) yes(name string, given bool) {
	if given {
		*f = append(*f, "--"+name)
	}
}

func createArgs(c config.Config, b config.Backup) config.Command {
	f := flagList{"create"}
	f.text("source", b.Source)
	f.text("root", b.Root)
	f.texts("exclude", b.Exclude)
	f.texts("exclude-from", b.ExcludeFrom)
	f.texts("exclude-if-present", b.ExcludeIfPresent)
	f.yes("exclude-caches", b.ExcludeCaches)
	f.yes("exclude-nodump", b.ExcludeNodump)
	f.yes("one-file-system", b.OneFileSystem)
	f = append(append(f, readRateArgs(c)...), priorityArgs(c)...)
	f.text("metrics", c.Metrics)
	return append(append(config.Command(f), "--", c.Repository), b.Paths...)
}

func readRateArgs(c config.Config) (f flagList) {
	f.text("read-rate", string(c.Priority.ReadRate))
	return f
}

// priorityArgs returns the flags of all commands that work for long.
func priorityArgs(c config.Config) (f flagList) {
	if c.Priority.Nice != nil {
		f.text("nice", strconv.Itoa(*c.Priority.Nice))
	}
	f.text("ionice", c.Priority.IONice)
	f.number("threads", c.Priority.Threads)
	return f
}

// forgets returns a command for each source that the configuration backs up: others in
// the repository have rules of their own.
func forgets(c config.Config) (list []config.Command) {
	for _, b := range c.Backup {
		list = append(list, forgetArgs(c, b.Source))
	}
	return list
}

// keepRule is a rule that keeps so many generations, and the flag that stands for it.
type keepRule struct {
	flag string
	n    *uint // nil: there is no such rule
}

func keepRules(f config.Forget) []keepRule {
	return []keepRule{{"keep-last", f.KeepLast}, {"keep-hourly", f.KeepHourly}, {"keep-daily", f.KeepDaily},
		{"keep-weekly", f.KeepWeekly}, {"keep-monthly", f.KeepMonthly}, {"keep-yearly", f.KeepYearly}}
}

func forgetArgs(c config.Config, source string) config.Command {
	f := flagList{"forget", c.Repository, "--source=" + source}
	for _, rule := range keepRules(c.Forget) {
		f.number(rule.flag, rule.n)
	}
	f.text("keep-within", c.Forget.KeepWithin)
	f.text("metrics", c.Metrics)
	return config.Command(f)
}

func compactArgs(c config.Config) config.Command {
	f := flagList{"compact", c.Repository}
	f.text("max-dead", string(c.Compact.MaxDead))
	f.text("time-limit", string(c.Compact.TimeLimit))
	f.text("limit", string(c.Compact.Limit))
	f = append(f, priorityArgs(c)...)
	f.text("metrics", c.Metrics)
	return config.Command(f)
}

func checkArgs(c config.Config) config.Command {
	f := flagList{"check", c.Repository}
	f.text("read-data-subset", string(c.Check.ReadDataSubset))
	f = append(f, priorityArgs(c)...)
	f.text("metrics", c.Metrics)
	return config.Command(f)
}

func printSteps(cmd *cobra.Command, steps []step) error {
	for _, s := range steps {
		argv := s.argv
		if s.own() {
			argv = append([]string{"mkbackup"}, argv...)
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-10s  %s\n", s.phase, quoted(argv)); err != nil {
			return err
		}
	}
	return nil
}

// quoted writes a command as a shell would read it.
func quoted(argv []string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = word
		if !isPlain(word) {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// isPlain reports whether a shell takes a word as it stands.
func isPlain(word string) bool {
	return word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_=/.,:+%@", r)
	})
}

// runner is one run of a configuration.
type runner struct {
	repository string
	program    string // this one
	failures   int64  // steps that failed
	code       int    // exit code of the first step that failed, 0: none did
	failed     string // that step
	unprepared bool   // a hook before failed: there are no backups
	skip       bool   // that, or a backup failed: what would drop old data is not done

	own atomic.Pointer[os.Process] // the last step of this program, which may have ended; nil: none was started
}

func runSteps(ctx context.Context, repository string, steps []step, o *outcome) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	r := &runner{repository: repository, program: program}
	go r.passOn(cli.Catch(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP))
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			r.code = exitCode(ctx, err) // for the hooks to come
		}
		switch {
		case r.wanted(ctx, s.phase):
			r.run(ctx, s)
		case ctx.Err() == nil && s.own():
			note(fmt.Sprintf("not done, because a step before failed: mkbackup %s", quoted(s.argv)))
		}
	}
	o.errors = r.failures
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.code != 0 {
		return &exitError{r.code, fmt.Sprintf("%s ended with exit code %d", r.failed, r.code)}
	}
	return nil
}

// passOn sends all signals but the first, which ends the context, to the step of this
// program that is under way, which they end at once. Hooks are run all the same.
func (r *runner) passOn(signals <-chan os.Signal) {
	<-signals
	for said := false; ; said = true {
		again := <-signals
		if step := r.own.Load(); step != nil {
			_ = step.Signal(again) // it has ended by itself
		}
		if !said {
			note("interrupted: hooks still run; kill -9 ends at once")
		}
	}
}

// wanted reports whether a step of a phase is still to be done. Hooks after a
// backup are, also when it was interrupted: what was stopped must be started.
func (r *runner) wanted(ctx context.Context, p phase) bool {
	switch p {
	case phaseAfter:
		return true
	case phaseFailure:
		return r.code != 0
	case phaseCheck:
		return ctx.Err() == nil
	case phaseBefore, phaseCreate:
		return !r.unprepared && ctx.Err() == nil
	}
	return !r.skip && ctx.Err() == nil
}

// run does a step and notes how it ended. Files that could not be read do not
// keep the later steps from being done.
func (r *runner) run(ctx context.Context, s step) {
	code, err := r.execute(ctx, s)
	if err != nil {
		note(fmt.Sprintf("%s: %s: %v", s.phase, quoted(s.argv), err))
	}
	if code == 0 {
		return
	}
	if code != exitIncomplete {
		r.failures++
	}
	if r.code == 0 || r.code == exitIncomplete && code != exitIncomplete {
		r.code, r.failed = code, quoted(s.argv)
	}
	if code != exitIncomplete && (s.phase == phaseBefore || s.phase == phaseCreate) {
		r.unprepared = r.unprepared || s.phase == phaseBefore
		r.skip = true
	}
}

// patience is how long a step may go on after an interrupt.
const patience = 30 * time.Second

// execute runs a step's command to its end. A step of this program gets the
// signals that we get; hooks are not interrupted.
func (r *runner) execute(ctx context.Context, s step) (code int, err error) {
	cmd := r.command(ctx, s)
	if err = cmd.Start(); err == nil {
		if s.own() {
			r.own.Store(cmd.Process)
		}
		err = cmd.Wait()
	}
	switch {
	case cmd.ProcessState == nil: // it was not started
		return exitCode(ctx, err), err
	case s.own():
		return stepCode(cmd.ProcessState)
	case err != nil:
		return exitFailed, err
	}
	return 0, nil
}

// command returns a step's command. It runs in a session of its own: a Ctrl-C at our
// terminal reaches nobody but us, and a hook that asks something there fails.
func (r *runner) command(ctx context.Context, s step) *exec.Cmd {
	argv := s.argv
	if s.own() {
		argv = append([]string{r.program}, argv...)
	} else {
		ctx = context.WithoutCancel(ctx)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(caught(ctx)) }
	cmd.WaitDelay = patience
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), exitVariable+"="+strconv.Itoa(r.code), "BACKUPFS_REPOSITORY="+r.repository)
	return cmd
}

// stepCode returns the exit code of a step of this program, which has said why; of one
// that a signal killed, 128 and its number.
func stepCode(state *os.ProcessState) (int, error) {
	status, _ := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return exitSignal + int(status.Signal()), fmt.Errorf("killed by a signal: %v", status.Signal())
	}
	return state.ExitCode(), nil
}
