package posix

import "testing"

// TestBare shows that the suite is right where nothing is between it and the
// file system.
func TestBare(t *testing.T) { Run(t, t.TempDir()) }
