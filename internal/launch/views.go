package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/fsview/mounts"
)

// A view's builder has the session's socket as descriptor 3, on which it
// sends each mount's device and waits for a byte, and init's as descriptor 4,
// on which it sends the finished mount namespace.
const builderFD = 4

// plan is what a builder is told, by init, on its socket to init.
type plan struct {
	Spec   mounts.Spec
	Device string
}

// built is a builder's last word to init.
type built struct {
	Err     string
	Errno   int
	Skipped []string
}

// buildView starts a builder; m carries the spec and the builder's socket.
func (s *server) buildView(m *message) (answer, int, error) {
	p := plan{Device: s.cfg.FuseDevice}
	if err := m.decode(&p.Spec); err != nil || len(m.fds) != 1 {
		return answer{}, -1, errors.Join(err, unix.EINVAL)
	}
	pair, err := socketPair()
	if err != nil {
		return answer{}, -1, err
	}
	own, err := newConn(pair[0])
	if err != nil {
		return answer{}, -1, err
	}
	defer own.close()
	done, err := s.startBuilder(m.fds[0], pair[1])
	unix.Close(pair[1])
	m.closeFDs() // or the session would not see the builder's end
	if err != nil {
		return answer{}, -1, err
	}
	defer func() { <-done }()
	if err := own.send(kindView, 0, p, nil); err != nil {
		return answer{}, -1, fmt.Errorf("view builder: %w", err)
	}
	last, err := own.recv()
	if err != nil {
		return answer{}, -1, fmt.Errorf("view builder died: %w", err)
	}
	return s.keepView(last)
}

func (s *server) keepView(last *message) (answer, int, error) {
	var b built
	if err := last.decode(&b); err != nil {
		return answer{}, -1, err
	}
	if b.Err != "" || len(last.fds) != 1 {
		last.closeFDs()
		return answer{Err: b.Err, Errno: b.Errno}, -1, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastView++
	s.views[s.lastView] = last.fds[0]
	return answer{View: int(s.lastView), Skipped: b.Skipped}, -1, nil
}

func (s *server) startBuilder(session, init int) (chan struct{}, error) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(null)
	attr := &syscall.ProcAttr{
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(session), uintptr(init)},
		Env:   []string{"GOMAXPROCS=1"},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, AmbientCaps: s.allCaps()},
	}
	s.mu.Lock() // until the reaper can know it
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "init", "view"}, attr)
	if err != nil {
		return nil, fmt.Errorf("start view builder: %w", err)
	}
	done := make(chan struct{})
	s.builders[pid] = done
	return done, nil
}

func (s *server) allCaps() []uintptr {
	caps := make([]uintptr, s.lastCap+1)
	for i := range caps {
		caps[i] = uintptr(i)
	}
	return caps
}

// builderMain is the body of a view's builder.
func builderMain() int {
	session, err := newConn(socketFD)
	if err != nil {
		return 1
	}
	init, err := newConn(builderFD)
	if err != nil {
		return 1
	}
	unix.Umask(0)
	ns, skipped, err := build(session, init)
	last := built{Skipped: skipped}
	if err != nil {
		a := failed("view", err)
		_ = init.send(kindReply, 0, built{Err: a.Err, Errno: a.Errno}, nil)
		return 1
	}
	if err := init.send(kindReply, 0, last, []int{int(ns.Fd())}); err != nil {
		return 1
	}
	return 0
}

func build(session, init *conn) (*os.File, []string, error) {
	m, err := init.recv()
	if err != nil {
		return nil, nil, err
	}
	var p plan
	if err := m.decode(&p); err != nil {
		return nil, nil, err
	}
	b := mounts.Builder{Spec: p.Spec, Device: p.Device, Serve: func(i int, dev *os.File) error {
		if err := session.send(kindView, uint32(i), nil, []int{int(dev.Fd())}); err != nil {
			return err
		}
		_, err := session.recv()
		if err != nil {
			return fmt.Errorf("mount %s is not served: %w", strconv.Itoa(i), err)
		}
		return nil
	}}
	ns, err := b.Build()
	return ns, b.Skipped, err
}

// drop forgets a description or a view.
func (s *server) drop(m *message) (answer, int, error) {
	var id uint64
	if err := m.decode(&id); err != nil {
		return answer{}, -1, err
	}
	if m.kind == kindDropDesc {
		s.dropDesc(id)
		return answer{}, -1, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.views[View(id)]; ok {
		delete(s.views, View(id))
		unix.Close(fd)
	}
	return answer{}, -1, nil
}
