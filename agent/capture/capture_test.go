package capture

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"rexec/rer"
)

// stage is what testdata/probe does: "odd"
// puts itself into the state that state describes and becomes "capture", which
// prints what it captures to resultFD.
const (
	stage    = "CAPTURE_STAGE"
	stateVar = "CAPTURE_STATE"
	resultFD = "CAPTURE_RESULT"
)

// state is what the captured process inherits.
type state struct {
	Mask, Ignored uint64
	Nofile        unix.Rlimit
	Umask, Nice   int
	Close         []int    // descriptors
	Dup           [][2]int // from, to
	Many          int      // copies of descriptor 0
	Keep          int      // descriptors from 3 on that are inherited
	Env           [][]byte
	Argv0         string
	Persona       uintptr
	Release       bool
}

type result struct {
	Request  rer.Request
	Files    int
	Tty      bool
	Notes    []string
	Refused  *rer.Refused
	Released []int // what is open afterwards
	Error    string
}

// probe is the path of the program in testdata/probe.
var probe string

func TestMain(m *testing.M) {
	code, err := withProbe(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withProbe(do func() int) (int, error) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	probe = filepath.Join(dir, "probe")
	if out, err := exec.Command("go", "build", "-ldflags=-E=rexec/agent/capture.entry", "-o", probe, "./testdata/probe").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return do(), nil
}

// run captures in a child with state s; files become its descriptors 3...
func run(t *testing.T, s state, prepare func(*exec.Cmd), files ...*os.File) result {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "result")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.Keep = len(files)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(probe)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = append(files, out)
	cmd.Env = []string{stage + "=odd", stateVar + "=" + string(b), fmt.Sprint(resultFD, "=", 3+len(files))}
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	b, err = os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%v: %q", err, b)
	}
	if r.Error != "" {
		t.Fatal(r.Error)
	}
	return r
}

func numbers(r result) (fds []int) {
	for _, fd := range r.Request.FDs {
		fds = append(fds, int(fd.Num))
	}
	return fds
}

// What the runtime changes is captured as it was.
func TestState(t *testing.T) {
	for _, s := range []state{
		{Umask: 0o22},
		{Umask: 0o777, Nice: 7, Ignored: ^uint64(0) &^ (1<<8 | 1<<18), Mask: ^uint64(0) &^ (1<<8 | 1<<18)},
		{Ignored: 1<<(unix.SIGHUP-1) | 1<<(unix.SIGQUIT-1) | 1<<(unix.SIGPIPE-1), Mask: 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGUSR1-1),
			Nofile: unix.Rlimit{Cur: 100, Max: 1000}, Persona: 0x0040000},
		{Nofile: unix.Rlimit{Cur: 512, Max: 512}},
	} {
		r := run(t, s, nil)
		if len(r.Notes) != 0 {
			t.Fatal(r.Notes)
		}
		got := state{Mask: r.Request.Mask, Ignored: r.Request.Ignored, Umask: int(r.Request.Umask), Nice: r.Request.Nice,
			Persona: uintptr(r.Request.Personality)}
		want := state{Mask: s.Mask, Ignored: s.Ignored, Umask: s.Umask, Nice: s.Nice, Persona: s.Persona}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if len(r.Request.Rlimits) != 16 {
			t.Errorf("%d limits", len(r.Request.Rlimits))
		}
		lim := r.Request.Rlimits[unix.RLIMIT_NOFILE]
		if s.Nofile.Max != 0 && (lim.Cur != s.Nofile.Cur || lim.Max != s.Nofile.Max) {
			t.Errorf("limit of open files %+v, not %+v", lim, s.Nofile)
		}
	}
}

func TestNumbers(t *testing.T) {
	r := run(t, state{}, func(cmd *exec.Cmd) { cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} }).Request
	if r.Pid == 0 || r.Pgrp != r.Pid || r.Sid != r.Pid || int(r.Ppid) != os.Getpid() {
		t.Errorf("pid %d, group %d, session %d, parent %d", r.Pid, r.Pgrp, r.Sid, r.Ppid)
	}
	host, _ := os.Hostname()
	if r.Hostname != host || r.User == "" || int(r.UID) != os.Getuid() {
		t.Errorf("host %q, user %q %d", r.Hostname, r.User, r.UID)
	}
	if r.Terminal != nil {
		t.Error("a session without a terminal has one")
	}
}

