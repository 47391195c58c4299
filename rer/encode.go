package rer

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// MaxMessage bounds an encoded message: an argument list and environment of
// the size that Linux allows, with room to spare.
const MaxMessage = 64 << 20

var (
	encoder = must(cbor.EncOptions{}.EncMode())
	decoder = must(cbor.DecOptions{
		MaxArrayElements: 4 << 20,
		MaxMapPairs:      1 << 16,
		MaxNestedLevels:  16,
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
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
	return encoder.Marshal(m)
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
