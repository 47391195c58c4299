// Package arch holds only tests: that packages import what DESIGN allows
// them, that each says what it is for, that only commands exit.
package arch
