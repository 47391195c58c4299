package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that init has ended, and the session's processes with it.
var ErrGone = errors.New("init has ended")

// endWait is how long Close waits for init to end by itself.
const endWait = 2 * time.Second

// Init is a running init, as the session has it.
type Init struct {
	cfg    Config
	conn   *conn
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process was reaped
	gone   chan struct{} // closed when the socket has ended
	events chan Event
	queue  queue
	closed chan struct{} // closed by Close
	once   sync.Once

	mu    sync.Mutex
	last  uint32
	calls map[uint32]chan *message // nil when gone
}

// Start starts a session's init. It dies with this process.
func Start(cfg Config) (*Init, error) {
	if cfg.Verbose == nil {
		cfg.Verbose = func(string, ...any) {}
	}
	pair, err := socketPair()
	if err != nil {
		return nil, err
	}
	c, err := newConn(pair[0])
	if err != nil {
		return nil, err
	}
	peer := os.NewFile(uintptr(pair[1]), "init")
	if err := c.passCredentials(); err != nil {
		c.close()
		peer.Close()
		return nil, err
	}
	i := &Init{cfg: cfg, conn: c, exited: make(chan struct{}), gone: make(chan struct{}),
		events: make(chan Event), closed: make(chan struct{}), calls: make(map[uint32]chan *message)}
	err = i.spawn(peer)
	peer.Close() // or init's end would not be seen below
	if err != nil {
		c.close()
		return nil, fmt.Errorf("start init: %w", err)
	}
	i.queue.init()
	go i.read()
	go i.deliver()
	_, err = i.call(kindReply, setup{cfg.UID, cfg.GID, cfg.Hostname, cfg.Privileged, cfg.FuseDevice}, nil)
	if err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// spawn starts the process from a thread that lives as long as it does: the
// parent-death signal comes when that thread ends.
func (i *Init) spawn(peer *os.File) error {
	i.cmd = exec.Command(i.cfg.Program, "init")
	i.cmd.Env = []string{"PATH=/usr/bin:/bin"}
	i.cmd.ExtraFiles = []*os.File{peer}
	i.cmd.Dir = "/"
	i.cmd.SysProcAttr = i.attr()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := i.cmd.Start()
		started <- err
		if err == nil {
			_ = i.cmd.Wait()
		}
		close(i.exited)
	}()
	return <-started
}

func (i *Init) attr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:   unix.SIGKILL,
		AmbientCaps: capabilities(),
	}
	if !i.cfg.Privileged {
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(i.cfg.UID), HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(i.cfg.GID), HostID: os.Getgid(), Size: 1}}
		return a
	}
	a.UidMappings, a.GidMappings = ownMap("/proc/self/uid_map"), ownMap("/proc/self/gid_map")
	a.GidMappingsEnableSetgroups = true
	a.Credential = &syscall.Credential{Uid: i.cfg.UID, Gid: i.cfg.GID, Groups: i.cfg.Groups}
	return a
}

// ownMap maps every id that this process has to itself.
func ownMap(file string) []syscall.SysProcIDMap {
	if m, err := identity(file); err == nil && len(m) > 0 {
		return m
	}
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
}

// capabilities lists all that the kernel knows: init keeps them over execve.
func capabilities() []uintptr {
	last := 40
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			last = n
		}
	}
	var caps []uintptr
	for c := 0; c <= last; c++ {
		caps = append(caps, uintptr(c))
	}
	return caps
}

// read hands replies to their callers and events to the queue.
func (i *Init) read() {
	defer func() {
		i.mu.Lock()
		i.calls = nil
		i.mu.Unlock()
		close(i.gone)
		i.queue.end()
	}()
	for {
		m, err := i.conn.recv()
		if err != nil {
			return
		}
		if m.kind == kindEvent {
			var e Event
			if m.decode(&e) == nil {
				i.queue.put(e)
			}
			continue
		}
		i.mu.Lock()
		c := i.calls[m.call]
		delete(i.calls, m.call)
		i.mu.Unlock()
		if c == nil {
			m.closeFDs()
			continue
		}
		c <- m
	}
}

// Error is a failure that init reported.
type Error struct {
	Text  string
	Errno unix.Errno // 0 if none
}

func (e *Error) Error() string { return e.Text }

// Unwrap gives the errno.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// call asks init and waits for the reply. A descriptor that comes with it is
// the caller's.
func (i *Init) call(kind byte, body any, fds []int) (*reply, error) {
	c := make(chan *message, 1)
	i.mu.Lock()
	if i.calls == nil {
		i.mu.Unlock()
		return nil, ErrGone
	}
	i.last++
	id := i.last
	i.calls[id] = c
	i.mu.Unlock()
	if err := i.conn.send(kind, id, body, fds); err != nil {
		i.mu.Lock()
		delete(i.calls, id)
		i.mu.Unlock()
		if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("ask init: %w", err)
	}
	select {
	case m := <-c:
		return newReply(m)
	case <-i.gone:
		select {
		case m := <-c:
			return newReply(m)
		default:
			return nil, ErrGone
		}
	}
}

type reply struct {
	answer
	fds []int
	pid int // of whom it tells
}

func newReply(m *message) (*reply, error) {
	r := &reply{fds: m.fds, pid: m.pid}
	err := m.decode(&r.answer)
	if err == nil && r.Err != "" {
		err = &Error{r.Err, unix.Errno(r.Errno)}
	}
	if err != nil {
		m.closeFDs()
		return nil, err
	}
	return r, nil
}

