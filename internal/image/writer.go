package image

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
)

// PageSize is that of the pages of an image.
const PageSize = 4096

// blockSize is what is checksummed and compressed together: small enough to read a
// page of it without much waste.
const blockSize = 256 << 10

// The files of an image's directory.
const (
	indexName = "index"
	pagesName = "pages"
)

// Compressions of pages.
const (
	None = "none"
	Zstd = "zstd"
)

// WriteOptions say how an image is kept.
type WriteOptions struct {
	Compression string   // None, or "" for it, or Zstd
	Parent      string   // directory of the image whose pages this one refers to; "" is none
	Recipients  []string // age recipients to encrypt to
	Identities  []string // files of age identities, to read an encrypted parent
}

// A Writer makes an image. Append may be called by several goroutines at a time;
// what it was given is on the disk for good only after Commit.
type Writer struct {
	dir        string
	partial    *Partial // nil when it has appeared, or was removed
	id         string
	options    WriteOptions
	parent     *Reader
	recipients []age.Recipient
	pages      *os.File
	encrypted  io.WriteCloser // through which pages are written, or nil
	compressor *zstd.Encoder

	mu      sync.Mutex
	logical uint64 // bytes of pages so far
	stored  uint64 // bytes of them in the file, before encryption
	blocks  []block
	failed  error // of a write: the pages can't become whole any more
}

// A block is where up to blockSize bytes of pages are.
type block struct {
	_       struct{} `cbor:",toarray"`
	Logical uint64   // offset in the uncompressed pages
	Size    uint32   // bytes, uncompressed
	At      uint64   // offset in the page file
	Stored  uint32   // bytes there; less than Size where they are compressed
	Sum     uint64   // xxh3 of the uncompressed bytes
}

