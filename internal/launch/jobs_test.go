package launch

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/mounts"
	"rexec/rer"
)

// stat prints a process's parent, group and session.
const stat = `read a b c d e f g </proc/self/stat; echo $$ $d $e $f`

func TestNumbers(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		for _, c := range []struct {
			pid, ppid, pgrp, sid int32
			want                 string
		}{
			{5200, 5000, 5200, 5000, "5200 5000 5200 5000"}, // a shell's command
			{5201, 5200, 5200, 5000, "5201 5200 5200 5000"}, // a command of a make that led its group
			{5301, 5300, 5290, 5000, "5301 5300 5290 5000"}, // three ghosts
			{5302, 5000, 5000, 5000, "5302 5000 5000 5000"}, // a script's
			{5303, 1, 5303, 5000, "5303 1 5303 5000"},       // orphaned at home
			{6000, 5000, 6000, 6000, "6000 5000 6000 6000"}, // setsid
			{6001, 1, 6001, 6001, "6001 1 6001 6001"},
			{5000, 4000, 5000, 5000, "5000 4000 5000 5000"}, // exec'd by the shell itself
			{5300, 5000, 5300, 5000, "5300 5000 5300 5000"}, // what was a ghost
		} {
			j := s.shell(stat)
			j.Pid, j.Ppid, j.Pgrp, j.Sid = c.pid, c.ppid, c.pgrp, c.sid
			s.check(j, c.want+"\n")
		}
	})
}

// A group or session that home's own PID namespace does not show is one of
// its own; jobs of one such session can still share a group.
func TestNumbersNotShown(t *testing.T) {
	s := newSession(t)
	j := s.shell(`read a b c d e f g </proc/self/stat; [ $e = $$ ] && [ $f != 0 ] && [ $f != $$ ] && echo $$ $d`)
	j.Ppid, j.Pgrp, j.Sid = 0, 0, 0
	s.check(j, "5200 1\n")
	a, b := s.shell("echo; read x <&3"), s.shell(stat+" | cut -d' ' -f1-3")
	a.Sid, b.Sid, b.Pid = 0, 0, 5201
	r, w, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a.FDs = append(a.FDs, FD{Num: 3, Source: SourceFile, File: 1})
	out, _ := s.start(a, r)
	r.Close()
	bufio.NewReader(out).ReadString('\n')
	s.check(b, "5201 5000 5200\n")
	w.Close()
	s.await(a.ID, EventEnded)
}

// A number that another process has is given up and reported.
func TestNumberTaken(t *testing.T) {
	s := newSession(t)
	a, b := s.shell("read x"), s.shell("[ $$ -gt 100000 ] && echo $PPID")
	r, w, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a.FDs = append(a.FDs[1:], FD{Num: 0, Source: SourceFile, File: 1})
	s.start(a, r)
	r.Close()
	out, l := s.start(b)
	if got := <-l; len(got.Taken) != 1 || got.Taken[0] != 5200 {
		t.Fatalf("launched %+v", got)
	}
	if b, err := io.ReadAll(out); err != nil || string(b) != "5000\n" {
		t.Fatalf("%q %v", b, err)
	}
	s.await(b.ID, EventEnded)
	w.Close()
	s.await(a.ID, EventEnded)
}

// TestNumberOutside: the session learns a job's number in its own namespace.
func TestNumberOutside(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		r, w, err := blockingPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		j := s.shell("read x")
		j.FDs = append(j.FDs[1:], FD{Num: 0, Source: SourceFile, File: 1})
		_, l := s.start(j, r)
		r.Close()
		got := <-l
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", got.Outer))
		if err != nil || !strings.Contains(string(status), fmt.Sprintf("\t%d\nNSpgid:", got.Pid)) {
			t.Errorf("%+v: %v, %s", got, err, status)
		}
		w.Close()
		s.await(j.ID, EventEnded)
	})
}

