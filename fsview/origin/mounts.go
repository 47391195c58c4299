package origin

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// kernelBound are file systems that show the kernel they run on; a job sees
// the server's.
var kernelBound = map[string]bool{
	"proc": true, "sysfs": true, "devtmpfs": true, "devpts": true, "cgroup": true, "cgroup2": true,
	"mqueue": true, "debugfs": true, "tracefs": true, "securityfs": true, "pstore": true, "bpf": true,
	"configfs": true, "fusectl": true, "hugetlbfs": true, "binfmt_misc": true, "autofs": true,
	"efivarfs": true, "nsfs": true, "rpc_pipefs": true, "selinuxfs": true, "smackfs": true, "resctrl": true,
}

// boundMagic are those of them that statfs(2) can tell.
var boundMagic = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEBUGFS_MAGIC: true,
	unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.PSTOREFS_MAGIC: true,
	unix.BPF_FS_MAGIC: true, unix.NSFS_MAGIC: true, unix.HUGETLBFS_MAGIC: true, unix.BINFMTFS_MAGIC: true,
	unix.EFIVARFS_MAGIC: true, unix.SELINUX_MAGIC: true, unix.SMACK_MAGIC: true,
}

// isBound says whether an object lies on a file system bound to the kernel.
// It asks only where parent, which may be nil, lies on another mount.
func isBound(fd int, st *unix.Statx_t, parent *node) bool {
	if parent != nil && parent.key.mnt == st.Mnt_id {
		return parent.bound
	}
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && boundMagic[int64(fs.Type)]
}

// kernelPlaces are directories below which everything is kernel-bound.
var kernelPlaces = []string{"/proc", "/sys", "/dev"}

// mountLine is one line of mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	id           uint64
	path         string
	kind, source string
	readOnly     bool
}

// Mounts gives this machine's mount table as views show it, parents first,
// "/" first. Left out: what is bound to the kernel, what lies hidden below
// another mount, what cannot be reached. Each root node is handed out once.
func (o *Origin) Mounts() ([]rer.Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	var mounts []rer.Mount
	for line := range strings.Lines(string(text)) {
		m, err := parseMount(line)
		if err != nil {
			return nil, fmt.Errorf("mount table: %w", err)
		}
		if mount, ok := o.shown(m); ok {
			mounts = append(mounts, mount)
		}
	}
	slices.SortFunc(mounts, func(a, b rer.Mount) int { return cmp.Compare(a.Path, b.Path) })
	if len(mounts) == 0 || mounts[0].Path != "/" {
		return o.withRoot(mounts) // chroot(2): the root is no mount point
	}
	return mounts, nil
}

func parseMount(line string) (m mountLine, err error) {
	left, right, ok := strings.Cut(line, " - ")
	before, after := strings.Fields(left), strings.Fields(right)
	if !ok || len(before) < 6 || len(after) < 2 {
		return m, fmt.Errorf("odd line %q", line)
	}
	if m.id, err = strconv.ParseUint(before[0], 10, 64); err != nil {
		return m, fmt.Errorf("odd line %q: %w", line, err)
	}
	m.path, m.kind, m.source = unescape(before[4]), unescape(after[0]), unescape(after[1])
	m.readOnly = hasOption(before[5], "ro") || len(after) > 2 && hasOption(after[2], "ro")
	return m, nil
}

func hasOption(list, option string) bool {
	return slices.Contains(strings.Split(list, ","), option)
}

// unescape undoes the octal escapes of mount tables (\040 for a space).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// shown tells whether a mount is one that views show, and hands out its root.
func (o *Origin) shown(m mountLine) (rer.Mount, bool) {
	if kernelBound[m.kind] || slices.ContainsFunc(kernelPlaces, func(p string) bool {
		return m.path == p || strings.HasPrefix(m.path, p+"/")
	}) {
		return rer.Mount{}, false
	}
	fd, err := unix.Open(m.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return rer.Mount{}, false
	}
	var st unix.Statx_t
	// The path leads to another mount where this one is covered.
	if stat(fd, "", &st) != nil || st.Mnt_id != m.id {
		unix.Close(fd)
		return rer.Mount{}, false
	}
	return o.mount(m, fd)
}

func (o *Origin) mount(m mountLine, fd int) (rer.Mount, bool) {
	root, attr, err := o.internFD(fd)
	if err != nil {
		return rer.Mount{}, false
	}
	return rer.Mount{Path: m.path, Root: rer.Handle(root), Dev: attr.Dev, Type: m.kind,
		Source: m.source, ReadOnly: m.readOnly}, true
}

func (o *Origin) withRoot(mounts []rer.Mount) ([]rer.Mount, error) {
	root, attr, err := o.Root("/")
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	return slices.Insert(mounts, 0, rer.Mount{Path: "/", Root: rer.Handle(root), Dev: attr.Dev, Type: "root"}), nil
}
