package live

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// lingering has mapped what is not at its path any more: its own file, a library, and a
// file that it has open, too.
const lingering = `
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int number(void);
static volatile long progress;
int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDWR | O_CREAT, 0640);
	ftruncate(fd, 3 * 4096 + 100);
	pwrite(fd, "of the file", 11, 2 * 4096);
	char *both = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *own = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	strcpy(own, "its own");
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	char line[100], there[12];
	while (fgets(line, sizeof line, stdin)) {
		progress++;
		const char *wrong = "";
		if (number() != 1)
			wrong = "another library";
		if (strcmp(own, "its own") || memcmp(own + 2 * 4096, "of the file", 11))
			wrong = "what is its own differs";
		sprintf(both, "number %ld", progress);
		pread(fd, there, 12, 0);
		if (memcmp(there, both, strlen(both)))
			wrong = "what it has mapped is another file";
		if (memcmp(both + 2 * 4096, "of the file", 11) || lseek(fd, 0, SEEK_END) != 3 * 4096 + 100)
			wrong = "the file has other content";
		printf("{\"fixture\":\"lingering\",\"errors\":%d,\"error\":\"%s\",\"progress\":%ld}\n", *wrong != 0, wrong, progress);
	}
}`

// TestRestoredDeleted: files that were replaced or deleted since they were mapped come
// back with their content, and show as they did; those at their paths are not touched.
func TestRestoredDeleted(t *testing.T) {
	library := func(n int) testbed.Build {
		return testbed.Build{Name: "libnumber.so", Source: "int number(void) { return NUMBER; }",
			Flags: []string{"-shared", "-fPIC", fmt.Sprintf("-DNUMBER=%d", n), "-Wl,-soname,libnumber.so"}}
	}
	built := testbed.MustCompile(t, testbed.Build{Name: "lingering", Source: lingering, Parts: []testbed.Build{library(1)}})
	folder := t.TempDir()
	program, soname, open := filepath.Join(folder, "lingering"), filepath.Join(folder, "libnumber.so"), filepath.Join(folder, "open")
	install := func(from, to string) {
		t.Helper()
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to+".new", content, 0o755)
		}
		if err == nil {
			err = os.Rename(to+".new", to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	install(built, program)
	install(filepath.Join(filepath.Dir(built), "libnumber.so"), soname)
	p := startRestored(t, program, open)
	install(built, program)
	second := testbed.MustCompile(t, library(2))
	install(second, soname)
	if err := os.Remove(open); err != nil {
		t.Fatal(err)
	}
	before := p.mapped(t)
	if !slices.ContainsFunc(before, func(line string) bool { return strings.HasSuffix(line, soname+" (deleted)") }) {
		t.Fatalf("mapped are\n%s", strings.Join(before, "\n"))
	}
	images := t.TempDir()
	for n := range 3 {
		p.report(t)
		p.cycle(t, filepath.Join(images, fmt.Sprint(n)))
		if after := p.mapped(t); !slices.Equal(after, before) {
			t.Fatalf("mapped are\n%s\n\nwere\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err != nil || exe != program+" (deleted)" {
			t.Errorf("it runs %s, %v", exe, err)
		}
	}
	p.report(t)
	// An image with a parent does not hold again what that holds.
	for n, parent := range []string{"", filepath.Join(images, "second0")} {
		args := []string{"checkpoint", strconv.Itoa(p.pid), "-D", filepath.Join(images, fmt.Sprint("second", n)), "--leave-running", "--inherit", "0,1,2"}
		if parent != "" {
			args = append(args, "--parent", parent)
		}
		vos(t, args...).expect(t, 0)
	}
	r, err := image.Open(filepath.Join(images, "second1"), image.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	older := 0
	for _, o := range r.Image().Objects {
		for _, run := range o.Pages {
			if o.Name == soname && run.Place.Up == 1 {
				older++
			}
		}
	}
	if older == 0 {
		t.Errorf("the library is written again: %+v", r.Image().Objects)
	}
	p.cycle(t, filepath.Join(images, "behind them"))
	p.report(t)
	got, err := os.ReadFile(soname)
	want, wantErr := os.ReadFile(second)
	if err != nil || wantErr != nil || !slices.Equal(got, want) {
		t.Errorf("the library at the path is another one: %v, %v", err, wantErr)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 2 {
		t.Errorf("left %v, %v", left, err)
	}
}

// mapped returns the lines of maps without device and inode.
func (p *restored) mapped(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		lines = append(lines, strings.Join(append(fields[:3:3], fields[5:]...), " "))
	}
	return lines
}

// TestRestoredReplaced: what vOS has left in a program comes back with it: a build that
// took over, and stubs that count. They can be worked with as before.
func TestRestoredReplaced(t *testing.T) {
	const library = "libraising.so"
	part := func(build int) testbed.Build {
		return testbed.Build{Name: library, Language: "c++", Source: text(t, "raising_lib.cc"),
			Flags: []string{"-shared", "-fPIC", "-Wl,-soname," + library, fmt.Sprintf("-DBUILD=%d", build)}}
	}
	path := testbed.MustCompile(t, testbed.Build{Name: "raising", Language: "c++", Source: text(t, "raising.cc"),
		Files: []string{"report.h"}, Flags: []string{"-fpermissive", "-w"}, Parts: []testbed.Build{part(1)}})
	second := filepath.Join(filepath.Dir(testbed.MustCompile(t, part(2))), library)
	p := startRestored(t, path)
	target := strconv.Itoa(p.pid)
	images := t.TempDir()
	runs := func(build int64) {
		t.Helper()
		p.report(t)
		if got := p.last.Counts["build"]; got != build {
			t.Fatalf("build %d runs, not %d", got, build)
		}
	}
	runs(1)
	vos(t, "replace", target+":"+library, "--with", second).expect(t, 0)
	vos(t, "attach", target).expect(t, 0)
	runs(2)
	p.cycle(t, filepath.Join(images, "replaced"))
	runs(2)
	vos(t, "usage", target, "--for", "100ms").expect(t, 0)
	vos(t, "rollback", target+":"+library).expect(t, 0)
	runs(1)
	p.cycle(t, filepath.Join(images, "rolled back"))
	runs(1)
	vos(t, "replace", target+":"+library, "--with", second).expect(t, 0)
	runs(2)
	vos(t, "verify", "--full", target).expect(t, 0)
	vos(t, "detach", target).expect(t, 0)
	p.cycle(t, filepath.Join(images, "detached"))
	runs(2)
}
