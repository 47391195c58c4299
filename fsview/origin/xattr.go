package origin

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// maxXattr is the largest value and the longest list (xattr(7)), in bytes.
const maxXattr = 64 << 10

// withPath runs f with a name that leads to the node itself, even where that
// is a symbolic link.
func (o *Origin) withPath(id fsproto.Node, f func(path string) error) error {
	n, err := o.hold(id)
	if err != nil {
		return err
	}
	defer o.drop(n)
	return f(fdPath(n.fd))
}

// fill calls get with a small buffer first, since most answers are short.
func fill(get func([]byte) (int, error)) ([]byte, error) {
	for _, size := range []int{256, maxXattr} {
		buf := make([]byte, size)
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE {
			return nil, err
		}
	}
	return nil, unix.E2BIG
}

func checkXattr(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsRune(name, 0) {
		return unix.ERANGE // setxattr(2) for a name that is too long
	}
	return nil
}

func (o *Origin) Getxattr(ctx context.Context, in *fsproto.XattrIn) (v []byte, err error) {
	if err := checkXattr(in.Name); err != nil {
		return nil, err
	}
	err = o.withPath(in.Node, func(path string) error {
		v, err = fill(func(b []byte) (int, error) { return unix.Getxattr(path, in.Name, b) })
		return err
	})
	return v, err
}

func (o *Origin) Listxattr(ctx context.Context, id fsproto.Node) (v []byte, err error) {
	err = o.withPath(id, func(path string) error {
		v, err = fill(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
		return err
	})
	return v, err
}

func (o *Origin) Setxattr(ctx context.Context, in *fsproto.XattrIn) error {
	if err := checkXattr(in.Name); err != nil {
		return err
	}
	if len(in.Value) > maxXattr {
		return unix.E2BIG
	}
	return o.withPath(in.Node, func(path string) error {
		return unix.Setxattr(path, in.Name, in.Value, int(in.Flags))
	})
}

func (o *Origin) Removexattr(ctx context.Context, in *fsproto.XattrIn) error {
	if err := checkXattr(in.Name); err != nil {
		return err
	}
	return o.withPath(in.Node, func(path string) error { return unix.Removexattr(path, in.Name) })
}
