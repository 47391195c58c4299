package signals

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe names what a copy of the test binary does instead of testing.
const probe = "SIGNALS_PROBE"

func TestMain(m *testing.M) {
	do, arg, _ := strings.Cut(os.Getenv(probe), ":")
	switch do {
	case "die":
		n, err := Parse(arg)
		if err != nil {
			panic(err)
		}
		if _, err := Catch(); err != nil {
			panic(err)
		}
		os.Exit(DieBy(n))
	case "stop":
		n, _ := Parse(arg)
		if _, err := Catch(); err != nil {
			panic(err)
		}
		if err := StopSelf(n); err != nil {
			panic(err)
		}
		os.Exit(7)
	case "catch":
		os.Exit(catchProbe())
	case "witness":
		os.Exit(witnessProbe())
	}
	os.Exit(m.Run())
}

// catchProbe prints every signal until TERM comes.
func catchProbe() int {
	s, err := Catch()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	for {
		i, err := s.Next()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(i.Signo, i.Code, i.Pid == int32(os.Getppid()), i.Value)
		if i.Signo == int(unix.SIGTERM) {
			return 0
		}
	}
}

// witnessProbe prints every signal, and whether it went to the group, until
// TERM comes.
func witnessProbe() int {
	s, err := Catch()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	w, err := NewWitness()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer w.Close()
	fmt.Println("ready")
	for {
		i, err := s.Next()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(i.Signo, w.Saw(i))
		if i.Signo == int(unix.SIGTERM) {
			return 0
		}
	}
}

// Signals to the group are told from those to the process, every time.
func TestWitness(t *testing.T) {
	cmd := child(t, "witness")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	r := &lines{r: out}
	if got := r.next(t); got != "ready" {
		t.Fatal(got)
	}
	for i := range 300 {
		for _, n := range []unix.Signal{unix.SIGHUP, unix.SIGCONT, unix.SIGTSTP, unix.SIGUSR1, 40} {
			to, group := cmd.Process.Pid, i%2 == 0
			if group {
				to = -to
			}
			if err := unix.Kill(to, n); err != nil {
				t.Fatal(err)
			}
			if got, want := r.next(t), fmt.Sprint(int(n), group); got != want {
				t.Fatalf("%d: %q, not %q", i, got, want)
			}
		}
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := r.next(t); got != fmt.Sprint(15, true) {
		t.Fatal(got)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	// Nobody is left in the group.
	if err := unix.Kill(-cmd.Process.Pid, 0); err != unix.ESRCH {
		t.Fatalf("the group lives: %v", err)
	}
}

func child(t *testing.T, what string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), probe+"="+what)
	return cmd
}

