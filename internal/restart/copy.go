package restart

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

const (
	chunk   = 1 << 20 // bytes that are copied at a time
	workers = 2
)

// A job is a part of a piece to copy.
type job struct {
	*piece
	start, end uint64
}

// copy copies what is in the pieces, but for pages of zeroes: a fresh page is that.
func (r *round) copy() error {
	var jobs []job
	for _, q := range r.pieces {
		for _, run := range q.runs {
			for at := run.Start; at < run.End; at += chunk {
				jobs = append(jobs, job{q, at, min(at+chunk, run.End)})
			}
		}
	}
	var next, copied, dropped atomic.Uint64
	errs := make([]error, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			buffer := buffers.Get().(*[chunk]byte)
			defer buffers.Put(buffer)
			for i := next.Add(1) - 1; i < uint64(len(jobs)) && errs[w] == nil; i = next.Add(1) - 1 {
				j := &jobs[i]
				b := buffer[:j.end-j.start]
				if errs[w] = r.read(j, b); errs[w] == nil {
					var full uint64
					full, errs[w] = r.write(j, b)
					copied.Add(full)
					dropped.Add(uint64(len(b)) - full)
				}
			}
		})
	}
	group.Wait()
	r.result.Copied += copied.Load()
	r.result.Dropped += dropped.Load()
	return errors.Join(errs...)
}

var buffers = sync.Pool{New: func() any { return new([chunk]byte) }}

func (r *round) read(j *job, b []byte) error {
	if j.Perms&syscall.PROT_READ == 0 {
		_, err := r.session.Memory().ReadAt(b, int64(j.start))
		return err
	}
	return kernel.ReadMemory(r.Process.PID(), b, []kernel.RemoteRange{{Address: j.start, Length: uint64(len(b))}})
}

// write writes the pages that are not zero to the copy, and returns how many bytes they
// are.
func (r *round) write(j *job, b []byte) (full uint64, err error) {
	to := j.staged + (j.start - j.Start)
	for at := 0; at < len(b); {
		for at < len(b) && zero(b[at:at+pageSize]) {
			at += pageSize
		}
		end := at
		for end < len(b) && !zero(b[end:end+pageSize]) {
			end += pageSize
		}
		if end == at {
			break
		}
		if j.Perms&syscall.PROT_WRITE == 0 {
			_, err = r.session.Memory().WriteAt(b[at:end], int64(to)+int64(at))
		} else {
			err = kernel.WriteMemory(r.Process.PID(), b[at:end], []kernel.RemoteRange{{Address: to + uint64(at), Length: uint64(end - at)}})
		}
		if err != nil {
			return full, err
		}
		full += uint64(end - at)
		at = end
	}
	return full, nil
}

var zeroes [pageSize]byte

func zero(page []byte) bool { return bytes.Equal(page, zeroes[:]) }
