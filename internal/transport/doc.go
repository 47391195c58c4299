// Package transport carries whole messages on numbered channels over one
// ordered byte stream: a socket to a child, a unix socket, or ssh.
//
// # Order
//
// Messages of one channel arrive whole and in the order of their Sends. Every
// channel has a [Class], and frames of a lower class overtake those of a
// higher one that still wait to be written. If Send on a channel returned
// before Send on another channel of the same or a higher class was called,
// the peer's reader sees the first message whole before any frame of the
// second. Nothing is promised when the second channel's class is the lower
// one: control overtakes bulk.
//
// # Bounds
//
// Each channel has a window: the peer may have that many bytes (and 32 for
// each frame) outstanding that this side's user has not taken. It starts as
// [Options].Window and doubles, up to 16 MiB, whenever the peer had to wait for
// credit though this side's user takes what comes: a long link needs it, and a
// user who does not keep up never gets it. A message may
// be longer than the window; memory for a channel is then the window plus
// [Options].MaxMessage. A peer that exceeds its credit, or breaks the framing
// in any other way, loses the link. A frame for a channel that was never
// opened is answered by a reset of that number and touches nothing else. At
// most 65536 channels are open at a time.
//
// # End
//
// A link ends by Close of either side ([Conn.Err] is net.ErrClosed here and
// io.EOF there), by an error of the stream, by a breach of the protocol
// (errors that wrap EPROTO), or by silence (ETIMEDOUT). Close first writes
// what Send accepted, for a few seconds at most. However it ends, everything
// that waits is woken and no goroutine stays.
//
// # Wire
//
// Each side starts with 8 bytes: "rexecC1\n" the client, "rexecS1\n" the
// server. Frames follow: type (1 byte), flags (1), payload length (2), channel
// (4), payload; numbers are big endian. Header and payload are at most 64 KiB.
//
//	1 data    a piece of a message; flag 1: more pieces follow; flag 2: the
//	          sender had to wait for credit
//	2 credit  uint32: so many more bytes may be sent on the channel
//	3 open    class byte; numbers go up by 2, clients' from 3, servers' from 4
//	4 close   no more messages from this side, and it takes none
//	5 reset   text: the channel is dropped at once
//	6 ping    8 bytes, any     7 pong  the same bytes
//	8 bye     the link ends in order; channel 0
//
// A data frame costs its payload and 32 bytes of credit. Both sides of a new
// channel start with a credit of 256 KiB, channels 0, 1 and 2 from the start of
// the link. More than 16 MiB of credit may not be outstanding.
//
// # Locks
//
// Channel.sendMu (one Send at a time) before Conn.mu (everything else). No
// lock is held while a handler runs or while the stream is read or written.
package transport
