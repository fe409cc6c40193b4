package testbed

import (
	"strings"
	"syscall"
	"testing"
)

// How often curl tells the server that there is room shows its libnghttp2.
func TestTransferShowsItsNghttp2(t *testing.T) {
	curl := MustLibraryBuilds(t, "libcurl4", "libcurl.so.4")[0]
	for _, run := range []struct {
		build       LibraryBuild
		least, most int64
	}{{Nghttp2.MustOriginal(t), 0, 500}, {Nghttp2.MustRebuilt(t, "1024"), 1000, 100000}} {
		libraries := RunLibraries(t, curl, run.build)
		transfer := RunTransfer(t, TransferOptions{Env: libraries.Env()})
		checkMapped(t, transfer.Pid(), libraries, curl.Soname, run.build.Soname)
		if err := transfer.Await(t.Context(), 64<<10); err != nil {
			t.Fatal(err)
		}
		told := transfer.Told()
		if err := transfer.Await(t.Context(), 4<<20); err != nil {
			t.Fatal(err)
		}
		told = transfer.Told() - told
		t.Logf("%s: told by %d bytes", run.build.Version, told)
		if told < run.least || told > run.most {
			t.Errorf("told by %d bytes, want %d to %d", told, run.least, run.most)
		}
	}
}

func TestTransferSeesLostClient(t *testing.T) {
	transfer, err := StartTransfer(t.Context(), TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(transfer.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := transfer.Finish(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a killed curl: %v", err)
	}
}
