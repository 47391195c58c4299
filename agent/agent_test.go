package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/rer"
)

// probe is the program in testdata/probe.
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
	if out, err := exec.Command("go", "build", "-o", probe, "./testdata/probe").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return do(), nil
}

// run is an agent in a process of its own whose home is the test.
type run struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	conn   *homeproto.Conn
	ask    *homeproto.Ask
	files  []*os.File
}

// prepare makes the command; change may alter it.
func prepare(t *testing.T, o Options, change func(*exec.Cmd)) *run {
	t.Helper()
	r := &run{t: t}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command(probe)
	r.cmd.Env = append(os.Environ(), "PROBE_OPTIONS="+string(b))
	r.cmd.Stderr = &r.stderr
	// A group of its own, not orphaned: terminal stops work.
	r.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if change != nil {
		change(r.cmd)
	}
	return r
}

// start begins an agent and receives its ask.
func start(t *testing.T, o Options, change func(*exec.Cmd)) *run {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o.Home = path
	if o.Host == "" {
		o.Host = "eagle"
	}
	if len(o.Argv) == 0 && o.Shell == "" {
		o.Login = true
	}
	r := prepare(t, o, change)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	if err := l.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatalf("%v: %s", err, r.stderr.String())
	}
	r.conn = homeproto.NewConn(c)
	t.Cleanup(func() { r.conn.Close() })
	if r.ask, r.files, err = r.conn.RecvAsk(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.closeFiles)
	return r
}

func (r *run) closeFiles() {
	for _, f := range r.files {
		f.Close()
	}
}

func (r *run) send(answers ...homeproto.Answer) {
	r.t.Helper()
	for i := range answers {
		if err := r.conn.SendAnswer(&answers[i]); err != nil {
			r.t.Fatal(err)
		}
	}
}

// ends waits for the agent's end and compares its status and messages.
func (r *run) ends(want, stderr string) {
	r.t.Helper()
	r.closeFiles() // standard error among them
	got := "exit status 0"
	if err := r.cmd.Wait(); err != nil {
		got = err.Error()
	}
	if got != want {
		r.t.Errorf("ended by %q, not %q", got, want)
	}
	if r.stderr.String() != stderr {
		r.t.Errorf("said %q, not %q", r.stderr.String(), stderr)
	}
}

func (r *run) signal(s unix.Signal) {
	r.t.Helper()
	if err := unix.Kill(r.cmd.Process.Pid, s); err != nil {
		r.t.Fatal(err)
	}
}

// relayed takes the next signal.
func (r *run) relayed() *rer.Signal {
	r.t.Helper()
	for {
		relay, err := r.conn.RecvRelay()
		if err != nil {
			r.t.Fatal(err)
		}
		if relay.Signal != nil {
			return relay.Signal
		}
	}
}

func started() homeproto.Answer { return homeproto.Answer{Started: &rer.Started{Pid: 1}} }

func ended(s rer.Status) homeproto.Answer { return homeproto.Answer{Ended: &rer.Ended{Status: s}} }

func TestStatus(t *testing.T) {
	r := start(t, Options{Argv: []string{"a", "", "\xff"}, Switch: []string{"/usr:/opt/", "x", "/usr"}, Sysid: "me"}, nil)
	q := r.ask.Request
	if len(q.Argv) != 3 || string(q.Argv[2]) != "\xff" && string(q.Argv[2]) != "\ufffd" || r.ask.Target != "eagle" || q.Sysid != "me" {
		t.Errorf("%+v", q)
	}
	if int(q.Pid) != r.cmd.Process.Pid || q.ID == [16]byte{} {
		t.Errorf("pid %d, id %x", q.Pid, q.ID)
	}
	if !slices.Equal(q.Switch, []string{"/usr", "/opt"}) {
		t.Errorf("switch %q", q.Switch)
	}
	r.send(started(), ended(rer.Status{Code: 7}))
	r.ends("exit status 7", "")
}

func TestDeathBySignal(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGSEGV, unix.SIGKILL, unix.SIGQUIT, unix.SIGPIPE, 34, 50} {
		r := start(t, Options{}, nil)
		r.send(started(), ended(rer.Status{Signal: int(s), Core: true}))
		r.ends("signal: "+s.String(), "")
	}
}

