package signals

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// DieBy ends this process by signo as its default action does, without a word
// and without a core file: whoever waits for it sees the signal. If the
// signal does not kill (it is no fatal one, or this is the init of a PID
// namespace), DieBy returns the exit status that shells show instead.
func DieBy(signo int) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A core_pattern that is a pipe ignores RLIMIT_CORE, core(5); no process
	// that is not dumpable has a core.
	_ = unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if catchable(signo) {
		if err := sigaction(signo, &action{handler: dfl}, nil); err != nil {
			return 128 + signo
		}
		_ = unblock(signo)
	}
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.Signal(signo))
	return 128 + signo
}

// StopSelf stops this process by signo (STOP, TSTP, TTIN or TTOU), as its
// default action does, and returns when it runs again. An orphaned process
// group is stopped by SIGSTOP only, as POSIX wants it.
func StopSelf(signo int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if catchable(signo) {
		var old action
		if err := sigaction(signo, &action{handler: dfl}, &old); err != nil {
			return err
		}
		defer sigaction(signo, &old, nil)
		before, err := Mask()
		if err != nil {
			return err
		}
		if err := unblock(signo); err != nil {
			return err
		}
		defer SetMask(before)
	}
	return unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.Signal(signo))
}

func unblock(signo int) error {
	set := uint64(1) << (signo - 1)
	return sigprocmask(unix.SIG_UNBLOCK, &set, nil)
}
