package descriptor

import "github.com/virtualizing-os/vos/internal/image"

// A Store is where Dump puts what takes pages. The zero Store does for descriptors
// that have none.
type Store struct {
	// Append keeps pages, as image.Writer does.
	Append func(pages []byte) (image.Place, error)

	// Mapped returns the place in Image.Objects of a memfd or deleted file that is
	// mapped, too, and was kept with the memory.
	Mapped func(device, inode uint64) (object int, ok bool)

	// Peeking calls f while SO_PEEK_OFF of a socket, which a process has at a number, is
	// 0, and makes it -1 again, whatever becomes of vos. Where that can't be it wraps
	// ErrNotNow. Without it packets that wait are refused.
	Peeking func(pid, fd int, f func() error) error

	// Objects is how many objects there are before those of Kept.
	Objects int
}
