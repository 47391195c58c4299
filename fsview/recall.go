package fsview

import (
	"sync"

	"rexec/fsview/fsproto"
)

// recalls is the queue of a view's recalls and the one goroutine that carries
// them out: an invalidation waits for requests in the same directory, so no
// handler may send one.
type recalls struct {
	mu           sync.Mutex
	changed      sync.Cond
	queue        []recallJob
	queued, done uint64
	stopped      bool
}

type recallJob struct {
	tree *tree
	list []fsproto.Recall
	wait []chan struct{} // leased replies on their way to the kernel
}

func (r *recalls) push(j recallJob) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, j)
	r.queued++
	r.changed.Broadcast()
}

func (r *recalls) run() {
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && !r.stopped {
			r.changed.Wait()
		}
		if len(r.queue) == 0 {
			r.mu.Unlock()
			return
		}
		j := r.queue[0]
		r.queue = r.queue[1:]
		r.mu.Unlock()
		j.carryOut()
		r.mu.Lock()
		r.done++
		r.changed.Broadcast()
		r.mu.Unlock()
	}
}

// carryOut invalidates, and once more after the replies that were under way:
// one of them may have reached the kernel after its invalidation.
func (j recallJob) carryOut() {
	j.tree.invalidate(j.list)
	for _, done := range j.wait {
		<-done
	}
	if len(j.wait) > 0 {
		j.tree.invalidate(j.list)
	}
}

// settle waits for all that was queued before.
func (r *recalls) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for goal := r.queued; r.done < goal && !r.stopped; {
		r.changed.Wait()
	}
}

func (r *recalls) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.queue = nil
	r.changed.Broadcast()
}

// invalidate tells the kernel. A pinned name is never invalidated: that would
// take away what is mounted on it or below.
func (t *tree) invalidate(list []fsproto.Recall) {
	d := t.device.Load()
	if d == nil {
		return
	}
	for _, r := range list {
		for _, n := range t.nodes.known(r.Node) {
			if r.What != 0 {
				d.notifyInode(n.id, r.What&fsproto.LeaseData != 0)
			}
		}
		if r.Parent == 0 || r.Name == "" {
			continue
		}
		for _, n := range t.nodes.known(r.Parent) {
			if p := n.child(r.Name); p == nil || !p.fixed {
				d.notifyEntry(n.id, r.Name)
			}
		}
	}
}

// forgetRecalled has the next open of a file, and the next look at its
// attributes, asked of home again.
func (t *tree) forgetRecalled(list []fsproto.Recall) {
	for _, r := range list {
		if r.What == 0 {
			continue
		}
		for _, n := range t.nodes.known(r.Node) {
			n.doubt()
			t.unshare(n)
		}
	}
}

// expireAttributes ends the kernel's trust in attributes, which waits for
// nothing. A file's data goes with the next look at them, as its mtime or size
// is another.
func (t *tree) expireAttributes(list []fsproto.Recall) {
	d := t.device.Load()
	if d == nil {
		return
	}
	for _, r := range list {
		for _, n := range t.nodes.known(r.Node) {
			d.notifyInode(n.id, false)
		}
	}
}