func TestCwd(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		dir, other := t.TempDir(), t.TempDir()
		j := s.shell("pwd -P; cd " + strings.Repeat("../", 40) + "; pwd -P; cat /etc/hostname")
		j.Cwd = []byte(dir)
		s.check(j, dir+"\n/\nmade\n")
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		j = s.shell("pwd -P")
		j.Cwd, j.CwdIno, j.CwdElse = []byte(dir), st.Ino, []byte(other)
		s.check(j, dir+"\n")
		j = s.shell("pwd -P")
		j.Cwd, j.CwdIno, j.CwdElse = []byte(dir), st.Ino+1, []byte(other)
		s.check(j, other+"\n")
	})
}

func TestAttributes(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		s.check(s.job("/usr/bin/env", "env"), "PATH=/usr/local/bin:/usr/bin:/bin\n")
		j := s.job("/usr/bin/env", "env")
		j.Env = [][]byte{[]byte("A=1"), []byte("A=2"), []byte("odd"), []byte("")}
		s.check(j, "A=1\nA=2\nodd\n\n")
		j = s.shell("umask; nice; ulimit -n; ulimit -c; ulimit -Hf")
		j.Umask, j.Nice = 0o137, 5
		j.Rlimits = []rer.Rlimit{{Resource: unix.RLIMIT_NOFILE, Cur: 77, Max: 99}, {Resource: unix.RLIMIT_CORE},
			{Resource: unix.RLIMIT_FSIZE, Cur: 512 << 10, Max: 512 << 10}}
		s.check(j, "0137\n5\n77\n0\n1024\n")
		j = s.job("/bin/grep", "grep", "-E", "^Sig(Blk|Ign)|^NoNewPrivs|^Groups", "/proc/self/status")
		j.Mask, j.Ignored = 1<<(unix.SIGUSR1-1), 1<<(unix.SIGTERM-1)|1<<(unix.SIGPIPE-1)|1<<63
		groups := "\t "
		if os.Getuid() == 0 {
			j.Groups, groups = []uint32{4, 27}, "\t4 27 "
		} else if g, err := os.Getgroups(); err != nil || len(g) > 0 {
			t.Fatalf("groups %v %v", g, err)
		}
		s.check(j, "Groups:"+groups+"\nSigBlk:\t0000000000000200\nSigIgn:\t8000000000005000\nNoNewPrivs:\t1\n")
	})
}

// Only the file capabilities of root are left, and mounts are out of reach.
func TestRights(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		j := s.job("/bin/grep", "grep", "-E", "^Cap(Inh|Prm|Eff|Amb)", "/proc/self/status")
		caps := "0000000000000000"
		if os.Getuid() == 0 {
			caps = fmt.Sprintf("%016x", uint64(keptCaps))
		}
		s.check(j, "CapInh:\t0000000000000000\nCapPrm:\t"+caps+"\nCapEff:\t"+caps+"\nCapAmb:\t0000000000000000\n")
		out, e := s.output(s.shell("umount /dev; mount -t tmpfs none /mnt; ls /proc/1/root; ls /proc/$PPID/cwd/; hostname x; echo 5 >/proc/sys/kernel/ns_last_pid"))
		if e.Status.Code == 0 {
			t.Fatalf("status 0: %s", out)
		}
		s.check(s.shell("grep ' /sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1; [ -d /sys/kernel ] && echo sys"), "ro\nsys\n")
		s.check(s.shell("grep -c ' /dev ' /proc/mounts; uname -n; ls /dev/pts /dev/null /dev/fd/0; echo >/dev/shm/$$; rm /dev/shm/$$"),
			"1\nhome\n/dev/fd/0\n/dev/null\n\n/dev/pts:\nptmx\n")
	})
}

// As another user: home's ids are set where several are mapped.
func TestOtherUser(t *testing.T) {
	s := newSession(t)
	j := s.shell("id -u; id -g; id -G; grep CapEff /proc/self/status; cat /etc/shadow")
	j.UID, j.GID, j.Groups = 1234, 1235, []uint32{1236}
	out, e := s.output(j)
	if !strings.HasPrefix(out, "1234\n1235\n1235 1236\nCapEff:\t0000000000000000\n") || e.Status.Code == 0 {
		t.Fatalf("%s %+v", out, e)
	}
}

