package faults

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// refusals are requests that nobody can meet, with what is said.
var refusals = []struct {
	name   string
	vars   func(r *rig) []string
	args   []string
	status int
	says   string
}{
	{"unknown host", nil, []string{"nosuchhost", "true"}, 255, `nosuchhost`},
	{"unknown kind of host", nil, []string{"gopher://nosuchhost", "true"}, 255, `gopher`},
	{"no socket", nil, []string{"unix:/nonexistent/socket", "true"}, 255, `unix:/nonexistent/socket: cannot connect.*no such file`},
	{"no ssh", ssh("/nonexistent/ssh"), []string{"ssh://there", "true"}, 255, `/nonexistent/ssh`},
	{"ssh says no", peer("refuses"), []string{"ssh://there", "true"}, 255, `Permission denied \(publickey\)`},
	{"wrong version", peer("version"), []string{"ssh://there", "true"}, 255, `version`},
	{"garbage", peer("garbage"), []string{"ssh://there", "true"}, 255, `there`},
	{"half a greeting", peer("short"), []string{"ssh://there", "true"}, 255, `there`},
	{"nonsense", peer("nonsense"), []string{"ssh://there", "true"}, 255, `there.*link lost`},
	{"no rexecd", rexecd("/nonexistent/rexecd"), []string{"loopback", "true"}, 255, `/nonexistent/rexecd`},
	{"no FUSE", withoutFUSE, []string{"loopback", "true"}, 255, `fuse`},
	{"no such program", nil, []string{"loopback", "--", "/nonexistent/program"}, 127, `/nonexistent/program: not found`},
	{"no such program in PATH", nil, []string{"loopback", "--", "nonexistent-program"}, 127, `nonexistent-program: not found`},
	{"a directory", nil, []string{"loopback", "--", "/usr"}, 126, `/usr: permission denied`},
	{"a file without x", nil, []string{"loopback", "--", "/etc/passwd"}, 126, `/etc/passwd: permission denied`},
	{"unreadable", nil, []string{"loopback", "--", "./unreadable"}, 126, `unreadable: permission denied`},
	{"another architecture", nil, []string{"loopback", "--", "./foreign"}, 126, `foreign: exec format error`},
	{"a missing interpreter", nil, []string{"loopback", "--", "./orphan"}, 127, `orphan`},
	{"a loop of links", nil, []string{"loopback", "--", "./loop"}, 126, `loop: too many levels`},
	{"a name too long", nil, []string{"loopback", "--", "./" + strings.Repeat("n", 300)}, 126, `file name too long`},
	{"-C to nowhere", nil, []string{"-C", "/nonexistent", "loopback", "true"}, 255, `/nonexistent`},
	{"broken configuration", misconfigured, []string{"loopback", "true"}, 255, `configuration.*line 1`},
	{"masked directory", masked, []string{"-C", "@/masked/inside", "loopback", "true"}, 255, `/masked/inside`},
}

func ssh(program string) func(*rig) []string {
	return func(*rig) []string { return []string{"REXEC_SSH=" + program} }
}

func peer(part string) func(*rig) []string {
	return func(r *rig) []string { return []string{"REXEC_SSH=" + r.self + " peer " + part} }
}

func rexecd(program string) func(*rig) []string {
	return func(*rig) []string { return []string{"REXEC_REXECD=" + program} }
}

// elsewhere is a server that is this machine after some shell text.
func (r *rig) elsewhere(name, text string) []string {
	return []string{"REXEC_REXECD=" + r.script(name, "exec unshare -m --propagation private sh -c '"+text+
		`; exec "$@"' sh `+r.Rexecd+` "$@"`)}
}

func withoutFUSE(r *rig) []string {
	return r.elsewhere("nofuse", `mkdir -p `+r.Dir+`/dev && mount -t tmpfs none `+r.Dir+`/dev &&
for d in null zero full random urandom tty ptmx; do touch `+r.Dir+`/dev/$d; mount --bind /dev/$d `+r.Dir+`/dev/$d; done
mkdir `+r.Dir+`/dev/pts `+r.Dir+`/dev/shm; mount --rbind `+r.Dir+`/dev /dev`)
}

// configured is a server with a configuration.
func (r *rig) configured(name, text string) []string {
	file := filepath.Join(r.Dir, name+".toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return []string{"REXEC_REXECD=" + r.script(name, "exec "+r.Rexecd+" --config "+file+` "$@"`)}
}

func misconfigured(r *rig) []string { return r.configured("misconfigured", "no such thing\n") }

// masked is a server that has nothing in a directory that is taken from it.
func masked(r *rig) []string {
	return append(r.elsewhere("masked", "mount -t tmpfs none "+r.Dir+"/masked"), "SWITCH="+r.Dir+"/masked")
}

// TestRefusals makes requests that nobody can meet: one line, the right
// status, and the next command is served.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.oddFiles()
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{Env: r.Env, t: t, self: r.self}
			var vars []string
			if c.vars != nil {
				vars = c.vars(r)
			}
			var args []string
			for _, a := range c.args {
				args = append(args, strings.ReplaceAll(a, "@", r.Dir))
			}
			res := r.rexec(vars, args...)
			if res.status != c.status || res.stdout != "" {
				t.Errorf("want status %d: %v", c.status, res)
			}
			r.says(res, "(?i)"+c.says)
		})
	}
	r.works(nil, "loopback")
	if inits := r.left("init"); len(inits) > 3 {
		t.Errorf("sessions left: %s", inits)
	}
	r.empty()
}

