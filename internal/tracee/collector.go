package tracee

import (
	"runtime/debug"
	"sync"
)

// The garbage collector rests while any session is under way: a collection
// would stop the tracing thread while it holds threads of others.
var collector struct {
	sync.Mutex
	holders int
	percent int // the setting to return to
}

// holdCollector keeps the collector from starting until the returned function
// is called.
func holdCollector() (release func()) {
	collector.Lock()
	defer collector.Unlock()
	if collector.holders == 0 {
		collector.percent = debug.SetGCPercent(-1)
	}
	collector.holders++
	return func() {
		collector.Lock()
		defer collector.Unlock()
		collector.holders--
		if collector.holders == 0 {
			debug.SetGCPercent(collector.percent)
		}
	}
}
