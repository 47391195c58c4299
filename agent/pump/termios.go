package pump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// termiosLen is the length of encoded settings: four words, line, 19
// characters.
const termiosLen = 4*4 + 1 + 19

// EncodeTermios gives t as the 't' message carries it. Speeds stay behind:
// they mean nothing on a pty.
func EncodeTermios(t *unix.Termios) []byte {
	b := make([]byte, 0, termiosLen)
	for _, word := range []uint32{t.Iflag, t.Oflag, t.Cflag, t.Lflag} {
		b = binary.BigEndian.AppendUint32(b, word)
	}
	b = append(b, t.Line)
	return append(b, t.Cc[:]...)
}

// decodeTermios puts encoded settings into t, whose speeds remain.
func decodeTermios(b []byte, t *unix.Termios) bool {
	if len(b) != termiosLen {
		return false
	}
	speed := uint32(unix.CBAUD | unix.CIBAUD)
	t.Iflag = binary.BigEndian.Uint32(b)
	t.Oflag = binary.BigEndian.Uint32(b[4:])
	t.Cflag = binary.BigEndian.Uint32(b[8:])&^speed | t.Cflag&speed
	t.Lflag = binary.BigEndian.Uint32(b[12:])
	t.Line = b[16]
	copy(t.Cc[:], b[17:])
	return true
}

// rawInput gives t with every byte of input passed on as it comes. The far
// pty edits, echoes and makes signals. Output stays as it is.
func rawInput(t unix.Termios) unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR |
		unix.ICRNL | unix.IUCLC | unix.IXON | unix.IXANY | unix.IXOFF
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return t
}

// readInput gives t for a reader that reads when there is something.
func readInput(t unix.Termios) unix.Termios {
	if t.Lflag&unix.ICANON == 0 {
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	}
	return t
}

// carryOver applies to t what differs between was and is.
func carryOver(t, was, is unix.Termios) unix.Termios {
	t.Iflag ^= was.Iflag ^ is.Iflag
	t.Oflag ^= was.Oflag ^ is.Oflag
	t.Cflag ^= was.Cflag ^ is.Cflag
	t.Lflag ^= was.Lflag ^ is.Lflag
	t.Line, t.Ispeed, t.Ospeed = is.Line, is.Ispeed, is.Ospeed
	for i := range t.Cc {
		if was.Cc[i] != is.Cc[i] {
			t.Cc[i] = is.Cc[i]
		}
	}
	return t
}

// addsCR says whether output of t has a CR put before each LF.
func addsCR(t *unix.Termios) bool {
	return t.Oflag&unix.OPOST != 0 && t.Oflag&unix.ONLCR != 0
}

// crFilter takes out the CR that the far pty put before each LF: home's
// terminal puts one there itself.
type crFilter struct{ held bool }

// filter gives data without those CRs, held back across messages. Where keep
// is set, nothing was put there and nothing is taken.
func (c *crFilter) filter(data []byte, keep bool) []byte {
	out := make([]byte, 0, len(data)+1)
	for _, b := range data {
		if c.held && b != '\n' {
			out = append(out, '\r')
		}
		c.held = b == '\r' && !keep
		if !c.held {
			out = append(out, b)
		}
	}
	return out
}

// flush gives a CR that was held back for want of a next byte.
func (c *crFilter) flush() []byte {
	if !c.held {
		return nil
	}
	c.held = false
	return []byte{'\r'}
}

// jobControl is a process's group and its terminal's foreground group, from
// /proc/PID/stat: TIOCGPGRP answers only within the terminal's own session.
func jobControl(pid int32) (pgrp, foreground int32, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// pid (comm) state ppid pgrp session tty_nr tpgid; comm may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 6 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	g, errG := strconv.ParseInt(f[2], 10, 32)
	t, errT := strconv.ParseInt(f[5], 10, 32)
	if errG != nil || errT != nil {
		return 0, 0, fmt.Errorf("/proc/%d/stat: no number", pid)
	}
	return int32(g), int32(t), nil
}
