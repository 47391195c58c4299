package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// devTTY is /dev/tty, which means whoever's own terminal.
var devTTY = unix.Mkdev(5, 0)

// terminal captures the controlling terminal, if there is one.
func (c *Captured) terminal() error {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EIO) {
		return nil // none, or none any more
	}
	if err != nil {
		c.note("the controlling terminal cannot be opened: %v", err)
		return nil
	}
	termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		_ = unix.Close(fd)
		return nil // hung up
	}
	t := &rer.Terminal{Termios: encodeTermios(termios)}
	if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
		t.Rows, t.Cols, t.X, t.Y = size.Row, size.Col, size.Xpixel, size.Ypixel
	}
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil {
		t.Foreground = int32(group)
	}
	dev, err := unix.IoctlGetInt(fd, unix.TIOCGDEV)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("controlling terminal: TIOCGDEV: %w", err)
	}
	t.Dev = kernelDev(uint32(dev))
	t.Path = terminalPath(t.Dev)
	c.Settings = termios
	c.Request.Terminal, c.Tty = t, os.NewFile(uintptr(fd), "/dev/tty")
	return nil
}

// kernelDev turns the 32 bits of new_encode_dev, in which TIOCGDEV answers,
// into a stat(2) device number.
func kernelDev(d uint32) uint64 {
	return unix.Mkdev((d&0xfff00)>>8, d&0xff|(d>>12)&0xfff00)
}

// Unraw gives the controlling terminal the settings that it had at the capture,
// where somebody has left its input raw since and this process's group is in
// the foreground. It is for when home, which would do that, is dead. What a
// command has set is lost then: home alone knew.
func (c *Captured) Unraw() error {
	if c.Settings == nil {
		return nil
	}
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer unix.Close(fd)
	// From the background it would stop this process.
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil || group != unix.Getpgrp() {
		return err
	}
	const cooked = unix.ICANON | unix.ISIG | unix.ECHO | unix.IEXTEN
	now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || now.Lflag&cooked != 0 {
		return err
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, c.Settings)
}

// terminalPath finds the name of a terminal by its device number, or nil.
func terminalPath(dev uint64) []byte {
	names := []string{fmt.Sprintf("/dev/pts/%d", unix.Minor(dev))}
	if unix.Major(dev) < 136 || unix.Major(dev) > 143 { // not Unix98 ptys
		names, _ = filepath.Glob("/dev/tty*")
		names = append(names, "/dev/console")
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == dev {
			return []byte(name)
		}
	}
	return nil
}