func TestRefusals(t *testing.T) {
	for reason, want := range map[rer.Reason]string{rer.ReasonNotFound: "127", rer.ReasonCannotExec: "126", rer.ReasonNoFUSE: "255"} {
		r := start(t, Options{}, nil)
		r.send(homeproto.Answer{Refused: &rer.Refused{Reason: reason, Text: "no\nway", Hint: "try"}})
		r.ends("exit status "+want, "rexec: no way\nhint: try\n")
	}
}

func TestHomeDies(t *testing.T) {
	r := start(t, Options{OrLocal: true, Argv: []string{"echo", "never"}}, nil)
	r.send(started())
	r.conn.Close()
	r.ends("exit status 255", "rexec: the home process died\n")
}

// TestHomeDiesWithTerminal: a home that was killed could not give the terminal
// its settings back; settings that it had given back stay.
func TestHomeDiesWithTerminal(t *testing.T) {
	for _, raw := range []bool{true, false} {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		defer slave.Close()
		before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		r := start(t, Options{}, func(cmd *exec.Cmd) {
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `"$0"; echo ended $?; read x`, probe}
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
		})
		r.send(started())
		set, want := *before, *before
		set.Lflag &^= unix.ECHO
		if raw {
			set.Lflag &^= unix.ICANON | unix.ISIG | unix.IEXTEN
		} else {
			want = set
		}
		if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, &set); err != nil {
			t.Fatal(err)
		}
		r.conn.Close()
		said := bufio.NewReader(master)
		for line := ""; !strings.HasPrefix(line, "ended 255"); {
			if line, err = said.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if now, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS); err != nil || *now != want {
			t.Errorf("raw %v: settings %+v, %v", raw, now, err)
		}
		master.Close()
		_ = r.cmd.Wait()
	}
}

func TestLostLater(t *testing.T) {
	r := start(t, Options{OrLocal: true, Argv: []string{"echo", "never"}}, nil)
	r.send(started(), homeproto.Answer{Refused: &rer.Refused{Reason: rer.ReasonLost, Text: "link lost"}})
	r.ends("exit status 255", "rexec: link lost\n")
}

// From the moment that home has the request, before the command runs and
// while it does, signals are relayed and do nothing else.
func TestSignals(t *testing.T) {
	r := start(t, Options{}, nil)
	check := func(s unix.Signal) {
		t.Helper()
		r.signal(s)
		got := r.relayed()
		if got.Signo != int(s) || int(got.Pid) != os.Getpid() || got.ID != r.ask.Request.ID || got.Group {
			t.Fatalf("%v: %+v", s, got)
		}
	}
	check(unix.SIGHUP)
	check(unix.SIGUSR1)
	check(34)
	r.send(started())
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGSEGV, unix.SIGTSTP, unix.SIGCONT, unix.SIGWINCH,
		unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, 32, 64} {
		check(s)
	}
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGCONT, 40} {
		if err := unix.Kill(-r.cmd.Process.Pid, s); err != nil {
			t.Fatal(err)
		}
		if got := r.relayed(); got.Signo != int(s) || !got.Group {
			t.Fatalf("%v to the group: %+v", s, got)
		}
	}
	r.send(ended(rer.Status{}))
	r.ends("exit status 0", "")
}

