package restore

import (
	"os"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// holding writes to as many MiB as it is told, and sleeps.
const holding = `
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	size_t size = (size_t)atol(argv[1]) << 20;
	unsigned *words = malloc(size);
	for (size_t i = 0; i < size / sizeof *words; i++)
		words[i] = i * 2654435761u;
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}`

// BenchmarkRestore restores images from files in memory, and ends what it has restored.
func BenchmarkRestore(b *testing.B) {
	fixture := func(name string) string {
		build, err := testbed.Source(name)
		if err != nil {
			b.Fatal(err)
		}
		path, err := testbed.Compile(b.Context(), build)
		if err != nil {
			b.Fatal(err)
		}
		return path
	}
	big, err := testbed.Compile(b.Context(), testbed.Build{Name: "holding", Source: holding})
	if err != nil {
		b.Fatal(err)
	}
	for name, argv := range map[string][]string{
		"plain": {fixture("plain")}, "64threads": {fixture("threads"), "64", "blocked"}, "1GiB": {big, "1024"},
	} {
		b.Run(name, func(b *testing.B) {
			s := startCommand(b, argv...)
			img := dump(b, s.pid)
			s.wait(b)
			reader, err := image.Open(img.write(b, "/dev/shm"), image.ReadOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer reader.Close()
			img.pages = nil
			options := Options{Inherit: map[int]*os.File{0: s.files[0], 1: s.files[1], 2: s.files[2]}}
			var bytes uint64
			for b.Loop() {
				plan, err := Look(b.Context(), reader, options)
				if err != nil {
					b.Fatal(err)
				}
				r, err := plan.Commit(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				bytes = r.Bytes
				b.StopTimer()
				if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
					b.Fatal(err)
				}
				s.wait(b)
				b.StartTimer()
			}
			b.SetBytes(int64(bytes))
		})
	}
}
