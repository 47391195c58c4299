package session

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
	"rexec/fsview/origin"
	"rexec/internal/launch"
	"rexec/internal/transport"
	"rexec/rer"
)

// patience is how long a condition is waited for.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(launch.Main())
	}
	unix.Umask(0)
	signal.Ignore(unix.SIGXFSZ)
	os.Exit(m.Run())
}

// home is the other side of a session: this machine's files, and answers by
// request.
type home struct {
	t       *testing.T
	conn    *transport.Conn
	control *transport.Channel
	origin  *origin.Origin
	server  *rer.Hello
	ended   chan error // Serve's result

	mu      sync.Mutex
	answers map[[16]byte]chan *rer.Message
}

// sockets are two ends of a stream.
func sockets(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []*net.Conn{&a, &b} {
		f := os.NewFile(uintptr(fds[i]), "link")
		if *c, err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return a, b
}

// newHome starts a session and greets it.
func newHome(t *testing.T, cfg Config) *home {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Fatalf("this test needs /dev/fuse: %v", err)
	} else {
		f.Close()
	}
	here, there := sockets(t)
	cfg.Program = "/proc/self/exe"
	if exe, err := os.Executable(); err == nil {
		cfg.Program = exe
	}
	cfg.Logf = t.Logf
	h := &home{t: t, ended: make(chan error, 1), answers: make(map[[16]byte]chan *rer.Message)}
	go func() { h.ended <- Serve(context.Background(), there, cfg) }()
	h.conn = transport.New(here, true, transport.Options{})
	h.control, _ = h.conn.Channel(rer.ControlChannel)
	files, _ := h.conn.Channel(rer.FilesChannel)
	recalls, _ := h.conn.Channel(rer.RecallsChannel)
	var err error
	if h.origin, err = origin.New(origin.Options{}); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = fsproto.Serve(files, h.origin, fsproto.ServeOptions{BeforeReply: h.origin.Settle, Recalls: recalls})
	}()
	t.Cleanup(func() {
		h.conn.Close()
		h.waitEnd()
		<-served
		h.origin.Close()
	})
	h.greet()
	go h.receive()
	return h
}

// waitEnd returns when the session's Serve has.
func (h *home) waitEnd() {
	h.t.Helper()
	select {
	case err := <-h.ended:
		h.ended <- err
	case <-time.After(patience):
		h.t.Fatal("the session does not end")
	}
}

func (h *home) send(m *rer.Message) {
	h.t.Helper()
	h.origin.Settle()
	b, err := m.Encode()
	if err == nil {
		err = h.control.Send(b)
	}
	if err != nil {
		h.t.Errorf("send: %v", err)
	}
}

func (h *home) greet() {
	h.t.Helper()
	mounts, err := h.origin.Mounts()
	if err != nil {
		h.t.Fatal(err)
	}
	name, _ := os.Hostname()
	h.send(&rer.Message{Hello: &rer.Hello{
		Versions: [2]int{1, 1}, Hostname: name, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mounts: mounts,
	}})
	b, err := h.control.Recv()
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := rer.DecodeMessage(b)
	if err != nil || m.Hello == nil {
		h.t.Fatalf("greeting: %+v, %v", m, err)
	}
	h.server = m.Hello
}

func (h *home) receive() {
	for {
		b, err := h.control.Recv()
		if err != nil {
			h.mu.Lock()
			for _, c := range h.answers {
				close(c)
			}
			h.answers = nil
			h.mu.Unlock()
			return
		}
		m, err := rer.DecodeMessage(b)
		if err != nil {
			h.t.Errorf("message: %v", err)
			continue
		}
		h.answer(m)
	}
}

