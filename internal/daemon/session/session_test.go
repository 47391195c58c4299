package session

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCommands(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "content\n")
	for _, c := range []struct {
		text, want string
		code       int
	}{
		{"echo hello", "hello\n", 0},
		{"exit 3", "", 3},
		{"cat f", "content\n", 0},
		{"pwd", dir + "\n", 0},
		{"echo err >&2; exit 7", "err\n", 7},
		{"echo new >g; cat g", "new\n", 0},
		{"umask", "0022\n", 0},
		{"cat", "", 0},
		{"head -c 300000 /dev/zero | wc -c", "300000\n", 0},
	} {
		out, e := h.sh(dir, c.text)
		if out != c.want || e.Status.Code != c.code || e.Status.Signal != 0 {
			t.Errorf("%s: %q, %+v", c.text, out, e.Status)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "g")); err != nil || string(b) != "new\n" {
		t.Errorf("the file that a job made: %q, %v", b, err)
	}
}
