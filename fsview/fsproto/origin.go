// Package fsproto is the file protocol between a view and what answers it.
//
// [Origin] is the protocol as Go: one method for each message, named for the
// system call that it stands for. Objects are named by [Node] numbers that the
// origin hands out, one for each file object (device, inode, generation),
// whatever its names; a node lives until it is forgotten as often as it was
// handed out. Open files are named by [FH] numbers. Names are single path
// components: never "", ".", "..", never with a slash or NUL, at most 255
// bytes; [CheckName] decides.
//
// Errors are syscall.Errno values, wrapped or not; [Errno] finds them and
// gives EIO where there is none. A context that ends makes a waiting call end
// with EINTR.
//
// Package fsproto also carries the protocol over a channel of messages:
// [NewClient] is an Origin whose calls cross, [Serve] answers them from
// another Origin. Encoding is CBOR; every length is bounded before memory is
// taken, and a malformed request is answered by EINVAL or EPROTO.
//
// # Leases
//
// A reply that says Lease is true until recalled: the origin calls the
// function given to SetRecall before anything else reaches the view. A recall
// that arrives while a request is under way also takes back what the reply to
// that request promises. Without a lease a reply is true only for the moment.
// Leased attributes may be late in their access time.
package fsproto

import "context"

// Node names a file object of one origin. 0 is none.
type Node uint64

// FH names an open file or directory of one origin. 0 is none.
type FH uint64

// MaxIO is the largest read or write, in bytes.
const MaxIO = 1 << 20

// Time is a point in time as stat(2) gives it.
type Time struct {
	_    struct{} `cbor:",toarray"`
	Sec  int64
	Nsec uint32
}

// Attr is what statx(2) tells of an object, in home's terms.
type Attr struct {
	_     struct{} `cbor:",toarray"`
	Dev   uint64   // st_dev, to tell file systems apart
	Ino   uint64
	Gen   uint32 // inode generation, 0 where unknown
	Mode  uint32 // type and permission bits
	Nlink uint32
	UID   uint32
	GID   uint32
	Rdev  uint64
	Size  uint64
	// Blocks counts 512-byte units.
	Blocks  uint64
	Blksize uint32
	Atime   Time
	Mtime   Time
	Ctime   Time
	Btime   Time
}

// Lease says which parts of a reply hold until recalled.
type Lease uint8

const (
	LeaseEntry Lease = 1 << iota // the name leads to this node, or to nothing
	LeaseAttr                    // the attributes
	LeaseData                    // the content, or a directory's listing
)

// Entry is what a name leads to. Node 0: to nothing (only from Lookup, and
// only where that is leased; else Lookup fails with ENOENT).
type Entry struct {
	_     struct{} `cbor:",toarray"`
	Node  Node
	Attr  Attr
	Lease Lease
}

// AttrReply is an object's attributes.
type AttrReply struct {
	_     struct{} `cbor:",toarray"`
	Attr  Attr
	Lease Lease
}

// Caller is the process on whose behalf something is made: ids of home's. A
// privileged origin makes new objects with these ids; others ignore them.
type Caller struct {
	_   struct{} `cbor:",toarray"`
	UID uint32
	GID uint32
	Pid int32 // for lock owners in messages only
}

// Recall takes back leases of a node, of a name in a directory, or both.
type Recall struct {
	_      struct{} `cbor:",toarray"`
	Node   Node     // whose attributes or data; 0: none
	What   Lease    // LeaseAttr, LeaseData or both, of Node
	Parent Node     // with Name: a directory entry; 0: none
	Name   string
}

// Bits of SetattrIn.Valid.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	SetCtime // ignored: no system call sets it
	KillSuid // a write by someone who may not keep set-id bits
)

// SetattrIn asks for a change of attributes. FH, where not 0, is an open file
// of the node: what it may do (ftruncate) the call may do.
type SetattrIn struct {
	_              struct{} `cbor:",toarray"`
	Node           Node
	FH             FH
	Valid          uint32
	Mode, UID, GID uint32
	Size           uint64
	Atime, Mtime   Time
	Caller         Caller
}

// MakeIn asks for a new object called Name in Parent.
type MakeIn struct {
	_      struct{} `cbor:",toarray"`
	Parent Node
	Name   string // empty for Tmpfile
	Mode   uint32 // type bits for Mknod; permission bits as the caller gave them
	// Umask is applied by the origin, unless Parent has a default ACL.
	Umask  uint32
	Rdev   uint64 // Mknod
	Target string // Symlink
	Flags  uint32 // Create and Tmpfile: open(2) flags
	Caller Caller
}

// OpenData is a flag of Open beside those of open(2): the reply may bring the
// content of a small file.
const OpenData uint32 = 1 << 31

// SmallFile is the largest content that comes with the reply to Open, in
// bytes.
const SmallFile = 64 << 10

// Opened is an open file or directory. LeaseData of a file opened for reading
// only says that until the node's attributes or data are recalled its content
// stays as it is, and that this FH does for every such open.
type Opened struct {
	_     struct{} `cbor:",toarray"`
	FH    FH
	Attr  Attr // after the open (O_TRUNC)
	Lease Lease
	Data  []byte // all of the content, or nothing; only with LeaseData
}

// Created is a new file and its open handle.
type Created struct {
	_     struct{} `cbor:",toarray"`
	Entry Entry
	FH    FH
}

// RenameIn asks for a rename; Flags as renameat2(2).
type RenameIn struct {
	_         struct{} `cbor:",toarray"`
	Parent    Node
	Name      string
	NewParent Node
	NewName   string
	Flags     uint32
	Caller    Caller
}