// oddFiles are programs that cannot be run.
func (r *rig) oddFiles() {
	r.t.Helper()
	elf := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	elf[16], elf[18], elf[20], elf[52] = 2, 0xb7, 1, 64 // executable, AArch64, version, size of this header
	text := `cp /bin/true unreadable && chmod 0 unreadable; cat >foreign; chmod 755 foreign
printf '#!/nonexistent/interpreter\n' >orphan; chmod 755 orphan; ln -s loop loop
mkdir -p ../masked/inside; head -c 3000 /dev/urandom >../rubbish; printf '\n\0\377relative\n' >>../rubbish`
	cmd := r.Command("/bin/sh", "-c", text)
	cmd.Stdin = bytes.NewReader(elf)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

// TestRefusedUser has rexecd serve refuse this user.
func TestRefusedUser(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, host := r.serve("deny_users = [\"root\"]\n")
	for range 2 {
		res := r.rexec(nil, host, "true")
		if res.status != 255 {
			t.Errorf("status: %v", res)
		}
		r.says(res, "does not admit the user root")
	}
	r.until("no session", goneBy, func() bool { return len(r.left("session", "init")) == 0 })
}

// TestSilentPeers has peers that say nothing, or listen no more. An interrupt
// ends the agent.
func TestSilentPeers(t *testing.T) {
	for _, c := range []struct{ name, part string }{
		{"silent", "silent"}, {"deaf", "deaf"}, {"stops reading", "stalls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			stall := filepath.Join(r.Dir, "stall")
			cmd := r.Command("rexec", "ssh://there", "trap 'exit 3' INT; echo under way; while :; do cat big; done")
			if err := os.WriteFile(filepath.Join(r.Home, "big"), make([]byte, 8<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd.Env = r.with("REXEC_SSH="+r.self+" peer "+c.part+" "+r.Rexecd, "STALL="+stall)
			p := r.start(cmd)
			if c.part == "stalls" {
				r.until("output", patience, func() bool { return strings.Contains(p.out.String(), "under way") })
				if err := os.WriteFile(stall, nil, 0o644); err != nil {
					t.Fatal(err)
				}
				// What it has not read piles up; there is no other sign of it.
				time.Sleep(300 * time.Millisecond)
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				if res := p.wait(); res.status != 128+9 {
					t.Errorf("%v", res)
				}
			} else {
				r.until("the peer", patience, func() bool { return len(r.left("part")) > 0 })
				if err := cmd.Process.Signal(unix.SIGINT); err != nil {
					t.Fatal(err)
				}
				if res := p.wait(); res.status != 128+int(unix.SIGINT) {
					t.Errorf("after an interrupt: %v", res)
				}
			}
			if c.part == "stalls" {
				// It would be waited for as any silent peer is.
				_ = unix.Kill(r.pidOf("part"), unix.SIGKILL)
			}
			if err := r.Stop(); err != nil {
				t.Error(err)
			}
			r.empty()
		})
	}
}

// TestVanishedDirectory runs where the working directory has no name any more.
func TestVanishedDirectory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	text := `mkdir gone; cd gone; rmdir ../gone; exec rexec loopback 'echo ran; ls -a; touch x'`
	cmd := r.Command("/bin/sh", "-c", text)
	res := r.run(cmd)
	native := r.run(r.Command("/bin/sh", "-c", strings.Replace(text, "exec rexec loopback", "exec sh -c", 1)))
	if res.status != native.status || res.stdout != native.stdout || !strings.HasSuffix(native.stderr, res.stderr) {
		t.Errorf("%v, and natively %v", res, native)
	}
}

// TestOddLists has SWITCH elements that are relative, links, missing or none.
func TestOddLists(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := os.Symlink("/usr/share", filepath.Join(r.Home, "link")); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{
		"relative/name", ".", "..", "../..", r.Home + "/link", r.Home + "/link/doc", "/nonexistent", "/proc/self", "/dev",
		":::", "//usr//share/", "/usr/./share", "/usr/../usr/share", "/etc/passwd", "/etc/passwd/x", strings.Repeat("/x", 3000), "\xff\x01", " /usr",
	} {
		res := r.rexec([]string{"SWITCH=" + list}, "loopback", "cat f; echo $?")
		if res.status != 0 || !strings.HasSuffix(res.stdout, "1\n") {
			t.Errorf("SWITCH=%q: %v", list, res)
		}
	}
}

// TestManyVariables compares large environments with local runs.
func TestManyVariables(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct{ name, count, size string }{
		{"100,000", "100000", "1"}, {"5 MB", "40", "130000"}, {"10 MB", "80", "130000"}, {"a long one", "1", "131072"},
	} {
		run := func(argv ...string) result {
			return r.run(r.Command(r.self, append([]string{"crowd", c.count, c.size}, argv...)...))
		}
		got, want := run(r.Rexec, "loopback", "--", "/usr/bin/env"), run("/usr/bin/env")
		if got != want {
			t.Errorf("%s: %v, and locally %v", c.name, got, want)
		}
	}
}

// playCrowd runs a program with so many variables of such a size, and with as
// much room for them as there can be.
func playCrowd(args []string) int {
	var count, size int
	if _, err := fmt.Sscan(args[0]+" "+args[1], &count, &size); err != nil {
		return 2
	}
	most := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_STACK, &most); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	env := os.Environ()
	for i := range count {
		env = append(env, fmt.Sprintf("V%06d=%s", i, strings.Repeat("x", size)))
	}
	fmt.Fprintln(os.Stderr, unix.Exec(args[2], args[2:], env))
	return 126
}

