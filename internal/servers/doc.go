// Package servers says what a HOST on the command line means.
//
// [Database.Resolve] knows the reserved names local and loopback, this
// machine's own sysid (which is local), URLs (ssh://[user@]host[:port],
// unix:/path), and names. A name is looked for in the system's file, then in
// the user's, then among the Host entries of the ssh configuration that are
// plain names; the first entry decides, so what the administrator withdrew
// stays withdrawn under that name. No network is used, and nothing is cached.
//
// The two files are TOML:
//
//	[[server]]
//	name = "eagle"
//	url = "ssh://alice@eagle.example.org:2222"  # default: ssh:// and the name
//	disabled = true                # withdrawn: refused with the message
//	message = "being repaired until Monday"
//	allow = ["alice", "bob"]       # users of this machine; absent: all
//	clients = ["hawk"]             # machines (host name or sysid) that may use
//	                               # it, for a file that many share; absent: all
//
// A file with a fault is refused as a whole, with the line. Refusals are
// *rer.Refused, each with its own reason and often a hint; faults of files are
// other errors.
package servers
