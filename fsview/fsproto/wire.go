package fsproto

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// Messages is a channel of whole messages in order. Send does not keep b
// after it returned; what Recv returns is the caller's. Send is called by one
// goroutine at a time, Recv by one goroutine.
type Messages interface {
	Send(b []byte) error
	Recv() ([]byte, error)
}

// MaxMessage bounds an encoded message, in bytes.
const MaxMessage = MaxIO + 256<<10

// A message is a CBOR array.
//
//	request  [id, op, body]  or  [id, op, body, data]
//	reply    [id, 0]  [id, 0, body]  [id, 0, body, data]  or  [id, errno]
//	push     [0, opRecall, body]
//	cancel   [id, opCancel]
//
// Data, the bytes of a read or write, stands last so that neither side copies
// it more than once. Requests that have no reply have id 0. Names and other
// strings are CBOR byte strings: file names are no text.
type frame struct {
	id, code uint64
	parts    int    // 2 to 4
	rest     []byte // body and data, still encoded
}

var (
	encoder = must(cbor.EncOptions{String: cbor.StringToByteString}.UserBufferEncMode())
	decoder = must(cbor.DecOptions{
		MaxArrayElements:   128 << 10,
		MaxMapPairs:        16,
		MaxNestedLevels:    8,
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		ByteStringToString: cbor.ByteStringToStringAllowed,
	}.DecMode())
)

// must is for option sets that are constants of this file.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

var errMalformed = errors.New("malformed message")

// CBOR major types, shifted into place (RFC 8949, 3.1).
const (
	majorUint  = 0 << 5
	majorBytes = 2 << 5
	majorArray = 4 << 5
)

func writeHead(b *bytes.Buffer, major byte, v uint64) {
	switch {
	case v < 24:
		b.WriteByte(major | byte(v))
	case v <= 0xff:
		b.Write([]byte{major | 24, byte(v)})
	case v <= 0xffff:
		b.Write([]byte{major | 25, byte(v >> 8), byte(v)})
	case v <= 0xffffffff:
		b.Write([]byte{major | 26, byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	default:
		b.WriteByte(major | 27)
		for shift := 56; shift >= 0; shift -= 8 {
			b.WriteByte(byte(v >> shift))
		}
	}
}

// readHead reads a head of the given major type and returns what follows.
func readHead(b []byte, major byte) (v uint64, rest []byte, err error) {
	if len(b) == 0 || b[0]&0xe0 != major {
		return 0, nil, errMalformed
	}
	info, b := b[0]&0x1f, b[1:]
	if info < 24 {
		return uint64(info), b, nil
	}
	if info > 27 {
		return 0, nil, errMalformed
	}
	n := 1 << (info - 24)
	if len(b) < n {
		return 0, nil, errMalformed
	}
	for _, c := range b[:n] {
		v = v<<8 | uint64(c)
	}
	return v, b[n:], nil
}

// parseFrame reads the outer array and its two numbers.
func parseFrame(b []byte) (f frame, err error) {
	if len(b) > MaxMessage {
		return f, fmt.Errorf("message of %d bytes: %w", len(b), errMalformed)
	}
	n, b, err := readHead(b, majorArray)
	if err != nil || n < 2 || n > 4 {
		return f, errMalformed
	}
	f.parts = int(n)
	if f.id, b, err = readHead(b, majorUint); err != nil {
		return f, err
	}
	if f.code, b, err = readHead(b, majorUint); err != nil {
		return f, err
	}
	if f.rest = b; n == 2 && len(b) != 0 {
		return f, errMalformed
	}
	return f, nil
}

// decode reads the body into v and returns the data, which lies in the
// message's own memory.
func (f *frame) decode(v any) (data []byte, err error) {
	if f.parts == 2 {
		return nil, errMalformed
	}
	rest, err := decoder.UnmarshalFirst(f.rest, v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if f.parts == 3 {
		if len(rest) != 0 {
			return nil, errMalformed
		}
		return nil, nil
	}
	n, rest, err := readHead(rest, majorBytes)
	if err != nil || n != uint64(len(rest)) || n > MaxIO {
		return nil, errMalformed
	}
	return rest, nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// send encodes one message and sends it; body nil and data nil stand for
// absent parts. An error of encoding is EMSGSIZE or the encoder's.
func send(ch *sender, id, code uint64, body any, data []byte) error {
	b := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(b)
	b.Reset()
	if err := encodeTo(b, id, code, body, data); err != nil {
		return err
	}
	return ch.send(b.Bytes())
}

func encodeTo(b *bytes.Buffer, id, code uint64, body any, data []byte) error {
	parts := uint64(2)
	if body != nil {
		parts++
	}
	if data != nil {
		parts++
	}
	b.Grow(len(data) + 128)
	writeHead(b, majorArray, parts)
	writeHead(b, majorUint, id)
	writeHead(b, majorUint, code)
	if body != nil {
		if err := encoder.MarshalToBuffer(body, b); err != nil {
			return err
		}
	}
	if data != nil {
		writeHead(b, majorBytes, uint64(len(data)))
		b.Write(data)
	}
	if b.Len() > MaxMessage {
		return fmt.Errorf("message of %d bytes: %w", b.Len(), errTooLong)
	}
	return nil
}

// sender makes a channel's Send safe for many goroutines.
type sender struct {
	mu sync.Mutex
	ch interface{ Send(b []byte) error }
}

func (s *sender) send(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch.Send(b)
}
