package testbed

import "testing"

func TestHAProxyServes(t *testing.T) {
	libraries := RunLibraries(t, Pcre2.MustOriginal(t), MustLibraryBuilds(t, "libssl3", "libssl.so.3")[0], MustLibraryBuilds(t, "libssl3", "libcrypto.so.3")[0])
	for _, secure := range []bool{false, true} {
		h := RunHAProxy(t, HAProxyOptions{TLS: secure, Env: libraries.Env()})
		checkMapped(t, h.Pid(), libraries, Pcre2.Soname, "libssl.so.3", "libcrypto.so.3")
		total := checkServed(t, h.Load(t.Context(), LoadOptions{Conns: 20, Fresh: -1}))
		if total.Connections != 20 {
			t.Errorf("%d connections of 20 clients", total.Connections)
		}
	}
}
