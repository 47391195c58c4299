package session

import (
	"sync"
	"testing"
	"time"

	"rexec/internal/transport"
	"rexec/rer"
)

// TestFilesBeforeBytes checks that settle waits for what came on the file
// channel before it, and for nothing else.
func TestFilesBeforeBytes(t *testing.T) {
	client, server := transport.Pipe()
	defer client.Close()
	defer server.Close()
	files, _ := server.Channel(rer.FilesChannel)
	f := newFilesChannel(files, func() { t.Error("flood") })
	from, _ := client.Channel(rer.FilesChannel)
	bulk, err := client.Open(transport.ClassBulk)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"recall 1", "recall 2"} {
		if err := from.Send([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := bulk.Send([]byte("dx")); err != nil {
		t.Fatal(err)
	}
	var ch *transport.Channel
	eventually(t, "the channel is open", func() bool { ch, err = server.Channel(bulk.ID()); return err == nil })
	if _, err := ch.Recv(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	settled := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.settle()
		mu.Lock()
		settled = true
		mu.Unlock()
	}()
	for range 2 {
		if _, err := f.Recv(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if settled {
			t.Error("settled before the last message was dealt with")
		}
		mu.Unlock()
	}
	go f.Recv() // the last one is dealt with
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("never settled")
	}
	f.settle() // nothing has come since
}
