package testbed

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTransferArrives(t *testing.T) {
	nghttp2, err := InstalledLibrary(t.Context(), "libnghttp2-14", "libnghttp2.so.14")
	if err != nil {
		t.Fatal(err)
	}
	libraries := RunLibraries(t, MustLibraryBuilds(t, "libcurl4", "libcurl.so.4")[0], nghttp2)
	transfer := RunTransfer(t, TransferOptions{Env: libraries.Env()})
	checkMapped(t, transfer.Pid(), libraries, "libcurl.so.4", "libnghttp2.so.14")
	before := transfer.Received()
	time.Sleep(time.Second)
	if n := transfer.Received() - before; n < 1<<20 {
		t.Errorf("%d bytes in a second", n)
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
