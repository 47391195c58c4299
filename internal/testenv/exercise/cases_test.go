package exercise

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rexec/internal/testenv"
)

// refused is what a job prints where it differs: what FUSE, or the kernel in a
// user namespace, refuses. docs/deviations.md names each.
var refused = map[string]string{
	"refused_device":    "EPERM\n",
	"refused_trusted":   "EPERM ENODATA\n",
	"refused_immutable": "False False\nFalse False\n",
	"refused_ranges":    "ENOTSUP 16384\nENOTSUP 16384\nFalse\n",
}

// TestCases runs testdata/cases.py directly and as a job, and compares case by
// case.
func TestCases(t *testing.T) {
	r := newRig(t)
	script := filepath.Join(testenv.Root(), "internal/testenv/exercise/testdata/cases.py")
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "cases.py"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	direct, job := r.both("/usr/bin/python3 " + filepath.Join(r.Dir, "cases.py"))
	want, got := sections(direct), sections(job)
	if len(want) < 20 {
		t.Fatalf("the direct run: %s", direct)
	}
	for name, text := range want {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(text, "raised ") {
				t.Fatalf("the direct run is no standard to compare with: %s", text)
			}
			if differs, ok := refused[name]; ok {
				text = differs
			}
			diff(t, "the job's output", text, got[name])
		})
	}
}

// sections are the outputs of the cases, by name.
func sections(out string) map[string]string {
	all := make(map[string]string)
	for _, s := range strings.Split(out, "== ")[1:] {
		name, text, _ := strings.Cut(s, "\n")
		all[name] = text
	}
	return all
}
