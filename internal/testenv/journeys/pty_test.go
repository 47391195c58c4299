package journeys

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is a program on a terminal of 80 columns and 24 lines, and what it
// has written there so far.
type terminal struct {
	cmd    *exec.Cmd
	master *os.File
	before *unix.Termios

	mu     sync.Mutex
	screen bytes.Buffer
	more   chan struct{} // told, without waiting, when there is more
	read   chan struct{} // closed when no more comes
}

// onTerminal runs shell text in a directory below the journey's on a terminal.
func (r *rig) onTerminal(t *testing.T, dir, text string) *terminal {
	t.Helper()
	// The session is made on the client, that it has a number there.
	cmd := r.Client.Command("setsid", "--ctty", "--wait", "/bin/sh", "-c", `cd "/root/$0" && `+text, r.base+"/"+dir)
	cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "TERM=vt100", "LESS=")
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	w := &terminal{cmd: cmd, master: master, more: make(chan struct{}, 1), read: make(chan struct{})}
	t.Cleanup(func() { master.Close() })
	w.resize(t, 24, 80)
	if w.before, err = unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go w.follow()
	return w
}

func (w *terminal) follow() {
	defer close(w.read)
	buf := make([]byte, 4096)
	for {
		n, err := w.master.Read(buf)
		w.mu.Lock()
		w.screen.Write(buf[:n])
		w.mu.Unlock()
		select {
		case w.more <- struct{}{}:
		default:
		}
		if err != nil {
			return // EIO: the last descriptor of the other side is closed
		}
	}
}

func (w *terminal) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := pty.Setsize(w.master, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		t.Fatal(err)
	}
}

// escapes are the control sequences of a vt100.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78DEHM])`)

// await waits until text was written since the last call.
func (w *terminal) await(t *testing.T, text string) {
	t.Helper()
	limit := time.After(taskLimit())
	for {
		w.mu.Lock()
		seen := string(escapes.ReplaceAll(w.screen.Bytes(), nil))
		found := strings.Contains(seen, text)
		if found {
			w.screen.Reset()
		}
		w.mu.Unlock()
		if found {
			return
		}
		select {
		case <-w.more:
		case <-w.read:
			t.Fatalf("it ended without %q on the terminal: %q", text, seen)
		case <-limit:
			_ = w.cmd.Process.Kill()
			t.Fatalf("no %q on the terminal after %v: %q", text, taskLimit(), seen)
		}
	}
}

func (w *terminal) keys(t *testing.T, keys string) {
	t.Helper()
	if _, err := w.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// end waits for the program, which must have left the terminal's settings as
// they were.
func (w *terminal) end(t *testing.T) {
	t.Helper()
	if err := wait(t, w.cmd); err != nil {
		t.Errorf("on the terminal: %v", err)
	}
	after, err := unix.IoctlGetTermios(int(w.master.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *after != *w.before {
		t.Errorf("the terminal's settings are %+v, were %+v", *after, *w.before)
	}
}

// vim: a full-screen editor, with a change of the window's size under way.
func vim(t *testing.T, r *rig) {
	r.local(t, "", "mkdir here there; for i in $(seq 40); do echo $i: a line of text; done | tee here/text >there/text")
	r.edit(t, "here", "")
	r.edit(t, "there", "rexec server")
	r.same(t, "here", "there")
}

func (r *rig) edit(t *testing.T, dir, prefix string) {
	t.Helper()
	w := r.onTerminal(t, dir, "exec "+prefix+` vim -N -u NONE -i NONE --cmd 'au VimResized * call writefile([&lines . "x" . &columns], "size")' text`)
	w.await(t, "1: a line of text")
	w.keys(t, ":%s/of text/from vim/g\rgg")
	w.await(t, "1: a line from vim")
	w.resize(t, 31, 97)
	r.awaitFile(t, dir+"/size", "31x97\n")
	w.keys(t, "Onew first\x1bj3dd.Goend\x1b:wq\r")
	w.end(t)
}

// awaitFile waits until a file below the journey's directory has a content.
func (r *rig) awaitFile(t *testing.T, name, content string) {
	t.Helper()
	for limit := time.Now().Add(taskLimit()); ; time.Sleep(20 * time.Millisecond) {
		got, err := os.ReadFile(filepath.Join(r.home, name))
		if err == nil && string(got) == content {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s has %q (%v), want %q", name, got, err, content)
		}
	}
}

// less: make writes into less, which has the terminal: both there, either
// there. Keys are pressed when make has ended: until then it shares the
// terminal with less, there as here.
func less(t *testing.T, r *rig) {
	r.write(t, "Makefile", "all:\n\t@echo begins; seq -f 'line %.0f.' 1000; echo all is made\n")
	for _, text := range []string{
		"{ make; : >ended; } | less",
		"{ rexec server make; : >ended; } | less",
		"exec rexec server '{ make; : >ended; } | less'",
		"{ make; : >ended; } | rexec server less",
	} {
		t.Log(text)
		w := r.onTerminal(t, "", text)
		w.await(t, "line 22.")
		r.awaitFile(t, "ended", "")
		w.keys(t, " ")
		w.await(t, "line 45.")
		w.keys(t, "G")
		w.await(t, "all is made")
		w.keys(t, "?line 500\\.\r")
		w.await(t, "line 522.")
		w.keys(t, "q")
		w.end(t)
		r.local(t, "", "rm ended")
	}
}
