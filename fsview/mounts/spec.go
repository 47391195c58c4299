// Package mounts assembles a view: a mount namespace whose root is home's,
// by FUSE, with the server's directories bound over it where SWITCH says so,
// and with what only the server's kernel can give (/proc, /dev, /sys).
package mounts

// Spec is a view. Paths are absolute, clean, and resolved within the view's
// root without following a last symlink.
type Spec struct {
	// FUSE mounts, parents before children; the first is "/".
	FUSE []FUSE
	// Binds are the server's directories and files of the same path, bound
	// recursively over the FUSE mounts, parents before children.
	Binds []string
	// Files are read-only files made by the session, such as
	// /etc/resolv.conf: bound from memory over the name.
	Files []File
	// AllowOther and DefaultPermissions are mount options of every FUSE
	// mount: both where several ids are mapped, the first alone else.
	DefaultPermissions bool
	// KernelReadOnly makes /proc/sys and its like read-only: for views whose
	// jobs may have the id of the machine's own root. Elsewhere it would only
	// keep jobs from mounting a /proc in namespaces of their own.
	KernelReadOnly bool
}

// FUSE is one FUSE mount.
type FUSE struct {
	Path     string
	Source   string // shown in /proc/mounts
	Type     string // shown as fuse.TYPE
	ReadOnly bool
}

// File is a generated file.
type File struct {
	Path string
	Data []byte
}
