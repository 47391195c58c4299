package home

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/agent/pump"
	"rexec/rer"
)

func TestCat(t *testing.T) {
	s := newServer(t, cat)
	h := testHome(t, s, Options{})
	ask := command()
	ask.Stats = true
	describe(ask, 0, rer.KindPipe, unix.O_RDONLY)
	describe(ask, 1, rer.KindPipe, unix.O_WRONLY)
	r, in := pipe(t)
	out, w := pipe(t)
	a := start(t, h, ask, r, w)
	want := bytes.Repeat([]byte("0123456789"), 30000)
	go func() { _, _ = in.Write(want); in.Close() }()
	got, err := io.ReadAll(out) // ends only when home has let go of it
	out.Close()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	a.started()
	if m := a.next(); m.Stats == nil || m.Stats.BytesOut < uint64(len(want)) || m.Stats.Total < m.Stats.Launch {
		t.Errorf("stats %+v", m)
	}
	if e := a.ended(); e.Status.Code != 3 {
		t.Errorf("status %+v", e.Status)
	}
}

func TestStatusWaitsForOutput(t *testing.T) {
	const total = 200 << 10
	s := newServer(t, func(l *link, r *rer.Request) {
		l.started(r)
		ch := l.channel(r.Descriptions[0].Channel)
		for range total >> 10 {
			_ = ch.Send(append([]byte{'d'}, make([]byte, 1<<10)...))
		}
		_ = ch.Send([]byte{'e'})
		l.ended(r, 0, rer.Sent{Channel: ch.ID(), Bytes: total})
	})
	h := testHome(t, s, Options{})
	ask := command()
	describe(ask, 1, rer.KindPipe, unix.O_WRONLY)
	r, w := pipe(t)
	defer r.Close()
	a := start(t, h, ask, w)
	a.started()
	eventually(t, "full pipe", func() bool {
		n, _ := unix.IoctlGetInt(number(r), unix.TIOCINQ)
		return n == 64<<10
	})
	if len(a.answers) > 0 {
		t.Fatal("status before the output")
	}
	if b, err := io.ReadAll(r); len(b) != total || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	a.ended()
}

// TestDescendants: what is left of a job writes after its end.
func TestDescendants(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(l *link, r *rer.Request) {
		l.started(r)
		ch := l.channel(r.Descriptions[0].Channel)
		_ = ch.Send([]byte("dearly "))
		l.ended(r, 0, rer.Sent{Channel: ch.ID(), Bytes: 6})
		<-release
		_ = ch.Send([]byte("dlate"))
		_ = ch.Send([]byte{'e'})
	})
	h := testHome(t, s, Options{Idle: time.Millisecond})
	ask := command()
	describe(ask, 1, rer.KindPipe, unix.O_WRONLY)
	out, w := pipe(t)
	defer out.Close()
	a := start(t, h, ask, w)
	a.started()
	a.ended()
	within(t, "end of the agent", a.served)
	close(release)
	if b, err := io.ReadAll(out); string(b) != "early late" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	within(t, "end of the link", s.links[0].conn.Done())
}

func TestOneDialForTwo(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r); l.ended(r, 0) })
	h := testHome(t, s, Options{})
	a, b := start(t, h, command()), start(t, h, command())
	for _, a := range []*agent{a, b} {
		a.started()
		a.ended()
	}
	if n := s.count(); n != 1 {
		t.Errorf("%d links", n)
	}
}

func TestCannotConnect(t *testing.T) {
	h := testHome(t, nil, Options{Dial: func(context.Context, *homeproto.Ask) (io.ReadWriteCloser, error) {
		return nil, unix.ECONNREFUSED
	}})
	if r := start(t, h, command()).refused(rer.ReasonUnreachable); r.Errno != int(unix.ECONNREFUSED) || r.Hint == "" {
		t.Errorf("refused %+v", r)
	}
}

func TestUnknownTarget(t *testing.T) {
	h := testHome(t, nil, Options{Dial: (&Home{}).dial})
	start(t, h, command()).refused(rer.ReasonUnknownHost)
}

