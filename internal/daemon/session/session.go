// Package session is the server's half of a link: one home user's logical
// machine on this server. It serves the views of the jobs, has init launch
// them, carries their descriptors and terminals, and reports their ends.
//
// A session ends with its link, and every job of it with the session: first by
// SIGHUP, then, a moment later, by SIGKILL.
//
// # Order
//
// Before a byte, a signal or a launch reaches a job, all recalls that home
// sent before are in force ([Session.settle]). A job's end is reported after
// what lay in its pipes at that moment was sent, with counts of it, because
// the control channel may overtake others.
//
// # Locks
//
// Session.mu guards the tables and is held over nothing that waits. job.mu,
// stream.mu and terminal.mu come after it.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"rexec/fsview"
	"rexec/fsview/fsproto"
	"rexec/internal/launch"
	"rexec/internal/transport"
	"rexec/rer"
)

// hangUpGrace is what jobs get between SIGHUP and SIGKILL when the link ends.
const hangUpGrace = 300 * time.Millisecond

// Config is what a session is told by who starts it.
type Config struct {
	Program string // path of rexecd, for init
	Build   string // version, for messages
	// Forbidden gives the administrator's list as it is now; nil: empty.
	Forbidden func() []string
	// Admit says whether a new job may come; nil: always.
	Admit func(*rer.Request) *rer.Refused
	// Note is told when a job starts and when it ends; nil: nobody.
	Note func(Job)
	Logf func(format string, args ...any) // nil: silent
}

// Job is what a session tells of a job.
type Job struct {
	Request *rer.Request
	Home    *rer.Hello
	Switch  []string
	Pid     int32 // in the session
	Init    int   // the session's init, in the server's own numbering
	Since   time.Time
	Status  *rer.Status // nil while it runs
}

// Session is one link with its jobs.
type Session struct {
	cfg     Config
	conn    *transport.Conn
	control *transport.Channel
	files   *fsproto.Client
	recalls *recalls
	home    *rer.Hello

	started chan struct{} // closed when init and initErr are set
	init    *launch.Init
	initErr error

	mu        sync.Mutex
	ending    bool
	jobs      map[[16]byte]*job
	seen      map[[16]byte]bool
	views     map[string]*view
	streams   map[streamKey]*stream
	terminals map[launch.TerminalKey]*terminalSlot

	work sync.WaitGroup // launches and jobs' ends
}

