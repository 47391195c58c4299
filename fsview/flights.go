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
	mu     sync.Mutex
	all    map[uint64]*flight // by FUSE's unique number
	epoch  uint64             // counts recalls
	recent []recalled         // the last ones, in order
	lost   uint64             // epoch of the last one that is not in recent any more
}

// recalled is what a recall named.
type recalled struct {
	epoch uint64
	fsproto.Recall
}

// maxRecent bounds what is remembered of recalls: more than arrive during the
// ordinary request.
const maxRecent = 4096

// subject is what a lease is about: a node's attributes and data, a name in a
// directory. The zero value stands for everything.
type subject struct {
	node, parent fsproto.Node
	name         string
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
func (f *flights) grant(unique uint64, l fsproto.Lease, about subject) fsproto.Lease {
	if l == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.all[unique]
	if fl == nil {
		return 0
	}
	if l = f.left(l, about, fl.epoch); l != 0 {
		fl.granted = true
	}
	return l
}

// left takes from a lease what was recalled after an epoch.
func (f *flights) left(l fsproto.Lease, about subject, since uint64) fsproto.Lease {
	if since == f.epoch {
		return l
	}
	if since < f.lost || about == (subject{}) {
		return 0
	}
	for i := len(f.recent) - 1; i >= 0 && f.recent[i].epoch > since; i-- {
		r := &f.recent[i]
		if r.What != 0 && r.Node == about.node {
			l &^= fsproto.LeaseAttr | fsproto.LeaseData
		}
		if r.Name != "" && r.Name == about.name && r.Parent == about.parent {
			l &^= fsproto.LeaseEntry
		}
	}
	return l
}

// recall ends the trust in leases under way, and returns what must be waited
// for: replies that carry a lease and may not have reached the kernel.
func (f *flights) recall(list []fsproto.Recall) []chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	f.remember(list)
	var wait []chan struct{}
	for _, fl := range f.all {
		if fl.granted {
			wait = append(wait, fl.wait())
		}
	}
	return wait
}

// remember keeps a recall for the requests that were read before it.
func (f *flights) remember(list []fsproto.Recall) {
	if len(f.all) == 0 || len(list) > maxRecent {
		f.recent, f.lost = f.recent[:0], f.epoch
		return
	}
	for _, r := range list {
		f.recent = append(f.recent, recalled{f.epoch, r})
	}
	if len(f.recent) > maxRecent {
		over := len(f.recent) - maxRecent/2
		f.lost = f.recent[over-1].epoch
		f.recent = append(f.recent[:0], f.recent[over:]...)
	}
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
