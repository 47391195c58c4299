package signals

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Dispositions of rt_sigaction(2).
const (
	dfl uintptr = 0
	ign uintptr = 1
)

// action is the kernel's struct sigaction.
type action struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// sigaction is rt_sigaction(2) without the runtime between.
func sigaction(signo int, set, old *action) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signo),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction %s: %w", Name(signo), errno)
	}
	return nil
}

// catchable says whether signo can have a handler.
func catchable(signo int) bool {
	return signo != int(unix.SIGKILL) && signo != int(unix.SIGSTOP)
}

// Ignored gives the signals whose disposition in the kernel is to be ignored.
func Ignored() (uint64, error) {
	var set uint64
	for n := 1; n <= Count; n++ {
		var now action
		if err := sigaction(n, nil, &now); err != nil {
			return 0, err
		}
		if now.handler == ign {
			set |= 1 << (n - 1)
		}
	}
	return set, nil
}

// Ignore makes the signals of a set ignored, in the kernel: an execve hands
// that on.
func Ignore(set uint64) error {
	for n := 1; n <= Count; n++ {
		if set&(1<<(n-1)) == 0 || !catchable(n) {
			continue
		}
		if err := sigaction(n, &action{handler: ign}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Mask gives the signals that the calling thread blocks.
func Mask() (uint64, error) {
	var old uint64
	if err := sigprocmask(unix.SIG_BLOCK, nil, &old); err != nil {
		return 0, err
	}
	return old, nil
}

// SetMask makes the calling thread block the signals of set and no other. The
// caller has locked its goroutine to the thread.
func SetMask(set uint64) error { return sigprocmask(unix.SIG_SETMASK, &set, nil) }

func sigprocmask(how int, set, old *uint64) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, uintptr(how),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigprocmask: %w", errno)
	}
	return nil
}
