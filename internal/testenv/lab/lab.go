// Package lab makes two hosts on this machine: a client and a server with
// roots, users and hostnames of their own, joined by a link with a set
// round-trip time, bandwidth and loss.
//
// A host is a set of namespaces (network, mount, PID, UTS, IPC) held by its
// first process; everything on it ends with that. The server has a root
// directory of its own: /etc, /root, /home, /var, /tmp, /usr/local are its own,
// the rest of /usr is this machine's, read-only. A real sshd runs on it,
// rexecd is in its PATH, and only it has /etc/marker. The client sees this
// machine's files with /root, /home, /etc/passwd and /etc/group its own. On
// each, /root/marker holds the host's name. The client reaches the server by
// the names of its ssh configuration: "server" (as root) and "server-dev" (as
// the user dev there).
//
// The link is a program between two TUN devices, because a kernel need not
// have netem. It needs root, /dev/net/tun, ip, ssh, sshd, nsenter, unshare.
package lab

import (
	"bufio"
	"bytes"
	_ "embed" // the hosts' set-up
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rexec/internal/testenv"
)

// Config describes the link.
type Config struct {
	RTT  time.Duration
	Mbit float64 // each way; 0: not limited
	Loss float64 // share of packets lost each way; not 0: no segmentation offload
}

// Lab is the two hosts. Close ends both.
type Lab struct {
	Client, Server *Host
	dir            string
	link           *link
}

// Host is one of them.
type Host struct {
	Name string
	Pid  int      // of its first process, as this machine counts
	Vars []string // environment of commands on it
	Root string   // where this machine has the host's own files
	Addr string

	unshare *exec.Cmd
	alive   io.Closer // the host ends when it is closed, so also when this process dies
	log     bytes.Buffer
}

//go:embed host.sh
var setup string

// New makes a lab for one test, with the programs under test installed.
func New(t testing.TB, c Config) *Lab {
	t.Helper()
	b := testenv.Build(t)
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Start(dir, b.Dir, c)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("lab: %v", err)
		}
	})
	return l
}

