package daemon

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
	"rexec/fsview/origin"
	"rexec/internal/daemon/config"
	"rexec/internal/daemon/record"
	"rexec/internal/launch"
	"rexec/internal/transport"
	"rexec/rer"
)

const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "init":
			os.Exit(launch.Main())
		case "session":
			os.Exit(runSession(os.Args[2:]))
		}
	}
	unix.Umask(0)
	os.Exit(m.Run())
}

// runSession is rexecd session, as far as these tests need it.
func runSession(args []string) int {
	program, err := os.Executable()
	if err != nil {
		return 1
	}
	set := Setting{Program: program, ConfigFile: args[1], Records: record.Dir(args[3]), Logf: func(string, ...any) {}}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if Inherited(ctx, set, 3) != nil {
		return 1
	}
	return 0
}

// server is a running rexecd serve.
type server struct {
	t      *testing.T
	dir    string
	socket string
	s      *Server
	stop   context.CancelFunc
	ended  chan error
}

func newServer(t *testing.T, text string) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs to be root")
	}
	// Not t.TempDir: other users must reach the program in it.
	dir, err := os.MkdirTemp("", "rexecd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	s := &server{t: t, dir: dir, socket: filepath.Join(dir, "socket"), ended: make(chan error, 1)}
	program := filepath.Join(dir, "rexecd")
	if err := copyFile(program, "/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
	s.configure(text)
	cfg, err := config.Read(s.configFile())
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("unix:" + s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.s = NewServer(Setting{Program: program, ConfigFile: s.configFile(), Logf: t.Logf}, cfg)
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() { s.ended <- s.s.Serve(ctx, []net.Listener{l}) }()
	t.Cleanup(func() {
		s.end()
		for _, dir := range []string{"users/0", "users/54321", "users", ""} {
			os.Remove(filepath.Join(Shared, dir)) // unless somebody has something there
		}
	})
	return s
}

func (s *server) end() {
	s.t.Helper()
	s.stop()
	select {
	case err := <-s.ended:
		s.ended <- err
		if err != nil {
			s.t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		s.t.Fatal("the server does not end")
	}
}

func (s *server) configFile() string { return filepath.Join(s.dir, "rexecd.toml") }

func (s *server) configure(text string) {
	s.t.Helper()
	text += "\ndisallowed = \"" + filepath.Join(s.dir, "disallowed") + "\"\n"
	if err := os.WriteFile(s.configFile(), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err2 := out.Close(); err == nil {
		err = err2
	}
	return err
}

// dial connects as a user.
func (s *server) dial(uid int) net.Conn {
	s.t.Helper()
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is spoilt, and ends with the goroutine.
		runtime.LockOSThread()
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			done <- result{nil, err}
			return
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{nil, errno}
			return
		}
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: s.socket})
		f := os.NewFile(uintptr(fd), "connection")
		defer f.Close()
		if err != nil {
			done <- result{nil, err}
			return
		}
		c, err := net.FileConn(f)
		done <- result{c, err}
	}()
	r := <-done
	if r.err != nil {
		s.t.Fatal(r.err)
	}
	return r.c
}

// link is a connection that has been greeted.
type link struct {
	t       *testing.T
	conn    *transport.Conn
	control *transport.Channel
	hello   *rer.Hello
}

func (s *server) link(uid int) *link {
	s.t.Helper()
	l := &link{t: s.t, conn: transport.New(s.dial(uid), true, transport.Options{})}
	l.control, _ = l.conn.Channel(rer.ControlChannel)
	files, _ := l.conn.Channel(rer.FilesChannel)
	o, err := origin.New(origin.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = fsproto.Serve(files, o, fsproto.ServeOptions{}) }()
	s.t.Cleanup(func() { l.conn.Close(); <-served; o.Close() })
	mounts, err := o.Mounts()
	if err != nil {
		s.t.Fatal(err)
	}
	l.send(&rer.Message{Hello: &rer.Hello{Versions: [2]int{1, 1}, UID: uint32(uid), Hostname: "h1", Mounts: mounts}})
	if m := l.next(); m == nil || m.Hello == nil {
		s.t.Fatalf("greeting: %+v", m)
	} else {
		l.hello = m.Hello
	}
	return l
}

