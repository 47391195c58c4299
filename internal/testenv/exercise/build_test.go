package exercise

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMake: what was made here is up to date there, and the other way round;
// what is newer by a moment is made again, on the side that did not change it.
func TestMake(t *testing.T) {
	r := newRig(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Makefile", "prog: main.o part.o\n\tcat main.o part.o >$@\n%.o: %.c\n\tcat $< >$@; echo $@ >>made\n")
	write("main.c", "main\n")
	write("part.c", "part\n")
	made := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.dir, "made"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(r.dir, "made")); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), "\n", " ")
	}
	for range times(1, 200) {
		expect := func(want, out string) {
			t.Helper()
			if got := made(); got != want || strings.Contains(out, "skew") || strings.Contains(out, "future") {
				t.Fatalf("made %q, want %q; make said\n%s", got, want, out)
			}
		}
		expect("main.o part.o ", r.must(r.job("make")))
		expect("", r.must(r.local("make")))
		r.later("main.o", "main.c")
		expect("main.o ", r.must(r.job("make")))
		expect("", r.must(r.local("make")))
		r.must(r.job("/bin/sh", "-c", "until [ part.c -nt prog ]; do touch part.c; done"))
		expect("part.o ", r.must(r.local("make")))
		expect("", r.must(r.job("make")))
		r.must(r.job("rm", "main.o", "part.o", "prog"))
	}
}

// later touches a file until its time is after another's: the kernel's clock
// for files is coarse.
func (r *rig) later(than, name string) {
	r.t.Helper()
	r.must(r.local("/bin/sh", "-c", "until [ "+name+" -nt "+than+" ]; do touch "+name+"; done"))
}

// TestTail: a job follows a file to which a local process appends, and that it
// replaces.
func TestTail(t *testing.T) {
	r := newRig(t)
	name := filepath.Join(r.dir, "log")
	if err := os.WriteFile(name, []byte("first\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := r.job("tail", "-n", "+1", "-F", "log")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(answerLimit, func() { _ = cmd.Process.Kill() })
	defer func() {
		timer.Stop()
		_ = cmd.Process.Kill() // tail does not end by itself
		_ = cmd.Wait()
	}()
	lines := bufio.NewReader(pipe)
	expect := func(want string) {
		t.Helper()
		if got, err := lines.ReadString('\n'); got != want || err != nil {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	expect("first\n")
	for _, line := range []string{"second\n", "third\n"} {
		appendTo(t, name, line)
		expect(line)
	}
	if err := os.WriteFile(name+".new", []byte("replaced\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	expect("replaced\n")
	appendTo(t, name, "last\n")
	expect("last\n")
}

func appendTo(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBuild: a program that a job builds runs here, and a Python environment
// made here is one for a job.
func TestBuild(t *testing.T) {
	r := newRig(t)
	for name, text := range map[string]string{
		"go.mod":      "module m\n\ngo 1.24\n",
		"main.go":     "package main\n\nimport \"m/part\"\n\nfunc main() { println(part.Name) }\n",
		"part/p.go":   "package part\n\nconst Name = \"built\"\n",
		"lib/mine.py": "name = 'mine'\n",
	} {
		full := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The cache holds the library's packages, of which println needs few.
	env := "GOTOOLCHAIN=local GOPROXY=off GOCACHE=" + goEnv(t, "GOCACHE") + " "
	r.must(r.job("/bin/sh", "-c", env+filepath.Join(goEnv(t, "GOROOT"), "bin", "go")+" build -o prog . && sync"))
	if got := r.must(r.local("./prog")); got != "built\n" {
		t.Errorf("the program built by a job: %q", got)
	}
	if got := r.must(r.job("./prog")); got != "built\n" {
		t.Errorf("the program built by a job, by a job: %q", got)
	}
	r.must(r.local("/usr/bin/python3", "-m", "venv", "--without-pip", "venv"))
	r.must(r.local("/bin/sh", "-c", "cp lib/mine.py venv/lib/python3*/site-packages/"))
	const use = "import sys, mine, json, os; print(mine.name, sys.prefix == os.path.abspath('venv'), json.dumps(1))"
	for range 2 { // the second time with what the first one compiled
		if got := r.must(r.job("venv/bin/python", "-c", use)); got != "mine True 1\n" {
			t.Errorf("import in the environment by a job: %q", got)
		}
	}
	if got := r.must(r.local("venv/bin/python", "-c", use)); got != "mine True 1\n" {
		t.Errorf("import in the environment: %q", got)
	}
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
