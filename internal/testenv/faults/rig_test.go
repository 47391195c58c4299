package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/internal/testenv"
)

const (
	patience = 90 * time.Second // for what must happen
	goneBy   = 30 * time.Second // for what must go; 5 s where nothing else runs
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if part := parts[os.Args[1]]; part != nil {
			os.Exit(part(os.Args[2:]))
		}
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "FAIL: these tests mount and need to be root")
		os.Exit(1)
	}
	os.Exit(testenv.Main(m))
}

// parts are what the test program plays.
var parts = map[string]func(args []string) int{
	"ssh":   playSSH,
	"peer":  playPeer,
	"walk":  playWalker,
	"crowd": playCrowd,
}

// rig is one test's surroundings, with a program for the parts.
type rig struct {
	*testenv.Env
	t    *testing.T
	self string // this program, by a name of the rig's
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{Env: testenv.New(t), t: t}
	r.self = filepath.Join(r.Binaries.Dir, "part")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// By a child: a descriptor open for writing that a fork inherits would
	// make the program "text file busy".
	if out, err := exec.Command("cp", exe, r.self).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return r
}

// with is the environment and some more.
func (r *rig) with(vars ...string) []string { return append(slices.Clone(r.Vars), vars...) }

// script makes a program of shell text.
func (r *rig) script(name, text string) string {
	r.t.Helper()
	file := filepath.Join(r.Binaries.Dir, name)
	if out, err := shellWrite(file, "#!/bin/sh\n"+text+"\n"); err != nil {
		r.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return file
}

func shellWrite(file, text string) ([]byte, error) {
	cmd := exec.Command("/bin/sh", "-c", `cat >"$0" && chmod 755 "$0"`, file)
	cmd.Stdin = strings.NewReader(text)
	return cmd.CombinedOutput()
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // 128 and the signal, as shells have it
}

func (r result) String() string {
	return fmt.Sprintf("status %d, output %.300q, errors %.600q", r.status, r.stdout, r.stderr)
}

// run runs a command to its end.
func (r *rig) run(cmd *exec.Cmd) result {
	r.t.Helper()
	p := r.start(cmd)
	return p.wait()
}

// rexec runs rexec in these surroundings.
func (r *rig) rexec(vars []string, args ...string) result {
	r.t.Helper()
	cmd := r.Command("rexec", args...)
	cmd.Env = r.with(vars...)
	return r.run(cmd)
}

// running is a command under way.
type running struct {
	r    *rig
	cmd  *exec.Cmd
	out  *buffer
	errs *buffer
	done chan struct{}
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts a command; what the test does not wait for is killed with it.
func (r *rig) start(cmd *exec.Cmd) *running {
	r.t.Helper()
	p := &running{r: r, cmd: cmd, out: new(buffer), errs: new(buffer), done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.errs
	}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		r.t.Fatalf("start %s: %v", cmd.Path, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the status is looked at by wait
	}()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error: it has ended
		<-p.done
	})
	return p
}

// wait gives the end, or fails the test.
func (p *running) wait() result {
	p.r.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.r.t.Fatalf("%s did not end in %v; errors so far: %s", strings.Join(p.cmd.Args, " "), patience, p.errs)
	}
	return result{p.out.String(), p.errs.String(), status(p.cmd.ProcessState)}
}

func status(s *os.ProcessState) int {
	w := s.Sys().(syscall.WaitStatus)
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}

// until waits for a condition.
func (r *rig) until(what string, limit time.Duration, cond func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// process is one of the rig's.
type process struct {
	pid  int
	role string // home, agent, session, init, serve, ssh, ghost; or the program's name
}

// processes finds the rig's own processes by their programs.
func (r *rig) processes() []process {
	var list []process
	names, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, name := range names {
		exe, err := os.Readlink(name)
		if err != nil || !strings.HasPrefix(exe, r.Dir+"/") {
			continue // it ended, or is a kernel thread
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		list = append(list, process{pid, role(pid, filepath.Base(exe))})
	}
	return list
}

func role(pid int, program string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	args := strings.Split(string(b), "\x00")
	verb := ""
	if len(args) > 1 {
		verb = args[1]
	}
	switch {
	case program == "rexec" && string(comm) == "rexec home\n":
		return "home"
	case program == "rexec":
		return "agent"
	case program == "rexecd" && verb == "init" && insidePid(pid) == "1":
		return "init"
	case program == "rexecd" && verb == "init":
		return "ghost"
	case program == "rexecd" && (verb == "stdio" || verb == "session"):
		return "session"
	case program == "rexecd":
		return verb
	case verb == "ssh":
		return "ssh"
	}
	return program
}

// insidePid is a process's number in its own namespace.
func insidePid(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if f := strings.Fields(rest); len(f) > 1 {
				return f[len(f)-1]
			}
		}
	}
	return ""
}

