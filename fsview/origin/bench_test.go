package origin

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// What requests cost through the codec and a channel in memory.

func benchWorld(b *testing.B, leases bool) (*fsproto.Client, *Origin, fsproto.Node) {
	b.Helper()
	o, err := New(Options{Leases: leases})
	if err != nil {
		b.Fatal(err)
	}
	x, y := newPipe()
	served := make(chan error, 1)
	go func() { served <- fsproto.Serve(y, o, fsproto.ServeOptions{BeforeReply: o.Settle}) }()
	b.Cleanup(func() {
		x.close()
		if err := <-served; err != nil {
			b.Error(err)
		}
		o.Close()
	})
	dir := b.TempDir()
	if err := os.WriteFile(dir+"/f", make([]byte, fsproto.MaxIO), 0o600); err != nil {
		b.Fatal(err)
	}
	root, _, err := o.Root(dir)
	if err != nil {
		b.Fatal(err)
	}
	return fsproto.NewClient(x), o, root
}

func BenchmarkLookup(b *testing.B) {
	for name, leases := range map[string]bool{"leased": true, "plain": false} {
		b.Run(name, func(b *testing.B) {
			c, _, root := benchWorld(b, leases)
			for b.Loop() {
				if _, err := c.Lookup(ctx, root, "f"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLookupUncoded(b *testing.B) {
	_, o, root := benchWorld(b, false)
	for b.Loop() {
		if _, err := o.Lookup(ctx, root, "f"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead1M(b *testing.B) {
	c, _, root := benchWorld(b, false)
	e, err := c.Lookup(ctx, root, "f")
	if err != nil {
		b.Fatal(err)
	}
	op, err := c.Open(ctx, e.Node, unix.O_RDONLY)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(fsproto.MaxIO)
	for b.Loop() {
		if _, err := c.Read(ctx, op.FH, 0, fsproto.MaxIO); err != nil {
			b.Fatal(err)
		}
	}
}
