package session

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"rexec/disallow"
	"rexec/fsview/fsproto"
	"rexec/fsview/origin"
)

// served is a directory of the server's that is shown through FUSE.
type served struct {
	origin fsproto.Origin
	root   fsproto.Node
	close  func()
}

// openServed opens a directory of the server's without what is forbidden in
// it: each component of each name is looked at, so that a forbidden directory
// stays out of reach wherever its parents are moved.
func openServed(prefix string, forbidden []string) (served, error) {
	fd, err := unix.Open(prefix, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return served{}, err
	}
	defer unix.Close(fd)
	// A link may lead elsewhere by now.
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return served{}, err
	}
	if disallow.Match(forbidden, at) {
		return served{}, fmt.Errorf("leads to %s: %w", at, unix.EACCES)
	}
	o, err := origin.New(origin.Options{
		Hide:   func(name string) bool { return disallow.Match(forbidden, name) },
		Expose: origin.ExposeAll,
	})
	if err != nil {
		return served{}, err
	}
	root, _, err := o.AdoptNode(fd)
	if err != nil {
		o.Close()
		return served{}, err
	}
	return served{o, root, o.Close}, nil
}
