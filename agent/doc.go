// Package agent is the rexec process: the local stand-in of a command that
// runs elsewhere. It captures what it inherited, has `rexec home` send it,
// passes every signal on, stops, resumes and ends as the command does.
//
// From before the request leaves until the end, a signal that can be caught is
// relayed and does nothing else here. Messages of its own go to descriptor 2,
// each one line that begins with "rexec: " or "hint: "; exit status 255 means
// that rexec failed, 126 and 127 are as the shells have them.
package agent
