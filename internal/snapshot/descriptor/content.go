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

// putContent writes what keepContent has kept; size is the file's.
func (o *Opened) putContent(to kernel.Raw, size int64, runs []image.Run) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	buffer := make([]byte, pieceBytes)
	for _, run := range runs {
		place := run.Place
		at, left := int64(run.Start), int64(run.Count)*image.PageSize
		for left > 0 {
			b := buffer[:min(left, pieceBytes)]
			if err := o.ReadPages(place, b); err != nil {
				return err
			}
			within := b[:max(0, min(int64(len(b)), size-at))]
			for done := 0; done < len(within); {
				n, err := to.WriteAt(within[done:], at+int64(done))
				if err != nil {
					return err
				}
				done += n
			}
			at, left = at+int64(len(b)), left-int64(len(b))
			place.Offset += uint64(len(b))
		}
	}
	return nil
}
