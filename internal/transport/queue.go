package transport

import "sync"

// fairness is after how many chunks the oldest may go before the most urgent,
// so that no class starves.
const fairness = 16

// chunk is a run of whole frames, at most 64 KiB.
type chunk struct {
	buf         []byte
	first, last uint64 // when its first and last frame were queued
	answers     int    // frames that the peer provoked
}

var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, 0, maxFrame)} }}

// queue holds the frames that wait for the writer: a first-in-first-out for
// each class.
type queue struct {
	class [numClasses][]*chunk
	seq   uint64
	taken int
}

// frame adds one frame; its payload is copied.
func (q *queue) frame(class Class, h header, payload []byte) *chunk {
	q.seq++
	size := headerSize + len(payload)
	list := q.class[class]
	if n := len(list); n == 0 || cap(list[n-1].buf)-len(list[n-1].buf) < size {
		k := chunks.Get().(*chunk)
		k.buf, k.first, k.answers = k.buf[:0], q.seq, 0
		q.class[class] = append(list, k)
	}
	list = q.class[class]
	k := list[len(list)-1]
	h.length = len(payload)
	k.buf = append(appendHeader(k.buf, h), payload...)
	k.last = q.seq
	return k
}

func (q *queue) empty() bool {
	for _, list := range q.class {
		if len(list) > 0 {
			return false
		}
	}
	return true
}

// take removes the chunk to be written next, nil where there is none.
func (q *queue) take() *chunk {
	class := q.next()
	if class < 0 {
		return nil
	}
	list := q.class[class]
	k := list[0]
	list[0] = nil
	q.class[class] = list[1:]
	if len(list) == 1 {
		q.class[class] = list[:0:0]
	}
	q.taken++
	return k
}

// next is the class to be served: the lowest that has chunks or, now and
// then, the one whose first chunk is the oldest of all. Only what was queued
// before everything in lower classes may go before it, so the order that the
// package promises holds.
func (q *queue) next() int {
	lowest, oldest := -1, -1
	var first uint64 // of all frames in lower classes
	for class, list := range q.class {
		if len(list) == 0 {
			continue
		}
		if lowest < 0 {
			lowest = class
		}
		if oldest < 0 || list[0].last < first {
			oldest, first = class, list[0].first
		}
		first = min(first, list[0].first)
	}
	if q.taken%fairness == 0 {
		return oldest
	}
	return lowest
}
