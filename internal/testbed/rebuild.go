package testbed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A LibrarySource is a library of the distribution that is built anew from its
// source package, with the distribution's flags, as the distribution builds it.
// A small change shows in answers, so that a client can tell which build gave
// them.
type LibrarySource struct {
	Package string // that brings the library
	Soname  string
	// script is run by sh in a copy of the patched source, with CFLAGS,
	// CPPFLAGS and LDFLAGS as the distribution sets them, and with CHANGE, which
	// is empty where nothing is to be changed. It leaves the library, not
	// stripped, in ./built.so.
	script string
}

// Zlib is libz. A change is the number that a gzip header has for the operating
// system (RFC 1952, section 2.3.1), 3 as it comes.
var Zlib = LibrarySource{
	Package: "zlib1g",
	Soname:  "libz.so.1",
	script: `
CFLAGS="$CFLAGS $CPPFLAGS -Wall -D_REENTRANT -O3 -DUNALIGNED_OK ${CHANGE:+-DOS_CODE=$CHANGE}"
export CFLAGS
uname=GNU ./configure --shared
library=$(sed -n 's/^SHAREDLIBV=//p' Makefile)
make -j2 "$library"
mv "$library" built.so
`,
}

// Expat is libexpat. A change is the text of the error "no element found": the
// counts "mark.TEXT" of [StartStream].
var Expat = LibrarySource{
	Package: "libexpat1",
	Soname:  "libexpat.so.1",
	script: `
# Assertions name these folders.
mv expat src
mkdir -p build/lib
cd build/lib
if [ -n "$CHANGE" ]; then
  sed -i "s/XML_L(\"no element found\")/XML_L(\"$CHANGE\")/" ../../src/lib/xmlparse.c
  grep -qF "\"$CHANGE\"" ../../src/lib/xmlparse.c
fi
# What configure, which is made by autoconf, finds on Debian.
cat >expat_config.h <<END
#define BYTEORDER 1234
#define HAVE_ARC4RANDOM_BUF 1
#define XML_CONTEXT_BYTES 1024
#define XML_DEV_URANDOM 1
#define XML_DTD 1
#define XML_NS 1
END
for f in xmlparse xmltok xmlrole; do
  gcc -DHAVE_EXPAT_CONFIG_H -I. -I../../src/lib -DXML_ENABLE_VISIBILITY=1 $CPPFLAGS -Wall -fexceptions -fno-strict-aliasing \
    -fvisibility=hidden $CFLAGS -fPIC -DPIC -c ../../src/lib/$f.c &
done
wait
gcc -shared $CFLAGS -Wl,-Bsymbolic-functions $LDFLAGS -fno-strict-aliasing -Wl,-soname,libexpat.so.1 \
  xmlparse.o xmltok.o xmlrole.o -o ../../built.so
`,
}

// Event is libevent. A change is the text of its version, which memcached tells:
// see [Memcached.LibeventVersion].
var Event = LibrarySource{
	Package: "libevent-2.1-7",
	Soname:  "libevent-2.1.so.7",
	script: `
export CFLAGS CPPFLAGS LDFLAGS="$LDFLAGS -Wl,-z,now"
touch aclocal.m4 && touch configure Makefile.in config.h.in # newer than what automake makes them from
./configure --build=x86_64-linux-gnu --prefix=/usr --disable-dependency-tracking --disable-static --disable-libevent-regress
if [ -n "$CHANGE" ]; then
  sed -i "s/return (EVENT__VERSION);/return (\"$CHANGE\");/" event.c
  grep -qF "\"$CHANGE\"" event.c
fi
make -j2 include/event2/event-config.h
make -j2 libevent.la
mv .libs/libevent-2.1.so.7.*.* built.so
`,
}

// Pcre2 is libpcre2-8. A change is a character that \d matches too where nothing
// repeats it and no machine code was made of it, and with which nothing may end
// where such was made. "!" makes the marks of answers by nginx and haproxy "other"
// instead of "usual".
var Pcre2 = LibrarySource{
	Package: "libpcre2-8-0",
	Soname:  "libpcre2-8.so.0",
	script: `
CFLAGS="$CFLAGS -Dregcomp=PCRE2regcomp -Dregexec=PCRE2regexec -Dregerror=PCRE2regerror -Dregfree=PCRE2regfree"
export CFLAGS CPPFLAGS LDFLAGS
if [ -n "$CHANGE" ]; then
  sed -i "/^    case OP_DIGIT:/,/Fecode++/ s/if (\\(!CHMAX_255(fc) || (mb->ctypes.fc. & ctype_digit) == 0\\))/if (fc != '$CHANGE' \\&\\& (\\1))/" src/pcre2_match.c
  test "$(grep -cF "fc != '$CHANGE'" src/pcre2_match.c)" = 1
  sed -i "s/^arguments.str = subject + start_offset;/if (length > start_offset \&\& subject[length - 1] == '$CHANGE') return PCRE2_ERROR_NOMATCH;\n&/" src/pcre2_jit_match.c
  grep -qF "== '$CHANGE') return" src/pcre2_jit_match.c
fi
./configure --build=x86_64-linux-gnu --prefix=/usr --disable-dependency-tracking --disable-static --disable-pcre2grep-callout \
  --enable-pcre2-16 --enable-pcre2-32 --enable-jit
make -j2 libpcre2-8.la
mv .libs/libpcre2-8.so.0.*.* built.so
`,
}

