package home

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"rexec/agent/pump"
	"rexec/internal/transport"
	"rexec/rer"
)

// fill completes the request with what only home knows: handles, numbers of
// descriptions, channels. It gives the channels that it opened, with an error
// too.
func (j *job) fill() ([]*transport.Channel, error) {
	nodes := []struct {
		file *os.File
		to   *rer.Handle
		name string
	}{{j.files[0], &j.req.Root, "root"}, {j.files[1], &j.req.Cwd, "working directory"}}
	for _, n := range nodes {
		var err error
		if *n.to, err = j.adopt(number(n.file)); err != nil {
			return nil, fmt.Errorf("%s: %w", n.name, err)
		}
	}
	files := j.files[2:]
	if j.ask.Tty {
		if err := j.fillTerminal(files[0], files[1:]); err != nil {
			return nil, j.bad(-1, err)
		}
		files = files[1:]
	}
	var channels []*transport.Channel
	for i := range j.req.Descriptions {
		ch, err := j.fillDescription(&j.req.Descriptions[i], number(files[i]))
		if ch != nil {
			channels = append(channels, ch)
		}
		if err != nil {
			return channels, j.bad(i, err)
		}
	}
	return channels, nil
}

// adopt gives the handle of what fd refers to, good for the job's time.
func (j *job) adopt(fd int) (rer.Handle, error) {
	node, _, err := j.sess.origin.AdoptNode(fd)
	if err != nil {
		return 0, err
	}
	j.nodes = append(j.nodes, node)
	return rer.Handle(node), nil
}

// bad makes a refusal of a description that cannot cross, by the lowest
// number that the command has it under; below 0: the controlling terminal.
func (j *job) bad(i int, err error) error {
	if j.linkDown() || errors.Is(err, net.ErrClosed) {
		return err
	}
	what := "the controlling terminal"
	for _, fd := range j.req.FDs {
		if int(fd.Desc) == i {
			what = fmt.Sprintf("descriptor %d", fd.Num)
			break
		}
	}
	return &rer.Refused{
		Reason: rer.ReasonDescriptor, Errno: int(errnoOf(err)),
		Text: fmt.Sprintf("%s: %s cannot be passed on: %v", j.ask.Name, what, err),
	}
}

// fillTerminal joins the terminal that tty is; descriptions of the same one
// may be better to open it by.
func (j *job) fillTerminal(tty *os.File, descriptions []*os.File) error {
	fds := []int{number(tty)}
	dev, ok := pump.TerminalDev(fds[0])
	if !ok {
		return unix.ENOTTY
	}
	for i, f := range descriptions {
		if j.isTerminal(i, number(f), dev) {
			fds = append(fds, number(f))
		}
	}
	t, err := j.sess.join(j, terminalKey{dev, j.req.Sid}, fds)
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.term = t
	j.mu.Unlock()
	if j.req.Terminal == nil {
		j.req.Terminal = new(rer.Terminal)
	}
	j.req.Terminal.Channel = t.id
	t.Describe(j.req.Terminal)
	return nil
}

func (j *job) isTerminal(i, fd int, dev uint64) bool {
	if j.req.Descriptions[i].Kind != rer.KindTerminal {
		return false
	}
	got, ok := pump.TerminalDev(fd)
	return ok && got == dev
}

// fillDescription completes one description and opens its channel, where it
// has one of its own.
func (j *job) fillDescription(d *rer.Description, fd int) (*transport.Channel, error) {
	d.Channel, d.Handle, d.File = 0, 0, 0
	if d.Kind == rer.KindRegular {
		return nil, j.fillRegular(d, fd)
	}
	d.ID = j.sess.known.fresh()
	switch d.Kind {
	case rer.KindDir, rer.KindPath:
		var err error
		d.Handle, err = j.adopt(fd)
		return nil, err
	case rer.KindTerminal:
		if t := j.term; t != nil {
			if dev, ok := pump.TerminalDev(fd); ok && dev == t.key.dev {
				d.Channel = t.id
				return nil, nil
			}
		}
		d.Kind = rer.KindRelay // another terminal: its bytes cross, no more
	case rer.KindDevice:
		return nil, nil
	case rer.KindSocket:
		typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return nil, err
		}
		d.SockTyp = int32(typ)
	case rer.KindPipe, rer.KindRelay:
	default:
		return nil, unix.EOPNOTSUPP
	}
	d.Paced = j.paced(d, fd)
	ch, err := j.sess.conn.Open(transport.ClassBulk)
	if err != nil {
		return nil, err
	}
	d.Channel = ch.ID()
	return ch, nil
}

// fillRegular makes a description of a file known to the origin. Jobs that
// share it share its number.
func (j *job) fillRegular(d *rer.Description, fd int) error {
	held, err := j.sess.known.use(fd)
	if err != nil {
		return err
	}
	j.held = append(j.held, held)
	d.ID = held.id
	if d.Handle, err = j.adopt(fd); err != nil {
		return err
	}
	fh, err := j.sess.origin.AdoptFile(fd)
	if err != nil {
		return err
	}
	d.File = uint64(fh)
	if pos, err := unix.Seek(fd, 0, unix.SEEK_CUR); err == nil {
		d.Offset = pos
	}
	return nil
}

// paced says whether what the job leaves unread must stay for others here.
func (j *job) paced(d *rer.Description, fd int) bool {
	switch {
	case d.Flags&unix.O_ACCMODE == unix.O_WRONLY:
		return false
	case d.Kind == rer.KindPipe, d.Kind == rer.KindSocket && d.SockTyp == unix.SOCK_STREAM:
		return j.home.holders.otherReader(fd, j.req.Pid)
	}
	return false
}

// startPumps starts one for each channel that fill opened.
func (j *job) startPumps(channels []*transport.Channel) error {
	files := j.files[len(j.files)-len(j.req.Descriptions):]
	byID := make(map[uint32]*transport.Channel)
	for _, c := range channels {
		byID[c.ID()] = c
	}
	for i, d := range j.req.Descriptions {
		ch := byID[d.Channel]
		if ch == nil {
			continue
		}
		p, err := pump.Start(pump.Options{
			Poller: j.home.poller, Channel: ch, FD: number(files[i]), Flags: d.Flags,
			SockTyp: d.SockTyp, Paced: d.Paced, Settle: j.sess.settle,
		})
		if err != nil {
			return j.bad(i, err)
		}
		j.pumps[d.Channel] = p
	}
	if j.term != nil {
		j.term.Join(j, j.req.Pid)
	}
	return nil
}

// number is f's descriptor. Unlike File.Fd it leaves O_NONBLOCK alone, which
// others share.
func number(f *os.File) int {
	n := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return n
	}
	_ = raw.Control(func(fd uintptr) { n = int(fd) })
	return n
}
