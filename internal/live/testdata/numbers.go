//go:build ignore

// Answers each connection by the next number; goroutines, timers and the collector
// are at work.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	var work atomic.Int64
	for range 4 {
		go func() {
			for range time.Tick(time.Millisecond) {
				b := make([]byte, 1<<16)
				b[len(b)-1] = byte(work.Add(1))
				runtime.Gosched()
			}
		}()
	}
	for n := 1; ; n++ {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		before := work.Load()
		b := make([]byte, 100)
		c.Read(b)
		for work.Load() == before {
			time.Sleep(time.Millisecond)
		}
		fmt.Fprintf(c, "%d\n", n)
		c.Close()
	}
}