func TestStop(t *testing.T) {
	r := start(t, Options{}, nil)
	r.send(started())
	for _, s := range []unix.Signal{unix.SIGTSTP, unix.SIGSTOP, unix.SIGTTIN} {
		r.send(homeproto.Answer{Stopped: &rer.Stopped{Signo: int(s)}})
		var status unix.WaitStatus
		if _, err := unix.Wait4(r.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil {
			t.Fatal(err)
		}
		if !status.Stopped() || status.StopSignal() != s {
			t.Fatalf("%v: status %#x", s, status)
		}
		r.signal(unix.SIGCONT)
		if got := r.relayed(); got.Signo != int(unix.SIGCONT) {
			t.Fatalf("%+v", got)
		}
	}
	r.send(homeproto.Answer{Continued: &rer.Continued{}}, ended(rer.Status{Code: 3}))
	r.ends("exit status 3", "")
}

// A server that does not answer does not hold whoever presses ^C.
func TestPatience(t *testing.T) {
	r := start(t, Options{}, nil)
	r.signal(unix.SIGINT)
	if got := r.relayed(); got.Signo != int(unix.SIGINT) {
		t.Fatalf("%+v", got)
	}
	r.ends("signal: interrupt", "rexec: eagle does not answer; ended by INT\n")
}

// Once home has the request, the agent holds no copy of the command's
// descriptors.
func TestDescriptorsLetGo(t *testing.T) {
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	r := start(t, Options{}, func(cmd *exec.Cmd) { cmd.Stdin = in })
	in.Close()
	r.send(started())
	r.signal(unix.SIGUSR1)
	r.relayed() // the descriptors are let go before that
	r.closeFiles()
	if _, err := feed.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("somebody still reads: %v", err)
	}
	r.send(ended(rer.Status{}))
	r.ends("exit status 0", "")
}

func TestOrLocal(t *testing.T) {
	var out bytes.Buffer
	r := start(t, Options{OrLocal: true, Shell: "read x; echo got $x; exit 9"}, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout = strings.NewReader("input\n"), &out
	})
	r.send(homeproto.Answer{Refused: &rer.Refused{Reason: rer.ReasonUnreachable, Text: "no route"}})
	r.ends("exit status 9", "")
	if out.String() != "got input\n" {
		t.Errorf("%q", out.String())
	}
}

