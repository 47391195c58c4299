package servers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rexec/rer"
)

// database makes one of the given files: system, user, ssh and others.
func database(t *testing.T, files map[string]string) *Database {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Database{System: dir + "/system", User: dir + "/config/rexec/servers.toml", SSH: []string{dir + "/.ssh/config", dir + "/etc/ssh_config"},
		Login: "alice", Host: "hawk", Machine: "abc123", Home: dir}
}

const system = `
[[server]]
name = "eagle"
url = "ssh://bob@eagle.example.org:2222"

[[server]]
name = "crow"
disabled = true
message = "being repaired\nuntil Monday"

[[server]]
name = "kite"
allow = ["bob"]

[[server]]
name = "wren"
allow = ["bob", "alice"]
clients = ["robin", "abc123"]

[[server]]
name = "owl"
clients = ["robin"]
`

const users = `
# mine
[[server]]
name = "crow"   # the administrator's entry decides
[[server]]
name = "socket"
url = "unix:/run/rexecd.sock"
[[server]]
name = "own"
url = "loopback"
`

const sshConfig = `
Host finch  sparrow *.example.org !x gull?
	HostName 10.0.0.1
Match exec "true"
	User x
HOST="two words" "robin"  # remark
Include conf.d/*.conf
include ~/.ssh/config
host = eagle
`

