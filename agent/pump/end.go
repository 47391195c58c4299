package pump

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// end is a descriptor of our own for one direction of a description.
type end struct {
	fd     int
	poller *Poller
	socket bool
	own    bool // an open file description of our own, non-blocking

	mu     sync.Mutex // guards closed: nobody uses the number after close
	closed bool
}

// openEnd gives a descriptor for the direction mode (O_RDONLY, O_WRONLY or
// O_RDWR) of what fd refers to: reopened where that leads to the same object.
func openEnd(p *Poller, fd, mode int, socket bool) (*end, error) {
	if !socket && reopens(fd) {
		name := fmt.Sprintf("/proc/self/fd/%d", fd)
		n, err := unix.Open(name, mode|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			return &end{fd: n, poller: p, own: true}, nil
		}
		// EACCES: made by another user. ENXIO: a pipe that nobody reads.
	}
	return dupEnd(p, fd, socket)
}

// reopens says whether /proc/self/fd/N opens the same pipe or terminal: the
// nodes of ptmx and of /dev/tty would lead elsewhere.
func reopens(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return true
	case unix.S_IFCHR:
		dev, err := terminalDev(fd)
		return err == nil && dev == st.Rdev
	}
	return false
}

// terminalDev is the number of the terminal that fd is, through /dev/tty too.
func terminalDev(fd int) (uint64, error) {
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return 0, err
	}
	dev, err := unix.IoctlGetUint32(fd, unix.TIOCGDEV)
	return uint64(dev), err
}

func dupEnd(p *Poller, fd int, socket bool) (*end, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("dup: %w", os.NewSyscallError("fcntl", err))
	}
	return &end{fd: n, poller: p, socket: socket}, nil
}

func (e *end) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		unix.Close(e.fd)
	}
}

// shutdown says to a socket's peer that nothing more is written.
func (e *end) shutdown() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		_ = unix.Shutdown(e.fd, unix.SHUT_WR)
	}
}

// blocking says that a call may block in spite of a poll just before it.
func (e *end) blocking() bool { return !e.own && !e.socket }

// tryRead reads without waiting: EAGAIN where there is nothing.
func (e *end) tryRead(b []byte) (n int, err error) {
	if e.blocking() && !e.ready(unix.POLLIN) {
		return 0, unix.EAGAIN
	}
	for {
		if e.socket {
			n, _, err = unix.Recvfrom(e.fd, b, unix.MSG_DONTWAIT)
		} else {
			n, err = unix.Read(e.fd, b)
		}
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// read waits for data: n 0 is the end of file, errStopped that cancel closed.
func (e *end) read(b []byte, cancel <-chan struct{}) (int, error) {
	for {
		select {
		case <-cancel:
			return 0, errStopped
		default:
		}
		n, err := e.tryRead(b)
		if err != unix.EAGAIN {
			return n, err
		}
		if _, err := e.poller.wait(e.fd, unix.EPOLLIN|unix.EPOLLRDHUP, cancel); err != nil {
			return 0, err
		}
	}
}

// tryWrite writes some of b without waiting.
func (e *end) tryWrite(b []byte) (n int, err error) {
	if e.blocking() {
		if !e.ready(unix.POLLOUT) {
			return 0, unix.EAGAIN
		}
		b = b[:min(len(b), 4096)] // PIPE_BUF: fits, as poll said
	}
	for {
		if e.socket {
			n, err = unix.SendmsgN(e.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		} else {
			n, err = unix.Write(e.fd, b)
		}
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// writeAll writes b, waiting where it must.
func (e *end) writeAll(b []byte, cancel <-chan struct{}) error {
	for first := true; len(b) > 0 || first && e.socket; first = false {
		n, err := e.tryWrite(b)
		b = b[n:]
		if err == nil {
			continue
		}
		if err != unix.EAGAIN {
			return err
		}
		if _, err := e.poller.wait(e.fd, unix.EPOLLOUT, cancel); err != nil {
			return err
		}
	}
	return nil
}

// ready asks poll(2) without waiting. A hang-up is ready: the call tells.
func (e *end) ready(events int16) bool { return e.events(events) != 0 }

func (e *end) events(events int16) int16 {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: events}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0
		}
		return fds[0].Revents
	}
}