// WriteIn writes Data. Where Append is set Off is ignored and the data goes
// to the end of the file at home (O_APPEND). Where Stream is set the data goes
// to the position of home's own file description, as write(2) would, and
// moves it (only for FH of descriptors that a job inherited).
type WriteIn struct {
	_        struct{} `cbor:",toarray"`
	FH       FH
	Off      int64
	Data     []byte
	Append   bool
	Stream   bool
	KillSuid bool
	Caller   Caller
}

// Dirent is one entry of a listing. Off is the cookie that continues after
// it, never 0.
type Dirent struct {
	_    struct{} `cbor:",toarray"`
	Ino  uint64
	Off  uint64
	Type uint32 // S_IFMT bits of the mode
	Name string
}

// Statfs is what statfs(2) tells.
type Statfs struct {
	_                                   struct{} `cbor:",toarray"`
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Bsize, Namelen, Frsize              uint32
	Type                                int64
}

// Lock is one advisory lock or the wish for one. Flock says flock(2); else
// it is a record lock, POSIX or OFD: only the owner differs.
type Lock struct {
	_     struct{} `cbor:",toarray"`
	Node  Node
	FH    FH
	Owner uint64 // FUSE's lock owner
	Start uint64
	End   uint64 // inclusive; 1<<63-1 is the end of the file
	Type  uint32 // F_RDLCK, F_WRLCK, F_UNLCK
	Pid   int32
	Flock bool
	Wait  bool
}

// XattrIn names an extended attribute; Value and Flags are for Setxattr.
type XattrIn struct {
	_     struct{} `cbor:",toarray"`
	Node  Node
	Name  string
	Value []byte
	Flags uint32
}

// CopyIn is copy_file_range(2) between two open files of the origin.
type CopyIn struct {
	_             struct{} `cbor:",toarray"`
	In, Out       FH
	InOff, OutOff int64
	Len           uint64
	Flags         uint32
}

// Forgotten takes back N hand-outs of a node.
type Forgotten struct {
	_    struct{} `cbor:",toarray"`
	Node Node
	N    uint64
}

// Origin answers a view's file requests. Methods may be called at once from
// many goroutines. Data given and returned is the callee's and the caller's
// own: nothing is shared after return.
type Origin interface {
	Lookup(ctx context.Context, parent Node, name string) (Entry, error)
	Forget(list []Forgotten)
	// Ref hands a node out once more, by its number alone: for descriptors
	// and directories that a job inherits. ESTALE for an unknown number.
	Ref(ctx context.Context, n Node) (Entry, error)
	Getattr(ctx context.Context, n Node, fh FH) (AttrReply, error)
	Setattr(ctx context.Context, in *SetattrIn) (AttrReply, error)
	Access(ctx context.Context, n Node, mask uint32) error
	Readlink(ctx context.Context, n Node) (string, error)

	Create(ctx context.Context, in *MakeIn) (Created, error)  // Flags hold O_EXCL, O_TRUNC as given
	Tmpfile(ctx context.Context, in *MakeIn) (Created, error) // O_TMPFILE
	Mknod(ctx context.Context, in *MakeIn) (Entry, error)
	Mkdir(ctx context.Context, in *MakeIn) (Entry, error)
	Symlink(ctx context.Context, in *MakeIn) (Entry, error)
	Link(ctx context.Context, n, parent Node, name string) (Entry, error)
	Unlink(ctx context.Context, parent Node, name string, c Caller) error
	Rmdir(ctx context.Context, parent Node, name string, c Caller) error
	Rename(ctx context.Context, in *RenameIn) error

	Open(ctx context.Context, n Node, flags uint32) (Opened, error) // open(2) flags without O_CREAT, O_EXCL
	Read(ctx context.Context, fh FH, off int64, size int) ([]byte, error)
	Write(ctx context.Context, in *WriteIn) (int, error)
	Flush(ctx context.Context, fh FH, owner uint64) error // close(2) of one descriptor: drops owner's POSIX locks
	Release(fh FH, owner uint64, flock bool)              // last close; flock: drop owner's flock
	Fsync(ctx context.Context, fh FH, dataOnly bool) error
	Fallocate(ctx context.Context, fh FH, mode uint32, off, n int64) error
	Lseek(ctx context.Context, fh FH, off int64, whence uint32) (int64, error) // SEEK_DATA, SEEK_HOLE
	CopyRange(ctx context.Context, in *CopyIn) (int, error)

	Opendir(ctx context.Context, n Node) (Opened, error)
	// Readdir lists from cookie off (0: the start), "." and ".." included,
	// at most about max bytes of names and headers; empty at the end.
	Readdir(ctx context.Context, fh FH, off uint64, max int) ([]Dirent, error)
	Releasedir(fh FH)
	Fsyncdir(ctx context.Context, fh FH, dataOnly bool) error

	Statfs(ctx context.Context, n Node) (Statfs, error)
	Getxattr(ctx context.Context, in *XattrIn) ([]byte, error)
	Listxattr(ctx context.Context, n Node) ([]byte, error) // NUL-terminated names
	Setxattr(ctx context.Context, in *XattrIn) error
	Removexattr(ctx context.Context, in *XattrIn) error

	Getlk(ctx context.Context, l *Lock) (Lock, error)
	Setlk(ctx context.Context, l *Lock) error // EAGAIN without Wait; EINTR when ctx ends

	// Getflags and Setflags are FS_IOC_GETFLAGS and FS_IOC_SETFLAGS.
	Getflags(ctx context.Context, n Node) (uint32, error)
	Setflags(ctx context.Context, n Node, flags uint32) error

	// SetRecall sets who is told of recalls, before the first lease.
	SetRecall(f func([]Recall))
}
