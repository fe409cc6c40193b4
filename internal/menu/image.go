package menu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// version is that of the layout below. Another one is not touched.
const version = 1

// The header, at the begin of the first page: 8-byte words.
const (
	headMagic = 8 * iota
	headVersion
	headSize  // of the whole mapping
	headState // offset of the state page, the last one
	headIdle  // offset of what the main loop calls
	headTail  // the instructions of it behind the count of those inside,
	headTailEnd
	headGone // and of what finalizing a closure calls
	headGoneEnd
	headerSize
)

// The state page: 8-byte words.
const (
	stateRequest   = 8 * iota // written by vOS, taken by the code
	stateQueued               // number of the last request that vOS has queued
	stateRan                  // number of the last one that the main loop has run
	stateInside               // how many calls of it are under way
	stateBars                 // menu bars that the last request saw
	stateItems                // of these, with the item
	stateChanged              // added, removed or shown
	stateConnected            // closures made
	stateGone                 // closures finalized
	stateOperation            // what follows are the code's own
	stateItem
	stateBarType
	stateContainerType
	stateSignal // GtkWidget::map
	stateHook   // of it, 0 where there is none
	stateWords
	stateText    = 512 // a text to show, ended by a zero
	maxTextBytes = procfs.PageSize - stateText - 1
)

// Requests.
const (
	requestNone = iota
	requestAdd
	requestRemove
	requestShow
)

var magic = [8]byte{'v', 'O', 'S', 'm', 'e', 'n', 'u', 0}

// maxSize is more than any menu takes.
const maxSize = 64 << 10

// errNotMenu is that a mapping of a menu's name is not what vOS would have made.
var errNotMenu = errors.New("not a menu of this vos")

// A header is what a mapped menu says of itself.
type header struct {
	size, state, idle uint64
	tail, gone        tracee.Range // offsets
}

// readHeader reads the header of a menu whose mapping has size bytes. It is
// hostile input.
func readHeader(b []byte, size uint64) (h header, err error) {
	if len(b) < headerSize || !bytes.Equal(b[:8], magic[:]) {
		return h, fmt.Errorf("its header does not begin like one: %w", errNotMenu)
	}
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	if v := word(headVersion); v != version {
		return h, fmt.Errorf("it is of version %d, and %d is known: %w", v, version, errNotMenu)
	}
	h = header{size: word(headSize), state: word(headState), idle: word(headIdle),
		tail: tracee.Range{Start: word(headTail), End: word(headTailEnd)},
		gone: tracee.Range{Start: word(headGone), End: word(headGoneEnd)}}
	code := func(r tracee.Range) bool { return r.Start >= headerSize && r.Start < r.End && r.End <= h.state }
	if h.size != size || size > maxSize || h.state+procfs.PageSize != size ||
		h.idle < headerSize || h.idle >= h.state || !code(h.tail) || !code(h.gone) || h.tail.End > h.gone.Start {
		return h, fmt.Errorf("its header contradicts itself: %w", errNotMenu)
	}
	return h, nil
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic[:])
	for at, v := range map[int]uint64{
		headVersion: version, headSize: h.size, headState: h.state, headIdle: h.idle,
		headTail: h.tail.Start, headTailEnd: h.tail.End, headGone: h.gone.Start, headGoneEnd: h.gone.End,
	} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	return b
}

// A state is what the words of the state page say.
type state [stateWords / 8]uint64

func (s *state) word(at int) uint64 { return s[at/8] }

// settled tells that whatever was queued has run, and nothing runs.
func (s *state) settled() bool {
	return s.word(stateQueued) == s.word(stateRan) && s.word(stateInside) == 0
}

// held is how many closures of the program lead to the code.
func (s *state) held() int { return int(int64(s.word(stateConnected) - s.word(stateGone))) }
