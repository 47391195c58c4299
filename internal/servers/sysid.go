package servers

import (
	"crypto/sha256"
	"encoding/base32"
	"os"
	"path/filepath"
	"strings"
)

// Sysid is this machine's name among machines, the first half of a process
// number "sysid:pid": what /etc/rexec/sysid says, else a short hash of
// /etc/machine-id (which must not be shown itself, see machine-id(5)), else of
// the host name.
func Sysid() string { return sysid("/etc") }

func sysid(etc string) string {
	if b, err := readBounded(filepath.Join(etc, "rexec/sysid")); err == nil {
		if id := strings.TrimSpace(string(b)); len(id) <= 64 && isName(id) {
			return id
		}
	}
	for _, name := range []string{filepath.Join(etc, "machine-id"), "/var/lib/dbus/machine-id"} {
		b, err := readBounded(name)
		if id := strings.TrimSpace(string(b)); err == nil && id != "" && id != "uninitialized" {
			return short(id)
		}
	}
	host, _ := os.Hostname()
	return short(host)
}

// short gives ten letters and digits: 50 bits.
func short(id string) string {
	sum := sha256.Sum256([]byte("rexec sysid\n" + id))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:10]
}
