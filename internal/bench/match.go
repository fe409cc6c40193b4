package bench

import (
	"context"
	"os"
	"time"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// Match measures the comparison of two builds, on their files alone.
func Match(ctx context.Context, runs int) ([]Figure, error) {
	zlib, err := rebuiltPair(ctx, testbed.Zlib, "7")
	if err != nil {
		return nil, err
	}
	builds, err := testbed.LibraryBuilds(ctx, "libssl3", "libcrypto.so.3")
	if err != nil {
		return nil, err
	}
	last := len(builds) - 1
	var figures []Figure
	for _, p := range []pair{zlib, {builds[last-1], builds[last]}} {
		f := Figure{Name: p.String()}
		for range runs {
			took, _, err := matchOnce(p)
			if err != nil {
				return figures, err
			}
			f.Samples = append(f.Samples, took)
		}
		figures = append(figures, f)
	}
	return figures, nil
}

func matchOnce(p pair) (took time.Duration, m *match.Match, err error) {
	begin := time.Now()
	var objects []*dso.Object
	for _, path := range []string{p.old.Path, p.new.Path} {
		file, err := os.Open(path)
		if err != nil {
			return 0, nil, err
		}
		defer file.Close() // only read from
		info, err := file.Stat()
		if err != nil {
			return 0, nil, err
		}
		o, err := dso.ReadFile(file, info.Size())
		if err != nil {
			return 0, nil, err
		}
		objects = append(objects, o)
	}
	m, err = match.Compare(objects[0], objects[1], match.Options{})
	return time.Since(begin), m, err
}
