package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rexec/fsview/mounts"
)

const socketFD = 3 // of init and of view builders

// firstPid is where the session's own process numbers start, far from those
// of home, which most often end at 32768.
const firstPid = "4000000"

// setup is what the session tells init first.
type setup struct {
	UID, GID   uint32
	Hostname   string
	Privileged bool
	FuseDevice string
}

// answer is the body of a reply.
type answer struct {
	Err      string
	Errno    int
	View     int
	Launched Launched
	Failure  *Failure
	Skipped  []string
}

// server is init. Lock order: descMu is never held with mu.
type server struct {
	conn       *conn
	cfg        setup
	userNS     int // the inner user namespace
	lastCap    uintptr
	reportPipe int
	marks      chan mark
	scans      chan scan

	mu        sync.Mutex
	changed   *sync.Cond // a ghost ended
	views     map[View]int
	lastView  View
	ghosts    map[int32]*ghost
	leaders   map[int32]*ghost
	terminals map[TerminalKey]*terminal
	jobs      map[[16]byte]*job
	pids      map[int32]*job
	builders  map[int]chan struct{}

	descMu sync.Mutex
	descs  map[uint64]*desc
}

// Main is init's body, run by a program called with the argument "init". It
// returns the exit status.
func Main() int {
	if len(os.Args) > 2 {
		switch os.Args[2] {
		case "view":
			return builderMain()
		case "hold":
			select {}
		}
	}
	debug.SetGCPercent(200)
	s := new(server)
	if s.run() == io.EOF {
		return 0
	}
	return 1
}

// run ends when the session does, and with this process all others.
func (s *server) run() error {
	c, err := newConn(socketFD)
	if err != nil {
		return err
	}
	s.conn = c
	m, err := c.recv()
	if err != nil {
		return err
	}
	if err := m.decode(&s.cfg); err != nil {
		return err
	}
	if err := s.prepare(); err != nil {
		_ = c.send(kindReply, m.call, failed("init", err), nil)
		return err
	}
	if err := c.send(kindReply, m.call, answer{}, nil); err != nil {
		return err
	}
	for {
		m, err := c.recv()
		if err != nil {
			return err
		}
		s.handle(m)
	}
}

// failed is an answer that tells of an error.
func failed(what string, err error) answer {
	var errno unix.Errno
	errors.As(err, &errno)
	return answer{Err: fmt.Sprintf("%s: %v", what, err), Errno: int(errno)}
}

func (s *server) prepare() error {
	// A job has init's user id: any signal that it sends must find a handler.
	signal.Notify(make(chan os.Signal, 1))
	children := make(chan os.Signal, 1) // one that is not yet seen stands for all
	signal.Notify(children, unix.SIGCHLD)
	unix.Umask(0)
	s.views, s.ghosts, s.leaders = make(map[View]int), make(map[int32]*ghost), make(map[int32]*ghost)
	s.terminals, s.jobs, s.pids = make(map[TerminalKey]*terminal), make(map[[16]byte]*job), make(map[int32]*job)
	s.builders, s.descs = make(map[int]chan struct{}), make(map[uint64]*desc)
	s.changed = sync.NewCond(&s.mu)
	if s.cfg.FuseDevice == "" {
		s.cfg.FuseDevice = "/dev/fuse"
	}
	if s.cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(s.cfg.Hostname)); err != nil {
			return fmt.Errorf("hostname: %w", err)
		}
	}
	if err := mounts.Prepare(); err != nil {
		return err
	}
	numberFrom(firstPid)
	s.lastCap = 40
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			s.lastCap = uintptr(n)
		}
	}
	var err error
	if s.userNS, err = innerNamespace(s.cfg.Privileged); err != nil {
		return fmt.Errorf("inner user namespace: %w", err)
	}
	return s.serve(children)
}

// serve starts what runs beside the request loop.
func (s *server) serve(children chan os.Signal) error {
	// From the first job on the kernel would do this anyway.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	// Only the reading end may be non-blocking: ghosts write whole reports.
	if err := unix.SetNonblock(p[0], true); err != nil {
		return err
	}
	s.reportPipe = p[1]
	s.marks, s.scans = make(chan mark), make(chan scan, 64)
	go s.readReports(os.NewFile(uintptr(p[0]), "reports"))
	go s.reap(children)
	go s.makeMarks()
	go s.scanner()
	return nil
}

