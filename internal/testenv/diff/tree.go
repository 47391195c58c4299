package diff

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// snapshot describes every file below dir in one line: name, type and mode,
// owner, links, and for regular files size, extended attributes and content.
// Times are left out; a case that sets one prints it.
func snapshot(dir string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		line, err := describe(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprintf("%q %s", name, line))
		return nil
	})
	return lines, err
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", fmt.Errorf("lstat %s: %w", path, err)
	}
	line := fmt.Sprintf("%06o %d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		content, err := digest(path)
		return fmt.Sprintf("%s links=%d size=%d%s %s", line, st.Nlink, st.Size, xattrs(path), content), err
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		return fmt.Sprintf("%s links=%d -> %q", line, st.Nlink, target), err
	case unix.S_IFCHR, unix.S_IFBLK:
		return fmt.Sprintf("%s device=%d:%d", line, unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
	case unix.S_IFDIR:
		return fmt.Sprintf("%s links=%d%s", line, st.Nlink, xattrs(path)), nil
	}
	return line, nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

func xattrs(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return "" // none, or a file system without
	}
	var all strings.Builder
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		m, _ := unix.Lgetxattr(path, name, value)
		fmt.Fprintf(&all, " %s=%x", name, value[:max(m, 0)])
	}
	return all.String()
}
