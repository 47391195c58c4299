package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "rexec"

// rule is what the packages at or below a path may import of this module and
// of others; the standard library is always allowed. A path that ends in /...
// stands for everything below it as well. The first rule that holds for a
// package counts.
type rule struct {
	path  string
	allow []string
}

const (
	cbor   = "github.com/fxamacker/cbor/v2"
	xsys   = "golang.org/x/sys/..."
	gofuse = "github.com/hanwen/go-fuse/v2/..."
)

var rules = []rule{
	{"rer", []string{cbor}},
	{"disallow", nil},
	{"signals", []string{"rer", xsys}},
	{"agent/...", []string{"agent/...", "rer", "signals", "fsview/fsproto/...", "fsview/origin", "internal/transport", "internal/servers", cbor, xsys}},
	{"fsview/fsproto/...", []string{"rer", "fsview/fsproto/...", cbor, xsys}},
	{"fsview/origin", []string{"rer", "fsview/fsproto/...", xsys}},
	{"fsview/sftporigin", []string{"rer", "fsview/fsproto/...", "github.com/pkg/sftp", "golang.org/x/crypto/ssh", xsys}},
	{"fsview/mounts", []string{xsys}},
	{"fsview/...", []string{"fsview/...", "rer", "disallow", gofuse, xsys}},
	{"internal/launch", []string{"rer", "fsview/mounts", xsys, cbor}},
	{"internal/transport", []string{"rer", cbor, xsys}},
	{"internal/servers", []string{"rer", "github.com/BurntSushi/toml", "github.com/kevinburke/ssh_config"}},
	// A server says its own name, which both sides make in one way: internal/servers.
	{"internal/daemon/...", []string{"internal/daemon/...", "internal/servers", "internal/launch", "internal/transport", "rer", "disallow", "fsview", "fsview/origin", "fsview/fsproto/...", "fsview/mounts", "agent/pump", "signals", "github.com/coreos/go-systemd/v22/...", "github.com/BurntSushi/toml", cbor, xsys}},
	{"internal/testenv/...", []string{"internal/testenv/...", "github.com/creack/pty", "golang.org/x/tools/txtar", xsys}},
	{"internal/arch", nil},
	{"cmd/...", []string{"...", "github.com/...", "golang.org/x/..."}},
	{"examples/...", nil},
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Dir        string
	Name       string
	Doc        string
	Standard   bool
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Name,Doc,Standard,GoFiles,Imports"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// matches: path is pattern, or below it where it ends in "...".
func matches(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(path+"/", prefix)
	}
	return path == pattern
}

func TestImports(t *testing.T) {
	standard := map[string]bool{}
	for _, p := range list(t, "std") {
		standard[p.ImportPath] = true
	}
	for _, p := range list(t, "./...") {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.path, path) })
		if i < 0 {
			t.Errorf("%s: no rule says what it may import", path)
			continue
		}
		for _, imported := range p.Imports {
			name := strings.TrimPrefix(imported, module+"/")
			allowed := slices.ContainsFunc(rules[i].allow, func(a string) bool { return matches(a, name) })
			if !standard[imported] && !allowed && imported != "C" {
				t.Errorf("%s imports %s", path, name)
			}
		}
	}
}

// TestNoFUSEAtHome: a home needs no FUSE, so the command there links none.
func TestNoFUSEAtHome(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/rexec") {
		if matches(gofuse, p.ImportPath) {
			t.Errorf("cmd/rexec depends on %s", p.ImportPath)
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestExit: only commands and tests end the process, so that deferred clean-up
// runs.
func TestExit(t *testing.T) {
	for _, p := range list(t, "./...") {
		if p.Name == "main" || slices.Contains(p.Imports, "testing") {
			continue
		}
		for _, name := range p.GoFiles {
			for _, pos := range exits(t, filepath.Join(p.Dir, name)) {
				t.Errorf("%s ends the process", pos)
			}
		}
	}
}

func exits(t *testing.T, file string) []token.Position {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []token.Position
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch pkg.Name + "." + sel.Sel.Name {
		case "os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln":
			found = append(found, fset.Position(sel.Pos()))
		}
		return true
	})
	return found
}
