// Package rer defines the remote execution request, the status that answers
// it, and every message between home and a session. It only defines: types,
// their encoding and their bounds. It imports nothing of the tree.
//
// # The link
//
// Home (the client) connects; the session (the server) answers. Both ends of
// a link speak internal/transport: numbered channels that carry whole
// messages in order. Home opens channels with odd numbers, the session with
// even ones. Three channels exist from the start and are never opened or
// closed: [ControlChannel], [RecallsChannel] and [FilesChannel]. The first two
// are of one class, the most urgent: what is sent on one of them after
// something on the other arrives after it.
//
// # Control
//
// Each message on the control channel is one CBOR [Message], a struct of
// pointers of which exactly one is set. Maps have integer keys. Strings, those
// that are Go strings here too, are byte strings; text strings are taken as
// well. Lengths are definite, tags are refused. Unknown keys
// are ignored, unless the message lists them in Critical: then it is refused
// with [ReasonVersion]. A number is never used twice.
//
//	home                          session
//	Hello           ->            first message of each side; the higher of
//	                <-  Hello     the common versions holds, none: Refused
//	Launch          ->            channels that it names are open already
//	                <-  Started   the command runs (execve has succeeded)
//	                <-  Refused   or it never ran and never will
//	Signal          ->            to the job; Kill: hang up, then kill
//	                <-  Stopped   the command stopped; home's agent does too
//	                <-  Continued
//	                <-  Ended     exactly once for each Started
//	Ping            <->  Pong     when nothing was heard for a while
//
// A request id is launched at most once, whatever is sent again: a second
// Launch with an id that the session has seen is refused with [ReasonTwice].
//
// # Descriptors
//
// Home lists the open file descriptions that the command inherits
// ([Description], each once) and the numbers by which it has them ([FD]).
// A description whose bytes cross (pipe, socket, terminal, relayed) has a
// channel. Messages on it begin with one byte, the kind:
//
//	'd' bytes   data, at most 60 KiB
//	'e'         no more data from this side (half close, end of file). From
//	            the session: the last writer has let go of a pipe, or a job
//	            has shut a socket down for writing; not that it closed one
//	'h'         the sender's reader is gone: data sent to it is dropped, the
//	            writer at the far side gets EPIPE. Of a socket: nobody has
//	            its end any more, so nothing is written there either
//	'c' uint64  consumed: how many bytes, in all, the job has read so far
//	            (big endian; only where Description.Paced)
//	't' termios terminal settings changed; struct termios of linux/amd64
//	            without padding: iflag, oflag, cflag, lflag uint32 big
//	            endian, line byte, 19 control bytes
//	'w' 4xuint16 window size changed, at home or by a job: rows, columns, x, y;
//	            big endian
//	'f' int32   home's foreground process group changed (big endian)
//	'q' uint32  home's terminal has input in canonical mode: does a job read
//	            (big endian, a number that the answer repeats; 0 takes the
//	            last question back)?
//	'r' uint32  answer to 'q': one does, or may (from the session)
//	'p' flag bytes  input that home's terminal has edited and echoed: the pty
//	            is to do neither. Flag 1: what one read(2) gave in canonical
//	            mode, a line or, without a newline, what an end-of-file key
//	            ended; empty: the end of the file
//	'g' flag    from the session. 1: the jobs have made a foreground group of
//	            their own, as a shell there does. Home's terminal is raw then
//	            and what is typed goes as 'd'. 0 again: it is home's. Before
//	            the first 'g' it is 0
//
// A Signal of si_code SI_KERNEL that stands for a key (SIGINT, SIGQUIT, SIGTSTP)
// goes to the pty's foreground group, once for all jobs of the terminal that
// the key's signal reached.
//
// Channels live on after Ended, for the job's descendants: home closes each
// when it has had 'e' for what they write and 'h' for what they read. Paced
// channels it closes at Ended.
//
// A message of an unknown kind is dropped. A session may address channels
// that home opened and no other; a message on any other is answered by a
// transport error for that channel and touches nothing.
//
// # Order
//
// Home sends recalls (package fsproto) on [RecallsChannel], each before any
// later control message and before any later 'd' or 'e' on a descriptor's
// channel, none of which overtakes it. A session has them in force before it
// launches a job, delivers a signal, or hands a byte or the end of data to a
// job. A recall may overtake the answer to a file request that was sent before
// it: a lease in an answer counts for nothing if a recall has come since the
// request. Ended says
// how many bytes each channel carried; home delivers the status only when it
// has written all of them.
package rer
