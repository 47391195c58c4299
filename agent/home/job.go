package home

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/agent/pump"
	"rexec/fsview/fsproto"
	"rexec/rer"
)

// maxEvents bounds what a server can have us remember of one job.
const maxEvents = 1024

// job is one agent's command, from its Ask to its end.
type job struct {
	home  *Home
	conn  *homeproto.Conn
	ask   *homeproto.Ask
	req   *rer.Request // ask's
	files []*os.File   // that came with ask
	begun time.Time
	gone  chan struct{} // closed: the agent died
	stop  context.CancelFunc
	event chan struct{} // capacity 1: events is not empty

	// Only run's goroutine.
	sess   *session
	pumps  map[uint32]*pump.Pump // by channel
	held   []*description
	nodes  []fsproto.Node // handed out for the request
	before transferred
	killed bool

	// order is held while the request or a signal is sent: what came first
	// leaves first. It comes before mu.
	order sync.Mutex

	mu       sync.Mutex // a leaf
	launched bool
	pending  []*rer.Signal // that came before the launch
	fatal    int           // signal that ended the wait for a link
	term     *terminal
	events   []*rer.Message
	started  *rer.Started
	startAt  time.Time
	stopped  bool
}

// transferred is what a link had carried when a job began.
type transferred struct {
	in, out  uint64
	requests map[string]uint64
}

func newJob(h *Home, c *homeproto.Conn, ask *homeproto.Ask, files []*os.File) *job {
	j := &job{
		home: h, conn: c, ask: ask, req: &ask.Request, files: files, begun: time.Now(),
		gone: make(chan struct{}), event: make(chan struct{}, 1), pumps: make(map[uint32]*pump.Pump),
	}
	if j.req.ID == [16]byte{} {
		_, _ = rand.Read(j.req.ID[:]) // never fails
	}
	return j
}

// run does everything for one agent.
func (j *job) run() {
	j.home.begin(j)
	defer j.home.end(j)
	defer j.closeFiles()
	ctx, cancel := context.WithCancel(j.home.ctx)
	defer cancel()
	j.stop = cancel
	relayed := make(chan struct{})
	go func() { defer close(relayed); j.relays() }()
	defer func() { j.conn.Close(); <-relayed }()

	s, err := j.home.session(ctx, j.ask)
	if err != nil {
		j.noLink(err)
		return
	}
	defer s.release()
	j.sess = s
	if err := s.enter(j); err != nil {
		j.refuse(err)
		return
	}
	defer s.exit(j)
	if j.launch() {
		j.follow()
	}
	j.letGo()
}

func (j *job) closeFiles() {
	for _, f := range j.files {
		f.Close()
	}
	j.files = nil
}

// relays takes what the agent says until it is gone.
func (j *job) relays() {
	for {
		r, err := j.conn.RecvRelay()
		if err != nil {
			close(j.gone)
			j.stop()
			return
		}
		if r.Signal != nil {
			j.signal(r.Signal)
		}
		if r.Resumed {
			j.signal(&rer.Signal{Signo: int(unix.SIGCONT)})
		}
	}
}

// siKernel is si_code of signals that a terminal makes.
const siKernel = 0x80

// signal passes a signal on at once, or keeps it until the launch.
func (j *job) signal(sig *rer.Signal) {
	sig.ID = j.req.ID
	j.order.Lock()
	defer j.order.Unlock()
	t, launched := j.note(sig)
	if !launched {
		return
	}
	if t != nil && sig.Signo == int(unix.SIGWINCH) {
		t.Resized()
		if sig.Code == siKernel {
			return // the far terminal makes its own
		}
	}
	if t != nil && isKey(sig) && t.Twice(j, sig.Signo) {
		return
	}
	if t != nil && sig.Signo == int(unix.SIGCONT) {
		t.Resume(j)
		sig.Terminal = t.News()
	}
	_ = j.sess.send(&rer.Message{Signal: sig})
}

// isKey says whether a terminal made a signal for a key.
func isKey(sig *rer.Signal) bool {
	switch syscall.Signal(sig.Signo) {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP:
		return sig.Code == siKernel
	}
	return false
}

// note does what a signal means here, and gives the job's terminal.
func (j *job) note(sig *rer.Signal) (t *terminal, launched bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if sig.Signo == int(unix.SIGCONT) {
		j.stopped = false
	}
	if j.launched {
		return j.term, true
	}
	if len(j.pending) < maxEvents {
		j.pending = append(j.pending, sig)
	}
	if j.fatal == 0 && j.ends(sig.Signo) {
		j.fatal = sig.Signo
		j.stop()
	}
	return nil, false
}

// ends says whether a command that has not started would die of a signal.
func (j *job) ends(signo int) bool {
	switch syscall.Signal(signo) {
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM:
		return (j.req.Ignored|j.req.Mask)>>(signo-1)&1 == 0
	}
	return false
}