// Start makes a lab whose files are in dir (which becomes its own and is
// removed at the end), with the programs that are in bin.
func Start(dir, bin string, c Config) (l *Lab, err error) {
	l = &Lab{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := prepare(dir, bin); err != nil {
		return l, err
	}
	if l.Server, err = startHost(dir, "server", "10.77.0.2"); err != nil {
		return l, err
	}
	if l.Client, err = startHost(dir, "client", "10.77.0.1"); err != nil {
		return l, err
	}
	if err := l.join(c); err != nil {
		return l, err
	}
	return l, l.ready()
}

// prepare writes the files that the hosts' set-up starts from: programs, keys.
func prepare(dir, bin string) error {
	script := filepath.Join(dir, "host.sh")
	err := errors.Join(
		os.Chmod(dir, 0o755),
		os.Mkdir(filepath.Join(dir, "bin"), 0o755),
		os.WriteFile(script, []byte(setup), 0o644),
	)
	if err != nil {
		return err
	}
	programs, err := filepath.Glob(filepath.Join(bin, "rexec*"))
	if err != nil {
		return err
	}
	if len(programs) > 0 {
		cp := exec.Command("cp", append(programs, filepath.Join(dir, "bin"))...)
		if out, err := cp.CombinedOutput(); err != nil {
			return fmt.Errorf("cp: %w: %s", err, out)
		}
	}
	for _, key := range []string{"user", "host"} {
		keygen := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", filepath.Join(dir, key))
		if out, err := keygen.CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	return nil
}

// startHost starts a host's first process and waits until its root is made.
func startHost(dir, name, addr string) (*Host, error) {
	h := &Host{Name: name, Addr: addr, Root: filepath.Join(dir, name)}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h.unshare = exec.Command("unshare", "--mount", "--pid", "--uts", "--net", "--ipc", "--fork", "--kill-child",
		"sh", "-e", filepath.Join(dir, "host.sh"), name, dir)
	h.unshare.ExtraFiles = []*os.File{w} // 3: the script says there that it is done
	h.unshare.Stdout, h.unshare.Stderr = &h.log, &h.log
	h.unshare.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	h.unshare.WaitDelay = 5 * time.Second
	if h.alive, err = h.unshare.StdinPipe(); err != nil {
		return nil, err
	}
	err = h.unshare.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	// Not until its end: unshare holds it as well, all the time.
	said, _ := bufio.NewReader(r).ReadString('\n')
	if said != "ready\n" {
		return nil, errors.Join(fmt.Errorf("the %s's set-up failed: %w", name, h.stop()), errors.New(h.log.String()))
	}
	if h.Pid, err = child(h.unshare.Process.Pid); err != nil {
		return nil, errors.Join(err, h.stop())
	}
	bin := filepath.Join(dir, "bin") + ":"
	if name == "server" {
		bin = "" // its own are in /usr/local/bin
	}
	h.Vars = []string{
		"PATH=" + bin + "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LC_ALL=C", "TZ=UTC", "TERM=dumb",
		"XDG_RUNTIME_DIR=/root/.run",
	}
	return h, nil
}

// child is the only child of a process.
func child(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// Command is a command on the host, run as root there in /root. It is killed
// with the host at the latest.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append(h.enter(), append([]string{name}, args...)...)...)
	cmd.Env = h.Vars
	return cmd
}

// enter is nsenter's arguments for this host.
func (h *Host) enter() []string {
	return []string{"-t", strconv.Itoa(h.Pid), "-m", "-u", "-i", "-n", "-p", "--root=/proc/" + strconv.Itoa(h.Pid) + "/root", "--wd=/proc/" + strconv.Itoa(h.Pid) + "/cwd", "--"}
}

// runLimit is how long shell text may take.
const runLimit = 100 * time.Second

// Run runs shell text on the host; an error holds what it printed.
func (h *Host) Run(text string) (string, error) {
	cmd := h.Command("/bin/sh", "-c", text)
	cmd.WaitDelay = runLimit // what it started goes on and holds the pipe
	var buf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err := cmd.Start()
	if err == nil {
		late := time.AfterFunc(runLimit, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		late.Stop()
	}
	out := buf.Bytes()
	if err != nil {
		return string(out), fmt.Errorf("on %s: %s: %w: %s", h.Name, text, err, out)
	}
	return string(out), nil
}

func (h *Host) stop() error {
	if h == nil {
		return nil
	}
	// --kill-child: the first process, and so all of the PID namespace, goes
	// with unshare.
	_ = h.unshare.Process.Kill()
	err := h.unshare.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = nil
	}
	if h.Pid == 0 {
		return err
	}
	// unshare is reaped before its child is gone.
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, gone := os.Stat(fmt.Sprintf("/proc/%d", h.Pid)); gone != nil {
			return err
		}
		if time.Now().After(limit) {
			return errors.Join(err, fmt.Errorf("the %s's first process %d does not end", h.Name, h.Pid))
		}
	}
}

// join makes the link and gives both ends their addresses.
func (l *Lab) join(c Config) error {
	var ends [2]*os.File
	for i, h := range []*Host{l.Client, l.Server} {
		f, err := openTUN(h.Pid, c.Loss == 0)
		if err != nil {
			return fmt.Errorf("link to %s: %w", h.Name, err)
		}
		ends[i] = f
	}
	l.link = newLink(ends[0], ends[1], c)
	for _, h := range []*Host{l.Client, l.Server} {
		peer := l.Server
		if h == l.Server {
			peer = l.Client
		}
		_, err := h.Run("ip link set lo up && ip addr add " + h.Addr + " peer " + peer.Addr + " dev link0 && ip link set link0 mtu 1500 txqueuelen 1000 up")
		if err != nil {
			return err
		}
	}
	return nil
}

// ready waits until sshd answers.
func (l *Lab) ready() error {
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := l.Client.Run("ssh server true </dev/null")
		if err == nil {
			return nil
		}
		if time.Now().After(limit) {
			return err
		}
	}
}

// Close ends both hosts and removes their files.
func (l *Lab) Close() error {
	err := errors.Join(l.Client.stop(), l.Server.stop())
	if l.link != nil {
		l.link.close()
		l.link = nil
	}
	return errors.Join(err, os.RemoveAll(l.dir))
}
