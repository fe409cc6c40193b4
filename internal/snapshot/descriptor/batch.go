package descriptor

import (
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A batch is system calls in a process whose results are known beforehand. What
// fails is told by run.
type batch struct {
	process remote.Process
	calls   []tracee.Call
	data    map[int][]argument // by call
	next    []argument         // of the call that is added next
	want    []uint64
}

// An argument is data that a call is given the address of.
type argument struct {
	token uint64
	data  []byte
}

// token is where those of place begin: no address, and no other argument.
const token uint64 = 1 << 63

// place returns what stands for the address of data in the next call that is added.
func (b *batch) place(data []byte) uint64 {
	at := token + uint64(len(b.next))
	b.next = append(b.next, argument{at, data})
	return at
}

// add adds a call that returns 0.
func (b *batch) add(number uint64, args ...uint64) { b.returns(0, number, args...) }

// returns adds a call that returns want.
func (b *batch) returns(want uint64, number uint64, args ...uint64) {
	c := tracee.Call{Number: number}
	copy(c.Args[:], args)
	if b.next != nil {
		if b.data == nil {
			b.data = map[int][]argument{}
		}
		b.data[len(b.calls)], b.next = b.next, nil
	}
	b.calls, b.want = append(b.calls, c), append(b.want, want)
}

// run makes the calls, as many at a time as there is room for their data.
func (b *batch) run() error {
	for at := 0; at < len(b.calls); {
		end := at
		for ; end < len(b.calls); end++ {
			if err := b.fill(end); err != nil {
				if errors.Is(err, remote.ErrNoRoom) && end > at {
					break
				}
				return err
			}
		}
		results, err := b.process.Run(b.calls[at:end])
		if err != nil {
			return err
		}
		for i, result := range results {
			if c := b.calls[at+i]; result != b.want[at+i] {
				return errors.Join(c.Err(result), fmt.Errorf("system call %d returned %d, not %d", c.Number, int64(result), b.want[at+i]))
			}
		}
		at = end
	}
	return nil
}

// fill places the data of a call.
func (b *batch) fill(i int) error {
	args := b.calls[i].Args
	for _, a := range b.data[i] {
		at, err := b.process.Place(a.data)
		if err != nil {
			return err
		}
		for j := range args {
			if args[j] == a.token {
				args[j] = at
			}
		}
	}
	b.calls[i].Args = args
	return nil
}
