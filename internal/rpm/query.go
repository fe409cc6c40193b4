package rpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// answerFormat makes rpm print a line for a package, and one for each of its
// files.
const answerFormat = `P\t%{NAME}\t%{ARCH}\t%{EVR}\n[F%{FILENAMES}\n]`

// Paths of one run, and bytes of them: well below what execve takes.
const (
	mostArguments     = 256
	mostArgumentBytes = 128 << 10
)

// Owners returns the packages that paths belong to, with their versions. Paths
// are absolute; one that belongs to no package is missing, as is one that rpm
// can't be asked about. Where this machine has no rpm the error wraps
// exec.ErrNotFound.
func (d *Database) Owners(ctx context.Context, paths []string) (map[string]Package, error) {
	program, err := exec.LookPath("rpm")
	if err != nil {
		return nil, fmt.Errorf("the packages are rpm's, which this machine does not have: %w", err)
	}
	removeStale()
	folder, err := os.MkdirTemp("", copies)
	if err != nil {
		return nil, fmt.Errorf("copy rpm's database: %w", err)
	}
	owners, err := d.owners(ctx, program, folder, paths)
	return owners, errors.Join(err, os.RemoveAll(folder))
}

func (d *Database) owners(ctx context.Context, program, folder string, paths []string) (map[string]Package, error) {
	if asNobody() {
		if err := os.Chown(folder, nobody, nobody); err != nil {
			return nil, fmt.Errorf("copy rpm's database: %w", err)
		}
	}
	if err := d.copyTo(folder); err != nil {
		return nil, err
	}
	var arguments []string
	size := 0
	listed := make(map[string]Package) // what was asked about, as a package lists it
	ask := func() error {
		if len(arguments) == 0 {
			return nil
		}
		answer, err := d.run(ctx, program, folder, arguments)
		if err != nil {
			return err
		}
		read(answer, arguments, listed)
		arguments, size = arguments[:0], 0
		return nil
	}
	for _, p := range paths {
		for _, form := range forms(p) {
			arguments, size = append(arguments, form), size+len(form)
		}
		if len(arguments) >= mostArguments || size >= mostArgumentBytes {
			if err := ask(); err != nil {
				return nil, err
			}
		}
	}
	if err := ask(); err != nil {
		return nil, err
	}
	if err := d.wasRead(folder); err != nil {
		return nil, err
	}
	owners := make(map[string]Package)
	for _, p := range paths {
		for _, form := range forms(p) {
			if owner, found := listed[form]; found {
				owners[p] = owner
				break
			}
		}
	}
	return owners, nil
}

// wasRead fails where rpm does not know the database's format: without a word it
// makes an empty database of its own, beside that one.
func (d *Database) wasRead(folder string) error {
	for _, files := range formats {
		if files[0] == d.files[0] {
			continue
		}
		if _, err := os.Lstat(filepath.Join(folder, files[0])); err == nil {
			return fmt.Errorf("ask rpm: this machine's does not know databases as %s/%s: %w", d.folder, d.files[0], errors.ErrUnsupported)
		}
	}
	return nil
}

// merged are the directories that are links to those of the same names below
// /usr: a path may be written in two ways, and lists have either.
var merged = [...]string{"/bin/", "/sbin/", "/lib/", "/lib64/"}

// forms returns the ways to write a path, as it was asked for first. One that
// rpm can't be asked about has none.
func forms(path string) []string {
	if !strings.HasPrefix(path, "/") || len(path) > 4096 || strings.ContainsAny(path, "\x00\n") {
		return nil
	}
	for _, folder := range merged {
		if strings.HasPrefix(path, folder) {
			return []string{path, "/usr" + path}
		}
		if strings.HasPrefix(path, "/usr"+folder) {
			return []string{path, path[len("/usr"):]}
		}
	}
	return []string{path}
}

// read notes of what was asked about the packages that list it: the first of
// those that share a file.
func read(answer []byte, asked []string, listed map[string]Package) {
	wanted := make(map[string]bool, len(asked))
	for _, path := range asked {
		wanted[path] = true
	}
	var owner Package
	for len(answer) > 0 {
		var line []byte
		line, answer, _ = bytes.Cut(answer, newline)
		switch {
		case bytes.HasPrefix(line, []byte("P\t")):
			owner = packageOf(string(line[2:]))
		case bytes.HasPrefix(line, []byte("F")) && owner.Name != "" && wanted[string(line[1:])]:
			if _, known := listed[string(line[1:])]; !known {
				listed[string(line[1:])] = owner
			}
		}
	}
}

var newline = []byte("\n")

// packageOf reads NAME, ARCH and VERSION; it is zero where one is not valid.
func packageOf(text string) Package {
	fields := strings.Split(text, "\t")
	if len(fields) != 3 {
		return Package{}
	}
	p := Package{fields[0], fields[1], strings.TrimPrefix(fields[2], "0:")}
	if p.Architecture == "(none)" {
		p.Architecture = ""
	}
	if !validName(p.Name) || p.Architecture != "" && !validName(p.Architecture) || !validVersion(p.Version) {
		return Package{}
	}
	return p
}

// run asks rpm who owns paths. It exits with the number of those that nobody
// owns, so failure is told by what it complains about.
func (d *Database) run(ctx context.Context, program, folder string, paths []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"--dbpath", folder, "--nosignature", "--nodigest",
		"-q", "-f", "--queryformat", answerFormat, "--"}, paths...)...)
	cmd.Dir = "/"
	// Without a home there are no macros of the user's own, which may run programs.
	cmd.Env = []string{"LC_ALL=C", "HOME=/nonexistent", "PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with what it may have started
	if asNobody() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	answer, complaints := &bounded{most: mostOutput, fail: true}, &bounded{most: 64 << 10}
	cmd.Stdout, cmd.Stderr = answer, complaints
	// The kernel sends the signal when the thread that forked ends.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	switch {
	case answer.exceeded:
		return nil, fmt.Errorf("ask rpm: an answer of more than %d bytes: %w", answer.most, ErrTooLarge)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask rpm: %w", ctx.Err())
	case errors.As(err, &exit) && exit.Exited():
		if reason := complaint(complaints.text); reason != "" {
			return nil, fmt.Errorf("ask rpm: %s", reason)
		}
	case err != nil:
		return nil, fmt.Errorf("ask rpm: %w", err)
	}
	return answer.text, nil
}

// complaint returns the first thing that went wrong, but for paths that have no
// owner: those need not exist on this machine.
func complaint(text []byte) string {
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		reason, isError := strings.CutPrefix(line, "error: ")
		if isError && !strings.HasPrefix(reason, "file /") {
			return reason[:min(len(reason), 200)]
		}
	}
	return ""
}

// bounded keeps the begin of what is written to it. What is too much is thrown
// away, or else fails.
type bounded struct {
	text     []byte
	most     int
	fail     bool
	exceeded bool
}

func (b *bounded) Write(p []byte) (int, error) {
	fits := min(len(p), b.most-len(b.text))
	b.text = append(b.text, p[:fits]...)
	if fits < len(p) {
		b.exceeded = true
		if b.fail {
			return fits, ErrTooLarge
		}
	}
	return len(p), nil
}
