package capture

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// closedAtEntry is what entry (entry_amd64.s) found. It stays 0 in a program
// that was linked without it.
var closedAtEntry uint8

// wasClosed says whether descriptor fd is /dev/null only because the runtime
// opened that.
func wasClosed(fd int) bool {
	return fd <= 2 && closedAtEntry&(1<<fd) != 0
}

// NullStdin makes descriptor 0 one of /dev/null.
func NullStdin() error {
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, 0, 0); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	closedAtEntry &^= 1
	return nil
}
