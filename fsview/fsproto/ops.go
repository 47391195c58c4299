package fsproto

import (
	"sync/atomic"
	"syscall"
)

// errTooLong is a message that does not fit into MaxMessage.
const errTooLong = syscall.EMSGSIZE

// Operation numbers are part of the protocol: new ones go to the end.
const (
	opLookup uint64 = 1 + iota
	opForget        // no reply
	opRef
	opGetattr
	opSetattr
	opAccess
	opReadlink
	opCreate
	opTmpfile
	opMknod
	opMkdir
	opSymlink
	opLink
	opUnlink
	opRmdir
	opRename
	opOpen
	opRead
	opWrite
	opFlush
	opRelease // no reply
	opFsync
	opFallocate
	opLseek
	opCopyRange
	opOpendir
	opReaddir
	opReleasedir // no reply
	opFsyncdir
	opStatfs
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opGetlk
	opSetlk
	opGetflags
	opSetflags
	opCancel // no reply; id of the request that need not be answered in full
	opRecall // push, from the origin
	opEnd
)

var opNames = [opEnd]string{
	opLookup: "lookup", opForget: "forget", opRef: "ref", opGetattr: "getattr", opSetattr: "setattr",
	opAccess: "access", opReadlink: "readlink", opCreate: "create", opTmpfile: "tmpfile",
	opMknod: "mknod", opMkdir: "mkdir", opSymlink: "symlink", opLink: "link", opUnlink: "unlink",
	opRmdir: "rmdir", opRename: "rename", opOpen: "open", opRead: "read", opWrite: "write",
	opFlush: "flush", opRelease: "release", opFsync: "fsync", opFallocate: "fallocate",
	opLseek: "lseek", opCopyRange: "copy_range", opOpendir: "opendir", opReaddir: "readdir",
	opReleasedir: "releasedir", opFsyncdir: "fsyncdir", opStatfs: "statfs", opGetxattr: "getxattr",
	opListxattr: "listxattr", opSetxattr: "setxattr", opRemovexattr: "removexattr", opGetlk: "getlk",
	opSetlk: "setlk", opGetflags: "getflags", opSetflags: "setflags", opCancel: "cancel", opRecall: "recall",
}

// Counts counts messages by operation. The zero value is ready.
type Counts struct{ n [opEnd]atomic.Uint64 }

func (c *Counts) add(op uint64) {
	if c != nil && op < opEnd {
		c.n[op].Add(1)
	}
}

// Map gives the counts that are not zero, by the operation's name.
func (c *Counts) Map() map[string]uint64 {
	m := make(map[string]uint64)
	for op := range c.n {
		if n := c.n[op].Load(); n != 0 {
			m[opNames[op]] = n
		}
	}
	return m
}

// args is the body of all requests that have no struct of their own; fields
// that an operation does not use are 0.
type args struct {
	_      struct{} `cbor:",toarray"`
	Node   Node
	FH     FH
	Name   string
	Parent Node   // link: the directory
	Off    int64  // read, fallocate, lseek; readdir: the cookie's bits
	N      int64  // read, readdir: bytes at most; fallocate: length
	Flags  uint32 // open flags, access mask, fallocate mode, whence, inode flags; 1 for data only and for flock
	Owner  uint64
	Caller Caller
}
