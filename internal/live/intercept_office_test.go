package live

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// An office is LibreOffice that converts documents, without a display.
type office struct {
	pid    int // of soffice.bin
	folder string
	ended  chan error
	output bytes.Buffer
}

// startOffice lets LibreOffice convert all files of in that end so, into a folder out.
func startOffice(t *testing.T, folder, in, ending, to, out string) *office {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, in, "*."+ending))
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	o := &office{folder: filepath.Join(folder, out), ended: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	// It leaves children to whoever reaps orphans.
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--pid", "--fork", "--kill-child", testbed.NeedTool(t, "soffice"), "--headless",
		"-env:UserInstallation=file://" + filepath.Join(folder, "profile"), "--convert-to", to, "--outdir", o.folder}, files...)...)
	cmd.Stdout, cmd.Stderr = &o.output, &o.output
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer cancel()
		o.ended <- cmd.Wait()
	}()
	o.awaitConverted(t, 1) // with a new profile it begins twice
	await(t, "soffice.bin", func() bool {
		for pids := []int{cmd.Process.Pid}; len(pids) > 0; pids = pids[1:] {
			name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pids[0]))
			if err == nil && string(name) == "soffice.bin\n" {
				o.pid = pids[0]
				return true
			}
			pids = append(pids, testbed.Children(pids[0])...)
		}
		return false
	})
	return o
}

// converted counts the documents that there are.
func (o *office) converted(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(o.folder)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(entries)
}

// awaitConverted waits for so many documents.
func (o *office) awaitConverted(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); o.converted(t) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d documents are converted, and not %d\n%s", o.converted(t), n, o.output.String())
		}
	}
}

// TestInterceptOffice attaches and detaches LibreOffice, again and again, while it turns
// texts into documents, and documents into texts: those are what was there at first.
func TestInterceptOffice(t *testing.T) {
	if !soak {
		t.Skip("LibreOffice is installed by make soak")
	}
	const documents = 120
	folder := t.TempDir()
	text := func(n int) string {
		var s strings.Builder
		for line := range 2500 {
			fmt.Fprintf(&s, "Paragraph %d of document %d: %d, ä, €\n", line, n, n*line*line)
		}
		return s.String()
	}
	if err := os.Mkdir(filepath.Join(folder, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range documents {
		if err := os.WriteFile(filepath.Join(folder, "in", fmt.Sprintf("%d.txt", n)), []byte(text(n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range []struct{ in, ending, to, out string }{
		{"in", "txt", "odt", "odt"}, {"odt", "odt", "txt:Text (encoded):UTF8", "out"},
	} {
		o := startOffice(t, folder, run.in, run.ending, run.to, run.out)
		cycles := 0
		for ; o.converted(t) < documents/3; cycles++ { // it must not end in the middle
			for _, i := range attachAll(t, []int{o.pid}, [][]string{nil, {"--memory"}, {"--memory", "--pointers"}}[cycles%3]...) {
				if i.Outcome != api.Attached || i.Slots == 0 {
					t.Fatalf("attach: %+v", i)
				}
			}
			o.awaitConverted(t, o.converted(t)+2)
			if u := usageOf(t, strconv.Itoa(o.pid)); u["libswlo.so"].Calls == 0 || u["libswlo.so"].Used == 0 {
				t.Errorf("nothing is counted of Writer: %+v", u["libswlo.so"])
			}
			vos(t, "verify", strconv.Itoa(o.pid)).expect(t, 0)
			for _, i := range detachAll(t, []int{o.pid}) {
				if i.Outcome != api.Detached {
					t.Fatalf("detach: %+v", i)
				}
			}
			o.awaitConverted(t, o.converted(t)+1)
			checkFree(t, o.pid)
		}
		if err := <-o.ended; err != nil || o.converted(t) != documents {
			t.Fatalf("%d documents are converted, %v\n%s", o.converted(t), err, o.output.String())
		}
		t.Logf("%s: attached and detached %d times", run.to, cycles)
		if cycles < 2 {
			t.Errorf("%s: attached %d times only", run.to, cycles)
		}
	}
	for n := range documents {
		got, err := os.ReadFile(filepath.Join(folder, "out", fmt.Sprintf("%d.txt", n)))
		if err != nil {
			t.Fatal(err)
		}
		if string(bytes.TrimPrefix(got, []byte("\ufeff"))) != text(n) {
			t.Errorf("document %d has become another one", n)
		}
	}
}
