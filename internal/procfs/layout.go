package procfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// A Layout is what the kernel knows of an address space beside its mappings,
// proc_pid_stat(5): addresses, 0 where one may not read them.
type Layout struct {
	StartCode, EndCode, StartData, EndData uint64
	StartBreak, StartStack                 uint64
	ArgStart, ArgEnd, EnvStart, EnvEnd     uint64
}

// Layout reads the addresses in /proc/PID/stat. It needs the right to read the process.
func (p *Process) Layout() (l Layout, err error) {
	err = p.read("stat", func(text []byte) (err error) {
		l, err = parseLayout(text)
		return err
	})
	return l, err
}

func parseLayout(text []byte) (Layout, error) {
	// The numbers of proc_pid_stat(5) are counted from 1; the state is the third.
	const state = 3
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	var err error
	at := func(number int) uint64 {
		if number-state >= len(fields) {
			err = fmt.Errorf("parse stat: %d fields are too few", len(fields))
			return 0
		}
		v, ok := parseUnsigned(fields[number-state], 10)
		if !ok {
			err = fmt.Errorf("parse stat: %.40q is not a number", fields[number-state])
		}
		return v
	}
	l := Layout{
		StartCode: at(26), EndCode: at(27), StartStack: at(28), StartData: at(45), EndData: at(46), StartBreak: at(47),
		ArgStart: at(48), ArgEnd: at(49), EnvStart: at(50), EnvEnd: at(51),
	}
	return l, err
}

// MappingFlags returns the flags of each mapping, by its first address, as smaps names
// them: "rd", "wr", "dc" …, and "pk" for one with a protection key. It needs the right to read the process, and takes a while
// of one with much memory.
func (p *Process) MappingFlags() (flags map[uint64][]string, err error) {
	err = p.readMemoryFile("smaps", func(text []byte) (err error) {
		flags, err = parseMappingFlags(text)
		return err
	})
	return flags, err
}

func parseMappingFlags(text []byte) (map[uint64][]string, error) {
	flags := make(map[uint64][]string)
	known := make(map[string][]string) // by their text: most mappings have the same as others
	start := uint64(0)
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		// Keys have a capital first; a mapping's line begins with its address.
		switch {
		case len(line) == 0:
		case bytes.HasPrefix(line, []byte("VmFlags:")):
			rest := line[len("VmFlags:"):]
			fields, found := known[string(rest)]
			if !found {
				fields = strings.Fields(string(rest))
				known[string(rest)] = fields
			}
			flags[start] = append(flags[start], fields...)
		case bytes.HasPrefix(line, []byte("ProtectionKey:")):
			if string(bytes.TrimSpace(line[len("ProtectionKey:"):])) != "0" {
				flags[start] = append(flags[start], "pk")
			}
		case bytes.HasPrefix(line, []byte("KernelPageSize:")):
			if string(bytes.TrimSpace(line[len("KernelPageSize:"):])) == "1048576 kB" {
				flags[start] = append(flags[start], "gigantic")
			}
		case line[0] < 'A' || line[0] > 'Z':
			address, _, found := bytes.Cut(line, []byte("-"))
			if !found || len(address) == 0 {
				continue
			}
			v, ok := parseUnsigned(address, 16)
			if !ok {
				return nil, fmt.Errorf("parse smaps: %.60q", line)
			}
			start = v
		}
	}
	return flags, nil
}

// MemoryPolicies returns the first addresses of mappings with a memory policy of their
// own, mbind(2), each with the policy as numa_maps tells it. A kernel without such has
// none.
func (p *Process) MemoryPolicies() (policies map[uint64]string, err error) {
	err = p.readMemoryFile("numa_maps", func(text []byte) (err error) {
		policies, err = parseMemoryPolicies(text)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) && p.Alive() {
		return nil, nil
	}
	return policies, err
}

func parseMemoryPolicies(text []byte) (map[uint64]string, error) {
	policies := make(map[uint64]string)
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			return nil, fmt.Errorf("parse numa_maps: %.60q", line)
		}
		start, ok := parseUnsigned([]byte(fields[0]), 16)
		if !ok {
			return nil, fmt.Errorf("parse numa_maps: %.60q", line)
		}
		if fields[1] != "default" {
			policies[start] = fields[1]
		}
	}
	return policies, nil
}

// Limits are the resource limits of a process by their RLIMIT_ number, each soft and
// hard; ^0 is unlimited.
type Limits [16][2]uint64

