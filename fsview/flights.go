package fsview

import (
	"sync"
	"time"

	"rexec/fsview/fsproto"
)

// flights are the requests of one mount from their reading to the writing of
// their reply. They say which leases may still be believed: a lease that was
// recalled after its request was read is worth nothing.
type flights struct {
	mu    sync.Mutex
	all   map[uint64]*flight // by FUSE's unique number
	epoch uint64             // counts recalls
}

type flight struct {
	epoch   uint64        // when the request was read
	granted bool          // the reply carries a lease
	done    chan struct{} // made by who waits
}

func (f *flights) add(unique uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = make(map[uint64]*flight)
	}
	f.all[unique] = &flight{epoch: f.epoch}
}

func (f *flights) done(unique uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.all[unique]; fl != nil && fl.done != nil {
		close(fl.done)
	}
	delete(f.all, unique)
}

// grant says what is left of a lease that came with the reply to a request.
func (f *flights) grant(unique uint64, l fsproto.Lease) fsproto.Lease {
	if l == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.all[unique]
	if fl == nil || fl.epoch != f.epoch {
		return 0
	}
	fl.granted = true
	return l
}

// recall ends the trust in leases under way, and returns what must be waited
// for: replies that carry a lease and may not have reached the kernel.
func (f *flights) recall() []chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	var wait []chan struct{}
	for _, fl := range f.all {
		if fl.granted {
			wait = append(wait, fl.wait())
		}
	}
	return wait
}

func (fl *flight) wait() chan struct{} {
	if fl.done == nil {
		fl.done = make(chan struct{})
	}
	return fl.done
}

// uniques lists the requests under way.
func (f *flights) uniques() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]uint64, 0, len(f.all))
	for u := range f.all {
		list = append(list, u)
	}
	return list
}

// drain waits until no request is under way, or the time is over.
func (f *flights) drain(limit time.Duration) {
	over := time.NewTimer(limit)
	defer over.Stop()
	for {
		f.mu.Lock()
		var wait chan struct{}
		for _, fl := range f.all {
			wait = fl.wait()
			break
		}
		f.mu.Unlock()
		if wait == nil {
			return
		}
		select {
		case <-wait:
		case <-over.C:
			return
		}
	}
}
