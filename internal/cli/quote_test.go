package cli

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestQuoted(t *testing.T) {
	for name, want := range map[string]string{
		"":                     "",
		"nginx":                "nginx",
		"web content (x) \\n":  `web content (x) \n`,
		"größe":                "größe",
		"軟件":                   "軟件",
		" padded":              `" padded"`,
		"\"quoted\"":           `"\"quoted\""`,
		"two\nlines":           `"two\nlines"`,
		"\x1b]0;title\x07":     `"\x1b]0;title\a"`,
		"c1\u009bm":            `"c1\u009bm"`,
		"latin1\xe9":           `"latin1\xe9"`,
		"rtl\u202eexe":         `"rtl\u202eexe"`,
		"zero\u200bwidth":      `"zero\u200bwidth"`,
		"replaced\ufffdrune":   "replaced\ufffdrune",
		"tag\U000e0041":        `"tag\U000e0041"`,
		"no-break\u00a0spaces": `"no-break\u00a0spaces"`,
	} {
		if got := quoted(name); got != want {
			t.Errorf("quoted(%q) = %s, want %s", name, got, want)
		}
	}
	if got, want := escaped("open \"a\x1b\": no\n\xff"), `open "a\x1b": no\n\xff`; got != want {
		t.Errorf("escaped = %s, want %s", got, want)
	}
}

func TestColumns(t *testing.T) {
	for text, want := range map[string]int{"": 0, "abc": 3, "größe": 5, "軟件": 4, "e\u0301": 1, "🚀": 2, "…": 1} {
		if got := columns(text); got != want {
			t.Errorf("columns(%q) = %d, want %d", text, got, want)
		}
	}
	for _, c := range []struct {
		text  string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"軟件軟", 4, "軟…"}, {"ab", 1, "…"}, {"ab", 0, ""}} {
		if got := shortened(c.text, c.width); got != c.want {
			t.Errorf("shortened(%q, %d) = %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// FuzzHostile proves that no name reaches a terminal with anything but printable
// runes in it, and that JSON still says the same.
func FuzzHostile(f *testing.F) {
	f.Add(hostileName)
	f.Add("nginx")
	f.Add("\U000e0041\u2028<&>\"\\")
	f.Fuzz(func(t *testing.T, name string) {
		if harmful(quoted(name)) || harmful(escaped(name)) {
			t.Errorf("%q is shown as %s and %s", name, quoted(name), escaped(name))
		}
		line, err := jsonLine(map[string]string{"name": name})
		if err != nil {
			t.Fatal(err)
		}
		body, found := strings.CutSuffix(string(line), "\n")
		if !found || harmful(body) {
			t.Errorf("%q is encoded as %q", name, line)
		}
		var back map[string]string
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatalf("decode %s: %v", line, err)
		}
		if want := strings.ToValidUTF8(name, "\ufffd"); strings.ReplaceAll(back["name"], "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
			t.Errorf("%q came back as %q", name, back["name"])
		}
	})
}
