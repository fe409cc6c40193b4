package rpm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// An Upgrade is one version of a package taking the place of another, a newer or
// an older one. A reinstallation is one too, with the same version twice.
type Upgrade struct {
	Begin, End   time.Time // between which new files were made, to the second; Begin is zero where the log does not tell
	Name         string
	Architecture string
	Old, New     string
}

// A Log is what dnf's log, the rotated parts included, tells about upgrades.
type Log struct {
	upgrades []Upgrade // by End
	first    time.Time // of the log's lines
	rotated  bool      // parts may have been thrown away: nothing is known of before first
}

const (
	logFolder = "var/log"
	logName   = "dnf.rpm.log"
)

// Log reads dnf's log. Where one part of it can't be read there is an error
// and no log: what is missing could be the very line that matters. A log that
// is not there is empty.
func (d *Database) Log() (*Log, error) {
	entries, err := fs.ReadDir(d.root, logFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list dnf's logs: %w", err)
	}
	var parts []logPart
	for _, entry := range entries {
		if !isLog(entry.Name()) {
			continue
		}
		if len(parts) == mostLogs {
			return nil, fmt.Errorf("list dnf's logs: more than %d parts: %w", mostLogs, ErrTooLarge)
		}
		text, err := d.readLog(entry.Name())
		if err != nil {
			return nil, err
		}
		parts = append(parts, logPart{text, firstTime(text)})
	}
	// A transaction may begin in one part and end in the next.
	slices.SortStableFunc(parts, func(a, b logPart) int { return a.first.Compare(b.first) })
	l := &Log{rotated: len(parts) > 1}
	r := &logReader{log: l, pending: make(map[string]Upgrade)}
	for _, p := range parts {
		r.add(p.text)
	}
	slices.SortStableFunc(l.upgrades, func(a, b Upgrade) int { return a.End.Compare(b.End) })
	return l, nil
}

// A logPart is one file of the log.
type logPart struct {
	text  []byte
	first time.Time
}

// isLog tells a part of the log by its name, as dnf and logrotate(8) give them:
// dnf.rpm.log, dnf.rpm.log.1, dnf.rpm.log.2.gz, dnf.rpm.log-20260101.gz.
func isLog(name string) bool {
	rest, ok := strings.CutPrefix(name, logName)
	if !ok || rest == "" {
		return ok
	}
	number := strings.TrimSuffix(rest[1:], ".gz")
	return (rest[0] == '.' || rest[0] == '-') && number != "" && strings.Trim(number, "0123456789") == ""
}