// The environment is exact: order, duplicates, entries without a name, bytes
// that are no text. Only our own variables are left out.
func TestEnvironment(t *testing.T) {
	odd := []string{"A=1", "B=2", "A=3", "novalue", "=x", "", "C=\xff\xfe\n", "REXEC_VERBOSE=1", "EMPTY="}
	var env [][]byte
	for _, e := range odd {
		env = append(env, []byte(e))
	}
	r := run(t, state{Env: env, Argv0: "x"}, nil)
	var got []string
	for _, e := range r.Request.Env {
		if !bytes.HasPrefix(e, []byte("CAPTURE_")) {
			got = append(got, string(e))
		}
	}
	want := slices.DeleteFunc(odd, func(s string) bool { return strings.HasPrefix(s, "REXEC_") })
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDirectories(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, state{}, func(cmd *exec.Cmd) { cmd.Dir = dir })
	if string(r.Request.CwdPath) != dir {
		t.Errorf("%q, not %q", r.Request.CwdPath, dir)
	}
	gone := filepath.Join(dir, "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(gone, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	r = run(t, state{}, func(cmd *exec.Cmd) { cmd.Dir = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) })
	if len(r.Request.CwdPath) != 0 {
		t.Errorf("a deleted directory is called %q", r.Request.CwdPath)
	}
}

func socketpair(t *testing.T, typ int) (*os.File, *os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return keep(t, p[0]), keep(t, p[1])
}

// keep wraps a descriptor for the length of the test.
func keep(t *testing.T, fd int) *os.File {
	t.Helper()
	f := os.NewFile(uintptr(fd), fmt.Sprint(fd))
	t.Cleanup(func() { f.Close() })
	return f
}

func openFile(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return keep(t, fd)
}

// Each kind is recognized; numbers that share a description share it.
func TestKinds(t *testing.T) {
	dir := t.TempDir()
	regular := openFile(t, dir+"/regular", unix.O_RDWR|unix.O_CREAT|unix.O_APPEND)
	if _, err := regular.WriteString("seven b"); err != nil {
		t.Fatal(err)
	}
	again := openFile(t, dir+"/regular", unix.O_RDWR|unix.O_APPEND)
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	a, b := socketpair(t, unix.SOCK_STREAM)
	files := []*os.File{regular, again, openFile(t, dir, unix.O_RDONLY), openFile(t, dir+"/regular", unix.O_PATH), pr, pw, a, b,
		openFile(t, "/dev/null", unix.O_RDONLY), openFile(t, "/proc/uptime", unix.O_RDONLY), openFile(t, dir+"/fifo", unix.O_RDWR)}
	want := []rer.Kind{rer.KindRegular, rer.KindRegular, rer.KindDir, rer.KindPath, rer.KindPipe, rer.KindPipe, rer.KindSocket,
		rer.KindSocket, rer.KindDevice, rer.KindRelay, rer.KindRelay}
	r := run(t, state{Dup: [][2]int{{3, 30}, {5, 31}, {3, 32}}}, nil, files...)
	if r.Refused != nil {
		t.Fatal(r.Refused)
	}
	desc := make(map[int32]uint32)
	for _, fd := range r.Request.FDs {
		desc[fd.Num] = fd.Desc
	}
	for i, kind := range want {
		d := r.Request.Descriptions[desc[int32(3+i)]]
		if d.Kind != kind {
			t.Errorf("descriptor %d: kind %d, not %d", 3+i, d.Kind, kind)
		}
	}
	if desc[3] != desc[30] || desc[3] != desc[32] || desc[5] != desc[31] || desc[3] == desc[4] {
		t.Errorf("descriptions %v", desc)
	}
	d := r.Request.Descriptions[desc[3]]
	if d.Offset != 7 || d.Flags&unix.O_APPEND == 0 || d.Flags&unix.O_ACCMODE != unix.O_RDWR || string(d.Path) != dir+"/regular" {
		t.Errorf("regular file: %+v", d)
	}
	if d := r.Request.Descriptions[desc[7]]; d.PipeLen == 0 {
		t.Errorf("pipe: %+v", d)
	}
	if r.Files != len(r.Request.Descriptions) {
		t.Errorf("%d files for %d descriptions", r.Files, len(r.Request.Descriptions))
	}
}

// A descriptor that cannot cross is refused, by number and kind.
func TestRefused(t *testing.T) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	datagram, _ := socketpair(t, unix.SOCK_DGRAM)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/l", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for word, f := range map[string]*os.File{
		"eventpoll": keep(t, epoll), "eventfd": keep(t, event), "memory file": keep(t, memory), "no stream": datagram,
		"listening": listener, "namespace": openFile(t, "/proc/self/ns/uts", unix.O_RDONLY),
		"master": openFile(t, "/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY),
	} {
		r := run(t, state{}, nil, f)
		if r.Refused == nil {
			t.Errorf("%s: not refused: %+v", word, r.Request.Descriptions)
			continue
		}
		if r.Refused.Reason != rer.ReasonDescriptor || !strings.Contains(r.Refused.Text, "descriptor 3 ") || !strings.Contains(r.Refused.Text, word) {
			t.Errorf("%s: %+v", word, r.Refused)
		}
	}
}

