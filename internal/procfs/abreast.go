package procfs

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// fewThreads are read as fast by one goroutine.
const fewThreads = 8

// Abreast calls f with each number below n, some of them at the same time: what /proc
// tells of a thread takes about as long as a switch to another goroutine, and programs
// have many threads. The calling goroutine takes part; it never waits for others to
// begin. Its error is the first; some numbers may have been left out then.
func Abreast(n int, f func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	work := func() error {
		for !failed.Load() {
			i := int(next.Add(1)) - 1
			if i >= n {
				return nil
			}
			if err := f(i); err != nil {
				failed.Store(true)
				return err
			}
		}
		return nil
	}
	if n < fewThreads || runtime.GOMAXPROCS(0) == 1 {
		return work()
	}
	var all sync.WaitGroup
	var others error
	begun := make(chan struct{}, 1)
	all.Add(1)
	go func() {
		defer all.Done()
		select {
		case begun <- struct{}{}:
			others = work()
		default: // all is done already
		}
	}()
	err := work()
	select {
	case begun <- struct{}{}: // the other one never began, and need not any more
		return err
	default:
	}
	all.Wait()
	if err == nil {
		err = others
	}
	return err
}
