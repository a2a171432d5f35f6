package proc

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	for name, c := range map[string]struct {
		line  string
		state byte
		start uint64
		ok    bool
	}{
		"plain":              {"12 (sh)" + rest, 'S', 4711, true},
		"brackets in a name": {"12 (a) b (c))" + rest, 'S', 4711, true},
		"cut short":          {"12 (sh) S 1 2", 0, 0, false},
		"no name":            {"12 sh", 0, 0, false},
		"empty":              {"", 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			state, start, err := parseStat([]byte(c.line))
			if state != c.state || start != c.start || (err == nil) != c.ok {
				t.Errorf("got %q, %d, %v", state, start, err)
			}
		})
	}
}

func TestIdentityOfALiveProcess(t *testing.T) {
	id, err := Of(os.Getpid())
	if err != nil || id.State() != Running {
		t.Fatalf("own process: %v, %v", id.State(), err)
	}
	for name, other := range map[string]ID{
		"another start time":  {id.PID, id.Start + 1, id.Boot},
		"before a reboot":     {id.PID, id.Start, "another boot"},
		"nothing":             {},
		"the caller's group":  {0, id.Start, id.Boot},
		"everybody's process": {-1, id.Start, id.Boot},
	} {
		if other.Alive() {
			t.Errorf("%s: taken for a live process", name)
		}
		if err := other.SignalGroup(syscall.SIGKILL); err != nil { // would end this test if the identity were not checked
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFreezeAndStop(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	id, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); id.State() != Frozen; {
		if time.Now().After(deadline) {
			t.Fatalf("state %s after SIGSTOP", id.State())
		}
		time.Sleep(time.Millisecond)
	}
	if err := id.Stop(10 * time.Second); err != nil || id.Alive() {
		t.Errorf("a frozen process does not stop: %v, %s", err, id.State())
	}
}

func TestParseRollup(t *testing.T) {
	got := parseRollup("00400000-7fff ---p 00000000 00:00 0    [rollup]\nRss:        1024 kB\nPss:         512 kB\nPss_Anon:  7 kB\n")
	if got != (Memory{RSS: 1 << 20, PSS: 512 << 10}) {
		t.Errorf("got %+v", got)
	}
}

func TestFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "id.json")
	if _, err := ReadJSON[ID](file); !os.IsNotExist(err) {
		t.Errorf("missing file: %v", err)
	}
	want := ID{PID: 7, Start: 1 << 60, Boot: "b"}
	if err := WriteJSON(file, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadJSON[ID](file); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(file, []byte(`{"pid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadJSON[ID](file); err == nil || os.IsNotExist(err) {
		t.Errorf("damaged file: %v", err)
	}
}
