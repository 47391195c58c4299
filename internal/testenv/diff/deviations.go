package diff

import "regexp"

// Deviation is a known difference: lines of either run that match Lines, in
// cases whose "group/name" matches Cases, are left out of the comparison. Each
// has a section in docs/deviations.md that says why it is as it is.
type Deviation struct {
	Name  string
	Cases *regexp.Regexp
	Lines *regexp.Regexp
}

// Deviations are all known ones.
var Deviations = []Deviation{
	{
		Name:  "own-messages",
		Cases: regexp.MustCompile(`^refused/`),
		Lines: regexp.MustCompile(`(?m)^(rexec|hint): .*\n`),
	},
}

// apply leaves out the lines of the deviations that hold for a case.
func apply(all []Deviation, name string, r Result) Result {
	for _, d := range all {
		if !d.Cases.MatchString(name) {
			continue
		}
		r.Stdout = d.Lines.ReplaceAllString(r.Stdout, "")
		r.Stderr = d.Lines.ReplaceAllString(r.Stderr, "")
		r.Status = d.Lines.ReplaceAllString(r.Status+"\n", "")
	}
	return r
}
