package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"rexec/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// start makes a lab without the programs under test.
func start(t *testing.T, c Config) *Lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Start(dir, t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the lab's directory is left")
		}
	})
	return l
}

func (h *Host) must(t *testing.T, text string) string {
	t.Helper()
	out, err := h.Run(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestHosts(t *testing.T) {
	l := start(t, Config{})
	for _, c := range []struct {
		host       *Host
		text, want string
	}{
		{l.Client, "hostname", "client\n"},
		{l.Server, "hostname", "server\n"},
		{l.Client, "ssh server hostname", "server\n"},
		{l.Client, "ssh server cat /etc/marker", "server\n"},
		{l.Client, "ssh server-dev id -un", "dev\n"},
		{l.Client, "id -un ann; cat /root/marker; test -e /etc/marker; echo $?", "ann\nclient\n1\n"},
		{l.Client, "ssh server only-on-server", "only on the server\n"},
		{l.Server, "ls /root/.ssh", "authorized_keys\n"},
		{l.Server, "touch /usr/x 2>/dev/null; echo $?", "1\n"},
		{l.Client, "ssh -tt server tty 2>/dev/null </dev/null", "/dev/pts/0\r\n"},
		{l.Server, "test -c /dev/fuse && echo fuse", "fuse\n"},
		{l.Server, "cat /proc/1/comm", "sh\n"},
	} {
		if got := c.host.must(t, c.text); got != c.want {
			t.Errorf("on %s: %s: got %q, want %q", c.host.Name, c.text, got, c.want)
		}
	}
}

// TestLink: the link has the delay and the bandwidth that were asked for, with
// wide limits because the machine may be loaded.
func TestLink(t *testing.T) {
	l := start(t, Config{RTT: 40 * time.Millisecond, Mbit: 80})
	out := l.Client.must(t, "ping -q -c 5 -i 0.2 10.77.0.2 | tail -n 1") // rtt min/avg/max/mdev = a/b/c/d ms
	var least float64
	fields := strings.Split(strings.TrimSpace(out), " = ")
	if _, err := fmt.Sscanf(fields[len(fields)-1], "%g/", &least); err != nil {
		t.Fatalf("ping said %q: %v", out, err)
	}
	if least < 40 || least > 60 {
		t.Errorf("round trip: %v ms, want 40", least)
	}
	const size = 10e6
	begin := time.Now()
	l.Client.must(t, fmt.Sprintf("ssh -o Compression=no server head -c %.0f /dev/zero >/dev/null", size))
	took := time.Since(begin)
	if ideal := time.Duration(size * 8 / 80 * float64(time.Microsecond)); took < ideal || took > 4*ideal {
		t.Errorf("%.0f bytes at 80 Mbit/s took %v, want a little over %v", size, took, ideal)
	}
}

// TestLoss: packets are lost and TCP mends it.
func TestLoss(t *testing.T) {
	l := start(t, Config{RTT: time.Millisecond, Loss: 0.05})
	sum := l.Client.must(t, "head -c 300000 /dev/zero | ssh server md5sum | cut -c 1-32")
	if want := l.Client.must(t, "head -c 300000 /dev/zero | md5sum | cut -c 1-32"); sum != want {
		t.Errorf("over a lossy link: got %s want %s", sum, want)
	}
	out := l.Client.must(t, "ping -q -c 200 -i 0.002 10.77.0.2 | grep -o '[0-9.]*% packet loss'")
	var percent float64
	if _, err := fmt.Sscanf(out, "%g%%", &percent); err != nil {
		t.Fatalf("ping said %q: %v", out, err)
	}
	if percent < 1 || percent > 35 {
		t.Errorf("5 %% lost each way: ping lost %v %%", percent)
	}
}

func TestWireBytes(t *testing.T) {
	plain := make([]byte, vnetHeader+1500)
	if got := wireBytes(plain); got != 1500+framing {
		t.Errorf("plain: %d", got)
	}
	// Four segments of 1448 bytes with 52 bytes of headers.
	big := make([]byte, vnetHeader+52+4*1448)
	copy(big, []byte{0, 1, 52, 0, 0xa8, 0x05})
	if got := wireBytes(big); got != 4*(1500+framing) {
		t.Errorf("segmented: %d, want %d", got, 4*(1500+framing))
	}
	if got := wireBytes(nil); got != framing {
		t.Errorf("nothing: %d", got)
	}
}
