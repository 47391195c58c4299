package signals

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// What the child uses, in its own copy.
var (
	witnessInfo [infoSize]byte //lint:ignore U1000 used by witness_*.s
	witnessAll  = ^uint64(0)   //lint:ignore U1000 used by witness_*.s
	witnessNow  [2]int64       //lint:ignore U1000 used by witness_*.s
)

// maxSeen bounds what a witness has seen and nobody has asked for.
const maxSeen = 64

// Witness tells signals to a process from signals to its process group, which
// look alike: it is a child, a few hundred kilobytes of process without a
// program of its own, that blocks all signals in the same group. What it has
// received too went to the group.
type Witness struct {
	pid    int
	ask    *os.File
	answer *os.File

	mu   sync.Mutex
	seen []Info
}

// NewWitness makes a witness of the calling process's group. It ends with the
// process, or by Close.
func NewWitness() (*Witness, error) {
	questions, ask, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	answer, answers, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("witness: %w", err), questions.Close(), ask.Close())
	}
	defer questions.Close()
	defer answers.Close()
	// The child reads the first and writes the second, and takes the lower
	// number for the first.
	lo, hi := int32(questions.Fd()), int32(answers.Fd())
	_ = unix.SetNonblock(int(lo), false)
	_ = unix.SetNonblock(int(hi), false)
	pid := -int(unix.EINVAL)
	if lo < hi {
		pid = forkBlocked(lo, hi)
	}
	if pid < 0 {
		return nil, errors.Join(fmt.Errorf("witness: fork: %w", unix.Errno(-pid)), ask.Close(), answer.Close())
	}
	return &Witness{pid: pid, ask: ask, answer: answer}, nil
}

// forkBlocked forks with all signals blocked.
func forkBlocked(lo, hi int32) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := Mask()
	if err != nil {
		return -int(unix.EINVAL)
	}
	if err := SetMask(^uint64(0)); err != nil {
		return -int(unix.EINVAL)
	}
	defer SetMask(before)
	return forkWitness(lo, hi)
}

// Saw says whether a signal that this process received went to its group.
func (w *Witness) Saw(i Info) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	// kill(2) holds the kernel's list of processes while it goes through a
	// group, and setpgid(2) wants it alone, also for a process that there is
	// not: after this the witness has what this process has.
	_ = unix.Setpgid(1<<30, 1)
	if _, err := w.ask.Write([]byte{0}); err != nil {
		return false
	}
	for {
		var b [infoSize]byte
		if _, err := io.ReadFull(w.answer, b[:]); err != nil {
			return false
		}
		got := parse(b[:])
		if got.Signo == 0 {
			break
		}
		w.seen = append(w.seen, got)
	}
	at := slices.Index(w.seen, i)
	if at >= 0 {
		w.seen = slices.Delete(w.seen, at, at+1)
	}
	w.seen = w.seen[max(0, len(w.seen)-maxSeen):]
	return at >= 0
}

// Close ends the witness.
func (w *Witness) Close() {
	_ = unix.Kill(w.pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(w.pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	w.ask.Close()
	w.answer.Close()
}
