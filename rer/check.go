package rer

import (
	"bytes"
	"fmt"
	"strings"
)

// highestKey is the highest map key of Request that this code understands.
const highestKey = 30

// Check says whether a request is one that may be acted on: one command, no
// NUL inside strings, indices within bounds, numbers not negative, no unknown
// critical field. A failure is a *Refused.
func (r *Request) Check() error {
	for _, key := range r.Critical {
		if key > highestKey {
			return r.refuse(ReasonVersion, "request needs field %d, which this side does not know", key)
		}
	}
	if err := r.checkCommand(); err != nil {
		return err
	}
	if err := r.checkStrings(); err != nil {
		return err
	}
	return r.checkDescriptors()
}

func (r *Request) refuse(why Reason, format string, args ...any) error {
	return &Refused{ID: r.ID, Reason: why, Text: fmt.Sprintf(format, args...)}
}

func (r *Request) checkCommand() error {
	n := 0
	for _, set := range []bool{len(r.Argv) > 0, r.Shell != nil, r.Login} {
		if set {
			n++
		}
	}
	if n != 1 {
		return r.refuse(ReasonBadRequest, "request holds %d commands, not one", n)
	}
	for _, id := range []int32{r.Pid, r.Ppid, r.Pgrp, r.Sid} {
		if id < 0 {
			return r.refuse(ReasonBadRequest, "request holds process number %d", id)
		}
	}
	return nil
}

func (r *Request) checkStrings() error {
	lists := [][][]byte{r.Argv, r.Env, {r.Shell, r.CwdPath}}
	for i := range r.Descriptions {
		lists = append(lists, [][]byte{r.Descriptions[i].Path})
	}
	if r.Terminal != nil {
		lists = append(lists, [][]byte{r.Terminal.Path})
	}
	for _, list := range lists {
		for _, s := range list {
			if bytes.IndexByte(s, 0) >= 0 {
				return r.refuse(ReasonBadRequest, "request holds a string with a NUL byte")
			}
		}
	}
	for _, s := range append([]string{r.User, r.Hostname, r.Sysid, r.Account}, r.Switch...) {
		if strings.IndexByte(s, 0) >= 0 {
			return r.refuse(ReasonBadRequest, "request holds a string with a NUL byte")
		}
	}
	return nil
}

func (r *Request) checkDescriptors() error {
	seen := make(map[int32]bool, len(r.FDs))
	for _, fd := range r.FDs {
		if fd.Num < 0 || seen[fd.Num] {
			return r.refuse(ReasonBadRequest, "request holds descriptor %d twice or below 0", fd.Num)
		}
		seen[fd.Num] = true
		if int(fd.Desc) >= len(r.Descriptions) {
			return r.refuse(ReasonBadRequest, "descriptor %d refers to description %d of %d", fd.Num, fd.Desc, len(r.Descriptions))
		}
	}
	for _, d := range r.Descriptions {
		if d.Kind > KindRelay {
			return r.refuse(ReasonDescriptor, "request holds a description of unknown kind %d", d.Kind)
		}
		if d.Offset < 0 || d.PipeLen < 0 {
			return r.refuse(ReasonBadRequest, "request holds a description with a negative offset or size")
		}
	}
	return nil
}
