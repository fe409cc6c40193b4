package procfs

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// PSS returns the process's proportional set size in bytes: its private memory
// and its share of what it shares, from /proc/PID/smaps_rollup. The kernel
// walks all pages for it: .1 ms for a small process, tens for gigabytes. It
// needs the right to read the process.
func (p *Process) PSS() (pss uint64, err error) {
	err = p.readMemoryFile("smaps_rollup", func(text []byte) (err error) {
		pss, err = ParsePSS(text)
		return err
	})
	return pss, err
}

// ParsePSS finds the Pss line in the text of smaps_rollup.
func ParsePSS(text []byte) (uint64, error) {
	for line := range bytes.Lines(text) {
		if value, found := bytes.CutPrefix(line, []byte("Pss:")); found {
			n := numbers{rest: value}
			pss := n.kilobytes()
			if n.err != nil {
				return 0, fmt.Errorf("parse smaps_rollup: %w", n.err)
			}
			return pss, nil
		}
	}
	return 0, fmt.Errorf("parse smaps_rollup: no Pss line")
}

// Age returns for how long the process has run, suspension of the machine
// included, to a hundredth of a second.
func (p *Process) Age() (time.Duration, error) {
	stat, err := p.Stat()
	if err != nil {
		return 0, err
	}
	boot, err := SinceBoot()
	if err != nil {
		return 0, err
	}
	return stat.Age(boot), nil
}

// Age returns how long ago the process started, given SinceBoot: one reading
// of the clock does for all processes of a list.
func (s *Stat) Age(sinceBoot time.Duration) time.Duration {
	return max(0, sinceBoot-s.Started())
}

// Started returns when the process started, after boot.
func (s *Stat) Started() time.Duration {
	return time.Duration(min(s.StartTicks, 1<<38)) * (time.Second / ClockTicks)
}

// SinceBoot returns the time since boot by the clock that start times are told
// in, CLOCK_BOOTTIME of the reader's time namespace, from /proc/uptime.
func SinceBoot() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, fmt.Errorf("read time since boot: %w", err)
	}
	return parseUptime(text)
}

func parseUptime(text []byte) (time.Duration, error) {
	n := numbers{rest: text}
	whole, hundredths, found := bytes.Cut(n.field(), []byte("."))
	seconds, ok := parseUnsigned(whole, 10)
	part, partOK := parseUnsigned(hundredths, 10)
	if !found || !ok || !partOK || len(hundredths) != 2 || seconds > 1<<32 {
		return 0, fmt.Errorf("read time since boot: %.40q is not a time", text)
	}
	return time.Duration(seconds)*time.Second + time.Duration(part)*10*time.Millisecond, nil
}
