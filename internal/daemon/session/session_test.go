package session

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

func TestCommands(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "content\n")
	for _, c := range []struct {
		text, want string
		code       int
	}{
		{"echo hello", "hello\n", 0},
		{"exit 3", "", 3},
		{"cat f", "content\n", 0},
		{"pwd", dir + "\n", 0},
		{"echo err >&2; exit 7", "err\n", 7},
		{"echo new >g; cat g", "new\n", 0},
		{"umask", "0022\n", 0},
		{"cat", "", 0},
		{"head -c 300000 /dev/zero | wc -c", "300000\n", 0},
		{"nosuchcommand 2>/dev/null", "", 127},
	} {
		out, e := h.sh(dir, c.text)
		if out != c.want || e.Status.Code != c.code || e.Status.Signal != 0 {
			t.Errorf("%s: %q, %+v", c.text, out, e.Status)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "g")); err != nil || string(b) != "new\n" {
		t.Errorf("the file that a job made: %q, %v", b, err)
	}
	if _, e := h.sh(dir, "kill -USR1 $$"); e.Status.Signal != int(unix.SIGUSR1) {
		t.Errorf("death by signal: %+v", e.Status)
	}
}

func TestExec(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "plain"), "echo \"script $0 $1\"\n")
	write(t, filepath.Join(dir, "data"), "x")
	os.Chmod(filepath.Join(dir, "plain"), 0o755)
	foreign := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 60)...)
	foreign[16], foreign[18], foreign[20] = 2, 0xf3, 1 // ET_EXEC, EM_RISCV
	if err := os.WriteFile(filepath.Join(dir, "foreign"), foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + dir + ":/nonexistent:/usr/bin:/bin"

	j := h.request(dir, "plain", "arg")
	j.req.Env = [][]byte{[]byte(path)}
	j.launch().wait()
	if got, want := j.stdout.text(), "script "+dir+"/plain arg\n"; got != want {
		t.Errorf("script without #!: %q, not %q", got, want)
	}
	j = h.request(dir, "echo", "a b", "", "\xff\n")
	if j.launch().wait(); j.stdout.text() != "a b  \xff\n\n" {
		t.Errorf("arguments: %q", j.stdout.text())
	}
	for _, c := range []struct {
		argv0  string
		reason rer.Reason
		code   int
	}{
		{"nosuchcommand", rer.ReasonNotFound, 127},
		{"./nosuchcommand", rer.ReasonNotFound, 127},
		{"./data/x", rer.ReasonNotFound, 127},
		{"./data", rer.ReasonCannotExec, 126},
		{"/tmp", rer.ReasonCannotExec, 126},
		{"./foreign", rer.ReasonWrongProgram, 126},
		{"", rer.ReasonNotFound, 127},
	} {
		no := h.request(dir, c.argv0).launch().refused()
		if no.Reason != c.reason || no.ExitCode() != c.code || strings.Contains(no.Text, "\n") {
			t.Errorf("%q: %+v", c.argv0, no)
		}
	}
	big := make([]string, 3000)
	for i := range big {
		big[i] = strings.Repeat("x", 1000)
	}
	if no := h.request(dir, append([]string{"true"}, big...)...).launch().refused(); no.ExitCode() != 126 || no.Errno != int(unix.E2BIG) {
		t.Errorf("too many arguments: %+v", no)
	}
	j = h.request(dir)
	j.req.Argv, j.req.Login, j.req.Env = nil, true, append(j.req.Env, []byte("SHELL=/bin/sh"))
	j.launch().started()
	if err := j.stdin.Send([]byte("decho $0; exit 4\n")); err != nil {
		t.Fatal(err)
	}
	if e := j.wait(); j.stdout.text() != "-sh\n" || e.Status.Code != 4 {
		t.Errorf("login shell: %q, %+v", j.stdout.text(), e.Status)
	}
}

func TestAtMostOnce(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	j := h.request(dir)
	j.req.Shell = []byte("echo x >>ran")
	j.launch().wait()
	if no := j.launch().refused(); no.Reason != rer.ReasonTwice {
		t.Errorf("sent twice: %+v", no)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "ran")); string(b) != "x\n" {
		t.Errorf("ran %q", b)
	}
}

