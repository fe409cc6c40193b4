package kernel

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// ThreadID returns the calling OS thread's id.
func ThreadID() int { return unix.Gettid() }

// OnOwnThread runs f on an OS thread of its own and returns when f has returned
// and the thread has ended, and with it all that the thread traced.
func OnOwnThread(f func()) {
	ended := make(chan int, 1)
	go func() {
		// Never unlocked, so the thread ends with this goroutine. The main
		// thread does not end, so it is held while another one is taken.
		runtime.LockOSThread()
		if ThreadID() == os.Getpid() {
			OnOwnThread(f)
			runtime.UnlockOSThread()
			ended <- 0
			return
		}
		defer func() { ended <- ThreadID() }()
		f()
	}()
	if tid := <-ended; tid != 0 {
		awaitThreadEnd(tid)
	}
}

func awaitThreadEnd(tid int) {
	path := fmt.Sprintf("/proc/self/task/%d", tid)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(20 * time.Microsecond) {
		if _, err := os.Lstat(path); err != nil {
			return
		}
	}
}
