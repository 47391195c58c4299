package session

import (
	"os"
	"os/user"
	"path"
	"runtime"
	"strings"
	"time"

	"rexec/internal/servers"
	"rexec/rer"
)

// hello is this side's greeting.
func (s *Session) hello() *rer.Hello {
	h := &rer.Hello{
		Versions: [2]int{rer.VersionMin, rer.VersionMax}, Build: s.cfg.Build, Sysid: servers.Sysid(),
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		Arch: runtime.GOARCH, NumCPU: runtime.NumCPU(), Clock: time.Now().UnixNano(),
	}
	h.Hostname, _ = os.Hostname()
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	if groups, err := os.Getgroups(); err == nil {
		for _, g := range groups {
			h.Groups = append(h.Groups, uint32(g))
		}
	}
	return h
}

// isClean says whether name is an absolute path without anything to resolve
// in it.
func isClean(name string) bool {
	return strings.HasPrefix(name, "/") && path.Clean(name) == name && strings.IndexByte(name, 0) < 0
}
