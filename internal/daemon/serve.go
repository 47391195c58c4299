package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rexec/internal/daemon/config"
	"rexec/internal/daemon/denied"
	"rexec/internal/daemon/record"
	"rexec/internal/daemon/session"
	"rexec/rer"
)

// Server is rexecd serve.
type Server struct {
	set Setting

	mu  sync.Mutex
	cfg config.Config
	all map[*exec.Cmd]bool // sessions

	sessions sync.WaitGroup
}

// NewServer makes a server of a configuration that was read.
func NewServer(set Setting, cfg config.Config) *Server {
	return &Server{set: set, cfg: cfg, all: make(map[*exec.Cmd]bool)}
}

// Reload reads the configuration again. A broken one is logged, and the old
// one holds. Sessions that run keep theirs, but for the disallowed paths.
func (s *Server) Reload() {
	cfg, err := config.Read(s.set.ConfigFile)
	if err == nil {
		_, err = denied.Read(cfg.Disallowed)
	}
	if err != nil {
		s.set.Logf("%v; the configuration before it holds", err)
		return
	}
	s.mu.Lock()
	s.cfg = cfg
	s.mu.Unlock()
	s.set.Logf("configuration read")
}

func (s *Server) config() config.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

// Listen opens the address "unix:/path", in the place of a socket that nobody
// listens on any more.
func Listen(address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return nil, fmt.Errorf("listen on %q: not unix:/PATH", address)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(path) {
		os.Remove(path)
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// Who may do what is decided by who connects.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// abandoned says whether path is a socket that nobody listens on.
func abandoned(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Serve takes connections until ctx ends, then ends the sessions: first by
// SIGTERM, after the grace time by SIGKILL. It returns when none is left.
func (s *Server) Serve(ctx context.Context, listeners []net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("nothing to listen on")
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- s.accept(ctx, l) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, l := range listeners {
		l.Close()
	}
	s.end()
	return err
}

// accept starts a session for each connection.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	pause := 5 * time.Millisecond
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 5 * time.Millisecond
			go s.connected(c)
			continue
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED):
			return fmt.Errorf("accept: %w", err)
		}
		s.set.Logf("accept: %v", err)
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
}

// account is who a session is for.
type account struct {
	uid, gid int
	groups   []uint32
	name     string
	home     string
}

// connected makes a session of a connection, or says why not.
func (s *Server) connected(c net.Conn) {
	defer c.Close()
	who, err := peer(c)
	if err != nil {
		s.set.Logf("connection: %v", err)
		return
	}
	if no := s.admit(who); no != nil {
		s.set.Logf("refused: user=%q: %s", who.name, no.Text)
		_ = session.Refuse(c, session.Config{Build: s.set.Build}, no)
		return
	}
	if err := s.start(c, who); err != nil {
		s.set.Logf("session for %s: %v", who.name, err)
		_ = session.Refuse(c, session.Config{Build: s.set.Build},
			&rer.Refused{Reason: rer.ReasonInternal, Text: "the server could not start a session: " + err.Error()})
	}
}

func (s *Server) admit(who account) *rer.Refused {
	if own := os.Geteuid(); own != 0 && who.uid != own {
		return &rer.Refused{Reason: rer.ReasonNotAllowed, Text: "the server's rexecd serves its own user only"}
	}
	cfg := s.config()
	return cfg.AdmitUser(who.name)
}

// peer is the account at the other end of a unix socket.
func peer(c net.Conn) (account, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return account{}, fmt.Errorf("%T has no peer credentials", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return account{}, err
	}
	var cred *unix.Ucred
	outer := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(outer, err); err != nil {
		return account{}, fmt.Errorf("peer credentials: %w", err)
	}
	return lookup(int(cred.Uid), int(cred.Gid)), nil
}

// lookup completes an account from the user database. A user who is not in it
// has a number for a name, and the group that the socket told.
func lookup(uid, gid int) account {
	a := account{uid: uid, gid: gid, name: strconv.Itoa(uid), home: "/"}
	u, err := user.LookupId(a.name)
	if err != nil {
		return a
	}
	a.name, a.home = u.Username, u.HomeDir
	if g, err := strconv.Atoi(u.Gid); err == nil {
		a.gid = g
	}
	groups, err := u.GroupIds()
	if err != nil {
		return a
	}
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(n))
		}
	}
	return a
}

// start runs rexecd session with the connection, as the account.
func (s *Server) start(c net.Conn, who account) error {
	file, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command(s.set.Program, "session", "--config", s.set.ConfigFile)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + who.home, "USER=" + who.name, "LOGNAME=" + who.name}
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		dir, err := userDir(who.uid, who.gid)
		if err != nil {
			return err
		}
		cmd.Args = append(cmd.Args, "--records", string(dir))
		if who.uid != 0 {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: who.groups}
		}
	} else {
		cmd.Args = append(cmd.Args, "--records", string(record.Own()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		return errors.New("rexecd is ending")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.all[cmd] = true
	s.sessions.Add(1)
	s.set.Logf("session %d: user=%q", cmd.Process.Pid, who.name)
	go s.wait(cmd)
	return nil
}

func (s *Server) wait(cmd *exec.Cmd) {
	defer s.sessions.Done()
	err := cmd.Wait()
	s.mu.Lock()
	delete(s.all, cmd)
	s.mu.Unlock()
	if err != nil {
		s.set.Logf("session %d: %v", cmd.Process.Pid, err)
	}
}

// end ends all sessions.
func (s *Server) end() {
	s.mu.Lock()
	all := s.all
	s.all = nil
	for cmd := range all {
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	grace := s.cfg.GraceTime()
	s.mu.Unlock()
	hard := time.AfterFunc(grace, func() {
		for cmd := range all {
			_ = cmd.Process.Kill()
		}
	})
	defer hard.Stop()
	s.sessions.Wait()
}

// connection makes a stream of a socket's descriptor.
func connection(fd int) (io.ReadWriteCloser, error) {
	f := os.NewFile(uintptr(fd), "connection")
	if f == nil {
		return nil, syscall.EBADF
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connection on descriptor %d: %w", fd, err)
	}
	return c, nil
}
