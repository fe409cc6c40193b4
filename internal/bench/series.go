package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/vex"
)

// seriesMemory is what the programs have, in MiB.
const seriesMemory = 1024

// Series measures checkpoints of a program that follow one another, each with the one
// before as its parent: one program's are a series, in which it is noted what is written
// between; another one's are on their own, and compare all of its memory.
func Series(ctx context.Context, runs int) (figures []Figure, err error) {
	program, err := testbed.Compile(ctx, testbed.Build{Name: "holding", Source: holdingSource, Flags: []string{"-pthread"}})
	if err != nil {
		return nil, err
	}
	for _, percent := range []int{1, 10} {
		name := fmt.Sprintf("1 GiB, %d %% written between: ", percent)
		all := []Figure{
			{Name: name + "stopped", Aim: "10 ms"}, {Name: name + "in all"},
			{Name: name + "bytes, floor: written by the program", Aim: "1.1 times", Bytes: true},
		}
		err := seriesRuns(ctx, max(5, runs/2), percent, program, all)
		figures = append(figures, all...)
		if err != nil {
			return figures, err
		}
	}
	return figures, nil
}

func seriesRuns(ctx context.Context, runs, percent int, program string, to []Figure) (err error) {
	folder, err := os.MkdirTemp("/dev/shm", "vos-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	var pids [2]int
	for i := range pids {
		if pids[i], err = hold(ctx, program, 1, seriesMemory); err != nil {
			return err
		}
		defer func() { _ = syscall.Kill(pids[i], syscall.SIGKILL); _ = reap(pids[i]) }()
	}
	machine, err := vex.New()
	if err != nil {
		return err
	}
	// The other one's first.
	parent := filepath.Join(folder, "0")
	if _, _, err := taken(ctx, machine, api.CheckpointRequest{Directory: parent, LeaveRunning: true}, pids[1]); err != nil {
		return err
	}
	pages := seriesMemory << 20 / image.PageSize * percent / 100
	enough := errors.New("enough")
	n := 0
	err = machine.Checkpoint(ctx, api.CheckpointRequest{
		Target: api.Target{Program: strconv.Itoa(pids[0])}, Directory: filepath.Join(folder, "series"), Compression: "none",
		LeaveRunning: true, Every: time.Millisecond, Keep: image.MaxParents,
	}, func(s api.Snapshot) error {
		if err := as(s, api.Checkpointed); err != nil {
			return err
		}
		if n > 0 { // the first is whole
			other, took, err := taken(ctx, machine, api.CheckpointRequest{Directory: filepath.Join(folder, strconv.Itoa(n)), LeaveRunning: true, Parent: parent}, pids[1])
			if err != nil {
				return err
			}
			parent = filepath.Join(folder, strconv.Itoa(n))
			sample(&to[0], time.Duration(s.FreezeUS)*time.Microsecond, time.Duration(other.FreezeUS)*time.Microsecond)
			sample(&to[1], time.Duration(s.TotalUS)*time.Microsecond, took)
			sample(&to[2], time.Duration(s.Bytes), time.Duration(pages*image.PageSize))
		}
		if n++; n > runs {
			return enough
		}
		for _, pid := range pids {
			if err := scribble(pid, pages); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return err
}

// scribble writes to so many pages of a program's largest mapping, anywhere in it.
func scribble(pid, pages int) (err error) {
	p, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	maps, err := p.Maps()
	if err != nil {
		return err
	}
	var largest procfs.Mapping
	for _, m := range maps {
		if m.Kind == procfs.KindAnonymous && m.Size() > largest.Size() {
			largest = m
		}
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	b := make([]byte, 8)
	for _, n := range rand.Perm(int(largest.Size() / image.PageSize))[:pages] {
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		if _, err := memory.WriteAt(b, int64(largest.Start)+int64(n)*image.PageSize); err != nil {
			return err
		}
	}
	return nil
}
