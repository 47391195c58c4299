// Package diff is the difference suite: a shell script that runs commands
// directly, and the same script that runs them by rexec, must agree in
// standard output, standard error, status and the files that are left.
//
// Cases are the files of the txtar archives in testdata, one archive for each
// subject. In a script, $R stands in front of each command that is to be
// remote:
//
//	$R sh -c 'echo hello; exit 3'
//
// Everything else (pipelines, redirections, traps, $!) is the local shell's,
// as a user would have it. "await FILE" waits for a file and removes it.
// Comment lines at a script's top say more:
//
//	#! bash            the shell (sh if not given)
//	#! pty             standard input, output and error are a new terminal
//	#| expect "text"   in a pty: wait until the output has the (Go) string
//	#| send "\x03"     in a pty: type it
//	#| resize 40 100   in a pty: change the window
//
// A case must be deterministic, whatever the load: [Runner] with the same
// command in both places (go test -self) shows whether it is.
package diff

import (
	"bufio"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/tools/txtar"
)

// Group is the cases of one archive. They share one rexec home.
type Group struct {
	Name  string
	Cases []Case
}

// Case is one script.
type Case struct {
	Group, Name string
	Script      string
	Shell       string
	Pty         bool
	Steps       []Step
}

// Step is one thing that the harness does at a case's terminal.
type Step struct {
	Verb       string // expect, send, resize
	Text       string // expect, send
	Rows, Cols uint16 // resize
}

// Load reads all archives.
func Load(fsys fs.FS) ([]Group, error) {
	names, err := fs.Glob(fsys, "testdata/*.txtar")
	if err != nil {
		return nil, err
	}
	var groups []Group
	for _, name := range names {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		g, err := parseGroup(strings.TrimSuffix(path.Base(name), ".txtar"), txtar.Parse(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func parseGroup(name string, a *txtar.Archive) (Group, error) {
	g := Group{Name: name}
	seen := map[string]bool{}
	for _, f := range a.Files {
		if seen[f.Name] {
			return g, fmt.Errorf("%s is there twice", f.Name)
		}
		seen[f.Name] = true
		c, err := parseCase(name, f)
		if err != nil {
			return g, fmt.Errorf("%s: %w", f.Name, err)
		}
		g.Cases = append(g.Cases, c)
	}
	return g, nil
}

func parseCase(group string, f txtar.File) (Case, error) {
	c := Case{Group: group, Name: f.Name, Script: string(f.Data), Shell: "sh"}
	lines := bufio.NewScanner(strings.NewReader(c.Script))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "#! bash":
			c.Shell = "bash"
		case line == "#! pty":
			c.Pty = true
		case strings.HasPrefix(line, "#| "):
			step, err := parseStep(line[3:])
			if err != nil {
				return c, err
			}
			c.Steps = append(c.Steps, step)
		}
	}
	return c, lines.Err()
}

func parseStep(line string) (Step, error) {
	verb, rest, _ := strings.Cut(line, " ")
	s := Step{Verb: verb}
	var err error
	switch verb {
	case "expect", "send":
		_, err = fmt.Sscanf(rest, "%q", &s.Text)
	case "resize":
		_, err = fmt.Sscanf(rest, "%d %d", &s.Rows, &s.Cols)
	default:
		err = fmt.Errorf("no such step")
	}
	if err != nil {
		return s, fmt.Errorf("step %q: %w", line, err)
	}
	return s, nil
}
