// Package testenv gives tests the real programs in surroundings of their own,
// and looks for what they left behind.
//
// [Main] belongs in a package's TestMain: it sets TMPDIR to a directory of the
// test process's own, so that whatever lies there is that process's, and fails
// the run if, after it, a FUSE mount, a process, a socket or a temporary
// directory is left. [Build] makes rexec and rexecd. [New] gives a test a home
// directory and a run-time directory, and so a `rexec home` of its own, which
// is ended with the test.
//
// Nothing here skips: a test that cannot run on a machine fails with the
// reason.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Binaries are the programs under test, where this test process has them.
type Binaries struct {
	Dir    string // holds both; fit for PATH
	Rexec  string
	Rexecd string
}

var state struct {
	tmp string // TMPDIR of this process, "" without Main
}

// Main runs a package's tests in a TMPDIR of their own and returns the exit
// code: not 0 if one failed, or if they left something behind. TestMain hands
// it to os.Exit.
func Main(m *testing.M) int {
	// Short: socket addresses hold 107 bytes.
	tmp, err := os.MkdirTemp("", "rxt")
	if err != nil {
		return report(err)
	}
	defer os.RemoveAll(tmp)
	// Other ids must be able to pass, not to list.
	if err := os.Chmod(tmp, 0o711); err != nil {
		return report(err)
	}
	if err := os.Setenv("TMPDIR", tmp); err != nil {
		return report(err)
	}
	state.tmp = tmp
	code := m.Run()
	if left := waitGone(func() []string { return leftovers(tmp) }); left != nil {
		return report(left)
	}
	return code
}

func report(err error) int {
	fmt.Fprintln(os.Stderr, "FAIL: testenv:", err)
	return 1
}

// Root is the top directory of the source tree.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Build makes rexec and rexecd, once for each test process. Packages tested at
// the same time share the compilation; each process has its own copies, by
// which its processes can be told from others'.
func Build(t testing.TB) Binaries {
	t.Helper()
	if state.tmp == "" {
		t.Fatal("the package's TestMain does not call testenv.Main")
	}
	b, err := buildOnce()
	if err != nil {
		t.Fatalf("build the programs under test: %v", err)
	}
	return b
}

// entryFlag has rexec see, before Go's runtime opens /dev/null for them, which
// of the descriptors 0, 1 and 2 were closed (package agent/capture).
const entryFlag = "-ldflags=rexec/cmd/rexec=-E=rexec/agent/capture.entry"

var buildOnce = sync.OnceValues(build)

func build() (Binaries, error) {
	shared := filepath.Join(Root(), "bin", "testing")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return Binaries{}, err
	}
	lock, err := os.OpenFile(filepath.Join(shared, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return Binaries{}, err
	}
	defer lock.Close() // gives the lock back
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Binaries{}, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	cmd := exec.Command("go", "build", entryFlag, "-o", shared+"/", "./cmd/rexec", "./cmd/rexecd")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return copyTo(filepath.Join(state.tmp, "bin"), shared)
}

func copyTo(dir, from string) (Binaries, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	b := at(dir)
	for _, name := range []string{"rexec", "rexecd"} {
		if err := copyProgram(filepath.Join(dir, name), filepath.Join(from, name)); err != nil {
			return Binaries{}, err
		}
	}
	return b, nil
}

// copyProgram leaves the writing to a child: a descriptor open for writing
// that a fork elsewhere in this process inherits would make the program "text
// file busy".
func copyProgram(to, from string) error {
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp %s: %w: %s", from, err, out)
	}
	return nil
}

// Env is a test's own surroundings: no other test's rexec home is met here.
type Env struct {
	Binaries
	Dir  string   // everything below is this test's
	Home string   // $HOME
	Vars []string // the whole environment, for exec.Cmd.Env
}

// New makes surroundings for one test. When it ends, so does its rexec home.
func New(t testing.TB) *Env {
	t.Helper()
	b := Build(t)
	e := Bare(t)
	if err := e.link(b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// Bare is like New, but without the programs: there is an empty directory in
// PATH where they would be.
func Bare(t testing.TB) *Env {
	t.Helper()
	if state.tmp == "" {
		t.Fatal("the package's TestMain does not call testenv.Main")
	}
	dir, err := os.MkdirTemp("", "e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's directory: %v", err)
		}
	})
	bin := filepath.Join(dir, "bin")
	e := &Env{Dir: dir, Binaries: at(bin)}
	e.Home = filepath.Join(dir, "home")
	run := filepath.Join(dir, "run")
	for _, d := range []string{bin, e.Home, run, filepath.Join(dir, "tmp")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	e.Vars = []string{
		"PATH=" + e.Binaries.Dir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + e.Home,
		"XDG_RUNTIME_DIR=" + run,
		"TMPDIR=" + filepath.Join(dir, "tmp"),
		"LC_ALL=C",
		"SHELL=/bin/sh",
		"USER=root",
		"LOGNAME=root",
		"TZ=UTC",
	}
	return e
}

// Command is a command in these surroundings; a name without a slash is found
// in the PATH there.
func (e *Env) Command(name string, args ...string) *exec.Cmd {
	if name == "rexec" || name == "rexecd" {
		name = filepath.Join(e.Binaries.Dir, name)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = e.Vars
	cmd.Dir = e.Home
	return cmd
}

// Stop ends the rexec home of these surroundings. What has not ended by then
// is killed and reported.
func (e *Env) Stop() error {
	if len(processesOf(e.Dir)) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), goneLimit)
	defer cancel()
	stop := exec.CommandContext(ctx, e.Rexec, "home", "stop")
	stop.Env, stop.Dir = e.Vars, e.Home
	out, err := stop.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("rexec home stop: %w: %s", err, out)
	}
	if left := waitGone(e.left); left != nil {
		return errors.Join(err, left, e.kill())
	}
	return err
}

func (e *Env) kill() error {
	for _, pid := range processesOf(e.Dir) {
		// An error means that it is gone.
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return waitGone(e.left)
}

func (e *Env) left() []string { return describe(processesOf(e.Dir)) }

// link gives the programs names of this test's: by its program's name a
// process can be told from others'.
func (e *Env) link(b Binaries) error {
	return errors.Join(os.Link(b.Rexec, e.Rexec), os.Link(b.Rexecd, e.Rexecd))
}

func at(dir string) Binaries {
	return Binaries{Dir: dir, Rexec: filepath.Join(dir, "rexec"), Rexecd: filepath.Join(dir, "rexecd")}
}