// limitNames are the names of proc_pid_limits(5), by number.
var limitNames = [...]string{
	"cpu time", "file size", "data size", "stack size", "core file size", "resident set", "processes", "open files",
	"locked memory", "address space", "file locks", "pending signals", "msgqueue size", "nice priority",
	"realtime priority", "realtime timeout",
}

// Limits reads /proc/PID/limits. Anyone may.
func (p *Process) Limits() (l Limits, err error) {
	err = p.read("limits", func(text []byte) (err error) {
		l, err = parseLimits(text)
		return err
	})
	return l, err
}

func parseLimits(text []byte) (l Limits, err error) {
	found := 0
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("Max "))
		if !ok {
			continue
		}
		n := slices.IndexFunc(limitNames[:], func(name string) bool { return bytes.HasPrefix(rest, []byte(name+" ")) })
		if n < 0 {
			continue // newer than this list
		}
		fields := bytes.Fields(rest[len(limitNames[n]):])
		if len(fields) < 2 {
			return l, fmt.Errorf("parse limits: %.60q", line)
		}
		for i := range 2 {
			if string(fields[i]) == "unlimited" {
				l[n][i] = ^uint64(0)
				continue
			}
			if l[n][i], ok = parseUnsigned(fields[i], 10); !ok {
				return l, fmt.Errorf("parse limits: %.60q", line)
			}
		}
		found++
	}
	if found != len(limitNames) {
		return l, fmt.Errorf("parse limits: %d of %d are there", found, len(limitNames))
	}
	return l, nil
}

// AuxvWords reads the auxiliary vector as it is: pairs of words, with the AT_NULL at
// its end.
func (p *Process) AuxvWords() (words []uint64, err error) {
	err = p.readMemoryFile("auxv", func(text []byte) error {
		words = words[:0]
		for len(text) >= 16 {
			kind, value := binary.LittleEndian.Uint64(text), binary.LittleEndian.Uint64(text[8:])
			words = append(words, kind, value)
			if kind == 0 {
				return nil
			}
			text = text[16:]
		}
		return fmt.Errorf("parse auxv: it does not end in AT_NULL")
	})
	return words, err
}

// Directory reads the link to the current directory: a path from the root directory of
// the reader.
func (p *Process) Directory() (string, error) {
	link, err := p.readSharedLink("cwd")
	if err != nil {
		return "", p.failed("read current directory of", err)
	}
	return link, nil
}

// OOMScoreAdjust reads /proc/PID/oom_score_adj: -1000 to 1000.
func (p *Process) OOMScoreAdjust() (n int, err error) {
	err = p.read("oom_score_adj", func(text []byte) (err error) {
		n, err = strconv.Atoi(string(bytes.TrimSpace(text)))
		return err
	})
	return n, err
}

// A Timer is one of timer_create(2), as /proc/PID/timers tells it.
type Timer struct {
	ID     int
	Signal int
	Value  uint64 // sigev_value
	Notify int    // SIGEV_…
	Thread int    // that gets the signal of SIGEV_THREAD_ID
	Clock  int
}

// Timers reads /proc/PID/timers, proc_pid_timers(5), by ascending id. A kernel without it
// (CONFIG_CHECKPOINT_RESTORE) says fs.ErrNotExist.
func (p *Process) Timers() (all []Timer, err error) {
	err = p.read("timers", func(text []byte) (err error) {
		all, err = parseTimers(text)
		return err
	})
	return all, err
}

func parseTimers(text []byte) (all []Timer, err error) {
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		if key == "ID" {
			all = append(all, Timer{})
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("parse timers: %.60q", line)
		}
		t := &all[len(all)-1]
		switch key {
		case "ID":
			t.ID, err = strconv.Atoi(value)
		case "signal":
			number, pointer, _ := strings.Cut(value, "/")
			if t.Signal, err = strconv.Atoi(number); err == nil {
				t.Value, err = strconv.ParseUint(strings.TrimPrefix(pointer, "0x"), 16, 64)
			}
		case "notify":
			how, who, _ := strings.Cut(value, "/")
			kind, id, _ := strings.Cut(who, ".")
			if t.Thread, err = strconv.Atoi(id); err == nil {
				t.Notify = map[string]int{"signal": 0, "none": 1, "thread": 2}[how]
			}
			if kind == "tid" {
				t.Notify |= 4 // SIGEV_THREAD_ID
			} else {
				t.Thread = 0
			}
		case "ClockID":
			t.Clock, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, fmt.Errorf("parse timers: %.60q: %w", line, err)
		}
	}
	// The kernel's order is its own: the newest may come first.
	slices.SortStableFunc(all, func(a, b Timer) int { return a.ID - b.ID })
	return all, nil
}
