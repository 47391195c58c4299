package agent

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/rer"
	"rexec/signals"
)

// patience is how long a command that has not started may take to react to
// SIGINT or SIGTERM before the agent ends by it.
const patience = 2 * time.Second

// talk is the life of a request from its sending to its end. All that happens
// arrives on channels and is handled here, in one goroutine.
type talk struct {
	*agent
	conn    *homeproto.Conn
	ask     *homeproto.Ask
	id      [16]byte
	sent    bool           // home has the request
	started bool           // the command runs
	early   []signals.Info // signals before sent
	witness *signals.Witness
	giveUp  <-chan time.Time
	halted  <-chan time.Time // set: this process was stopped, and no SIGCONT has come yet
	last    int              // the signal to give up by
}

// answer is what receiving gave.
type answer struct {
	a   *homeproto.Answer
	err error
}

func (a *agent) talk(conn *homeproto.Conn, ask *homeproto.Ask) (outcome, error) {
	t := &talk{agent: a, conn: conn, ask: ask, id: ask.Request.ID}
	defer t.dismiss()
	sent := make(chan error, 1)
	arrived := make(chan signals.Info)
	answers := make(chan answer)
	over := make(chan struct{})
	defer close(over)
	go func() { sent <- conn.SendAsk(ask, a.files()) }()
	go watchSignals(a.signals, arrived, over)
	go watchAnswers(conn, answers, over)
	for {
		select {
		case err := <-sent:
			if err := t.whenSent(err); err != nil {
				return outcome{}, err
			}
		case i := <-arrived:
			t.signal(i)
		case got := <-answers:
			if got.err != nil {
				return outcome{}, t.homeGone(got.err)
			}
			if end, err := t.answer(got.a); end != nil || err != nil {
				return *orZero(end), err
			}
		case <-t.halted:
			// It did not stop: its group is orphaned. The command goes on too.
			t.halted = nil
			_ = conn.SendRelay(&homeproto.Relay{Resumed: true})
		case <-t.giveUp:
			a.message(fmt.Sprintf("rexec: %s does not answer; ended by %s", a.opt.Host, signals.Name(t.last)))
			a.events.ended(rer.Status{Signal: t.last})
			return outcome{signal: t.last}, nil
		}
	}
}

func orZero(end *outcome) *outcome {
	if end == nil {
		return &outcome{}
	}
	return end
}

func watchSignals(s *signals.Source, to chan<- signals.Info, over <-chan struct{}) {
	for {
		i, err := s.Next()
		if err != nil {
			return
		}
		select {
		case to <- i:
		case <-over:
			return
		}
	}
}

func watchAnswers(conn *homeproto.Conn, to chan<- answer, over <-chan struct{}) {
	for {
		a, err := conn.RecvAnswer()
		select {
		case to <- answer{a, err}:
		case <-over:
			return
		}
		if err != nil {
			return
		}
	}
}

func (t *talk) homeGone(err error) error {
	if err := t.captured.Unraw(); err != nil {
		t.verbose("%v", err)
	}
	text := "the home process died"
	if err != io.EOF {
		text = err.Error()
	}
	return &rer.Refused{Reason: rer.ReasonLost, Text: text}
}

// whenSent lets the descriptors go: home has them. With --or-local they are
// needed until the command runs elsewhere.
func (t *talk) whenSent(err error) error {
	if err != nil {
		// Home hung up, and may have said why.
		return nil
	}
	t.sent = true
	// While the request travels there is time.
	if w, err := signals.NewWitness(); err != nil {
		t.verbose("%v", err)
	} else {
		t.witness = w
	}
	if !t.opt.OrLocal || t.started {
		t.captured.Release()
	}
	for _, i := range t.early {
		t.relay(i)
	}
	t.early = nil
	return nil
}

func (t *talk) dismiss() {
	if t.witness != nil {
		t.witness.Close()
	}
}

func (t *talk) signal(i signals.Info) {
	if unix.Signal(i.Signo) == unix.SIGCONT {
		t.halted = nil
	}
	if s := unix.Signal(i.Signo); !t.started && t.giveUp == nil && (s == unix.SIGINT || s == unix.SIGTERM) {
		t.giveUp, t.last = time.After(patience), i.Signo
	}
	if t.opt.OrLocal && !t.started {
		t.pending = append(t.pending, i.Signo)
	}
	if !t.sent {
		t.early = append(t.early, i)
		return
	}
	t.relay(i)
}

func (t *talk) relay(i signals.Info) {
	// A failure means that home is gone, which receiving says too.
	_ = t.conn.SendRelay(&homeproto.Relay{Signal: &rer.Signal{
		ID: t.id, Signo: i.Signo, Code: i.Code, Pid: i.Pid, UID: i.UID, Value: i.Value, Group: i.FromTerminal() || t.toGroup(i),
	}})
}

// toGroup says whether a process sent i to the agent's whole group, and so to
// the command's. Without a witness it is a guess: shells continue and hang up
// groups.
func (t *talk) toGroup(i signals.Info) bool {
	if i.Code != signals.CodeUser && i.Code != signals.CodeQueue {
		return false
	}
	if t.witness != nil {
		return t.witness.Saw(i)
	}
	r := &t.ask.Request
	switch unix.Signal(i.Signo) {
	case unix.SIGCONT:
		return true // does nothing to one that runs
	case unix.SIGHUP:
		return i.Pid == r.Ppid && r.Pgrp == r.Pid
	}
	return false
}

// answer handles one event; an outcome ends it all.
func (t *talk) answer(a *homeproto.Answer) (*outcome, error) {
	switch {
	case a.Started != nil:
		t.whenStarted(a.Started)
	case a.Refused != nil:
		return nil, a.Refused
	case a.Stopped != nil:
		t.stop(a.Stopped.Signo)
	case a.Continued != nil:
		t.events.write(event{Event: "continued"})
	case a.Note != "":
		if !t.opt.Quiet {
			t.message("rexec: " + strings.TrimPrefix(a.Note, "rexec: "))
		}
	case a.Stats != nil:
		t.stats(a.Stats)
	case a.Ended != nil:
		t.events.ended(a.Ended.Status)
		return &outcome{code: a.Ended.Status.Code, signal: a.Ended.Status.Signal}, nil
	}
	return nil, nil
}

func (t *talk) whenStarted(s *rer.Started) {
	if t.opt.OrLocal && !t.started && t.sent {
		t.captured.Release()
	}
	t.started, t.giveUp = true, nil
	t.events.started(s)
	for _, n := range s.Taken {
		t.verbose("process number %d is taken on %s", n, t.opt.Host)
	}
	for _, element := range s.Dropped {
		t.verbose("%s does not lend %s", t.opt.Host, element)
	}
}

// unstopped is how long after a stop SIGCONT may take to arrive here.
const unstopped = time.Second

// stop stops this process as the command stopped. The SIGCONT that ends the
// stop is relayed as any signal.
func (t *talk) stop(signo int) {
	t.events.write(event{Event: "stopped", Signo: signo})
	if err := signals.StopSelf(signo); err != nil {
		t.verbose("stop: %v", err)
	}
	t.halted = time.After(unstopped)
}

func (t *talk) stats(s *homeproto.Stats) {
	line := fmt.Sprintf("rexec: launch %.1f ms, total %.1f ms, %d bytes out, %d bytes in",
		float64(s.Launch)/1000, float64(s.Total)/1000, s.BytesOut, s.BytesIn)
	for _, name := range slices.Sorted(maps.Keys(s.Requests)) {
		line += fmt.Sprintf(", %s %d", name, s.Requests[name])
	}
	t.message(line)
}