func TestDescriptors(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "lines")
		if err := os.WriteFile(file, []byte("zero\none\ntwo\nthree\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		j := s.shell("cd /proc/self/fd; for i in *; do [ -e $i ] && echo $i $(readlink $i); done | grep -v pipe; cat <&7; read a <&8; echo $a; cd /proc/self/fd/5/; pwd -P")
		j.FDs = append(j.FDs, FD{Num: 5, Source: SourceOpen, Desc: 5, Path: []byte(dir), Flags: unix.O_DIRECTORY},
			FD{Num: 6, Source: SourceOpen, Desc: 5, Path: []byte(dir), Flags: unix.O_DIRECTORY},
			FD{Num: 7, Source: SourceOpen, Path: []byte("/etc/hostname")},
			FD{Num: 8, Source: SourceOpen, Desc: 8, Path: []byte(file), Offset: 5, Keep: true},
			FD{Num: 9, Source: SourceOpen, Desc: 9, Path: []byte(file), Flags: unix.O_PATH})
		out, e := s.output(j)
		want := fmt.Sprintf("0 /dev/null\n5 %s\n6 %s\n7 /etc/hostname\n8 %s\n9 %s\nmade\none\n%s\n", dir, dir, file, file, dir)
		if out != want {
			t.Fatalf("got %q, want %q", out, want)
		}
		if len(e.Positions) != 1 || e.Positions[0] != (rer.Position{Desc: 8, Offset: 9}) {
			t.Fatalf("positions %+v", e.Positions)
		}
	})
}

// Two jobs that have one description share its position.
func TestSharedOffset(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		file := filepath.Join(t.TempDir(), "lines")
		if err := os.WriteFile(file, []byte("one\ntwo\nthree\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		shared := FD{Num: 0, Source: SourceOpen, Desc: 77, Path: []byte(file), Flags: unix.O_RDWR, Keep: true}
		r, w, err := blockingPipe()
		if err != nil {
			t.Fatal(err)
		}
		a := s.shell("read x; echo $x; read x <&3; read x; echo $x")
		a.FDs = append(a.FDs[1:], shared, FD{Num: 3, Source: SourceFile, File: 1})
		out, _ := s.start(a, r)
		r.Close()
		lines := bufio.NewReader(out)
		if l, err := lines.ReadString('\n'); l != "one\n" {
			t.Fatalf("%q %v", l, err)
		}
		b := s.shell("read x; echo $x")
		b.Pid = 5201
		b.FDs = append(b.FDs[1:], shared)
		out2, _ := s.start(b)
		if got, err := io.ReadAll(out2); string(got) != "two\n" {
			t.Fatalf("%q %v", got, err)
		}
		if e := s.await(b.ID, EventEnded); len(e.Positions) != 1 || e.Positions[0].Offset != 8 {
			t.Fatalf("positions %+v", e.Positions)
		}
		w.Close()
		if l, err := lines.ReadString('\n'); l != "three\n" {
			t.Fatalf("%q %v", l, err)
		}
		if e := s.await(a.ID, EventEnded); len(e.Positions) != 1 || e.Positions[0].Offset != 14 {
			t.Fatalf("positions %+v", e.Positions)
		}
	})
}

func TestManyDescriptors(t *testing.T) {
	s := newSession(t)
	const n = 4000
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	j := s.shell("ls /proc/$$/fd | wc -l; readlink /proc/$$/fd/4002")
	files := make([]*os.File, n)
	for i := range files {
		fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = os.NewFile(uintptr(fd), "null")
		defer files[i].Close()
		j.FDs = append(j.FDs, FD{Num: int32(3 + i), Desc: uint64(1000 + i), Source: SourceFile, File: 1 + i})
	}
	r, _ := s.start(j, files...)
	if out, err := io.ReadAll(r); string(out) != "4003\n/dev/null\n" {
		t.Fatalf("%q %v", out, err)
	}
	s.await(j.ID, EventEnded)
}

