package fsproto

import (
	"context"
	"errors"
	"strings"
	"syscall"
)

// Errno gives the errno within err: 0 for nil, EINTR for a context that
// ended, EIO where nothing better is known.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	}
	return syscall.EIO
}

// CheckName says whether name may be used as one component of a path: EINVAL
// for what no honest peer sends, ENAMETOOLONG above 255 bytes.
func CheckName(name string) error {
	switch {
	case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > 255:
		return syscall.ENAMETOOLONG
	}
	return nil
}
