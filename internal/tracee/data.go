package tracee

import "fmt"

// Data puts up to maxData bytes where system calls of the session can read them,
// and returns their address. They hold until the next Data. What a system call writes
// there is to be put by Data again, so that the session knows all that it leaves.
func (s *Session) Data(data []byte) (uint64, error) {
	b := s.borrowed
	if b == nil {
		return 0, errThreadLost
	}
	if len(data) > maxData {
		return 0, fmt.Errorf("pass %d bytes to a system call: at most %d fit", len(data), maxData)
	}
	// Of maxChain+1 links a full chain leaves the last one free: the call that
	// leads home needs none.
	at := b.chain.links + maxChain*linkBytes
	copy(b.chain.image[at-b.chain.results:], data)
	_, err := s.memory.WriteAt(data, int64(at))
	return at, err
}

const maxData = linkBytes
