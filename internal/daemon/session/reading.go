package session

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How often a terminal's jobs are looked at while home has input for them.
const (
	askFirst = 2 * time.Millisecond
	askLast  = 100 * time.Millisecond
)

// elsewhere are the places in the kernel where a thread surely does not wait
// for its terminal. Any other may be a read of it or a poll.
var elsewhere = []string{
	"hrtimer_nanosleep", "do_nanosleep", "do_wait", "pipe_read", "anon_pipe_read", "pipe_write", "anon_pipe_write",
	"futex_", "do_sigtimedwait", "sigsuspend", "request_wait_answer", "fuse_", "wait_for_completion", "vfork",
}

// answers tells home when a job reads, for each of its questions, until the
// terminal ends.
func (t *terminal) answers() {
	delay := askFirst
	for {
		var tick <-chan time.Time
		if seq := t.question.Load(); seq != 0 {
			if t.wanted() {
				t.question.CompareAndSwap(seq, 0)
				_ = t.ch.Send([]byte{'r', byte(seq >> 24), byte(seq >> 16), byte(seq >> 8), byte(seq)})
				continue
			}
			tick = time.After(delay)
			delay = min(2*delay, askLast)
		}
		select {
		case <-t.done:
			return
		case <-t.asked:
			delay = askFirst
		case <-tick:
		}
	}
}

// wanted says whether a job may be waiting for the terminal's input.
func (t *terminal) wanted() bool {
	group, canon := 0, false
	err := control(t.master, func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		canon = tio.Lflag&unix.ICANON != 0
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil || !t.used() {
		return false
	}
	if !canon {
		return true
	}
	// Twice, lest one is taken for a reader that is just being woken.
	if !groupWaits(group) {
		return false
	}
	time.Sleep(time.Millisecond)
	return groupWaits(group)
}

// groupWaits says whether a thread of a process group waits for something that
// may be the terminal.
func groupWaits(group int) bool {
	dir, err := os.Open("/proc")
	if err != nil {
		return true
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		name = "/proc/" + name + "/stat"
		comm, f := procStat(name)
		if len(f) < 3 || f[2] != strconv.Itoa(group) || comm == "ghost" {
			continue
		}
		if nonblocking(filepath.Dir(name)) {
			return true
		}
		threads, _ := filepath.Glob(filepath.Dir(name) + "/task/[0-9]*/stat")
		for _, thread := range threads {
			if threadWaits(thread) {
				return true
			}
		}
	}
	return false
}

// nonblocking says whether a process reads its standard input now and then,
// without ever waiting in it.
func nonblocking(proc string) bool {
	b, _ := os.ReadFile(proc + "/fdinfo/0")
	_, rest, _ := strings.Cut(string(b), "flags:")
	line, _, _ := strings.Cut(rest, "\n")
	flags, err := strconv.ParseUint(strings.TrimSpace(line), 8, 64)
	return err == nil && flags&unix.O_NONBLOCK != 0
}

func threadWaits(stat string) bool {
	var at []byte
	for range 5 {
		if _, f := procStat(stat); len(f) == 0 || f[0] != "S" {
			return false
		}
		var err error
		if at, err = os.ReadFile(filepath.Dir(stat) + "/wchan"); err != nil {
			return !os.IsNotExist(err)
		}
		if string(at) != "0" {
			break
		}
		time.Sleep(time.Millisecond) // it runs again, or nobody may know where it waits
	}
	for _, place := range elsewhere {
		if strings.Contains(string(at), place) {
			return false
		}
	}
	return true
}

// procStat gives a process's name and what follows it: state, parent, group.
func procStat(name string) (comm string, fields []string) {
	b, err := os.ReadFile(name)
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if err != nil || open < 0 || end < open {
		return "", nil
	}
	return string(b[open+1 : end]), strings.Fields(string(b[end+1:]))
}

// innerPid is a process's number in its own PID namespace; 0: it is gone.
func innerPid(outer int) int32 {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(outer) + "/status")
	_, rest, _ := strings.Cut(string(b), "\nNSpid:")
	line, _, _ := strings.Cut(rest, "\n")
	f := strings.Fields(line)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[len(f)-1], 10, 32)
	return int32(n)
}
