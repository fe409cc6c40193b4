package live

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// queued has packets that wait: it reads them when it is asked, and sends others.
const queued = `
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#ifndef SO_PEEK_OFF
#define SO_PEEK_OFF 42
#endif
enum { COUNT = 20 };
int main(void)
{
	int pair[2];
	socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair);
	char line[100], packet[5000];
	setvbuf(stdout, 0, _IOLBF, 0);
	for (long n = 0;; n++) {
		for (int i = 0; i < COUNT; i++) {
			memset(packet, 'a' + i, sizeof packet);
			send(pair[0], packet, i * 250, 0);
		}
		if (!n)
			puts("ready");
		if (!fgets(line, sizeof line, stdin))
			return 0;
		const char *wrong = "";
		int offset;
		socklen_t size = sizeof offset;
		if (getsockopt(pair[1], SOL_SOCKET, SO_PEEK_OFF, &offset, &size) || offset != -1)
			wrong = "the option is left";
		for (int i = 0; i < COUNT; i++) {
			int got = recv(pair[1], packet, sizeof packet, MSG_PEEK), again = recv(pair[1], packet, sizeof packet, 0);
			if (got != i * 250 || again != got || got && (packet[0] != 'a' + i || packet[got - 1] != 'a' + i))
				wrong = "a packet is another one";
		}
		if (recv(pair[1], packet, sizeof packet, 0) != -1 || errno != EAGAIN)
			wrong = "there are more packets";
		printf("{\"fixture\":\"queued\",\"errors\":%d,\"error\":\"%s\",\"progress\":%ld}\n", *wrong != 0, wrong, n + 1);
	}
}`

// TestRestoredPackets: packets that wait in a socket come back, and stay where vOS is
// killed while it looks at them.
func TestRestoredPackets(t *testing.T) {
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "queued", Source: queued}))
	folder := t.TempDir()
	for n := range 4 {
		p.cycle(t, filepath.Join(folder, fmt.Sprint(n)))
		p.report(t)
	}
	kills := 20
	if soak {
		kills = 300
	}
	args := []string{"checkpoint", strconv.Itoa(p.pid), "-D", filepath.Join(folder, "image"), "--leave-running", "--inherit", "0,1,2"}
	limit := time.Hour
	remove := func() {
		t.Helper()
		if err := os.RemoveAll(args[3]); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		limit = min(limit, whole(t, args...))
		remove()
	}
	killed := 0
	for range kills {
		if killAfter(t, time.Duration(rand.Int64N(int64(limit))), args) {
			killed++
		}
		p.report(t)
		remove()
	}
	t.Logf("%d of %d were killed", killed, kills)
}
