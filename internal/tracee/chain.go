package tracee

import (
	"encoding/binary"
	"fmt"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A chain is the way home of a borrowed thread, in scratch memory, with room
// for system calls before it. Nothing of it is code: each call is a signal frame
// that rt_sigreturn loads, with the registers of the call, the instruction
// pointer at `syscall; ret` and the stack pointer at the words that lead on:
//
//	store     mov %rax, (%rbx); pop %rbx; ret — rbx points to the result's word
//	(rbx)
//	sigreturn enters rt_sigreturn with the stack pointer at the next frame
//	frame     of the next call
//
// The first call's registers are set by the tracer. The last call is followed
// by the home tail and the home frame, which bring the thread back to where it
// was borrowed. All frames load the one extended state that stands at the end.
//
//	results | link | link | … | home tail | home frame | extended state | seal
//
// Between two runs a thread is stopped with its stack pointer at the home tail,
// so the links may be written again.
type chain struct {
	gadgets  Gadgets
	results  uint64 // address of maxChain words
	links    uint64
	homeTail uint64
	xstate   uint64
	seal     uint64
	image    []byte // what stands in memory from results up to seal
}

const (
	// maxChain is how many calls fit into one chain; one more tells the tracer.
	maxChain  = 30
	linkWords = 8 // room for store, rbx and the longest tail, 16-byte aligned
	linkBytes = linkWords*8 + ucontextBytes
	homeRoom  = 64
)

// chainBytes is the room that a chain takes with an extended state of n bytes.
func chainBytes(n int) uint64 {
	frames := uint64(8*maxChain + (maxChain+1)*linkBytes + homeRoom + ucontextBytes + xstateAlign + n + 4)
	return (frames + sealBytes + 63) &^ 63
}

// prepareChain writes the way home to memory at start, which is aligned to 64.
func prepareChain(memory *procfs.Memory, gadgets Gadgets, start uint64, h *home) (chain, error) {
	c := chain{gadgets: gadgets, results: start, links: start + 8*maxChain}
	tail := gadgets.tail()
	// The tail ends where the frame begins.
	frameAt := c.links + (maxChain+1)*linkBytes + homeRoom
	c.homeTail = frameAt - uint64(len(tail))
	c.xstate = (frameAt + ucontextBytes + xstateAlign - 1) &^ (xstateAlign - 1)
	c.seal = start + chainBytes(len(h.xstate)) - sealBytes

	xstate, err := encodeXState(h.xstate)
	if err != nil {
		return chain{}, err
	}
	frame := encodeContext(&h.regs, h.mask, c.xstate)
	c.image = make([]byte, c.seal-c.results, c.seal-c.results+sealBytes)
	way := c.image[c.homeTail-c.results:]
	copy(way, tail)
	copy(way[len(tail):], frame[:])
	copy(way[c.xstate-c.homeTail:], xstate)
	// The links are dead memory, or hold what an earlier session left; they are
	// made the image's, so that the seal at the end needs no reading.
	all := append(c.image, encodeSeal(way)...)
	_, err = memory.WriteAt(all, int64(c.results))
	return c, err
}

// finish seals all that the chain has written. The thread must be home.
func (c *chain) finish(memory *procfs.Memory) error {
	_, err := memory.WriteAt(encodeSeal(c.image), int64(c.seal))
	return err
}

// reserve says in the seal that ways home of other threads follow it, of so many bytes,
// until finish. The thread must be home.
func (c *chain) reserve(memory *procfs.Memory, bytes uint64) error {
	seal := encodeSeal(c.image[c.homeTail-c.results:])
	binary.LittleEndian.PutUint32(seal[sealBeyond:], uint32(bytes/beyondUnit))
	_, err := memory.WriteAt(seal, int64(c.seal))
	return err
}

// again writes another way home, of as many bytes, where the chain has had one in this
// session: the rest of what stands there is known.
func (c *chain) again(memory *procfs.Memory, h *home) error {
	xstate, err := encodeXState(h.xstate)
	if err != nil {
		return err
	}
	frame := encodeContext(&h.regs, h.mask, c.xstate)
	way := c.image[c.homeTail-c.results:]
	copy(way[len(c.gadgets.tail()):], frame[:])
	copy(way[c.xstate-c.homeTail:], xstate)
	_, err = memory.WriteAt(append(c.image, encodeSeal(way)...)[c.homeTail-c.results:], int64(c.homeTail))
	return err
}

// readResults reads what the calls returned.
func (c *chain) readResults(memory *procfs.Memory, results []uint64) error {
	words := c.image[:8*len(results)]
	if _, err := memory.ReadAt(words, int64(c.results)); err != nil {
		return err
	}
	for i := range results {
		results[i] = binary.LittleEndian.Uint64(words[8*i:])
	}
	return nil
}

// registers returns base changed so that it makes the call and then pops the
// words at stack.
func (c Call) registers(base *kernel.Registers, syscallAt, stack uint64) kernel.Registers {
	regs := *base
	regs.RIP, regs.RSP = syscallAt, stack
	regs.RAX, regs.OrigRAX = c.Number, outsideSyscall
	regs.RDI, regs.RSI, regs.RDX = c.Args[0], c.Args[1], c.Args[2]
	regs.R10, regs.R8, regs.R9 = c.Args[3], c.Args[4], c.Args[5]
	regs.Flags &^= flagsToClear
	return regs
}

// write puts calls into the links and returns the registers of the first. The
// last one's result is not kept: it leads home.
func (c *chain) write(memory *procfs.Memory, calls []Call, base *kernel.Registers, mask uint64) (kernel.Registers, error) {
	return c.writeLinks(memory, calls, base, mask, true)
}

// writeOnly is write where no result is stored.
func (c *chain) writeOnly(memory *procfs.Memory, calls []Call, base *kernel.Registers, mask uint64) (kernel.Registers, error) {
	return c.writeLinks(memory, calls, base, mask, false)
}

func (c *chain) writeLinks(memory *procfs.Memory, calls []Call, base *kernel.Registers, mask uint64, store bool) (kernel.Registers, error) {
	if len(calls) == 0 || len(calls) > maxChain+1 {
		return kernel.Registers{}, fmt.Errorf("chain %d system calls: at most %d fit", len(calls), maxChain)
	}
	// A link holds the tail of call i, up to the frame of call i+1.
	onwards := c.gadgets.tail()
	image := make([]byte, 0, len(calls)*linkBytes)
	var first kernel.Registers
	for i, call := range calls {
		stack := c.homeTail
		if i < len(calls)-1 {
			stack = c.links + uint64(i*linkBytes) + uint64(linkWords*8-len(onwards))
			if store {
				stack -= storeBytes
			}
		}
		regs := call.registers(base, c.gadgets.Syscall, stack)
		if store {
			regs.RBX = c.results + uint64(8*i) - uint64(int64(c.gadgets.StoreAt))
		}
		if i == 0 {
			first = regs
		} else {
			frame := encodeContext(&regs, mask, c.xstate)
			image = append(image, frame[:]...)
		}
		if i < len(calls)-1 {
			image = append(image, make([]byte, linkWords*8-len(onwards)-storeBytes)...)
			image = binary.LittleEndian.AppendUint64(image, c.gadgets.Store)
			image = binary.LittleEndian.AppendUint64(image, 0)
			image = append(image, onwards...)
		}
	}
	if len(image) == 0 {
		return first, nil
	}
	copy(c.image[c.links-c.results:], image)
	_, err := memory.WriteAt(image, int64(c.links))
	return first, err
}

// The words before the home tail store a result on the way home: the second of
// results. They are there for function calls alone.
const storeBytes = 16

func (c *chain) writeStore(memory *procfs.Memory) error {
	at := c.homeTail - storeBytes
	words := c.image[at-c.results : c.homeTail-c.results]
	binary.LittleEndian.PutUint64(words, c.gadgets.Store)
	binary.LittleEndian.PutUint64(words[8:], 0)
	_, err := memory.WriteAt(words, int64(at))
	return err
}

// storing returns base changed so that it makes the call and stores its result on
// the way home.
func (c *chain) storing(call Call, base *kernel.Registers, syscallAt uint64) kernel.Registers {
	regs := call.registers(base, syscallAt, c.homeTail-storeBytes)
	regs.RBX = c.results + 8 - uint64(int64(c.gadgets.StoreAt))
	return regs
}

// setPending marks that the thread is within a function. Any way home from the
// registers of storing takes the mark away.
func (c *chain) setPending(memory *procfs.Memory, tid uint64) error {
	_, err := memory.WriteAt(binary.LittleEndian.AppendUint64(nil, pendingMagic|tid), int64(c.results+8))
	return err
}

func (c *chain) clearPending(memory *procfs.Memory) error {
	if _, err := memory.WriteAt(make([]byte, 8), int64(c.results+8)); err != nil {
		return err
	}
	_, err := memory.ReadAt(c.image[:16], int64(c.results))
	return err
}