func TestLargeEnvironment(t *testing.T) {
	s := newSession(t)
	j := s.shell("env | wc -l")
	for i := range 10000 {
		j.Env = append(j.Env, fmt.Appendf(nil, "V%d=%s", i, strings.Repeat("x", 100)))
	}
	s.check(j, "10002\n") // PWD besides
	for i := range 90000 {
		j.Env = append(j.Env, fmt.Appendf(nil, "W%d=%s", i, strings.Repeat("x", 100)))
	}
	j = &Job{View: j.View, ID: [16]byte{1}, Argv: j.Argv, Paths: j.Paths, Env: j.Env, Cwd: j.Cwd, Pid: 5300}
	j.Rlimits = []rer.Rlimit{{Resource: unix.RLIMIT_STACK, Cur: 8 << 20, Max: unix.RLIM_INFINITY}}
	s.fails(j, "exec", unix.E2BIG)
}

func (s *session) fails(j *Job, step string, errno unix.Errno) {
	s.t.Helper()
	_, f, err := s.init.Launch(j, []*os.File{os.Stderr})
	if err != nil || f == nil || f.Step != step || f.Errno != int(errno) {
		s.t.Fatalf("launch: %v %+v, want %s %v", err, f, step, errno)
	}
}

func TestFailures(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		dir := t.TempDir()
		write := func(name, text string, mode os.FileMode) string {
			p := filepath.Join(dir, name)
			if err := os.WriteFile(p, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			return p
		}
		self, err := os.ReadFile("/bin/true")
		if err != nil {
			t.Fatal(err)
		}
		self[18], self[19] = 0xf3, 0 // RISC-V
		s.fails(s.job("/nowhere", "x"), "exec", unix.ENOENT)
		s.fails(s.job(write("plain", "x", 0o644), "x"), "exec", unix.EACCES)
		s.fails(s.job("/tmp", "x"), "exec", unix.EACCES)
		s.fails(s.job(write("text", "echo x\n", 0o755), "x"), "exec", unix.ENOEXEC)
		s.fails(s.job(write("other", string(self), 0o755), "x"), "exec", unix.ENOEXEC)
		s.fails(s.job(write("script", "#!/no/interpreter\n", 0o755), "x"), "exec", unix.ENOENT)
		j := s.job("", "true")
		j.Paths = [][]byte{[]byte("/nowhere/true"), []byte(dir + "/plain"), []byte("/bin/true")}
		if out, e := s.output(j); out != "" || e.Status.Code != 0 {
			t.Fatalf("%q %+v", out, e)
		}
		j.ID[0]++
		j.Paths = j.Paths[:2]
		s.fails(j, "exec", unix.EACCES)
		j = s.shell("true")
		j.Cwd = []byte(dir + "/missing")
		s.fails(j, "cwd", unix.ENOENT)
		j.Cwd = []byte(dir + "/plain")
		s.fails(j, "cwd", unix.ENOTDIR)
		j = s.shell("true")
		j.FDs = append(j.FDs, FD{Num: 9, Source: SourceOpen, Path: []byte("/missing")})
		s.fails(j, "open 9", unix.ENOENT)
		j.FDs[3].Desc = 5
		s.fails(j, "open 9", unix.ENOENT)
		j.FDs[3] = FD{Num: 9, Source: SourceFile, File: 3}
		s.fails(j, "open 9", unix.EBADF)
		s.check(s.shell("echo $$"), "5200\n")
	})
}

func TestSignals(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		j := s.shell("trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.01; done")
		r, _ := s.start(j)
		lines := bufio.NewReader(r)
		line := func(want string) {
			t.Helper()
			if l, err := lines.ReadString('\n'); l != want+"\n" {
				t.Fatalf("%q %v, want %q", l, err, want)
			}
		}
		send := func(signo unix.Signal, code int, group bool) {
			t.Helper()
			if err := s.init.Signal(j.ID, int(signo), code, 4711, 1000, 0xdeadbeef, group); err != nil {
				t.Fatal(err)
			}
		}
		line("ready")
		send(unix.SIGUSR1, 0, false)
		line("usr1")
		send(unix.SIGUSR1, -1, false)
		line("usr1")
		send(unix.SIGSTOP, 0, false)
		if e := s.await(j.ID, EventStopped); e.Signo != int(unix.SIGSTOP) {
			t.Fatalf("%+v", e)
		}
		send(unix.SIGCONT, 0, false)
		s.await(j.ID, EventContinued)
		send(unix.SIGTERM, 0, false)
		line("term")
		if e := s.await(j.ID, EventEnded); e.Status.Code != 3 {
			t.Fatalf("%+v", e)
		}
		s.await(j.ID, EventGone)
		if err := s.init.Signal(j.ID, 1, 0, 0, 0, 0, false); err != unix.ESRCH && !isErrno(err, unix.ESRCH) {
			t.Fatal(err)
		}
	})
}

