package procfs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Wakeup is a timer of the kernel at whose end a thread that waits is woken. Which
// thread that is the kernel does not tell.
type Wakeup struct {
	Timer uint64        // tells timers apart: a hash of its address
	At    time.Duration // on CLOCK_MONOTONIC
}

// Wakeups returns the timers of this kind that run, on all CPUs, by CLOCK_MONOTONIC:
// /proc/timer_list, which only root may read. While it is written others come and go:
// one that runs all the time may be left out where others end meanwhile.
func Wakeups() ([]Wakeup, error) {
	text, err := os.ReadFile("/proc/timer_list")
	if err != nil {
		return nil, fmt.Errorf("list timers: %w", err)
	}
	return parseWakeups(text)
}

// Clocks of timer_list that are CLOCK_MONOTONIC: for timers that end in the interrupt,
// and soon after it.
const (
	monotonicHard = "0"
	monotonicSoft = "4"
)

func parseWakeups(text []byte) (all []Wakeup, err error) {
	clock := ""
	timer, wanted := uint64(0), false
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		switch {
		case len(fields) < 2:
		case fields[0] == "clock":
			clock = strings.TrimSuffix(fields[1], ":")
		case len(fields) >= 3 && strings.HasPrefix(fields[0], "#") && strings.HasPrefix(fields[1], "<"):
			// #0: <00000000753865d4>, hrtimer_wakeup, S:01
			wanted = (clock == monotonicHard || clock == monotonicSoft) && fields[2] == "hrtimer_wakeup,"
			if wanted {
				timer, err = strconv.ParseUint(strings.Trim(fields[1], "<>,"), 16, 64)
			}
		case wanted && len(fields) >= 4 && fields[1] == "expires":
			// # expires at 46648321211005-46648321261005 nsecs [in …
			wanted = false
			first, _, _ := strings.Cut(fields[3], "-")
			at, failed := strconv.ParseInt(first, 10, 64)
			all, err = append(all, Wakeup{Timer: timer, At: time.Duration(at)}), failed
		}
		if err != nil {
			return nil, fmt.Errorf("list timers: %.100q: %w", line, err)
		}
	}
	return all, nil
}
