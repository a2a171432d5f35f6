package crilog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 42, time.FixedZone("east", 3600))

const stamp = "2026-01-02T11:00:00.000000042Z "

func TestCopy(t *testing.T) {
	long := strings.Repeat("x", longest)
	for name, c := range map[string]struct{ output, want string }{
		"lines":              {"one\ntwo\n", stamp + "stdout F one\n" + stamp + "stdout F two\n"},
		"empty line":         {"\n", stamp + "stdout F \n"},
		"no last line break": {"one\ntwo", stamp + "stdout F one\n" + stamp + "stdout F two\n"},
		"nothing":            {"", ""},
		"a long line":        {long + "end\n", stamp + "stdout P " + long + "\n" + stamp + "stdout F end\n"},
		"bytes kept":         {"\xff\x00\r\n", stamp + "stdout F \xff\x00\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			l, err := Open(file, func() time.Time { return noon })
			if err != nil {
				t.Fatal(err)
			}
			l.Copy(Stdout, strings.NewReader(c.output))
			if got, err := os.ReadFile(file); err != nil || string(got) != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestReopenGoesOnInANewFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	l, err := Open(file, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	l.Copy(Stderr, strings.NewReader("old\n"))
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Copy(Stderr, strings.NewReader("new\n"))
	for path, want := range map[string]string{file + ".1": stamp + "stderr F old\n", file: stamp + "stderr F new\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", path, got, err)
		}
	}
}
