package fsview

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"rexec/fsview/fsproto"
)

// pin is a place that is the same for as long as the view lives: something is
// mounted on it or below, or nothing may ever be there. The kernel takes a
// mount away without a word when a lookup of its name, or of an ancestor's,
// ends in an error or in another node, so these lookups never reach the
// origin. Pins of one mount form a tree; they never change after New.
type pin struct {
	name   string
	kids   map[string]*pin
	node   *node
	absent bool // no such name
	point  bool // something is mounted here
	fixed  bool // a point, or one is below; else only absent names are
	dir    bool
	shown  bool // home lacks it: added to the listing
}

// child is what is known of a name in a directory.
func (n *node) child(name string) *pin { return n.pin.Load().child(name) }

// child is the pinned place called name, nil if there is none.
func (p *pin) child(name string) *pin {
	if p == nil {
		return nil
	}
	return p.kids[name]
}

func (p *pin) place(path string) *pin {
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		k := p.kids[name]
		if k == nil {
			k = &pin{name: name, dir: true}
			if p.kids == nil {
				p.kids = make(map[string]*pin)
			}
			p.kids[name] = k
		}
		p = k
	}
	return p
}

// within says what is left of path below base: "" and false where base is not
// a true ancestor.
func within(base, path string) (string, bool) {
	if base == "/" {
		return path[1:], path != "/"
	}
	rest, ok := strings.CutPrefix(path, base+"/")
	return rest, ok
}

// holder is the mount of cfg that has path below it: the deepest.
func (c *Config) holder(path string) (mount int, rest string, ok bool) {
	for i, m := range c.Mounts {
		r, in := within(m.Path, path)
		if in && (!ok || len(m.Path) > len(c.Mounts[mount].Path)) {
			mount, rest, ok = i, r, true
		}
	}
	return mount, rest, ok
}

// plant makes the pins of all trees, without their nodes.
func (v *View) plant() {
	mark := func(path string, set func(*pin)) {
		if i, rest, ok := v.cfg.holder(path); ok {
			set(v.trees[i].pins.place(rest))
		}
	}
	for _, m := range v.cfg.Mounts {
		mark(m.Path, func(p *pin) { p.point, p.dir = true, true })
	}
	for _, pt := range v.cfg.Points {
		mark(pt.Path, func(p *pin) { p.point, p.dir = true, pt.Dir })
	}
	for _, path := range v.cfg.Absent {
		mark(path, func(p *pin) { p.absent = !p.point && len(p.kids) == 0 })
	}
	for _, t := range v.trees {
		t.pins.fix()
	}
}

// fix finds the pins that must stay.
func (p *pin) fix() bool {
	p.fixed = p.point
	for _, k := range p.kids {
		if k.fix() {
			p.fixed, p.dir = true, true
		}
	}
	return p.fixed
}

// bind gives the pins below p their nodes: home's where it has a fit object,
// else the view's own.
func (t *tree) bind(ctx context.Context, p *pin) error {
	for _, k := range p.kids {
		if !k.fixed {
			continue
		}
		if err := t.bindOne(ctx, p, k); err != nil {
			return fmt.Errorf("pin %s in %s: %w", k.name, t.mount.Path, err)
		}
		if err := t.bind(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) bindOne(ctx context.Context, parent, k *pin) error {
	if parent.node.org != 0 {
		e, err := t.origin.Lookup(ctx, parent.node.org, k.name)
		if err != nil && !lacking(fsproto.Errno(err)) {
			return err
		}
		if err == nil && e.Node != 0 {
			if isDir(e.Attr.Mode) == k.dir && (k.dir || isRegular(e.Attr.Mode)) {
				k.node = t.nodes.addPinned(0, e.Node, k)
				t.believe(preparing, k.node, &e.Attr, e.Lease, subject{node: e.Node})
				return nil
			}
			t.origin.Forget([]fsproto.Forgotten{{Node: e.Node, N: 1}})
		} else {
			k.shown = true
		}
	} else {
		k.shown = true
	}
	k.node = t.nodes.addPinned(0, 0, k)
	k.node.learn(t.view.synthetic(k.node.id, k.dir))
	return nil
}

// lacking says that home has nothing that could be there.
func lacking(errno syscall.Errno) bool {
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.EACCES, syscall.EPERM, syscall.ELOOP, syscall.ESTALE, syscall.ENAMETOOLONG:
		return true
	}
	return false
}

// extras are the names of p that home's listing lacks, in a fixed order.
func (p *pin) extras() []*pin {
	if p == nil {
		return nil
	}
	var list []*pin
	for _, k := range p.kids {
		if k.shown {
			list = append(list, k)
		}
	}
	sortPins(list)
	return list
}
