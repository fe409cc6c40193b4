package descriptor

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// pieceBytes is how much content is read or written at a time.
const pieceBytes = 1 << 20

// keepContent writes down what is in a file, but for its holes.
func keepContent(raw kernel.Raw, size int64, store Store) (runs []image.Run, err error) {
	reads, err := raw.Reopen(syscall.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reads.Close()) }()
	buffer := make([]byte, pieceBytes)
	for at := int64(0); at < size; {
		start, end, err := reads.Data(at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		start &^= image.PageSize - 1
		end = min(end, size)
		for at = max(at, start); at < end; {
			b := buffer[:min(pieceBytes, int(end-at))]
			n, err := reads.ReadAt(b, at)
			if err != nil || n == 0 {
				return nil, errors.Join(err, fmt.Errorf("%d bytes of it can't be read at %d", len(b), at))
			}
			whole := (n + image.PageSize - 1) &^ (image.PageSize - 1)
			if n < len(b) {
				whole = n &^ (image.PageSize - 1) // the rest comes with the next piece
				if whole == 0 {
					return nil, fmt.Errorf("%d of %d bytes of it can be read at %d", n, len(b), at)
				}
			}
			clear(buffer[min(n, whole):whole])
			place, err := store.Append(buffer[:whole])
			if err != nil {
				return nil, err
			}
			runs = append(runs, image.Run{Start: uint64(at), Count: uint64(whole / image.PageSize), Place: place})
			at += int64(whole)
		}
	}
	return runs, nil
}
