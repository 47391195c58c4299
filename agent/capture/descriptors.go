package capture

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// kcmpFile is KCMP_FILE of kcmp(2); dupfdQuery is F_DUPFD_QUERY of fcntl(2).
const (
	kcmpFile   = 0
	dupfdQuery = 1024 + 3
)

// open is one inherited descriptor.
type open struct {
	fd    int
	flags uint32 // F_GETFL
	st    unix.Stat_t
}

// listDescriptors gives the descriptors that are not close-on-exec, lowest
// first.
func listDescriptors() ([]open, error) {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", err)
	}
	var found []open
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		if wasClosed(fd) {
			continue
		}
		o, err := inspect(fd)
		if errors.Is(err, unix.EBADF) || err == nil && o == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, *o)
	}
	slices.SortFunc(found, func(a, b open) int { return cmp.Compare(a.fd, b.fd) })
	return found, nil
}

// inspect gives nil for a close-on-exec descriptor.
func inspect(fd int) (*open, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || own&unix.FD_CLOEXEC != 0 {
		return nil, err
	}
	o := &open{fd: fd}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: F_GETFL: %w", fd, err)
	}
	o.flags = uint32(flags)
	if err := unix.Fstat(fd, &o.st); err != nil {
		return nil, fmt.Errorf("descriptor %d: fstat: %w", fd, err)
	}
	return o, nil
}

// descriptors groups found into open file descriptions and says what each is.
func (c *Captured) descriptors(found []open) error {
	first := group(found)
	index := make(map[int]uint32, len(found)) // by the first descriptor of a description
	for i, o := range found {
		at, ok := index[first[i]]
		if !ok {
			d, err := c.describe(o)
			if err != nil {
				return err
			}
			at = uint32(len(c.Request.Descriptions))
			index[first[i]] = at
			c.Request.Descriptions = append(c.Request.Descriptions, *d)
			c.Files = append(c.Files, file(o.fd))
		}
		c.Request.FDs = append(c.Request.FDs, rer.FD{Num: int32(o.fd), Desc: at})
	}
	return nil
}

// file gives an os.File for a descriptor: of a standard one there is one
// already, and a second would close it when collected.
func file(fd int) *os.File {
	if fd <= 2 {
		return []*os.File{os.Stdin, os.Stdout, os.Stderr}[fd]
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", fd))
}

// group gives for each descriptor the lowest one with the same open file
// description. Only those that look alike are compared, by sorting: kcmp
// orders descriptions.
func group(found []open) []int {
	type look struct {
		dev, ino uint64
		flags    uint32
	}
	alike := make(map[look][]int)
	for i, o := range found {
		key := look{o.st.Dev, o.st.Ino, o.flags}
		alike[key] = append(alike[key], i)
	}
	first := make([]int, len(found))
	for _, members := range alike {
		slices.SortFunc(members, func(a, b int) int {
			return cmp.Or(compare(found[a].fd, found[b].fd), cmp.Compare(a, b))
		})
		for k, i := range members {
			first[i] = found[i].fd
			if k > 0 && compare(found[members[k-1]].fd, found[i].fd) == 0 {
				first[i] = first[members[k-1]]
			}
		}
	}
	return first
}

// compare orders open file descriptions; 0: the same. Where kcmp is forbidden,
// different ones are ordered by number, and a kernel that cannot tell them
// apart (before 6.10) has them all different.
func compare(a, b int) int {
	if a == b {
		return 0
	}
	pid := uintptr(os.Getpid())
	order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno == 0 {
		switch order {
		case 0:
			return 0
		case 1:
			return -1
		}
		return 1
	}
	if same, err := unix.FcntlInt(uintptr(a), dupfdQuery, b); err == nil && same == 1 {
		return 0
	}
	return cmp.Compare(a, b)
}

// describe says what a description is and how it crosses.
func (c *Captured) describe(o open) (*rer.Description, error) {
	d := &rer.Description{Flags: o.flags}
	link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", o.fd))
	if sameFile(link, o.fd) {
		d.Path = []byte(link)
	}
	var bad string
	switch mode := o.st.Mode & unix.S_IFMT; {
	case o.flags&unix.O_PATH != 0:
		d.Kind = rer.KindPath
	case mode == unix.S_IFREG:
		bad = describeRegular(d, o, link)
	case mode == unix.S_IFDIR:
		d.Kind = rer.KindDir
	case mode == unix.S_IFIFO:
		describePipe(d, o)
	case mode == unix.S_IFSOCK:
		bad = describeSocket(d, o)
	case mode == unix.S_IFCHR:
		bad = c.describeDevice(d, o)
	case mode == unix.S_IFBLK:
		bad = "a block device"
	default:
		bad = anonymous(link)
	}
	if bad != "" {
		return nil, refuse(o.fd, bad)
	}
	return d, nil
}

func refuse(fd int, what string) error {
	return &rer.Refused{
		Reason: rer.ReasonDescriptor,
		Text:   fmt.Sprintf("descriptor %d is %s, which cannot be handed to another machine", fd, what),
		Hint:   fmt.Sprintf("close it for the command: rexec ... %d>&-", fd),
	}
}

// anonymous names what anon_inode:[eventpoll] and its like are.
func anonymous(link string) string {
	name := strings.Trim(strings.TrimPrefix(link, "anon_inode:"), "[]")
	if name == "" {
		name = "of an unknown kind"
	}
	return "a kernel object (" + name + ")"
}

// kernelFS are file systems whose regular files are the kernel's words, not
// data: not in any view, but their bytes can be relayed.
var kernelFS = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.PSTOREFS_MAGIC: true, unix.SELINUX_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.BINFMTFS_MAGIC: true,
}