func TestSignals(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir())
	j.req.Shell = []byte("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done")
	// At once after the request: it must wait for the command, not be lost.
	// The command may not have its trap yet, so only an ignored one is sent.
	j.req.Ignored = 1 << (unix.SIGURG - 1)
	j.launch()
	h.send(&rer.Message{Signal: &rer.Signal{ID: j.req.ID, Signo: int(unix.SIGURG)}})
	j.stdout.wait(t, "ready", func() bool { return j.stdout.data.Len() >= 6 })
	h.send(&rer.Message{Signal: &rer.Signal{ID: j.req.ID, Signo: int(unix.SIGUSR1)}})
	if e := j.wait(); e.Status.Code != 5 || j.stdout.text() != "ready\ngot\n" {
		t.Errorf("%+v, %q", e.Status, j.stdout.text())
	}

	j = h.request(t.TempDir())
	j.req.Shell = []byte("sleep 1000")
	j.launch()
	h.send(&rer.Message{Signal: &rer.Signal{ID: j.req.ID, Signo: int(unix.SIGTERM)}})
	if e := j.wait(); e.Status.Signal != int(unix.SIGTERM) {
		t.Errorf("signal right after the request: %+v", e.Status)
	}
}

func TestStopAndContinue(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir())
	// What ends at once after it was continued is only told to have ended.
	j.req.Shell = []byte("echo a; kill -STOP $$; echo b; exec sleep 1000")
	j.launch().started()
	m := j.next()
	if m == nil || m.Stopped == nil || m.Stopped.Signo != int(unix.SIGSTOP) || m.Stopped.Sent[0].Bytes != 2 {
		t.Fatalf("stopped: %s", describe(m))
	}
	h.send(&rer.Message{Signal: &rer.Signal{ID: j.req.ID, Signo: int(unix.SIGCONT)}})
	if m := j.next(); m == nil || m.Continued == nil {
		t.Fatalf("continued: %s", describe(m))
	}
	j.stdout.wait(t, "b", func() bool { return j.stdout.data.Len() >= 4 })
	h.send(&rer.Message{Signal: &rer.Signal{ID: j.req.ID, Signo: int(unix.SIGTERM)}})
	if j.wait(); j.stdout.text() != "a\nb\n" {
		t.Errorf("output %q", j.stdout.text())
	}
}

// alive says whether a process has token among its arguments.
func alive(token string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), token) && !strings.Contains(f, fmt.Sprint("/", os.Getpid(), "/")) {
			return true
		}
	}
	return false
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestKill(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir())
	j.req.Shell = []byte("trap '' HUP; sleep 98761 & echo x; wait")
	j.launch().started()
	j.stdout.wait(t, "x", func() bool { return j.stdout.data.Len() > 0 })
	h.send(&rer.Message{Kill: &rer.Kill{ID: j.req.ID}})
	if e := j.wait(); e.Status.Signal == 0 {
		t.Errorf("killed: %+v", e.Status)
	}
	eventually(t, "the killed job's child is gone", func() bool { return !alive("98761") })
	if out, _ := h.sh(t.TempDir(), "echo on"); out != "on\n" {
		t.Errorf("after a kill: %q", out)
	}
}

func TestLinkCut(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir())
	j.req.Shell = []byte("trap '' HUP; setsid sleep 98762 & cat /dev/zero")
	j.launch().started()
	j.stdout.wait(t, "output", func() bool { return j.stdout.data.Len() > 0 })
	h.conn.Close()
	h.waitEnd()
	if alive("98762") {
		t.Error("a process outlived its session")
	}
}

func TestReaderAndWriterGone(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir(), "yes")
	j.launch().started()
	out := j.req.Descriptions[1].Channel
	ch, err := h.conn.Channel(out)
	if err != nil {
		t.Fatal(err)
	}
	ch.Send([]byte("h"))
	if e := j.wait(); e.Status.Signal != int(unix.SIGPIPE) {
		t.Errorf("yes without a reader: %+v", e.Status)
	}

	j = h.request(t.TempDir())
	j.req.Shell = []byte("exec <&-; read x <f; echo done")
	unix.Mkfifo(filepath.Join(string(j.req.CwdPath), "f"), 0o600)
	j.launch().started()
	in := j.outputs[j.stdin.ID()]
	in.wait(t, "h for a closed standard input", func() bool { return in.hung })
	h.send(&rer.Message{Kill: &rer.Kill{ID: j.req.ID}})
	j.wait()
}

func TestBackgroundChildKeepsOutput(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	j := h.request(dir)
	j.req.Shell = []byte("(while [ ! -e go ]; do sleep 0.02; done; echo late) & echo early")
	j.launch()
	if e := j.wait(); e.Status.Code != 0 || j.stdout.text() != "early\n" {
		t.Fatalf("%+v, %q", e.Status, j.stdout.text())
	}
	write(t, filepath.Join(dir, "go"), "")
	j.stdout.wait(t, "late output", func() bool { return j.stdout.data.String() == "early\nlate\n" && j.stdout.over })
}

