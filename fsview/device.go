package fsview

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// Sizes of the buffers that one request needs, in bytes.
const (
	inSize    = fsproto.MaxIO + 8192 // the kernel demands room for max_write and a header
	outSmall  = 8192                 // header, fixed part, a symbolic link's target
	outLarge  = fsproto.MaxIO + 8192
	headerLen = 40 // struct fuse_in_header
	replyLen  = 16 // struct fuse_out_header
)

// device reads requests of one mount from /dev/fuse and writes the replies.
//
// One goroutine reads at a time. Whoever has read a request sees to it that
// another one reads, and then answers: a handler may take as long as it likes.
type device struct {
	file  *os.File
	conn  syscall.RawConn
	proto *fuse.ProtocolServer
	tree  *tree

	ins, outs sync.Pool // of *[]byte
	readers   atomic.Int32
	loops     sync.WaitGroup
}

// newDevice takes dev over. The descriptor goes to the runtime's poller, so
// that a close ends a read.
func newDevice(dev *os.File, t *tree) (*device, error) {
	fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	dev.Close()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	d := &device{file: os.NewFile(uintptr(fd), "/dev/fuse"), tree: t}
	if d.conn, err = d.file.SyscallConn(); err != nil {
		d.file.Close()
		return nil, err
	}
	d.proto = fuse.NewProtocolServer(t, t.options())
	d.ins.New = func() any { b := make([]byte, inSize); return &b }
	d.outs.New = func() any { b := make([]byte, outLarge); return &b }
	return d, nil
}

// start reads requests until the mount goes or the device is closed. INIT is
// answered before a second goroutine reads.
func (d *device) start() {
	d.loops.Add(1)
	d.readers.Add(1)
	go func() {
		defer d.loops.Done()
		in, ok := d.read()
		d.readers.Add(-1)
		if !ok {
			return
		}
		d.answer(in)
		d.readers.Add(1)
		d.loops.Add(1)
		go d.loop()
	}()
}

// loop reads and answers while nobody else reads.
func (d *device) loop() {
	defer d.loops.Done()
	for {
		in, ok := d.read()
		if d.readers.Add(-1) == 0 && ok {
			d.readers.Add(1)
			d.loops.Add(1)
			go d.loop()
		}
		if !ok {
			return
		}
		d.answer(in)
		if d.readers.Add(1) > 2 {
			d.readers.Add(-1)
			return
		}
	}
}

// read returns a request in memory of its own: handlers may give parts of it
// away. False: the mount is gone, or the device closed.
func (d *device) read() ([]byte, bool) {
	buf := d.ins.Get().(*[]byte)
	defer d.ins.Put(buf)
	for {
		n, err := d.file.Read(*buf)
		switch {
		case err == nil && n >= headerLen:
			in := make([]byte, n)
			copy(in, *buf)
			return in, true
		case errors.Is(err, unix.ENOENT): // the request was aborted meanwhile
			continue
		case errors.Is(err, unix.EPERM): // mount(2) has not happened yet
			time.Sleep(time.Millisecond)
			continue
		}
		// A mount that goes while the poller waits shows as an error without
		// a number ("not pollable").
		if errno := syscall.Errno(0); errors.As(err, &errno) && errno != unix.ENODEV {
			d.tree.view.logf("fuse device of %s: %v", d.tree.mount.Path, err)
		}
		return nil, false
	}
}

// opcodes whose replies may be long.
const (
	opInterrupt = 36
	opForget    = 2
	opBatch     = 42
)

func longReply(opcode uint32) bool {
	switch opcode {
	case 15, 28, 44, 22, 23, 39: // READ, READDIR, READDIRPLUS, GETXATTR, LISTXATTR, IOCTL
		return true
	}
	return false
}

func (d *device) answer(in []byte) {
	opcode := binary.NativeEndian.Uint32(in[4:])
	unique := binary.NativeEndian.Uint64(in[8:])
	tracked := opcode != opInterrupt && opcode != opForget && opcode != opBatch
	if tracked {
		d.tree.flights.add(unique)
		defer d.tree.flights.done(unique)
	}
	var out []byte
	if longReply(opcode) {
		buf := d.outs.Get().(*[]byte)
		defer d.outs.Put(buf)
		out = *buf
	} else {
		out = make([]byte, outSmall)
	}
	n, st := d.proto.HandleRequest([][]byte{in}, [][]byte{out})
	if st != fuse.OK {
		n = replyLen
		binary.NativeEndian.PutUint32(out, replyLen)
		binary.NativeEndian.PutUint32(out[4:], ^uint32(unix.EIO)+1) // -EIO
		binary.NativeEndian.PutUint64(out[8:], unique)
	}
	if n == 0 {
		return
	}
	err := d.write(out[:n])
	switch {
	case err == nil, d.tree.closed.Load():
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV): // the request was aborted, or the mount is gone
	default:
		d.tree.view.logf("fuse device of %s: reply to opcode %d: %v", d.tree.mount.Path, opcode, err)
	}
}

// write writes one frame. It does not go through os.File's write lock: a
// notification may wait for a reply that another goroutine writes.
func (d *device) write(frame []byte) error {
	var err error
	if cerr := d.conn.Control(func(fd uintptr) {
		for {
			if _, err = unix.Write(int(fd), frame); err != unix.EINTR {
				return
			}
		}
	}); cerr != nil {
		return cerr
	}
	return err
}

// interrupt cancels a request that is being answered.
func (d *device) interrupt(unique uint64) {
	in := make([]byte, headerLen+8)
	binary.NativeEndian.PutUint32(in, uint32(len(in)))
	binary.NativeEndian.PutUint32(in[4:], opInterrupt)
	binary.NativeEndian.PutUint64(in[headerLen:], unique)
	d.proto.HandleRequest([][]byte{in}, [][]byte{make([]byte, outSmall)})
}

// Codes of notifications, enum fuse_notify_code.
const (
	notifyInode = 2
	notifyEntry = 3
)

// notifyInode drops the kernel's attributes of a node, and its data too where
// data is set.
func (d *device) notifyInode(id uint64, data bool) error {
	frame := make([]byte, replyLen+24)
	off := int64(-1) // below 0: no data
	if data {
		off = 0
	}
	binary.NativeEndian.PutUint64(frame[replyLen:], id)
	binary.NativeEndian.PutUint64(frame[replyLen+8:], uint64(off))
	return d.notify(notifyInode, frame)
}

// expireOnly has a name asked for again, where dropping it would also take it
// from under those who work in it: their getcwd(2) would fail. Kernels before
// 6.2 drop it.
const expireOnly = 1 << 0

// notifyEntry ends the kernel's trust in a name. It waits for requests in
// that directory.
func (d *device) notifyEntry(parent uint64, name string) error {
	frame := make([]byte, replyLen+16+len(name)+1)
	binary.NativeEndian.PutUint64(frame[replyLen:], parent)
	binary.NativeEndian.PutUint32(frame[replyLen+8:], uint32(len(name)))
	binary.NativeEndian.PutUint32(frame[replyLen+12:], expireOnly)
	copy(frame[replyLen+16:], name)
	return d.notify(notifyEntry, frame)
}

func (d *device) notify(code uint32, frame []byte) error {
	binary.NativeEndian.PutUint32(frame, uint32(len(frame)))
	binary.NativeEndian.PutUint32(frame[4:], code)
	return d.write(frame)
}

// close gives the connection up: whoever still waits gets ECONNABORTED, later
// calls ENOTCONN.
func (d *device) close() { d.file.Close() }