func TestEvents(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	r := start(t, Options{StatusFD: 3, Verbose: 1}, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{write} })
	write.Close()
	for _, fd := range r.ask.Request.FDs {
		if fd.Num == 3 {
			t.Error("the command inherits the status descriptor")
		}
	}
	r.send(homeproto.Answer{Started: &rer.Started{Pid: 5, Taken: []int32{9}, Dropped: []string{"/x"}}}, homeproto.Answer{Note: "hm"},
		ended(rer.Status{Signal: 15, Core: true}))
	b, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	r.ends("signal: terminated", "rexec: process number 9 is taken on eagle\nrexec: eagle does not lend /x\nrexec: hm\n")
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"event":"started","pid":5`) ||
		!strings.HasPrefix(lines[1], `{"event":"ended","signo":15,"signal":"TERM","core":true,`) {
		t.Errorf("%q", lines)
	}
}

func TestStats(t *testing.T) {
	r := start(t, Options{Stats: true}, nil)
	r.send(homeproto.Answer{Stats: &homeproto.Stats{BytesOut: 1, BytesIn: 2, Launch: 1500, Total: 2500, Requests: map[string]uint64{"lookup": 3}}},
		ended(rer.Status{}))
	r.ends("exit status 0", "rexec: launch 1.5 ms, total 2.5 ms, 1 bytes out, 2 bytes in, lookup 3\n")
}

func TestDump(t *testing.T) {
	r := prepare(t, Options{Host: "eagle", DumpRER: true, Argv: []string{"a", "b c"}}, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "X=\xff") })
	out, err := r.cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Argv, Env    []string
		Umask        string
		Mask         []string
		FDs          []struct{ Num, Desc int }
		Descriptions []struct{ Kind string }
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Argv, []string{"a", "b c"}) || !slices.Contains(got.Env, `X=\xff`) || len(got.Umask) != 4 ||
		len(got.FDs) < 3 || got.Descriptions[0].Kind != "device" {
		t.Errorf("%+v", got)
	}
}

// Many first commands at once start one home, which is nobody's child.
func TestStartHome(t *testing.T) {
	dir := t.TempDir()
	alive := filepath.Join(dir, "alive")
	if err := os.WriteFile(alive, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Host: "eagle", Login: true, Home: filepath.Join(dir, "s"), HomeStart: []string{"/proc/self/exe", "home"}}
	const agents = 8
	said := make([]string, agents)
	var all sync.WaitGroup
	for i := range agents {
		all.Go(func() {
			r := prepare(t, o, func(cmd *exec.Cmd) {
				cmd.Env = append(cmd.Env, "PROBE_ALIVE="+alive)
				cmd.Stdin = nil
			})
			r.cmd.Stderr = nil
			out, err := r.cmd.Output()
			if err == nil || err.Error() != "exit status 42" {
				t.Errorf("%v", err)
			}
			said[i] = string(out)
		})
	}
	all.Wait()
	for _, s := range said {
		if s == "" || s != said[0] {
			t.Fatalf("homes %q", said)
		}
	}
	if err := os.Remove(alive); err != nil {
		t.Fatal(err)
	}
	c, err := homeproto.Dial(o.Home)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.RecvAnswer(); err == nil { // it ends
		t.Fatal("home answers nothing")
	}
}

func TestNoHome(t *testing.T) {
	r := prepare(t, Options{Host: "eagle", Login: true, NoHome: true}, nil)
	out, err := r.cmd.Output()
	_ = out
	if err == nil || err.Error() != "exit status 42" || strings.TrimSpace(string(out)) != fmt.Sprint(r.cmd.Process.Pid) {
		t.Fatalf("%v %q", err, out)
	}
}

func TestUnknownHost(t *testing.T) {
	r := prepare(t, Options{Host: "unknown", Login: true}, nil)
	_ = r.cmd.Start()
	r.ends("exit status 255", "rexec: unknown host\nhint: add it\n")
}

// Local commands: execvp's rules, the shells' exit statuses, and what was
// inherited.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "rxscript")
	if err := os.WriteFile(script, []byte("echo rxscript $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o      Options
		out    string
		status string
	}{
		{Options{Argv: []string{"sh", "-c", "echo $#-$1", "x", ""}}, "1-\n", "exit status 0"},
		{Options{Shell: "echo a | cat; exit 3"}, "a\n", "exit status 3"},
		{Options{Argv: []string{"rxscript", "arg"}}, "rxscript arg\n", "exit status 0"},
		{Options{Argv: []string{script, "arg"}}, "rxscript arg\n", "exit status 0"},
		{Options{Argv: []string{"nonesuch"}}, "", "exit status 127"},
		{Options{Argv: []string{""}}, "", "exit status 127"},
		{Options{Argv: []string{"plain"}}, "", "exit status 126"},
		{Options{Argv: []string{dir}}, "", "exit status 126"},
		{Options{Shell: "kill -TERM $$"}, "", "signal: terminated"},
		{Options{Shell: "pwd", Chdir: "/usr"}, "/usr\n", "exit status 0"},
		{Options{Shell: "cat", NoStdin: true}, "", "exit status 0"},
	} {
		c.o.Host = "local"
		r := prepare(t, c.o, func(cmd *exec.Cmd) {
			cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH")+":"+dir)
			cmd.Stdin = strings.NewReader("input")
		})
		out, err := r.cmd.Output()
		status := "exit status 0"
		if err != nil {
			status = err.Error()
		}
		if string(out) != c.out || status != c.status {
			t.Errorf("%q %q: %q, %s, %s", c.o.Argv, c.o.Shell, out, status, r.stderr.String())
		}
	}
}

func TestLocalInherits(t *testing.T) {
	const look = `grep -E "^Sig(Ign|Blk)" /proc/self/status; ulimit -Sn; ulimit -Hn; umask; env | grep -c REXEC_X`
	script := fmt.Sprintf(`trap "" TERM PIPE HUP QUIT; ulimit -Hn 900; ulimit -Sn 90; umask 27; export REXEC_X=1; %s; unset REXEC_X; REXEC_X=1 exec "$0"`,
		"(unset REXEC_X; "+look+")")
	r := prepare(t, Options{Host: "local", Shell: look}, nil)
	r.cmd.Path, r.cmd.Args = "/bin/sh", []string{"/bin/sh", "-c", script, probe}
	out, _ := r.cmd.Output() // grep -c finds nothing, and fails
	half := len(out) / 2
	if half < 40 || string(out[:half]) != string(out[half:]) {
		t.Fatalf("%q, %s", out, r.stderr.String())
	}
}

func TestSwitchList(t *testing.T) {
	list, bad := switchList([]string{"/usr::/opt/x/", "", "rel:/usr/", ":"})
	if !slices.Equal(list, []string{"/usr", "/opt/x"}) || !slices.Equal(bad, []string{"rel"}) {
		t.Fatalf("%q, %q", list, bad)
	}
}
