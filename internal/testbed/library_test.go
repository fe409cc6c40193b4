package testbed

import (
	"debug/elf"
	"slices"
	"testing"
)

// textOf returns the code of a library.
func textOf(t *testing.T, b LibraryBuild) []byte {
	t.Helper()
	f, err := elf.Open(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	section := f.Section(".text")
	if section == nil {
		t.Fatalf("%s has no code", b.Path)
	}
	text, err := section.Data()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestZlibIsRebuiltAsTheDistributionBuildsIt proves that the change is all that
// tells a rebuilt library from the distribution's own.
func TestZlibIsRebuiltAsTheDistributionBuildsIt(t *testing.T) {
	original := textOf(t, Zlib.MustOriginal(t))
	if !slices.Equal(original, textOf(t, Zlib.MustRebuilt(t, ""))) {
		t.Error("the library, rebuilt without a change, has other code than the distribution's")
	}
	changed := textOf(t, Zlib.MustRebuilt(t, "7"))
	if len(changed) != len(original) {
		t.Fatalf("%d bytes of code, not %d", len(changed), len(original))
	}
	var differ []byte
	for i := range original {
		if original[i] != changed[i] {
			differ = append(differ, original[i], changed[i])
		}
	}
	if !slices.Equal(differ, []byte{3, 7}) {
		t.Errorf("these bytes differ: %d", differ)
	}
}

func TestLibraryBuildsAreOldAndNew(t *testing.T) {
	builds := MustLibraryBuilds(t, "libssl3", "libcrypto.so.3")
	first, last := builds[0], builds[len(builds)-1]
	if first.Version == last.Version || slices.Equal(textOf(t, first), textOf(t, last)) {
		t.Errorf("%s and %s are the same", first, last)
	}
}

func TestLibrariesAreReplacedAsByAnUpgrade(t *testing.T) {
	libraries := RunLibraries(t, Zlib.MustOriginal(t))
	old := textOf(t, LibraryBuild{Path: libraries.Path(Zlib.Soname)})
	if err := libraries.Install(Zlib.MustRebuilt(t, "7")); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(old, textOf(t, LibraryBuild{Path: libraries.Path(Zlib.Soname)})) {
		t.Error("the library was not replaced")
	}
}
