package diff

import "regexp"

// Deviation is a known difference: lines of either run that match Lines, in
// cases whose "group/name" matches Cases, are left out of the comparison; where
// Lines is nil, the case has only to end. Each has a section in
// docs/deviations.md that says why it is as it is.
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
	{
		Name:  "two-way-named-pipe",
		Cases: regexp.MustCompile(`^fds/kinds$`),
		Lines: regexp.MustCompile(`(?m)^3 (4096|49152)\n`),
	},
	{
		Name:  "terminal-number",
		Cases: regexp.MustCompile(`^pty/tty$`),
		Lines: regexp.MustCompile(`(?m)^/dev/pts/\d+\r?\n`),
	},
	{
		Name:  "device-nodes",
		Cases: regexp.MustCompile(`^files/device$`),
	},
	{
		Name:  "renamed-around-a-job",
		Cases: regexp.MustCompile(`^files/dir-moved-while-open$`),
		Lines: regexp.MustCompile(`(?m)^[ab]\n`),
	},
	{
		Name:  "signals-from-the-job",
		Cases: regexp.MustCompile(`^signals/signal-(parent|group-from-job)$`),
		Lines: regexp.MustCompile(`(?m)^(parent got it|group)\n`),
	},
}

// apply leaves out the lines of the deviations that hold for a case.
func apply(all []Deviation, name string, r Result) Result {
	for _, d := range all {
		if !d.Cases.MatchString(name) {
			continue
		}
		if d.Lines == nil {
			return Result{}
		}
		r.Stdout = d.Lines.ReplaceAllString(r.Stdout, "")
		r.Stderr = d.Lines.ReplaceAllString(r.Stderr, "")
		r.Status = d.Lines.ReplaceAllString(r.Status+"\n", "")
	}
	return r
}
