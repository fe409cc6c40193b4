package testbed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A Sound is a gst-launch-1.0 that makes a square wave as long as it runs, and in
// time: 441 Hz in 44,100 samples a second. All samples are checked.
type Sound struct {
	child  *child
	errors *lastOutput
	folder string

	mu      sync.Mutex
	rest    []byte // half a sample
	samples int64
	run     int  // samples of one sign in a row
	up      bool // that sign
	level   int  // of the last sample
	levels  map[int]bool
	wrong   error // the first thing that was wrong
}

// StartSound starts it with the plug-ins of a folder, libgstaudiotestsrc.so and
// libgstcoreelements.so, and waits for the first samples. The caller ends it.
func StartSound(ctx context.Context, plugins string) (*Sound, error) {
	program, err := findProgram("gst-launch-1.0")
	if err != nil {
		return nil, fmt.Errorf("start a sound: %w", err)
	}
	s := &Sound{errors: &lastOutput{}, levels: make(map[int]bool)}
	if s.folder, err = os.MkdirTemp("", "vos-sound-"); err != nil {
		return nil, fmt.Errorf("start a sound: %w", err)
	}
	cmd := exec.Command(program, "-q", "audiotestsrc", "is-live=true", "wave=square", "volume=0.5", "freq=441",
		"!", "audio/x-raw,format=S16LE,rate=44100,channels=1", "!", "fdsink", "fd=1")
	cmd.Env = append(os.Environ(), "GST_PLUGIN_SYSTEM_PATH="+plugins, "GST_REGISTRY="+filepath.Join(s.folder, "registry"), "GST_REGISTRY_FORK=no")
	cmd.Stdout, cmd.Stderr = s, s.errors
	if s.child, err = startChild(cmd); err == nil {
		_, err = s.Level(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a sound: %w", err), s.end())
	}
	return s, nil
}

// RunSound is [StartSound] for the length of a test, at whose end it must still
// run, and have been right.
func RunSound(tb TB, plugins string) *Sound {
	tb.Helper()
	s, err := StartSound(context.WithoutCancel(tb.Context()), plugins)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return s
}

// Write implements io.Writer: it takes samples of 16 bits.
func (s *Sound) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, p...)
	for ; len(s.rest) >= 2; s.rest = s.rest[2:] {
		sample := int(int16(binary.LittleEndian.Uint16(s.rest)))
		if up := sample > 0; up == s.up {
			s.run++
		} else {
			// A period has 100 samples, more or less one by rounding; the first may be cut.
			if s.samples > 100 && (s.run < 49 || s.run > 51) && s.wrong == nil {
				s.wrong = fmt.Errorf("%d samples of one sign before sample %d: %w", s.run, s.samples, errWrong)
			}
			s.run, s.up = 1, up
		}
		s.samples, s.level = s.samples+1, max(sample, -sample)
		s.levels[s.level] = true
	}
	s.rest = slices.Clone(s.rest)
	return len(p), nil
}

// Pid returns the process id.
func (s *Sound) Pid() int { return s.child.pid() }

// Level waits for a fifth of a second of sound, and returns how loud it is then.
func (s *Sound) Level(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	look := func() (int64, int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.samples, s.level
	}
	for before, _ := look(); ; {
		if now, level := look(); now >= before+44100/5 {
			return level, nil
		}
		select {
		case <-s.child.done:
			return 0, fmt.Errorf("gst-launch-1.0 %d ended: %v: %s", s.Pid(), s.child.err, s.errors)
		case <-ctx.Done():
			return 0, fmt.Errorf("gst-launch-1.0 %d: %w: %s", s.Pid(), ctx.Err(), s.errors)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Levels returns how loud it was, each once, the softest first; an error if the
// wave was not what it should be.
func (s *Sound) Levels() ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.levels)), s.wrong
}

// Stop ends it. Having ended before, or a wrong wave, is an error.
func (s *Sound) Stop() error {
	var lost error
	select {
	case <-s.child.done:
		lost = fmt.Errorf("gst-launch-1.0 %d had ended before: %v: %s", s.Pid(), s.child.err, s.errors)
	default:
	}
	_, wrong := s.Levels()
	return errors.Join(lost, wrong, s.end())
}

func (s *Sound) end() error {
	if s.child != nil {
		s.child.kill()
		s.child.endGroup()
	}
	return os.RemoveAll(s.folder)
}
