package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte("listen = [\"unix:/x\"]\nallow_users = [\"ann\"]\ngrace = 3\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen[0] != "unix:/x" || c.Grace != 3 || c.Disallowed == "" {
		t.Errorf("read %+v", c)
	}
	for _, bad := range []struct{ text, want string }{
		{"# c\nalow_users = []\n", `line 2: unknown key "alow_users"`},
		{"\n\n[jobs]\nmax = 3\n", "line 3"},
		{"grace = \n", "line 1"},
		{"grace = 3\nlisten = \"x\"\n", "listen"},
		{"grace = 3\nlisten = [\"tcp:1\"]\n", "line 2"},
		{"disallowed = \"etc\"\n", "line 1"},
		{"\ngrace = -1\n", "line 2"},
		{"grace = 1\ngrace = 2\n", "line 2"},
		{"\x00", "line 1"},
	} {
		if _, err := Parse([]byte(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: %v, not %q", bad.text, err, bad.want)
		}
	}
}

func TestReadWithoutFile(t *testing.T) {
	c, err := Read(filepath.Join(t.TempDir(), "none"))
	if err != nil || len(c.Listen) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	file := filepath.Join(t.TempDir(), "c")
	os.WriteFile(file, []byte("x = 1\n"), 0o600)
	if _, err := Read(file); err == nil || !strings.HasPrefix(err.Error(), file+": line 1") {
		t.Errorf("error %v", err)
	}
}

func TestAdmit(t *testing.T) {
	c := Config{AllowUsers: []string{"ann", "bob"}, DenyUsers: []string{"bob"}, DenyHomes: []string{"id2"}}
	for name, want := range map[string]bool{"ann": true, "bob": false, "eve": false, "": false} {
		if got := c.AdmitUser(name) == nil; got != want {
			t.Errorf("user %q admitted: %v", name, got)
		}
	}
	if c.AdmitHome("h1", "id1") != nil || c.AdmitHome("h2", "id2") == nil || c.AdmitHome("", "") != nil {
		t.Error("homes are not told apart")
	}
	if (&Config{}).AdmitUser("anyone") != nil {
		t.Error("without lists somebody is refused")
	}
}
