package launch

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

func start(t *testing.T, argv ...string) (*Program, func() string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	p, err := Start(argv[0], argv, os.Environ(), []*os.File{os.Stdin, out, out})
	if err != nil {
		t.Fatal(err)
	}
	return p, func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func build(t *testing.T, source string, flags ...string) string {
	t.Helper()
	folder := t.TempDir()
	file := filepath.Join(folder, "p.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "p")
	testbed.GCC(t, append(flags, "-o", program, file)...)
	return program
}

const talker = `
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void early(void) { write(1, "early\n", 6); }
int main(void) { printf("main\n"); return 7; }
`

// TestHeldBeforeAnyCodeRuns: when a program is held, its libraries are there, and no
// constructor has run.
func TestHeldBeforeAnyCodeRuns(t *testing.T) {
	for name, flags := range map[string][]string{
		"lazy": {"-Wl,-z,lazy"}, "now": {"-Wl,-z,now"}, "at a fixed address": {"-no-pie"},
	} {
		t.Run(name, func(t *testing.T) {
			p, output := start(t, build(t, talker, flags...))
			if !p.Early {
				t.Error("the loader was not waited for")
			}
			process, err := procfs.Open(p.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer process.Close()
			maps, err := process.Maps()
			if err != nil {
				t.Fatal(err)
			}
			libc := false
			for _, m := range maps {
				libc = libc || strings.Contains(m.Path, "libc.so")
			}
			if stat, err := process.Stat(); err != nil || stat.State != 'T' || !libc || output() != "" {
				t.Errorf("state %c, libc mapped %t, said %q, %v", stat.State, libc, output(), err)
			}
			ends(t, p, 7)
			if output() != "early\nmain\n" {
				t.Errorf("said %q", output())
			}
		})
	}
}

func ends(t *testing.T, p *Program, code int) {
	t.Helper()
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || !status.Exited() || status.ExitStatus() != code {
		t.Errorf("ended with %v, %v", status, err)
	}
}

func TestStaticProgram(t *testing.T) {
	p, output := start(t, build(t, talker, "-static"))
	if p.Early || output() != "" {
		t.Errorf("held in its loader: %t; said %q", p.Early, output())
	}
	ends(t, p, 7)
}

// TestScript: the interpreter is the program.
func TestScript(t *testing.T) {
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte("#!/bin/sh\necho hello\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p, output := start(t, file)
	ends(t, p, 3)
	if output() != "hello\n" {
		t.Errorf("said %q", output())
	}
}

func TestWhatCannotBeStarted(t *testing.T) {
	if _, err := Start("/nonexistent", []string{"x"}, nil, nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Start("/etc/passwd", []string{"x"}, nil, nil); !errors.Is(err, syscall.EACCES) {
		t.Errorf("not executable: %v", err)
	}
	// A library is missing: the loader says so and ends.
	folder := t.TempDir()
	library := filepath.Join(folder, "libgone.so")
	testbed.GCC(t, "-shared", "-x", "c", "/dev/null", "-o", library)
	program := build(t, talker, "-Wl,--no-as-needed", library)
	if err := os.Remove(library); err != nil {
		t.Fatal(err)
	}
	silent, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var ended *Ended
	if _, err := Start(program, []string{program}, nil, []*os.File{silent, silent, silent}); !errors.As(err, &ended) || ended.Status.ExitStatus() != 127 {
		t.Errorf("a library is missing: %v", err)
	}
}

// TestStarterDies: a held program goes on when who started it dies.
func TestStarterDies(t *testing.T) {
	if pid := os.Getenv("LAUNCH_PROGRAM"); pid != "" {
		p, err := Start(pid, []string{pid}, nil, []*os.File{os.Stdin, os.Stdout, os.Stderr})
		if err != nil {
			t.Fatal(err)
		}
		_ = p
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "TestStarterDies")
	c.Env = append(os.Environ(), "LAUNCH_PROGRAM="+build(t, talker))
	out, err := c.Output() // until the program has closed it
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	if string(out) != "early\nmain\n" {
		t.Errorf("said %q", out)
	}
}
