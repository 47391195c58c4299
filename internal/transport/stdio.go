package transport

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Stdio takes standard input and output as a stream, for a program that
// DialSSH or DialCommand started. What is printed later by mistake goes to
// standard error, and standard input is empty.
func Stdio() (io.ReadWriteCloser, error) {
	s, err := take(0, 1)
	if err != nil {
		return nil, fmt.Errorf("take standard input and output: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		err = unix.Dup3(int(null.Fd()), 0, 0)
		null.Close()
	}
	if err == nil {
		err = unix.Dup3(2, 1, 0)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("replace standard input and output: %w", err)
	}
	return s, nil
}

// take makes a stream of copies of two descriptors: the socket itself where
// both are the same one.
func take(in, out int) (io.ReadWriteCloser, error) {
	r, err := pollable(in)
	if err != nil {
		return nil, err
	}
	w, err := pollable(out)
	if err != nil {
		r.Close()
		return nil, err
	}
	var a, b unix.Stat_t
	if unix.Fstat(in, &a) == nil && unix.Fstat(out, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev {
		if c, err := net.FileConn(r); err == nil {
			r.Close()
			w.Close()
			return c.(io.ReadWriteCloser), nil
		}
	}
	return &twoFiles{r, w}, nil
}

// pollable copies a descriptor, made non-blocking so that Close wakes a Read.
func pollable(fd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(n, true); err != nil {
		unix.Close(n)
		return nil, err
	}
	return os.NewFile(uintptr(n), "stdio"), nil
}

// twoFiles is a stream of two pipes.
type twoFiles struct{ r, w *os.File }

func (t *twoFiles) Read(p []byte) (int, error)  { return t.r.Read(p) }
func (t *twoFiles) Write(p []byte) (int, error) { return t.w.Write(p) }
func (t *twoFiles) CloseWrite() error           { return t.w.Close() }

func (t *twoFiles) Close() error {
	t.w.Close()
	return t.r.Close()
}
