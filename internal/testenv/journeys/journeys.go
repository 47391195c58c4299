// Package journeys holds only tests: tasks of everyday with the programs of
// everyday, done on the other host of the lab over real ssh and compared with
// the same task done without rexec. What a task leaves must be the same to the
// byte where the programs themselves are deterministic, and stand the
// program's own check (git fsck, pragma integrity_check) where they are not.
//
// By default the link has 0.2 ms of round trip and a few files of the C
// project are compiled. With REXEC_TEST_LONG set (scripts/test long) all is
// done in full, there and at 20 ms. Times and the counts of file requests are
// logged (go test -v).
package journeys