func isErrno(err error, errno unix.Errno) bool {
	e, ok := err.(*Error)
	return ok && e.Errno == errno
}

// A job's daemons end with it when it is killed, however they hid.
func TestKill(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		j := s.shell(`trap '' HUP
(setsid sh -c 'trap "" HUP TERM; (sleep 1000 & sleep 1001) & exit' &)
setsid setsid sleep 1002 &
nohup sleep 1003 >/dev/null 2>&1 &
echo ready; sleep 1004`)
		other := s.shell("echo ready; read x")
		other.Pid, other.Pgrp = 5300, 5300
		pr, pw, err := blockingPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pw.Close()
		other.FDs = append(other.FDs[1:], FD{Num: 0, Source: SourceFile, File: 1})
		s.start(other, pr)
		pr.Close()
		r, _ := s.start(j)
		if l, err := bufio.NewReader(r).ReadString('\n'); l != "ready\n" {
			t.Fatalf("%q %v", l, err)
		}
		if err := s.init.Kill(j.ID); err != nil {
			t.Fatal(err)
		}
		if e := s.await(j.ID, EventEnded); e.Status.Signal == 0 {
			t.Fatalf("%+v", e)
		}
		s.await(j.ID, EventGone)
		out, _ := s.output(s.shell("grep -l sleep /proc/[0-9]*/comm"))
		if out != "" {
			t.Fatalf("left: %s", out)
		}
		pw.Close()
		if e := s.await(other.ID, EventEnded); e.Status.Signal != 0 {
			t.Fatalf("%+v", e)
		}
	})
}