// BuildView has a view built. Each FUSE mount's device goes to serve, before
// the next mount's place is looked up.
func (i *Init) BuildView(spec ViewSpec, serve Service) (View, error) {
	pair, err := socketPair()
	if err != nil {
		return 0, err
	}
	c, err := newConn(pair[0])
	if err != nil {
		return 0, err
	}
	served := make(chan error, 1)
	go func() { served <- serveBuilder(c, serve) }()
	r, err := i.call(kindView, spec, []int{pair[1]})
	unix.Close(pair[1])
	c.close()
	serveErr := <-served
	if serveErr != nil {
		return 0, fmt.Errorf("build view: %w", serveErr)
	}
	if err != nil {
		return 0, fmt.Errorf("build view: %w", err)
	}
	for _, p := range r.Skipped {
		i.cfg.Verbose("%s is missing on the server or in the view: left out", p)
	}
	return View(r.View), nil
}

func serveBuilder(c *conn, serve Service) error {
	for {
		m, err := c.recv()
		if err != nil {
			return nil // the builder's end; init tells how it went
		}
		if len(m.fds) != 1 {
			m.closeFDs()
			c.close()
			return io.ErrUnexpectedEOF
		}
		if err := serve(int(m.call), os.NewFile(uintptr(m.fds[0]), "/dev/fuse")); err != nil {
			c.close()
			return err
		}
		if err := c.send(kindReply, m.call, nil, nil); err != nil {
			return nil
		}
	}
}

// DropView forgets a view; jobs in it keep it.
func (i *Init) DropView(v View) {
	_, _ = i.call(kindDropView, uint64(v), nil)
}

// Launch runs a job and returns when execve has succeeded or failed. The
// files stay the caller's.
func (i *Init) Launch(job *Job, files []*os.File) (Launched, *Failure, error) {
	fds := make([]int, len(files))
	for k, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return Launched{}, nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds[k] = int(fd) }); err != nil {
			return Launched{}, nil, err
		}
	}
	r, err := i.call(kindLaunch, job, fds)
	runtime.KeepAlive(files)
	if err != nil {
		return Launched{}, nil, err
	}
	if r.pid != i.Process() {
		r.Launched.Outer = r.pid
	}
	return r.Launched, r.Failure, nil
}

// Terminal makes a terminal of the session and gives its master. Made before
// the first Launch with that session id, it is the controlling terminal of
// all of its jobs. termios is the kernel's struct, 36 bytes, or nil.
func (i *Init) Terminal(key TerminalKey, termios []byte, rows, cols uint16) (*os.File, error) {
	r, err := i.call(kindTerminal, terminalRequest{key, termios, rows, cols}, nil)
	if err != nil {
		return nil, err
	}
	if len(r.fds) != 1 {
		return nil, io.ErrUnexpectedEOF
	}
	if err := unix.SetNonblock(r.fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(r.fds[0]), "/dev/ptmx"), nil
}

// Foreground makes a process group the terminal's foreground group.
func (i *Init) Foreground(key TerminalKey, pgrp int32) error {
	_, err := i.call(kindForeground, foregroundRequest{key, pgrp}, nil)
	return err
}

// Signal sends a signal to a job, or to its process group. A code below 0
// (SI_QUEUE) is delivered with pid, uid and value as given.
func (i *Init) Signal(id [16]byte, signo int, code int, pid int32, uid uint32, value uint64, group bool) error {
	_, err := i.call(kindSignal, signalRequest{id, signo, code, pid, uid, value, group}, nil)
	return err
}

// Kill, also before Launch has returned, hangs a job up and then kills all that is left of it and its
// descendants, detached ones too. It does not wait: events tell the end.
func (i *Init) Kill(id [16]byte) error {
	_, err := i.call(kindKill, id, nil)
	return err
}

// DropDesc has the next job with that description id get a new one.
func (i *Init) DropDesc(id uint64) {
	_, _ = i.call(kindDropDesc, id, nil)
}

// Events gives what becomes of jobs; it is closed when init has ended.
func (i *Init) Events() <-chan Event { return i.events }

// Close ends init, and the session's processes and mounts with it. Requests
// that were read from a view's device must be answered meanwhile.
func (i *Init) Close() error {
	i.once.Do(func() { close(i.closed) })
	i.conn.close()
	select {
	case <-i.exited:
		return nil
	case <-time.After(endWait):
	}
	if err := i.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end init: %w", err)
	}
	select {
	case <-i.exited:
		return nil
	case <-time.After(endWait):
		return errors.New("init does not end: a process waits for a view's answer")
	}
}

// Process gives init's number as the session sees it.
func (i *Init) Process() int { return i.cmd.Process.Pid }

// queue holds events until somebody takes them: reading replies must not
// wait for that.
type queue struct {
	mu     sync.Mutex
	more   *sync.Cond
	list   []Event
	closed bool
}

func (q *queue) init() { q.more = sync.NewCond(&q.mu) }

func (q *queue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, e)
	q.more.Signal()
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Signal()
}

// take waits for events; none means the end.
func (q *queue) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.list) == 0 && !q.closed {
		q.more.Wait()
	}
	list := q.list
	q.list = nil
	return list
}

func (i *Init) deliver() {
	defer close(i.events)
	for {
		list := i.queue.take()
		if list == nil {
			return
		}
		for _, e := range list {
			select {
			case i.events <- e:
			case <-i.closed:
				return
			}
		}
	}
}
