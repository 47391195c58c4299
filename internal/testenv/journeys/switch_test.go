package journeys

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"

	"rexec/internal/testenv/lab"
)

// switches: prefixes come from the server as far as its administrator lends
// them.
func switches(t *testing.T, r *rig) {
	for _, h := range []*lab.Host{r.Client, r.Server} {
		run(t, h, "", `mkdir -p switch/lent/deep switch/kept; cd switch; for f in lent/open lent/deep/secret kept/file; do echo "$(hostname)'s $f" >$f; done`)
	}
	run(t, r.Server, "", "printf '# not lent\\n/root/switch/kept\\n/root/switch/lent/deep/secret\\n' >/etc/rexec/disallowed")
	out, _ := r.there(t, "filtered", "", "/root/switch/lent:/root/switch/kept", `echo "$SWITCH"; cat lent/open kept/file lent/deep/secret`)
	if want := "/root/switch/lent\nserver's lent/open\nclient's kept/file\nclient's lent/deep/secret\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	r.renamedUnder(t)
}

// renamedUnder: the server's administrator replaces a forbidden file, and
// directories above it, while a job has the view; the job never sees it.
func (r *rig) renamedUnder(t *testing.T) {
	job := r.asker(t, "/root/switch/lent", `cd lent/deep; exec 7<.; while read -r x; do
		echo "$(cat secret) $(cat /root/switch/lent/deep/../deep/secret) $(cat /proc/self/fd/7/secret) $(cat /root/switch/lent/open)"
	done`)
	for _, step := range []string{
		":",
		"echo new server secret >lent/deep/new; mv lent/deep/new lent/deep/secret",
		"mv lent/deep/secret lent/deep/s2; mv lent/deep/s2 lent/deep/secret",
		"echo linked server secret >lent/deep/s3; ln lent/deep/s3 lent/deep/s4; mv lent/deep/s4 lent/deep/secret",
		"rm lent/deep/secret; echo once more a server secret >lent/deep/secret",
	} {
		run(t, r.Server, "switch", step)
		got, own := job.ask(t, "look"), "client's lent/deep/secret "
		if want := own + own + own + "server's lent/open"; got != want {
			t.Errorf("after %q the job saw %q, want %q", step, got, want)
		}
	}
	job.end(t)
}

// asker is a job that answers each line with a line.
type asker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (r *rig) asker(t *testing.T, switched, text string) *asker {
	t.Helper()
	cmd := r.Client.Command("/bin/sh", "-c", `cd /root/switch && SWITCH=$0 exec rexec server "$1"`, switched, text)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && said.Len() > 0 {
			t.Logf("the job's stderr: %s", said.String())
		}
	})
	return &asker{cmd, in, bufio.NewReader(out)}
}

func (a *asker) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := io.WriteString(a.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := a.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the job's answer: %v", err)
	}
	return strings.TrimSuffix(answer, "\n")
}

// end ends the job's input and waits for it.
func (a *asker) end(t *testing.T) {
	t.Helper()
	a.in.Close()
	if err := wait(t, a.cmd); err != nil {
		t.Errorf("the job: %v", err)
	}
}
