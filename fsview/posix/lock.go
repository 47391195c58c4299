package posix

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// helperEnv makes this program, started again by a test, a second process
// that does what it is told on its standard input.
const helperEnv = "REXEC_POSIX_HELPER"

func init() {
	if path := os.Getenv(helperEnv); path != "" {
		if err := helper(path); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
}

// helper opens path and answers each line of input with ok or an errno's
// name: a lock wish ("flock ex", "posix w 0 10", "wait w 0 10", "posix u 0 0").
func helper(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer := "ok"
		if err := command(f, in.Text()); err != nil {
			answer = unix.ErrnoName(asErrno(err))
		}
		fmt.Println(answer)
	}
	return in.Err()
}

func command(f *os.File, line string) error {
	var word, kind string
	var start, n int64
	fmt.Sscan(line, &word, &kind, &start, &n)
	if word == "flock" {
		how := map[string]int{"ex": unix.LOCK_EX, "sh": unix.LOCK_SH, "un": unix.LOCK_UN}[kind]
		return unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	}
	lk := unix.Flock_t{Type: lockType(kind), Start: start, Len: n}
	cmd := unix.F_SETLK
	if word == "wait" {
		cmd = unix.F_SETLKW
	}
	return unix.FcntlFlock(f.Fd(), cmd, &lk)
}

func lockType(kind string) int16 {
	return map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}[kind]
}

// Other is a second process that takes locks on a file.
type Other struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// NewOther starts a process that has path open. It ends with the test.
func NewOther(t *testing.T, path string) *Other {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"="+path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return &Other{t, cmd, in, bufio.NewReader(out)}
}

// Pid is the process's number.
func (o *Other) Pid() int { return o.cmd.Process.Pid }

// Tell gives one command, such as "posix w 0 10" or "flock ex".
func (o *Other) Tell(command string) {
	o.t.Helper()
	_, err := fmt.Fprintln(o.in, command)
	must(o.t, err)
}

// Want waits for the answer to a command: "ok" or an errno's name.
func (o *Other) Want(answer string) {
	o.t.Helper()
	line, err := o.out.ReadString('\n')
	must(o.t, err)
	if line = strings.TrimSpace(line); line != answer {
		o.t.Fatalf("the other process got %s, want %s", line, answer)
	}
}

func testFlock(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	a, b := open(t, p, os.O_RDONLY, 0), open(t, p, os.O_RDWR, 0)
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	wantErr(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_UN))
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	other := NewOther(t, p)
	other.Tell("flock ex")
	other.Want("EAGAIN")
	must(t, a.Close()) // the last close of the description
	eventually(t, other, "flock ex")
}

// eventually repeats a command that succeeds as soon as a release, which
// FUSE sends after close returned, has arrived.
func eventually(t *testing.T, other *Other, command string) {
	t.Helper()
	for range 2000 {
		other.Tell(command)
		line, err := other.out.ReadString('\n')
		must(t, err)
		if strings.TrimSpace(line) == "ok" {
			return
		}
	}
	t.Fatalf("%s: the lock is never free", command)
}

func setlk(f *os.File, cmd int, kind string, start, n int64) error {
	lk := unix.Flock_t{Type: lockType(kind), Start: start, Len: n}
	return unix.FcntlFlock(f.Fd(), cmd, &lk)
}

func testRecordLock(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "0123456789")
	f := open(t, p, os.O_RDWR, 0)
	other := NewOther(t, p)
	must(t, setlk(f, unix.F_SETLK, "w", 0, 5))
	other.Tell("posix r 4 1")
	other.Want("EAGAIN")
	other.Tell("posix w 5 0") // to the end of the file
	other.Want("ok")
	wantErr(t, setlk(f, unix.F_SETLK, "r", 0, 0), unix.EAGAIN, unix.EACCES)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 7, Len: 1}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lk))
	if lk.Type != unix.F_WRLCK || lk.Pid != int32(other.Pid()) || lk.Start != 5 || lk.Len != 0 {
		t.Fatalf("%+v, process %d", lk, other.Pid())
	}
	must(t, setlk(f, unix.F_SETLK, "u", 2, 1)) // splits the range
	other.Tell("posix w 2 1")
	other.Want("ok")
	other.Tell("posix w 3 1")
	other.Want("EAGAIN")
	other.Tell("posix u 0 0")
	other.Want("ok")
	must(t, setlk(f, unix.F_SETLK, "w", 0, 0))
	must(t, setlk(f, unix.F_SETLK, "r", 0, 0))
	other.Tell("posix r 0 0")
	other.Want("ok")
}

// testRecordLockClose: closing any descriptor of a file drops its locks.
func testRecordLockClose(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "x")
	f, second := open(t, p, os.O_RDWR, 0), open(t, p, os.O_RDONLY, 0)
	other := NewOther(t, p)
	must(t, setlk(f, unix.F_SETLK, "w", 0, 0))
	other.Tell("posix w 0 0")
	other.Want("EAGAIN")
	must(t, second.Close())
	other.Tell("posix w 0 0")
	other.Want("ok")
}

func testRecordLockWait(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "x")
	f := open(t, p, os.O_RDWR, 0)
	other := NewOther(t, p)
	must(t, setlk(f, unix.F_SETLK, "w", 0, 1))
	other.Tell("wait w 0 1")
	must(t, setlk(f, unix.F_SETLK, "u", 0, 1))
	other.Want("ok")
	// The other way round: the lock comes free when the other lets go.
	got := make(chan error, 1)
	go func() { got <- setlk(f, unix.F_SETLKW, "w", 0, 1) }()
	other.Tell("posix u 0 1")
	other.Want("ok")
	must(t, <-got)
}

func testOFDLock(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "x")
	a, b := open(t, p, os.O_RDWR, 0), open(t, p, os.O_RDWR, 0)
	must(t, setlk(a, unix.F_OFD_SETLK, "w", 0, 0))
	wantErr(t, setlk(b, unix.F_OFD_SETLK, "r", 0, 0), unix.EAGAIN)
	other := NewOther(t, p)
	other.Tell("posix r 0 0")
	other.Want("EAGAIN")
	must(t, setlk(a, unix.F_OFD_SETLK, "u", 0, 0))
	must(t, setlk(b, unix.F_OFD_SETLK, "w", 0, 0))
	must(t, b.Close())
	eventually(t, other, "posix w 0 0")
}
