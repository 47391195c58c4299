package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// packet is one read from a TUN device: a virtio-net header and an IP packet,
// or, with segmentation offload, up to 64 KB of one TCP stream.
type packet struct {
	data []byte
	due  time.Time // when it reaches the other device
}

const (
	vnetHeader   = 10 // struct virtio_net_hdr: flags, gso type, header length, segment size, ...
	maxPacket    = vnetHeader + 64<<10
	framing      = 38   // bytes of preamble, Ethernet header, checksum and gap of each frame
	queuePackets = 8192 // bound of memory only; the queue's length is a time
)

// link joins two TUN devices.
type link struct {
	ends [2]*os.File
	done sync.WaitGroup
}

// newLink starts the emulation between the TUN devices a and b, which become
// the link's.
func newLink(a, b *os.File, c Config) *link {
	l := &link{ends: [2]*os.File{a, b}}
	for i := range l.ends {
		queue := make(chan packet, queuePackets)
		w := &wire{config: c}
		l.done.Go(func() { defer close(queue); w.receive(l.ends[i], queue) })
		l.done.Go(func() { deliver(l.ends[1-i], queue) })
	}
	return l
}

func (l *link) close() {
	l.ends[0].Close() // ends its reader
	l.ends[1].Close()
	l.done.Wait()
}

// wire is one direction: a serialising clock, a drop-tail queue of one
// bandwidth-delay product (10 ms at least), a delay.
type wire struct {
	config Config
	free   time.Time // when the last packet accepted has left
}

// receive reads packets until the device is closed.
func (w *wire) receive(from *os.File, queue chan<- packet) {
	for {
		buf := make([]byte, maxPacket)
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if due, ok := w.accept(buf[:n], time.Now()); ok {
			queue <- packet{append([]byte(nil), buf[:n]...), due}
		}
	}
}

// accept says when a packet will be there; false: it is lost.
func (w *wire) accept(p []byte, now time.Time) (due time.Time, ok bool) {
	if w.config.Loss > 0 && rand.Float64() < w.config.Loss {
		return due, false
	}
	if w.free.Before(now) {
		w.free = now
	}
	if w.free.Sub(now) > max(w.config.RTT, 10*time.Millisecond) {
		return due, false
	}
	if w.config.Mbit > 0 {
		bits := float64(wireBytes(p) * 8)
		w.free = w.free.Add(time.Duration(bits / w.config.Mbit * float64(time.Microsecond)))
	}
	return w.free.Add(w.config.RTT / 2), true
}

// wireBytes is how long a packet is as Ethernet frames.
func wireBytes(p []byte) int {
	if len(p) < vnetHeader {
		return framing
	}
	length := len(p) - vnetHeader
	headers := int(binary.LittleEndian.Uint16(p[2:]))
	segment := int(binary.LittleEndian.Uint16(p[4:]))
	if p[1] == unix.VIRTIO_NET_HDR_GSO_NONE || segment == 0 || length <= headers {
		return length + framing
	}
	n := (length - headers + segment - 1) / segment
	return length - headers + n*(headers+framing)
}

// deliver writes packets to the other device when they are due.
func deliver(to *os.File, queue <-chan packet) {
	runtime.LockOSThread() // for good: its priority is changed
	precise()
	for p := range queue {
		if d := time.Until(p.due); d > 0 {
			ts := unix.NsecToTimespec(int64(d))
			// Not time.Sleep, whose grain is 1 ms. A signal makes it early
			// by a hair.
			_ = unix.Nanosleep(&ts, nil)
		}
		// An error is a device that is down: the packet is lost.
		_, _ = to.Write(p.data)
	}
}

// precise has the thread wake in time, as far as the machine allows.
func precise() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
	_ = unix.SchedSetAttr(0, &attr, 0)
}

// openTUN makes a TUN device "link0" in the network namespace of a process.
func openTUN(pid int, offload bool) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := openTUNHere(fmt.Sprintf("/proc/%d/ns/net", pid), offload)
		c <- result{f, err}
	}()
	r := <-c
	return r.f, r.err
}

// openTUNHere leaves the calling thread in the other namespace.
func openTUNHere(netns string, offload bool) (*os.File, error) {
	ns, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("setns %s: %w", netns, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := setTUN(fd, offload); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "link0"), nil
}

func setTUN(fd int, offload bool) error {
	req, err := unix.NewIfreq("link0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	flags := 0
	if offload {
		flags = unix.TUN_F_CSUM | unix.TUN_F_TSO4
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	return nil
}