// 4,000 numbers of one description are one description.
func TestMany(t *testing.T) {
	r := run(t, state{Many: 4000, Nofile: unix.Rlimit{Cur: 8192, Max: 8192}}, nil)
	if len(r.Request.FDs) < 4001 || r.Files > 4 {
		t.Fatalf("%d numbers, %d descriptions", len(r.Request.FDs), r.Files)
	}
}

// A closed standard descriptor is none of the command's.
func TestClosed(t *testing.T) {
	for _, fds := range [][]int{{0}, {1}, {2}, {0, 1, 2}, {1, 2}} {
		r := run(t, state{Close: fds}, nil)
		var want []int
		for fd := range 3 {
			if !slices.Contains(fds, fd) {
				want = append(want, fd)
			}
		}
		if got := numbers(r); !slices.Equal(got, want) {
			t.Errorf("closed %v, captured %v", fds, got)
		}
	}
}

// After Release only the standard descriptors are open.
func TestRelease(t *testing.T) {
	f := openFile(t, "/dev/null", unix.O_RDONLY)
	r := run(t, state{Dup: [][2]int{{3, 30}}, Release: true}, nil, f, f)
	if !slices.Equal(r.Released, []int{0, 1, 2}) {
		t.Fatalf("open afterwards: %v", r.Released)
	}
	if got := numbers(r); !slices.Equal(got, []int{0, 1, 2, 3, 4, 30}) {
		t.Fatalf("captured: %v", got)
	}
}

// The controlling terminal is known with its settings, under any name.
func TestTerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	foreign, foreignSlave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	defer foreignSlave.Close()
	r := run(t, state{}, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	}, foreignSlave)
	term := r.Request.Terminal
	if term == nil || !r.Tty {
		t.Fatal("no terminal")
	}
	if term.Rows != 33 || term.Cols != 77 || len(term.Termios) != 36 || string(term.Path) != slave.Name() || term.Foreground != r.Request.Pgrp {
		t.Errorf("%+v, group %d", term, r.Request.Pgrp)
	}
	kinds := make(map[int32]rer.Kind)
	for _, fd := range r.Request.FDs {
		kinds[fd.Num] = r.Request.Descriptions[fd.Desc].Kind
	}
	if kinds[0] != rer.KindTerminal || kinds[2] != rer.KindTerminal || kinds[3] != rer.KindRelay {
		t.Errorf("kinds %v", kinds)
	}
}

// Without a symbol table capture says what it does not know.
func TestStripped(t *testing.T) {
	if _, err := search(nil, nil, []string{"x"}); err == nil {
		t.Fatal("found in nothing")
	}
	e := &partialError{errors.New("stripped")}
	if e.Error() != "stripped" {
		t.Fatal(e)
	}
}
