package session

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// inputFlags change input on its way to the reader.
const (
	inputFlags = unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IUCLC | unix.IXON | unix.IXANY
	inputModes = unix.ECHO | unix.ECHONL | unix.ISIG | unix.IEXTEN
)

// given hands input to the jobs that home's terminal has edited and echoed.
// Where end is set it is what one read(2) shall give.
func (t *terminal) given(end bool, data []byte) {
	t.mu.Lock()
	rest := data
	_ = control(t.master, func(fd int) (err error) {
		rest, err = passOver(fd, end, data)
		return err
	})
	t.mu.Unlock()
	if len(rest) > 0 {
		t.in.write(rest)
	}
}

// passOver writes to a pty's master what its line discipline is to leave as it
// is: where that needs other settings, they are set for so long. It gives what
// there was no room for.
func passOver(fd int, end bool, data []byte) ([]byte, error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	mark := end && old.Lflag&unix.ICANON != 0 && !bytes.HasSuffix(data, []byte{'\n'})
	if !mark && passes(old, data) {
		return writeNow(fd, data)
	}
	quiet := *old
	quiet.Iflag &^= inputFlags
	quiet.Lflag &^= inputModes
	for i := range quiet.Cc {
		if i != unix.VMIN && i != unix.VTIME {
			quiet.Cc[i] = 0
		}
	}
	if mark {
		quiet.Cc[unix.VEOF] = unused(data)
		data = append(bytes.Clone(data), quiet.Cc[unix.VEOF])
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return data, err
	}
	set, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	rest, writeErr := writeNow(fd, data)
	arrive(fd)
	if now, getErr := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && getErr == nil && *now != *set {
		return rest, writeErr // a job has set its own meanwhile
	}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, old); err != nil {
		return rest, err
	}
	return rest, writeErr
}

// passes says whether the line discipline leaves data as it is anyway.
func passes(t *unix.Termios, data []byte) bool {
	if t.Lflag&(unix.ECHO|unix.ECHONL) != 0 || t.Iflag&(unix.PARMRK|unix.ISTRIP|unix.IUCLC) != 0 {
		return false
	}
	for i, c := range t.Cc {
		if i != unix.VMIN && i != unix.VTIME && c != 0 && bytes.IndexByte(data, c) >= 0 {
			return false
		}
	}
	return (t.Iflag&(unix.IGNCR|unix.ICRNL) == 0 || bytes.IndexByte(data, '\r') < 0) &&
		(t.Iflag&unix.INLCR == 0 || bytes.IndexByte(data, '\n') < 0)
}

// unused gives a byte that data has not.
func unused(data []byte) byte {
	for c := byte(1); c != 0; c++ {
		if c != '\n' && bytes.IndexByte(data, c) < 0 {
			return c
		}
	}
	return 4
}

func writeNow(fd int, data []byte) ([]byte, error) {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return data, err
		}
		data = data[n:]
	}
	return nil, nil
}

// arrive returns when what was written to the master has passed the line
// discipline. poll(2) of a slave that has nothing to read waits for that; if
// it has something, the count of what is there comes to rest.
func arrive(master int) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return
	}
	slave := int(r)
	defer unix.Close(slave)
	last, same := -1, 0
	for range 100 {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(slave), Events: unix.POLLIN}}, 0)
		if err == nil && n == 0 {
			return
		}
		count, _ := unix.IoctlGetInt(slave, unix.TIOCINQ)
		if same++; count != last {
			last, same = count, 0
		}
		if same == 5 {
			return
		}
		time.Sleep(50 * time.Microsecond)
	}
}
