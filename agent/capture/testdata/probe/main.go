// Command probe captures its own process, for the tests of package capture: a
// test binary has no symbol table.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/agent/capture"
	"rexec/rer"
	"rexec/signals"
)

// stage is what the program does: "odd"
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

func main() {
	if os.Getenv(stage) == "odd" {
		fmt.Fprintln(os.Stderr, oddThenExec())
		os.Exit(3)
	}
	os.Exit(printCaptured())
}

func oddThenExec() error {
	var s state
	if err := json.Unmarshal([]byte(os.Getenv(stateVar)), &s); err != nil {
		return err
	}
	runtime.LockOSThread()
	unix.Umask(s.Umask)
	if s.Nofile.Max != 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &s.Nofile); err != nil {
			return err
		}
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, s.Nice); err != nil {
		return err
	}
	if s.Persona != 0 {
		unix.RawSyscall(unix.SYS_PERSONALITY, s.Persona, 0, 0)
	}
	if err := closeStrays(3 + s.Keep); err != nil {
		return err
	}
	for _, d := range s.Dup {
		if err := unix.Dup2(d[0], d[1]); err != nil {
			return err
		}
	}
	for range s.Many {
		if _, err := unix.Dup(0); err != nil {
			return err
		}
	}
	for _, fd := range s.Close {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	if err := signals.Ignore(s.Ignored); err != nil {
		return err
	}
	var env []string
	for _, e := range s.Env {
		env = append(env, string(e))
	}
	env = append(env, stage+"=capture", resultFD+"="+os.Getenv(resultFD), fmt.Sprint("CAPTURE_RELEASE=", s.Release))
	if err := signals.SetMask(s.Mask); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{s.Argv0}, env)
}

// closeStrays keeps from us what whoever runs the tests has left open.
func closeStrays(from int) error {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err == nil && fd >= from && strconv.Itoa(fd) != os.Getenv(resultFD) {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

func printCaptured() int {
	var fd int
	fmt.Sscan(os.Getenv(resultFD), &fd)
	unix.CloseOnExec(fd) // not to be captured
	var r result
	c, err := capture.Capture(capture.Options{})
	switch {
	case errors.As(err, &r.Refused):
	case err != nil:
		r.Error = err.Error()
	default:
		r.Request, r.Files, r.Tty, r.Notes = c.Request, len(c.Files), c.Tty != nil, c.Notes
		if os.Getenv("CAPTURE_RELEASE") == "true" {
			c.Release()
			runtime.GC()
			for n := range 64 {
				if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil && flags == 0 {
					r.Released = append(r.Released, n)
				}
			}
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return 4
	}
	if _, err := os.NewFile(uintptr(fd), "result").Write(b); err != nil {
		return 5
	}
	return 0
}
