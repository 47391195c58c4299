package signals

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// infoSize is the size of the kernel's siginfo_t.
const infoSize = 128

// pipeSize holds 8,000 signals that the program has not looked at yet.
const pipeSize = 1 << 20

// What si_code can say, sigaction(2).
const (
	CodeUser   = 0    // kill
	CodeKernel = 0x80 // the terminal, among others
	CodeQueue  = -1   // sigqueue
	CodeTkill  = -6   // tgkill
)

// Flags of rt_sigaction(2).
const (
	saSiginfo    = 0x4
	saRestorer   = 0x04000000
	saOnstack    = 0x08000000
	saRestart    = 0x10000000
	handlerFlags = saSiginfo | saRestorer | saOnstack | saRestart
)

// Read by the handler (handler_*.s), written before it is installed.
var (
	handlerPipe   int32              //lint:ignore U1000 write end, non-blocking; read by the handler
	handlerSelf   int32              // our process number
	handlerThread int32              //lint:ignore U1000 the receiver; read by the handler
	handlerNext   [Count + 1]uintptr // the runtime's handlers
)

// inUse is locked while there is a Source.
var inUse sync.Mutex

// Info is one signal that arrived.
type Info struct {
	Signo int
	Code  int    // si_code
	Pid   int32  // sender, where there is one
	UID   uint32 // sender's real user id
	Value uint64 // si_value, of sigqueue
}

// FromTerminal says that the kernel sent the signal to a whole process group
// because of a terminal.
func (i Info) FromTerminal() bool {
	if i.Code != CodeKernel {
		return false
	}
	switch unix.Signal(i.Signo) {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGHUP, unix.SIGCONT, unix.SIGWINCH, unix.SIGTTIN, unix.SIGTTOU:
		return true
	}
	return false
}

// Source gives the signals that this process receives, in the order of their
// delivery. One can exist at a time.
type Source struct {
	r      *os.File
	caught uint64 // signals whose handler is ours
	old    [Count + 1]action
	stop   chan struct{}
}

// Catch makes every catchable signal go to the Source from now on, those too
// that were ignored or are blocked elsewhere. Left out are faults of the
// process's own, SIGPIPE of its own writes, and SIGCHLD of its own children.
func Catch() (*Source, error) {
	if !inUse.TryLock() {
		return nil, errors.New("catch signals: done already")
	}
	s := &Source{stop: make(chan struct{})}
	ready := make(chan error)
	go s.receiver(ready)
	err := <-ready
	if err == nil {
		err = s.install()
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	s.settle()
	return s, nil
}

func (s *Source) install() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("catch signals: pipe: %w", err)
	}
	s.r = os.NewFile(uintptr(p[0]), "signals")
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeSize) // a user over the limit keeps 64 KiB
	handlerPipe, handlerSelf = int32(p[1]), int32(os.Getpid())
	for n := 1; n <= Count; n++ {
		if !catchable(n) {
			continue
		}
		var old action
		if err := sigaction(n, nil, &old); err != nil {
			return err
		}
		if handlerNext[n] = 0; old.handler > ign {
			handlerNext[n] = old.handler
		}
	}
	set := action{handler: handlerPC(), flags: handlerFlags, restorer: restorerPC(), mask: ^uint64(0)}
	for n := 1; n <= Count; n++ {
		if !catchable(n) {
			continue
		}
		if err := sigaction(n, &set, &s.old[n]); err != nil {
			return err
		}
		s.caught |= 1 << (n - 1)
	}
	return nil
}

// receiver is a thread that blocks nothing, whatever mask the process has
// inherited, so that a blocked signal is not left pending here.
func (s *Source) receiver(ready chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	handlerThread = int32(unix.Gettid())
	ready <- SetMask(0)
	<-s.stop
}

// settle sends each other thread a signal that is dropped later (own): from
// then on the receiver alone takes signals, in their order. A thread that the
// runtime makes later may still take one.
func (s *Source) settle() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil && int32(tid) != handlerThread {
			_ = unix.Tgkill(int(handlerSelf), tid, unix.SIGWINCH)
		}
	}
}

// Next waits for the next signal; io.EOF after Stop.
func (s *Source) Next() (Info, error) {
	for {
		var b [infoSize]byte
		if _, err := io.ReadFull(s.r, b[:]); err != nil {
			if errors.Is(err, os.ErrClosed) {
				err = io.EOF
			}
			return Info{}, err
		}
		if i := parse(b[:]); !own(i) {
			return i, nil
		}
	}
}

// parse reads the fields of a siginfo_t that mean something for its code.
func parse(b []byte) Info {
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	i := Info{Signo: int(int32(word(0))), Code: int(int32(word(8)))}
	switch i.Code {
	case CodeUser, CodeTkill:
		i.Pid, i.UID = int32(word(16)), word(20)
	case CodeQueue:
		i.Pid, i.UID = int32(word(16)), word(20)
		i.Value = binary.NativeEndian.Uint64(b[24:])
	}
	return i
}

// own says that this process caused the signal by what it did itself.
func own(i Info) bool {
	if i.Code == CodeTkill && i.Pid == handlerSelf {
		return true
	}
	switch unix.Signal(i.Signo) {
	case unix.SIGCHLD:
		return i.Code > 0
	case unix.SIGPIPE:
		return i.Code == CodeUser && i.Pid == handlerSelf
	}
	return false
}

// Stop puts back what Catch found. The pipe's write end stays open for ever: a
// handler that has begun may still use its number.
func (s *Source) Stop() {
	for n := 1; n <= Count; n++ {
		if s.caught&(1<<(n-1)) != 0 {
			_ = sigaction(n, &s.old[n], nil)
		}
	}
	close(s.stop)
	if s.r != nil {
		s.r.Close()
	}
	inUse.Unlock()
}
