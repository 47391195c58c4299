package session

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rexec/rer"
)

func TestLoan(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/in/deep", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("b", filepath.Join(dir, "lb"))
	os.Symlink("a", filepath.Join(dir, "la"))
	under := func(list ...string) []string {
		for i, p := range list {
			list[i] = filepath.Join(dir, p)
		}
		return list
	}
	for _, c := range []struct {
		what                                        string
		asked, forbidden                            []string
		kept, dropped, binds, served, inside, third []string
	}{
		{what: "plain", asked: under("a", "b"), kept: under("a", "b"), binds: under("a", "b")},
		{what: "absent", asked: under("a", "x"), kept: under("a", "x"), dropped: under("x"), binds: under("a")},
		{what: "forbidden", asked: under("a", "b"), forbidden: under("b"), kept: under("a"), dropped: under("b"), binds: under("a")},
		{what: "below", asked: under("a/in"), forbidden: under("a"), dropped: under("a/in")},
		{what: "hole", asked: under("a"), forbidden: under("a/in"), kept: under("a"), served: under("a"), inside: under("a/in")},
		{what: "hole that is not there", asked: under("a"), forbidden: under("a/none"), kept: under("a"), served: under("a"), inside: under("a/none")},
		{what: "nested", asked: under("a/in", "a"), kept: under("a/in", "a"), binds: under("a")},
		{what: "nested in served", asked: under("a", "a/in"), forbidden: under("a/none"), kept: under("a", "a/in"),
			binds: under("a/in"), served: under("a"), inside: under("a/none")},
		{what: "link to a forbidden place", asked: under("lb"), forbidden: under("b"), dropped: under("lb")},
		{what: "forbidden link", asked: under("b"), forbidden: under("lb"), dropped: under("b")},
		{what: "link to a place with a hole", asked: under("la"), forbidden: under("a/in"), kept: under("la"),
			served: under("la"), inside: under("la/in")},
		{what: "kernel's", asked: []string{"/proc", "/dev/shm"}, kept: []string{"/proc", "/dev/shm"}},
	} {
		l := newLoan(c.asked, c.forbidden)
		for _, r := range []struct {
			name      string
			got, want []string
		}{{"kept", l.kept, c.kept}, {"dropped", l.dropped, c.dropped}, {"binds", l.binds, c.binds},
			{"served", l.served, c.served}, {"inside", l.inside, c.inside}} {
			if !slices.Equal(r.got, r.want) {
				t.Errorf("%s: %s %q, not %q", c.what, r.name, r.got, r.want)
			}
		}
	}
	if all := newLoan([]string{"/"}, nil); !slices.Equal(all.served, []string{"/"}) ||
		slices.Contains(all.binds, "/proc") || !slices.Contains(all.binds, "/usr") {
		t.Errorf("root: %+v", all)
	}
}

// fuseType is how stat(1) prints the type of a FUSE file system.
const fuseType = "65735546"

// switched sets SWITCH as an agent does.
func switched(list ...string) func(*running) {
	return func(j *running) {
		j.req.Switch = list
		j.req.Env = append(j.req.Env, []byte("SWITCH="+strings.Join(list, ":")))
	}
}

func TestTwoViews(t *testing.T) {
	h := newHome(t, Config{})
	dir, other := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "f"), "one\n")
	text := "stat -f -c %t " + dir + " " + other + "; cat " + dir + "/f"
	check := func(what, out string, ours, theirs bool) {
		t.Helper()
		f := strings.Fields(out)
		if len(f) != 3 || (f[0] != fuseType) != ours || (f[1] != fuseType) != theirs || f[2] != "one" {
			t.Errorf("%s: %q", what, out)
		}
	}
	first := h.request("/")
	first.req.Shell = []byte("read x; " + text)
	switched(dir)(first)
	first.launch()
	if s := first.started(); !slices.Equal(s.Switch, []string{dir}) || len(s.Dropped) != 0 {
		t.Errorf("started: %+v", s)
	}
	out, _ := h.sh("/", text, switched(other))
	check("other", out, false, true)
	first.stdin.Send([]byte("dx\n"))
	first.wait()
	check("first", first.stdout.text()+first.stderr.text(), true, false)
	out, _ = h.sh("/", text)
	check("none", out, false, false)
	out, _ = h.sh("/", text, switched(dir, other))
	check("both", out, true, true)
	out, _ = h.sh("/", text, switched("/"))
	check("root", out, true, true)
}

