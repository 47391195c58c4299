package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The stage is a tmpfs in init's mount namespace, laid over /sys because that
// directory exists everywhere and is bound into views from the stage itself.
const (
	stage     = "/sys"
	stageSys  = stage + "/sys"  // the server's /sys, where it could be had
	stageDev  = stage + "/dev"  // the /dev of all views of the session
	stageRoot = stage + "/root" // a view's root while it is being assembled
	stageFile = stage + "/file" // a view's generated files
)

// Ptmx is the multiplexer of the session's devpts in init's namespace, and
// Pts the directory of its slaves. One devpts for all views makes terminal
// names agree in them.
const (
	Ptmx = stageDev + "/pts/ptmx"
	Pts  = stageDev + "/pts/"
)

// devices are what every view's /dev has of the server's.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// Prepare makes the session's mounts in the calling process's own new mount
// namespace: a fresh /proc of its PID namespace and the stage from which
// views are built. Init calls it once.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	sys, sysErr := unix.OpenTree(unix.AT_FDCWD, "/sys", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.OPEN_TREE_CLOEXEC)
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount stage: %w", err)
	}
	for _, d := range []string{stageSys, stageDev, stageRoot, stageFile} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if sysErr == nil {
		defer unix.Close(sys)
		// Without it views lack /sys, as containers do; not worth a failure.
		_ = unix.MoveMount(sys, "", unix.AT_FDCWD, stageSys, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	return prepareDev()
}

// prepareDev fills the stage's /dev and makes it read-only: natively it is
// root's, and here it would be the user's.
func prepareDev() error {
	if err := unix.Mount("tmpfs", stageDev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, name := range devices {
		if err := bindDevice(name); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	if err := prepareDevMounts(); err != nil {
		return err
	}
	links := map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	}
	for name, to := range links {
		if err := os.Symlink(to, stageDev+"/"+name); err != nil {
			return err
		}
	}
	return readOnly(unix.AT_FDCWD, stageDev, 0)
}

func prepareDevMounts() error {
	for _, d := range []string{"/pts", "/shm"} {
		if err := os.Mkdir(stageDev+d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", stageDev+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return fmt.Errorf("mount devpts: %w", err)
	}
	if err := unix.Mount("tmpfs", stageDev+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	return nil
}

func bindDevice(name string) error {
	to := stageDev + "/" + name
	if err := os.WriteFile(to, nil, 0o666); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// readOnly makes a mount read-only; flags may be AT_RECURSIVE, AT_EMPTY_PATH.
func readOnly(dir int, path string, flags uint) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(dir, path, flags, &attr); err != nil {
		return fmt.Errorf("read-only %s: %w", path, err)
	}
	return nil
}

func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}
