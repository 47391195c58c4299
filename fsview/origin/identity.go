package origin

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// identity is who this process is and whether it may make files as others.
type identity struct {
	uid, gid   uint32
	privileged bool
}

func ownIdentity() identity {
	id := identity{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	id.privileged = id.uid == 0 && unix.Capget(&hdr, &caps[0]) == nil && caps[0].Effective&need == need
	return id
}

// do runs f so that what it makes belongs to c, if this process may do that.
func (id identity) do(c fsproto.Caller, f func() error) error {
	if !id.privileged || c.UID == id.uid && c.GID == id.gid {
		return f()
	}
	done := make(chan error)
	go func() {
		// Ids of one thread: it is given back to the runtime only with the
		// old ids, and else dies with this goroutine.
		runtime.LockOSThread()
		err, restored := id.onThread(c, f)
		if restored {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// onThread changes the file system ids of the calling thread around f. Its
// capabilities stay: permissions were judged by the view's kernel, with the
// caller's groups, which this side does not know.
func (id identity) onThread(c fsproto.Caller, f func() error) (err error, restored bool) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err), true
	}
	defer func() {
		restored = setfs(id.uid, id.gid) == nil && unix.Capset(&hdr, &caps[0]) == nil
	}()
	if err := setfs(c.UID, c.GID); err != nil {
		return err, false
	}
	// setfsuid(2) from 0 took the file capabilities out of the effective set.
	if err := unix.Capset(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err), false
	}
	return f(), false
}

// setfs sets the thread's file system ids. The calls report no error, so
// their effect is asked for: EPERM for ids without a mapping here.
func setfs(uid, gid uint32) error {
	const ask = -1
	if _, err := unix.SetfsgidRetGid(int(gid)); err != nil {
		return err
	}
	if _, err := unix.SetfsuidRetUid(int(uid)); err != nil {
		return err
	}
	g, _ := unix.SetfsgidRetGid(ask)
	u, _ := unix.SetfsuidRetUid(ask)
	if uint32(g) != gid || uint32(u) != uid {
		return unix.EPERM
	}
	return nil
}
