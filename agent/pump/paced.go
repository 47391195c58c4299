package pump

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// While bytes are sent but not yet read by the job, home's end always polls
// readable, so more data is looked for at these intervals. It delays nothing
// that the job waits for: when the job has read all, it says so.
const (
	pacedFirst = 200 * time.Microsecond
	pacedLast  = 50 * time.Millisecond
)

// copier shows the bytes at the front of a pipe or socket without consuming
// them: tee(2) or MSG_PEEK.
type copier struct {
	end    *end
	buf    []byte
	rd, wr int // private pipe for tee, -1 for sockets
}

func newCopier(e *end) (*copier, error) {
	c := &copier{end: e, rd: -1, wr: -1}
	if e.socket {
		c.buf = make([]byte, 256<<10)
		return c, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	c.rd, c.wr = fds[0], fds[1]
	size, err := unix.FcntlInt(uintptr(e.fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("F_GETPIPE_SZ: %w", err)
	}
	// Beyond the user's share of pipe memory the copy is only shorter.
	_, _ = unix.FcntlInt(uintptr(c.wr), unix.F_SETPIPE_SZ, size)
	c.buf = make([]byte, size)
	return c, nil
}

func (c *copier) close() {
	if c.rd >= 0 {
		unix.Close(c.rd)
		unix.Close(c.wr)
	}
}

// front gives what lies there now from its first byte on. EAGAIN: nothing;
// nothing without an error: the end of file.
func (c *copier) front() ([]byte, error) {
	if c.rd < 0 {
		n, _, err := unix.Recvfrom(c.end.fd, c.buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return c.buf[:max(n, 0)], err
	}
	n, err := unix.Tee(c.end.fd, c.wr, len(c.buf), unix.SPLICE_F_NONBLOCK)
	if err != nil || n == 0 {
		return nil, err
	}
	got := 0
	for got < int(n) {
		m, err := unix.Read(c.rd, c.buf[got:n])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read of tee's copy: %w", err)
		}
		got += m
	}
	return c.buf[:got], nil
}

// atEnd says whether the last writer has gone.
func (c *copier) atEnd() bool {
	got := c.end.events(unix.POLLIN | unix.POLLRDHUP)
	return got&(unix.POLLHUP|unix.POLLRDHUP) != 0
}

// pacedInput sends copies of what lies in the pipe or socket, and takes out
// only what the job has read.
func (p *Pump) pacedInput() {
	c, err := newCopier(p.rd)
	if err != nil {
		p.sendEnd()
		return
	}
	defer c.close()
	ended, delay := false, pacedFirst
	for {
		p.consume()
		if !ended {
			progress, eof := p.sendFront(c, p.sent-p.consumed)
			if eof {
				p.sendEnd()
			}
			ended = eof
			if progress {
				delay = pacedFirst
				continue
			}
		}
		if !p.waitPaced(ended, p.sent > p.consumed, &delay) {
			p.consume()
			return
		}
	}
}

// sendFront sends what lies behind the first skip bytes, which the session
// has already.
func (p *Pump) sendFront(c *copier, skip uint64) (progress, eof bool) {
	// Asked first: a writer may write and go between the two calls.
	last := c.atEnd()
	front, err := c.front()
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, false
	case err != nil:
		return false, true
	case uint64(len(front)) <= skip:
		return false, last || len(front) == 0
	}
	for fresh := front[skip:]; len(fresh) > 0; {
		n := min(len(fresh), MaxData)
		p.mu.Lock()
		p.sent += uint64(n)
		p.mu.Unlock()
		p.opt.Settle()
		if p.opt.Channel.Send(append([]byte{'d'}, fresh[:n]...)) != nil {
			return false, false
		}
		fresh = fresh[n:]
	}
	return true, false
}

// waitPaced waits until there may be something to do; false: stopped.
func (p *Pump) waitPaced(ended, outstanding bool, delay *time.Duration) bool {
	if !ended && !outstanding {
		_, err := p.rd.poller.wait(p.rd.fd, unix.EPOLLIN|unix.EPOLLRDHUP, p.stopIn)
		return err == nil
	}
	var tick <-chan time.Time
	if !ended {
		timer := time.NewTimer(*delay)
		defer timer.Stop()
		tick = timer.C
		*delay = min(*delay*2, pacedLast)
	}
	select {
	case <-p.stopIn:
		return false
	case <-p.acked:
	case <-tick:
	}
	return true
}

// consume takes out what the job has read, never more than it was sent.
func (p *Pump) consume() {
	p.mu.Lock()
	want := min(p.ack, p.sent)
	p.mu.Unlock()
	// Only this goroutine changes consumed.
	got := p.consumed
	var buf [32 << 10]byte
	for got < want {
		n, err := p.rd.tryRead(buf[:min(want-got, uint64(len(buf)))])
		if err != nil || n == 0 {
			got = want // someone else took it
			break
		}
		got += uint64(n)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if got != p.consumed {
		p.consumed = got
		p.moved()
	}
}
