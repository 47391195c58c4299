package home

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strings"
	"sync"
	"time"

	"rexec/agent/homeproto"
	"rexec/fsview/fsproto"
	"rexec/internal/servers"
	"rexec/internal/transport"
	"rexec/rer"
)

// session is the link to one target and all that hangs on it.
type session struct {
	home   *Home
	key    string
	target string
	name   string // as the first user wrote it
	cancel context.CancelFunc
	ready  chan struct{} // closed: linked, or failed for good
	gone   chan struct{} // closed: nothing is left of it

	// Set before ready is closed, then constant.
	failed error
	conn   *transport.Conn
	ctl    *transport.Channel
	origin Origin
	peer   rer.Hello

	counts fsproto.Counts
	known  descriptions
	terms  terminals

	mu    sync.Mutex
	jobs  map[[16]byte]*job
	users int
	freed sync.Cond // users went to 0
	idle  *time.Timer
	why   error // of the end, where we know better than the link
}

// session gives the link that ask wants, made by whoever comes first. It is
// held until release. A dial whose last user gives up is cancelled.
func (h *Home) session(ctx context.Context, ask *homeproto.Ask) (*session, error) {
	key := strings.Join([]string{ask.Target, ask.Rexecd, ask.SSH, fmt.Sprint(ask.NoCache)}, "\x00")
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, errClosing
	}
	s := h.sessions[key]
	if s == nil || s.dead() {
		s = h.newSession(key, ask)
		h.sessions[key] = s
	}
	s.hold()
	h.mu.Unlock()
	select {
	case <-s.ready:
		if s.failed == nil {
			return s, nil
		}
		s.release()
		return nil, s.failed
	case <-ctx.Done():
		s.release()
		return nil, ctx.Err()
	}
}

// dead says that the link has ended, though not all of it is gone yet.
func (s *session) dead() bool {
	select {
	case <-s.ready:
	default:
		return false
	}
	if s.failed != nil || s.conn == nil {
		return true
	}
	select {
	case <-s.conn.Done():
		return true
	default:
		return false
	}
}

func (h *Home) newSession(key string, ask *homeproto.Ask) *session {
	s := &session{
		home: h, key: key, target: ask.Target, name: ask.Name,
		ready: make(chan struct{}), gone: make(chan struct{}), jobs: make(map[[16]byte]*job),
	}
	s.freed.L = &s.mu
	s.terms.open = make(map[terminalKey]*terminal)
	ctx, cancel := context.WithCancel(h.ctx)
	s.cancel = cancel
	h.alive.Add(1)
	go s.live(ctx, ask)
	return s
}

// hold keeps the session from being idle.
func (s *session) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
	if s.idle != nil {
		s.idle.Stop()
	}
}

func (s *session) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	s.freed.Broadcast()
	select {
	case <-s.ready:
		if s.idle == nil {
			s.idle = time.AfterFunc(s.home.opt.Idle, s.whenIdle)
		} else {
			s.idle.Reset(s.home.opt.Idle)
		}
	default:
		go s.whenIdle() // nobody waits for the link any more
	}
}

func (s *session) used() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.users > 0
}

func (s *session) whenIdle() {
	s.home.mu.Lock()
	s.mu.Lock()
	idle := s.users == 0
	if idle {
		s.forget()
	}
	s.mu.Unlock()
	s.home.mu.Unlock()
	if idle {
		s.close(nil)
	}
}

// forget makes later asks start a session of their own. The caller has
// Home.mu.
func (s *session) forget() {
	if s.home.sessions[s.key] == s {
		delete(s.home.sessions, s.key)
	}
}

// close ends the link; jobs learn why.
func (s *session) close(why error) {
	s.mu.Lock()
	if s.why == nil {
		s.why = why
	}
	s.mu.Unlock()
	s.cancel()
}

// live is the session's life: dial, serve, wait for the end, let go.
func (s *session) live(ctx context.Context, ask *homeproto.Ask) {
	defer s.home.alive.Done()
	defer close(s.gone)
	defer s.cancel()
	s.failed = s.connect(ctx, ask)
	close(s.ready)
	if s.failed == nil {
		served := make(chan struct{})
		go func() { defer close(served); s.serveFiles() }()
		select {
		case <-s.conn.Done():
		case <-ctx.Done():
		}
		s.conn.Close()
		<-served
	}
	s.home.mu.Lock()
	s.forget()
	s.home.mu.Unlock()
	s.mu.Lock()
	for s.users > 0 {
		s.freed.Wait()
	}
	if s.idle != nil {
		s.idle.Stop()
	}
	s.mu.Unlock()
	s.closeTerminals()
	if s.origin != nil {
		s.origin.Close()
	}
}

// connect makes link and origin, and exchanges greetings.
func (s *session) connect(ctx context.Context, ask *homeproto.Ask) (err error) {
	if s.origin, err = s.home.opt.Origin(ask); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	rw, err := s.home.opt.Dial(ctx, ask)
	if err != nil {
		return err
	}
	s.conn = transport.New(rw, true, transport.Options{Logf: s.home.opt.Logf})
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	if err = s.greet(); err != nil {
		s.conn.Close()
	}
	stop()
	return err
}

