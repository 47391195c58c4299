package origin

import (
	"testing"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// TestKernelBound walks from the root to what is this machine's own business.
func TestKernelBound(t *testing.T) {
	w := start(t, Options{})
	root, _, err := w.o.Root("/")
	must(t, err)
	for _, name := range []string{"proc", "sys"} {
		e, err := w.Lookup(ctx, root, name)
		must(t, err)
		if e.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Fatalf("/%s is no directory", name)
		}
		for _, below := range []string{"1", "self", "version", "kernel"} {
			_, err := w.Lookup(ctx, e.Node, below)
			wantErr(t, err, unix.EACCES)
		}
		_, err = w.Opendir(ctx, e.Node)
		wantErr(t, err, unix.EACCES)
		_, err = w.Mkdir(ctx, &fsproto.MakeIn{Parent: e.Node, Name: "new", Mode: 0o755, Caller: self()})
		wantErr(t, err, unix.EACCES)
		w.Forget([]fsproto.Forgotten{{Node: e.Node, N: 1}})
	}
}