func TestPacedInput(t *testing.T) {
	h := newHome(t, Config{})
	for _, c := range []struct {
		text     string
		consumed uint64
	}{
		{"true", 0},
		{"read -r x; echo $x", 2},
		{"read -r x; read -r y; echo $y", 4},
		{"head -c 5 >/dev/null; true", 5},
		{"cat >/dev/null", 8},
	} {
		j := h.request(t.TempDir())
		j.req.Shell = []byte(c.text)
		j.req.Descriptions[0].Paced = true
		j.launch()
		j.stdin.Send([]byte("da\nb\nc\nd\n"))
		j.stdin.Send([]byte("e"))
		e := j.wait()
		if len(e.Consumed) != 1 || e.Consumed[0].Bytes != c.consumed && !(strings.HasPrefix(c.text, "head") && e.Consumed[0].Bytes == 8) {
			t.Errorf("%s: consumed %v, not %d", c.text, e.Consumed, c.consumed)
		}
	}
	// While the job runs it says what it has read.
	j := h.request(t.TempDir())
	j.req.Shell = []byte("read -r x; read -r y </dev/null; while [ ! -e go ]; do sleep 0.02; done")
	j.req.Descriptions[0].Paced = true
	j.launch()
	j.stdin.Send([]byte("done\ntwo\n"))
	in := j.outputs[j.stdin.ID()]
	in.wait(t, "count of what was read", func() bool { return in.consumed == 4 })
	write(t, filepath.Join(string(j.req.CwdPath), "go"), "")
	j.wait()
}

func TestDescriptors(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "in"), "0123456789")
	write(t, filepath.Join(dir, "log"), "first\n")
	write(t, filepath.Join(dir, "out"), "aaaaaaaa")

	j := h.request(dir)
	j.req.Shell = []byte("head -c 3 <&7; cat <&8 >&9; echo app >&4; printf XX >&5; ls /proc/self/fd | tr '\\n' ' '; cd -P /proc/self/fd/6 && ls")
	regular := func(num int32, name string, flags int, offset int64) *os.File {
		f, node := h.adopt(filepath.Join(dir, name), flags)
		if _, err := f.Seek(offset, 0); err != nil {
			t.Fatal(err)
		}
		fh, err := h.origin.AdoptFile(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		j.add(num, rer.Description{ID: uint64(num), Kind: rer.KindRegular, Flags: uint32(flags), Offset: offset,
			Handle: node, File: uint64(fh), Path: []byte(filepath.Join(dir, name))})
		return f
	}
	regular(7, "in", unix.O_RDONLY, 2)
	to8, _ := j.pipe(8, unix.O_RDONLY)
	_, from9 := j.pipe(9, unix.O_WRONLY)
	regular(4, "log", unix.O_WRONLY|unix.O_APPEND, 0)
	out := regular(5, "out", unix.O_WRONLY, 4)
	sub := filepath.Join(dir, "sub")
	write(t, filepath.Join(sub, "inside"), "")
	_, node := h.adopt(sub, unix.O_RDONLY|unix.O_DIRECTORY)
	j.add(6, rer.Description{ID: 6, Kind: rer.KindDir, Handle: node, Path: []byte(sub)})
	j.launch()
	to8.Send([]byte("dthrough"))
	to8.Send([]byte("e"))
	e := j.wait()
	if got, want := j.stdout.text(), "2340 1 2 3 4 5 6 7 8 9 inside\n"; got != want {
		t.Errorf("output %q, not %q; stderr %q", got, want, j.stderr.text())
	}
	if from9.text() != "through" {
		t.Errorf("descriptor 9: %q", from9.text())
	}
	for name, want := range map[string]string{"log": "first\napp\n", "out": "aaaaXXaa"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, not %q", name, b, err, want)
		}
	}
	if pos, _ := out.Seek(0, 1); pos != 6 {
		t.Errorf("home's position of the written file is %d, not 6", pos)
	}
	found := false
	for _, p := range e.Positions {
		found = found || p.Desc == 7 && p.Offset == 5
	}
	if !found {
		t.Errorf("positions %+v lack 5 for description 7", e.Positions)
	}
}

func TestSocketDescriptor(t *testing.T) {
	h := newHome(t, Config{})
	j := h.request(t.TempDir())
	j.req.Shell = []byte("read -r x <&5; echo got $x >&5")
	ch, s := j.pipe(5, unix.O_RDWR)
	d := &j.req.Descriptions[len(j.req.Descriptions)-1]
	d.Kind, d.SockTyp = rer.KindSocket, unix.SOCK_STREAM
	j.launch()
	ch.Send([]byte("dline\n"))
	j.wait()
	s.wait(t, "answer on the socket", func() bool { return s.data.String() == "got line\n" && s.over })
}