// deafDial never connects. What it returns is closed when a dial is given up.
func deafDial(opt *Options) chan struct{} {
	over := make(chan struct{})
	opt.Dial = func(ctx context.Context, _ *homeproto.Ask) (io.ReadWriteCloser, error) {
		<-ctx.Done()
		close(over)
		return nil, ctx.Err()
	}
	return over
}

func TestSignalWhileConnecting(t *testing.T) {
	var opt Options
	over := deafDial(&opt)
	h := testHome(t, nil, opt)
	a := start(t, h, command())
	if err := a.conn.SendRelay(&homeproto.Relay{Signal: &rer.Signal{Signo: int(unix.SIGINT)}}); err != nil {
		t.Fatal(err)
	}
	if e := a.ended(); e.Status.Signal != int(unix.SIGINT) {
		t.Errorf("status %+v", e.Status)
	}
	within(t, "end of the dial", over)
}

func TestAgentGoneWhileConnecting(t *testing.T) {
	var opt Options
	over := deafDial(&opt)
	h := testHome(t, nil, opt)
	a := start(t, h, command())
	a.conn.Close()
	within(t, "end of the dial", over)
}

func TestSilentGreeting(t *testing.T) {
	far := make(chan net.Conn, 1)
	h := testHome(t, nil, Options{Dial: func(context.Context, *homeproto.Ask) (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		far <- b
		go func() { _, _ = io.Copy(io.Discard, b) }()
		return a, nil
	}})
	a := start(t, h, command())
	defer within(t, "dial", far).Close()
	a.conn.Close()
	within(t, "end of the agent", a.served)
}

func TestVersion(t *testing.T) {
	s := newServer(t, nil)
	s.versions = [2]int{7, 9}
	start(t, testHome(t, s, Options{}), command()).refused(rer.ReasonVersion)
}

func TestSignalsBeforeTheLink(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r) })
	connect := make(chan struct{})
	h := testHome(t, s, Options{Dial: func(ctx context.Context, ask *homeproto.Ask) (io.ReadWriteCloser, error) {
		<-connect
		return s.dial(ctx, ask)
	}})
	a := start(t, h, command())
	want := []int{int(unix.SIGUSR1), int(unix.SIGUSR2), int(unix.SIGUSR1)}
	for i, n := range want {
		if err := a.conn.SendRelay(&homeproto.Relay{Signal: &rer.Signal{Signo: n, Value: uint64(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	close(connect)
	a.started()
	for i, n := range want {
		if got := within(t, "signal", s.signals); got.Signo != n || got.Value != uint64(i) || got.ID == [16]byte{} {
			t.Errorf("signal %d: %+v", i, got)
		}
	}
}

func TestKilledAgent(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r) })
	h := testHome(t, s, Options{})
	ask := command()
	describe(ask, 0, rer.KindPipe, unix.O_RDONLY)
	describe(ask, 1, rer.KindPipe, unix.O_WRONLY)
	r, in := pipe(t)
	out, w := pipe(t)
	defer out.Close()
	a := start(t, h, ask, r, w)
	a.started()
	a.conn.Close()
	within(t, "kill", s.kills)
	within(t, "end of the agent", a.served)
	if _, err := in.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("input still held: %v", err)
	}
	in.Close()
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
}

func TestDeadLink(t *testing.T) {
	for _, c := range []struct {
		name    string
		started bool
		phase   string
	}{{"before Started", false, "while the command was starting"}, {"after it", true, "while the command ran"}} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, func(l *link, r *rer.Request) {
				if c.started {
					l.started(r)
				}
				l.conn.Close()
			})
			h := testHome(t, s, Options{})
			ask := command()
			describe(ask, 1, rer.KindPipe, unix.O_WRONLY)
			out, w := pipe(t)
			defer out.Close()
			a := start(t, h, ask, w)
			if c.started {
				a.started()
			}
			if r := a.refused(rer.ReasonLost); !strings.Contains(r.Text, c.phase) {
				t.Errorf("text %q", r.Text)
			}
			if _, err := io.ReadAll(out); err != nil {
				t.Error(err)
			}
			// The next one gets a new link.
			s.mu.Lock()
			s.run = func(l *link, r *rer.Request) { l.started(r); l.ended(r, 0) }
			s.mu.Unlock()
			b := start(t, h, command())
			b.started()
			b.ended()
		})
	}
}