// noLink answers an ask for which there is no link.
func (j *job) noLink(err error) {
	j.mu.Lock()
	fatal := j.fatal
	j.mu.Unlock()
	if fatal != 0 {
		j.diedOf(fatal)
		return
	}
	var r *rer.Refused
	switch {
	case errors.As(err, &r):
		copied := *r
		copied.Text = j.ask.Name + ": " + r.Text
		r = &copied
	case errors.Is(err, errTarget):
		r = &rer.Refused{Reason: rer.ReasonUnknownHost, Text: fmt.Sprintf("%s: %v", j.ask.Name, err)}
	default:
		r = &rer.Refused{
			Reason: rer.ReasonUnreachable, Text: fmt.Sprintf("%s: cannot connect: %v", j.ask.Name, err),
			Errno: int(errnoOf(err)), Hint: "rexec doctor " + j.ask.Name + " tells what is missing",
		}
	}
	j.refuse(r)
}

// diedOf answers for a command that a signal ended before it was sent.
func (j *job) diedOf(signo int) {
	_ = j.conn.SendAnswer(&homeproto.Answer{Ended: &rer.Ended{ID: j.req.ID, Status: rer.Status{Signal: signo}}})
}

func (j *job) refuse(err error) {
	var r *rer.Refused
	if !errors.As(err, &r) {
		r = &rer.Refused{Reason: rer.ReasonInternal, Text: fmt.Sprintf("%s: %v", j.ask.Name, err), Errno: int(errnoOf(err))}
	}
	copied := *r
	copied.ID = j.req.ID
	_ = j.conn.SendAnswer(&homeproto.Answer{Refused: &copied})
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// launch sends the request and starts the pumps. false: it was refused here.
func (j *job) launch() bool {
	stats := j.sess.conn.Stats()
	j.before = transferred{stats.BytesIn, stats.BytesOut, j.sess.counts.Map()}
	channels, err := j.fill()
	if err == nil {
		err = j.sendLaunch()
	}
	if err == nil {
		err = j.startPumps(channels)
		if err != nil {
			_ = j.sess.send(&rer.Message{Kill: &rer.Kill{ID: j.req.ID}})
		}
	}
	j.closeFiles()
	if err == nil {
		return true
	}
	for _, c := range channels {
		if j.pumps[c.ID()] == nil {
			c.Close()
		}
	}
	j.notLaunched(err)
	return false
}

func (j *job) notLaunched(err error) {
	j.mu.Lock()
	fatal, launched := j.fatal, j.launched
	j.mu.Unlock()
	var r *rer.Refused
	switch {
	case fatal != 0 && !launched:
		j.diedOf(fatal)
	case errors.As(err, &r):
		j.refuse(r)
	case j.linkDown() || errors.Is(err, net.ErrClosed):
		j.lost()
	default:
		j.refuse(err)
	}
}

func (j *job) linkDown() bool {
	select {
	case <-j.sess.conn.Done():
		return true
	default:
		return false
	}
}

var errGivenUp = errors.New("given up")

// sendLaunch sends the request and then the signals that wait for it.
func (j *job) sendLaunch() error {
	j.order.Lock()
	defer j.order.Unlock()
	select {
	case <-j.gone:
		return errGivenUp
	default:
	}
	if !j.commit() {
		return errGivenUp
	}
	if err := j.sess.send(&rer.Message{Launch: j.req}); err != nil {
		return err
	}
	for _, sig := range j.pending { // nobody adds to it any more
		_ = j.sess.send(&rer.Message{Signal: sig})
	}
	return nil
}

// commit is the point from which on a signal goes to the command and ends
// nothing here. false: one has ended it before.
func (j *job) commit() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.launched = j.fatal == 0
	return j.launched
}

// push keeps a message for follow; it does not block. false: too many.
func (j *job) push(m *rer.Message) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) >= maxEvents {
		return false
	}
	j.events = append(j.events, m)
	select {
	case j.event <- struct{}{}:
	default:
	}
	return true
}

func (j *job) pop() *rer.Message {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == 0 {
		return nil
	}
	m := j.events[0]
	j.events = j.events[1:]
	return m
}

// follow handles what becomes of the command until it has ended.
func (j *job) follow() {
	gone := j.gone
	for {
		if m := j.pop(); m != nil {
			if j.handle(m) {
				return
			}
			continue
		}
		select {
		case <-j.event:
		case <-gone:
			gone = nil
			j.kill()
		case <-j.sess.conn.Done():
			if m := j.pop(); m == nil || !j.handle(m) {
				j.lost()
			}
			return
		}
	}
}

// kill ends the job of an agent that died. The terminal is free at once.
func (j *job) kill() {
	j.killed = true
	_ = j.sess.send(&rer.Message{Kill: &rer.Kill{ID: j.req.ID}})
	j.leaveTerminal()
}

func (j *job) leaveTerminal() {
	j.mu.Lock()
	t := j.term
	j.term = nil
	j.mu.Unlock()
	if t != nil {
		j.sess.part(j, t)
	}
}

