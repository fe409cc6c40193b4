package cli

import (
	"fmt"
	"strconv"
	"time"
)

// byteSize formats a number of bytes with a binary unit: 812 B, 12.3 MiB.
func byteSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	// 1023.5 would round to 1024: the next unit reads better.
	for v >= 1023.5 && unit < len(byteUnits)-1 {
		v /= 1024
		unit++
	}
	if v < 99.95 {
		return fmt.Sprintf("%.1f %s", v, byteUnits[unit])
	}
	return fmt.Sprintf("%.0f %s", v, byteUnits[unit])
}

var byteUnits = []string{"KiB", "MiB", "GiB", "TiB", "PiB"}

// age formats a time in milliseconds by its two largest units: 42s, 5m3s, 3d4h.
func age(ms int64) string {
	seconds := max(ms, 0) / 1000
	units := []struct {
		name    string
		seconds int64
	}{{"y", 365 * 86400}, {"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}
	for i, u := range units[:len(units)-1] {
		if seconds < u.seconds {
			continue
		}
		text := strconv.FormatInt(seconds/u.seconds, 10) + u.name
		next := units[i+1]
		if rest := seconds % u.seconds / next.seconds; rest > 0 {
			text += strconv.FormatInt(rest, 10) + next.name
		}
		return text
	}
	return strconv.FormatInt(seconds, 10) + "s"
}

// pause formats a time in microseconds: 81 µs, 1.9 ms, 2.1 s.
func pause(us int64) string {
	switch d := time.Duration(us) * time.Microsecond; {
	case us < 1000:
		return fmt.Sprintf("%d µs", us)
	case us < 99_950:
		return fmt.Sprintf("%.1f ms", float64(us)/1e3)
	case us < 999_500:
		return fmt.Sprintf("%.0f ms", float64(us)/1e3)
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return age(d.Milliseconds())
	}
}

// pauseOrNone is pause for a cell of a table, where no time at all is a dash.
func pauseOrNone(us int64) string {
	if us == 0 {
		return "-"
	}
	return pause(us)
}

// count formats a number of things: 1 module, 3 modules, 2 processes.
func count(n int, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case thing == "process":
		return strconv.Itoa(n) + " processes"
	default:
		return strconv.Itoa(n) + " " + thing + "s"
	}
}