func (l *link) send(m *rer.Message) {
	l.t.Helper()
	b, err := m.Encode()
	if err == nil {
		err = l.control.Send(b)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// next gives the next message; nil: the link has ended.
func (l *link) next() *rer.Message {
	l.t.Helper()
	timer := time.AfterFunc(patience, func() { l.t.Error("no message comes"); l.conn.Close() })
	defer timer.Stop()
	b, err := l.control.Recv()
	if err != nil {
		return nil
	}
	m, err := rer.DecodeMessage(b)
	if err != nil {
		l.t.Fatal(err)
	}
	return m
}

// launch asks for shell text without any descriptor, and gives the id.
func (l *link) launch(text, hostname string) [16]byte {
	l.t.Helper()
	r := &rer.Request{Shell: []byte(text), CwdPath: []byte("/proc"), Hostname: hostname, User: "tester",
		Env: [][]byte{[]byte("PATH=/usr/bin:/bin")}, UID: l.hello.UID, GID: l.hello.GID}
	rand.Read(r.ID[:])
	l.send(&rer.Message{Launch: r})
	return r.ID
}

func (l *link) refused() *rer.Refused {
	l.t.Helper()
	m := l.next()
	if m == nil || m.Refused == nil {
		l.t.Fatalf("not refused: %+v", m)
	}
	return m.Refused
}

func TestSessionAndJobs(t *testing.T) {
	s := newServer(t, "")
	l := s.link(0)
	if l.hello.UID != 0 || l.hello.Sysid == "" {
		t.Errorf("greeting %+v", l.hello)
	}
	l.launch("sleep 1000; exit 1", "h1")
	if m := l.next(); m == nil || m.Started == nil {
		t.Fatalf("not started: %+v", m)
	}
	find := func() *record.Record {
		for _, r := range record.List(Records()) {
			if r.User == "tester" && r.Home == "h1" {
				return r
			}
		}
		return nil
	}
	var r *record.Record
	for end := time.Now().Add(patience); r == nil && time.Now().Before(end); r = find() {
		time.Sleep(5 * time.Millisecond)
	}
	if r == nil || r.Command != "sleep 1000; exit 1" || record.Processes().Find(r) == 0 {
		t.Fatalf("record %+v", r)
	}
	if err := r.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if m := l.next(); m == nil || m.Ended == nil || m.Ended.Status.Signal != int(unix.SIGKILL) {
		t.Errorf("end: %+v", m)
	}
	if r := find(); r != nil {
		t.Errorf("record of an ended job: %+v", r)
	}
}

// TestOtherUser checks that a session is the user's own. Whether its jobs can
// run depends on /dev/fuse; if not, the hint says so.
func TestOtherUser(t *testing.T) {
	const uid = 54321
	s := newServer(t, "")
	l := s.link(uid)
	if l.hello.UID != uid || len(l.hello.Groups) != 0 {
		t.Errorf("greeting %+v", l.hello)
	}
	l.launch("exit 3", "h1")
	switch m := l.next(); {
	case m != nil && m.Started != nil:
		if m := l.next(); m == nil || m.Ended == nil || m.Ended.Status.Code != 3 {
			t.Errorf("end: %+v", m)
		}
	case m == nil || m.Refused == nil || m.Refused.Reason != rer.ReasonNoFUSE || !strings.Contains(m.Refused.Hint, "/dev/fuse"):
		t.Errorf("answer %+v", m)
		if m != nil && m.Refused != nil {
			t.Errorf("refusal %+v", m.Refused)
		}
	}
}

func TestAdmission(t *testing.T) {
	s := newServer(t, "allow_users = [\"root\"]\ndeny_homes = [\"h2\"]\n")
	if no := s.link(54321).refused(); no.Reason != rer.ReasonNotAllowed || !strings.Contains(no.Text, "54321") {
		t.Errorf("another user: %+v", no)
	}
	l := s.link(0)
	l.launch("true", "h2")
	if no := l.refused(); no.Reason != rer.ReasonNotAllowed || !strings.Contains(no.Text, "h2") {
		t.Errorf("another home: %+v", no)
	}
	if err := Drain("for repair"); err != nil {
		t.Fatal(err)
	}
	defer Resume()
	l.launch("true", "h1")
	if no := l.refused(); no.Reason != rer.ReasonWithdrawn || !strings.Contains(no.Text, "for repair") {
		t.Errorf("drained: %+v", no)
	}
	if err := Resume(); err != nil {
		t.Fatal(err)
	}
	l.launch("exit 4", "h1")
	if m := l.next(); m == nil || m.Started == nil {
		t.Errorf("resumed: %+v", m)
	}
	s.configure("nonsense = 1")
	s.s.Reload()
	if no := s.link(54321).refused(); no.Reason != rer.ReasonNotAllowed {
		t.Errorf("after a broken configuration: %+v", no)
	}
	s.configure("deny_users = [\"root\"]\n")
	s.s.Reload()
	if no := s.link(0).refused(); no.Reason != rer.ReasonNotAllowed {
		t.Errorf("after reload: %+v", no)
	}
}

func TestEndEndsSessions(t *testing.T) {
	s := newServer(t, "grace = 30")
	l := s.link(0)
	l.launch("sleep 1000", "h1")
	if m := l.next(); m == nil || m.Started == nil {
		t.Fatalf("not started: %+v", m)
	}
	s.end()
	for m := l.next(); m != nil; m = l.next() {
		if m.Ended == nil {
			t.Errorf("after the end: %+v", m)
		}
	}
}

func TestListenReplacesAbandonedSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("a socket in use was replaced")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = Listen("unix:" + path)
	if err != nil {
		t.Fatalf("abandoned socket: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("a file was replaced")
	}
}
