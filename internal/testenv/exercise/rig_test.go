package exercise

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rexec/internal/testenv"
)

// long is set by `scripts/test long`.
var long = os.Getenv("REXEC_TEST_LONG") != ""

var seedFlag = flag.Int64("seed", seedOf(os.Getenv("REXEC_TEST_SEED")), "of the sequence of operations; 0 for a new one")

// answerLimit is how long a worker may take for one operation, far more than
// any does.
const answerLimit = 60 * time.Second

func TestMain(m *testing.M) {
	// Tests wait for other processes more than they work.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(testenv.Main(m))
}

func seedOf(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// times is n, or many in a long run.
func times(n, many int) int {
	if long {
		return many
	}
	return n
}

// rig is a rexec home of a test's own and a directory to work in.
type rig struct {
	*testenv.Env
	t   *testing.T
	dir string // shown by the view
}

// newRig has the test run beside others: most of its time it waits.
func newRig(t *testing.T) *rig {
	t.Helper()
	t.Parallel()
	r := &rig{Env: testenv.New(t), t: t}
	r.dir = filepath.Join(r.Dir, "d")
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// job is a command that runs as a job, in the directory of the rig.
func (r *rig) job(args ...string) *exec.Cmd {
	cmd := r.Command("rexec", append([]string{"loopback"}, args...)...)
	cmd.Dir = r.dir
	return cmd
}

func (r *rig) local(args ...string) *exec.Cmd {
	cmd := r.Command(args[0], args[1:]...)
	cmd.Dir = r.dir
	return cmd
}

// both runs shell text directly and as a job, each in a new directory, and
// returns what each printed and its status.
func (r *rig) both(text string) (direct, job string) {
	r.t.Helper()
	run := func(make func(...string) *exec.Cmd) string {
		dir, err := os.MkdirTemp(r.dir, "both")
		if err != nil {
			r.t.Fatal(err)
		}
		cmd := make("/bin/sh", "-c", text)
		cmd.Dir = dir
		out, err := output(cmd)
		return fmt.Sprintf("%s%v", strings.ReplaceAll(out, dir, "DIR"), err)
	}
	return run(r.local), run(r.job)
}

// output is all that a command printed, and how it ended. One that hangs is
// killed.
func output(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // what it started may hold its pipes
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(2*answerLimit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	return out.String(), err
}

// must runs a command that must succeed and returns what it printed.
func (r *rig) must(cmd *exec.Cmd) string {
	r.t.Helper()
	out, err := output(cmd)
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return out
}

// worker is a process that runs testdata/worker.c.
type worker struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	err  bytes.Buffer
}

var program = sync.OnceValues(func() (string, error) {
	name := filepath.Join(os.TempDir(), "worker")
	out, err := exec.Command("gcc", "-O2", "-o", name, "testdata/worker.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gcc worker.c: %w\n%s", err, out)
	}
	return name, nil
})

// start starts a worker in a directory, by one of job and local.
func (r *rig) start(name string, make func(...string) *exec.Cmd, dir string) *worker {
	r.t.Helper()
	prog, err := program()
	if err != nil {
		r.t.Fatal(err)
	}
	w := &worker{t: r.t, name: name, cmd: make(prog, dir)}
	w.cmd.Stderr = &w.err
	w.cmd.WaitDelay = time.Second
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(w.stop)
	return w
}

// stop ends a worker that still runs.
func (w *worker) stop() {
	if w.cmd.ProcessState != nil {
		return
	}
	w.in.Close()
	if w.t.Failed() {
		_ = w.cmd.Process.Kill() // it may wait for what never comes
	}
	timer := time.AfterFunc(answerLimit, func() { _ = w.cmd.Process.Kill() })
	defer timer.Stop()
	if err := w.cmd.Wait(); err != nil && !w.t.Failed() {
		w.t.Errorf("%s: %v\n%s", w.name, err, w.err.Bytes())
	}
}

// do has the worker do one operation and returns its answer.
func (w *worker) do(op string, args ...any) string {
	w.t.Helper()
	w.ask(op, args...)
	return w.answer()
}

func (w *worker) ask(op string, args ...any) {
	w.t.Helper()
	line := op
	for _, a := range args {
		line += fmt.Sprintf(" %v", a)
	}
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		w.t.Fatalf("%s: %s: %v\n%s", w.name, line, err, w.err.Bytes())
	}
}

func (w *worker) answer() string {
	w.t.Helper()
	timer := time.AfterFunc(answerLimit, func() { _ = w.cmd.Process.Kill() })
	line, err := w.out.ReadString('\n')
	if !timer.Stop() {
		w.t.Fatalf("%s: no answer in %v", w.name, answerLimit)
	}
	if err != nil {
		waited := w.cmd.Wait()
		w.t.Fatalf("%s: no answer: %v; %v\n%s", w.name, err, waited, w.err.Bytes())
	}
	return strings.TrimSuffix(line, "\n")
}

// ok has the worker do an operation that must succeed.
func (w *worker) ok(op string, args ...any) string {
	w.t.Helper()
	answer := w.do(op, args...)
	if answer != "ok" && !strings.HasPrefix(answer, "ok ") {
		w.t.Fatalf("%s: %s %v: %s", w.name, op, args, answer)
	}
	return answer
}
