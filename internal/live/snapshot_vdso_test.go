package live

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// anotherKernels writes an image anew, as if its vDSO had been another kernel's: with other
// code, which traps where it is called.
func anotherKernels(t *testing.T, from, to string) {
	t.Helper()
	reader, err := image.Open(from, image.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writer, err := image.Create(to, image.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	copied := func(runs []image.Run, kind image.Kind) {
		for i := range runs {
			pages := make([]byte, runs[i].Count*image.PageSize)
			if err := reader.ReadPages(runs[i].Place, pages); err != nil {
				t.Fatal(err)
			}
			if kind == image.VDSO {
				changed += trap(t, pages)
			}
			if runs[i].Place, err = writer.Append(pages); err != nil {
				t.Fatal(err)
			}
		}
	}
	img := reader.Image()
	for i := range img.Processes {
		for j := range img.Processes[i].Mappings {
			copied(img.Processes[i].Mappings[j].Pages, img.Processes[i].Mappings[j].Kind)
		}
	}
	for i := range img.Objects {
		copied(img.Objects[i].Pages, "")
	}
	if changed < 5 {
		t.Fatalf("the vDSO of the image has %d functions", changed)
	}
	if _, err := writer.Commit(img); err != nil {
		t.Fatal(err)
	}
}

// trap makes every function of a vDSO one that traps.
func trap(t *testing.T, code []byte) (functions int) {
	t.Helper()
	o, err := dso.ReadMemory(bytes.NewReader(code), 0)
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := o.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for s := range symbols.All() {
		if s.Exported() && s.IsFunction() {
			functions++
			copy(code[s.Value:s.Value+s.Size], bytes.Repeat([]byte{0xcc}, int(s.Size)))
		}
	}
	return functions
}

// TestSnapshotAnotherVDSO restores a program on what is another kernel for it, and again
// from there: the functions of the vDSO that it has found at its start tell the time.
func TestSnapshotAnotherVDSO(t *testing.T) {
	port := freePort(t)
	clocks := testbed.MustCompile(t, testbed.Build{Name: "clocks", Source: text(t, "clocks.c")})
	pid := startAlone(t, clocks, port)
	ask := func() (string, error) {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, 10*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		answer, err := io.ReadAll(c)
		return string(answer), err
	}
	now := func() int64 {
		var at unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &at); err != nil {
			t.Fatal(err)
		}
		return at.Nano()
	}
	tells := func() {
		t.Helper()
		before, day := now(), time.Now().Unix()
		answer, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		after, later := now(), time.Now().Unix()
		var clock, seconds, tod, cpu, least int64
		if _, err := fmt.Sscan(answer, &clock, &seconds, &tod, &cpu, &least); err != nil {
			t.Fatalf("answered %q: %v", answer, err)
		}
		// time(2) has the second of the last tick.
		if clock < before || clock > after || seconds < day-1 || seconds > later || tod < day || tod > later || cpu != 0 || least != 1 {
			t.Fatalf("answered %q between %d and %d, %d and %d", answer, before, after, day, later)
		}
	}
	await(t, "the clocks to be there", func() bool { _, err := ask(); return err == nil })
	tells()
	folder, target := t.TempDir(), strconv.Itoa(pid)
	for n := range 3 {
		kept := filepath.Join(folder, fmt.Sprint("kept", n))
		settled(t, target)
		vos(t, "checkpoint", target, "-D", kept).expect(t, 0)
		reapAll([]relative{{pid: pid}})
		foreign := filepath.Join(folder, fmt.Sprint("foreign", n))
		anotherKernels(t, kept, foreign)
		r := vos(t, "restore", "-D", foreign).expect(t, 0)
		if !strings.Contains(r.Stdout+r.Stderr, "vDSO") {
			t.Errorf("it is not said that the vDSO is another one: %s%s", r.Stdout, r.Stderr)
		}
		tells()
		vos(t, "verify", target).expect(t, 0)
	}
	// And where the kernel is the same again.
	endAndRestore(t, pid, filepath.Join(folder, "last"))
	tells()
}
