package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// Result is what is compared.
type Result struct {
	Stdout, Stderr string // in a pty both are in Stdout
	Status         string
	Tree           []string // one line for each file left, see snapshot
}

// ErrTimeout: the script did not end.
var ErrTimeout = errors.New("the script did not end in time")

// Runner runs cases in surroundings of its own.
type Runner struct {
	Dir   string   // for the script and its work directory, the same for both runs
	Vars  []string // environment
	Limit time.Duration
}

// await is a function for scripts: it waits for a file and removes it. Not by
// a named pipe, which is not one pipe on both sides.
const await = `await() { until [ -e "$1" ]; do sleep 0.01; done; rm "$1"; }`

// Run runs a case whose $R is command, in a fresh work directory. Whatever
// the script left running is killed; it is an error, as is a script that does
// not end.
func (r Runner) Run(c Case, command string) (Result, error) {
	work, script := filepath.Join(r.Dir, "work"), filepath.Join(r.Dir, "script")
	if err := os.RemoveAll(work); err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(work)
	// One line, so that the shell's messages have the same line numbers.
	text := "R='" + command + "'; " + await + "\n" + c.Script
	err := errors.Join(os.Mkdir(work, 0o755), os.WriteFile(script, []byte(text), 0o644))
	if err != nil {
		return Result{}, err
	}
	cmd := exec.Command("/bin/"+c.Shell, script)
	cmd.Dir, cmd.Env = work, append(r.Vars, "PWD="+work, "TERM=dumb")
	var res Result
	if c.Pty {
		err = r.runPty(cmd, c.Steps, &res)
	} else {
		err = r.runPlain(cmd, &res)
	}
	if err != nil {
		return res, err
	}
	res.Status = status(cmd.ProcessState)
	res.Tree, err = snapshot(work)
	return res, err
}

func (r Runner) runPlain(cmd *exec.Cmd, res *Result) error {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = r.Limit // a process left in the background holds the pipe
	if err := cmd.Start(); err != nil {
		return err
	}
	err := r.wait(cmd)
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	return err
}

// wait waits for the script and sees that its session is empty afterwards.
func (r Runner) wait(cmd *exec.Cmd) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.Limit)
	defer cancel()
	sid := cmd.Process.Pid
	stop := context.AfterFunc(ctx, func() { killSession(sid) })
	err := cmd.Wait()
	if !stop() {
		return ErrTimeout
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = nil
	}
	return errors.Join(err, emptySession(sid))
}

// emptySession waits for what the script left running to end.
func emptySession(sid int) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := session(sid)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			killSession(sid)
			return fmt.Errorf("the script left processes %v running", left)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func killSession(sid int) {
	for _, pid := range session(sid) {
		_ = unix.Kill(pid, unix.SIGKILL) // an error: it is gone
	}
}

// session lists the processes of a session, zombies not among them.
func session(sid int) []int {
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []int
	for _, name := range names {
		data, err := os.ReadFile(name)
		end := bytes.LastIndexByte(data, ')') // the name may hold anything
		if err != nil || end < 0 {
			continue
		}
		f := strings.Fields(string(data[end+1:])) // state ppid pgrp session ...
		if len(f) > 3 && f[3] == strconv.Itoa(sid) && f[0] != "Z" && f[0] != "X" {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

func status(s *os.ProcessState) string {
	w := s.Sys().(syscall.WaitStatus)
	if w.Signaled() {
		return "signal " + unix.SignalName(w.Signal())
	}
	return "exit " + strconv.Itoa(w.ExitStatus())
}

// runPty runs the script as the leader of a session with a new terminal of 24
// by 80.
func (r Runner) runPty(cmd *exec.Cmd, steps []Step, res *Result) error {
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		return err
	}
	defer master.Close()
	screen := newScreen(master)
	played := make(chan error, 1)
	go func() {
		err := screen.play(master, steps, r.Limit)
		if err != nil {
			killSession(cmd.Process.Pid)
		}
		played <- err
	}()
	err = r.wait(cmd)
	screen.close() // ends play as well
	err = errors.Join(<-played, err)
	<-screen.done
	res.Stdout = screen.text()
	if err != nil {
		err = fmt.Errorf("%w; on the terminal: %q", err, res.Stdout)
	}
	return err
}

// screen collects what is written to a terminal.
type screen struct {
	mu    sync.Mutex
	grown *sync.Cond
	data  []byte
	over  bool
	done  chan struct{} // closed when the terminal's last writer is gone
}

func newScreen(master *os.File) *screen {
	s := &screen{done: make(chan struct{})}
	s.grown = sync.NewCond(&s.mu)
	go s.read(master)
	return s
}

func (s *screen) read(master *os.File) {
	defer close(s.done)
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf) // EIO when no slave is open any more
		s.mu.Lock()
		s.data = append(s.data, buf[:n]...)
		s.grown.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.grown.Broadcast()
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.data)
}

// play does the steps in order. Each expect looks only at what came after the
// last one's find.
func (s *screen) play(master *os.File, steps []Step, limit time.Duration) error {
	pos := 0
	for _, step := range steps {
		var err error
		switch step.Verb {
		case "expect":
			pos, err = s.expect(pos, step.Text, limit)
		case "send":
			_, err = master.WriteString(step.Text)
		case "resize":
			err = pty.Setsize(master, &pty.Winsize{Rows: step.Rows, Cols: step.Cols})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *screen) expect(pos int, text string, limit time.Duration) (int, error) {
	late := false
	timer := time.AfterFunc(limit, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.grown.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := bytes.Index(s.data[pos:], []byte(text)); i >= 0 {
			return pos + i + len(text), nil
		}
		if late || s.over {
			return pos, fmt.Errorf("expected %q, which did not come", text)
		}
		s.grown.Wait()
	}
}
