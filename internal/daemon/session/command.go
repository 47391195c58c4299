package session

import (
	"bytes"
	"path/filepath"
	"strings"
	"syscall"

	"rexec/internal/launch"
	"rexec/rer"
)

const shell = "/bin/sh"

// command is what a request asks to run: its arguments and the programs to
// try, in order.
type command struct {
	argv  [][]byte
	paths [][]byte
}

// newCommand reads a request as execvp(3) and sh(1) would.
func newCommand(r *rer.Request) command {
	switch {
	case r.Login:
		return login(r.Env)
	case r.Shell != nil:
		return command{[][]byte{[]byte("sh"), []byte("-c"), r.Shell}, [][]byte{[]byte(shell)}}
	}
	return command{r.Argv, candidates(r.Argv[0], r.Env)}
}

// login is $SHELL as a login shell.
func login(env [][]byte) command {
	program := shell
	if v, ok := lookup(env, "SHELL"); ok && strings.HasPrefix(v, "/") {
		program = v
	}
	return command{[][]byte{[]byte("-" + filepath.Base(program))}, [][]byte{[]byte(program)}}
}

// candidates gives the names that execvp(3) tries for name.
func candidates(name []byte, env [][]byte) [][]byte {
	if len(name) == 0 || bytes.IndexByte(name, '/') >= 0 {
		return [][]byte{name}
	}
	path, ok := lookup(env, "PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	var list [][]byte
	for _, dir := range strings.Split(path, ":") {
		if dir != "" {
			dir = strings.TrimSuffix(dir, "/") + "/"
		}
		list = append(list, append([]byte(dir), name...))
	}
	return list
}

// script gives the command that runs the program at path as a shell script,
// as execvp(3) does for what the kernel does not know.
func (c command) script(path []byte) command {
	argv := [][]byte{[]byte(shell), path}
	if len(c.argv) > 1 {
		argv = append(argv, c.argv[1:]...)
	}
	return command{argv, [][]byte{[]byte(shell)}}
}

// lookup gives the first value of a variable, as getenv(3) does.
func lookup(env [][]byte, name string) (string, bool) {
	for _, e := range env {
		if v, ok := bytes.CutPrefix(e, []byte(name+"=")); ok {
			return string(v), true
		}
	}
	return "", false
}

// withSwitch gives env with SWITCH holding what was kept, where it was set and
// something was forbidden.
func withSwitch(env [][]byte, kept []string, forbidden bool) [][]byte {
	if !forbidden {
		return env
	}
	list := make([][]byte, len(env))
	for i, e := range env {
		if bytes.HasPrefix(e, []byte("SWITCH=")) {
			e = []byte("SWITCH=" + strings.Join(kept, ":"))
		}
		list[i] = e
	}
	return list
}

// refusal says of a launch that failed what the agent prints.
func refusal(r *rer.Request, f *launch.Failure) *rer.Refused {
	errno := syscall.Errno(f.Errno)
	no := &rer.Refused{ID: r.ID, Errno: f.Errno}
	step, detail, _ := strings.Cut(f.Step, " ")
	switch step {
	case "exec":
		no.Reason, no.Text = execFailure(name(r), errno)
		if errno == syscall.ENOEXEC {
			no.Hint = "is it a program for another architecture?"
		}
	case "cwd":
		no.Reason = rer.ReasonCwd
		no.Text = string(r.CwdPath) + ": " + message(errno)
		no.Hint = "the working directory must exist on the server where SWITCH takes it from there"
	case "open":
		no.Reason, no.Text = rer.ReasonDescriptor, "descriptor "+detail+": "+message(errno)
	default:
		no.Reason, no.Text = rer.ReasonResources, f.Step+": "+message(errno)
	}
	return no
}

// execFailure sorts what execve(2) answered.
func execFailure(name string, errno syscall.Errno) (rer.Reason, string) {
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		return rer.ReasonNotFound, name + ": not found"
	case syscall.ENOEXEC:
		return rer.ReasonWrongProgram, name + ": exec format error"
	case syscall.ENOMEM, syscall.EAGAIN, syscall.EMFILE, syscall.ENFILE:
		return rer.ReasonResources, name + ": " + message(errno)
	}
	return rer.ReasonCannotExec, name + ": " + message(errno)
}

// name is the command in messages.
func name(r *rer.Request) string {
	switch {
	case r.Login:
		return "login shell"
	case r.Shell != nil:
		return shell
	}
	return strings.ToValidUTF8(string(r.Argv[0]), "?")
}

func message(errno syscall.Errno) string {
	if errno == 0 {
		return "failed"
	}
	return errno.Error()
}
