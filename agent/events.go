package agent

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"rexec/rer"
	"rexec/signals"
)

// events writes what happens to --status-fd, one JSON object a line. A nil
// *events writes nothing.
type events struct{ fd int }

// event is one line. Numbers of signals and reasons come with their names.
type event struct {
	Event   string      `json:"event"` // started, stopped, continued, ended, refused
	Pid     int32       `json:"pid,omitempty"`
	Server  int64       `json:"server_pid,omitempty"`
	Switch  []string    `json:"switch,omitempty"`
	Dropped []string    `json:"dropped,omitempty"`
	Taken   []int32     `json:"taken,omitempty"`
	Code    *int        `json:"code,omitempty"`
	Signo   int         `json:"signo,omitempty"`
	Signal  string      `json:"signal,omitempty"`
	Core    bool        `json:"core,omitempty"`
	Usage   *rer.Rusage `json:"usage,omitempty"`
	Reason  rer.Reason  `json:"reason,omitempty"`
	Errno   int         `json:"errno,omitempty"`
	Text    string      `json:"text,omitempty"`
	Hint    string      `json:"hint,omitempty"`
}

// openEvents takes a descriptor that the command must not inherit. Standard
// ones are copied, since the command has them too.
func openEvents(fd int) (*events, error) {
	if fd <= 0 {
		return nil, nil
	}
	if fd > 2 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("status descriptor %d: %w", fd, err)
		}
		return &events{fd}, nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("status descriptor %d: %w", fd, err)
	}
	return &events{own}, nil
}

func (e *events) write(ev event) {
	if e == nil {
		return
	}
	if ev.Signo != 0 {
		ev.Signal = signals.Name(ev.Signo)
	}
	b, err := json.Marshal(ev)
	if err != nil {
		return
	}
	for b = append(b, '\n'); len(b) > 0; {
		n, err := unix.Write(e.fd, b)
		if err != nil && err != unix.EINTR {
			return
		}
		b = b[max(n, 0):]
	}
}

func (e *events) started(s *rer.Started) {
	e.write(event{Event: "started", Pid: s.Pid, Server: s.ServerID, Switch: s.Switch, Dropped: s.Dropped, Taken: s.Taken})
}

func (e *events) ended(s rer.Status) {
	ev := event{Event: "ended", Signo: s.Signal, Core: s.Core, Usage: &s.Usage}
	if s.Signal == 0 {
		ev.Code = &s.Code
	}
	e.write(ev)
}

func (e *events) refused(r *rer.Refused) {
	e.write(event{Event: "refused", Reason: r.Reason, Errno: r.Errno, Text: r.Text, Hint: r.Hint})
}