// handle acts on one message; true: it was the last.
func (j *job) handle(m *rer.Message) bool {
	switch {
	case m.Started != nil:
		j.mu.Lock()
		j.started, j.startAt = m.Started, time.Now()
		j.mu.Unlock()
		_ = j.conn.SendAnswer(&homeproto.Answer{Started: m.Started})
	case m.Refused != nil:
		j.closePumps()
		j.leaveTerminal()
		j.refuse(m.Refused)
		return true
	case m.Stopped != nil:
		j.halted(m.Stopped)
	case m.Continued != nil:
		j.resumed()
		_ = j.conn.SendAnswer(&homeproto.Answer{Continued: m.Continued})
	case m.Ended != nil:
		j.ended(m.Ended)
		return true
	}
	return false
}

// halted delivers what the command did before it stopped, restores the
// terminal and lets the agent stop.
func (j *job) halted(m *rer.Stopped) {
	j.deliver(m.Sent, m.Consumed, m.Positions, m.Termios)
	j.mu.Lock()
	j.stopped = true
	t := j.term
	j.mu.Unlock()
	if t != nil {
		t.Suspend(j)
	}
	_ = j.conn.SendAnswer(&homeproto.Answer{Stopped: m})
}

func (j *job) resumed() {
	j.mu.Lock()
	j.stopped = false
	t := j.term
	j.mu.Unlock()
	if t != nil {
		t.Resume(j)
	}
}

// ended delivers what is left, then the status.
func (j *job) ended(m *rer.Ended) {
	j.deliver(m.Sent, m.Consumed, m.Positions, m.Termios)
	for _, p := range j.pumps {
		p.Finish()
	}
	j.leaveTerminal()
	if j.ask.Stats {
		_ = j.conn.SendAnswer(&homeproto.Answer{Stats: j.stats()})
	}
	_ = j.conn.SendAnswer(&homeproto.Answer{Ended: m})
}

// deliver waits until home has all that the command wrote, and brings home's
// inputs, file positions and terminal settings to where the command left them. A reader here
// that does not read makes it wait, as it would make the command itself.
func (j *job) deliver(sent, consumed []rer.Sent, positions []rer.Position, termios []byte) {
	j.mu.Lock()
	t := j.term
	j.mu.Unlock()
	for _, x := range sent {
		if p := j.pumps[x.Channel]; p != nil {
			p.WaitWritten(x.Bytes, j.gone)
		} else if t != nil && x.Channel == t.id {
			t.WaitWritten(x.Bytes, j.gone)
		}
	}
	if t != nil {
		t.Left(termios)
	}
	for _, x := range consumed {
		if p := j.pumps[x.Channel]; p != nil {
			p.Consume(x.Bytes, j.gone)
		}
	}
	for _, x := range positions {
		for _, d := range j.held {
			if d.id == x.Desc {
				j.sess.known.left(d, x.Offset)
			}
		}
	}
}

// lost answers an agent whose link died.
func (j *job) lost() {
	j.closePumps()
	j.leaveTerminal()
	j.mu.Lock()
	launched, started := j.launched, j.started != nil
	j.mu.Unlock()
	r := &rer.Refused{Reason: rer.ReasonLost, Errno: int(errnoOf(j.sess.reason()))}
	phase := "while the command ran"
	switch {
	case !launched:
		r.Reason, phase = rer.ReasonUnreachable, "before the command was sent"
		r.Hint = "the command was not run; try again"
	case !started:
		phase = "while the command was starting"
	}
	r.Text = fmt.Sprintf("%s: link lost %s: %v", j.ask.Name, phase, j.sess.reason())
	j.refuse(r)
}

func (j *job) closePumps() {
	for id, p := range j.pumps {
		p.Close()
		delete(j.pumps, id)
	}
}

// letGo releases what the job held. Pumps that descendants still use go on
// and keep the session; those of a killed job do not.
func (j *job) letGo() {
	j.leaveTerminal()
	if j.killed {
		j.closePumps()
	}
	for _, p := range j.pumps {
		s := j.sess
		s.hold()
		go func() { <-p.Done(); s.release() }()
	}
	for _, d := range j.held {
		j.sess.known.drop(d)
	}
	for _, n := range j.nodes {
		j.sess.origin.Drop(n)
	}
}

func (j *job) stats() *homeproto.Stats {
	now, requests := j.sess.conn.Stats(), j.sess.counts.Map()
	for name, n := range j.before.requests {
		if requests[name] -= n; requests[name] == 0 {
			delete(requests, name)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return &homeproto.Stats{
		BytesIn: now.BytesIn - j.before.in, BytesOut: now.BytesOut - j.before.out,
		Requests: requests,
		Launch:   j.startAt.Sub(j.begun).Microseconds(), Total: time.Since(j.begun).Microseconds(),
	}
}
