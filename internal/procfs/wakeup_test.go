package procfs

import (
	"reflect"
	"testing"
)

func TestParseWakeups(t *testing.T) {
	const text = `Timer List Version: v0.10
now at 46648320739242 nsecs

cpu: 0
 clock 0:
  .base:       00000000e356c769
  .index:      0
active timers:
 #0: <00000000753865d4>, hrtimer_wakeup, S:01
 # expires at 46648321211005-46648321261005 nsecs [in 471763 to 521763 nsecs]
 #1: <00000000d0aa04db>, tick_nohz_handler, S:01
 # expires at 46648324000000-46648324000000 nsecs [in 3260758 to 3260758 nsecs]
 clock 1:
  .index:      1
active timers:
 #0: <0000000000000001>, hrtimer_wakeup, S:01
 # expires at 1-2 nsecs [in 471763 to 521763 nsecs]
 clock 4:
active timers:
 #0: <ffffffff00000002>, hrtimer_wakeup, S:01
 # expires at 7-7 nsecs [in -5 to -5 nsecs]
  .expires_next   : 46753596000000 nsecs
`
	got, err := parseWakeups([]byte(text))
	want := []Wakeup{{Timer: 0x753865d4, At: 46648321211005}, {Timer: 0xffffffff00000002, At: 7}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{
		" clock 0:\n #0: <x>, hrtimer_wakeup, S:01\n",
		" clock 0:\n #0: <1>, hrtimer_wakeup, S:01\n # expires at x-y nsecs\n",
	} {
		if _, err := parseWakeups([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}