func TestResolve(t *testing.T) {
	d := database(t, map[string]string{"system": system, "config/rexec/servers.toml": users, ".ssh/config": sshConfig,
		".ssh/conf.d/a.conf": "Host inside\n", "etc/ssh_config": "Host dove\n"})
	for host, want := range map[string]string{
		"local":                   "local",
		"loopback":                "loopback",
		"abc123":                  "local", // own sysid
		"eagle":                   "ssh://bob@eagle.example.org:2222",
		"wren":                    "ssh://wren",
		"socket":                  "unix:/run/rexecd.sock",
		"own":                     "loopback",
		"finch":                   "ssh://finch",
		"sparrow":                 "ssh://sparrow",
		"robin":                   "ssh://robin",
		"inside":                  "ssh://inside",
		"dove":                    "ssh://dove",
		"ssh://home":              "ssh://home",
		"ssh://u@h:22/":           "ssh://u@h:22",
		"ssh://[fe80::1]":         "ssh://[fe80::1]",
		"ssh://u@[fe80::1]:9":     "ssh://u@[fe80::1]:9",
		"unix:/a/../b":            "unix:/b",
		"unix:///x":               "unix:/x",
		"ssh://kite":              "ssh://kite", // a URL is looked up nowhere
		"ssh://u%40corp@eagle":    "ssh://u%40corp@eagle",
		"ssh://10.0.0.1":          "ssh://10.0.0.1",
		"ssh://under_score.local": "ssh://under_score.local",
	} {
		got, err := d.Resolve(host)
		if err != nil || got.String() != want || got.Name != host {
			t.Errorf("%s: %v (%q), %v; want %s", host, got, got.Name, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	d := database(t, map[string]string{"system": system, "config/rexec/servers.toml": users, ".ssh/config": sshConfig})
	for _, c := range []struct {
		host       string
		reason     rer.Reason
		text, hint string
	}{
		{"", rer.ReasonUnknownHost, "no host", ""},
		{"hawk", rer.ReasonUnknownHost, "unknown host", "servers add"}, // own name is no sysid
		{"phoenix", rer.ReasonUnknownHost, `unknown host "phoenix"`, "rexec servers add phoenix ssh://phoenix"},
		{"aegle", rer.ReasonUnknownHost, "unknown host", "did you mean eagle?"},
		{"bob@eagle", rer.ReasonUnknownHost, "unknown host", "ssh://bob@eagle"},
		{"x.example.org", rer.ReasonUnknownHost, "unknown host", ""},
		{"gull?", rer.ReasonUnknownHost, "unknown host", ""},
		{"-oProxyCommand=x", rer.ReasonUnknownHost, "unknown host", ""},
		{"crow", rer.ReasonWithdrawn, "crow is withdrawn: being repaired until Monday", "system"},
		{"kite", rer.ReasonNotAllowed, "kite may not be used by alice", "system"},
		{"owl", rer.ReasonNotAllowed, "owl may not be used from this machine", "system"},
		{"tls://eagle", rer.ReasonUnreachable, "not in this version", "ssh://"},
		{"http://eagle", rer.ReasonUnknownHost, "no URL of a server", ""},
		{"unix:relative", rer.ReasonUnknownHost, "no absolute path", ""},
		{"ssh://", rer.ReasonUnknownHost, "no host", ""},
		{"ssh://u:secret@h", rer.ReasonUnknownHost, "passwords", ""},
		{"ssh://h/path", rer.ReasonUnknownHost, "follows", ""},
		{"ssh://-oProxyCommand=x", rer.ReasonUnknownHost, "misread", ""},
		{"ssh://-x@h", rer.ReasonUnknownHost, "misread", ""},
		{"ssh://h:0", rer.ReasonUnknownHost, "no port number", ""},
		{"ssh://h:99999", rer.ReasonUnknownHost, "no port number", ""},
		{"ssh://a:b:1", rer.ReasonUnknownHost, "no address", ""},
		{"ssh://h:port", rer.ReasonUnknownHost, "no URL", ""},
		{"ssh://a%20b", rer.ReasonUnknownHost, "", ""},
		{"ssh://$(x)", rer.ReasonUnknownHost, "", ""},
	} {
		_, err := d.Resolve(c.host)
		var refused *rer.Refused
		if !errors.As(err, &refused) {
			t.Errorf("%q: %v", c.host, err)
			continue
		}
		if refused.Reason != c.reason || !strings.Contains(refused.Text, c.text) || !strings.Contains(refused.Hint, c.hint) {
			t.Errorf("%q: %+v", c.host, *refused)
		}
		if strings.Contains(refused.Text+refused.Hint, "\n") {
			t.Errorf("%q: more than a line", c.host)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for text, want := range map[string]string{
		"[[server]]\nname = \"a\"\nurl = oops\n":               ":3: ",
		"[[server]]\nname = \"a\"\nname = \"b\"\n":             ":3: ",
		"[[server]]\nname = \"a\"\ndisable = true\n":           `:3: unknown key "server.disable"`,
		"[[servers]]\nname = \"a\"\n":                          ":1: unknown key",
		"[[server]]\nname = \"a\"\n[[server]]\nname = \"a\"\n": `:3: server "a" stands here twice`,
		"\n\n[[server]]\nurl = \"ssh://x\"\n":                  `:3: "" is no name`,
		"[[server]]\nname = \"local\"\n":                       ":1: the name local is reserved",
		"[[server]]\nname = \"a\"\nurl = \"local\"\n":          ":1: a server cannot be local",
		"[[server]]\nname = \"a\"\nurl = \"http://b\"\n":       ":1: ",
		"[[server]]\nname = 7\n":                               "",
		"[[server]]\nname = \"a\"\nallow = \"bob\"\n":          "",
		"[[server]]\nname = \"a\"\nclients = [1]\n":            "",
		"\x00\xff": "",
		"[[server]]\nname = \"a\"\nurl = \"tls://a.example.org\"\n":  "not in this version",
		"[[server]]\nname = \"a\"\nurl = \"ssh://-oProxyCommand\"\n": "misread",
	} {
		d := database(t, map[string]string{"config/rexec/servers.toml": text})
		for what, err := range map[string]error{
			"list":   second(d.List()),
			"name":   second(d.Resolve("eagle")),
			"add":    d.Add(Entry{Name: "new"}),
			"remove": d.Remove("a"),
		} {
			var fault *FileError
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %s: %v, want %s", text, what, err, want)
			}
		}
		if now, _ := os.ReadFile(d.User); string(now) != text {
			t.Errorf("%q became %q", text, now)
		}
		if _, err := d.Resolve("loopback"); err != nil {
			t.Error(err)
		}
	}
	d := database(t, map[string]string{"system": strings.Repeat("#\n", maxFile)})
	if _, err := d.List(); err == nil {
		t.Error("a huge file was read")
	}
}

func second[T any](_ T, err error) error { return err }

func TestAddRemove(t *testing.T) {
	d := database(t, map[string]string{"system": system})
	full := Entry{Name: "b.c-d_e", URL: "ssh://x@y:1", Disabled: true, Message: "he said \"no\"\n\t\\ \x01 ü", Allow: []string{"a", "b"}, Clients: []string{"c"}}
	for _, e := range []Entry{{Name: "first"}, full, {Name: "third", URL: "unix:/s"}} {
		if err := d.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Show(full.Name)
	if err != nil || !same([]Entry{got}, []Entry{full}) || got.Source != d.User || got.Line != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, e := range []Entry{{Name: "first"}, {Name: "eagle"}} {
		if err := d.Add(e); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", e.Name, err)
		}
	}
	for _, e := range []Entry{{Name: "ps"}, {Name: "loopback"}, {Name: "-x"}, {Name: "a b"}, {}, {Name: "z", URL: "ftp://x"}} {
		if err := d.Add(e); err == nil {
			t.Errorf("added %+v", e)
		}
	}
	if err := d.Remove("first"); err != nil {
		t.Fatal(err)
	}
	var refused *rer.Refused
	if err := d.Remove("first"); !errors.As(err, &refused) || refused.Reason != rer.ReasonUnknownHost {
		t.Fatal(err)
	}
	if err := d.Remove("eagle"); !errors.As(err, &refused) || !strings.Contains(err.Error(), "system") {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Dir(d.User) + "/.*"); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

// Edits keep what they do not concern: comments, order, mode, a symbolic link.
func TestEditKeeps(t *testing.T) {
	const before = "# head\n[[server]]\nname = \"a\" # x\n\n# about b\n[[ server ]] # y\nname = \"b\"\n# about c\n[[server]]\nname = \"c\"\n# tail\n"
	d := database(t, map[string]string{"dotfiles/servers": before})
	real := filepath.Join(d.Home, "dotfiles/servers")
	os.Chmod(real, 0o640)
	os.MkdirAll(filepath.Dir(d.User), 0o755)
	if err := os.Symlink(real, d.User); err != nil {
		t.Fatal(err)
	}
	check := func(want string) {
		t.Helper()
		if now, _ := os.ReadFile(real); string(now) != want {
			t.Fatalf("%s\nwant:\n%s", now, want)
		}
	}
	if err := d.Remove("b"); err != nil {
		t.Fatal(err)
	}
	check("# head\n[[server]]\nname = \"a\" # x\n\n# about b\n# about c\n[[server]]\nname = \"c\"\n# tail\n")
	if err := d.Remove("c"); err != nil {
		t.Fatal(err)
	}
	if err := d.Add(Entry{Name: "d"}); err != nil {
		t.Fatal(err)
	}
	check("# head\n[[server]]\nname = \"a\" # x\n\n# about b\n# about c\n# tail\n\n[[server]]\nname = \"d\"\nurl = \"ssh://d\"\n")
	info, err := os.Lstat(d.User)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Fatal("the link was replaced")
	}
	if info, _ := os.Stat(real); info.Mode().Perm() != 0o640 {
		t.Fatal(info.Mode())
	}
}

// What this package cannot edit safely stays untouched.
func TestEditRefuses(t *testing.T) {
	for _, text := range []string{
		"server = [{name = \"a\"}, {name = \"b\"}]\n",
		"[[server]]\nname = \"z\"\nmessage = '''\n[[server]]\nname = \"fake\"\n'''\n[[server]]\nname = \"a\"\n",
	} {
		d := database(t, map[string]string{"config/rexec/servers.toml": text})
		if err := d.Remove("a"); err == nil || !strings.Contains(err.Error(), "only a person") {
			t.Error(err)
		}
		if now, _ := os.ReadFile(d.User); string(now) != text {
			t.Errorf("%q became %q", text, now)
		}
	}
}

func TestAddAtOnce(t *testing.T) {
	d := database(t, nil)
	var all sync.WaitGroup
	for i := range 20 {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := d.Add(Entry{Name: fmt.Sprintf("s%d", i)}); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	if list, err := d.List(); err != nil || len(list) != 20 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
}

func TestSysid(t *testing.T) {
	etc := t.TempDir()
	write := func(name, text string) {
		os.MkdirAll(filepath.Dir(filepath.Join(etc, name)), 0o755)
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const machine = "0123456789abcdef0123456789abcdef"
	write("machine-id", machine+"\n")
	id := sysid(etc)
	if len(id) != 10 || strings.Contains(machine, id) || !isName(id) {
		t.Fatal(id)
	}
	write("rexec/sysid", " wing7 \n")
	if got := sysid(etc); got != "wing7" {
		t.Fatal(got)
	}
	write("rexec/sysid", "not a name\n")
	if got := sysid(etc); got != id {
		t.Fatal(got)
	}
	if first, again := Sysid(), Sysid(); first == "" || first != again {
		t.Fatal(first, again)
	}
}

func TestDefault(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	t.Setenv("XDG_CONFIG_HOME", "/conf")
	if d := Default(); d.User != "/conf/rexec/servers.toml" || d.SSH[0] != "/home/x/.ssh/config" || d.Machine == "" {
		t.Fatalf("%+v", d)
	}
	t.Setenv("XDG_CONFIG_HOME", "relative")
	if d := Default(); d.User != "/home/x/.config/rexec/servers.toml" {
		t.Fatalf("%+v", d)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"ssh://u@h:1", "unix:/x", "ssh://[::1]:2", "loopback"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		b, err := Parse(a.String())
		b.Name = a.Name
		if err != nil || a != b {
			t.Fatalf("%q: %+v, then %+v, %v", s, a, b, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(system))
	f.Add([]byte(sshConfig))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, line := range strings.Split(string(text), "\n") {
			sshLine(line)
		}
		list, err := parse("f", text)
		if err != nil {
			return
		}
		for i := range list {
			cut(text, i)
		}
	})
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"eagle": true, "_a.b-c": true, "9": true, strings.Repeat("n", 255): true,
		"": false, "-a": false, ".a": false, "a b": false, "a\n": false, "\u00e4": false, strings.Repeat("n", 256): false,
	} {
		if isName(name) != want {
			t.Errorf("name %q: not %v", name, want)
		}
	}
	for line, want := range map[string]bool{
		"[[server]]": true, " [[ server ]] # new\r": true, "[[server]]x": false, "[server]": false, "[[other]]": false, "server]]": false,
	} {
		if isHeader(line) != want {
			t.Errorf("line %q: not %v", line, want)
		}
	}
}
