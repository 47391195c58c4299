package transport

import (
	"io"
	"strconv"
	"sync"
)

func quote(s string) string { return strconv.QuoteToGraphic(s) }

// Pipe joins two ends of a link in memory.
func Pipe() (client, server *Conn) { return PipeOptions(Options{}, Options{}) }

// PipeOptions is Pipe with options for each end.
func PipeOptions(client, server Options) (*Conn, *Conn) {
	a, b := newBuffer(), newBuffer()
	return New(&memory{r: a, w: b}, true, client), New(&memory{r: b, w: a}, false, server)
}

// memory is one end of a byte stream in memory.
type memory struct{ r, w *buffer }

func (m *memory) Read(p []byte) (int, error)  { return m.r.read(p) }
func (m *memory) Write(p []byte) (int, error) { return m.w.write(p) }
func (m *memory) CloseWrite() error           { m.w.finish(false); return nil }
func (m *memory) Close() error                { m.w.finish(false); m.r.finish(true); return nil }

// bufferSize is about that of a unix socket.
const bufferSize = 256 << 10

// buffer is one direction: bytes on their way.
type buffer struct {
	mu     sync.Mutex
	change sync.Cond
	data   []byte
	ended  bool // the writer finished
	gone   bool // the reader did
}

func newBuffer() *buffer {
	b := &buffer{}
	b.change.L = &b.mu
	return b
}

func (b *buffer) read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) == 0 && !b.ended && !b.gone {
		b.change.Wait()
	}
	switch {
	case b.gone:
		return 0, io.ErrClosedPipe
	case len(b.data) == 0:
		return 0, io.EOF
	}
	n := copy(p, b.data)
	b.data = b.data[:copy(b.data, b.data[n:])]
	b.change.Broadcast()
	return n, nil
}

func (b *buffer) write(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(p) > 0 {
		for len(b.data) >= bufferSize && !b.ended && !b.gone {
			b.change.Wait()
		}
		if b.ended || b.gone {
			return n, io.ErrClosedPipe
		}
		k := min(len(p), bufferSize-len(b.data))
		b.data = append(b.data, p[:k]...)
		p, n = p[k:], n+k
		b.change.Broadcast()
	}
	return n, nil
}

func (b *buffer) finish(reader bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.gone = b.gone || reader
	b.change.Broadcast()
}
