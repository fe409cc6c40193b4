package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"syscall"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
)

// MaxParents bounds a chain of parents.
const MaxParents = 64

// ReadOptions say how an image is opened.
type ReadOptions struct {
	Identities []string // files of age identities

	depth int
	chain map[string]bool // IDs of the images that lead here
}

// A Reader is an image whose index was checked, with its parents. ReadPages may be
// called by several goroutines at a time.
type Reader struct {
	dir     string
	image   *Image
	index   *index
	size    int64
	file    *os.File
	pages   io.ReaderAt // decrypted
	parent  *Reader
	decoder *zstd.Decoder

	mu    sync.Mutex
	cache []cached // the blocks read last, the newest first
}

type cached struct {
	block int
	data  []byte
}

// cacheSize is how many blocks are kept: restoring reads run after run.
const cacheSize = 8

// ageHead is how a file that is encrypted by age begins.
var ageHead = []byte("age-encryption.org/")

// Open opens the image in a directory, and checks all of it but the pages themselves,
// whose checksums are looked at when they are read.
func Open(dir string, options ReadOptions) (_ *Reader, err error) {
	r := &Reader{dir: filepath.Clean(dir)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	identities, err := readIdentities(options.Identities)
	if err != nil {
		return nil, err
	}
	if r.index, err = r.readIndex(identities); err != nil {
		return nil, fmt.Errorf("read image %s: %w", dir, err)
	}
	r.image = r.index.Image
	if r.image.Parent != "" {
		if r.parent, err = openParent(r.dir, r.index, options); err != nil {
			return nil, err
		}
	}
	if err := r.index.validate(r.parent); err != nil {
		return nil, fmt.Errorf("read image %s: %w: %w", dir, ErrNoImage, err)
	}
	if err := r.openPages(identities); err != nil {
		return nil, fmt.Errorf("read image %s: %w", dir, err)
	}
	return r, nil
}

func openParent(dir string, e *index, options ReadOptions) (*Reader, error) {
	path := e.ParentPath
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(dir), path)
	}
	if options.depth++; options.depth > MaxParents {
		return nil, fmt.Errorf("read image %s: %w: more than %d parents", dir, ErrNoImage, MaxParents)
	}
	chain := map[string]bool{e.Image.ID: true}
	for id := range options.chain {
		chain[id] = true
	}
	options.chain = chain
	if chain[e.Image.Parent] {
		return nil, fmt.Errorf("read image %s: %w: it is a parent of its own", dir, ErrNoImage)
	}
	parent, err := Open(path, options)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read image %s: its parent is gone, which holds what had not changed: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	if parent.image.ID != e.Image.Parent {
		err := fmt.Errorf("read image %s: %w: %s holds another image (%s) than its parent (%s)",
			dir, ErrNoImage, path, parent.image.ID, e.Image.Parent)
		return nil, errors.Join(err, parent.Close())
	}
	return parent, nil
}

func readIdentities(files []string) (all []age.Identity, err error) {
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read identity: %w", err)
		}
		identities, err := age.ParseIdentities(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("read identity %s: %w", name, err)
		}
		all = append(all, identities...)
	}
	return all, nil
}

// open opens a file of the image and reports whether it is encrypted.
func (r *Reader) open(name string) (*os.File, bool, error) {
	file, err := os.OpenFile(filepath.Join(r.dir, name), os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO does not hold it up
	if err != nil {
		return nil, false, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, false, errors.Join(err, file.Close())
	}
	if !info.Mode().IsRegular() {
		return nil, false, errors.Join(fmt.Errorf("%w: %s is no regular file", ErrNoImage, name), file.Close())
	}
	r.size += info.Size()
	head := make([]byte, len(ageHead))
	n, err := file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, false, errors.Join(err, file.Close())
	}
	return file, bytes.Equal(head[:n], ageHead), nil
}

func (r *Reader) readIndex(identities []age.Identity) (*index, error) {
	file, encrypted, err := r.open(indexName)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if !encrypted {
		return decodeIndex(bufio.NewReader(file))
	}
	if len(identities) == 0 {
		return nil, errors.New("it is encrypted: name the file of an age identity with --identity")
	}
	plain, err := age.Decrypt(file, identities...)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return decodeIndex(plain)
}