// numberFrom sets where process numbers start, best effort: kernels before
// 6.14 have one pid_max for the whole machine.
func numberFrom(n string) {
	const last = "/proc/sys/kernel/ns_last_pid"
	if os.WriteFile(last, []byte(n), 0) == nil {
		return
	}
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return
	}
	if most, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		_ = os.WriteFile(last, []byte(strconv.Itoa(most/2)), 0)
	}
}

// innerNamespace makes the user namespace that all jobs of the session enter:
// the same ids, but no rights over what belongs to the outer one. A
// short-lived child holds it until there is a descriptor.
func innerNamespace(privileged bool) (int, error) {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, GidMappingsEnableSetgroups: privileged}
	var err error
	if attr.UidMappings, err = identity("/proc/self/uid_map"); err != nil {
		return -1, err
	}
	if attr.GidMappings, err = identity("/proc/self/gid_map"); err != nil {
		return -1, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(null)
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null)}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "init", "hold"}, &syscall.ProcAttr{Files: files, Sys: attr, Env: []string{"GOMAXPROCS=1"}})
	if err != nil {
		return -1, err
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	_ = unix.Kill(pid, unix.SIGKILL)
	_, _ = unix.Wait4(pid, nil, 0, nil)
	return fd, err
}

// identity reads an id map of the process's own and gives the identity map
// over the same inside ids.
func identity(file string) ([]syscall.SysProcIDMap, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []syscall.SysProcIDMap
	for line := range strings.Lines(string(b)) {
		var inside, outside, n int
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: n})
	}
	return list, nil
}

// reap waits for init's own children and for orphans.
func (s *server) reap(children chan os.Signal) {
	for range children {
		for {
			var status unix.WaitStatus
			var usage unix.Rusage
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WUNTRACED|unix.WCONTINUED, &usage)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			s.changedState(int32(pid), status, (*syscall.Rusage)(unsafe.Pointer(&usage)))
		}
	}
}

// readReports reads what ghosts tell of their children.
func (s *server) readReports(pipe *os.File) {
	var r report
	buf := make([]byte, unsafe.Sizeof(r))
	for {
		if n, err := pipe.Read(buf); err != nil || n != len(buf) {
			return
		}
		pid := int32(binary.NativeEndian.Uint32(buf[4:]))
		status := unix.WaitStatus(binary.NativeEndian.Uint32(buf[8:]))
		usage := *(*syscall.Rusage)(unsafe.Pointer(&buf[unsafe.Offsetof(r.usage)]))
		s.changedState(pid, status, &usage)
	}
}

// changedState finds whose state changed: a job's, a ghost's, a builder's or
// that of an orphan, which nobody asks for.
func (s *server) changedState(pid int32, status unix.WaitStatus, usage *syscall.Rusage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dead := status.Exited() || status.Signaled()
	if j := s.pids[pid]; j != nil {
		s.jobChanged(j, status, usage)
	} else if g := s.ghosts[pid]; g != nil {
		if dead {
			s.ghostEnded(g)
		} else if status.Stopped() {
			_ = unix.Kill(int(pid), unix.SIGCONT)
		}
	} else if done := s.builders[int(pid)]; done != nil && dead {
		delete(s.builders, int(pid))
		close(done)
	}
}

// handle answers a request; only what may take long has a goroutine.
func (s *server) handle(m *message) {
	switch m.kind {
	case kindView:
		go s.answer(m, s.buildView)
	case kindLaunch:
		go s.launch(m)
	case kindTerminal:
		s.answer(m, s.makeTerminal)
	case kindForeground:
		s.answer(m, s.setForeground)
	case kindSignal:
		s.answer(m, s.signal)
	case kindKill:
		s.answer(m, s.kill)
	case kindDropDesc, kindDropView:
		s.answer(m, s.drop)
	default:
		m.closeFDs()
		_ = s.conn.send(kindReply, m.call, failed("init", unix.ENOSYS), nil)
	}
}

// answer replies with what f gives; the descriptor, if not negative, is sent
// and closed.
func (s *server) answer(m *message, f func(*message) (answer, int, error)) {
	defer m.closeFDs()
	a, fd, err := f(m)
	if err != nil {
		a = failed("init", err)
	}
	var fds []int
	if fd >= 0 {
		fds = []int{fd}
		defer unix.Close(fd)
	}
	_ = s.conn.send(kindReply, m.call, a, fds)
}

// lockedThread runs f on an operating system thread of its own, which ends
// with it: whatever f does to the thread is not undone.
func lockedThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}
