package fsview

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"rexec/fsview/fsproto"
)

// goodbye bounds how long Close waits for handlers whose context has ended.
const goodbye = 5 * time.Second

// View is a job's file name space: its FUSE mounts, served.
//
// Locks, none held while another is taken: table.mu, memory.mu, flights.mu,
// recalls.mu, handles.mu, adopted.mu.
type View struct {
	cfg    Config
	trees  []*tree
	secret string // the name under which [View.Path] finds nodes
	born   fsproto.Time
	recall recalls

	closing sync.Once
	stop    chan struct{}
	givers  sync.WaitGroup

	adopt adoptions
}

// New makes a view, and looks at home for what its pinned names are there.
func New(cfg Config) (*View, error) {
	var random [16]byte
	rand.Read(random[:])
	v := &View{
		cfg: cfg, secret: ".rexec-" + hex.EncodeToString(random[:]),
		born: timeOf(time.Now()), stop: make(chan struct{}),
	}
	v.recall.changed.L = &v.recall.mu
	for i, m := range cfg.Mounts {
		if m.Origin == nil || m.Root == 0 {
			return nil, fmt.Errorf("view: mount %q lacks an origin or a root", m.Path)
		}
		v.trees = append(v.trees, newTree(v, i, m))
	}
	if len(v.trees) == 0 {
		return nil, errors.New("view: no mounts")
	}
	v.plant()
	for _, t := range v.trees {
		if err := t.prepare(context.Background()); err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
	}
	for _, t := range v.trees {
		v.givers.Go(t.giveBack)
	}
	go v.recall.run()
	return v, nil
}

func (v *View) logf(format string, args ...any) {
	if v.cfg.Logf != nil {
		v.cfg.Logf(format, args...)
	}
}

// Serve serves one mount on dev, an open /dev/fuse that is the view's from
// then on. It returns at once.
func (v *View) Serve(index int, dev *os.File) error {
	if index < 0 || index >= len(v.trees) {
		dev.Close()
		return fmt.Errorf("serve mount %d of %d: %w", index, len(v.trees), os.ErrInvalid)
	}
	t := v.trees[index]
	d, err := newDevice(dev, t)
	if err != nil {
		return fmt.Errorf("serve %s: %w", t.mount.Path, err)
	}
	if !t.device.CompareAndSwap(nil, d) || t.closed.Load() {
		d.close()
		return fmt.Errorf("serve %s: %w", t.mount.Path, os.ErrExist)
	}
	d.start()
	return nil
}

// fewRecalls is how many recalls are carried out, as far as that can be done
// without waiting, before Recall returns.
const fewRecalls = 1000

// Recall takes leases back. It returns at once; attributes are gone from the
// kernel's cache then, and [View.Settle] waits for names and data.
func (v *View) Recall(origin fsproto.Origin, list []fsproto.Recall) {
	for _, t := range v.trees {
		if t.origin != origin {
			continue
		}
		wait := t.flights.recall(list)
		t.forgetRecalled(list)
		if len(list) <= fewRecalls {
			t.expireAttributes(list)
		}
		v.recall.push(recallJob{t, list, wait})
	}
}

// Settle returns when all recalls queued so far are in force.
func (v *View) Settle() { v.recall.settle() }

// Wait returns when no mount is served any more: all of them are gone, or the
// view was closed.
func (v *View) Wait() {
	for _, t := range v.trees {
		if d := t.device.Load(); d != nil {
			d.loops.Wait()
		}
	}
}

// Close ends serving. Requests under way end with EINTR, later ones with
// ENOTCONN. Nodes and handles go back to the origin.
func (v *View) Close() error {
	v.closing.Do(v.shut)
	return nil
}

func (v *View) shut() {
	for _, t := range v.trees {
		t.closed.Store(true)
	}
	for _, t := range v.trees {
		t.interruptAll()
	}
	limit := time.Now().Add(goodbye)
	for _, t := range v.trees {
		t.flights.drain(time.Until(limit))
		if d := t.device.Load(); d != nil {
			d.close()
		}
	}
	v.recall.stop()
	for _, t := range v.trees {
		t.handles.clear(t)
		t.unshareAll()
		t.nodes.clear()
	}
	v.adopt.clear()
	close(v.stop)
	v.givers.Wait()
}

// giveBack returns forgotten nodes to the origin until the view is closed.
func (t *tree) giveBack() {
	for {
		select {
		case <-t.nodes.ready:
			if list := t.nodes.taken(); len(list) > 0 {
				t.origin.Forget(list)
			}
		case <-t.view.stop:
			if list := t.nodes.taken(); len(list) > 0 {
				t.origin.Forget(list)
			}
			return
		}
	}
}
