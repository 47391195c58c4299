package journeys

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rexec/internal/testenv"
	"rexec/internal/testenv/lab"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// long is set by `scripts/test long`.
var long = os.Getenv("REXEC_TEST_LONG") != ""

// taskLimit ends a task that hangs, before the test binary's own limit ends
// everything without a word about which one it was.
func taskLimit() time.Duration {
	if long {
		return 15 * time.Minute
	}
	return 2 * time.Minute
}

// tools is the SWITCH with which the tools come from the server.
const tools = "/usr:/lib:/lib64:/bin"

// rig is a lab and a journey's own directory in it.
type rig struct {
	*lab.Lab
	base string // the directory, below /root of the client
	home string // the same, as this machine names it
}

// TestJourneys makes all journeys over a link of each delay.
func TestJourneys(t *testing.T) {
	delays := []time.Duration{200 * time.Microsecond}
	if long {
		delays = append(delays, 20*time.Millisecond)
	}
	for _, rtt := range delays {
		t.Run(rtt.String(), func(t *testing.T) {
			l := lab.New(t, lab.Config{RTT: rtt, Mbit: 1000})
			run(t, l.Client, "", "mkdir tmp")
			// Not this machine's /tmp, which the client has too.
			l.Client.Vars = append(l.Client.Vars, "TMPDIR=/root/tmp")
			for _, j := range []struct {
				name string
				do   func(t *testing.T, r *rig)
			}{
				{"build", build}, {"switch", switches}, {"git", git}, {"tar", tar}, {"venv", venv},
				{"sqlite", sqlite}, {"vim", vim}, {"less", less},
			} {
				t.Run(j.name, func(t *testing.T) {
					run(t, l.Client, "", "mkdir "+j.name)
					j.do(t, &rig{l, j.name, filepath.Join(l.Client.Root, "root", j.name)})
				})
			}
		})
	}
}

// some is n where all is done, else a small part of it.
func some(n, part int) int {
	if long {
		return n
	}
	return part
}

// local runs shell text on the client, in a directory below the journey's, and
// returns all that it printed.
func (r *rig) local(t *testing.T, dir, text string) string {
	t.Helper()
	return run(t, r.Client, r.base+"/"+dir, text)
}

func run(t *testing.T, h *lab.Host, dir, text string) string {
	t.Helper()
	out, err := combined(t, h, dir, text)
	if err != nil {
		t.Fatalf("on %s: %s: %v\n%s", h.Name, text, err, out)
	}
	return out
}

func combined(t *testing.T, h *lab.Host, dir, text string) (string, error) {
	t.Helper()
	cmd := h.Command("/bin/sh", "-c", "cd \"/root/$0\" && { "+text+"\n}", dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := wait(t, cmd)
	return out.String(), err
}

// wait waits for a command within the limit of a task.
func wait(t *testing.T, cmd *exec.Cmd) error {
	t.Helper()
	timer := time.AfterFunc(taskLimit(), func() { _ = cmd.Process.Kill() })
	cmd.WaitDelay = time.Second // what it started may hold its pipes
	err := cmd.Wait()
	if !timer.Stop() {
		return fmt.Errorf("killed after %v: %w", taskLimit(), err)
	}
	return err
}

// cost is what --stats printed of a command.
type cost struct {
	out, in int // bytes from home and to home
	line    string
}

var statsLine = regexp.MustCompile(`(?m)^rexec: .* (\d+) bytes out, (\d+) bytes in.*\n`)

// there runs "rexec server" with args, in a directory below the journey's; shell text
// is one argument. It returns what the command printed and what it cost, and
// logs the cost under the name what.
func (r *rig) there(t *testing.T, what, dir, switched string, args ...string) (string, cost) {
	t.Helper()
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	begin := time.Now()
	out := run(t, r.Client, r.base+"/"+dir, "SWITCH="+switched+" exec rexec --stats server "+strings.Join(quoted, " "))
	took := time.Since(begin)
	out, c := split(t, out)
	t.Logf("%s: %.2f s; %s", what, took.Seconds(), c.line)
	return out, c
}

// split takes the line of --stats out of what a command printed.
func split(t *testing.T, out string) (string, cost) {
	t.Helper()
	m := statsLine.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no line of --stats in %q", out)
	}
	c := cost{line: strings.TrimSpace(strings.TrimPrefix(m[0], "rexec: "))}
	c.out, _ = strconv.Atoi(m[1]) // digits
	c.in, _ = strconv.Atoi(m[2])
	return strings.Replace(out, m[0], "", 1), c
}

// same fails the test where two directories below the journey's differ in
// names, types, modes, sizes, link targets or contents.
func (r *rig) same(t *testing.T, a, b string) {
	t.Helper()
	list := `cd "/root/$0" && { find . ! -type d -printf '%P %y %m %s %l\n' -o -printf '%P %y %m\n'; find . -type f -exec sha256sum {} +; } | LC_ALL=C sort`
	left, right := r.listing(t, list, a), r.listing(t, list, b)
	if left == "" {
		t.Errorf("%s: nothing there", a)
	}
	for _, line := range onlyIn(left, right) {
		t.Errorf("only in %s: %s", a, line)
	}
	for _, line := range onlyIn(right, left) {
		t.Errorf("only in %s: %s", b, line)
	}
}

func (r *rig) listing(t *testing.T, text, dir string) string {
	t.Helper()
	out, err := r.Client.Command("/bin/sh", "-c", text, r.base+"/"+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("list %s: %v: %s", dir, err, out)
	}
	return string(out)
}

// onlyIn lists lines of a that b lacks, ten at most.
func onlyIn(a, b string) (only []string) {
	have := make(map[string]bool)
	for line := range strings.Lines(b) {
		have[line] = true
	}
	for line := range strings.Lines(a) {
		if !have[line] && len(only) < 10 {
			only = append(only, strings.TrimSuffix(line, "\n"))
		}
	}
	return only
}

// write makes a file in the journey's directory.
func (r *rig) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.home, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
