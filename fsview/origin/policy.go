package origin

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// HidePrivateKeys refuses (EACCES) the usual private keys: .ssh/id_* but not
// *.pub, and .gnupg/private-keys*, wherever they lie. It keeps keys from
// going astray; it is no wall against a program with the user's own rights.
func HidePrivateKeys(path string) error {
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir)
	if filepath.Base(dir) == ".ssh" && strings.HasPrefix(name, "id_") && !strings.HasSuffix(name, ".pub") {
		return unix.EACCES
	}
	if _, below, ok := strings.Cut(path, "/.gnupg/"); ok && strings.HasPrefix(below, "private-keys") {
		return unix.EACCES
	}
	return nil
}

// ExposeAll is Options.Expose that refuses nothing.
func ExposeAll(string) error { return nil }

// pathOf is where fd is now, as this process sees it.
func pathOf(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(fdPath(fd), buf)
	return string(buf[:max(n, 0)]), err
}

func (o *Origin) exposed(fd int) error { return o.exposedAt(fd, "") }

func (o *Origin) exposedName(dir *node, name string) error { return o.exposedAt(dir.fd, name) }

func (o *Origin) exposedAt(fd int, name string) error {
	path, err := pathOf(fd)
	switch {
	case err == unix.ENAMETOOLONG:
		return nil // deeper than PATH_MAX: the kernel has no name for it
	case err != nil:
		return err
	}
	return o.opt.Expose(filepath.Join(path, name))
}

// hidden asks Options.Hide about a name. A directory whose place is not known
// has nothing to show.
func (o *Origin) hidden(dir *node, name string) bool {
	if o.opt.Hide == nil {
		return false
	}
	path, err := pathOf(dir.fd)
	return err != nil || o.opt.Hide(filepath.Join(path, name))
}

// visible drops hidden names from a listing.
func (o *Origin) visible(dir *node, list []fsproto.Dirent) []fsproto.Dirent {
	if o.opt.Hide == nil {
		return list
	}
	path, err := pathOf(dir.fd)
	if err != nil {
		return nil
	}
	kept := list[:0]
	for _, d := range list {
		if d.Name == "." || d.Name == ".." || !o.opt.Hide(filepath.Join(path, d.Name)) {
			kept = append(kept, d)
		}
	}
	return kept
}
