package homeproto

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest name that bind(2) takes, unix(7).
const maxSocketPath = 107

// keyLines are the lines of /proc/self/status that a home must have in common
// with its callers, lest it lend one what only another may.
var keyLines = []string{"Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:",
	"NoNewPrivs:", "Seccomp:"}

// SocketPath names the socket of the home that serves callers such as this
// process, in a directory that exists then and is the caller's alone: the
// name is a digest of ids, capabilities, no_new_privs, seccomp mode, LSM
// label, namespaces and root.
func SocketPath() (string, error) {
	key, err := callerKey()
	if err != nil {
		return "", err
	}
	name := "home-" + key
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) && len(run)+len("/rexec/")+len(name) <= maxSocketPath {
		dir := filepath.Join(run, "rexec")
		if checkDir(run, 0o022) == nil && privateDir(dir) == nil {
			return filepath.Join(dir, name), nil
		}
	}
	dir := fmt.Sprintf("/tmp/rexec-%d", os.Geteuid())
	if err := privateDir(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

// privateDir makes dir, or checks that it is the caller's alone.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("directory for home's socket: %w", err)
	}
	return checkDir(dir, 0o077)
}

// checkDir fails unless dir is a directory, no symbolic link, owned by the
// caller, and without the permission bits in others.
func checkDir(dir string, others uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("directory for home's socket: %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("directory for home's socket: %s is no directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("directory for home's socket: %s belongs to user %d", dir, st.Uid)
	case st.Mode&others != 0:
		return fmt.Errorf("directory for home's socket: %s has mode %04o", dir, st.Mode&0o7777)
	}
	return nil
}

// callerKey is a short digest of everything that decides what a process may
// do and see.
func callerKey() (string, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", fmt.Errorf("key of home: %w", err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(status)) {
		for _, key := range keyLines {
			if strings.HasPrefix(line, key) {
				b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
			}
		}
	}
	label, _ := os.ReadFile("/proc/self/attr/current") // fails where no LSM has labels
	fmt.Fprintf(&b, "label %q\n", strings.TrimRight(string(label), "\x00\n"))
	for _, ns := range []string{"user", "mnt", "pid"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return "", fmt.Errorf("key of home: %w", err)
		}
		b.WriteString(link + "\n")
	}
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return "", fmt.Errorf("key of home: stat /: %w", err)
	}
	fmt.Fprintf(&b, "root %d %d\n", st.Dev, st.Ino)
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:10]), nil
}
