package homeproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a connection.
const (
	maxMessage = 64 << 20 // bytes of one encoded message
	fdsPerByte = 250      // SCM_MAX_FD is 253, unix(7)
	maxFiles   = 1 << 20  // descriptors with one Ask
	firstAlloc = 64 << 10 // what is allocated on the word of a header alone
)

// errPeer is for a peer that runs as somebody else.
var errPeer = errors.New("the socket's peer is another user")

// Conn is one connection between an agent and home. Any goroutine may send,
// one may receive at a time.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // one message after the other
}

// NewConn makes a Conn of a connected stream socket, which it then owns.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Dial connects to the home that listens at path and checks that it is the
// caller's own.
func Dial(path string) (*Conn, error) {
	u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to home: %w", err)
	}
	c := NewConn(u)
	if err := c.CheckPeer(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Pair gives two ends that are connected to each other: home and agent in one
// process.
func Pair() (*Conn, *Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	a, errA := fromFD(fds[0])
	b, errB := fromFD(fds[1])
	if err := errors.Join(errA, errB); err != nil {
		for _, c := range []*Conn{a, b} {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return a, b, nil
}

// fromFD takes fd over.
func fromFD(fd int) (*Conn, error) {
	f := os.NewFile(uintptr(fd), "home")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("home connection: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("home connection: not a unix socket")
	}
	return NewConn(u), nil
}

// Close ends the connection: to the peer, this side died.
func (c *Conn) Close() error { return c.c.Close() }

// SetDeadline bounds the sends and receives from now on.
func (c *Conn) SetDeadline(t time.Time) error { return c.c.SetDeadline(t) }

// Peer says who is at the other end (SO_PEERCRED: as it was at connect or
// listen time).
func (c *Conn) Peer() (*unix.Ucred, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer of home connection: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("peer of home connection: %w", err)
	}
	return cred, nil
}

// CheckPeer fails unless the peer has this process's effective user id.
func (c *Conn) CheckPeer() error {
	cred, err := c.Peer()
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: %d, not %d", errPeer, cred.Uid, os.Geteuid())
	}
	return nil
}

// SendAsk sends a and its descriptors, which stay the caller's. Their number
// must be the one that the package comment names.
func (c *Conn) SendAsk(a *Ask, files []*os.File) error {
	if len(files) != a.files() {
		return fmt.Errorf("ask with %d descriptors, not %d", len(files), a.files())
	}
	b, err := encode(a)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.c.Write(b); err != nil {
		return fmt.Errorf("send to home: %w", err)
	}
	for len(files) > 0 {
		n := min(len(files), fdsPerByte)
		if err := c.sendFiles(files[:n]); err != nil {
			return err
		}
		files = files[n:]
	}
	return nil
}

// sendFiles sends one byte with files on it.
func (c *Conn) sendFiles(files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fd, err := number(f)
		if err != nil {
			return err
		}
		fds[i] = fd
	}
	rights := unix.UnixRights(fds...)
	for wait := time.Millisecond; ; wait *= 2 {
		_, _, err := c.c.WriteMsgUnix([]byte{0}, rights, nil)
		if err == nil {
			return nil
		}
		// ETOOMANYREFS: RLIMIT_NOFILE descriptors of this user are in flight,
		// until home has taken them.
		if !errors.Is(err, unix.ETOOMANYREFS) || wait > 2*time.Second {
			return fmt.Errorf("send %d descriptors to home: %w", len(fds), err)
		}
		time.Sleep(wait)
	}
}

// number is f's descriptor. Unlike File.Fd it leaves O_NONBLOCK alone, which
// others share.
func number(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("descriptor %s: %w", f.Name(), err)
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, fmt.Errorf("descriptor %s: %w", f.Name(), err)
	}
	return n, nil
}

// RecvAsk takes the next Ask and the descriptors that belong to it, which are
// close-on-exec and the caller's. It has passed Request.Check.
func (c *Conn) RecvAsk() (*Ask, []*os.File, error) {
	b, err := c.recv()
	if err != nil {
		return nil, nil, err
	}
	a, err := decodeAsk(b)
	if err != nil {
		return nil, nil, err
	}
	files, err := c.recvFiles(a.files())
	if err != nil {
		return nil, nil, err
	}
	return a, files, nil
}

func (c *Conn) recvFiles(n int) ([]*os.File, error) {
	if n > maxFiles {
		return nil, fmt.Errorf("ask with %d descriptors: more than %d", n, maxFiles)
	}
	var files []*os.File
	for len(files) < n {
		more, err := c.recvRights()
		files = append(files, more...)
		if err == nil && (len(more) == 0 || len(files) > n) {
			err = fmt.Errorf("descriptors of an ask: %d came, not %d", len(files), n)
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
	}
	return files, nil
}

// recvRights takes one byte and the descriptors on it. A stream socket never
// gives the descriptors of two bytes by one call, unix(7).
func (c *Conn) recvRights() ([]*os.File, error) {
	var one [1]byte
	oob := make([]byte, unix.CmsgSpace(4*(fdsPerByte+3)))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(one[:], oob)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	files := rightsFiles(oob[:max(oobn, 0)])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = unix.EMFILE // the descriptors that did not fit are closed already
	}
	if err != nil {
		err = fmt.Errorf("receive descriptors: %w", err)
	}
	return files, err
}

func rightsFiles(oob []byte) []*os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", fd)))
		}
	}
	return files
}

// SendRelay sends r to home.
func (c *Conn) SendRelay(r *Relay) error { return c.send(r) }

// RecvRelay takes the next Relay; io.EOF when the agent is gone.
func (c *Conn) RecvRelay() (*Relay, error) {
	b, err := c.recv()
	if err != nil {
		return nil, err
	}
	return decodeRelay(b)
}

// SendAnswer sends a to the agent.
func (c *Conn) SendAnswer(a *Answer) error { return c.send(a) }

// RecvAnswer takes the next Answer; io.EOF when home is gone.
func (c *Conn) RecvAnswer() (*Answer, error) {
	b, err := c.recv()
	if err != nil {
		return nil, err
	}
	return decodeAnswer(b)
}

func (c *Conn) send(message any) error {
	b, err := encode(message)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.c.Write(b); err != nil {
		return fmt.Errorf("send on home connection: %w", err)
	}
	return nil
}

// recv takes the bytes of one message and not one more: descriptors may ride
// on the next.
func (c *Conn) recv() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.c, head[:]); err != nil {
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("receive on home connection: %w", err)
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: more than %d", n, maxMessage)
	}
	var buf bytes.Buffer
	buf.Grow(int(min(n, firstAlloc)) + bytes.MinRead)
	got, err := io.Copy(&buf, io.LimitReader(c.c, n))
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("receive on home connection: %w", err)
	}
	return buf.Bytes(), nil
}
