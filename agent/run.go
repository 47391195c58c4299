package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/agent/capture"
	"rexec/agent/homeproto"
	"rexec/rer"
	"rexec/signals"
)

// exitFailure is the status of every failure of rexec's own.
const exitFailure = 255

// Terminal says whether the command gets the controlling terminal.
type Terminal int

const (
	TerminalAuto   Terminal = iota // if there is one
	TerminalForce                  // fail without
	TerminalForbid                 // never
)

// Options are what the command line says. Of Argv, Shell and Login exactly
// one is set.
type Options struct {
	Host  string
	Argv  []string
	Shell string // text for /bin/sh -c, not empty
	Login bool   // $SHELL -l

	Switch    []string // colon lists, after $SWITCH
	Chdir     string
	NoStdin   bool
	Terminal  Terminal
	Verbose   int
	Quiet     bool
	Stats     bool
	OrLocal   bool
	DumpRER   bool
	StatusFD  int // 0: none
	NoHome    bool
	NoCache   bool
	Rexecd    string // for loopback
	SSH       string // another ssh
	Home      string // home's socket; empty: homeproto.SocketPath
	HomeStart []string

	Sysid string // this machine's
	// Resolve turns Host into a target of homeproto.Ask, or "local": here,
	// without home or network.
	Resolve func(host string) (string, error) `json:"-"`
	// Serve serves one agent inside this process, for NoHome.
	Serve func(*homeproto.Conn) error `json:"-"`
}

// Run runs the command and gives the exit status to end with. A command that
// died by a signal ends this process by the same signal, here.
func Run(o Options) int {
	a, err := newAgent(o)
	if err != nil {
		a.report(err)
		return exitCode(err)
	}
	end := a.run()
	if end.signal != 0 {
		return signals.DieBy(end.signal)
	}
	return end.code
}

// outcome is how to end.
type outcome struct{ code, signal int }

// agent is one run.
type agent struct {
	opt      Options
	events   *events
	messages int // descriptor for messages
	captured *capture.Captured
	signals  *signals.Source
	pending  []int // signals that came before the command ran, for --or-local
}

// newAgent does what must come before the capture.
func newAgent(o Options) (*agent, error) {
	a := &agent{opt: o, messages: 2}
	events, err := openEvents(o.StatusFD)
	if err != nil {
		return a, err
	}
	a.events = events
	if o.Chdir != "" {
		if err := os.Chdir(o.Chdir); err != nil {
			return a, &rer.Refused{Reason: rer.ReasonCwd, Text: err.Error()}
		}
	}
	if o.NoStdin {
		if err := capture.NullStdin(); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (a *agent) run() outcome {
	target, err := a.opt.Resolve(a.opt.Host)
	if err == nil && target == "local" {
		return a.runLocal()
	}
	var end outcome
	if err == nil {
		end, err = a.runRemote(target)
	} else {
		err = unknownHost(err)
	}
	if err == nil {
		return end
	}
	if a.opt.OrLocal && neverSent(err) {
		a.verbose("runs here: %v", err)
		return a.runLocal()
	}
	a.report(err)
	return outcome{code: exitCode(err)}
}

func (a *agent) runRemote(target string) (outcome, error) {
	var err error
	a.captured, err = capture.Capture(capture.Options{NoTerminal: a.opt.Terminal == TerminalForbid})
	if err != nil {
		return outcome{}, err
	}
	for _, note := range a.captured.Notes {
		a.verbose("%s", note)
	}
	if a.opt.Terminal == TerminalForce && a.captured.Tty == nil {
		return outcome{}, &rer.Refused{Reason: rer.ReasonBadRequest, Text: "no terminal here, and -t asks for one"}
	}
	ask := a.ask(target)
	if a.opt.DumpRER {
		return outcome{}, dump(&ask.Request)
	}
	conn, err := a.connect()
	if err != nil {
		return outcome{}, &rer.Refused{Reason: rer.ReasonUnreachable, Text: "home: " + err.Error()}
	}
	defer conn.Close()
	if a.signals, err = signals.Catch(); err != nil {
		return outcome{}, err
	}
	end, err := a.talk(conn, ask)
	if err != nil {
		a.signals.Stop()
	}
	return end, err
}

func unknownHost(err error) error {
	var refused *rer.Refused
	if errors.As(err, &refused) {
		return err
	}
	return &rer.Refused{Reason: rer.ReasonUnknownHost, Text: err.Error()}
}

// neverSent says that the command has not run anywhere and never will.
func neverSent(err error) bool {
	var r *rer.Refused
	if !errors.As(err, &r) {
		return false
	}
	switch r.Reason {
	case rer.ReasonUnknownHost, rer.ReasonNotAllowed, rer.ReasonWithdrawn, rer.ReasonUnreachable, rer.ReasonVersion, rer.ReasonNoFUSE:
		return true
	}
	return false
}

func exitCode(err error) int {
	var r *rer.Refused
	if errors.As(err, &r) {
		return r.ExitCode()
	}
	return exitFailure
}

// report prints why the command did not run.
func (a *agent) report(err error) {
	var r *rer.Refused
	if !errors.As(err, &r) {
		r = &rer.Refused{Reason: rer.ReasonInternal, Text: err.Error()}
	}
	a.events.refused(r)
	a.message("rexec: " + r.Text)
	if r.Hint != "" {
		a.message("hint: " + r.Hint)
	}
}

func (a *agent) verbose(format string, args ...any) {
	if a.opt.Verbose > 0 && !a.opt.Quiet {
		a.message("rexec: " + fmt.Sprintf(format, args...))
	}
}

// message writes one line by a plain write(2): through an os.File a closed
// pipe would kill this process.
func (a *agent) message(line string) {
	line = strings.ReplaceAll(strings.TrimRight(line, "\n"), "\n", " ")
	for b := []byte(line + "\n"); len(b) > 0; {
		n, err := unix.Write(a.messages, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		b = b[n:]
	}
}
