package session

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"rexec/disallow"
	"rexec/fsview"
	"rexec/fsview/fsproto"
	"rexec/internal/launch"
	"rexec/rer"
)

// openFlags are the status flags of a descriptor that its opening here must
// have too.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DSYNC |
	unix.O_DIRECT | unix.O_NOATIME | unix.O_LARGEFILE

func cleanSwitch(list []string) []string { return disallow.Clean(list) }

func isKernelBound(name []byte) bool { return disallow.Match(kernelBound, string(name)) }

// descriptors makes the job's descriptors. The files that go along are given
// also with an error, to be closed.
func (j *job) descriptors(spec *launch.Job) (files []*os.File, err error) {
	r := j.request
	made := make([]launch.FD, len(r.Descriptions))
	done := make([]bool, len(r.Descriptions))
	for _, fd := range r.FDs {
		d := &r.Descriptions[fd.Desc]
		if !done[fd.Desc] {
			if made[fd.Desc], err = j.descriptor(d, &files); err != nil {
				return files, j.cannot(fd.Num, err)
			}
			done[fd.Desc] = true
		}
		one := made[fd.Desc]
		one.Num = fd.Num
		spec.FDs = append(spec.FDs, one)
	}
	return files, nil
}

// cannot says which descriptor cannot cross.
func (j *job) cannot(num int32, err error) error {
	var no *rer.Refused
	if errors.As(err, &no) {
		return err
	}
	return &rer.Refused{Reason: rer.ReasonDescriptor, Errno: errnoOf(err), Text: fmt.Sprintf("descriptor %d: %v", num, err)}
}

// descriptor makes one open file description.
func (j *job) descriptor(d *rer.Description, files *[]*os.File) (launch.FD, error) {
	flags := int(d.Flags & openFlags)
	switch d.Kind {
	case rer.KindRegular:
		return j.regular(d, flags)
	case rer.KindDir:
		return j.directory(d, unix.O_RDONLY|unix.O_DIRECTORY)
	case rer.KindPath:
		return j.directory(d, unix.O_PATH|unix.O_NOFOLLOW)
	case rer.KindDevice:
		if !isKernelBound(d.Path) {
			return launch.FD{}, fmt.Errorf("%s is no device that the server has: %w", d.Path, unix.ENODEV)
		}
		return launch.FD{Desc: d.ID, Source: launch.SourceOpen, Path: d.Path, Flags: flags | unix.O_NOCTTY}, nil
	case rer.KindTerminal:
		if t := j.request.Terminal; t != nil && (d.Channel == 0 || d.Channel == t.Channel) {
			return launch.FD{Desc: d.ID, Source: launch.SourceTerminal, Flags: flags}, nil
		}
		return j.stream(d, files)
	case rer.KindPipe, rer.KindSocket, rer.KindRelay:
		return j.stream(d, files)
	}
	return launch.FD{}, fmt.Errorf("unknown kind %d: %w", d.Kind, unix.EINVAL)
}

// regular opens home's own open file of a description, so that its position
// and its end are home's.
func (j *job) regular(d *rer.Description, flags int) (launch.FD, error) {
	p, err := j.s.place(j.view, d.Handle, d.Path)
	if err != nil {
		return launch.FD{}, err
	}
	fd := launch.FD{Desc: d.ID, Source: launch.SourceOpen, Path: p.path, Ino: p.ino, Else: p.other,
		Flags: flags, Offset: d.Offset, Keep: true}
	if d.File != 0 {
		writes := flags&unix.O_ACCMODE != unix.O_RDONLY
		appends := flags&unix.O_APPEND != 0
		fd.Else = []byte(j.view.tree.Adopt(p.mount, p.node, fsproto.FH(d.File),
			fsview.Adoption{Append: appends, Stream: writes && !appends, Offset: d.Offset}))
		fd.Mark = fsview.AdoptMark
		if bytes.Equal(p.path, p.other) { // it has no name that shows it
			fd.Path, fd.Ino, fd.Else, fd.Mark = fd.Else, 0, nil, 0
		}
	}
	return fd, nil
}

