package session

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"rexec/fsview/fsproto"
	"rexec/internal/transport"
	"rexec/rer"
)

// TestRecallsBeforeBytes checks that settle waits until what came before it is
// carried out, and that a bad message ends the link.
func TestRecallsBeforeBytes(t *testing.T) {
	client, server := transport.Pipe()
	defer client.Close()
	defer server.Close()
	ch, _ := server.Channel(rer.RecallsChannel)
	from, _ := client.Channel(rer.RecallsChannel)
	leave, faults := make(chan error), make(chan bool, 1)
	r := newRecalls(ch, func([]byte) error { return <-leave }, func() { faults <- true })
	control, _ := client.Channel(rer.ControlChannel)
	for _, c := range []*transport.Channel{from, from, control} {
		if err := c.Send([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	ch, _ = server.Channel(rer.ControlChannel)
	if _, err := ch.Recv(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	settled := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.settle()
		mu.Lock()
		settled = true
		mu.Unlock()
	}()
	for range 2 {
		mu.Lock()
		if settled {
			t.Error("settled before the last recall was carried out")
		}
		mu.Unlock()
		leave <- nil
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("never settled")
	}
	r.settle() // nothing has come since
	if err := from.Send([]byte("bad")); err != nil {
		t.Fatal(err)
	}
	leave <- errors.New("bad")
	select {
	case <-faults:
	case <-time.After(patience):
		t.Fatal("a bad message is no fault")
	}
}

// TestEarlyRecalls: what is recalled while a view is being built is kept for it.
func TestEarlyRecalls(t *testing.T) {
	s := &Session{views: map[string]*view{"": {}}}
	for n := fsproto.Node(1); n < 3; n++ {
		s.recall([]fsproto.Recall{{Node: n}})
	}
	if early := s.views[""].early; len(early) != 2 || early[1].Node != 2 {
		t.Errorf("kept %v", early)
	}
}

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
