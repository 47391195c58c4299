package servers

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"rexec/rer"
)

// Kind says how a server is reached.
type Kind uint8

// Kinds of targets.
const (
	Local    Kind = iota // no server: run the command here, the ordinary way
	Loopback             // a private rexecd started on this machine
	SSH                  // Host, with User and Port where they were given
	Unix                 // a daemon's socket at Path
)

// Target is where a command is to run.
type Target struct {
	Kind             Kind
	Name             string // as the user wrote it
	User, Host, Port string
	Path             string
}

// String gives the target's canonical form: "local", "loopback",
// "ssh://user@host:port", "unix:/path". Parse reads it back.
func (t Target) String() string {
	switch t.Kind {
	case Loopback:
		return "loopback"
	case Unix:
		return "unix:" + t.Path
	case SSH:
		u := url.URL{Scheme: "ssh", Host: t.Host}
		if strings.Contains(t.Host, ":") {
			u.Host = "[" + t.Host + "]"
		}
		if t.Port != "" {
			u.Host = net.JoinHostPort(t.Host, t.Port)
		}
		if t.User != "" {
			u.User = url.User(t.User)
		}
		return u.String()
	}
	return "local"
}

// IsURL says whether a HOST is a URL and no name.
func IsURL(host string) bool {
	return strings.Contains(host, "://") || strings.HasPrefix(host, "unix:")
}

// Parse reads "local", "loopback" or a URL. A failure is a *rer.Refused.
func Parse(s string) (Target, error) {
	switch {
	case s == "local":
		return Target{Kind: Local, Name: s}, nil
	case s == "loopback":
		return Target{Kind: Loopback, Name: s}, nil
	case strings.HasPrefix(s, "unix:"):
		return parseUnix(s)
	case strings.HasPrefix(s, "tls://"):
		return Target{}, refuse(rer.ReasonUnreachable, "reach it by ssh://", "%s: tls is not in this version", s)
	case strings.HasPrefix(s, "ssh://"):
		return parseSSH(s)
	}
	return Target{}, refuse(rer.ReasonUnknownHost, "ssh://[user@]host[:port] or unix:/path", "%q is no URL of a server", s)
}

func parseUnix(s string) (Target, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(s, "unix:"), "//")
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return Target{}, refuse(rer.ReasonUnknownHost, "unix:/path", "%q: no absolute path", s)
	}
	return Target{Kind: Unix, Name: s, Path: filepath.Clean(path)}, nil
}

func parseSSH(s string) (Target, error) {
	bad := func(why string) (Target, error) {
		return Target{}, refuse(rer.ReasonUnknownHost, "ssh://[user@]host[:port]", "%q: %s", s, why)
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad("no URL")
	}
	t := Target{Kind: SSH, Name: s, User: u.User.Username(), Host: u.Hostname(), Port: u.Port()}
	_, password := u.User.Password()
	switch {
	case password:
		return bad("passwords do not belong here")
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return bad("something follows the host")
	case t.Host == "":
		return bad("no host")
	case t.Port != "" && !isPort(t.Port):
		return bad("no port number")
	case strings.ContainsAny(t.Host, ":[]%") && !isIPv6(t.Host):
		return bad("no address")
	}
	for _, word := range []string{t.User, t.Host} {
		if strings.HasPrefix(word, "-") || strings.ContainsFunc(word, unfit) {
			return bad("a name that ssh would misread")
		}
	}
	return t, nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

func isIPv6(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is6()
}

// unfit says whether a character has no place in a user or host name.
func unfit(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("'\"`$\\;&<>|(){}", r) }

func refuse(why rer.Reason, hint, format string, args ...any) *rer.Refused {
	return &rer.Refused{Reason: why, Text: fmt.Sprintf(format, args...), Hint: hint}
}