// directory opens what can only be named: a directory or an O_PATH object.
// Where its name is the server's, so is the object, as with the job's cwd.
func (j *job) directory(d *rer.Description, flags int) (launch.FD, error) {
	if isClean(string(d.Path)) && (j.view.loan.ours(string(d.Path)) || isKernelBound(d.Path)) {
		return launch.FD{Desc: d.ID, Source: launch.SourceOpen, Path: d.Path, Flags: flags}, nil
	}
	p, err := j.s.place(j.view, d.Handle, d.Path)
	if err != nil {
		return launch.FD{}, err
	}
	return launch.FD{Desc: d.ID, Source: launch.SourceOpen, Path: p.path, Ino: p.ino, Else: p.other, Flags: flags}, nil
}

// stream gives the job its end of a description whose bytes cross.
func (j *job) stream(d *rer.Description, files *[]*os.File) (launch.FD, error) {
	st, far, fresh, err := j.s.stream(d)
	if err != nil {
		return launch.FD{}, err
	}
	j.streams = append(j.streams, st)
	if fresh {
		st.start()
	}
	*files = append(*files, far)
	return launch.FD{Source: launch.SourceFile, File: len(*files) - 1}, nil
}

// stream finds or makes the pipe of a description and joins it.
func (s *Session) stream(d *rer.Description) (st *stream, far *os.File, fresh bool, err error) {
	if d.Channel == 0 || d.Channel%2 == 0 {
		return nil, nil, false, fmt.Errorf("no channel: %w", unix.EINVAL)
	}
	key := streamKey{d.ID, d.Channel}
	s.mu.Lock()
	st = s.streams[key]
	s.mu.Unlock()
	if st != nil && st.join() {
		if far, err = st.far(); err != nil {
			st.leave()
		}
		return st, far, false, err
	}
	ch, err := s.conn.Channel(d.Channel)
	if err != nil {
		return nil, nil, false, err
	}
	if st, far, err = newStream(d, ch, s.settle); err != nil {
		return nil, nil, false, err
	}
	st.join()
	st.drop = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.streams[key] == st {
			delete(s.streams, key)
		}
	}
	s.mu.Lock()
	s.streams[key] = st
	s.mu.Unlock()
	return st, far, true, nil
}

// terminalSlot makes sure that a terminal is made once.
type terminalSlot struct {
	once sync.Once
	term *terminal
	err  error
}

func (t *terminalSlot) close() {
	t.once.Do(func() { t.err = unix.ENOTCONN })
	if t.term != nil {
		t.term.close()
	}
}

// terminal gives the job the pty that stands for its controlling terminal.
func (j *job) terminal(in *launch.Init, spec *launch.Job) error {
	r := j.request
	if r.Terminal == nil {
		return nil
	}
	key := launch.TerminalKey{Dev: r.Terminal.Dev, Sid: r.Sid}
	t, err := j.s.terminal(in, key, r.Terminal)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	spec.Terminal, j.term = key, t
	t.join()
	spec.Foreground = r.Terminal.Foreground != 0 && r.Terminal.Foreground == r.Pgrp
	return nil
}

// terminal finds or makes the pty of one of home's terminals.
func (s *Session) terminal(in *launch.Init, key launch.TerminalKey, r *rer.Terminal) (*terminal, error) {
	s.mu.Lock()
	slot := s.terminals[key]
	if slot == nil {
		slot = new(terminalSlot)
		s.terminals[key] = slot
	}
	s.mu.Unlock()
	first := false
	slot.once.Do(func() {
		first = true
		slot.term, slot.err = s.makeTerminal(in, key, slot, r)
	})
	if slot.err != nil {
		s.dropTerminal(key, slot)
		return nil, slot.err
	}
	if !first {
		slot.term.update(r)
	}
	return slot.term, nil
}

func (s *Session) makeTerminal(in *launch.Init, key launch.TerminalKey, slot *terminalSlot, r *rer.Terminal) (*terminal, error) {
	ch, err := s.conn.Channel(r.Channel)
	if err != nil {
		return nil, err
	}
	master, err := in.Terminal(key, nil, r.Rows, r.Cols) // start gives it the settings
	if err != nil {
		return nil, err
	}
	t := newTerminal(key, ch, master)
	t.settle = s.settle
	t.foreground = func(pgrp int32) { in.Foreground(key, pgrp) }
	t.gone = func() { s.dropTerminal(key, slot) }
	t.start(r)
	return t, nil
}

func (s *Session) dropTerminal(key launch.TerminalKey, slot *terminalSlot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminals[key] == slot {
		delete(s.terminals, key)
	}
}
