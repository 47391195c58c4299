package mounts

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Builder assembles one view in the calling process's own new mount
// namespace, a copy of the one that [Prepare] was called in. It pivots the
// whole process, so it is the only thing that the process does.
type Builder struct {
	Spec   Spec
	Device string // path of the FUSE device
	// Serve hands one mount's device over and returns when it is served: the
	// next mount's target is looked up through it.
	Serve func(index int, dev *os.File) error

	root    int // O_PATH of the view's root
	Skipped []string
}

// Build assembles the view and returns its mount namespace. Binds that the
// server lacks, or whose name the view lacks, are listed in Skipped.
func (b *Builder) Build() (*os.File, error) {
	if len(b.Spec.FUSE) == 0 || b.Spec.FUSE[0].Path != "/" {
		return nil, fmt.Errorf("view without a root: %w", unix.EINVAL)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("make mounts slaves: %w", err)
	}
	for i := range b.Spec.FUSE {
		if err := b.fuse(i); err != nil {
			return nil, fmt.Errorf("mount %s: %w", b.Spec.FUSE[i].Path, err)
		}
	}
	if err := b.binds(); err != nil {
		return nil, err
	}
	if err := b.files(); err != nil {
		return nil, err
	}
	if err := pivot(); err != nil {
		return nil, err
	}
	return os.Open("/proc/self/ns/mnt")
}

// target opens a name of the view. Without RESOLVE_IN_ROOT an absolute
// symbolic link would lead into the server's own root.
func (b *Builder) target(path string) (int, error) {
	return unix.Openat2(b.root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func (b *Builder) fuse(i int) error {
	f := b.Spec.FUSE[i]
	dev, err := unix.Open(b.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", b.Device, err)
	}
	file := os.NewFile(uintptr(dev), b.Device)
	defer file.Close()
	at, mode := stageRoot, uint32(unix.S_IFDIR)
	if i > 0 {
		fd, err := b.target(f.Path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		at, mode = "/proc/self/fd/"+strconv.Itoa(fd), st.Mode&unix.S_IFMT
	}
	if err := unix.Mount(f.Source, at, f.fsType(), f.flags(), b.options(dev, mode)); err != nil {
		return err
	}
	if err := b.Serve(i, file); err != nil {
		return err
	}
	if i > 0 {
		return nil
	}
	b.root, err = unix.Open(stageRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

func (f FUSE) fsType() string {
	if f.Type == "" {
		return "fuse"
	}
	return "fuse." + f.Type
}

func (f FUSE) flags() uintptr {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if f.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	return flags
}

func (b *Builder) options(dev int, mode uint32) string {
	o := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other,max_read=1048576", dev, mode, os.Getuid(), os.Getgid())
	if b.Spec.DefaultPermissions {
		o += ",default_permissions"
	}
	return o
}

// binds lays the server's directories, then what belongs to its kernel, over
// the FUSE mounts.
func (b *Builder) binds() error {
	for _, p := range b.Spec.Binds {
		if err := b.bind(p, p, false); isMissing(err) {
			b.Skipped = append(b.Skipped, p)
		} else if err != nil {
			return fmt.Errorf("bind %s: %w", p, err)
		}
	}
	for _, p := range [][2]string{{"/proc", "/proc"}, {stageDev, "/dev"}} {
		if err := b.bind(p[0], p[1], false); err != nil {
			return fmt.Errorf("bind %s: %w", p[1], err)
		}
	}
	if err := b.bind(stageSys, "/sys", true); err != nil {
		b.Skipped = append(b.Skipped, "/sys")
	}
	if !b.Spec.KernelReadOnly {
		return nil
	}
	for _, p := range kernelSettings {
		if err := b.bind(p, p, true); err != nil && !isMissing(err) {
			return fmt.Errorf("read-only %s: %w", p, err)
		}
	}
	return nil
}

// kernelSettings are what of /proc changes the whole machine and is root's to
// write, by its id alone and without a capability.
var kernelSettings = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"}

func (b *Builder) bind(from, to string, ro bool) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if ro {
		if err := readOnly(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE); err != nil {
			return err
		}
	}
	return b.move(tree, to)
}

func (b *Builder) move(tree int, to string) error {
	at, err := b.target(to)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ENOTDIR // nothing can lie on a symbolic link
	}
	return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// files binds the generated files, which lie on a tmpfs of the view's own.
func (b *Builder) files() error {
	if len(b.Spec.Files) == 0 {
		return nil
	}
	if err := unix.Mount("tmpfs", stageFile, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount files: %w", err)
	}
	for i, f := range b.Spec.Files {
		if err := b.file(stageFile+"/"+strconv.Itoa(i), f); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return nil
}

func (b *Builder) file(name string, f File) error {
	if err := os.WriteFile(name, f.Data, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(name, 0o644); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := readOnly(tree, "", unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	return b.move(tree, strings.TrimSuffix(f.Path, "/"))
}

// pivot makes the assembled root the process's, and forgets the server's.
func pivot() error {
	if err := unix.Chdir(stageRoot); err != nil {
		return fmt.Errorf("enter view: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop the server's root: %w", err)
	}
	return unix.Chdir("/")
}