// Serve speaks with home over rw until the link ends, and returns when nothing
// of the session is left. The error says why it ended; nil where home ended it
// in order. When ctx ends the session does.
func Serve(ctx context.Context, rw io.ReadWriteCloser, cfg Config) error {
	s := newSession(rw, cfg)
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	err := s.greet()
	if err == nil {
		go s.startInit()
		err = s.receive()
		s.end()
	}
	s.conn.Close()
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func newSession(rw io.ReadWriteCloser, cfg Config) *Session {
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Forbidden == nil {
		cfg.Forbidden = func() []string { return nil }
	}
	if cfg.Note == nil {
		cfg.Note = func(Job) {}
	}
	s := &Session{
		cfg: cfg, conn: transport.New(rw, false, transport.Options{Logf: cfg.Logf}),
		started: make(chan struct{}), jobs: make(map[[16]byte]*job), seen: make(map[[16]byte]bool),
		views: make(map[string]*view), streams: make(map[streamKey]*stream),
		terminals: make(map[launch.TerminalKey]*terminalSlot),
	}
	// These channels are there from the start.
	s.control, _ = s.conn.Channel(rer.ControlChannel)
	files, _ := s.conn.Channel(rer.FilesChannel)
	recalls, _ := s.conn.Channel(rer.RecallsChannel)
	s.files = fsproto.NewClient(files)
	s.files.SetRecall(s.recall)
	s.recalls = newRecalls(recalls, s.files.Recalled, func() { s.conn.Close() })
	return s
}

// Refuse speaks with home just to say why there will be no session.
func Refuse(rw io.ReadWriteCloser, cfg Config, no *rer.Refused) error {
	s := newSession(rw, cfg)
	defer s.conn.Close()
	s.send(&rer.Message{Hello: s.hello()})
	s.send(&rer.Message{Refused: no})
	// Home's own Hello and Launch are on their way; it ends the link.
	t := time.AfterFunc(10*time.Second, func() { s.conn.Close() })
	defer t.Stop()
	for {
		m, err := s.next()
		if err != nil {
			return nil
		}
		if m.Launch != nil {
			answer := *no
			answer.ID = m.Launch.ID
			s.send(&rer.Message{Refused: &answer})
		}
	}
}

// greet exchanges Hello.
func (s *Session) greet() error {
	s.send(&rer.Message{Hello: s.hello()})
	m, err := s.next()
	if err != nil {
		return err
	}
	if m.Hello == nil {
		return fmt.Errorf("home's first message is no greeting")
	}
	s.home = m.Hello
	if err := checkHello(m.Hello); err != nil {
		s.send(&rer.Message{Refused: err})
		return err
	}
	return nil
}

// checkHello says what of home's greeting cannot be dealt with.
func checkHello(h *rer.Hello) *rer.Refused {
	if h.Versions[0] > rer.VersionMax || h.Versions[1] < rer.VersionMin {
		return &rer.Refused{Reason: rer.ReasonVersion, Text: fmt.Sprintf(
			"the server speaks protocol versions %d to %d, home %d to %d",
			rer.VersionMin, rer.VersionMax, h.Versions[0], h.Versions[1])}
	}
	if len(h.Mounts) == 0 || h.Mounts[0].Path != "/" {
		return &rer.Refused{Reason: rer.ReasonBadRequest, Text: "home's greeting names no root"}
	}
	for _, m := range h.Mounts {
		if !isClean(m.Path) {
			return &rer.Refused{Reason: rer.ReasonBadRequest, Text: fmt.Sprintf("home's greeting names a mount at %q", m.Path)}
		}
	}
	return nil
}

// next gives home's next message.
func (s *Session) next() (*rer.Message, error) {
	b, err := s.control.Recv()
	if err != nil {
		return nil, err
	}
	m, err := rer.DecodeMessage(b)
	var no *rer.Refused
	if errors.As(err, &no) {
		s.send(&rer.Message{Refused: no})
		return &rer.Message{}, nil
	}
	return m, err
}

// receive handles home's messages until the link ends.
func (s *Session) receive() error {
	for {
		m, err := s.next()
		if err != nil {
			return err
		}
		switch {
		case m.Launch != nil:
			s.launch(m.Launch)
		case m.Signal != nil:
			s.signal(m.Signal)
		case m.Kill != nil:
			s.kill(m.Kill.ID)
		case m.Ping != nil:
			s.send(&rer.Message{Pong: m.Ping})
		}
	}
}

// send is for messages that the link's end makes pointless.
func (s *Session) send(m *rer.Message) {
	b, err := m.Encode()
	if err == nil {
		err = s.control.Send(b)
	}
	if err != nil {
		s.cfg.Logf("message to home: %v", err)
	}
}

// startInit starts the session's init while home still thinks of its first
// request.
func (s *Session) startInit() {
	defer close(s.started)
	s.init, s.initErr = launch.Start(launch.Config{
		Program: s.cfg.Program, UID: s.home.UID, GID: s.home.GID, Groups: s.home.Groups,
		Hostname: s.home.Hostname, Privileged: s.privileged(), Verbose: s.cfg.Logf,
	})
	if s.initErr == nil {
		go s.events(s.init.Events())
	}
}

// privileged says whether several ids can be mapped.
func (s *Session) privileged() bool { return os.Geteuid() == 0 }

// waitInit gives init, or why there is none.
func (s *Session) waitInit() (*launch.Init, error) {
	<-s.started
	return s.init, s.initErr
}

// trees are the views that there are.
func (s *Session) trees() []*fsview.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*fsview.View, 0, len(s.views))
	for _, v := range s.views {
		if v.tree != nil {
			list = append(list, v.tree)
		}
	}
	return list
}

// end takes the session down: hang up, kill, and then the views, whose
// requests fail already because the link is gone.
func (s *Session) end() {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.conn.Close()
	if in, err := s.waitInit(); err == nil {
		if s.hangUp(in) {
			time.Sleep(hangUpGrace)
		}
		in.Close()
	}
	s.closeStreams()
	s.work.Wait()
	s.closeViews()
}

// hangUp has every job hung up and killed, and says whether there was one.
func (s *Session) hangUp(in *launch.Init) bool {
	s.mu.Lock()
	jobs := make([][16]byte, 0, len(s.jobs))
	for id, j := range s.jobs {
		jobs = append(jobs, id)
		j.lost()
	}
	s.mu.Unlock()
	for _, id := range jobs {
		go in.Kill(id) // may wait for a launch; Close ends it
	}
	return len(jobs) > 0
}

func (s *Session) closeStreams() {
	s.mu.Lock()
	var streams []*stream
	for _, st := range s.streams {
		streams = append(streams, st)
	}
	var terminals []*terminalSlot
	for _, t := range s.terminals {
		terminals = append(terminals, t)
	}
	s.mu.Unlock()
	for _, st := range streams {
		st.close()
	}
	for _, t := range terminals {
		t.close()
	}
}
