package home

import (
	"context"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/internal/transport"
	"rexec/rer"
)

// limit is how long anything may take.
const limit = 20 * time.Second

// server is the other machine: it takes links and does with each launch what
// the test says.
type server struct {
	t        *testing.T
	versions [2]int

	mu      sync.Mutex
	dials   int
	links   []*link
	run     func(l *link, r *rer.Request) // nil: nothing
	signals chan *rer.Signal
	kills   chan *rer.Kill
}

type link struct {
	s    *server
	conn *transport.Conn
	ctl  *transport.Channel
}

func newServer(t *testing.T, run func(l *link, r *rer.Request)) *server {
	return &server{t: t, versions: [2]int{1, 1}, run: run,
		signals: make(chan *rer.Signal, 100), kills: make(chan *rer.Kill, 100)}
}

func (s *server) dial(context.Context, *homeproto.Ask) (io.ReadWriteCloser, error) {
	a, b := net.Pipe()
	l := &link{s: s, conn: transport.New(b, false, transport.Options{})}
	l.ctl, _ = l.conn.Channel(rer.ControlChannel)
	s.mu.Lock()
	s.dials++
	s.links = append(s.links, l)
	s.mu.Unlock()
	go l.serve()
	return a, nil
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

func (l *link) serve() {
	for {
		b, err := l.ctl.Recv()
		if err != nil {
			l.conn.Close()
			return
		}
		m, err := rer.DecodeMessage(b)
		switch {
		case err != nil:
			l.s.t.Error(err)
		case m.Hello != nil:
			l.send(&rer.Message{Hello: &rer.Hello{Versions: l.s.versions, Sysid: "far"}})
		case m.Launch != nil && l.s.run != nil:
			go l.s.run(l, m.Launch)
		case m.Signal != nil:
			l.s.signals <- m.Signal
		case m.Kill != nil:
			l.s.kills <- m.Kill
			l.send(&rer.Message{Ended: &rer.Ended{ID: m.Kill.ID, Status: rer.Status{Signal: 9}}})
		}
	}
}

func (l *link) send(m *rer.Message) {
	b, err := m.Encode()
	if err == nil {
		_ = l.ctl.Send(b)
	} else {
		l.s.t.Error(err)
	}
}

func (l *link) started(r *rer.Request) {
	l.send(&rer.Message{Started: &rer.Started{ID: r.ID, Pid: r.Pid, ServerID: 77}})
}

func (l *link) ended(r *rer.Request, code int, sent ...rer.Sent) {
	l.send(&rer.Message{Ended: &rer.Ended{ID: r.ID, Status: rer.Status{Code: code}, Sent: sent}})
}

func (l *link) channel(id uint32) *transport.Channel {
	ch, err := l.conn.Channel(id)
	if err != nil {
		l.s.t.Error(err)
	}
	return ch
}

// cat copies description 0 to description 1 until it has ended.
func cat(l *link, r *rer.Request) {
	l.started(r)
	in, out := l.channel(r.Descriptions[0].Channel), l.channel(r.Descriptions[1].Channel)
	n, read := uint64(0), uint64(0)
	for {
		m, err := in.Recv()
		if err != nil {
			return
		}
		if m[0] == 'e' {
			break
		}
		read += uint64(len(m) - 1)
		_ = out.Send(m)
		n += uint64(len(m) - 1)
	}
	_ = out.Send([]byte{'e'})
	_ = in.Send([]byte{'h'})
	ended := &rer.Ended{ID: r.ID, Status: rer.Status{Code: 3}, Sent: []rer.Sent{{Channel: out.ID(), Bytes: n}}}
	if r.Descriptions[0].Paced {
		ended.Consumed = []rer.Sent{{Channel: in.ID(), Bytes: read}}
	}
	l.send(&rer.Message{Ended: ended})
}

// testHome gives a home whose links lead to s, and checks at the end that it
// leaves nothing behind.
func testHome(t *testing.T, s *server, opt Options) *Home {
	t.Helper()
	// Package signal keeps one goroutine from its first use on.
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGWINCH)
	signal.Stop(c)
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	if opt.Dial == nil {
		opt.Dial = s.dial
	}
	h, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() { h.Close(); close(closed) }()
		within(t, "Close", closed)
		eventually(t, "end of goroutines and descriptors", func() bool {
			return runtime.NumGoroutine() <= goroutines && openFiles(t) <= fds
		}, func() string {
			b := make([]byte, 1<<20)
			return string(b[:runtime.Stack(b, true)])
		})
	})
	return h
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func eventually(t *testing.T, what string, ok func() bool, more ...func() string) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			for _, f := range more {
				t.Log(f())
			}
			t.Fatalf("no %s after %v", what, limit)
		}
	}
}

