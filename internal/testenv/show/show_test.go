package show

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
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

// near is a link like a local network's.
var near = lab.Config{RTT: 200 * time.Microsecond, Mbit: 1000}

// far is a link to another city.
var far = lab.Config{RTT: 20 * time.Millisecond, Mbit: 1000}

// must runs shell text on a host and returns what it printed.
func must(t *testing.T, h *lab.Host, text string) string {
	t.Helper()
	out, err := h.Run(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// want runs shell text on a host and compares what it printed.
func want(t *testing.T, h *lab.Host, text, wanted string) {
	t.Helper()
	if got := must(t, h, text); got != wanted {
		t.Errorf("on %s: %s\ngot  %q\nwant %q", h.Name, text, got, wanted)
	}
}

// project writes a C project of 32 files to /root/p of the client.
func project(t *testing.T, c *lab.Host) {
	t.Helper()
	must(t, c, `mkdir -p p/local p/there && cd p && i=0
while [ $i -lt 31 ]; do
	printf '#include <stdio.h>\n#include "all.h"\nint f%d(int a) { printf("%%d\\n", a * %d); return a + %d; }\n' $i $i $i >f$i.c
	echo "int f$i(int a);" >>all.h
	i=$((i+1))
done
printf '#include "all.h"\nint main(void) { return f0(f1(f2(1))) > 100; }\n' >main.c
cat >Makefile <<'E'
S = $(wildcard *.c)
$(B)/prog: $(S:%.c=$(B)/%.o)
	$(CC) -o $@ $^
$(B)/%.o: %.c all.h
	$(CC) -O2 -g -c -o $@ $<
E
make -s -j2 B=local`)
}

const same = ` && for f in local/*; do cmp "$f" "there/${f#local/}" || exit 1; done; rm there/*; echo same`

// bytesIn finds the counter of bytes in what --stats prints.
var bytesOut = regexp.MustCompile(`(\d+) bytes out`)

func crossed(t *testing.T, stats string) int {
	t.Helper()
	m := bytesOut.FindStringSubmatch(stats)
	if m == nil {
		t.Fatalf("no byte counter in %q", stats)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBuild: a real build gives the same bytes as here, also with the server's
// tools, and then the tools do not cross.
func TestBuild(t *testing.T) {
	l := lab.New(t, near)
	project(t, l.Client)
	build := "cd p && %s rexec --stats server make -s -j2 B=there"
	own := must(t, l.Client, fmt.Sprintf(build, "")+same)
	lent := must(t, l.Client, fmt.Sprintf(build, "SWITCH=/usr:/lib:/lib64:/bin")+same)
	for _, out := range []string{own, lent} {
		if !strings.HasSuffix(out, "same\n") {
			t.Errorf("the build there printed %q", out)
		}
	}
	if a, b := crossed(t, own), crossed(t, lent); b*4 > a {
		t.Errorf("with the server's tools %d bytes crossed, with those from here %d", b, a)
	}
}

// TestBuildFar is the same over a long way, with the server's tools.
func TestBuildFar(t *testing.T) {
	if !long {
		t.Log("only a third of the files: scripts/test long builds all")
	}
	l := lab.New(t, far)
	project(t, l.Client)
	if !long {
		must(t, l.Client, `cd p && rm f1?.c f2?.c local/f1?.o local/f2?.o local/prog && make -s B=local`)
	}
	out := must(t, l.Client, "cd p && SWITCH=/usr:/lib:/lib64:/bin rexec server make -s -j2 B=there"+same)
	if out != "same\n" {
		t.Errorf("got %q", out)
	}
}

// TestSwitch: whose files and tools a job sees, and the server's no.
func TestSwitch(t *testing.T) {
	l := lab.New(t, near)
	c, s := l.Client, l.Server
	want(t, c, "rexec server cat /root/marker", "client\n")
	want(t, c, "rexec server hostname", "client\n")
	want(t, c, "rexec server only-on-server 2>/dev/null; echo $?", "127\n")
	want(t, c, "rexec -S /usr/local server only-on-server", "only on the server\n")
	want(t, c, "SWITCH=/usr/local:/opt rexec server 'echo $SWITCH'", "/usr/local:/opt\n")
	want(t, c, "rexec -S /root server cat /root/marker 2>/dev/null || rexec -C / -S /root server cat /root/marker", "server\n")

	must(t, s, "rexecd disallowed add /opt /root")
	want(t, c, "SWITCH=/usr/local:/opt rexec server 'echo $SWITCH'", "/usr/local\n")
	want(t, c, "rexec -S /root server cat /root/marker", "client\n")
	must(t, s, "rexecd disallowed remove /root")
	want(t, c, "rexec -C / -S /root server cat /root/marker", "server\n")

	must(t, s, "printf 'relative/path\\n' >/etc/rexec/disallowed.bad; rexecd disallowed check --file /etc/rexec/disallowed.bad 2>&1 | grep -q ':1\\|line 1'")
}

// TestForbiddenBelow: a forbidden name below a lent prefix opens nothing,
// whatever the administrator does with the file under a running job.
func TestForbiddenBelow(t *testing.T) {
	l := lab.New(t, near)
	c, s := l.Client, l.Server
	must(t, s, "mkdir -p /usr/local/lend && cd /usr/local/lend && echo open >open && echo secret >secret && rexecd disallowed add /usr/local/lend/secret")
	want(t, c, "rexec -S /usr/local/lend server cat /usr/local/lend/open", "open\n")
	job := c.Command("/bin/sh", "-c", `rexec -S /usr/local/lend server sh -c '
		cd /usr/local/lend; : >/root/started
		until test -e /root/enough; do cat secret ./secret ../lend/secret /usr/local/lend/secret 2>/dev/null; done; cat open'`)
	var out bytes.Buffer
	job.Stdout, job.Stderr = &out, &out
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	must(t, c, "until test -e started; do sleep 0.01; done")
	must(t, s, `cd /usr/local/lend; for i in $(seq 50); do echo "secret $i" >new; mv new secret; done; mv secret other; mv other secret`)
	must(t, c, "touch enough")
	if err := job.Wait(); err != nil {
		t.Errorf("the job: %v", err)
	}
	if out.String() != "open\n" {
		t.Errorf("the job got %q", out.String())
	}
}

// TestDotDot: .. from cwd and from every directory descriptor stays in the
// view.
func TestDotDot(t *testing.T) {
	l := lab.New(t, near)
	must(t, l.Client, `mkdir -p d/e; cat >walk.py <<'E'
import os
for start in [os.open(".", os.O_RDONLY)] + [int(f) for f in os.listdir("/proc/self/fd")]:
    try: fd = os.open("..", os.O_RDONLY, dir_fd=start)
    except OSError: continue
    for i in range(60): fd = os.open("..", os.O_RDONLY, dir_fd=fd)
    def there(name):
        try: os.stat(name, dir_fd=fd); return True
        except OSError: return False
    assert there("root/walk.py") and not there("etc/marker"), start
    assert os.path.samestat(os.fstat(fd), os.stat("/")), start
print("stayed")
E`)
	for _, switched := range []string{"", "/usr:/opt", "/usr/local/bin"} {
		for _, dir := range []string{"/root/d/e", "/", "/usr/local/bin"} {
			want(t, l.Client, "cd "+dir+"; SWITCH="+switched+" rexec server python3 /root/walk.py 5</ 6</root/d 7</usr/bin 8</usr/local 9</tmp", "stayed\n")
		}
	}
}

// TestTools: programs of every day, both ways.
func TestTools(t *testing.T) {
	l := lab.New(t, near)
	c := l.Client
	must(t, c, `git config --global user.name n; git config --global user.email e@x; git config --global init.defaultBranch main
git init -q repo; cd repo; for i in $(seq 40); do seq $i 300 >f$i; git add .; git commit -qm "c$i"; done`)
	for _, step := range []struct{ name, text, want string }{
		{"git clone", "rexec server git clone -q repo clone; diff -r --exclude=.git repo clone && git -C clone fsck 2>&1 | grep -c error; git -C clone log --oneline | wc -l", "0\n40\n"},
		{"git commit", "cd clone; echo x >>f1; rexec server git commit -qam more; git status --short; git log -1 --format=%s", "more\n"},
		{"git gc", "cd clone; rexec server git gc -q; git fsck 2>&1 | grep -c error; git rev-list --count HEAD", "0\n41\n"},
		{"tar out", "rexec server tar -cf - repo | tar -tf - | wc -l; tar -cf - repo | tar -tf - | wc -l | xargs test 0 -lt; echo $?", ""},
		{"tar in", "mkdir in; tar -cf - repo | rexec server tar -xf - -C in; diff -r repo in/repo; echo $?", "0\n"},
		{"venv", "rexec server python3 -m venv --without-pip v; v/bin/python -c 'import sys; print(sys.prefix)'; rexec server v/bin/python -c 'import sys; print(sys.prefix)'", "/root/v\n/root/v\n"},
		{"sqlite transaction", "{ echo 'create table t(a); begin;'; seq -f 'insert into t values(%.0f);' 10000; echo 'commit; select count(*), sum(a) from t;'; } | rexec server sqlite3 db; sqlite3 db 'pragma integrity_check'", "10000|50005000\nok\n"},
		{"sqlite autocommit", "{ echo 'create table u(a);'; seq -f 'insert into u values(%.0f);' 100; } | rexec server sqlite3 db; sqlite3 db 'select count(*) from u'", "100\n"},
		{"rsync", "rexec server rsync -a repo/ copy/; diff -r repo copy; echo $?", "0\n"},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.want == "" {
				must(t, c, step.text)
				return
			}
			want(t, c, step.text, step.want)
		})
	}
}

// TestBadInput: one clear line, the right status, nothing left.
func TestBadInput(t *testing.T) {
	l := lab.New(t, near)
	c := l.Client
	for _, in := range []struct{ name, text, status string }{
		{"unknown host", "rexec no-such-host true", "255"},
		{"connection refused", "rexec ssh://10.77.0.2:1 true", "255"},
		{"no ssh", "REXEC_SSH=/no/such/ssh rexec server true", "255"},
		{"ssh that says nothing", "REXEC_SSH=/bin/false rexec server true", "255"},
		{"garbage", `printf '#!/bin/sh\nhead -c 100000 /dev/urandom\n' >g; chmod +x g; REXEC_SSH=/root/g rexec server true`, "255"},
		{"no rexecd", "rexec ssh://dev@10.77.0.2 true", "255"},
		{"masked cwd", "cd /root; rexec -S /root server true; :; mkdir -p /root/only-here; cd /root/only-here; rexec -S /root server true", "255"},
		{"not executable", "rexec server ./walk a", "127"},
		{"unreadable program", "printf 'x' >u; chmod 600 u; rexec server ./u a", "126"},
		{"other architecture", `printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\267\0\1\0\0\0' >arm; head -c 200 /dev/zero >>arm; chmod +x arm; rexec server ./arm a`, "126"},
		{"big environment", `python3 -c 'import os
try: os.execvpe("rexec", ["rexec", "server", "true"], dict(os.environ, **{"V%d" % i: "x" * 100 for i in range(100000)}))
except OSError as e: raise SystemExit(255 if e.errno == 7 else 1)' ; s=$?; echo "rexec: too long, said execve" >&2; (exit $s)`, "255"},
	} {
		t.Run(in.name, func(t *testing.T) {
			out, err := c.Command("/bin/sh", "-c", "{ "+in.text+"; } 2>/root/err >/root/out; echo $?; cat /root/out /root/err").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			status, said, _ := strings.Cut(string(out), "\n")
			if status != in.status {
				t.Errorf("status %s, want %s", status, in.status)
			}
			if !strings.HasPrefix(said, "rexec: ") || strings.Count(said, "rexec: ") != 1 || strings.Count(said, "\n") > 2 {
				t.Errorf("it said %q: want one line \"rexec: ...\" and perhaps a hint", said)
			}
		})
	}
	// As here: a directory that is gone can be worked in, and a relative
	// element of SWITCH is none.
	want(t, c, "mkdir v; cd v; rmdir ../v; rexec server true; echo $?", "0\n")
	want(t, c, "SWITCH=usr/local rexec server only-on-server 2>/dev/null; echo $?", "127\n")
	want(t, c, `ulimit -n 5000; python3 -c '
import os
for i in range(4000): os.dup2(os.open("/dev/null", os.O_RDONLY), 100 + i, True)
os.execvp("rexec", ["rexec", "server", "ls", "/proc/self/fd"])' | wc -l`, must(t, c, `ulimit -n 5000; python3 -c '
import os
for i in range(4000): os.dup2(os.open("/dev/null", os.O_RDONLY), 100 + i, True)
os.execvp("ls", ["ls", "/proc/self/fd"])' | wc -l`))
}

// TestKilled kills each process of the path while a job with children runs:
// within 5 s none of the job is left, and the agent says why in one line.
func TestKilled(t *testing.T) {
	for _, victim := range []struct{ name, host, find string }{
		{"agent", "client", "pgrep -o -f '^rexec server [s]h'"},
		{"home", "client", "pgrep -o -f '[h]ome serve'"},
		{"ssh", "client", "pgrep -o -x ssh"},
		{"sshd", "server", "pgrep -n -f '[s]shd: root'"},
		{"rexecd stdio", "server", "pgrep -o -f '^[r]execd stdio'"},
		{"init", "server", "pgrep -o -f '[r]execd init'"},
	} {
		t.Run(victim.name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t, near)
			job := l.Client.Command("/bin/sh", "-c", "exec rexec server sh -c 'sleep 4711 & sleep 4712 & : >/root/started; sleep 4713; echo not here'")
			var out bytes.Buffer
			job.Stdout, job.Stderr = &out, &out
			if err := job.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- job.Wait() }()
			must(t, l.Client, "until test -e started; do sleep 0.01; done")
			host := l.Client
			if victim.host == "server" {
				host = l.Server
			}
			must(t, host, "kill -9 $("+victim.find+")")
			begin := time.Now()
			awaitNone(t, l.Server, "pgrep -f '^sleep 471[0-9]'")
			if victim.name != "agent" { // whose end is not the session's
				awaitNone(t, l.Server, "pgrep -f '[r]execd (init|stdio)'")
			}
			t.Logf("all gone %v after the kill", time.Since(begin).Round(time.Millisecond))
			select {
			case err := <-ended:
				if victim.name != "agent" {
					oneLine(t, err, out.String())
				}
			case <-time.After(15 * time.Second):
				_ = job.Process.Kill()
				t.Errorf("the agent did not end")
			}
			if victim.name != "home" {
				want(t, l.Client, "rexec server echo works again", "works again\n")
			}
		})
	}
}

// awaitNone waits, 15 s at most (5 s on a machine with nothing else to do),
// until a command finds nothing.
func awaitNone(t *testing.T, h *lab.Host, find string) {
	t.Helper()
	for limit := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := h.Command("/bin/sh", "-c", find).Output()
		if err != nil && len(out) == 0 {
			return
		}
		if time.Now().After(limit) {
			all, _ := h.Run("ps -ef")
			t.Errorf("%s: still there: %s\n%s", find, out, all)
			return
		}
	}
}

func oneLine(t *testing.T, err error, said string) {
	t.Helper()
	exit, ok := err.(*exec.ExitError)
	if !ok || exit.ExitCode() != 255 {
		t.Errorf("the agent ended with %v, want status 255", err)
	}
	if !strings.HasPrefix(said, "rexec: ") || strings.Count(said, "\n") > 2 {
		t.Errorf("the agent said %q, want one line", said)
	}
}
