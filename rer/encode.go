package rer

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/fxamacker/cbor/v2"
)

// MaxMessage bounds an encoded message: an argument list and environment of
// the size that Linux allows, with room to spare.
const MaxMessage = 64 << 20

// maxElements bounds each list. Linux takes no more than 629,000 arguments and
// environment strings in all (6 MiB, 8 bytes and a NUL for each), nor numbers
// above a million for descriptors.
const maxElements = 1 << 20

// Go strings become byte strings: names of files, users and hosts are no text
// that must be UTF-8. The decoder checks a whole message before it makes
// anything, so a length that the message does not hold costs nothing.
var (
	encoder = must(cbor.EncOptions{String: cbor.StringToByteString}.EncMode())
	decoder = must(cbor.DecOptions{
		MaxArrayElements:   maxElements,
		MaxMapPairs:        256,
		MaxNestedLevels:    8,
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		ByteStringToString: cbor.ByteStringToStringAllowed,
		UTF8:               cbor.UTF8DecodeInvalid,
	}.DecMode())
)

// must is for option sets that are constants of this file.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

var errOne = errors.New("message: not exactly one kind is set")

// Encode gives the bytes of m.
func (m *Message) Encode() ([]byte, error) {
	if m.kinds() != 1 {
		return nil, errOne
	}
	b, err := encoder.Marshal(m)
	if err == nil && len(b) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes, more than %d: %w", len(b), MaxMessage, syscall.E2BIG)
	}
	return b, err
}

// DecodeMessage reads a message of a peer that may be hostile. It bounds
// before it allocates and refuses trailing bytes.
func DecodeMessage(b []byte) (*Message, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes: more than %d", len(b), MaxMessage)
	}
	m := new(Message)
	if err := decoder.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	if m.kinds() != 1 {
		return nil, errOne
	}
	if m.Launch != nil {
		if err := m.Launch.Check(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Message) kinds() int {
	n := 0
	for _, set := range []bool{m.Hello != nil, m.Launch != nil, m.Started != nil, m.Refused != nil,
		m.Signal != nil, m.Kill != nil, m.Stopped != nil, m.Continued != nil, m.Ended != nil,
		m.Ping != nil, m.Pong != nil} {
		if set {
			n++
		}
	}
	return n
}