// Create begins an image in directory dir, which must not be there yet, and is not
// before Commit. What killed writers have left of images of the same name goes away.
func Create(dir string, options WriteOptions) (_ *Writer, err error) {
	dir = filepath.Clean(dir)
	w := &Writer{dir: dir, options: options}
	if err := w.takeOptions(); err != nil {
		return nil, err
	}
	if w.partial, err = NewPartial(dir); err != nil {
		return nil, fmt.Errorf("make image %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if options.Parent != "" {
		if w.parent, err = Open(options.Parent, ReadOptions{Identities: options.Identities}); err != nil {
			return nil, fmt.Errorf("open parent image: %w", err)
		}
		if len(w.parent.Parents()) >= MaxParents {
			return nil, fmt.Errorf("make image %s: its parent %s has %d parents already, which is the most: name another parent, or none", dir, options.Parent, MaxParents)
		}
	}
	if w.pages, err = os.OpenFile(filepath.Join(w.partial.Path, pagesName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("make image %s: %w", dir, err)
	}
	if len(w.recipients) > 0 {
		if w.encrypted, err = age.Encrypt(w.pages, w.recipients...); err != nil {
			return nil, fmt.Errorf("make image %s: %w", dir, err)
		}
	}
	return w, nil
}

func (w *Writer) takeOptions() error {
	switch w.options.Compression {
	case "", None:
	case Zstd:
		var err error
		if w.compressor, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	default:
		return fmt.Errorf("compress: there is no way %q: none or zstd", w.options.Compression)
	}
	for _, text := range w.options.Recipients {
		r, err := parseRecipient(text)
		if err != nil {
			return fmt.Errorf("encrypt to %q: %w", text, err)
		}
		w.recipients = append(w.recipients, r)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	w.id = hex.EncodeToString(id[:])
	return nil
}

func parseRecipient(text string) (age.Recipient, error) {
	all, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Append adds pages and returns where they are: a multiple of PageSize bytes, of
// which nothing is kept after the call.
func (w *Writer) Append(pages []byte) (Place, error) {
	if len(pages) == 0 || len(pages)%PageSize != 0 {
		return Place{}, fmt.Errorf("write image: %d bytes are no pages", len(pages))
	}
	if w.compressor == nil && w.encrypted == nil {
		return w.appendRaw(pages)
	}
	var packed [][]byte
	blocks := blocksOf(pages)
	for i, b := range blocks {
		data := pages[b.Logical : b.Logical+uint64(b.Size)]
		if w.compressor != nil {
			if small := w.compressor.EncodeAll(data, nil); len(small) < len(data) {
				data = small
			}
		}
		blocks[i].Stored = uint32(len(data))
		packed = append(packed, data)
	}
	w.mu.Lock()
	start, at := w.logical, w.stored
	for i := range blocks {
		blocks[i].Logical += start
		blocks[i].At = w.stored
		w.stored += uint64(blocks[i].Stored)
	}
	w.logical += uint64(len(pages))
	w.blocks = append(w.blocks, blocks...)
	if w.encrypted != nil { // a stream: one after the other
		defer w.mu.Unlock()
		for _, data := range packed {
			if w.failed == nil {
				_, w.failed = w.encrypted.Write(data)
			}
		}
		return Place{Offset: start}, w.written(w.failed)
	}
	w.mu.Unlock()
	for _, data := range packed {
		if _, err := w.pages.WriteAt(data, int64(at)); err != nil {
			return Place{}, w.fail(err)
		}
		at += uint64(len(data))
	}
	return Place{Offset: start}, nil
}

// appendRaw writes pages as they are, where they can be read without a detour.
func (w *Writer) appendRaw(pages []byte) (Place, error) {
	blocks := blocksOf(pages)
	w.mu.Lock()
	start := w.logical
	w.logical += uint64(len(pages))
	w.stored = w.logical
	for i := range blocks {
		blocks[i].Logical += start
		blocks[i].At, blocks[i].Stored = blocks[i].Logical, blocks[i].Size
	}
	w.blocks = append(w.blocks, blocks...)
	w.mu.Unlock()
	if _, err := w.pages.WriteAt(pages, int64(start)); err != nil {
		return Place{}, w.fail(err)
	}
	return Place{Offset: start}, nil
}

// fail keeps the first error of writing pages, for Commit.
func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
	return w.written(err)
}

// blocksOf cuts pages into blocks, whose Logical counts from the first byte.
func blocksOf(pages []byte) []block {
	blocks := make([]block, 0, (len(pages)+blockSize-1)/blockSize)
	for from := 0; from < len(pages); from += blockSize {
		to := min(from+blockSize, len(pages))
		blocks = append(blocks, block{Logical: uint64(from), Size: uint32(to - from), Sum: xxh3.Hash(pages[from:to])})
	}
	return blocks
}

func (w *Writer) written(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("write image %s: %w: make room, compress (zstd), or name another directory", w.dir, err)
	}
	return fmt.Errorf("write image %s: %w", w.dir, err)
}

// Flush makes sure that what was appended is on the disk, so that Commit finds less to
// do.
func (w *Writer) Flush() error {
	if err := w.pages.Sync(); err != nil {
		return w.fail(err)
	}
	return nil
}

// Parent is the opened parent image, or nil.
func (w *Writer) Parent() *Reader { return w.parent }

// Commit writes the index, makes sure that all is on the disk, and lets the directory
// appear under its name. It sets the image's ID and Parent, and returns the bytes that
// the image takes on its disk. After an error nothing is left.
func (w *Writer) Commit(img *Image) (size int64, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if w.failed != nil {
		return 0, w.written(w.failed)
	}
	img.ID = w.id
	e := index{Image: img, Pages: w.logical, Stored: w.stored, Blocks: w.blocks}
	if w.parent != nil {
		img.Parent = w.parent.image.ID
		if e.ParentPath, err = filepath.Rel(filepath.Dir(w.dir), w.parent.dir); err != nil {
			e.ParentPath = w.parent.dir
		}
	}
	slices.SortFunc(e.Blocks, func(a, b block) int {
		switch {
		case a.Logical < b.Logical:
			return -1
		case a.Logical > b.Logical:
			return 1
		}
		return 0
	})
	if err := e.validate(w.parent); err != nil {
		return 0, fmt.Errorf("write image %s: %w", w.dir, err)
	}
	if w.encrypted != nil {
		if err := w.encrypted.Close(); err != nil {
			return 0, w.written(err)
		}
	}
	if err := w.pages.Sync(); err != nil {
		return 0, w.written(err)
	}
	if err := w.writeIndex(e); err != nil {
		return 0, w.written(err)
	}
	for _, name := range []string{indexName, pagesName} {
		info, err := os.Stat(filepath.Join(w.partial.Path, name))
		if err != nil {
			return 0, w.written(err)
		}
		size += info.Size()
	}
	if err := w.partial.Appear(); err != nil {
		return 0, w.written(err)
	}
	w.partial = nil
	return size, w.close()
}

func (w *Writer) writeIndex(e index) (err error) {
	data, err := e.encode()
	if err != nil {
		return err
	}
	// A program may end as soon as its image is there: better no image than one that
	// can't be read (of a file from the year 10000, or with too long a list).
	decoded := make(chan error, 1)
	go func() {
		_, err := decodeIndex(bytes.NewReader(data))
		decoded <- err
	}()
	defer func() {
		if unread := <-decoded; unread != nil {
			err = errors.Join(fmt.Errorf("what was written could not be read again: %w", unread), err)
		}
	}()
	file, err := os.OpenFile(filepath.Join(w.partial.Path, indexName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if len(w.recipients) == 0 {
		if _, err := file.Write(data); err != nil {
			return err
		}
		return file.Sync()
	}
	encrypted, err := age.Encrypt(file, w.recipients...)
	if err != nil {
		return err
	}
	if _, err := encrypted.Write(data); err != nil {
		return err
	}
	if err := encrypted.Close(); err != nil {
		return err
	}
	return file.Sync()
}

// Abort gives the image up and removes what was written of it. After Commit it does
// nothing.
func (w *Writer) Abort() error {
	err := w.close()
	if w.partial != nil {
		err = errors.Join(err, w.partial.Remove())
		w.partial = nil
	}
	return err
}

func (w *Writer) close() error {
	var errs []error
	if w.compressor != nil {
		errs = append(errs, w.compressor.Close())
		w.compressor = nil
	}
	if w.pages != nil {
		errs = append(errs, w.pages.Close())
		w.pages = nil
	}
	if w.parent != nil {
		errs = append(errs, w.parent.Close())
		w.parent = nil
	}
	return errors.Join(errs...)
}
