package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"
)

// A packet of the session's and init's socket: one byte of kind, the number
// of the call it belongs to (uint32, little endian), and a CBOR body.
// Descriptors that one packet cannot carry come ahead in packets of kind
// kindFiles, in the same order. A body that one packet cannot hold comes in a
// memfd, the first descriptor.
const (
	kindFiles      = 'f'
	kindReply      = 'r'
	kindEvent      = 'e'
	kindView       = 'v'
	kindDropView   = 'w'
	kindLaunch     = 'l'
	kindTerminal   = 't'
	kindForeground = 'g'
	kindSignal     = 's'
	kindKill       = 'k'
	kindDropDesc   = 'd'

	inMemory = 0x80 // bit of kind: the body is in a memfd

	maxInline = 48 << 10
	maxFDs    = 250 // SCM_MAX_FD is 253
)

var decoder = must(cbor.DecOptions{MaxArrayElements: 16 << 20, UTF8: cbor.UTF8DecodeInvalid}.DecMode())

func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// conn is one end of a SEQPACKET socket pair.
type conn struct {
	file *os.File
	raw  syscall.RawConn
	mu   sync.Mutex // held over all packets of one message
	buf  []byte     // of the only reader
	oob  []byte
}

func newConn(fd int) (*conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "socket")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4*maxFDs)+unix.CmsgSpace(unix.SizeofUcred))
	return &conn{file: file, raw: raw, buf: make([]byte, maxInline+16), oob: oob}, nil
}

// passCredentials has messages say which process they are of, translated into
// the receiver's own PID namespace: unix(7), SCM_CREDENTIALS.
func (c *conn) passCredentials() error {
	var err error
	outer := c.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(outer, err)
}

func socketPair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
}

// close also wakes a reader, which closing alone would not do for other
// holders of the socket.
func (c *conn) close() {
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	c.file.Close()
}

func (c *conn) packet(b []byte, fds []int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return c.sendPacket(b, oob)
}

func (c *conn) sendPacket(b, oob []byte) error {
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		for errors.Is(err, unix.EINTR) {
			err = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL)
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(werr, err)
}

// send sends one message; fds stay the caller's.
func (c *conn) send(kind byte, call uint32, body any, fds []int) error {
	b, err := cbor.Marshal(body)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint32([]byte{kind}, call)
	if len(b) > maxInline {
		mem, err := memfd(b)
		if err != nil {
			return err
		}
		defer unix.Close(mem)
		head[0] |= inMemory
		fds = append([]int{mem}, fds...)
	} else {
		head = append(head, b...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(fds) > maxFDs {
		if err := c.packet([]byte{kindFiles, 0, 0, 0, 0}, fds[:maxFDs]); err != nil {
			return fmt.Errorf("pass descriptors: %w", err)
		}
		fds = fds[maxFDs:]
	}
	return c.packet(head, fds)
}

// sendAbout sends a short message as one of another process, which must still
// be there: ESRCH. It takes CAP_SYS_ADMIN over the PID namespace.
func (c *conn) sendAbout(pid int32, kind byte, call uint32, body any) error {
	b, err := cbor.Marshal(body)
	if err != nil {
		return err
	}
	if len(b) > maxInline {
		return unix.EMSGSIZE
	}
	head := binary.LittleEndian.AppendUint32([]byte{kind}, call)
	cred := unix.Ucred{Pid: pid, Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sendPacket(append(head, b...), unix.UnixCredentials(&cred))
}

func memfd(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		off += n
	}
	return fd, nil
}

// message is a received message.
type message struct {
	kind byte
	call uint32
	body []byte
	fds  []int // the receiver's to close
	pid  int   // of the process that it is of, with passCredentials
}

func (m *message) decode(to any) error { return decoder.Unmarshal(m.body, to) }

func (m *message) closeFDs() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// recv gives the next message; only one goroutine may call it.
func (c *conn) recv() (*message, error) {
	m := new(message)
	for {
		n, fds, err := c.recvPacket(&m.pid)
		m.fds = append(m.fds, fds...)
		if err == nil && n < 5 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			m.closeFDs()
			return nil, err
		}
		m.kind, m.call = c.buf[0], binary.LittleEndian.Uint32(c.buf[1:])
		if m.kind == kindFiles {
			continue
		}
		m.body = append([]byte(nil), c.buf[5:n]...)
		if m.kind&inMemory != 0 {
			return m, m.readMemory()
		}
		return m, nil
	}
}

func (m *message) readMemory() error {
	m.kind &^= inMemory
	if len(m.fds) == 0 {
		return io.ErrUnexpectedEOF
	}
	f := os.NewFile(uintptr(m.fds[0]), "memfd")
	m.fds = m.fds[1:]
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m.body = make([]byte, fi.Size())
	_, err = f.ReadAt(m.body, 0)
	return err
}

func (c *conn) recvPacket(pid *int) (n int, fds []int, err error) {
	var oobn int
	rerr := c.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), c.buf, c.oob, unix.MSG_CMSG_CLOEXEC)
		for errors.Is(err, unix.EINTR) {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), c.buf, c.oob, unix.MSG_CMSG_CLOEXEC)
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	if err = errors.Join(rerr, err); err != nil {
		return 0, nil, err
	}
	cmsgs, err := unix.ParseSocketControlMessage(c.oob[:oobn])
	for i := range cmsgs {
		if got, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, got...)
		} else if cred, err := unix.ParseUnixCredentials(&cmsgs[i]); err == nil {
			*pid = int(cred.Pid)
		}
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, fds, err
}