// A launch that waits for a file can be given up.
func TestKillEarly(t *testing.T) {
	s := newSession(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, desc := range []uint64{0, 5} { // opened by the child, by init
		j := s.shell("true")
		j.FDs = []FD{{Num: 0, Desc: desc, Source: SourceOpen, Path: []byte(fifo)}}
		done := make(chan *Failure)
		go func() {
			_, f, _ := s.init.Launch(j, nil)
			done <- f
		}()
		until(t, "job unknown", func() bool { return s.init.Kill(j.ID) == nil })
		if desc != 0 {
			// The open itself still waits for a writer.
			w := s.shell("true")
			w.FDs = []FD{{Num: 0, Source: SourceOpen, Path: []byte(fifo), Flags: unix.O_WRONLY}}
			w.Pid, w.Pgrp = 5300, 5300
			if _, f, err := s.init.Launch(w, nil); err != nil || f != nil {
				t.Fatalf("%v %+v", err, f)
			}
			if f := <-done; f == nil || f.Errno != int(unix.EINTR) {
				t.Fatalf("%+v", f)
			}
			continue
		}
		if f := <-done; f != nil {
			if f.Errno != int(unix.EINTR) { // killed before it was a process
				t.Fatalf("%+v", f)
			}
		} else if e := s.await(j.ID, EventEnded); e.Status.Signal == 0 {
			t.Fatalf("%+v", e)
		}
	}
}

// A background descendant outlives the command; its end is told.
func TestGone(t *testing.T) {
	s := newSession(t)
	r, w, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	j := s.shell("(setsid sh -c 'read x <&3' &) ; exit 4")
	j.FDs = append(j.FDs, FD{Num: 3, Source: SourceFile, File: 1})
	s.start(j, r)
	r.Close()
	if e := s.await(j.ID, EventEnded); e.Status.Code != 4 {
		t.Fatalf("%+v", e)
	}
	s.mu.Lock()
	if len(s.events[j.ID]) != 0 {
		t.Errorf("gone too early: %+v", s.events[j.ID])
	}
	s.mu.Unlock()
	w.Close()
	s.await(j.ID, EventGone)
}

func TestTwoViews(t *testing.T) {
	s := newSession(t)
	second := s.build(ViewSpec{FUSE: []mounts.FUSE{{Path: "/", Source: "home", Type: "rexec"},
		{Path: "/mnt", Source: "other", Type: "rexec", ReadOnly: true}}, DefaultPermissions: true,
		Binds: []string{"/usr", "/nowhere"}, Files: []mounts.File{{Path: "/etc/hostname", Data: []byte("second\n")}}})
	a := s.shell("cat /etc/hostname; grep -c ' /usr ' /proc/mounts; grep ' /mnt ' /proc/mounts | cut -c-28; ls -d /mnt/etc; touch /mnt/tmp/x || echo ro")
	a.View = second
	a.FDs[2].Num, a.FDs[2].Desc, a.FDs[2].Source, a.FDs[2].Path, a.FDs[2].Flags = 2, 0, SourceOpen, []byte("/dev/null"), unix.O_WRONLY
	s.check(a, "second\n1\nother /mnt fuse.rexec ro,nos\n/mnt/etc\nro\n")
	s.check(s.shell("cat /etc/hostname"), "made\n")
	s.init.DropView(second)
	a.ID[0]++
	if _, _, err := s.init.Launch(a, []*os.File{os.Stderr}); !isErrno(err, unix.ENOENT) {
		t.Fatal(err)
	}
}

// A view that cannot be built, or whose server gives up, harms nobody.
func TestViewFails(t *testing.T) {
	s := newSession(t)
	spec := ViewSpec{FUSE: []mounts.FUSE{{Path: "/", Source: "x"}, {Path: "/nowhere/at/all", Source: "x"}}}
	if _, err := s.init.BuildView(spec, s.serve); err == nil {
		t.Fatal("mounted on nothing")
	}
	if _, err := s.init.BuildView(spec, func(int, *os.File) error { return unix.EIO }); err == nil {
		t.Fatal("not served")
	}
	s.check(s.shell("echo yes"), "yes\n")
}

func TestConcurrent(t *testing.T) {
	s := newSession(t)
	const n = 60
	outs := make([]*os.File, n)
	jobs := make([]*Job, n)
	errs := make(chan error, n)
	for i := range n {
		jobs[i] = s.shell("echo $$ $PPID")
		jobs[i].Pid = int32(6000 + i)
		jobs[i].Pgrp = jobs[i].Pid
		r, w, err := blockingPipe()
		if err != nil {
			t.Fatal(err)
		}
		outs[i] = r
		go func() {
			_, f, err := s.init.Launch(jobs[i], []*os.File{w})
			w.Close()
			if err == nil && f != nil {
				err = unix.Errno(f.Errno)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	for i, r := range outs {
		out, err := io.ReadAll(r)
		r.Close()
		if want := strconv.Itoa(6000+i) + " 5000\n"; string(out) != want {
			t.Errorf("%q %v, want %q", out, err, want)
		}
		s.await(jobs[i].ID, EventEnded)
	}
}

// members gives the processes that share init's PID namespace.
func members(t *testing.T, link string) []int {
	var list []int
	names, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if l, err := os.Readlink(n); err == nil && l == link {
			pid, _ := strconv.Atoi(strings.Split(n, "/")[2])
			list = append(list, pid)
		}
	}
	return list
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timeout: " + what)
		}
	}
}

func busy(s *session) *Job {
	j := s.shell("setsid sleep 1000 & while :; do cat /etc/passwd >/dev/null; done")
	s.start(j)
	return j
}

// TestSession is a session that another test kills: see TestSessionDies.
func TestSession(t *testing.T) {
	if os.Getenv("LAUNCH_TEST_SESSION") == "" {
		return
	}
	s := newSession(t)
	busy(s)
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.init.Process()))
	if err != nil {
		t.Fatal(err)
	}
	os.NewFile(3, "pipe").WriteString(link + "\n")
	select {}
}

