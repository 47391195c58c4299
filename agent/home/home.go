// Package home is `rexec home`: the process that stands between agents and
// servers, one for each user. It keeps a link to each server, answers the
// file requests that come over it from the native origin, and carries the
// bytes of the agents' descriptors and terminals.
//
// An agent is one connection ([Home.ServeConn]). Its command runs in a
// session: one link, shared by all jobs with the same target and options, and
// kept for a while after the last. Everything that belongs to a job is let go
// when it has ended and its descendants have closed what they had.
//
// Whatever goes wrong is answered by a rer.Refused, also after Started: then
// with rer.ReasonLost, and the agent ends with 255.
//
// Locks: Home.mu before session.mu before job.mu, and job.order before all of
// them; nothing is sent, received or waited for while one of them is held, but
// for job.order, which keeps a job's messages in order.
package home

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/agent/pump"
	"rexec/fsview/fsproto"
	"rexec/rer"
)

// Options are what a home may be told. Zero values mean the defaults.
type Options struct {
	// Idle is how long home and links stay without a job: 10 minutes.
	Idle time.Duration
	// Rexecd is the path of rexecd for loopback; else it is looked for beside
	// this program and then in PATH.
	Rexecd string
	Logf   func(format string, args ...any)
	// Dial makes the byte stream to a target; nil: the real ways.
	Dial func(ctx context.Context, ask *homeproto.Ask) (io.ReadWriteCloser, error)
	// Origin makes what answers a session's file requests; nil: the native
	// one.
	Origin func(ask *homeproto.Ask) (Origin, error)
}

// Origin is what a session lends: files by number, and those that its jobs
// inherit. The native origin's own comments hold.
type Origin interface {
	fsproto.Origin
	Mounts() ([]rer.Mount, error)
	AdoptNode(fd int) (fsproto.Node, fsproto.Attr, error)
	Drop(n fsproto.Node)
	AdoptFile(fd int) (fsproto.FH, error)
	Settle()
	Close()
}

// Home serves agents.
type Home struct {
	opt     Options
	poller  *pump.Poller
	ctx     context.Context
	cancel  context.CancelFunc
	conns   sync.WaitGroup // of ServeConn
	holders holders
	alive   sync.WaitGroup // of sessions, forgotten ones too

	mu       sync.Mutex
	sessions map[string]*session
	jobs     map[*job]bool
	agents   map[*homeproto.Conn]bool
	idle     *time.Timer
	stopping bool          // end when no job is left
	over     chan struct{} // closed: Serve ends
	closed   bool
}

// New makes a home that serves nobody yet.
func New(opt Options) (*Home, error) {
	if opt.Idle <= 0 {
		opt.Idle = 10 * time.Minute
	}
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.Origin == nil {
		opt.Origin = nativeOrigin
	}
	poller, err := pump.NewPoller()
	if err != nil {
		return nil, err
	}
	h := &Home{
		opt: opt, poller: poller,
		sessions: make(map[string]*session), jobs: make(map[*job]bool),
		agents: make(map[*homeproto.Conn]bool), over: make(chan struct{}),
	}
	if h.opt.Dial == nil {
		h.opt.Dial = h.dial
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.idle = time.AfterFunc(opt.Idle, h.whenIdle)
	return h, nil
}

// lastCalls is how long a home that ends still takes agents that had
// connected before its socket's name was gone.
const lastCalls = 100 * time.Millisecond

// Serve takes agents from l until it has been idle for long enough, was told
// to stop, or is closed. It closes l and removes its name first, so that a
// later agent starts a fresh home. Only agents of the same user are served.
// SIGTERM, SIGINT and SIGHUP of this process close home: terminals must not
// stay raw.
func (h *Home) Serve(l net.Listener) error {
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return errors.New("home: not a unix socket")
	}
	served := make(chan struct{})
	defer close(served)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		select {
		case <-signals:
			h.Close()
		case <-served:
		}
	}()
	go func() {
		select {
		case <-h.over:
			os.Remove(l.Addr().String())
			unixListener.SetDeadline(time.Now().Add(lastCalls))
		case <-served:
		}
	}()
	defer l.Close()
	for {
		c, err := unixListener.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			h.wait()
			return nil
		case errors.Is(err, net.ErrClosed):
			h.wait()
			return nil
		case err != nil:
			return err
		}
		h.accept(homeproto.NewConn(c))
	}
}

func (h *Home) accept(c *homeproto.Conn) {
	if err := c.CheckPeer(); err != nil {
		h.opt.Logf("agent refused: %v", err)
		c.Close()
		return
	}
	go h.ServeConn(c)
}

// wait returns when no agent is left.
func (h *Home) wait() { h.conns.Wait() }

// whenIdle ends a home that has nothing to do, for descendants of jobs either.
func (h *Home) whenIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.jobs) > 0 || h.closed {
		return
	}
	for _, s := range h.sessions {
		if s.used() {
			h.idle.Reset(h.opt.Idle)
			return
		}
	}
	h.finish()
}

// finish ends Serve. The caller has the lock.
func (h *Home) finish() {
	select {
	case <-h.over:
	default:
		close(h.over)
	}
}

// ServeConn serves one agent and returns when it is done with. It closes c.
func (h *Home) ServeConn(c *homeproto.Conn) {
	defer c.Close()
	if !h.enter(c) {
		return
	}
	defer h.leave(c)
	ask, files, err := c.RecvAsk()
	if err != nil {
		h.refuse(c, err)
		return
	}
	switch {
	case ask.List:
		_ = c.SendAnswer(&homeproto.Answer{Listing: h.listing()})
	case ask.Stop:
		h.stop()
		_ = c.SendAnswer(&homeproto.Answer{Listing: h.listing()})
	default:
		newJob(h, c, ask, files).run()
	}
}

// refuse answers an ask that could not be read, unless the agent just left.
func (h *Home) refuse(c *homeproto.Conn, err error) {
	if errors.Is(err, io.EOF) {
		return
	}
	var r *rer.Refused
	if !errors.As(err, &r) {
		r = &rer.Refused{Reason: rer.ReasonBadRequest, Text: "home: " + err.Error()}
	}
	_ = c.SendAnswer(&homeproto.Answer{Refused: r})
}

func (h *Home) enter(c *homeproto.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.agents[c] = true
	h.conns.Add(1)
	return true
}

func (h *Home) leave(c *homeproto.Conn) {
	h.mu.Lock()
	delete(h.agents, c)
	h.mu.Unlock()
	h.conns.Done()
}

// begin and end count jobs.
func (h *Home) begin(j *job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.jobs[j] = true
	h.idle.Stop()
}

func (h *Home) end(j *job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.jobs, j)
	if len(h.jobs) > 0 {
		return
	}
	if h.stopping {
		h.finish()
		return
	}
	h.idle.Reset(h.opt.Idle)
}

// stop has home end when no job is left.
func (h *Home) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = true
	// At once out of the way: whoever asks now gets a fresh home.
	h.finish()
}

// Close ends everything: terminals are restored, links closed, agents hung up
// on. It returns when nothing is left.
func (h *Home) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.finish()
	h.idle.Stop()
	var sessions []*session
	for _, s := range h.sessions {
		sessions = append(sessions, s)
	}
	for c := range h.agents {
		c.Close()
	}
	h.mu.Unlock()
	h.cancel()
	for _, s := range sessions {
		s.close(errClosing)
	}
	h.conns.Wait()
	h.alive.Wait()
	h.poller.Close()
	return nil
}

var errClosing = errors.New("home is ending")
