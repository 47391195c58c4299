package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// busy is a job with everything that is hard to end: it hears no hangup, reads
// and writes the view all the time, in a process group and a session of its
// own too, and has a terminal. It says when it is on its way.
const busy = `trap "" HUP TERM INT QUIT
echo run >>ran
(while :; do cat tree/*; sleep 0.01; done >/dev/null) &
setsid sh -c 'while :; do find . -type f -exec cat {} +; sleep 0.02; done >/dev/null 2>&1' &
(while :; do echo line >>log; sleep 0.01; done) &
setsid sleep 1000 &
stty -a >/dev/null
echo under way
wait`

// terminalJob is an agent on a terminal of its own.
type terminalJob struct {
	*running
	screen *buffer
}

// terminal starts a command on a terminal; its standard error is a pipe.
func (r *rig) terminal(cmd *exec.Cmd) *terminalJob {
	r.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	defer slave.Close()
	r.t.Cleanup(func() { master.Close() })
	cmd.Stdin, cmd.Stdout = slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	j := &terminalJob{running: r.start(cmd), screen: new(buffer)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			j.screen.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return j
}

// trees gives the busy job files to read.
func (r *rig) trees() {
	r.t.Helper()
	dir := filepath.Join(r.Home, "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range strings.Fields("a b c d e f") {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 100_000), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
}

// serve starts rexecd serve and gives the name of the host that it is.
func (r *rig) serve(config string) (*running, string) {
	r.t.Helper()
	socket := filepath.Join(r.Dir, "socket")
	file := filepath.Join(r.Dir, "rexecd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		r.t.Fatal(err)
	}
	p := r.start(r.Command("rexecd", "serve", "--config", file, "--listen", "unix:"+socket))
	r.until("rexecd listens", patience, func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return p, "unix:" + socket
}

// host gives a way to a server by name, and the variables that it needs.
func (r *rig) host(way string) (host string, vars []string) {
	switch way {
	case "serve":
		_, host = r.serve("")
		return host, nil
	case "ssh":
		return "ssh://there", []string{"REXEC_SSH=" + r.self + " ssh " + r.Rexecd}
	}
	return "loopback", nil
}

// TestKillWhileRunning kills each process of the path while a busy job runs.
func TestKillWhileRunning(t *testing.T) {
	for _, c := range []struct{ role, way, says string }{
		{"agent", "loopback", ""},
		{"agent", "serve", ""},
		{"home", "loopback", "home"},
		{"session", "loopback", "while the command ran"},
		{"session", "serve", "while the command ran"},
		{"init", "loopback", "."},
		{"ssh", "ssh", "while the command ran"},
	} {
		t.Run(c.role+" "+c.way, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.trees()
			host, vars := r.host(c.way)
			cmd := r.Command("rexec", host, busy)
			cmd.Env = r.with(vars...)
			j := r.terminal(cmd)
			r.until("the job is under way", patience, func() bool { return strings.Contains(j.screen.String(), "under way") })
			m := r.session()
			victim := cmd.Process.Pid
			if c.role != "agent" {
				victim = r.pidOf(c.role)
			}
			if victim == 0 {
				t.Fatalf("no %s among %v", c.role, r.left())
			}
			if err := unix.Kill(victim, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r.afterKill(j.running, m, c.role, c.says)
			if n := r.logged("ran"); n != 1 {
				t.Errorf("the job ran %d times", n)
			}
			r.works(vars, host)
			r.empty()
		})
	}
}

// afterKill checks that a killed process left nothing and that the others said
// why.
func (r *rig) afterKill(p *running, m remains, role, says string) {
	r.t.Helper()
	res := p.wait()
	if role == "agent" {
		if res.status != 128+9 || res.stderr != "" {
			r.t.Errorf("the agent: %v", res)
		}
		// Home, link and session stay for the next command.
		r.until("no process of the job", goneBy, func() bool { return len(m.jobs()) == 0 })
		return
	}
	if res.status != 255 && !(role == "init" && res.status == 128+9) {
		r.t.Errorf("status: %v", res)
	}
	if res.status == 255 {
		r.says(res, says)
	}
	r.gone(m)
}

// TestKillWhileStarting kills each process of the path as soon as there is
// one, or some time later.
func TestKillWhileStarting(t *testing.T) {
	for _, c := range []struct {
		role, way string
		after     time.Duration // from when the victim is there
	}{
		{"agent", "loopback", 0},
		{"agent", "loopback", 60 * time.Millisecond},
		{"home", "loopback", 0},
		{"home", "loopback", 40 * time.Millisecond},
		{"session", "loopback", 0},
		{"session", "loopback", 40 * time.Millisecond},
		{"init", "loopback", 0},
		{"init", "loopback", 30 * time.Millisecond},
		{"ssh", "ssh", 20 * time.Millisecond},
	} {
		t.Run(c.role+" "+c.after.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.trees()
			host, vars := r.host(c.way)
			cmd := r.Command("rexec", host, busy)
			cmd.Env = r.with(vars...)
			p := r.start(cmd)
			victim := cmd.Process.Pid
			r.until("a "+c.role, patience, func() bool {
				if c.role != "agent" {
					victim = r.pidOf(c.role)
				}
				return victim != 0
			})
			time.Sleep(c.after) // any moment is right
			if err := unix.Kill(victim, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			res := p.wait()
			switch {
			case c.role == "agent":
				if res.status != 128+9 {
					t.Errorf("the agent: %v", res)
				}
			case c.role == "init" && res.status == 128+9:
			case res.status != 255:
				t.Errorf("status: %v", res)
			default:
				r.says(res, ".")
			}
			if n := r.logged("ran"); n > 1 {
				t.Errorf("the job ran %d times", n)
			}
			r.works(vars, host)
			r.jobless()
			r.empty()
		})
	}
}

// jobless waits until no session of the rig's has a job.
func (r *rig) jobless() {
	r.t.Helper()
	r.until("no job", goneBy, func() bool {
		for _, p := range r.processes() {
			if p.role != "init" {
				continue
			}
			m := remains{}
			m.namespace, _ = os.Readlink("/proc/" + itoa(p.pid) + "/ns/pid")
			if m.namespace != "" && len(m.jobs()) > 0 {
				return false
			}
		}
		return true
	})
}

// TestKillServe kills rexecd serve: running sessions go on, a new one can be
// started in its place without any cleaning up.
func TestKillServe(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.trees()
	server, host := r.serve("")
	cmd := r.Command("rexec", host, busy)
	j := r.terminal(cmd)
	r.until("the job is under way", patience, func() bool { return strings.Contains(j.screen.String(), "under way") })
	m := r.session()
	if err := server.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	server.wait()
	before := r.logged("log")
	r.until("the job goes on", patience, func() bool { return r.logged("log") > before })
	if err := os.Rename(filepath.Join(r.Dir, "socket"), filepath.Join(r.Dir, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.Dir, "old"), filepath.Join(r.Dir, "socket")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.Dir, "rexecd.toml")
	again := r.start(r.Command("rexecd", "serve", "--config", file, "--listen", host))
	r.until("rexecd listens again", patience, func() bool { return strings.Contains(again.errs.String(), "listening") })
	// Another link, to the new one.
	if res := r.rexec(nil, "--no-home", host, "echo works"); res.status != 0 || res.stdout != "works\n" {
		t.Errorf("by the new rexecd: %v", res)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.afterKill(j.running, m, "agent", "")
	r.empty()
}
