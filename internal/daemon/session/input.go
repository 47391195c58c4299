package session

import (
	"encoding/binary"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How often a paced input looks what jobs have read, while they have not read
// all.
const (
	paceFirst = 100 * time.Microsecond
	paceLast  = 5 * time.Millisecond
)

// input carries what home sends into a pipe, socket or pty that jobs read.
type input struct {
	ch     channel
	file   *os.File // our end, non-blocking
	socket bool
	tty    bool
	paced  bool

	mu      sync.Mutex // guards what follows
	written uint64     // bytes that jobs can read or have read
	told    uint64     // bytes that home knows to be read
	ended   bool       // home sends no more
	gone    bool       // nobody reads any more
	// meter reads FIONREAD where file cannot: the far end of a socket, or of
	// a pipe whose near end is closed. It must not outlive the jobs: it hides
	// that all readers are gone.
	meter *os.File
	grown chan struct{} // capacity 1: written changed
	done  chan struct{} // closed with gone or when the pump ends
	once  sync.Once
}

func newInput(ch channel, file *os.File, paced bool) *input {
	return &input{ch: ch, file: file, paced: paced, grown: make(chan struct{}, 1), done: make(chan struct{})}
}

// write gives one message's bytes to the jobs, waiting until there is room.
func (in *input) write(b []byte) {
	for len(b) > 0 {
		in.mu.Lock()
		closed := in.ended || in.gone
		in.mu.Unlock()
		if closed {
			return
		}
		piece := len(b)
		if in.paced {
			piece = min(piece, 4096) // lest the count is behind while a write waits
		}
		n, err := in.file.Write(b[:piece])
		in.mu.Lock()
		in.written += uint64(n)
		in.mu.Unlock()
		select {
		case in.grown <- struct{}{}:
		default:
		}
		if err != nil {
			in.lost()
			return
		}
		b = b[n:]
	}
}

// lost notes that the readers are gone and tells home, the last count first.
func (in *input) lost() {
	if in.paced {
		in.tell()
	}
	in.mu.Lock()
	tell := !in.gone && !in.ended
	in.gone = true
	in.mu.Unlock()
	in.stop()
	if tell && !in.tty {
		_ = in.ch.Send([]byte{'h'})
	}
}

func (in *input) stop() { in.once.Do(func() { close(in.done) }) }

// end passes home's end of data on.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended || in.tty {
		return
	}
	in.ended = true
	switch {
	case in.socket:
		_ = control(in.file, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) })
	default:
		if in.paced && in.meter == nil {
			in.meter, _ = reopen(in.file, unix.O_RDONLY|unix.O_NONBLOCK)
		}
		in.file.Close()
	}
}

// watch returns when the last reader of a pipe is gone, having told home, or
// when the pump ended.
func (in *input) watch() {
	conn, err := in.file.SyscallConn()
	if err != nil {
		return
	}
	gone := false
	// A pipe's writing end never becomes readable; EPOLLERR wakes its reader.
	err = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, _ = unix.Poll(p, 0)
		gone = p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		return gone
	})
	if err == nil && gone {
		in.lost()
	}
}

// pace tells home again and again how much the jobs have read, until the pump
// ends.
func (in *input) pace() {
	delay := paceFirst
	for {
		outstanding := in.tell()
		var tick <-chan time.Time
		if outstanding {
			tick = time.After(delay)
			delay = min(2*delay, paceLast)
		}
		select {
		case <-in.done:
			return
		case <-in.grown:
			delay = paceFirst
		case <-tick:
		}
	}
}

// tell sends the number of bytes read, if it has changed, and says whether
// some are still unread.
func (in *input) tell() (outstanding bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	unread, ok := in.unread()
	if !ok || unread > in.written {
		return false
	}
	if read := in.written - unread; read > in.told {
		in.told = read
		_ = in.ch.Send(binary.BigEndian.AppendUint64([]byte{'c'}, read))
	}
	return unread > 0
}

// unread is how many bytes lie unread; mu is held.
func (in *input) unread() (uint64, bool) {
	file := in.file
	if in.meter != nil {
		file = in.meter
	}
	n := 0
	err := control(file, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return uint64(max(n, 0)), err == nil
}

// consumed is how much home knows to be read, brought up to date.
func (in *input) consumed() uint64 {
	in.tell()
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.told
}

// settle is called when no job is left that could read: home gets the last
// count.
func (in *input) settle() {
	if in.paced {
		in.tell()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.meter != nil {
		in.meter.Close()
		in.meter = nil
	}
}

// finished says whether nothing will be written any more.
func (in *input) finished() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.gone || in.ended
}

// control runs f on a file's descriptor.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	outer := conn.Control(func(fd uintptr) { err = f(int(fd)) })
	if outer != nil {
		return outer
	}
	return err
}

// reopen opens a pipe's other or same end anew.
func reopen(file *os.File, flags int) (fresh *os.File, err error) {
	err = control(file, func(fd int) error {
		n, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "reopen", Path: "pipe", Err: err}
		}
		fresh = os.NewFile(uintptr(n), "pipe")
		return nil
	})
	return fresh, err
}
