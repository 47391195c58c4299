package session

import (
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxData is the most data bytes in one message.
const maxData = 60 << 10

// channel is what a pump needs of a link's channel.
type channel interface {
	Send(msg []byte) error
	Recv() ([]byte, error)
	Close() error
}

// output carries what jobs write into a pipe, socket or pty to home.
//
// Lock order: mu is a leaf. It is held over each read(2), so that a byte is
// always either in the pipe or counted in read.
type output struct {
	ch   channel
	file *os.File // our end, non-blocking
	// before, where set, is called after each read and before its bytes are
	// sent.
	before func()

	mu         sync.Mutex
	moved      sync.Cond // sent or over changed
	read, sent uint64
	over       bool // nothing more will be sent
}

func newOutput(ch channel, file *os.File) *output {
	o := &output{ch: ch, file: file}
	o.moved.L = &o.mu
	return o
}

// run sends until the last writer is gone, home's reader is gone or the link
// ended.
func (o *output) run() {
	defer o.finish()
	conn, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1+maxData)
	buf[0] = 'd'
	for {
		n, err := o.take(conn, buf[1:])
		if err != nil {
			return
		}
		if o.before != nil {
			o.before()
		}
		if o.ch.Send(buf[:1+n]) != nil {
			return
		}
		o.mu.Lock()
		o.sent += uint64(n)
		o.moved.Broadcast()
		o.mu.Unlock()
	}
}

// take reads once, waiting for something to read. A pty whose last slave is
// closed gives EIO: the end too.
func (o *output) take(conn syscall.RawConn, buf []byte) (n int, err error) {
	outer := conn.Read(func(fd uintptr) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			return false
		}
		if n > 0 {
			o.read += uint64(n)
		}
		return true
	})
	switch {
	case outer != nil:
		return 0, outer
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// finish notes the end; the channel stays open.
func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.moved.Broadcast()
}

func (o *output) finished() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.over
}

// drain waits until all that lies in the pipe now has been sent, and gives the
// number of bytes sent so far.
func (o *output) drain() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	target := o.read + o.waiting()
	for o.sent < target && !o.over {
		o.moved.Wait()
	}
	return o.sent
}

// waiting is how many bytes lie unread in the pipe; mu is held.
func (o *output) waiting() (n uint64) {
	conn, err := o.file.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) {
		// poll(2) has a pty hand over what its other side wrote just now.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if v, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil && v > 0 {
			n = uint64(v)
		}
	})
	return n
}