// greet sends our Hello and takes the server's.
func (s *session) greet() (err error) {
	if s.ctl, err = s.conn.Channel(rer.ControlChannel); err != nil {
		return err
	}
	hello, err := s.hello()
	if err != nil {
		return err
	}
	if err = s.send(&rer.Message{Hello: hello}); err != nil {
		return s.better(err)
	}
	b, err := s.ctl.Recv()
	if err != nil {
		return s.better(err)
	}
	m, err := rer.DecodeMessage(b)
	switch {
	case err != nil:
		return err
	case m.Refused != nil:
		return m.Refused
	case m.Hello == nil:
		return errors.New("the server's first message is no greeting")
	}
	s.peer = *m.Hello
	if v := s.peer.Versions; v[0] > rer.VersionMax || v[1] < rer.VersionMin {
		return &rer.Refused{
			Reason: rer.ReasonVersion,
			Text:   fmt.Sprintf("the server speaks versions %d to %d, not %d to %d", v[0], v[1], rer.VersionMin, rer.VersionMax),
			Hint:   "install the same release on both machines",
		}
	}
	s.ctl.Handle(s.message)
	return nil
}

// better gives the link's own reason for a failed call, where it has one: it
// holds what ssh said.
func (s *session) better(err error) error {
	select {
	case <-s.conn.Done():
		if e := s.conn.Err(); e != nil {
			return e
		}
	case <-time.After(time.Second):
	}
	return err
}

func (s *session) hello() (*rer.Hello, error) {
	mounts, err := s.origin.Mounts()
	if err != nil {
		return nil, err
	}
	h := &rer.Hello{
		Versions: [2]int{rer.VersionMin, rer.VersionMax}, Sysid: servers.Sysid(),
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Arch: runtime.GOARCH, NumCPU: runtime.NumCPU(), Clock: time.Now().UnixNano(),
		Mounts: mounts,
	}
	h.Hostname, _ = os.Hostname()
	groups, _ := os.Getgroups()
	for _, g := range groups {
		h.Groups = append(h.Groups, uint32(g))
	}
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	return h, nil
}

// send sends a control message. What changed here before it is recalled
// there before it arrives.
func (s *session) send(m *rer.Message) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	if m.Hello == nil {
		s.settle()
	}
	return s.ctl.Send(b)
}

func (s *session) serveFiles() {
	ch, err := s.conn.Channel(rer.FilesChannel)
	if err == nil {
		recalls, _ := s.conn.Channel(rer.RecallsChannel) // as well known
		err = fsproto.Serve(ch, s.origin, fsproto.ServeOptions{Counts: &s.counts, BeforeReply: s.settle, Recalls: recalls})
	}
	if err != nil {
		s.home.opt.Logf("%s: files: %v", s.name, err)
	}
	// A link without files is of no use to its jobs.
	s.close(nil)
}

// settle makes the recalls of all that has happened so far leave before what
// follows.
func (s *session) settle() { s.origin.Settle() }

// message hands one of the session's messages to the job that it is about. It
// runs on the link's reader and must not block.
func (s *session) message(b []byte) {
	if b == nil {
		return // the link ended
	}
	m, err := rer.DecodeMessage(b)
	if err != nil {
		s.close(fmt.Errorf("the server sent nonsense: %w", err))
		return
	}
	if m.Ping != nil {
		go func() { _ = s.send(&rer.Message{Pong: m.Ping}) }()
		return
	}
	id, ok := about(m)
	if !ok {
		return
	}
	s.mu.Lock()
	j := s.jobs[id]
	s.mu.Unlock()
	if j != nil && !j.push(m) {
		s.close(errors.New("the server sent too many messages about one job"))
	}
}

// about says which job a message is about.
func about(m *rer.Message) (id [16]byte, ok bool) {
	switch {
	case m.Started != nil:
		return m.Started.ID, true
	case m.Refused != nil:
		return m.Refused.ID, true
	case m.Stopped != nil:
		return m.Stopped.ID, true
	case m.Continued != nil:
		return m.Continued.ID, true
	case m.Ended != nil:
		return m.Ended.ID, true
	}
	return id, false
}

// enter and exit keep the table of jobs.
func (s *session) enter(j *job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[j.req.ID] != nil {
		return &rer.Refused{ID: j.req.ID, Reason: rer.ReasonTwice, Text: "this request is running already"}
	}
	s.jobs[j.req.ID] = j
	return nil
}

func (s *session) exit(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[j.req.ID] == j {
		delete(s.jobs, j.req.ID)
	}
}

// reason says why the link ended.
func (s *session) reason() error {
	s.mu.Lock()
	why := s.why
	s.mu.Unlock()
	if why != nil {
		return why
	}
	if err := s.conn.Err(); err != nil {
		return err
	}
	return errors.New("link ended")
}