func TestForbidden(t *testing.T) {
	dir, whole := t.TempDir(), t.TempDir()
	secret := filepath.Join(dir, "secret")
	none := filepath.Join(dir, "none")
	file := filepath.Join(dir, "file")
	forbidden := []string{secret, whole, none, file}
	h := newHome(t, Config{Forbidden: func() []string { return forbidden }})
	write(t, filepath.Join(dir, "f"), "open\n")
	write(t, filepath.Join(secret, "s"), "home\n")
	write(t, file, "homefile\n")
	if err := os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")); err != nil {
		t.Fatal(err)
	}
	sw := switched(dir, whole, "/nonexistent")
	out, _ := h.sh("/", "echo $SWITCH", sw)
	if want := dir + ":/nonexistent\n"; out != want {
		t.Errorf("SWITCH=%q, not %q", out, want)
	}
	j := h.request("/", "true")
	sw(j)
	if s := j.launch().started(); !slices.Equal(s.Dropped, []string{whole, "/nonexistent"}) {
		t.Errorf("dropped %q", s.Dropped)
	}
	j.wait()
	// The forbidden directory is home's own (here the same), which is another
	// file system than the one that the server shows around it.
	out, _ = h.sh("/", "cat "+dir+"/g "+secret+"/s; stat -c %d "+dir+" "+secret+" "+secret+"/s", sw)
	f := strings.Fields(out)
	if len(f) != 5 || f[0] != "open" || f[1] != "home" || f[2] == f[3] || f[3] != f[4] {
		t.Errorf("served with a hole: %q", out)
	}
	out, _ = h.sh("/", "cat "+file+"; stat -c %d "+dir+" "+file+"; echo more >>"+file+"; cat "+file, sw)
	if f = strings.Fields(out); len(f) != 5 || f[0] != "homefile" || f[1] == f[2] || f[4] != "more" {
		t.Errorf("a forbidden file: %q", out)
	}
	out, _ = h.sh(dir, "ls; echo x >new; cat new; rm new; mv secret moved; rmdir secret; mkdir none; cat none", sw)
	if strings.Contains(out, "home") || !strings.HasPrefix(out, "file\ng\n") || !strings.Contains(out, "x\n") {
		t.Errorf("in the served directory: %q", out)
	}
	if _, err := os.Stat(filepath.Join(secret, "s")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("a forbidden name was made on the server")
	}
	// A new list holds for the next job.
	forbidden = append(forbidden, dir)
	out, _ = h.sh("/", "echo $SWITCH; stat -f -c %t "+dir, sw)
	if want := "/nonexistent\n" + fuseType + "\n"; out != want {
		t.Errorf("after the list changed: %q, not %q", out, want)
	}
}

func TestCwd(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "here"), "")
	out, _ := h.sh(dir, "pwd; ls; stat -f -c %t .", switched(dir))
	if !strings.HasPrefix(out, dir+"\nhere\n") || strings.Contains(out, fuseType) {
		t.Errorf("below a switched prefix: %q", out)
	}
	j := h.request(dir, "pwd")
	switched(dir)(j)
	j.req.CwdPath = []byte(filepath.Join(dir, "lacking"))
	if no := j.launch().refused(); no.Reason != rer.ReasonCwd || no.Hint == "" {
		t.Errorf("a directory that the server lacks: %+v", no)
	}
	gone := filepath.Join(dir, "gone")
	write(t, filepath.Join(gone, "x"), "")
	j = h.request(gone)
	j.req.Shell, j.req.CwdPath = []byte("echo in $(stat -c %h .)"), nil
	os.RemoveAll(gone)
	if j.launch().wait(); j.stdout.text() != "in 0\n" {
		t.Errorf("removed directory: %q %q", j.stdout.text(), j.stderr.text())
	}
}

func TestUpwardWalk(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	for _, sw := range [][]string{nil, {dir}, {"/usr"}} {
		for _, start := range []string{dir, "/usr/lib", "/proc", "/dev"} {
			up := strings.Repeat("../", 40)
			out, _ := h.sh(start, "[ "+up+" -ef / ] && [ "+up+"usr -ef /usr ] && echo same", switched(sw...))
			if out != "same\n" {
				t.Errorf("SWITCH=%q, .. from %s: %q", sw, start, out)
			}
		}
	}
}

func TestResolver(t *testing.T) {
	h := newHome(t, Config{})
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := h.sh("/", "cat /etc/resolv.conf"); out != string(want) {
		t.Errorf("resolv.conf: %q, not %q", out, want)
	}
}
