package diff

import (
	"embed"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"rexec/internal/testenv"

	"github.com/google/go-cmp/cmp"
)

// self compares direct runs with direct runs: that the cases are sound.
var self = flag.Bool("self", false, "run both sides directly")

//go:embed testdata/*.txtar
var archives embed.FS

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(testenv.Main(m))
}

// limit is how long one script may take, far more than any does.
const limit = 30 * time.Second

// TestSuite runs every case directly and by rexec. Each group has a rexec home
// of its own, which its cases share; two groups run at a time.
func TestSuite(t *testing.T) {
	groups, err := Load(archives)
	if err != nil {
		t.Fatal(err)
	}
	direct := buildDirect(t)
	slots := make(chan struct{}, 2)
	for _, g := range groups {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			runGroup(t, g, direct)
		})
	}
}

// runGroup gives up a group of which three scripts hung: each costs its limit.
func runGroup(t *testing.T, g Group, direct string) {
	env, remote := surroundings(t, direct)
	runner := Runner{Dir: env.Dir, Vars: env.Vars, Limit: limit}
	hung := 0
	for _, c := range g.Cases {
		t.Run(c.Name, func(t *testing.T) {
			if hung == 3 {
				t.Fatal("not run: three cases of this group did not end")
			}
			if err := compare(t, runner, c, direct, remote); errors.Is(err, ErrTimeout) {
				hung++
			}
		})
	}
}

func surroundings(t *testing.T, direct string) (env *testenv.Env, remote string) {
	if *self {
		return testenv.Bare(t), direct
	}
	env = testenv.New(t)
	return env, env.Rexec + " loopback"
}

func compare(t *testing.T, r Runner, c Case, direct, remote string) error {
	want, err := r.Run(c, direct)
	if err != nil {
		t.Errorf("the direct run is no standard to compare with: %v", err)
		return nil
	}
	got, err := r.Run(c, remote)
	if err != nil {
		t.Errorf("%v\ndirect %+v\nrexec %+v", err, want, got)
		return err
	}
	name := c.Group + "/" + c.Name
	want, got = apply(Deviations, name, want), apply(Deviations, name, got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("direct (-) and rexec (+) differ:\n%s\nscript:\n%s", d, c.Script)
	}
	return nil
}

func buildDirect(t *testing.T) string {
	program := filepath.Join(t.TempDir(), "direct")
	out, err := exec.Command("gcc", "-O", "-static", "-o", program, filepath.Join("testdata", "direct.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc direct.c: %v\n%s", err, out)
	}
	return program
}

// TestDeviations: docs/deviations.md has a heading for each deviation of the
// suite, and none besides.
func TestDeviations(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(testenv.Root(), "docs", "deviations.md"))
	if err != nil {
		t.Fatal(err)
	}
	var written, known []string
	for _, m := range regexp.MustCompile("(?m)^### `([^`]+)`$").FindAllSubmatch(doc, -1) {
		written = append(written, string(m[1]))
	}
	for _, d := range Deviations {
		known = append(known, d.Name)
	}
	if d := cmp.Diff(written, known); d != "" {
		t.Errorf("docs/deviations.md (-) and Deviations (+) differ:\n%s", d)
	}
}
