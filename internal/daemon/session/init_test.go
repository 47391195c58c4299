package session

import (
	"testing"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// TestInitKilled kills init under a job: home learns why, and the session
// ends, so that the next command gets another.
func TestInitKilled(t *testing.T) {
	inits := make(chan int, 2)
	h := newHome(t, Config{Note: func(j Job) { inits <- j.Init }})
	j := h.request(t.TempDir(), "sleep", "98763")
	j.launch().started()
	if err := unix.Kill(<-inits, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if no := j.refused(); no.Reason != rer.ReasonLost || no.Text == "" {
		t.Errorf("refused: %+v", no)
	}
	h.waitEnd()
	if alive("98763") {
		t.Error("a process outlived its init")
	}
}