func TestRefusedThere(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) {
		l.send(&rer.Message{Refused: &rer.Refused{ID: r.ID, Reason: rer.ReasonNotFound, Text: "eagle: cat: not found"}})
	})
	h := testHome(t, s, Options{})
	start(t, h, command()).refused(rer.ReasonNotFound)
}

func TestSharedDescriptions(t *testing.T) {
	requests := make(chan *rer.Request, 10)
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r); requests <- r })
	h := testHome(t, s, Options{})
	path := file(t, "content")
	shared, other := open(t, path, unix.O_RDWR), open(t, path, unix.O_RDWR)
	defer shared.Close()
	if _, err := unix.Seek(number(shared), 3, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	dup := func(f *os.File) *os.File {
		fd, err := unix.Dup(number(f))
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "dup")
	}
	ask := func() *homeproto.Ask {
		a := command()
		describe(a, 3, rer.KindRegular, unix.O_RDWR)
		return a
	}
	start(t, h, ask(), dup(shared))
	one := within(t, "launch", requests)
	start(t, h, ask(), dup(shared))
	two := within(t, "launch", requests)
	start(t, h, ask(), other)
	three := within(t, "launch", requests)
	d1, d2, d3 := one.Descriptions[0], two.Descriptions[0], three.Descriptions[0]
	if d1.ID == 0 || d1.ID != d2.ID || d1.ID == d3.ID {
		t.Errorf("numbers %d %d %d", d1.ID, d2.ID, d3.ID)
	}
	if d1.Offset != 3 || d3.Offset != 0 || d1.Handle != d3.Handle || d1.File == d3.File || d1.Channel != 0 {
		t.Errorf("descriptions %+v %+v", d1, d3)
	}
	for _, l := range s.links {
		for _, r := range []*rer.Request{one, two, three} {
			l.send(&rer.Message{Ended: &rer.Ended{ID: r.ID, Positions: []rer.Position{{Desc: r.Descriptions[0].ID, Offset: 5}}}})
		}
	}
	eventually(t, "position", func() bool {
		pos, _ := unix.Seek(number(shared), 0, unix.SEEK_CUR)
		return pos == 5
	})
}

// TestPositionOfWriters: what others wrote here while a command ran is not
// written over, whatever position the command had.
func TestPositionOfWriters(t *testing.T) {
	for _, c := range []struct {
		flags       int
		local       string
		far, expect int64
	}{
		{unix.O_WRONLY, "local", 3, 5},
		{unix.O_WRONLY, "", 3, 3}, // it has sought
		{unix.O_RDWR, "local", 3, 5},
		{unix.O_RDWR, "", 3, 3}, // it has read
		{unix.O_RDONLY, "", 3, 3},
	} {
		path := file(t, "content")
		f := open(t, path, c.flags)
		s := newServer(t, func(l *link, r *rer.Request) {
			l.started(r)
			if _, err := unix.Write(number(f), []byte(c.local)); err != nil && c.local != "" {
				t.Error(err)
			}
			d := r.Descriptions[0]
			l.send(&rer.Message{Ended: &rer.Ended{ID: r.ID, Positions: []rer.Position{{Desc: d.ID, Offset: c.far}}}})
		})
		h := testHome(t, s, Options{})
		ask := command()
		describe(ask, 1, rer.KindRegular, uint32(c.flags))
		fd, err := unix.Dup(number(f))
		if err != nil {
			t.Fatal(err)
		}
		a := start(t, h, ask, os.NewFile(uintptr(fd), "dup"))
		a.started()
		a.ended()
		if pos, err := unix.Seek(number(f), 0, unix.SEEK_CUR); err != nil || pos != c.expect {
			t.Errorf("%+v: position %d, %v", c, pos, err)
		}
		f.Close()
	}
}