func TestNames(t *testing.T) {
	for s, want := range map[string]int{"TERM": 15, "SIGTERM": 15, "term": 15, "9": 9, "RTMIN": 34, "sigrtmin+3": 37,
		"RTMAX-1": 63, "RTMAX": 64, "0": 0} {
		if n, err := Parse(s); err != nil || n != want {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "TERMX", "65", "-1", "RTMIN+99", "RTMAX+1"} {
		if n, err := Parse(s); err == nil {
			t.Errorf("%q: %d", s, n)
		}
	}
	for n := 1; n <= Count; n++ {
		if back, err := Parse(Name(n)); err != nil || back != n {
			t.Errorf("%d is %q is %d, %v", n, Name(n), back, err)
		}
	}
}

// Every fatal signal kills, silently.
func TestDieBy(t *testing.T) {
	harmless := map[unix.Signal]bool{unix.SIGCHLD: true, unix.SIGCONT: true, unix.SIGURG: true, unix.SIGWINCH: true,
		unix.SIGSTOP: true, unix.SIGTSTP: true, unix.SIGTTIN: true, unix.SIGTTOU: true}
	for n := 1; n <= Count; n++ {
		if harmless[unix.Signal(n)] {
			continue
		}
		out, err := child(t, fmt.Sprintf("die:%d", n)).CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok {
			t.Fatalf("%s: %v", Name(n), err)
		}
		status := exit.Sys().(interface{ Signal() unix.Signal })
		if int(status.Signal()) != n || len(out) != 0 {
			t.Errorf("%s: %v, output %q", Name(n), err, out)
		}
	}
	if out, err := child(t, "die:WINCH").CombinedOutput(); err == nil || err.Error() != "exit status 156" || len(out) != 0 {
		t.Errorf("WINCH: %v %q", err, out)
	}
}

// A stop by a terminal signal is seen by the parent, and ends with CONT.
func TestStopSelf(t *testing.T) {
	for _, n := range []unix.Signal{unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		cmd := child(t, fmt.Sprintf("stop:%d", n))
		// A group of its own whose leader's parent is in the same session is
		// not orphaned.
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil {
			t.Fatal(err)
		}
		if !status.Stopped() || status.StopSignal() != n {
			t.Fatalf("%v: status %#x", n, status)
		}
		if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || err.Error() != "exit status 7" {
			t.Fatalf("%v: %v", n, err)
		}
	}
}

// Every catchable signal arrives, in number, with sender and value; those too
// that are blocked or ignored on entry. Faults of its own and preemption
// signals, which keep coming, do not.
func TestCatch(t *testing.T) {
	runtime.LockOSThread()
	before, err := Mask()
	if err != nil {
		t.Fatal(err)
	}
	// The child inherits a mask and an ignored signal.
	if err := SetMask(before | 1<<(unix.SIGUSR1-1)); err != nil {
		t.Fatal(err)
	}
	var old action
	if err := sigaction(int(unix.SIGUSR2), &action{handler: ign}, &old); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, "catch")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startErr := cmd.Start()
	_ = sigaction(int(unix.SIGUSR2), &old, nil)
	_ = SetMask(before)
	runtime.UnlockOSThread()
	if startErr != nil {
		t.Fatal(startErr)
	}
	r := &lines{r: out}
	if got := r.next(t); got != "ready" {
		t.Fatal(got)
	}
	for n := 1; n <= Count; n++ {
		if !catchable(n) || n == int(unix.SIGTERM) {
			continue
		}
		if err := unix.Kill(cmd.Process.Pid, unix.Signal(n)); err != nil {
			t.Fatal(err)
		}
		if got, want := r.next(t), fmt.Sprint(n, 0, true, 0); got != want {
			t.Fatalf("%s: %q, not %q", Name(n), got, want)
		}
	}
	for v := range uint64(200) {
		queue(t, cmd.Process.Pid, 40, v+0xdeadbeef)
	}
	for v := range uint64(200) {
		if got, want := r.next(t), fmt.Sprint(40, -1, true, v+0xdeadbeef); got != want {
			t.Fatalf("queued: %q, not %q", got, want)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := r.next(t); got != fmt.Sprint(15, 0, true, 0) {
		t.Fatal(got)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func queue(t *testing.T, pid, signo int, value uint64) {
	t.Helper()
	var info [infoSize]byte
	put := func(at int, v uint32) { *(*uint32)(unsafe.Pointer(&info[at])) = v }
	put(0, uint32(signo))
	put(8, ^uint32(0)) // SI_QUEUE
	put(16, uint32(os.Getpid()))
	put(20, uint32(os.Getuid()))
	put(24, uint32(value))
	put(28, uint32(value>>32))
	_, _, errno := unix.RawSyscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(pid), uintptr(signo), uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		t.Fatal(errno)
	}
}

// lines reads one line at a time, nothing beyond.
type lines struct{ r io.Reader }

func (l *lines) next(t *testing.T) string {
	t.Helper()
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(l.r, b[:]); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// The runtime goes on to work under the handler: preemption, and a fault that
// becomes a panic.
func TestCatchKeepsRuntime(t *testing.T) {
	s, err := Catch()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if _, err := Catch(); err == nil {
		t.Fatal("caught twice")
	}
	var done atomic.Bool
	go func() {
		for !done.Load() {
		}
	}()
	for range 20 {
		runtime.GC() // stops the loop by preemption
	}
	done.Store(true)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		var p *int
		*p = 1
	}()
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	got := make(chan Info, 1)
	go func() {
		i, _ := s.Next()
		got <- i
	}()
	select {
	case i := <-got:
		if i.Signo != int(unix.SIGUSR1) || int(i.Pid) != os.Getpid() {
			t.Fatalf("%+v", i)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no signal")
	}
}

func TestParseInfo(t *testing.T) {
	terminal := Info{Signo: int(unix.SIGINT), Code: CodeKernel}
	if !terminal.FromTerminal() || (Info{Signo: int(unix.SIGINT)}).FromTerminal() {
		t.Fatal("wrong origin")
	}
	if !own(Info{Signo: int(unix.SIGCHLD), Code: 1}) || own(Info{Signo: int(unix.SIGCHLD)}) {
		t.Fatal("wrong owner")
	}
}

func TestIgnore(t *testing.T) {
	var old action
	if err := sigaction(int(unix.SIGUSR2), nil, &old); err != nil {
		t.Fatal(err)
	}
	defer sigaction(int(unix.SIGUSR2), &old, nil)
	const bit = 1 << (unix.SIGUSR2 - 1)
	if err := Ignore(bit); err != nil {
		t.Fatal(err)
	}
	if set, err := Ignored(); err != nil || set&bit == 0 {
		t.Fatalf("%#x, %v", set, err)
	}
}
