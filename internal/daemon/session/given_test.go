package session

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// TestGiven: what home has edited comes to a reader as it is, without an echo,
// and the settings are the same afterwards.
func TestGiven(t *testing.T) {
	cases := []struct {
		name     string
		set      func(*unix.Termios)
		end      bool
		in, want string
	}{
		{"line", nil, true, "text\n", "text\n"},
		{"special characters", nil, true, "a\x03b\x04\x7f\x15\r\x16\n", "a\x03b\x04\x7f\x15\r\x16\n"},
		{"part of a line", nil, true, "part", "part"},
		{"part with marks", nil, true, "\x01\x02\x04", "\x01\x02\x04"},
		{"end of file", nil, true, "", ""},
		{"without echo", func(s *unix.Termios) { s.Lflag &^= unix.ECHO }, true, "secret\n", "secret\n"},
		{"bytes", func(s *unix.Termios) { s.Lflag &^= unix.ICANON | unix.ECHO }, false, "\r\x03q", "\r\x03q"},
		{"echoed bytes", func(s *unix.Termios) { s.Lflag &^= unix.ICANON }, false, "\r\nq", "\r\nq"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			master, slave, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer master.Close()
			defer slave.Close()
			m, s := int(master.Fd()), int(slave.Fd())
			before, err := unix.IoctlGetTermios(s, unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			if c.set != nil {
				c.set(before)
			}
			if err := unix.IoctlSetTermios(s, unix.TCSETS, before); err != nil {
				t.Fatal(err)
			}
			if rest, err := passOver(m, c.end, []byte(c.in)); err != nil || len(rest) > 0 {
				t.Fatalf("%q left, %v", rest, err)
			}
			if after, err := unix.IoctlGetTermios(s, unix.TCGETS); err != nil || *after != *before {
				t.Errorf("settings %+v, %v", after, err)
			}
			buf := make([]byte, 100)
			if n, err := unix.Read(s, buf); err != nil || string(buf[:n]) != c.want {
				t.Errorf("read %q, %v", buf[:max(n, 0)], err)
			}
			if n, err := unix.IoctlGetInt(m, unix.TIOCINQ); err != nil || n != 0 {
				t.Errorf("%d bytes of echo, %v", n, err)
			}
		})
	}
}

// nonblock looks for input now and then.
const nonblock = `exec python3 -c 'import os, time
os.set_blocking(0, False)
time.sleep(1000)'`

// TestGroupWaits: who sleeps, waits for a child or reads a pipe does not read
// the terminal.
func TestGroupWaits(t *testing.T) {
	for script, want := range map[string]bool{
		"echo up; read x":                   true,
		"echo up; sleep 1000; :":            false,
		"(echo up; sleep 1000) | cat; :":    false,
		nonblock:                            true,
		"(echo up; sleep 1000) | read x; :": false,
	} {
		t.Run(script, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", script)
			master, err := pty.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer master.Close()
			defer cmd.Wait()
			defer unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			eventuallyAsleep(t, cmd.Process.Pid)
			for range 3 {
				if got := groupWaits(cmd.Process.Pid); got != want {
					t.Errorf("waits: %v; %s", got, places(cmd.Process.Pid))
				}
			}
		})
	}
}

// eventuallyAsleep waits until a script's processes have come to rest.
func eventuallyAsleep(t *testing.T, pid int) {
	t.Helper()
	last, same := "", 0
	for end := time.Now().Add(20 * time.Second); same < 10; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the script does not come to rest")
		}
		now := places(pid)
		if same++; now != last || strings.Contains(now, " R") || strings.Contains(now, " D") {
			last, same = now, 0
		}
	}
}

// places says what the processes of a group do.
func places(group int) string {
	var all strings.Builder
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		comm, f := procStat(name)
		if len(f) < 3 || f[2] != fmt.Sprint(group) {
			continue
		}
		at, _ := os.ReadFile(filepath.Dir(name) + "/wchan")
		fmt.Fprintf(&all, "%s %s at %s; ", comm, f[0], at)
	}
	return all.String()
}