func TestForgedChannel(t *testing.T) {
	h := newHome(t, Config{})
	for _, n := range []uint32{0, 2, 9999} {
		j := h.request(t.TempDir(), "true")
		j.req.Descriptions[1].Channel = n
		if no := j.launch().refused(); no.Reason != rer.ReasonDescriptor {
			t.Errorf("channel %d: %+v", n, no)
		}
	}
}

// TestKernelSettings: the machine is not a job's to change, though it has the
// id of those files' owner.
func TestKernelSettings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	h := newHome(t, Config{})
	out, e := h.sh(t.TempDir(), `cat /proc/sys/kernel/ostype
for f in kernel/printk kernel/ns_last_pid; do
	(cat /proc/sys/$f >/dev/null; read x </proc/sys/$f; echo "$x" >/proc/sys/$f) 2>&1 | grep -c -e 'Read-only file system' -e 'Permission denied'
done
echo 0 2>/dev/null >/proc/sysrq-trigger || echo no sysrq`)
	if e.Status.Code != 0 || out != "Linux\n1\n1\nno sysrq\n" {
		t.Errorf("%q, %+v", out, e.Status)
	}
}

func TestTerminal(t *testing.T) {
	h := newHome(t, Config{})
	ch, s := (&running{h: h, req: new(rer.Request), outputs: map[uint32]*sink{}}).pipe(0, unix.O_RDWR)
	var tio unix.Termios
	tio.Iflag, tio.Oflag, tio.Cflag = unix.ICRNL, unix.OPOST|unix.ONLCR, unix.CS8|unix.CREAD|unix.B9600
	tio.Lflag = unix.ICANON | unix.ISIG
	tio.Cc[unix.VINTR], tio.Cc[unix.VEOF] = 3, 4
	settings := encodeTermios(&tio)
	request := func(text string) *running {
		j := h.request(t.TempDir())
		j.req.Shell = []byte(text)
		j.req.Pid, j.req.Ppid, j.req.Pgrp, j.req.Sid = 31002, 31001, 31002, 31000
		j.req.Terminal = &rer.Terminal{Channel: ch.ID(), Dev: 5, Termios: settings[:], Rows: 33, Cols: 77, Foreground: 31002}
		for i := range j.req.Descriptions {
			j.req.Descriptions[i] = rer.Description{ID: 77, Kind: rer.KindTerminal, Flags: unix.O_RDWR, Channel: ch.ID()}
		}
		j.outputs[ch.ID()] = s
		return j
	}
	j := request("tty >/dev/null && stty size && stty speed && read x </dev/tty && echo got $x && stty -icanon && exit 3")
	j.launch()
	ch.Send([]byte("dline\n"))
	e := j.wait()
	if e.Status.Code != 3 || s.text() != "33 77\r\n9600\r\ngot line\r\n" {
		t.Fatalf("%+v, %q", e.Status, s.text())
	}
	if len(e.Termios) != termiosLen || binary.BigEndian.Uint32(e.Termios[12:])&unix.ICANON != 0 {
		t.Errorf("settings %v", e.Termios)
	}
	tio.Lflag &^= unix.ICANON
	// Settings at the end go along with it; what nobody changed does not.
	for _, c := range []struct {
		text  string
		echo  uint32
		given bool
	}{{"stty echo", unix.ECHO, true}, {"exit 0", 0, false}, {"stty -echo", 0, true}} {
		j = request(c.text)
		settings = encodeTermios(&tio) // what home has by now
		e := j.launch().wait()
		if c.given {
			tio.Lflag = tio.Lflag&^unix.ECHO | c.echo
		}
		if (e.Termios != nil) != c.given || c.given && binary.BigEndian.Uint32(e.Termios[12:])&unix.ECHO != c.echo {
			t.Errorf("%s: settings %v", c.text, e.Termios)
		}
	}
	request("stty rows 40 cols 50").launch().wait()
	s.wait(t, "changed size", func() bool {
		for _, m := range s.other {
			if string(m) == "w\x00\x28\x002\x00\x00\x00\x00" {
				return true
			}
		}
		return false
	})
	j = request("trap 'echo winch' WINCH; echo go; while :; do sleep 0.02; done")
	j.launch().started()
	s.wait(t, "go", func() bool { return strings.HasSuffix(s.data.String(), "go\r\n") })
	ch.Send([]byte{'w', 0, 10, 0, 20, 0, 0, 0, 0})
	s.wait(t, "winch", func() bool { return strings.HasSuffix(s.data.String(), "winch\r\n") })
	ch.Send([]byte("d\x03"))
	if e := j.wait(); e.Status.Signal != int(unix.SIGINT) {
		t.Errorf("interrupt key: %+v", e.Status)
	}
}
