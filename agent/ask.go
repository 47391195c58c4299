package agent

import (
	"crypto/rand"
	"os"
	"path"
	"slices"
	"strings"

	"rexec/agent/capture"
	"rexec/agent/homeproto"
)

// ask builds what home is asked from what was captured.
func (a *agent) ask(target string) *homeproto.Ask {
	o, r := &a.opt, a.captured.Request
	_, _ = rand.Read(r.ID[:]) // never fails
	r.Login, r.Sysid = o.Login, o.Sysid
	if o.Shell != "" {
		r.Shell = []byte(o.Shell)
	}
	for _, arg := range o.Argv {
		r.Argv = append(r.Argv, []byte(arg))
	}
	list, bad := switchList(append([]string{os.Getenv("SWITCH")}, o.Switch...))
	for _, element := range bad {
		a.verbose("SWITCH element %q is no absolute path and was ignored", element)
	}
	r.Switch = list
	ask := &homeproto.Ask{
		Target: target, Name: o.Host, Request: r, Tty: a.captured.Tty != nil,
		Verbose: o.Verbose, Stats: o.Stats, NoCache: o.NoCache, Rexecd: o.Rexecd, SSH: o.SSH,
	}
	if o.Quiet {
		ask.Verbose = 0
	}
	if target == "loopback" || strings.HasPrefix(target, "ssh:") {
		ask.Env, _ = capture.Environment() // it was read before
	}
	return ask
}

// switchList joins colon lists. An element that is no absolute path is given
// back apart, unless it is empty.
func switchList(lists []string) (list, bad []string) {
	for element := range strings.SplitSeq(strings.Join(lists, ":"), ":") {
		switch {
		case element == "":
		case !path.IsAbs(element):
			bad = append(bad, element)
		case !slices.Contains(list, path.Clean(element)):
			list = append(list, path.Clean(element))
		}
	}
	return list, bad
}

// files are the descriptors that go with an ask, in their order.
func (a *agent) files() []*os.File {
	files := []*os.File{a.captured.Root, a.captured.Cwd}
	if a.captured.Tty != nil {
		files = append(files, a.captured.Tty)
	}
	return append(files, a.captured.Files...)
}