func TestSessionDies(t *testing.T) {
	r, w, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSession$", "-test.timeout=100s")
	cmd.Env = append(os.Environ(), "LAUNCH_TEST_SESSION=1")
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	link, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if len(members(t, strings.TrimSpace(link))) < 3 {
		t.Error("no processes in the session")
	}
	cmd.Process.Kill()
	cmd.Wait()
	until(t, "processes left", func() bool { return len(members(t, strings.TrimSpace(link))) == 0 })
}

// Names of the view resolve in it: an absolute symbolic link does not lead a
// mount into the server's root.
func TestViewRoot(t *testing.T) {
	s := newSession(t)
	root := t.TempDir()
	for _, d := range []string{"proc", "dev", "sys", "usr", "bin", "lib", "lib64", "etc", "work"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.WriteFile(root+"/work/file", nil, 0o644), os.Symlink("/work", root+"/etc/link")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	spec := ViewSpec{FUSE: []mounts.FUSE{{Path: "/", Source: "home"}}, DefaultPermissions: true,
		Binds: []string{"/usr", "/bin", "/lib", "/lib64"}, Files: []mounts.File{{Path: "/etc/link/file", Data: []byte("made\n")}}}
	v, err := s.init.BuildView(spec, func(_ int, dev *os.File) error { return s.serveRoot(root, dev) })
	if err != nil {
		t.Fatal(err)
	}
	j := s.shell("cat /work/file; echo x >/work/file; cd /etc/../../..; ls /; pwd")
	j.View, j.FDs[2] = v, FD{Num: 2, Source: SourceOpen, Path: []byte("/dev/null"), Flags: unix.O_WRONLY}
	s.check(j, "made\nbin\ndev\netc\nlib\nlib64\nproc\nsys\nusr\nwork\n/\n")
}

func TestInitDies(t *testing.T) {
	s := newSession(t)
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.init.Process()))
	if err != nil {
		t.Fatal(err)
	}
	j := busy(s)
	if err := unix.Kill(s.init.Process(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "processes left", func() bool { return len(members(t, link)) == 0 })
	if _, _, err := s.init.Launch(j, nil); err != ErrGone {
		t.Fatal(err)
	}
}

func TestGhostsDie(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		j := s.shell("echo ready; read x <&3; echo $(grep PPid /proc/$$/status)")
		j.Ppid = 5001
		pr, pw, err := blockingPipe()
		if err != nil {
			t.Fatal(err)
		}
		j.FDs = append(j.FDs, FD{Num: 3, Source: SourceFile, File: 1})
		r, _ := s.start(j, pr)
		pr.Close()
		lines := bufio.NewReader(r)
		lines.ReadString('\n')
		stopper := s.shell("kill -STOP 5000")
		stopper.Pid = 5300
		s.check(stopper, "")
		killer := s.shell("kill -9 5000 5001; while kill -0 5001 || kill -0 5000; do :; done 2>/dev/null")
		killer.Ppid, killer.Sid, killer.Pid, killer.Pgrp = 1, 9000, 9001, 9001
		s.check(killer, "")
		pw.Close()
		if l, err := lines.ReadString('\n'); l != "PPid: 1\n" {
			t.Fatalf("%q %v", l, err)
		}
		s.await(j.ID, EventEnded)
		s.check(s.shell(stat), "5200 5000 5200 5000\n")
	})
}

// The mounts and processes of a session end with it.
func TestCloseBusy(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.init.Process()))
		if err != nil {
			// Init is not dumpable: find it through its children.
			link = ""
		}
		busy(s)
		if err := s.init.Close(); err != nil {
			t.Fatal(err)
		}
		if link != "" && len(members(t, link)) != 0 {
			t.Fatal("processes left")
		}
	})
}