// TestRubbishInList has a list of forbidden paths that is none: nothing at all
// is lent, and the administrator's check says where it is wrong.
func TestRubbishInList(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.oddFiles()
	list := filepath.Join(r.Dir, "rubbish")
	vars := append(r.configured("disallowing", fmt.Sprintf("disallowed = %q\n", list)), "SWITCH=/usr/share")
	res := r.rexec(vars, "loopback", `echo "<$SWITCH>"; stat -f -c %T /usr/share`)
	if res.status != 0 || res.stdout != "<>\nfuseblk\n" {
		t.Errorf("%v", res)
	}
	check := r.run(r.Command("rexecd", "--config", filepath.Join(r.Dir, "disallowing.toml"), "disallowed", "check"))
	if check.status == 0 || strings.Count(check.stderr, "\n") != 1 || !strings.Contains(check.stderr, "line ") {
		t.Errorf("check: %v", check)
	}
}

// TestManyDescriptors hands on 4,000 descriptors, of 100 open files.
func TestManyDescriptors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	file := filepath.Join(r.Home, "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for k := range 4000 {
		if k >= 100 {
			files = append(files, files[k%100])
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	text := "ls /proc/self/fd | wc -l; cat <&3; cat /proc/self/fd/3999"
	cmd := r.Command("rexec", "loopback", text)
	cmd.ExtraFiles = files
	if res := r.run(cmd); res.status != 0 || res.stdout != "4004\ncontent\ncontent\n" {
		t.Errorf("%v", res)
	}
}

// TestFullDisk has a job write to a file system at home that has no room, and
// to one that cannot be written: the errors are those of a local run.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	full, ro := filepath.Join(r.Dir, "full"), filepath.Join(r.Dir, "ro")
	setup := `mkdir -p ` + full + ` ` + ro + ` && mount -t tmpfs -o size=256k none ` + full + ` && mount -t tmpfs -o ro none ` + ro
	job := `cd ` + full + `
dd if=/dev/zero of=f bs=64k count=16 2>&1 | grep -v copied; stat -c %s f
dd if=/dev/zero of=g bs=1k count=1 conv=fsync 2>&1 | grep -v copied
echo line >>g; echo "append $?"
python3 -c '
import os, errno
def say(what, f):
    try: f(); print(what, "ok")
    except OSError as e: print(what, errno.errorcode[e.errno])
fd = os.open("f", os.O_RDWR | os.O_APPEND)
say("write", lambda: os.write(fd, b"x" * 100000))
say("fsync", lambda: os.fsync(fd))
say("fallocate", lambda: os.posix_fallocate(fd, 0, 1 << 24))
say("close", lambda: os.close(fd))
for name in ("` + ro + `/new", "` + ro + `"):
    say("mkdir", lambda: os.mkdir(name))
    say("create", lambda: os.open(name, os.O_CREAT | os.O_WRONLY))
    say("chmod", lambda: os.chmod(name, 0o700))
    say("utime", lambda: os.utime(name))
' 2>&1
cp f ` + ro + ` 2>&1; rm f; echo again >f && cat f`
	script := filepath.Join(r.Dir, "job")
	if err := os.WriteFile(script, []byte(job), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(command string) result {
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "/bin/sh", "-c",
			setup+" && "+command+" "+script+"; e=$?; rexec home stop >/dev/null 2>&1; exit $e")
		cmd.Env, cmd.Dir = r.Vars, r.Home
		return r.run(cmd)
	}
	native, got := run("sh"), run("rexec loopback -- sh")
	if got != native {
		t.Errorf("%v\nand locally %v", got, native)
	}
	if !strings.Contains(native.stdout, "No space left") || !strings.Contains(native.stdout, "EROFS") {
		t.Errorf("the test's file systems are not what they should be: %v", native)
	}
}
