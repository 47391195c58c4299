package pump

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"rexec/rer"
)

// agent is a process that leads a session with a terminal of its own.
type agent struct {
	master, tty *os.File
	cmd         *exec.Cmd
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{master, tty, exec.Command("sleep", "1000")}
	a.cmd.Stdin = tty
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.cmd.Process.Kill()
		a.cmd.Wait()
		tty.Close()
		master.Close()
	})
	return a
}

func (a *agent) termios(t *testing.T) unix.Termios {
	t.Helper()
	got, err := unix.IoctlGetTermios(int(a.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *got
}

func attach(t *testing.T, a *agent, ch *fake) *Terminal {
	t.Helper()
	term := NewTerminal(testPoller(t), ch, nil)
	t.Cleanup(term.Close)
	if err := term.Attach([]int{int(a.tty.Fd())}, int32(a.cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	return term
}

const cooked = unix.ECHO | unix.ICANON | unix.ISIG

func TestTerminalRawOnlyInForeground(t *testing.T) {
	a, ch := newAgent(t), newFake()
	before := a.termios(t)
	term := attach(t, a, ch)
	pid := int32(a.cmd.Process.Pid)
	if term.Join("job", pid); a.termios(t) != before {
		t.Error("raw though the jobs have no group of their own")
	}
	ch.say('g', 1)
	eventually(t, "raw input", func() bool { return a.termios(t).Lflag&cooked == 0 })
	if a.termios(t).Oflag != before.Oflag {
		t.Error("output settings touched")
	}
	if _, err := a.master.Write([]byte("typed\r")); err != nil {
		t.Fatal(err)
	}
	ch.untilData(t, "typed\r")
	term.Suspend("job")
	if a.termios(t) != before {
		t.Error("not restored when the job stopped")
	}
	term.Resume("job")
	if a.termios(t).Lflag&cooked != 0 {
		t.Error("not raw again")
	}
	if term.Leave("job"); a.termios(t) != before {
		t.Error("not restored")
	}
}

// message waits for home's n-th message, without its settings and the like.
func (f *fake) message(t *testing.T, n int, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("message %q", want), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.got) > n && string(f.got[n]) == want
	})
}

// TestTerminalGivesLines: a line leaves when a job reads, and no other does.
func TestTerminalGivesLines(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	pid := int32(a.cmd.Process.Pid)
	term.Join("job", pid)
	if _, err := a.master.Write([]byte("onx\x7fe\r\x04two\rthree\r")); err != nil {
		t.Fatal(err)
	}
	ch.message(t, 0, "q\x00\x00\x00\x01")
	ch.say('r', 0, 0, 0, 1)
	ch.message(t, 1, "p\x01one\n")
	ch.message(t, 2, "q\x00\x00\x00\x02")
	ch.say('r', 0, 0, 0, 1) // late
	ch.say('r', 0, 0, 0, 2)
	ch.message(t, 3, "p\x01") // the end of the file
	ch.message(t, 4, "q\x00\x00\x00\x03")
	term.Leave("job")
	ch.message(t, 5, "q\x00\x00\x00\x00")
	buf := make([]byte, 80)
	if n, err := a.tty.Read(buf); string(buf[:n]) != "two\n" {
		t.Errorf("left %q, %v", buf[:n], err)
	}
}

// TestTerminalKeyTwice: one key, two agents in its group.
func TestTerminalKeyTwice(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	pid := int32(a.cmd.Process.Pid)
	term.Join("one", pid)
	term.Join("two", pid)
	for i, job := range []any{"one", "two", "two", "one"} {
		if got := term.Twice(job, 2); got != (i%2 == 1) {
			t.Errorf("signal %d: %v", i, got)
		}
	}
}

func TestTerminalRestoredWhenAgentDies(t *testing.T) {
	a, ch := newAgent(t), newFake()
	before := a.termios(t)
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	a.cmd.Process.Kill()
	a.cmd.Wait()
	eventually(t, "restored settings", func() bool { return a.termios(t) == before })
}

func TestTerminalRestoredWhenLinkEnds(t *testing.T) {
	a, ch := newAgent(t), newFake()
	before := a.termios(t)
	attach(t, a, ch).Join("job", int32(a.cmd.Process.Pid))
	ch.Close()
	eventually(t, "restored settings", func() bool { return a.termios(t) == before })
}

func TestTerminalJobSettingsPersist(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	set := a.termios(t)
	term.mu.Lock()
	set = term.logical
	term.mu.Unlock()
	set.Lflag &^= unix.ECHO
	set.Oflag &^= unix.OPOST
	set.Cc[unix.VERASE] = 8
	ch.say('g', 1)
	ch.say('t', EncodeTermios(&set)...)
	eventually(t, "job's output settings", func() bool { return a.termios(t).Oflag&unix.OPOST == 0 })
	if a.termios(t).Lflag&cooked != 0 {
		t.Error("input not raw any more")
	}
	term.Leave("job")
	if got := a.termios(t); got != set {
		t.Errorf("left %+v, not %+v", got, set)
	}
}

func TestTerminalHomeSettingsFollow(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	now := a.termios(t)
	now.Cc[unix.VINTR] = 5 // somebody's stty, while the job runs
	if err := unix.IoctlSetTermios(int(a.tty.Fd()), unix.TCSETS, &now); err != nil {
		t.Fatal(err)
	}
	ch.until(t, "settings", func(_ []byte, kinds string) bool { return bytes.Contains([]byte(kinds), []byte("t")) })
	term.Leave("job")
	if got := a.termios(t); got.Cc[unix.VINTR] != 5 || got.Lflag&cooked != cooked {
		t.Errorf("left %+v", got)
	}
}

func TestTerminalOutput(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	sent := 0
	say := func(s string) { ch.data(s); sent += len(s) }
	say("one\r\ntwo\r")
	say("\nthree\r\r\nbar\r")
	term.WaitWritten(uint64(sent), nil)
	want := "one\r\ntwo\r\nthree\r\r\nbar\r"
	got := make([]byte, len(want))
	for n := 0; n < len(want); {
		m, err := a.master.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(got) != want {
		t.Errorf("got %q", got)
	}
}

func TestTerminalSizeAndDescription(t *testing.T) {
	a, ch := newAgent(t), newFake()
	if err := pty.Setsize(a.tty, &pty.Winsize{Rows: 10, Cols: 20}); err != nil {
		t.Fatal(err)
	}
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	var r rer.Terminal
	term.Describe(&r)
	if r.Rows != 10 || r.Cols != 20 || r.Foreground != int32(a.cmd.Process.Pid) || len(r.Termios) != termiosLen {
		t.Errorf("described as %+v", r)
	}
	if err := pty.Setsize(a.tty, &pty.Winsize{Rows: 30, Cols: 40}); err != nil {
		t.Fatal(err)
	}
	ch.untilKind(t, "w")
	ch.say('w', 0, 50, 0, 60, 0, 0, 0, 0)
	eventually(t, "job's size", func() bool {
		rows, cols, err := pty.Getsize(a.tty)
		return err == nil && rows == 50 && cols == 60
	})
}

// TestTerminalResized: the size is told before Resized returns, and while the
// terminal is not looked at by itself.
func TestTerminalResized(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	term.Suspend("job")
	for rows := uint16(30); rows < 50; rows++ {
		if err := pty.Setsize(a.tty, &pty.Winsize{Rows: rows, Cols: 40}); err != nil {
			t.Fatal(err)
		}
		term.Resized()
		ch.mu.Lock()
		last := ch.got[len(ch.got)-1]
		ch.mu.Unlock()
		if !bytes.Equal(last, []byte{'w', 0, byte(rows), 0, 40, 0, 0, 0, 0}) {
			t.Fatalf("%d rows: told %q", rows, last)
		}
	}
}

func TestTerminalHangup(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Join("job", int32(a.cmd.Process.Pid))
	a.master.Close()
	ch.untilKind(t, "e")
	ch.data("lost")
	term.WaitWritten(4, nil)
}

func TestTerminalAttachedAgain(t *testing.T) {
	a, ch := newAgent(t), newFake()
	term := attach(t, a, ch)
	term.Detach()
	ch.data("nobody")
	eventually(t, "dropped output", func() bool {
		term.mu.Lock()
		defer term.mu.Unlock()
		return term.written == 6
	})
	if err := term.Attach([]int{int(a.tty.Fd())}, int32(a.cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	term.Join("job", int32(a.cmd.Process.Pid))
	ch.data("x")
	got := make([]byte, 8)
	if n, err := a.master.Read(got); string(got[:n]) != "x" {
		t.Errorf("got %q, %v", got[:n], err)
	}
}

func TestCarryOver(t *testing.T) {
	var base unix.Termios
	base.Lflag, base.Iflag = cooked, unix.ICRNL|unix.IXON
	raw := rawInput(base)
	changed := raw
	changed.Iflag |= unix.IXOFF
	changed.Cc[unix.VINTR] = 7
	got := carryOver(base, raw, changed)
	if got.Lflag != cooked || got.Iflag != unix.ICRNL|unix.IXON|unix.IXOFF || got.Cc[unix.VINTR] != 7 {
		t.Errorf("got %+v", got)
	}
}

func FuzzTermios(f *testing.F) {
	f.Add(make([]byte, termiosLen))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var tio unix.Termios
		if ok := decodeTermios(b, &tio); ok != (len(b) == termiosLen) {
			t.Fatal(ok, len(b))
		} else if ok {
			again := tio
			if !decodeTermios(EncodeTermios(&tio), &again) || again != tio {
				t.Fatal("not the same again")
			}
		}
	})
}
