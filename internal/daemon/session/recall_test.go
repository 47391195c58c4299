package session

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestSeesWhatPrecedes checks that a job sees what changed at home before a
// byte was sent to it.
func TestSeesWhatPrecedes(t *testing.T) {
	h := newHome(t, Config{})
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	write(t, file, "0\n")
	j := h.request(dir)
	j.req.Shell = []byte("while read -r x; do read -r y <f; echo $x $y; done")
	j.launch().started()
	want := ""
	for i := range 100 {
		n := strconv.Itoa(i)
		if i%2 == 0 {
			write(t, file, n+"\n")
		} else { // another file under the same name
			write(t, file+".new", n+"\n")
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		h.origin.Settle()
		if err := j.stdin.Send([]byte("d" + n + "\n")); err != nil {
			t.Fatal(err)
		}
		want += n + " " + n + "\n"
		j.stdout.wait(t, "answer", func() bool { return j.stdout.data.Len() >= len(want) })
		if got := j.stdout.text(); got != want {
			t.Fatalf("after change %d the job saw %q", i, got[len(want)-2*len(n)-2:])
		}
	}
	j.stdin.Send([]byte("e"))
	j.wait()
}
