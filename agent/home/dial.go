package home

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"rexec/agent/homeproto"
	"rexec/internal/transport"
)

var errTarget = errors.New("no such kind of target")

// dial makes the byte stream to what ask names.
func (h *Home) dial(ctx context.Context, ask *homeproto.Ask) (io.ReadWriteCloser, error) {
	switch {
	case ask.Target == "loopback":
		program, err := h.rexecd(ask)
		if err != nil {
			return nil, err
		}
		return transport.DialCommand(ctx, []string{program, "stdio"}, environment(ask))
	case strings.HasPrefix(ask.Target, "unix:"):
		return transport.DialUnix(ctx, strings.TrimPrefix(ask.Target, "unix:"))
	case strings.HasPrefix(ask.Target, "ssh://"):
		return dialSSH(ctx, ask)
	}
	return nil, fmt.Errorf("%q: %w", ask.Target, errTarget)
}

func dialSSH(ctx context.Context, ask *homeproto.Ask) (io.ReadWriteCloser, error) {
	u, err := url.Parse(ask.Target)
	if err != nil {
		return nil, err
	}
	return transport.DialSSH(ctx, transport.SSH{
		Program: ask.SSH, User: u.User.Username(), Host: u.Hostname(), Port: u.Port(),
		Env: environment(ask),
	})
}

// rexecd finds the server's program for loopback.
func (h *Home) rexecd(ask *homeproto.Ask) (string, error) {
	for _, path := range []string{ask.Rexecd, h.opt.Rexecd} {
		if path != "" {
			return path, nil
		}
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "rexecd")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	return exec.LookPath("rexecd")
}

// environment is the caller's: ssh finds its agent and configuration by it.
func environment(ask *homeproto.Ask) []string {
	var env []string
	for _, e := range ask.Env {
		env = append(env, string(e))
	}
	return env
}
