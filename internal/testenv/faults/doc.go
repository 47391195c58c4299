// Package faults tests what becomes of everything when something goes wrong:
// each process of the path is killed at several moments, peers say nonsense or
// nothing, requests cannot be met, disks are full, and jobs try to leave their
// view. It uses the real programs and holds tests only.
//
// What is asked each time: nothing of the job or its session is left, whoever
// is left says why in one line, the status is 255, 126, 127 or the signal, and
// nothing runs twice. Moments are conditions, and limits are generous: the
// promise is 5 seconds on a machine that is not loaded.
//
// Peers and jobs that a shell cannot play are played by the test program
// itself, called with the part's name as its first argument.
package faults
