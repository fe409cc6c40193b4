package descriptor

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// TestTimerThatHadExpired sets a timer that was periodic and had expired when it was
// looked at: nothing was left of its time, and it goes on.
func TestTimerThatHadExpired(t *testing.T) {
	raw, err := kernel.NewTimer(1)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	for _, test := range []struct {
		timer image.TimerFD
		armed bool
	}{
		{image.TimerFD{Clock: 1, Ticks: 1, Time: image.Interval{Every: time.Hour}}, true},
		{image.TimerFD{Clock: 1, Time: image.Interval{Every: time.Hour}}, false}, // was never armed
		{image.TimerFD{Clock: 1, Ticks: 1}, false},                               // fired once, for the last time
	} {
		if err := setTimer(raw, &test.timer); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", int(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if armed := !strings.Contains(string(text), "it_value: (0, 0)"); armed != test.armed {
			t.Errorf("%+v is set as\n%s", test.timer, text)
		}
	}
}
