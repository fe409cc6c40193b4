package cli

import "testing"

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 102_399: "100 KiB",
		1_048_063: "1023 KiB", 1_048_064: "1.0 MiB", 12_897_485: "12.3 MiB", 1 << 40: "1.0 TiB", 1 << 62: "4096 PiB",
	} {
		if got := byteSize(n); got != want {
			t.Errorf("byteSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for ms, want := range map[int64]string{
		-5: "0s", 0: "0s", 999: "0s", 42_000: "42s", 60_000: "1m", 303_000: "5m3s", 3_600_000: "1h",
		11_040_000: "3h4m", 273_600_000: "3d4h", 259_200_000: "3d", 66_528_000_000: "2y40d",
	} {
		if got := age(ms); got != want {
			t.Errorf("age(%d) = %q, want %q", ms, got, want)
		}
	}
}

func TestPause(t *testing.T) {
	for us, want := range map[int64]string{
		0: "0 µs", 81: "81 µs", 999: "999 µs", 1900: "1.9 ms", 99_949: "99.9 ms", 99_950: "100 ms",
		812_000: "812 ms", 999_500: "1.0 s", 2_100_000: "2.1 s", 61_000_000: "1m1s",
	} {
		if got := pause(us); got != want {
			t.Errorf("pause(%d) = %q, want %q", us, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for _, c := range []struct {
		n           int
		thing, want string
	}{{0, "module", "0 modules"}, {1, "module", "1 module"}, {1, "process", "1 process"}, {2, "process", "2 processes"}} {
		if got := count(c.n, c.thing); got != c.want {
			t.Errorf("count(%d, %q) = %q, want %q", c.n, c.thing, got, c.want)
		}
	}
}

func TestShortHex(t *testing.T) {
	for _, c := range []struct {
		digits string
		length int
		want   string
	}{
		{"cc", 1, "cc"},
		{"0011223344556677", 8, "0011223344556677"},
		{"001122334455667788", 9, "0011223344556677…"},
		{"0011", 70, "0011…"},
		{"", 3, ""},
		{"in a module that defines deflate", 8, "in a module that defines deflate"},
	} {
		if got := shortHex(c.digits, c.length); got != c.want {
			t.Errorf("shortHex(%q, %d) = %q, want %q", c.digits, c.length, got, c.want)
		}
	}
}
