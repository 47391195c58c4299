package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	exitGrace = 2 * time.Second // for a child to end by itself after its stream was closed
	termGrace = time.Second     // after SIGTERM
	tailSize  = 1024            // bytes of standard error kept for messages
)

// DialUnix connects to a daemon's unix socket.
func DialUnix(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// SSH says how to reach a server by the user's own ssh.
type SSH struct {
	Program string // and its first arguments, divided at blanks; "ssh"
	User    string
	Host    string
	Port    string
	Command string    // there; "rexecd stdio"
	Env     []string  // of ssh; nil: this process's
	Stderr  io.Writer // gets ssh's standard error; may be nil
}

// argv is the command to run here.
func (s SSH) argv() ([]string, error) {
	for _, word := range []string{s.User, s.Host, s.Port} {
		if strings.HasPrefix(word, "-") || strings.ContainsAny(word, " \t\n\x00") {
			return nil, fmt.Errorf("ssh: bad name %q: %w", word, syscall.EINVAL)
		}
	}
	if s.Host == "" {
		return nil, fmt.Errorf("ssh: no host: %w", syscall.EINVAL)
	}
	argv := strings.Fields(s.Program)
	if len(argv) == 0 {
		argv = []string{"ssh"}
	}
	argv = append(argv, "-T")
	if s.User != "" {
		argv = append(argv, "-l", s.User)
	}
	if s.Port != "" {
		argv = append(argv, "-p", s.Port)
	}
	command := s.Command
	if command == "" {
		command = "rexecd stdio"
	}
	return append(argv, "--", s.Host, command), nil
}

// DialSSH starts ssh, which then connects: that it cannot is known by the
// stream's end, whose error holds ssh's last lines. Configuration, keys and
// agent are the user's. ctx bounds the start only.
func DialSSH(ctx context.Context, s SSH) (io.ReadWriteCloser, error) {
	argv, err := s.argv()
	if err != nil {
		return nil, err
	}
	return start(ctx, argv, s.Env, s.Stderr)
}

// DialCommand starts a program and talks to its standard input and output.
// env nil means this process's. Close closes the stream, and kills the
// program where it does not end by itself within two seconds. ctx bounds the
// start only.
func DialCommand(ctx context.Context, argv, env []string) (io.ReadWriteCloser, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("dial: no command: %w", syscall.EINVAL)
	}
	return start(ctx, argv, env, nil)
}

// process is a stream to a child.
type process struct {
	*net.UnixConn
	name  string
	cmd   *exec.Cmd
	tail  *tail
	ended chan struct{} // closed when the child was reaped
	exit  error         // of Wait; valid after ended
	once  sync.Once
}

// start runs argv in a session of its own, so that signals of the caller's
// terminal do not reach it.
func start(ctx context.Context, argv, env []string, stderr io.Writer) (io.ReadWriteCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer theirs.Close()
	p := &process{UnixConn: conn, name: argv[0], tail: &tail{next: stderr}, ended: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = env
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, theirs, p.tail
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p.cmd.WaitDelay = time.Second // a background ssh master keeps standard error
	if err := p.cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		p.exit = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// socketpair gives this side's end and the child's.
func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// Read is that of the socket. At its end the error says how the child ended.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.UnixConn.Read(b)
	if n > 0 || err == nil || errors.Is(err, net.ErrClosed) {
		return n, err
	}
	select {
	case <-p.ended:
	case <-time.After(exitGrace):
		return n, err
	}
	return n, p.story(err)
}

// story joins the end of the stream with the child's.
func (p *process) story(err error) error {
	said := p.tail.last()
	switch {
	case p.exit == nil && said == "":
		return err
	case said == "":
		return fmt.Errorf("%s: %w", p.name, p.exit)
	case p.exit == nil:
		return fmt.Errorf("%s: %s: %w", p.name, said, err)
	}
	return fmt.Errorf("%s: %s: %w", p.name, said, p.exit)
}

// Close closes the stream, and ends and reaps the child.
func (p *process) Close() error {
	err := p.UnixConn.Close()
	p.once.Do(func() {
		if p.endsWithin(exitGrace) {
			return
		}
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
		if p.endsWithin(termGrace) {
			return
		}
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
	})
	return err
}

func (p *process) endsWithin(d time.Duration) bool {
	select {
	case <-p.ended:
		return true
	case <-time.After(d):
		return false
	}
}

// tail keeps the end of what is written and hands all of it on.
type tail struct {
	mu   sync.Mutex
	end  []byte
	next io.Writer
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, b...)
	if n := len(t.end); n > tailSize {
		t.end = append(t.end[:0], t.end[n-tailSize:]...)
	}
	if t.next != nil {
		t.next.Write(b) // its trouble is not the child's
	}
	return len(b), nil
}

// last gives the last three lines as one.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for _, line := range bytes.Split(t.end, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, strings.Trim(quote(string(line)), `"`))
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