func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(limit):
		b := make([]byte, 1<<20)
		t.Log(string(b[:runtime.Stack(b, true)]))
		t.Fatalf("%s: not after %v", what, limit)
		panic("not reached")
	}
}

// agent is the other side of a homeproto connection.
type agent struct {
	t       *testing.T
	conn    *homeproto.Conn
	answers chan *homeproto.Answer // closed at the end of the connection
	served  chan struct{}
}

func command() *homeproto.Ask {
	return &homeproto.Ask{Target: "fake", Name: "eagle", Request: rer.Request{
		Argv: [][]byte{[]byte("cat")}, Pid: int32(os.Getpid()), Sid: 1, Sysid: "near",
	}}
}

// describe adds a description with the descriptor number num to an ask.
func describe(ask *homeproto.Ask, num int32, kind rer.Kind, flags uint32) {
	ask.Request.FDs = append(ask.Request.FDs, rer.FD{Num: num, Desc: uint32(len(ask.Request.Descriptions))})
	ask.Request.Descriptions = append(ask.Request.Descriptions, rer.Description{Kind: kind, Flags: flags})
}

// start has h serve an agent that asks. Files are closed once sent.
func start(t *testing.T, h *Home, ask *homeproto.Ask, files ...*os.File) *agent {
	t.Helper()
	ours, theirs, err := homeproto.Pair()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, conn: ours, answers: make(chan *homeproto.Answer, 100), served: make(chan struct{})}
	go func() { h.ServeConn(theirs); close(a.served) }()
	if !ask.List && !ask.Stop {
		files = append([]*os.File{open(t, "/", unix.O_PATH), open(t, t.TempDir(), unix.O_PATH)}, files...)
	}
	if err := ours.SendAsk(ask, files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	go a.receive()
	t.Cleanup(func() { a.conn.Close(); within(t, "end of the agent", a.served) })
	return a
}

func (a *agent) receive() {
	defer close(a.answers)
	for {
		m, err := a.conn.RecvAnswer()
		if err != nil {
			return
		}
		a.answers <- m
	}
}

// next gives the next answer.
func (a *agent) next() *homeproto.Answer {
	a.t.Helper()
	m := within(a.t, "answer", a.answers)
	if m == nil {
		a.t.Fatal("the connection ended")
	}
	return m
}

func (a *agent) started() {
	a.t.Helper()
	if m := a.next(); m.Started == nil {
		a.t.Fatalf("not Started but %+v", explain(m))
	}
}

func (a *agent) ended() *rer.Ended {
	a.t.Helper()
	m := a.next()
	if m.Ended == nil {
		a.t.Fatalf("not Ended but %+v", explain(m))
	}
	return m.Ended
}

func (a *agent) refused(reason rer.Reason) *rer.Refused {
	a.t.Helper()
	m := a.next()
	if m.Refused == nil || m.Refused.Reason != reason {
		a.t.Fatalf("not refused for %d but %+v", reason, explain(m))
	}
	if !strings.HasPrefix(m.Refused.Text, "eagle: ") || strings.Contains(m.Refused.Text, "\n") {
		a.t.Errorf("text %q", m.Refused.Text)
	}
	return m.Refused
}

func explain(m *homeproto.Answer) any {
	switch {
	case m.Refused != nil:
		return *m.Refused
	case m.Ended != nil:
		return *m.Ended
	}
	return *m
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// pipe gives blocking ends.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
}
