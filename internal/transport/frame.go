package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

const (
	headerSize = 8
	maxFrame   = 64 << 10
	maxPayload = maxFrame - headerSize
	maxReason  = 256 // bytes of text in a reset

	// frameCost is charged for each data frame besides its payload, so that
	// empty messages are not free.
	frameCost = 32

	flagMore    = 1
	flagStarved = 2
)

type frameType uint8

const (
	frameData frameType = iota + 1
	frameCredit
	frameOpen
	frameClose
	frameReset
	framePing
	framePong
	frameBye
)

// header is the fixed part of a frame.
type header struct {
	kind    frameType
	flags   uint8
	length  int // of the payload, bytes
	channel uint32
}

// Greetings of the two sides.
const (
	helloClient = "rexecC1\n"
	helloServer = "rexecS1\n"
)

// violation makes an error for a peer that broke the protocol.
func violation(format string, args ...any) error {
	return fmt.Errorf("link protocol broken by peer: %s: %w", fmt.Sprintf(format, args...), syscall.EPROTO)
}

// appendHeader adds the encoding of h to b.
func appendHeader(b []byte, h header) []byte {
	b = append(b, byte(h.kind), h.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(h.length))
	return binary.BigEndian.AppendUint32(b, h.channel)
}

// readHeader reads and checks one header. The error is io.EOF only where the
// stream ends between frames.
func readHeader(r io.Reader, buf *[headerSize]byte) (header, error) {
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return header{}, err
	}
	h := header{
		kind:    frameType(buf[0]),
		flags:   buf[1],
		length:  int(binary.BigEndian.Uint16(buf[2:])),
		channel: binary.BigEndian.Uint32(buf[4:]),
	}
	return h, h.check()
}

// check says whether h is a header that the protocol knows.
func (h header) check() error {
	low, high := 0, 0
	switch h.kind {
	case frameData:
		high = maxPayload
	case frameCredit:
		low, high = 4, 4
	case frameOpen:
		low, high = 1, 1
	case frameClose:
	case frameReset:
		high = maxReason
	case framePing, framePong:
		low, high = 8, 8
	case frameBye:
	default:
		return violation("frame of type %d", h.kind)
	}
	if h.length < low || h.length > high {
		return violation("frame of type %d with %d bytes", h.kind, h.length)
	}
	if h.flags&^(flagMore|flagStarved) != 0 || h.flags != 0 && h.kind != frameData {
		return violation("frame of type %d with flags %#x", h.kind, h.flags)
	}
	return nil
}

// readGreeting checks the peer's first bytes.
func (c *Conn) readGreeting() error {
	want, own := helloServer, helloClient
	if !c.client {
		want, own = own, want
	}
	b := make([]byte, len(want))
	n, err := io.ReadFull(c.in, b)
	switch {
	case string(b) == want:
		return nil
	case string(b) == own:
		return violation("both ends of the link have the same role")
	case n == 0:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF) || err == nil:
		rest, _ := c.in.Peek(min(c.in.Buffered(), 100))
		return violation("it sent %q instead of a greeting", append(b[:n], rest...))
	}
	return err
}
