package dpkg

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An Upgrade is one version of a package taking the place of another. A
// reinstallation is one too, with the same version twice.
type Upgrade struct {
	Time         time.Time // when it began, to the second
	Name         string
	Architecture string // "" in the log of an old dpkg
	Old, New     string
}

// A Log is what dpkg's log, the rotated parts included, tells about upgrades.
type Log struct {
	upgrades []Upgrade // by time
	first    time.Time // of the log's lines
	rotated  bool      // parts may have been thrown away: nothing is known of before first
}

// Log reads dpkg's log. Where one part of it can't be read there is an error
// and no log: what is missing could be the very line that matters. A log that
// is not there is empty.
func (d *Database) Log() (*Log, error) {
	entries, err := fs.ReadDir(d.root, logFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list dpkg's logs: %w", err)
	}
	type part struct {
		name string
		age  int // 0 is the newest
	}
	var parts []part
	for _, entry := range entries {
		if age, ok := logAge(entry.Name()); ok {
			parts = append(parts, part{entry.Name(), age})
		}
	}
	if len(parts) > mostLogs {
		return nil, fmt.Errorf("list dpkg's logs: %d parts: %w", len(parts), ErrTooLarge)
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Or(b.age-a.age, strings.Compare(a.name, b.name)) })
	zone := d.zone()
	l := &Log{rotated: len(parts) > 1}
	for _, p := range parts {
		text, err := d.readLog(p.name)
		if err != nil {
			return nil, err
		}
		l.add(text, zone)
	}
	// Clocks are set back, and parts overlap.
	slices.SortStableFunc(l.upgrades, func(a, b Upgrade) int { return a.Time.Compare(b.Time) })
	return l, nil
}

// logAge tells a part of the log by its name, as logrotate(8) gives them:
// dpkg.log, dpkg.log.1, dpkg.log.2.gz.
func logAge(name string) (age int, ok bool) {
	rest, ok := strings.CutPrefix(name, "dpkg.log")
	if !ok || rest == "" {
		return 0, ok
	}
	number, dotted := strings.CutPrefix(strings.TrimSuffix(rest, ".gz"), ".")
	age, err := strconv.Atoi(number)
	return age, dotted && err == nil && age > 0
}

func (d *Database) readLog(name string) ([]byte, error) {
	file, err := d.root.Open(logFolder + "/" + name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if !strings.HasSuffix(name, ".gz") {
		return readBounded(file, name, nil, mostList)
	}
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	return readBounded(unpacked, name, nil, mostList)
}

// zone returns the time zone that the machine below the root writes its log in.
func (d *Database) zone() *time.Location {
	text, err := d.read("etc/localtime", nil, mostZone)
	if err != nil {
		return time.UTC // as the C library does
	}
	zone, err := time.LoadLocationFromTZData("", text)
	if err != nil {
		return time.UTC
	}
	return zone
}

// logTime is how a line of the log begins.
const logTime = "2006-01-02 15:04:05"

var upgrade = []byte(" upgrade ")

func (l *Log) add(text []byte, zone *time.Location) {
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		isUpgrade := len(line) > len(logTime) && bytes.HasPrefix(line[len(logTime):], upgrade)
		if !isUpgrade && !l.first.IsZero() || len(line) < len(logTime) {
			continue
		}
		at, err := time.ParseInLocation(logTime, string(line[:len(logTime)]), zone)
		if err != nil {
			continue
		}
		if l.first.IsZero() || at.Before(l.first) {
			l.first = at
		}
		if !isUpgrade {
			continue
		}
		fields := strings.Fields(string(line[len(logTime)+len(upgrade):]))
		if len(fields) != 3 {
			continue
		}
		u := Upgrade{Time: at, Old: fields[1], New: fields[2]}
		u.Name, u.Architecture, _ = strings.Cut(fields[0], ":")
		if validName(u.Name) && validVersion(u.Old) && validVersion(u.New) {
			l.upgrades = append(l.upgrades, u)
		}
	}
}

// Since returns the upgrades of a package after a moment, in their order. It is
// false where the log does not reach back to it.
func (l *Log) Since(p Package, moment time.Time) (upgrades []Upgrade, known bool) {
	if l.rotated && moment.Before(l.first) {
		return nil, false
	}
	for _, u := range l.upgrades {
		if u.Name == p.Name && u.Time.After(moment) &&
			(u.Architecture == "" || p.Architecture == "" || u.Architecture == p.Architecture) {
			upgrades = append(upgrades, u)
		}
	}
	return upgrades, true
}
