package origin

import "golang.org/x/sys/unix"

// makeRoom gives up descriptors of idle nodes beyond the bound. mu is held.
func (o *Origin) makeRoom() {
	const look = 16 // nodes tried at most, so that one call stays short
	e := o.idle.Back()
	for range look {
		if e == nil || o.idle.Len() <= o.opt.MaxNodes {
			return
		}
		n := e.Value.(*node)
		e = e.Prev()
		if n.users == 0 && (o.reachableByHandle(n) || reachableByName(n)) {
			o.detach(n)
			o.evicted++
		} else {
			o.idle.MoveToFront(n.elem)
		}
	}
}

// reachableByHandle tries whether n can be found again by its file handle.
func (o *Origin) reachableByHandle(n *node) bool {
	if o.noHandles || n.ident.handle == "" {
		return false
	}
	mnt, ok := o.mountFD(n)
	if !ok {
		return false
	}
	fd, err := unix.OpenByHandleAt(mnt, n.ident.fileHandle(), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		o.noHandles = err == unix.EPERM
		return false
	}
	unix.Close(fd)
	return true
}

// mountFD gives a descriptor on n's mount that open_by_handle_at(2) accepts,
// which O_PATH ones are not.
func (o *Origin) mountFD(n *node) (int, bool) {
	if fd, ok := o.mounts[n.key.mnt]; ok {
		return fd, true
	}
	dir := n
	if !n.isDir() {
		dir = n.parent
	}
	if dir == nil || dir.fd < 0 || dir.key.mnt != n.key.mnt {
		return -1, false
	}
	fd, err := unix.Open(fdPath(dir.fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false
	}
	o.mounts[n.key.mnt] = fd
	return fd, true
}

// reachableByName tries whether n's last name still leads to it.
func reachableByName(n *node) bool {
	if n.parent == nil || n.parent.fd < 0 {
		return false
	}
	var st unix.Statx_t
	return stat(n.parent.fd, n.name, &st) == nil && keyOf(&st) == n.key
}

// reopen finds the descriptor of a node again. mu is held, and released
// meanwhile; n has a user.
func (o *Origin) reopen(n *node) (int, error) {
	if mnt, ok := o.mounts[n.key.mnt]; ok && !o.noHandles && n.ident.handle != "" {
		fd, err := unix.OpenByHandleAt(mnt, n.ident.fileHandle(), unix.O_PATH|unix.O_CLOEXEC)
		if err == nil {
			return fd, nil
		}
	}
	p, name := n.parent, n.name
	if p == nil {
		return -1, unix.ESTALE
	}
	if err := o.use(p); err != nil {
		return -1, err
	}
	o.mu.Unlock()
	fd, err := openSame(p.fd, name, n)
	o.mu.Lock()
	p.users--
	o.settle(p)
	return fd, err
}

// openSame opens name if it is still n.
func openSame(dir int, name string, n *node) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, unix.ESTALE
	}
	var st unix.Statx_t
	if err := stat(fd, "", &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if id, _ := identOf(fd, &st); keyOf(&st) != n.key || id != n.ident {
		unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

// renamed notes a rename for nodes that are only reachable by name.
func (o *Origin) renamed(to *node, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.evicted == 0 {
		return
	}
	var st unix.Statx_t
	if stat(to.fd, name, &st) != nil {
		return
	}
	if n := o.byKey[keyOf(&st)]; n != nil {
		o.moved(n, to, name)
	}
}