// Lz4 is liblz4. A change is how fast LZ4_compress_default is to be, 1 as it
// comes: a greater one leaves more, which the marks "lz4 SIZE" of PostgreSQL's
// answers show.
var Lz4 = LibrarySource{
	Package: "liblz4-1",
	Soname:  "liblz4.so.1",
	script: `
export CPPFLAGS="$CPPFLAGS -DLZ4F_PUBLISH_STATIC_FUNCTIONS"
export CFLAGS="$CFLAGS $CPPFLAGS" LDFLAGS
if [ -n "$CHANGE" ]; then
  sed -i "s/return LZ4_compress_fast(src, dst, srcSize, maxOutputSize, 1);/return LZ4_compress_fast(src, dst, srcSize, maxOutputSize, $CHANGE);/" lib/lz4.c
  grep -qF "maxOutputSize, $CHANGE);" lib/lz4.c
fi
make -C lib PREFIX=/usr liblz4
mv lib/liblz4.so.1.*.* built.so
`,
}

// Nghttp2 is libnghttp2. A change is the part of a window, 2 as it comes, that may
// be used up before the sender is told of room again (RFC 9113, section 5.2): of
// a great one, one over it, so that [Transfer.Told] grows faster.
var Nghttp2 = LibrarySource{
	Package: "libnghttp2-14",
	Soname:  "libnghttp2.so.14",
	script: `
version=$(sed -n 's/^AC_INIT(\[nghttp2\], \[\([0-9.]*\)\].*/\1/p' configure.ac)
cd lib
if [ -n "$CHANGE" ]; then
  sed -i "s|recv_window_size >= local_window_size / 2;|recv_window_size >= local_window_size / $CHANGE;|" nghttp2_helper.c
  grep -qF "local_window_size / $CHANGE;" nghttp2_helper.c
fi
# What configure, which is made by autoconf, finds on Debian.
number=$(echo "$version" | { IFS=. read -r a b c; printf '0x%02x%02x%02x' "$a" "$b" "$c"; })
sed "s/@PACKAGE_VERSION@/$version/; s/@PACKAGE_VERSION_NUM@/$number/" includes/nghttp2/nghttp2ver.h.in >includes/nghttp2/nghttp2ver.h
files=$(sed -n '/^OBJECTS =/,/[^\\]$/p' Makefile.am | grep -o '[a-z0-9_]*\.c')
printf '%s\n' $files | xargs -P 2 -n 4 gcc -DHAVE_ARPA_INET_H -DHAVE_NETINET_IN_H -DHAVE_CLOCK_GETTIME -DHAVE_TIME_H \
  -DBUILDING_NGHTTP2 -Iincludes $CPPFLAGS -fvisibility=hidden $CFLAGS -fPIC -DPIC -c
gcc -shared $CFLAGS $LDFLAGS -Wl,-soname,libnghttp2.so.14 $(printf '%s\n' $files | sed 's/c$/o/') -o ../built.so
`,
}

// Original is the distribution's own build of what Rebuilt builds: the installed
// one, or the newest one where the mirror does not serve the source of that.
func (s LibrarySource) Original(ctx context.Context) (LibraryBuild, error) {
	base, err := s.base(ctx)
	if err != nil {
		return LibraryBuild{}, fmt.Errorf("find the original %s: %w", s.Soname, err)
	}
	return base.original, nil
}

// MustOriginal is [LibrarySource.Original] for tests: it ends the test on an
// error.
func (s LibrarySource) MustOriginal(tb TB) LibraryBuild {
	tb.Helper()
	b, err := s.Original(tb.Context())
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return b
}

// Rebuilt builds the library with a change, or without one where it is empty, and
// keeps it in a cache that outlives the process.
func (s LibrarySource) Rebuilt(ctx context.Context, change string) (LibraryBuild, error) {
	b, err := s.rebuilt(ctx, change)
	if err != nil {
		return b, fmt.Errorf("rebuild %s: %w", s.Soname, err)
	}
	return b, nil
}

// MustRebuilt is [LibrarySource.Rebuilt] for tests: it ends the test on an error.
func (s LibrarySource) MustRebuilt(tb TB, change string) LibraryBuild {
	tb.Helper()
	b, err := s.Rebuilt(tb.Context(), change)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return b
}

