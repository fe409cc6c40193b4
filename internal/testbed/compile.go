package testbed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed fixtures
var fixtureFiles embed.FS

// A Build says how a program or a shared object is made from source text.
type Build struct {
	Name     string   // base name of the file that is made
	Source   string   // source text; "" takes Files[0] alone
	Files    []string // embedded files under fixtures/: what is compiled comes first, headers after it
	Language string   // "c" (default), "musl" (C, with musl's C library), "c++" or "go"
	Flags    []string // for the compiler, after the defaults
	Libs     []string // -l flags, after the source
	Parts    []Build  // shared objects made first, in the same folder, and linked
}

// Compile makes the program b and returns its path in a cache that outlives the
// process: the same source, flags and compiler are compiled once. Shared
// objects among b.Parts lie beside it and are found through $ORIGIN.
//
// Defaults for C and C++ are -O2 -g -pthread; b.Flags come later and win.
// A go program is built with CGO_ENABLED=0. The error carries what the compiler
// printed.
func Compile(ctx context.Context, b Build) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	key, err := b.key()
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	folder := filepath.Join(cache, b.Name+"-"+key)
	program := filepath.Join(folder, b.Name)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	// Compiled in a folder of its own and renamed when it is whole: several
	// test binaries may want the same fixture at the same time.
	work, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	defer os.RemoveAll(work)
	if err := b.make(ctx, work); err != nil {
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	// Fixtures also run as other users.
	if err := os.Chmod(work, 0o755); err != nil {
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	if err := os.Rename(work, folder); err != nil {
		if _, statErr := os.Stat(program); statErr == nil {
			return program, nil // another process was faster
		}
		return "", fmt.Errorf("compile %s: %w", b.Name, err)
	}
	return program, nil
}

// MustCompile is [Compile] for tests: it ends the test on an error.
func MustCompile(tb TB, b Build) string {
	tb.Helper()
	path, err := Compile(tb.Context(), b)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return path
}

// cacheFolder is where compiled fixtures stay: below the user's cache, or below
// the temporary folder where there is none.
func cacheFolder() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	folder := filepath.Join(base, "vos-testbed")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	return folder, nil
}

func (b Build) compiler() string {
	switch b.Language {
	case "c++":
		return "g++"
	case "go":
		return "go"
	case "musl":
		return "musl-gcc"
	}
	return "gcc"
}

// sources returns the files of b, the one to be compiled first.
func (b Build) sources() (names []string, texts [][]byte, err error) {
	if b.Source != "" {
		extension := map[string]string{"": ".c", "c": ".c", "musl": ".c", "c++": ".cc", "go": ".go"}[b.Language]
		names, texts = append(names, b.Name+extension), append(texts, []byte(b.Source))
	}
	for _, file := range b.Files {
		text, err := fixtureFiles.ReadFile("fixtures/" + file)
		if err != nil {
			return nil, nil, fmt.Errorf("read embedded fixture %s: %w", file, err)
		}
		names, texts = append(names, filepath.Base(file)), append(texts, text)
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("no source")
	}
	return names, texts, nil
}

// key is a hash of all that the result depends on.
func (b Build) key() (string, error) {
	compiler, err := exec.LookPath(b.compiler())
	if err != nil {
		return "", fmt.Errorf("find the compiler: %w (scripts/deps.sh installs it)", err)
	}
	info, err := os.Stat(compiler)
	if err != nil {
		return "", err
	}
	names, texts, err := b.sources()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %d %q %q %q\n", compiler, info.Size(), info.ModTime().Unix(), b.Name, b.Flags, b.Libs)
	for i := range names {
		fmt.Fprintf(h, "%q %d\n", names[i], len(texts[i]))
		h.Write(texts[i])
	}
	for _, part := range b.Parts {
		key, err := part.key()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q\n", key)
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// make compiles b and its parts into folder. The sources stay there, for a
// debugger to show.
func (b Build) make(ctx context.Context, folder string) error {
	names, texts, err := b.sources()
	if err != nil {
		return err
	}
	for i := range names {
		if err := os.WriteFile(filepath.Join(folder, names[i]), texts[i], 0o644); err != nil {
			return err
		}
	}
	var args []string
	if b.Language == "go" {
		args = append([]string{"build", "-o", b.Name}, b.Flags...)
		args = append(args, names[0])
	} else {
		args = append([]string{"-O2", "-g", "-pthread", "-o", b.Name}, b.Flags...)
		args = append(args, names[0])
		for _, part := range b.Parts {
			if err := part.make(ctx, folder); err != nil {
				return fmt.Errorf("%s: %w", part.Name, err)
			}
			args = append(args, part.Name)
		}
		if len(b.Parts) > 0 {
			args = append(args, "-Wl,-rpath,$ORIGIN")
		}
		args = append(args, b.Libs...)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.compiler(), args...)
	cmd.Dir = folder
	if b.Language == "go" {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GO111MODULE=off", "GOFLAGS=")
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", b.compiler(), strings.Join(args, " "), cmp.Or(ctx.Err(), err), out.Bytes())
	}
	return nil
}