func describeRegular(d *rer.Description, o open, link string) string {
	if strings.HasPrefix(link, "/memfd:") {
		return "a memory file"
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(o.fd, &fs); err != nil {
		return "on an unknown file system"
	}
	if int64(fs.Type) == unix.NSFS_MAGIC {
		return "a namespace"
	}
	if kernelFS[int64(fs.Type)] {
		d.Kind = rer.KindRelay
		return ""
	}
	d.Kind = rer.KindRegular
	if at, err := unix.Seek(o.fd, 0, unix.SEEK_CUR); err == nil {
		d.Offset = at
	}
	return ""
}

// describePipe: a FIFO open for both directions has no end to hand over, so
// its bytes are relayed.
func describePipe(d *rer.Description, o open) {
	d.Kind = rer.KindPipe
	if o.flags&unix.O_ACCMODE == unix.O_RDWR {
		d.Kind = rer.KindRelay
	}
	if n, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETPIPE_SZ, 0); err == nil {
		d.PipeLen = int32(n)
	}
}

func describeSocket(d *rer.Description, o open) string {
	typ, err := unix.GetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "a socket of an unknown type"
	}
	if typ != unix.SOCK_STREAM {
		return "a socket that is no stream"
	}
	if listens, _ := unix.GetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); listens != 0 {
		return "a listening socket"
	}
	if _, err := unix.Getpeername(o.fd); errors.Is(err, unix.ENOTCONN) && !hungUp(o.fd) {
		return "a socket that is not connected"
	}
	d.Kind, d.SockTyp = rer.KindSocket, int32(typ)
	return ""
}

// hungUp: a connected socket whose peer is gone has no peer's name any more,
// but can still be read.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	if err != nil || n == 0 {
		return false
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil || errors.Is(err, unix.ECONNRESET)
}

// devices are those that every view has.
var devices = map[uint64]string{
	unix.Mkdev(1, 3): "/dev/null", unix.Mkdev(1, 5): "/dev/zero", unix.Mkdev(1, 7): "/dev/full",
	unix.Mkdev(1, 8): "/dev/random", unix.Mkdev(1, 9): "/dev/urandom",
}

func (c *Captured) describeDevice(d *rer.Description, o open) string {
	if name, ok := devices[o.st.Rdev]; ok {
		d.Kind, d.Path = rer.KindDevice, []byte(name)
		return ""
	}
	if _, err := unix.IoctlGetTermios(o.fd, unix.TCGETS); err != nil {
		return fmt.Sprintf("device %d:%d", unix.Major(o.st.Rdev), unix.Minor(o.st.Rdev))
	}
	if o.st.Rdev == unix.Mkdev(5, 2) {
		return "a pseudoterminal's master"
	}
	d.Kind = rer.KindRelay
	if t := c.Request.Terminal; t != nil && (o.st.Rdev == devTTY || o.st.Rdev == t.Dev) {
		d.Kind = rer.KindTerminal
	}
	return ""
}