func TestPacing(t *testing.T) {
	for _, held := range []bool{false, true} {
		requests := make(chan *rer.Request, 1)
		s := newServer(t, func(l *link, r *rer.Request) { requests <- r; l.started(r); l.ended(r, 0) })
		h := testHome(t, s, Options{})
		ask := command()
		describe(ask, 0, rer.KindPipe, unix.O_RDONLY)
		r, w := pipe(t)
		defer w.Close()
		if held {
			other := exec.Command("sleep", "1000")
			other.Stdin = r
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
		}
		start(t, h, ask, r)
		if got := within(t, "launch", requests).Descriptions[0].Paced; got != held {
			t.Errorf("held elsewhere %v: paced %v", held, got)
		}
	}
}

// TestWhileRead is the loop of a shell: each command takes one line.
func TestWhileRead(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) {
		l.started(r)
		in := l.channel(r.Descriptions[0].Channel)
		var got []byte
		for bytes.IndexByte(got, '\n') < 0 {
			m, err := in.Recv()
			if err != nil || m[0] == 'e' {
				break
			}
			got = append(got, m[1:]...)
		}
		l.send(&rer.Message{Ended: &rer.Ended{ID: r.ID, Status: rer.Status{Code: int(append(got, 0)[0])},
			Consumed: []rer.Sent{{Channel: in.ID(), Bytes: uint64(bytes.IndexByte(got, '\n') + 1)}}}})
	})
	h := testHome(t, s, Options{})
	r, w := pipe(t)
	defer r.Close()
	other := exec.Command("sleep", "1000")
	other.Stdin = r
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	if _, err := w.Write([]byte("a\nbb\nccc\nrest")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, want := range "abc" {
		ask := command()
		describe(ask, 0, rer.KindPipe, unix.O_RDONLY)
		fd, err := unix.Dup(number(r))
		if err != nil {
			t.Fatal(err)
		}
		a := start(t, h, ask, os.NewFile(uintptr(fd), "stdin"))
		a.started()
		if e := a.ended(); e.Status.Code != int(want) {
			t.Errorf("took the line of %c, not %c", e.Status.Code, want)
		}
	}
	if b, err := io.ReadAll(r); string(b) != "rest" || err != nil {
		t.Errorf("left %q, %v", b, err)
	}
}

func TestStopAndResume(t *testing.T) {
	s := newServer(t, nil)
	s.run = func(l *link, r *rer.Request) {
		l.started(r)
		l.send(&rer.Message{Stopped: &rer.Stopped{ID: r.ID, Signo: int(unix.SIGTSTP)}})
		if sig := <-s.signals; sig.Signo != int(unix.SIGCONT) {
			t.Errorf("signal %+v", sig)
		}
		l.send(&rer.Message{Continued: &rer.Continued{ID: r.ID}})
		l.ended(r, 0)
	}
	h := testHome(t, s, Options{})
	a := start(t, h, command())
	a.started()
	if m := a.next(); m.Stopped == nil || m.Stopped.Signo != int(unix.SIGTSTP) {
		t.Fatalf("answer %+v", m)
	}
	l := list(t, h)
	if len(l.Jobs) != 1 || l.Jobs[0].State != "stopped" || l.Jobs[0].Command != "cat" || l.Jobs[0].Remote != 77 {
		t.Errorf("jobs %+v", l.Jobs)
	}
	if len(l.Links) != 1 || l.Links[0].Peer != "far" || l.Links[0].Jobs != 1 {
		t.Errorf("links %+v", l.Links)
	}
	if err := a.conn.SendRelay(&homeproto.Relay{Resumed: true}); err != nil {
		t.Fatal(err)
	}
	if m := a.next(); m.Continued == nil {
		t.Fatalf("answer %+v", m)
	}
	a.ended()
}

func list(t *testing.T, h *Home) *homeproto.Listing {
	t.Helper()
	a := start(t, h, &homeproto.Ask{List: true})
	m := a.next()
	if m.Listing == nil {
		t.Fatalf("answer %+v", m)
	}
	return m.Listing
}