func TestTerminal(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		key := TerminalKey{Dev: 0x8803, Sid: 5000}
		master, err := s.init.Terminal(key, nil, 33, 99)
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		if _, err := s.init.Terminal(key, nil, 1, 1); !isErrno(err, unix.EEXIST) {
			t.Fatal(err)
		}
		out := &transcript{t: t}
		go out.read(master)
		onTerminal := func(text string) *Job {
			j := s.shell(text)
			j.Terminal = key
			for n := range int32(3) {
				j.FDs[n] = FD{Num: n, Desc: 50, Source: SourceTerminal, Flags: unix.O_RDWR}
			}
			return j
		}
		run := func(j *Job) {
			t.Helper()
			if _, f, err := s.init.Launch(j, nil); err != nil || f != nil {
				t.Fatalf("%v %+v", err, f)
			}
		}
		j := onTerminal(`tty; stty size; echo dev >/dev/tty; trap 'echo winch' WINCH; trap 'echo int' INT
read a b c d e f g h i </proc/$$/stat; echo tpgid $h; while ! read x; do :; done; echo got $x; while ! read x; do :; done; exit 5`)
		j.Foreground = true
		run(j)
		out.wait("/dev/pts/0")
		out.wait("33 99")
		out.wait("dev")
		out.wait("tpgid 5200")
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 1, Col: 2}); err != nil {
			t.Fatal(err)
		}
		out.wait("winch")
		master.WriteString("\x03")
		out.wait("int")
		master.WriteString("word\n")
		out.wait("got word")
		master.WriteString("\x1a")
		if e := s.await(j.ID, EventStopped); e.Signo != int(unix.SIGTSTP) {
			t.Fatalf("%+v", e)
		}
		if err := s.init.Foreground(key, 5000); err != nil {
			t.Fatal(err)
		}
		s.init.Signal(j.ID, int(unix.SIGCONT), 0, 0, 0, 0, true)
		// The kernel tells only the last of the two changes if it is quick.
		e := s.next(j.ID)
		if e.Kind == EventContinued {
			e = s.next(j.ID)
		}
		if e.Kind != EventStopped || e.Signo != int(unix.SIGTTIN) {
			t.Fatalf("%+v", e)
		}
		if err := s.init.Foreground(key, 5200); err != nil {
			t.Fatal(err)
		}
		s.init.Signal(j.ID, int(unix.SIGCONT), 0, 0, 0, 0, true)
		master.WriteString("end\n")
		if e = s.next(j.ID); e.Kind == EventContinued {
			e = s.next(j.ID)
		}
		if e.Kind != EventEnded || e.Status.Code != 5 {
			t.Fatalf("%+v", e)
		}
		// The next job of the same session, with another group.
		k := onTerminal("tty; echo second >/dev/tty")
		k.Pid, k.Pgrp = 5201, 5201
		run(k)
		out.wait("second")
		s.await(k.ID, EventEnded)
		if err := s.init.Foreground(key, 7777); !isErrno(err, unix.ESRCH) {
			t.Fatal(err)
		}
	})
}

// A job that leads its session takes the terminal itself.
func TestTerminalLeader(t *testing.T) {
	s := newSession(t)
	key := TerminalKey{Dev: 1, Sid: 5200}
	master, err := s.init.Terminal(key, nil, 24, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	out := &transcript{t: t}
	go out.read(master)
	j := s.shell("tty </dev/tty; exit 6")
	j.Sid, j.Terminal, j.Foreground = 5200, key, true
	for n := range int32(3) {
		j.FDs[n] = FD{Num: n, Desc: 50, Source: SourceTerminal, Flags: unix.O_RDWR}
	}
	if _, f, err := s.init.Launch(j, nil); err != nil || f != nil {
		t.Fatalf("%v %+v", err, f)
	}
	out.wait("/dev/tty")
	if e := s.await(j.ID, EventEnded); e.Status.Code != 6 {
		t.Fatalf("%+v", e)
	}
}

// transcript is what a terminal showed.
type transcript struct {
	t    *testing.T
	mu   sync.Mutex
	all  bytes.Buffer
	seen int
}

func (o *transcript) read(master *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		o.mu.Lock()
		o.all.Write(buf[:n])
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait waits until the text appears after what was waited for before.
func (o *transcript) wait(text string) {
	o.t.Helper()
	until(o.t, "no "+text, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		at := bytes.Index(o.all.Bytes()[o.seen:], []byte(text))
		if at >= 0 {
			o.seen += at + len(text)
		}
		return at >= 0
	})
}
