package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/rer"
	"rexec/signals"
)

// Options change what is captured.
type Options struct {
	// NoTerminal: the command gets no controlling terminal, and descriptors
	// of one are relayed like pipes.
	NoTerminal bool
}

// Captured is what the calling process inherited. Root, Cwd, Tty and the
// descriptors of Files belong to it; Release closes them.
type Captured struct {
	// Request lacks the command, ID, Sysid, Switch and Account, and what home fills
	// in: channels, handles and description numbers.
	Request rer.Request

	Root, Cwd *os.File   // O_PATH
	Tty       *os.File   // the controlling terminal; nil where there is none
	Files     []*os.File // one for each of Request.Descriptions, in order

	// Settings are the controlling terminal's, with what Request.Terminal has no
	// room for; nil where there is none.
	Settings *unix.Termios

	Notes []string // what could not be found out, a line each
}

// Capture captures the calling process. A descriptor that cannot cross is a
// *rer.Refused.
func Capture(o Options) (*Captured, error) {
	c := new(Captured)
	found, err := listDescriptors() // first: nothing of ours is open yet
	if err != nil {
		return nil, err
	}
	steps := []func() error{c.signals, c.limits, c.identity, c.numbers, c.directories, c.environment}
	if !o.NoTerminal {
		steps = append(steps, c.terminal)
	}
	steps = append(steps, func() error { return c.descriptors(found) })
	for _, step := range steps {
		if err := step(); err != nil {
			c.closeOwn()
			return nil, err
		}
	}
	return c, nil
}

// Release gives up the descriptors that were captured, once somebody else
// holds them: a reader or writer at their far ends must see the command's
// close, not ours. 0 and 1 become /dev/null, 2 stays for messages.
func (c *Captured) Release() {
	c.closeOwn()
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 2 {
			_ = unix.Dup3(null, fd, 0)
		}
		_ = unix.Close(null)
	}
	seen := make(map[uint32]bool) // descriptions; the first number of each is a File's
	for _, fd := range c.Request.FDs {
		if fd.Num > 2 && seen[fd.Desc] {
			_ = unix.Close(int(fd.Num))
		}
		seen[fd.Desc] = true
	}
	for _, f := range c.Files {
		if f != os.Stdin && f != os.Stdout && f != os.Stderr {
			f.Close()
		}
	}
	c.Files = nil
}

func (c *Captured) closeOwn() {
	for _, f := range []*os.File{c.Root, c.Cwd, c.Tty} {
		if f != nil {
			f.Close()
		}
	}
}

func (c *Captured) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

func (c *Captured) signals() error {
	mask, ignored, _, err := inherited()
	var partial *partialError
	if errors.As(err, &partial) {
		c.note("ignored signals other than HUP and INT are not known: %v", partial.err)
	} else if err != nil {
		return err
	}
	c.Request.Mask, c.Request.Ignored = mask, ignored
	return nil
}

// partialError is for a program whose symbol table lacks the runtime's
// variables.
type partialError struct{ err error }

func (e *partialError) Error() string { return e.err.Error() }

// inherited gives the signal mask, the ignored signals and the limit of open
// files, nil where it is as getrlimit says.
func inherited() (mask, ignored uint64, nofile *unix.Rlimit, err error) {
	ignored, err = signals.Ignored()
	if err != nil {
		return 0, 0, nil, err
	}
	found, err := runtimeFound()
	if err != nil {
		err = &partialError{err}
	}
	return found.mask, ignored | found.ignored, found.nofile, err
}

// Restore gives the calling thread, to which its goroutine is locked, and the
// kernel's dispositions what the process inherited: for an execve here. The
// limit of open files is restored by syscall.Exec itself.
func Restore() error {
	mask, ignored, _, err := inherited()
	var partial *partialError
	if err != nil && !errors.As(err, &partial) {
		return err
	}
	for fd := range 3 {
		if wasClosed(fd) {
			unix.CloseOnExec(fd)
		}
	}
	if err := signals.Ignore(ignored); err != nil {
		return err
	}
	return signals.SetMask(mask)
}

