package agent

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/agent/capture"
	"rexec/rer"
)

// defaultPath is where execvp(3) looks without PATH.
const defaultPath = "/bin:/usr/bin"

// runLocal becomes the command, on this machine. It returns only if it
// cannot.
func (a *agent) runLocal() outcome {
	err := a.become()
	a.report(err)
	return outcome{code: exitCode(err)}
}

func (a *agent) become() error {
	argv := a.opt.Argv
	switch {
	case a.opt.Login:
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		argv = []string{shell, "-l"}
	case a.opt.Shell != "":
		argv = []string{"/bin/sh", "-c", a.opt.Shell}
	}
	environ, err := capture.Environment()
	if err != nil {
		return err
	}
	var env []string
	for _, e := range environ {
		if !strings.HasPrefix(string(e), capture.OwnPrefix) {
			env = append(env, string(e))
		}
	}
	runtime.LockOSThread()
	if err := capture.Restore(); err != nil {
		return err
	}
	for _, signo := range a.pending {
		_ = unix.Kill(os.Getpid(), unix.Signal(signo))
	}
	return refuseExec(argv[0], execvp(argv, env, os.Getenv("PATH")))
}

// execvp is execvp(3): it searches a path, and has the shell read a file that
// is no program.
func execvp(argv, env []string, path string) error {
	if strings.Contains(argv[0], "/") {
		return execOrShell(argv[0], argv, env)
	}
	if path == "" {
		path = defaultPath
	}
	err := error(fs.ErrNotExist)
	for dir := range strings.SplitSeq(path, ":") {
		if argv[0] == "" {
			break
		}
		if dir == "" {
			dir = "."
		}
		next := execOrShell(dir+"/"+argv[0], argv, env)
		switch {
		case errors.Is(next, unix.EACCES):
			err = next // unless it is found later
		case errors.Is(next, unix.ENOENT), errors.Is(next, unix.ENOTDIR), errors.Is(next, unix.ESTALE),
			errors.Is(next, unix.ENODEV), errors.Is(next, unix.ETIMEDOUT):
		default:
			return next
		}
	}
	return err
}

func execOrShell(file string, argv, env []string) error {
	err := syscall.Exec(file, argv, env)
	if errors.Is(err, unix.ENOEXEC) {
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", file}, argv[1:]...), env)
	}
	return err
}

// refuseExec says why a command did not start.
func refuseExec(name string, err error) error {
	r := &rer.Refused{Reason: rer.ReasonCannotExec, Text: name + ": " + err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
	if errors.Is(err, fs.ErrNotExist) {
		r.Reason, r.Text = rer.ReasonNotFound, name+": command not found"
	}
	return r
}
