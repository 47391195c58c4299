// Package show holds only tests: the whole path between two hosts of the lab,
// over real ssh, with real programs, and what is left when a process of it is
// killed.
package show
