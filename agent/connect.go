package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/signals"
)

// connect gives a connection to home, which it starts if need be.
func (a *agent) connect() (*homeproto.Conn, error) {
	if a.opt.NoHome {
		return serveHere(a.opt.Serve)
	}
	// With Yama only a process that is named may trace this one; home's tracer
	// is a child that has no number yet. EINVAL without Yama.
	_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
	return Connect(a.opt.Home, a.opt.HomeStart)
}

// serveHere serves this agent from within.
func serveHere(serve func(*homeproto.Conn) error) (*homeproto.Conn, error) {
	if serve == nil {
		return nil, errors.New("this program cannot serve itself")
	}
	here, there, err := homeproto.Pair()
	if err != nil {
		return nil, err
	}
	go func() {
		_ = serve(there) // what goes wrong is said by an answer
		there.Close()
	}()
	return here, nil
}

// Connect gives a connection to the home whose socket is path (empty: the
// caller's). If none answers, start begins one; with an empty start it is an
// error that matches fs.ErrNotExist or ECONNREFUSED.
func Connect(path string, start []string) (*homeproto.Conn, error) {
	if path == "" {
		var err error
		if path, err = homeproto.SocketPath(); err != nil {
			return nil, err
		}
	}
	conn, err := homeproto.Dial(path)
	if err == nil || len(start) == 0 || !absent(err) {
		return conn, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// Somebody else may have started it meanwhile.
	if conn, err = homeproto.Dial(path); err == nil || !absent(err) {
		return conn, err
	}
	if err := launchHome(start, path, lock); err != nil {
		return nil, err
	}
	return homeproto.Dial(path)
}

// absent says that nobody listens.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start home: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("start home: lock %s: %w", name, err)
	}
	return f, nil
}

// launchHome runs the first of home's two processes, which listens, leaves the
// listener to the second and ends ([Listen]). It has the lock too: an agent that
// is killed meanwhile must not let the next one start another.
func launchHome(start []string, path string, lock *os.File) error {
	cmd := exec.Command(start[0], append(start[1:], path)...)
	cmd.Dir = "/"
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start home: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// listenerFD is the second process's listener.
const listenerFD = 3

// Listen is what the program named by Options.HomeStart does with path. In the
// first process it binds the socket, starts the second and returns nil; in
// the second it returns the listener, for a process that is detached: a
// session of its own, no descriptors, no signal blocked, umask 0, limits at
// their highest.
func Listen(path string, second []string) (net.Listener, error) {
	if path != "" {
		return nil, bindAndLeave(path, second)
	}
	if err := unblockAll(); err != nil {
		return nil, err
	}
	detach()
	f := os.NewFile(listenerFD, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("home's listener: %w", err)
	}
	return l, nil
}

func bindAndLeave(path string, second []string) error {
	// What the agent inherited must not stay open here.
	if err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unix.Umask(0o077)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return err
	}
	cmd := exec.Command(second[0], second[1:]...)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// unblockAll begins the program again if signals are blocked: the runtime
// gives all of its threads the mask it was started with.
func unblockAll() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask, err := signals.Mask()
	if err != nil || mask == 0 {
		return err
	}
	if err := signals.SetMask(0); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

func detach() {
	unix.Umask(0)
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0) // EACCES: stays nice
	for resource := range 16 {
		var lim unix.Rlimit
		if unix.Prlimit(0, resource, nil, &lim) == nil && resource != unix.RLIMIT_STACK && resource != unix.RLIMIT_CORE {
			lim.Cur = lim.Max
			_ = unix.Prlimit(0, resource, &lim, nil)
		}
	}
	// So that its name is not that of the link by which it was started.
	_ = os.WriteFile("/proc/self/task/"+strconv.Itoa(os.Getpid())+"/comm", []byte("rexec home"), 0)
}