func (c *Captured) limits() error {
	_, _, nofile, _ := inherited() // c.signals has reported the error
	for resource := range 16 {
		var lim unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &lim); err != nil {
			return fmt.Errorf("prlimit %d: %w", resource, err)
		}
		if resource == unix.RLIMIT_NOFILE && nofile != nil {
			lim.Cur = nofile.Cur
		}
		c.Request.Rlimits = append(c.Request.Rlimits, rer.Rlimit{Resource: resource, Cur: lim.Cur, Max: lim.Max})
	}
	umask, err := readUmask()
	if err != nil {
		return err
	}
	c.Request.Umask = umask
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return fmt.Errorf("getpriority: %w", err)
	}
	c.Request.Nice = 20 - nice // the system call's own encoding
	persona, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	if errno != 0 {
		return fmt.Errorf("personality: %w", errno)
	}
	c.Request.Personality = uint32(persona)
	return nil
}

// readUmask reads the umask without changing it, proc(5).
func readUmask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("umask: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 32)
			if err != nil {
				return 0, fmt.Errorf("umask: %w", err)
			}
			return uint32(n), nil
		}
	}
	return 0, errors.New("umask: not in /proc/self/status")
}

// identity captures the effective ids: it is they that decide what the
// command may do with files.
func (c *Captured) identity() error {
	groups, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("getgroups: %w", err)
	}
	r := &c.Request
	r.UID, r.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	for _, g := range groups {
		r.Groups = append(r.Groups, uint32(g))
	}
	r.User = userName(r.UID)
	if r.Hostname, err = os.Hostname(); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	return nil
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func (c *Captured) numbers() error {
	sid, err := unix.Getsid(0)
	if err != nil {
		return fmt.Errorf("getsid: %w", err)
	}
	r := &c.Request
	r.Pid, r.Ppid = int32(os.Getpid()), int32(os.Getppid())
	r.Pgrp, r.Sid = int32(unix.Getpgrp()), int32(sid)
	return nil
}

func (c *Captured) directories() (err error) {
	if c.Root, err = openPath("/"); err != nil {
		return err
	}
	if c.Cwd, err = openPath("."); err != nil {
		return err
	}
	// A link text may lie: " (deleted)", "(unreachable)", or a name that is
	// another directory's by now.
	name, err := os.Readlink("/proc/self/cwd")
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if sameFile(name, int(c.Cwd.Fd())) {
		c.Request.CwdPath = []byte(name)
	}
	return nil
}

func openPath(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sameFile says whether an absolute name is that of the open file.
func sameFile(name string, fd int) bool {
	var a, b unix.Stat_t
	return strings.HasPrefix(name, "/") && unix.Stat(name, &a) == nil && unix.Fstat(fd, &b) == nil &&
		a.Dev == b.Dev && a.Ino == b.Ino
}

// OwnPrefix begins the names of variables that are for rexec alone.
const OwnPrefix = "REXEC_"

// Environment gives the environment as the kernel keeps it: os.Environ leaves
// out duplicates.
func Environment() ([][]byte, error) {
	b, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	return splitEnviron(b), nil
}

func (c *Captured) environment() error {
	env, err := Environment()
	for _, entry := range env {
		if !bytes.HasPrefix(entry, []byte(OwnPrefix)) {
			c.Request.Env = append(c.Request.Env, entry)
		}
	}
	return err
}

func splitEnviron(b []byte) [][]byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0})
}

// encodeTermios gives termios as a terminal channel's 't' message has it,
// without the kind byte.
func encodeTermios(t *unix.Termios) []byte {
	b := make([]byte, 0, 36)
	for _, flags := range []uint32{t.Iflag, t.Oflag, t.Cflag, t.Lflag} {
		b = binary.BigEndian.AppendUint32(b, flags)
	}
	b = append(b, t.Line)
	return append(b, t.Cc[:19]...)
}
