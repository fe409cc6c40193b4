package tracee

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// The garbage collector rests while any session is under way: a collection
// would stop the tracing thread while it holds threads of others.
var collector struct {
	sync.Mutex
	holders int
	percent int   // the setting to return to
	limit   int64 // likewise
}

// collectorRoom is how much may be allocated, beyond what there is, until it works all
// the same.
const collectorRoom = 256 << 20

// RestCollector lets the garbage collector rest until the returned function is called:
// what takes some milliseconds is not worth a collection, which takes one of them.
func RestCollector() (release func()) {
	collector.Lock()
	defer collector.Unlock()
	if collector.holders == 0 {
		used := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
		metrics.Read(used)
		collector.limit = debug.SetMemoryLimit(-1) // which asks
		debug.SetMemoryLimit(min(collector.limit, int64(used[0].Value.Uint64())+collectorRoom))
		collector.percent = debug.SetGCPercent(-1)
	}
	collector.holders++
	return func() {
		collector.Lock()
		defer collector.Unlock()
		collector.holders--
		if collector.holders == 0 {
			debug.SetMemoryLimit(collector.limit)
			debug.SetGCPercent(collector.percent)
		}
	}
}
