// Takes messages of 8 bytes from a connection, as the fixture redirect does, in a
// program whose runtime listens to all signals. It speaks the protocol of report.h.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
)

var (
	mu     sync.Mutex
	errors int
	first  string
	count  [4]int
	next   [4]int
)

func wrong(format string, args ...any) {
	if errors++; errors == 1 {
		first = fmt.Sprintf(format, args...)
	}
}

func take(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		mu.Lock()
		if err != nil {
			wrong("%v", err)
			mu.Unlock()
			return
		}
		letter := int(line[0] - 'A')
		n, err := strconv.Atoi(line[1 : len(line)-1])
		if err != nil || len(line) != 8 || letter < 0 || letter >= len(count) || n != 0 && n != next[letter] {
			wrong("%.20q", line)
		} else {
			count[letter]++
			next[letter] = n + 1
		}
		mu.Unlock()
	}
}

func main() {
	c, err := net.Dial("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		os.Exit(2)
	}
	fd := uintptr(0)
	if raw.Control(func(own uintptr) { fd = own }) != nil {
		os.Exit(2)
	}
	go take(c)
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "quit" {
			os.Exit(0)
		}
		mu.Lock()
		fmt.Printf(`{"fixture":"redirected.go","errors":%d,"error":%q,"progress":%d,"counts":{"go.fd":%d,"go.A":%d,"go.B":%d,"go.C":%d}}`+"\n",
			errors, first, count[0]+count[1]+count[2], fd, count[0], count[1], count[2])
		mu.Unlock()
	}
	os.Exit(3)
}
