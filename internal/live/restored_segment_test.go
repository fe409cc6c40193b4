package live

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// attaching has three System V segments: one with a key, attached twice and in part; one
// that is removed and ends with the program; and one of which only its id is given.
const attaching = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>
static volatile long progress;
int main(int argc, char **argv)
{
	int keyed = shmget(atoi(argv[1]), 5 * 4096 + 10, IPC_CREAT | IPC_EXCL | 0640);
	struct shmid_ds set;
	shmctl(keyed, IPC_STAT, &set);
	set.shm_perm.uid = 4711;
	shmctl(keyed, IPC_SET, &set);
	char *a = shmat(keyed, 0, 0), *b = shmat(keyed, 0, SHM_RDONLY);
	munmap(a + 4096, 4096);
	mprotect(a + 3 * 4096, 4096, PROT_READ);
	int removed = shmget(IPC_PRIVATE, 4096, 0600);
	char *c = shmat(removed, 0, 0);
	shmctl(removed, IPC_RMID, 0);
	int other = atoi(argv[2]);
	char *d = shmat(other, 0, 0);
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	char line[100];
	for (long n = 0; fgets(line, sizeof line, stdin); n = progress) {
		const char *wrong = "";
		if (n && (*(long *)a != n || *(long *)(b + 2 * 4096) != -n || *(long *)c != n + 1))
			wrong = "a segment has other content";
		*(long *)a = ++progress;
		if (*(long *)b != progress)
			wrong = "the segment is two";
		*(long *)(a + 2 * 4096) = -progress;
		*(long *)c = progress + 1;
		*(long *)d += 1;
		struct shmid_ds s;
		if (shmctl(keyed, IPC_STAT, &s) || s.shm_nattch != 5 || s.shm_perm.uid != 4711 || s.shm_segsz != 5 * 4096 + 10 || (s.shm_perm.mode & 07777) != 0640)
			wrong = "the segment is another one";
		if (shmctl(removed, IPC_STAT, &s) || s.shm_nattch != 1 || !(s.shm_perm.mode & SHM_DEST))
			wrong = "the removed segment is another one";
		printf("{\"fixture\":\"attaching\",\"errors\":%d,\"error\":\"%s\",\"progress\":%ld,\"counts\":{\"keyed\":%d,\"other\":%ld}}\n",
			*wrong != 0, wrong, progress, keyed, *(long *)d);
	}
}`

// TestRestoredSegments: System V segments have the ids and the content that they had,
// where they have stayed and where they are gone.
func TestRestoredSegments(t *testing.T) {
	const key = 0x76536567
	remove := func() {
		if id, err := kernel.FindSegment(key); err == nil {
			if err := kernel.RemoveSegment(id); err != nil {
				t.Error(err)
			}
		}
	}
	remove() // of a run that was killed
	t.Cleanup(remove)
	other := kernel.Segment{ID: 4242<<15 | 99, Size: 4096, Mode: 0o600}
	if err := kernel.MakeSegment(other); err != nil {
		t.Fatal(err)
	}
	content, detach, err := kernel.OpenSegment(other.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(content.Close(), detach(), kernel.RemoveSegment(other.ID)); err != nil {
			t.Error(err)
		}
	}()
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "attaching", Source: attaching}), fmt.Sprint(key), fmt.Sprint(other.ID))
	p.report(t)
	id := int(p.last.Counts["keyed"])
	before := p.mapped(t)
	folder := t.TempDir()
	for n := range 4 {
		asked := p.last.Counts["other"]
		p.cycleWith(t, filepath.Join(folder, fmt.Sprint(n)), func() {
			if n%2 == 1 { // as after a start of the machine
				if err := kernel.RemoveSegment(id); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := content.WriteAt([]byte{100 + byte(n)}, 0); err != nil {
				t.Fatal(err)
			}
		})
		if after := p.mapped(t); !slices.Equal(after, before) {
			t.Fatalf("mapped are\n%s\n\nwere\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
		p.report(t)
		if got := p.last.Counts["other"]; got != 101+int64(n) {
			t.Errorf("what somebody else has attached, too, is %d, was %d", got, asked)
		}
	}
	if _, err := kernel.StatSegment(id); err != nil {
		t.Error(err)
	}
	if _, err := kernel.StatSegment(1 << 20); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
