package pump

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Poller waits for descriptors in any mode, blocking or not, with one thread
// for all of them.
type Poller struct {
	epoll, wake int
	done        chan struct{}

	mu      sync.Mutex
	round   int32
	waiting map[int32]waiter // by descriptor
	closed  bool
}

type waiter struct {
	round int32
	got   chan uint32 // capacity 1
}

// NewPoller gives a poller that runs until Close.
func NewPoller() (*Poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &event); err != nil {
		unix.Close(epoll)
		unix.Close(wake)
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	p := &Poller{epoll: epoll, wake: wake, done: make(chan struct{}), waiting: make(map[int32]waiter)}
	go p.loop()
	return p, nil
}

// Close ends the poller. Nobody may wait any more.
func (p *Poller) Close() {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return
	}
	_, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-p.done
	unix.Close(p.epoll)
	unix.Close(p.wake)
}

func (p *Poller) loop() {
	defer close(p.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == -1 {
				return
			}
			p.deliver(e)
		}
	}
}

// deliver hands an event to the wait that it belongs to: a descriptor's
// number may have been used again, so the round decides.
func (p *Poller) deliver(e unix.EpollEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.waiting[e.Fd]
	if !ok || w.round != e.Pad {
		return
	}
	p.remove(e.Fd)
	w.got <- e.Events
}

func (p *Poller) remove(fd int32) {
	delete(p.waiting, fd)
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, int(fd), nil)
}

// wait returns what of events (EPOLLERR and EPOLLHUP always included) holds
// for fd, or errStopped when cancel is closed first. What epoll cannot watch
// is always ready. One wait at a time for one descriptor.
func (p *Poller) wait(fd int, events uint32, cancel <-chan struct{}) (uint32, error) {
	select {
	case <-cancel:
		return 0, errStopped
	default:
	}
	w, err := p.add(fd, events)
	if err == unix.EPERM {
		return events, nil
	}
	if err != nil {
		return 0, fmt.Errorf("epoll_ctl: %w", err)
	}
	select {
	case got := <-w.got:
		return got, nil
	case <-cancel:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[int32(fd)].got == w.got {
		p.remove(int32(fd))
	}
	return 0, errStopped
}

func (p *Poller) add(fd int, events uint32) (waiter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
	w := waiter{round: p.round, got: make(chan uint32, 1)}
	event := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(fd), Pad: w.round}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return waiter{}, err
	}
	p.waiting[int32(fd)] = w
	return w, nil
}