func (d *Database) readLog(name string) ([]byte, error) {
	file, err := d.root.Open(logFolder + "/" + name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var content io.Reader = file
	if strings.HasSuffix(name, ".gz") {
		if content, err = gzip.NewReader(file); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(content, mostLog+1))
	if err == nil && len(text) > mostLog {
		err = ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

// logTime is how a line begins: the zone is in it, as Z or +0200.
const logTime = "2006-01-02T15:04:05Z0700"

// timeOf takes the time off a line.
func timeOf(line []byte) (at time.Time, rest []byte, ok bool) {
	word, rest, _ := bytes.Cut(line, []byte(" "))
	if len(word) < len("2006-01-02T15:04:05Z") || len(word) > len("2006-01-02T15:04:05+0000") {
		return time.Time{}, nil, false
	}
	at, err := time.Parse(logTime, string(word))
	return at, rest, err == nil
}

func firstTime(text []byte) time.Time {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		if at, _, ok := timeOf(line); ok {
			return at
		}
	}
	return time.Time{}
}

// A logReader reads the parts of a log, the oldest first.
type logReader struct {
	log     *Log
	begin   time.Time          // of the run of dnf
	pending map[string]Upgrade // by name and architecture: new is there, old not yet gone
}

// kinds are the words for a package that came and for the one that went.
var kinds = [...]struct{ came, went []byte }{
	{[]byte("SUBDEBUG Upgrade: "), []byte("SUBDEBUG Upgraded: ")},
	{[]byte("SUBDEBUG Downgrade: "), []byte("SUBDEBUG Downgraded: ")},
	{[]byte("SUBDEBUG Reinstall: "), []byte("SUBDEBUG Reinstalled: ")},
}

var beginOfRun = []byte("INFO --- logging initialized ---")

// add reads lines. Versions of dnf before 4 use these words otherwise: without
// both of a pair they tell nothing.
func (r *logReader) add(text []byte) {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		at, line, ok := timeOf(line)
		if !ok {
			continue
		}
		if r.log.first.IsZero() || at.Before(r.log.first) {
			r.log.first = at
		}
		if bytes.HasPrefix(line, beginOfRun) {
			r.begin = at
			clear(r.pending)
			continue
		}
		for _, kind := range kinds {
			if came, ok := bytes.CutPrefix(line, kind.came); ok {
				r.came(at, string(came))
			} else if went, ok := bytes.CutPrefix(line, kind.went); ok {
				r.went(at, string(went))
			}
		}
	}
}

func (r *logReader) came(at time.Time, text string) {
	if p, ok := parseNEVRA(text); ok {
		begin := r.begin
		if at.Before(begin) { // the clock was set back
			begin = time.Time{}
		}
		r.pending[p.Name+"."+p.Architecture] = Upgrade{Begin: begin, End: at, Name: p.Name, Architecture: p.Architecture, New: p.Version}
	}
}

func (r *logReader) went(at time.Time, text string) {
	p, ok := parseNEVRA(text)
	if !ok {
		return
	}
	key := p.Name + "." + p.Architecture
	if u, found := r.pending[key]; found && !at.Before(u.End) {
		delete(r.pending, key)
		u.Old, u.End = p.Version, at
		r.log.upgrades = append(r.log.upgrades, u)
	}
}

// parseNEVRA reads NAME-[EPOCH:]VERSION-RELEASE.ARCH.
func parseNEVRA(text string) (Package, bool) {
	dot := strings.LastIndexByte(text, '.')
	if dot < 0 {
		return Package{}, false
	}
	p := Package{Architecture: text[dot+1:]}
	release := strings.LastIndexByte(text[:dot], '-')
	if release < 0 {
		return Package{}, false
	}
	version := strings.LastIndexByte(text[:release], '-')
	if version < 0 {
		return Package{}, false
	}
	p.Name, p.Version = text[:version], strings.TrimPrefix(text[version+1:dot], "0:")
	return p, validName(p.Name) && validName(p.Architecture) && validVersion(p.Version)
}

// Version returns the version of a package that a file of it is from, which was
// made at some moment and is there no more; "" where the log does not tell. An
// exact moment is that of the making itself; otherwise the file was in use then,
// and may be younger.
//
// dnf writes that a package came once its files are there. So a file that was
// made after the begin of a run, and before the package came in it, is the new
// version's. Upgrades by others than dnf are not in the log: where they leave a
// gap between versions nothing is told.
func (l *Log) Version(p Package, moment time.Time, exact bool) string {
	if l.rotated && moment.Before(l.first) {
		return ""
	}
	var after []Upgrade
	before := "" // what the upgrade before those led to
	for _, u := range l.upgrades {
		switch {
		case u.Name != p.Name || p.Architecture != "" && u.Architecture != p.Architecture:
		case u.End.After(moment):
			after = append(after, u)
		default:
			before = u.New
		}
	}
	if len(after) == 0 || before != "" && before != after[0].Old || after[len(after)-1].New != p.Version {
		return ""
	}
	for i := range after[1:] {
		if after[i].New != after[i+1].Old {
			return ""
		}
	}
	first := after[0]
	within := !moment.Before(first.Begin) // or it began nobody knows when
	switch {
	case !within && (exact || len(after) == 1):
		return first.Old
	case within && exact && !first.Begin.IsZero() && len(after) > 1:
		return first.New
	}
	return ""
}