// pidOf gives the number of the only process with a role, 0: none.
func (r *rig) pidOf(role string) int {
	for _, p := range r.processes() {
		if p.role == role {
			return p.pid
		}
	}
	return 0
}

func (r *rig) left(roles ...string) []string {
	var list []string
	for _, p := range r.processes() {
		if len(roles) == 0 || slices.Contains(roles, p.role) {
			list = append(list, fmt.Sprintf("%s %d", p.role, p.pid))
		}
	}
	return list
}

// remains is what a session has outside the rig's own processes.
type remains struct {
	namespace string // of process numbers
	fuse      []string
}

// session notes what the session under way has: its process number namespace
// and the FUSE connections of the view of one of its jobs.
func (r *rig) session() remains {
	r.t.Helper()
	var m remains
	r.until("a job in a session", patience, func() bool {
		init := r.pidOf("init")
		m.namespace, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
		jobs := m.jobs()
		if init == 0 || len(jobs) == 0 {
			return false
		}
		m.fuse = connections(jobs[0])
		return len(m.fuse) > 0
	})
	return m
}

// in lists the processes of the session's namespace.
func (m remains) in() []int {
	var pids []int
	names, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, name := range names {
		if ns, err := os.Readlink(name); err == nil && ns == m.namespace {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// jobs are those of them that are not rexecd's own.
func (m remains) jobs() []int {
	return slices.DeleteFunc(m.in(), func(pid int) bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err != nil || strings.HasSuffix(exe, "/bin/rexecd")
	})
}

// connections are the FUSE connections of a process's mounts.
func connections(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	var list []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - fuse.") || len(f) < 3 {
			continue
		}
		if _, minor, ok := strings.Cut(f[2], ":"); ok {
			list = append(list, minor)
		}
	}
	return list
}

var connectionsDir = sync.OnceValues(func() (string, error) {
	const dir = "/sys/fs/fuse/connections"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", err
	}
	if st.Type == 0x65735543 { // FUSE_CTL_SUPER_MAGIC
		return dir, nil
	}
	// There is one list, wherever it is mounted, and it stays.
	return dir, unix.Mount("none", dir, "fusectl", 0, "")
})

// gone waits until nothing of a session is left.
func (r *rig) gone(m remains) {
	r.t.Helper()
	dir, err := connectionsDir()
	if err != nil {
		r.t.Fatalf("list of FUSE connections: %v", err)
	}
	r.until("no process in the session's namespace", goneBy, func() bool { return len(m.in()) == 0 })
	r.until("no FUSE connection of the session's", goneBy, func() bool {
		return !slices.ContainsFunc(m.fuse, func(c string) bool {
			_, err := os.Stat(filepath.Join(dir, c))
			return !errors.Is(err, os.ErrNotExist)
		})
	})
}

// empty says that the directory for temporary files is.
func (r *rig) empty() {
	r.t.Helper()
	list, err := os.ReadDir(filepath.Join(r.Dir, "tmp"))
	if err != nil || len(list) > 0 {
		r.t.Errorf("temporary files left: %v %v", list, err)
	}
}

var ownLine = regexp.MustCompile(`(?m)^rexec: .+$`)

// says checks that a command said exactly one line of rexec's own, a hint
// aside, which matches pattern, and nothing else.
func (r *rig) says(res result, pattern string) {
	r.t.Helper()
	var lines, hints int
	for line := range strings.Lines(res.stderr) {
		switch {
		case strings.HasPrefix(line, "rexec: "):
			lines++
		case strings.HasPrefix(line, "hint: "):
			hints++
		default:
			r.t.Errorf("unexpected line %q", line)
		}
	}
	if lines != 1 || hints > 1 {
		r.t.Errorf("not one line: %v", res)
	}
	if !regexp.MustCompile(pattern).MatchString(ownLine.FindString(res.stderr)) {
		r.t.Errorf("the line does not match %q: %v", pattern, res)
	}
	if len(res.stderr) > 2000 {
		r.t.Errorf("a line of %d bytes", len(res.stderr))
	}
}

// works sees that the next command is served.
func (r *rig) works(vars []string, host string) {
	r.t.Helper()
	if res := r.rexec(vars, host, "echo works"); res.status != 0 || res.stdout != "works\n" {
		r.t.Errorf("the next command: %v", res)
	}
}

// logged counts the lines of a file in the rig's home.
func (r *rig) logged(name string) int {
	b, _ := os.ReadFile(filepath.Join(r.Home, name))
	return bytes.Count(b, []byte("\n"))
}

func discard(rd io.Reader) { _, _ = io.Copy(io.Discard, rd) }
