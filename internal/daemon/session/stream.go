package session

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// stream is one open file description whose bytes cross: a pipe or socketpair
// made here, with one end for jobs and one for the session. Later jobs that
// inherit the same description get the same pipe.
type stream struct {
	key    streamKey
	ch     channel
	near   *os.File
	out    *output // nil: jobs only read
	in     *input  // nil: jobs only write
	settle func()  // recalls are in force when it returns
	drop   func()  // takes the stream out of the session's table

	mu     sync.Mutex
	jobs   int
	closed bool
	once   sync.Once
}

// streamKey tells streams apart.
type streamKey struct {
	id      uint64 // rer.Description.ID
	channel uint32
}

// newStream makes the pipe or socketpair of d and gives the end for the job.
func newStream(d *rer.Description, ch channel, settle func()) (*stream, *os.File, error) {
	s := &stream{key: streamKey{d.ID, d.Channel}, ch: ch, settle: settle, drop: func() {}}
	near, far, err := makeEnds(d)
	if err != nil {
		return nil, nil, err
	}
	s.near = near
	mode := d.Flags & unix.O_ACCMODE
	socket := isSocket(d)
	if mode != unix.O_RDONLY || socket {
		s.out = newOutput(ch, near)
	}
	if mode != unix.O_WRONLY || socket {
		s.in = newInput(ch, near, d.Paced)
		s.in.socket = socket
	}
	if s.in != nil && socket && d.Paced {
		s.in.meter, err = dup(far)
	}
	if err != nil {
		near.Close()
		far.Close()
		return nil, nil, err
	}
	return s, far, nil
}

// isSocket says whether d needs a pair with two directions.
func isSocket(d *rer.Description) bool {
	return d.Kind == rer.KindSocket || d.Flags&unix.O_ACCMODE == unix.O_RDWR
}

// makeEnds makes a pair of descriptors: near is non-blocking, far has the
// status flags of home's.
func makeEnds(d *rer.Description) (near, far *os.File, err error) {
	var fds [2]int
	reads := d.Flags&unix.O_ACCMODE == unix.O_RDONLY
	if isSocket(d) {
		typ := int(d.SockTyp)
		if typ != unix.SOCK_DGRAM && typ != unix.SOCK_SEQPACKET {
			typ = unix.SOCK_STREAM
		}
		fds, err = unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	} else if err = unix.Pipe2(fds[:], unix.O_CLOEXEC); err == nil {
		if d.PipeLen > 0 {
			// Beyond the user's share of pipe memory it is only shorter.
			_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, int(d.PipeLen))
		}
		if reads {
			fds[0], fds[1] = fds[1], fds[0]
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if status := int(d.Flags) & (unix.O_NONBLOCK | unix.O_APPEND); status != 0 {
		_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETFL, status)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far"), nil
}

// start begins to carry bytes, when the job's end is in place.
func (s *stream) start() {
	if s.out != nil {
		go func() {
			s.out.run()
			_ = s.ch.Send([]byte{'e'})
			if s.in != nil {
				s.in.watch()
			}
			s.check()
		}()
	}
	if s.in != nil {
		if !s.in.socket {
			go func() { s.in.watch(); s.check() }()
		}
		if s.in.paced {
			go s.in.pace()
		}
	}
	go s.receive()
}

// far gives one more job an end of the same pipe: one at its end of data where
// no more will come. Sockets cannot be opened again.
func (s *stream) far() (*os.File, error) {
	switch {
	case s.in != nil && s.in.socket:
		return nil, fmt.Errorf("socket that another job has: %w", unix.EBUSY)
	case s.in == nil:
		return reopen(s.near, unix.O_WRONLY)
	case !s.in.finished():
		return reopen(s.near, unix.O_RDONLY)
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	unix.Close(fds[1])
	return os.NewFile(uintptr(fds[0]), "far"), nil
}

// receive handles what home sends until the channel ends.
func (s *stream) receive() {
	defer s.close()
	for {
		msg, err := s.ch.Recv()
		if err != nil {
			return
		}
		if len(msg) == 0 {
			continue
		}
		switch msg[0] {
		case 'd':
			if s.in != nil {
				s.settle()
				s.in.write(msg[1:])
			}
		case 'e':
			if s.in != nil {
				s.settle()
				s.in.end()
			}
		case 'h':
			s.hangUp()
		}
		s.check()
	}
}

// hangUp has writers get EPIPE: home's reader is gone.
func (s *stream) hangUp() {
	if s.out == nil {
		return
	}
	if s.in != nil {
		_ = control(s.near, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
		return
	}
	s.near.Close()
}

// check ends the stream when nothing more can cross and no job has it: a job
// that is being launched with it must find the channel open.
func (s *stream) check() {
	if s.out != nil && !s.out.finished() || s.in != nil && !s.in.finished() {
		return
	}
	s.mu.Lock()
	idle := s.jobs == 0
	s.closed = s.closed || idle
	s.mu.Unlock()
	if idle {
		s.close()
	}
}

// join counts a job that has the stream; false: it has ended.
func (s *stream) join() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.jobs++
	return true
}

// leave is called when a job that has the stream has ended.
func (s *stream) leave() {
	s.mu.Lock()
	s.jobs--
	last := s.jobs == 0
	s.mu.Unlock()
	if last && s.in != nil {
		s.in.settle()
	}
	s.check()
}

// close ends the stream and tells home by closing the channel.
func (s *stream) close() {
	s.once.Do(func() {
		s.drop()
		if s.out != nil {
			s.out.finish()
		}
		if s.in != nil {
			s.in.stop()
			s.in.settle()
		}
		s.near.Close()
		_ = s.ch.Close()
	})
}

func dup(file *os.File) (fresh *os.File, err error) {
	err = control(file, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("dup: %w", err)
		}
		fresh = os.NewFile(uintptr(n), file.Name())
		return nil
	})
	return fresh, err
}
