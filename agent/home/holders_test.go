package home

import (
	"os"
	"os/exec"
	"sync"
	"testing"
)

// TestHolders asks for several pipes at once: one that a child reads, one that
// it could only write, and one that is nobody else's.
func TestHolders(t *testing.T) {
	var reads, writes []*os.File
	for range 3 {
		r, w := pipe(t)
		defer r.Close()
		defer w.Close()
		reads, writes = append(reads, r), append(writes, w)
	}
	child := exec.Command("sleep", "1000")
	child.Stdin, child.Stdout = reads[0], writes[1]
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	var h holders
	var all sync.WaitGroup
	for range 5 {
		for i, want := range []bool{true, false, false} {
			all.Go(func() {
				if got := h.otherReader(number(reads[i]), 1); got != want {
					t.Errorf("pipe %d: %v", i, got)
				}
			})
		}
		all.Go(func() {
			if h.otherReader(number(reads[0]), int32(child.Process.Pid)) {
				t.Error("the excepted reader counts")
			}
		})
	}
	all.Wait()
}