func TestTerminal(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	leader := exec.Command("sleep", "1000")
	leader.Stdin, leader.SysProcAttr = tty, &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leader.Process.Kill(); _ = leader.Wait() }()
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	left := *before
	left.Lflag &^= unix.ECHO

	var channels []uint32
	s := newServer(t, func(l *link, r *rer.Request) {
		l.started(r)
		channels = append(channels, r.Terminal.Channel)
		if d := r.Descriptions[0]; d.Kind != rer.KindTerminal || d.Channel != r.Terminal.Channel {
			t.Errorf("description %+v", d)
		}
		ch := l.channel(r.Terminal.Channel)
		_ = ch.Send([]byte{'g', 1})
		_ = ch.Send([]byte("dname? "))
		for {
			m, err := ch.Recv()
			if err != nil || string(m) == "dx" {
				break
			}
		}
		l.send(&rer.Message{Ended: &rer.Ended{ID: r.ID, Termios: pump.EncodeTermios(&left),
			Sent: []rer.Sent{{Channel: ch.ID(), Bytes: 6}}}})
	})
	h := testHome(t, s, Options{})
	for range 2 {
		ask := command()
		ask.Tty = true
		ask.Request.Pid, ask.Request.Sid = int32(leader.Process.Pid), int32(leader.Process.Pid)
		describe(ask, 0, rer.KindTerminal, unix.O_RDWR)
		path := "/proc/self/fd/" + strconv.Itoa(number(tty))
		a := start(t, h, ask, open(t, path, unix.O_RDWR|unix.O_NOCTTY), open(t, path, unix.O_RDWR|unix.O_NOCTTY))
		a.started()
		b := make([]byte, 6)
		if _, err := io.ReadFull(master, b); string(b) != "name? " {
			t.Errorf("output %q, %v", b, err)
		}
		eventually(t, "raw input", func() bool {
			now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			return err == nil && now.Lflag&unix.ICANON == 0
		})
		if _, err := master.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		a.ended()
		if now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *now != left {
			t.Errorf("left %+v, %v", now, err)
		}
	}
	if len(channels) != 2 || channels[0] != channels[1] {
		t.Errorf("channels %v: the far terminal is not the same", channels)
	}
}

func TestIdle(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r); l.ended(r, 0) })
	h := testHome(t, s, Options{Idle: 200 * time.Millisecond})
	served := serve(t, h)
	a := start(t, h, command())
	a.started()
	a.ended()
	within(t, "end of Serve", served.over)
	within(t, "end of the link", s.links[0].conn.Done())
	if _, err := os.Stat(served.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket left: %v", err)
	}
}

func TestStop(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r); <-release; l.ended(r, 0) })
	h := testHome(t, s, Options{})
	served := serve(t, h)
	a := start(t, h, command())
	a.started()
	c, err := homeproto.Dial(served.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SendAsk(&homeproto.Ask{Stop: true}, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := c.RecvAnswer(); err != nil || m.Listing == nil || len(m.Listing.Jobs) != 1 {
		t.Errorf("answer %+v, %v", m, err)
	}
	eventually(t, "removed name", func() bool {
		_, err := os.Stat(served.path)
		return errors.Is(err, os.ErrNotExist)
	})
	close(release)
	a.ended()
	within(t, "end of Serve", served.over)
}

func TestTermination(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r) })
	h := testHome(t, s, Options{})
	served := serve(t, h)
	c, err := homeproto.Dial(served.path) // Serve runs, and has its signals
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SendAsk(&homeproto.Ask{List: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RecvAnswer(); err != nil {
		t.Fatal(err)
	}
	a := start(t, h, command())
	a.started()
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within(t, "end of Serve", served.over)
	within(t, "end of the agent", a.served)
}

type serving struct {
	path string
	over chan struct{}
}

func serve(t *testing.T, h *Home) serving {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := serving{filepath.Join(dir, "home"), make(chan struct{})}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.over)
		if err := h.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	return s
}

func TestCloseWithJobs(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) { l.started(r) })
	h := testHome(t, s, Options{})
	a := start(t, h, command())
	a.started()
	h.Close()
	within(t, "end of the agent", a.served)
}