func (r *Reader) openPages(identities []age.Identity) error {
	file, encrypted, err := r.open(pagesName)
	if err != nil {
		return err
	}
	r.file = file
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	r.pages = file
	if encrypted {
		if r.pages, size, err = age.DecryptReaderAt(file, size, identities...); err != nil {
			return fmt.Errorf("decrypt: %w", err)
		}
	}
	if uint64(size) != r.index.Stored {
		return fmt.Errorf("%w: its pages have %d bytes, not %d: they were cut off or damaged", ErrNoImage, size, r.index.Stored)
	}
	r.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(blockSize), zstd.WithDecoderMaxWindow(8<<20))
	return err
}

// Image is what the image holds. It is not to be changed.
func (r *Reader) Image() *Image { return r.image }

// Directory is where the image is.
func (r *Reader) Directory() string { return r.dir }

// Parents are the directories of the images that this one builds on, its parent first.
func (r *Reader) Parents() (all []string) {
	for p := r.parent; p != nil; p = p.parent {
		all = append(all, p.dir)
	}
	return all
}

// Size is the bytes that the image takes on its disk, without its parents.
func (r *Reader) Size() int64 { return r.size }

// ReadPages fills b, a multiple of PageSize bytes, with the pages from a place on,
// which is one of the image's runs. Their checksums are right, or it fails.
func (r *Reader) ReadPages(at Place, b []byte) error {
	if at.Up > 0 {
		if r.parent == nil {
			return fmt.Errorf("read image %s: %w: it has no parent", r.dir, ErrNoImage)
		}
		return r.parent.ReadPages(Place{Up: at.Up - 1, Offset: at.Offset}, b)
	}
	end := at.Offset + uint64(len(b))
	if end < at.Offset || end > r.index.Pages {
		return fmt.Errorf("read image %s: %w: pages are out of bounds", r.dir, ErrNoImage)
	}
	blocks := r.index.Blocks
	n := sort.Search(len(blocks), func(i int) bool { return blocks[i].Logical+uint64(blocks[i].Size) > at.Offset })
	for offset := at.Offset; offset < end; n++ {
		k := blocks[n]
		from, to := offset-k.Logical, min(end-k.Logical, uint64(k.Size))
		part := b[:to-from]
		if err := r.readBlock(n, from, part); err != nil {
			return fmt.Errorf("read image %s: pages at %d: %w", r.dir, offset, err)
		}
		b, offset = b[to-from:], k.Logical+to
	}
	return nil
}

// readBlock reads a part of a block. One that is asked for whole goes to its place
// directly; the others are kept for the next part.
func (r *Reader) readBlock(n int, from uint64, part []byte) error {
	k := r.index.Blocks[n]
	if uint64(len(part)) == uint64(k.Size) {
		return r.load(k, part)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, c := range r.cache {
		if c.block == n {
			copy(part, c.data[from:])
			copy(r.cache[1:i+1], r.cache[:i])
			r.cache[0] = c
			return nil
		}
	}
	data := make([]byte, k.Size)
	if err := r.load(k, data); err != nil {
		return err
	}
	copy(part, data[from:])
	if len(r.cache) < cacheSize {
		r.cache = append(r.cache, cached{})
	}
	copy(r.cache[1:], r.cache)
	r.cache[0] = cached{n, data}
	return nil
}

func (r *Reader) load(k block, data []byte) error {
	if k.Stored == k.Size {
		if n, err := r.pages.ReadAt(data, int64(k.At)); n < len(data) {
			return damaged("they end early", err)
		}
	} else {
		packed := make([]byte, k.Stored)
		if n, err := r.pages.ReadAt(packed, int64(k.At)); n < len(packed) {
			return damaged("they end early", err)
		}
		plain, err := r.decoder.DecodeAll(packed, data[:0:len(data)])
		if err != nil || len(plain) != len(data) {
			return damaged(fmt.Sprintf("%d bytes can't be decompressed to %d", k.Stored, k.Size), err)
		}
		if len(plain) > 0 && &plain[0] != &data[0] {
			copy(data, plain)
		}
	}
	if xxh3.Hash(data) != k.Sum {
		return fmt.Errorf("%w: their checksum is wrong: they were damaged", ErrNoImage)
	}
	return nil
}

// Close closes the image and its parents.
func (r *Reader) Close() error {
	var errs []error
	if r.decoder != nil {
		r.decoder.Close()
	}
	if r.file != nil {
		errs = append(errs, r.file.Close())
		r.file = nil
	}
	if r.parent != nil {
		errs = append(errs, r.parent.Close())
		r.parent = nil
	}
	return errors.Join(errs...)
}