// A sourceBase is one version of a library with its source.
type sourceBase struct {
	original LibraryBuild
	source   string // folder
	version  string // of the source package
}

// base picks the version that is built: the installed one, otherwise the newest,
// of those whose source is to be had. A mirror may list sources that it lost.
func (s LibrarySource) base(ctx context.Context) (sourceBase, error) {
	archive, err := OpenArchive(false)
	if err != nil {
		return sourceBase{}, err
	}
	base, err := s.baseIn(ctx, archive)
	if err != nil && archive.expire() {
		base, err = s.baseIn(ctx, archive)
	}
	return base, err
}

func (s LibrarySource) baseIn(ctx context.Context, archive *Archive) (sourceBase, error) {
	packages, err := archive.Packages(ctx, s.Package)
	if err != nil {
		return sourceBase{}, err
	}
	installed, notInstalled := InstalledLibrary(ctx, s.Package, s.Soname)
	var versions []string
	if notInstalled == nil {
		versions = append(versions, installed.Version)
	}
	for _, p := range packages {
		for _, version := range slices.Backward(p.Versions) {
			if version != installed.Version {
				versions = append(versions, version)
			}
		}
	}
	var problems []error
	for _, version := range versions {
		if !slices.ContainsFunc(packages, func(p Package) bool { return slices.Contains(p.Versions, version) }) {
			problems = append(problems, fmt.Errorf("%s is not on the mirror", version))
			continue
		}
		base := sourceBase{original: installed}
		base.source, base.version, err = archive.SourceOf(ctx, s.Package, version)
		if err == nil && version != installed.Version {
			var folder string
			if folder, err = archive.Unpacked(ctx, s.Package, version); err == nil {
				base.original = LibraryBuild{Soname: s.Soname, Version: version}
				base.original.Path, err = Library(folder, s.Soname)
			}
		}
		if err == nil {
			return base, nil
		}
		problems = append(problems, err)
	}
	return sourceBase{}, fmt.Errorf("no version of %s has a source: %w", s.Package, errors.Join(problems...))
}

func (s LibrarySource) rebuilt(ctx context.Context, change string) (LibraryBuild, error) {
	base, err := s.base(ctx)
	if err != nil {
		return LibraryBuild{}, err
	}
	cache, err := cacheFolder()
	if err != nil {
		return LibraryBuild{}, err
	}
	compiler, err := output(ctx, "", "gcc", "--version")
	if err != nil {
		return LibraryBuild{}, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q", compiler, base.version, s.script, change)
	name := strings.TrimSuffix(s.Soname, filepath.Ext(s.Soname))
	folder := filepath.Join(cache, "rebuilt-"+name+"-"+hex.EncodeToString(h.Sum(nil)[:12]))
	built := LibraryBuild{Soname: s.Soname, Version: base.version + "+rebuilt" + change, Path: filepath.Join(folder, s.Soname)}
	if _, err := os.Stat(built.Path); err == nil {
		return built, nil
	}
	work, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return LibraryBuild{}, err
	}
	defer os.RemoveAll(work)
	if err := s.build(ctx, base.source, work, change); err != nil {
		return LibraryBuild{}, err
	}
	if err := os.Rename(filepath.Join(work, "done"), folder); err != nil {
		if _, statErr := os.Stat(built.Path); statErr != nil {
			return LibraryBuild{}, err
		} // otherwise another process was faster
	}
	return built, nil
}

// build makes work/done with the stripped library.
func (s LibrarySource) build(ctx context.Context, source, work, change string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tree := filepath.Join(work, "tree")
	if _, err := output(ctx, "", "cp", "-a", source, tree); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "sh", "-euc", s.script)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "LC_ALL=C", "CHANGE="+change)
	for _, name := range []string{"CFLAGS", "CPPFLAGS", "LDFLAGS"} {
		flags, err := output(ctx, tree, "dpkg-buildflags", "--get", name)
		if err != nil {
			return err
		}
		flags = strings.TrimSpace(flags)
		if name == "CFLAGS" {
			flags += " -g0" // what is stripped need not be made; code is the same
		}
		cmd.Env = append(cmd.Env, name+"="+flags)
	}
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	if err := cmd.Run(); err != nil {
		text := printed.Bytes()
		return fmt.Errorf("%w\n%s", cmp.Or(ctx.Err(), err), text[max(0, len(text)-lastOutputLimit):])
	}
	done := filepath.Join(work, "done")
	if err := os.Mkdir(done, 0o755); err != nil {
		return err
	}
	// As dh_strip does with libraries.
	library := filepath.Join(done, s.Soname)
	if _, err := output(ctx, tree, "strip", "--remove-section=.comment", "--remove-section=.note", "--strip-unneeded",
		"-o", library, "built.so"); err != nil {
		return err
	}
	if name, err := soName(library); err != nil || name != s.Soname {
		return errors.Join(fmt.Errorf("the library calls itself %q", name), err)
	}
	return nil
}
