package home

import (
	"bytes"
	"cmp"
	"os"
	"slices"

	"rexec/agent/homeproto"
)

// listing is what home does now.
func (h *Home) listing() *homeproto.Listing {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &homeproto.Listing{Pid: os.Getpid()}
	for j := range h.jobs {
		l.Jobs = append(l.Jobs, j.listing())
	}
	slices.SortFunc(l.Jobs, func(a, b homeproto.Job) int { return cmp.Compare(a.Since, b.Since) })
	for _, s := range h.sessions {
		if link, ok := s.listing(); ok {
			l.Links = append(l.Links, link)
		}
	}
	slices.SortFunc(l.Links, func(a, b homeproto.Link) int { return cmp.Compare(a.Target, b.Target) })
	return l
}

func (j *job) listing() homeproto.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	l := homeproto.Job{
		Agent: j.req.Pid, Sysid: j.req.Sysid, Server: j.ask.Name, Command: commandLine(j),
		Since: j.begun.UnixNano(), State: "starting",
	}
	if j.started != nil {
		l.State, l.Remote, l.Peer = "running", j.started.ServerID, j.sess.peer.Sysid
	}
	if j.stopped {
		l.State = "stopped"
	}
	return l
}

// commandLine is a job's command line as a list shows it.
func commandLine(j *job) string {
	switch {
	case j.req.Shell != nil:
		return string(j.req.Shell)
	case j.req.Login:
		return "(login shell)"
	}
	return string(bytes.Join(j.req.Argv, []byte(" ")))
}

func (s *session) listing() (homeproto.Link, bool) {
	select {
	case <-s.ready:
	default:
		return homeproto.Link{}, false
	}
	if s.failed != nil {
		return homeproto.Link{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.conn.Stats()
	return homeproto.Link{
		Target: s.target, Peer: s.peer.Sysid, BytesIn: stats.BytesIn, BytesOut: stats.BytesOut, Jobs: len(s.jobs),
	}, true
}