func (h *home) answer(m *rer.Message) {
	var id [16]byte
	switch {
	case m.Started != nil:
		id = m.Started.ID
	case m.Refused != nil:
		id = m.Refused.ID
	case m.Stopped != nil:
		id = m.Stopped.ID
	case m.Continued != nil:
		id = m.Continued.ID
	case m.Ended != nil:
		id = m.Ended.ID
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.answers[id]; c != nil {
		c <- m
	}
}

// running is a job as home sees it.
type running struct {
	h       *home
	req     *rer.Request
	answers chan *rer.Message
	stdin   *transport.Channel
	outputs map[uint32]*sink
	stdout  *sink
	stderr  *sink
}

// sink collects what comes on a channel.
type sink struct {
	mu       sync.Mutex
	more     sync.Cond
	data     bytes.Buffer
	ended    bool // 'e' came
	hung     bool // 'h' came
	consumed uint64
	other    [][]byte
	over     bool // the channel is closed
}

func collect(ch *transport.Channel) *sink {
	s := new(sink)
	s.more.L = &s.mu
	go func() {
		for {
			msg, err := ch.Recv()
			s.mu.Lock()
			if err != nil {
				s.over = true
				s.more.Broadcast()
				s.mu.Unlock()
				return
			}
			switch msg[0] {
			case 'd':
				s.data.Write(msg[1:])
			case 'e':
				s.ended = true
			case 'h':
				s.hung = true
			case 'c':
				s.consumed = 0
				for _, b := range msg[1:] {
					s.consumed = s.consumed<<8 | uint64(b)
				}
			default:
				s.other = append(s.other, msg)
			}
			s.more.Broadcast()
			s.mu.Unlock()
		}
	}()
	return s
}

// wait returns when cond holds, or fails the test.
func (s *sink) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() { s.mu.Lock(); late = true; s.more.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !cond() {
		if late {
			t.Fatalf("%s never came; data %q", what, s.data.String())
		}
		s.more.Wait()
	}
}

func (s *sink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.String()
}

// adopt gives a handle of one of this machine's files.
func (h *home) adopt(path string, flags int) (*os.File, rer.Handle) {
	h.t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatalf("%s: %v", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	node, _, err := h.origin.AdoptNode(fd)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return f, rer.Handle(node)
}

// request is a request for a command in dir, with pipes for the standard
// descriptors.
func (h *home) request(dir string, argv ...string) *running {
	h.t.Helper()
	_, cwd := h.adopt(dir, unix.O_PATH|unix.O_DIRECTORY)
	r := &rer.Request{
		Env: [][]byte{[]byte("PATH=/usr/bin:/bin"), []byte("LC_ALL=C")}, Cwd: cwd, CwdPath: []byte(dir), Umask: 0o022,
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
	}
	rand.Read(r.ID[:])
	for _, a := range argv {
		r.Argv = append(r.Argv, []byte(a))
	}
	j := &running{h: h, req: r, answers: make(chan *rer.Message, 100), outputs: make(map[uint32]*sink)}
	h.mu.Lock()
	h.answers[r.ID] = j.answers
	h.mu.Unlock()
	var in *sink
	j.stdin, in = j.pipe(0, unix.O_RDONLY)
	j.outputs[j.stdin.ID()] = in
	_, j.stdout = j.pipe(1, unix.O_WRONLY)
	_, j.stderr = j.pipe(2, unix.O_WRONLY)
	return j
}

// pipe adds a pipe as descriptor num.
func (j *running) pipe(num int32, mode uint32) (*transport.Channel, *sink) {
	ch, err := j.h.conn.Open(transport.ClassBulk)
	if err != nil {
		j.h.t.Fatal(err)
	}
	j.add(num, rer.Description{ID: uint64(ch.ID()) << 32, Kind: rer.KindPipe, Flags: mode, Channel: ch.ID()})
	s := collect(ch)
	j.outputs[ch.ID()] = s
	return ch, s
}

func (j *running) add(num int32, d rer.Description) *rer.Description {
	j.req.FDs = append(j.req.FDs, rer.FD{Num: num, Desc: uint32(len(j.req.Descriptions))})
	j.req.Descriptions = append(j.req.Descriptions, d)
	return &j.req.Descriptions[len(j.req.Descriptions)-1]
}

func (j *running) launch() *running {
	j.h.t.Helper()
	j.h.send(&rer.Message{Launch: j.req})
	return j
}

// next gives home's next answer about the job; nil: the link has ended.
func (j *running) next() *rer.Message {
	j.h.t.Helper()
	select {
	case m := <-j.answers:
		return m
	case <-time.After(patience):
		j.h.t.Fatalf("no answer about %s; stderr %q", j.name(), j.stderr.text())
		return nil
	}
}

func (j *running) name() string {
	return strings.TrimSpace(fmt.Sprintf("%q%s", j.req.Argv, j.req.Shell))
}

func (j *running) started() *rer.Started {
	j.h.t.Helper()
	m := j.next()
	if m == nil || m.Started == nil {
		j.h.t.Fatalf("%s: not started: %s", j.name(), describe(m))
	}
	return m.Started
}

func describe(m *rer.Message) string {
	switch {
	case m == nil:
		return "the link ended"
	case m.Refused != nil:
		return fmt.Sprintf("%+v", *m.Refused)
	case m.Ended != nil:
		return fmt.Sprintf("%+v", *m.Ended)
	}
	return fmt.Sprintf("%+v", *m)
}

// wait returns the command's end, when all that it wrote has arrived.
func (j *running) wait() *rer.Ended {
	j.h.t.Helper()
	for {
		m := j.next()
		if m == nil || m.Refused != nil {
			j.h.t.Fatalf("%s: %s", j.name(), describe(m))
		}
		if m.Ended == nil {
			continue
		}
		for _, s := range m.Ended.Sent {
			if out := j.outputs[s.Channel]; out != nil {
				out.wait(j.h.t, fmt.Sprintf("output of %s", j.name()), func() bool { return uint64(out.data.Len()) >= s.Bytes })
			}
		}
		return m.Ended
	}
}

func (j *running) refused() *rer.Refused {
	j.h.t.Helper()
	m := j.next()
	if m == nil || m.Refused == nil {
		j.h.t.Fatalf("%s: not refused: %s", j.name(), describe(m))
	}
	return m.Refused
}

// sh runs shell text to its end and gives its output.
func (h *home) sh(dir, text string, change ...func(*running)) (string, *rer.Ended) {
	h.t.Helper()
	j := h.request(dir)
	j.req.Shell = []byte(text)
	for _, f := range change {
		f(j)
	}
	j.launch()
	if err := j.stdin.Send([]byte("e")); err != nil && !errors.Is(err, unix.EPIPE) {
		h.t.Error(err)
	}
	e := j.wait()
	if e.Status.Signal != 0 {
		h.t.Logf("%s: signal %d, stderr %q", text, e.Status.Signal, j.stderr.text())
	}
	return j.stdout.text() + j.stderr.text(), e
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
