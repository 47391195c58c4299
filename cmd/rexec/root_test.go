package main

import (
	"bytes"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"rexec/agent"
)

// parse gives what a command line means without running it, and "sub" for a
// command of rexec's own.
func parse(t *testing.T, words ...string) (*agent.Options, string, error) {
	t.Helper()
	f := new(flags)
	root := newRootWith(f, func(*agent.Options) {})
	root.SetArgs(words)
	root.SetOut(new(bytes.Buffer))
	cmd, rest, err := root.Traverse(words)
	if err != nil {
		return nil, "", err
	}
	if cmd != root {
		return nil, cmd.Name(), nil
	}
	if err := root.ParseFlags(rest); err != nil {
		return nil, "", err
	}
	o, err := f.options(root.Flags().Args())
	return o, "", err
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		words string // separated by |
		want  agent.Options
	}{
		{"eagle", agent.Options{Login: true}},
		{"eagle|a | b;", agent.Options{Argv: []string{"a ", " b;"}}},
		{"eagle|make", agent.Options{Shell: "make"}},
		{"eagle|", agent.Options{Argv: []string{"/bin/sh", "-c", ""}}},
		{"eagle|make|-j32", agent.Options{Argv: []string{"make", "-j32"}}},
		{"eagle|--|make", agent.Options{Argv: []string{"make"}}},
		{"eagle|--|make|--|-v", agent.Options{Argv: []string{"make", "--", "-v"}}},
		{"eagle|-v", agent.Options{Shell: "-v"}},
		{"eagle|ps|-v", agent.Options{Argv: []string{"ps", "-v"}}},
		{"-vv|-n|eagle|-v|x", agent.Options{Argv: []string{"-v", "x"}, Verbose: 2, NoStdin: true}},
		{"-S|/usr:/opt|--switch=/x|-C|ps|eagle|x", agent.Options{Shell: "x", Switch: []string{"/usr:/opt", "/x"}, Chdir: "ps"}},
		{"-S/usr|eagle|x", agent.Options{Shell: "x", Switch: []string{"/usr"}}},
		{"-t|eagle|x", agent.Options{Shell: "x", Terminal: agent.TerminalForce}},
		{"-Tq|eagle|x", agent.Options{Shell: "x", Terminal: agent.TerminalForbid, Quiet: true}},
		{"--status-fd|7|--or-local|--stats|--dump-rer|--no-home|--no-cache|--sync-writes|eagle|x", agent.Options{Shell: "x",
			StatusFD: 7, OrLocal: true, Stats: true, DumpRER: true, NoHome: true, NoCache: true}},
		{"--|eagle|x", agent.Options{Shell: "x"}},
	} {
		got, sub, err := parse(t, strings.Split(c.words, "|")...)
		if err != nil || sub != "" {
			t.Errorf("%s: %v %s", c.words, err, sub)
			continue
		}
		c.want.Host = "eagle"
		c.want.SSH, c.want.Rexecd, c.want.Home, c.want.Sysid, c.want.HomeStart = got.SSH, got.Rexecd, got.Home, got.Sysid, got.HomeStart
		got.Resolve, got.Serve = nil, nil
		if !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.words, *got, c.want)
		}
	}
}

func TestOwnCommands(t *testing.T) {
	for words, want := range map[string]string{"ps": "ps", "kill 5 TERM": "kill", "home status": "status", "servers add x ssh://y": "add",
		"cache": "cache", "doctor eagle": "doctor", "version": "version", "-v ps": "ps"} {
		if _, sub, err := parse(t, strings.Fields(words)...); err != nil || sub != want {
			t.Errorf("%s: %q, %v", words, sub, err)
		}
	}
	if _, sub, err := parse(t, "ssh://home", "x"); err != nil || sub != "" {
		t.Errorf("ssh://home: %q, %v", sub, err)
	}
}

func TestBadCommandLine(t *testing.T) {
	for _, words := range []string{"", "eagle --", "-t -T eagle x", "--root sftp://x/ eagle x", "--expose all eagle x", "--nonesuch eagle",
		"--status-fd x eagle"} {
		if o, sub, err := parse(t, strings.Fields(words)...); err == nil {
			t.Errorf("%q: %+v %s", words, o, sub)
		}
	}
}

func TestEnvironmentSetsDefaults(t *testing.T) {
	t.Setenv("REXEC_VERBOSE", "2")
	t.Setenv("REXEC_OR_LOCAL", "true")
	t.Setenv("REXEC_SSH", "/bin/other")
	o, _, err := parse(t, "--or-local=false", "eagle", "x")
	if err != nil || o.Verbose != 2 || o.OrLocal || o.SSH != "/bin/other" {
		t.Fatalf("%+v, %v", o, err)
	}
	t.Setenv("REXEC_STATS", "maybe")
	if _, _, err := parse(t, "eagle", "x"); err == nil || !strings.Contains(err.Error(), "REXEC_STATS") {
		t.Fatal(err)
	}
}

// The client runs where FUSE is none of its business.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "hanwen/go-fuse") {
		t.Fatal("rexec imports go-fuse")
	}
}
