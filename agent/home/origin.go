package home

import (
	"os/signal"

	"golang.org/x/sys/unix"

	"rexec/agent/homeproto"
	"rexec/fsview/origin"
)

var _ Origin = (*origin.Origin)(nil)

// nativeOrigin lends this machine's files. It wants the process to have no
// umask and to ignore SIGXFSZ.
func nativeOrigin(ask *homeproto.Ask) (Origin, error) {
	unix.Umask(0)
	signal.Ignore(unix.SIGXFSZ)
	o, err := origin.New(origin.Options{Leases: !ask.NoCache})
	if err != nil {
		return nil, err
	}
	return o, nil
}
