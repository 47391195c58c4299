package fsview

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// fake is an origin in memory: one directory of files, with leases, and with
// a gate at which lookups of names that begin with "wait" stay until their
// context ends. Everything that it does not need panics.
type fake struct {
	fsproto.Origin
	mu      sync.Mutex
	lease   fsproto.Lease
	files   map[string]*fakeFile
	byNode  map[fsproto.Node]*fakeFile
	handed  map[fsproto.Node]int64
	counts  map[string]int
	streams []string // writes: "stream", "append", "at"
	entered chan string
}

type fakeFile struct {
	node  fsproto.Node
	data  []byte
	mtime int64
}

const fakeRoot = 1

func newFake() *fake {
	return &fake{
		files: make(map[string]*fakeFile), byNode: make(map[fsproto.Node]*fakeFile),
		handed: make(map[fsproto.Node]int64), counts: make(map[string]int), entered: make(chan string, 100),
	}
}

func (f *fake) put(name, data string) *fakeFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.files[name]
	if x == nil {
		x = &fakeFile{node: fsproto.Node(len(f.byNode) + 2)}
		f.files[name], f.byNode[x.node] = x, x
	}
	x.data, x.mtime = []byte(data), x.mtime+1
	return x
}

func (f *fake) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[what]
}

func (f *fake) attr(n fsproto.Node) fsproto.Attr {
	if n == fakeRoot {
		return fsproto.Attr{Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	}
	x := f.byNode[n]
	tm := fsproto.Time{Sec: x.mtime}
	return fsproto.Attr{Ino: uint64(n) + 100, Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: uint64(len(x.data)), Mtime: tm, Ctime: tm}
}

func (f *fake) Lookup(ctx context.Context, parent fsproto.Node, name string) (fsproto.Entry, error) {
	if len(name) >= 4 && name[:4] == "wait" {
		f.entered <- name
		<-ctx.Done()
		return fsproto.Entry{}, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["lookup"]++
	x := f.files[name]
	if x == nil {
		if f.lease&fsproto.LeaseEntry != 0 {
			return fsproto.Entry{Lease: f.lease}, nil
		}
		return fsproto.Entry{}, syscall.ENOENT
	}
	f.handed[x.node]++
	return fsproto.Entry{Node: x.node, Attr: f.attr(x.node), Lease: f.lease}, nil
}

func (f *fake) Ref(ctx context.Context, n fsproto.Node) (fsproto.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byNode[n] == nil {
		return fsproto.Entry{}, syscall.ESTALE
	}
	f.handed[n]++
	return fsproto.Entry{Node: n, Attr: f.attr(n)}, nil
}

func (f *fake) Forget(list []fsproto.Forgotten) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range list {
		f.handed[x.Node] -= int64(x.N)
	}
}

func (f *fake) Getattr(ctx context.Context, n fsproto.Node, fh fsproto.FH) (fsproto.AttrReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["getattr"]++
	return fsproto.AttrReply{Attr: f.attr(n), Lease: f.lease}, nil
}

func (f *fake) Getxattr(ctx context.Context, in *fsproto.XattrIn) ([]byte, error) {
	return nil, syscall.ENODATA
}

func (f *fake) Access(ctx context.Context, n fsproto.Node, mask uint32) error { return nil }

func (f *fake) Opendir(ctx context.Context, n fsproto.Node) (fsproto.Opened, error) {
	return fsproto.Opened{FH: 1}, nil
}
func (f *fake) Releasedir(fh fsproto.FH) {}

func (f *fake) Open(ctx context.Context, n fsproto.Node, flags uint32) (fsproto.Opened, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["open"]++
	return fsproto.Opened{FH: fsproto.FH(n), Attr: f.attr(n), Lease: f.lease}, nil
}

func (f *fake) Read(ctx context.Context, fh fsproto.FH, off int64, size int) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["read"]++
	data := f.byNode[fsproto.Node(fh)].data
	off = min(off, int64(len(data)))
	data = data[off:]
	return append([]byte(nil), data[:min(size, len(data))]...), nil
}

func (f *fake) Write(ctx context.Context, in *fsproto.WriteIn) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how := "at"
	switch {
	case in.Append:
		how = "append"
	case in.Stream:
		how = "stream"
	}
	f.streams = append(f.streams, how)
	x := f.byNode[fsproto.Node(in.FH)]
	off := int(in.Off)
	if in.Append {
		off = len(x.data)
	}
	for len(x.data) < off+len(in.Data) {
		x.data = append(x.data, 0)
	}
	copy(x.data[off:], in.Data)
	x.mtime++
	return len(in.Data), nil
}

func (f *fake) Flush(ctx context.Context, fh fsproto.FH, owner uint64) error { return nil }
func (f *fake) Release(fh fsproto.FH, owner uint64, flock bool)              {}
