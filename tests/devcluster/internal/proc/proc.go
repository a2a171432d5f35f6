// Package proc identifies and stops the processes that this program started.
//
// A process is known by its pid together with its start time and the machine's boot id, so that a reused pid is never taken for it.
// It must never signal a process whose identity no longer matches.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ID names one process for as long as the machine is up.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"startTime"` // field 22 of /proc/PID/stat: clock ticks since boot
	Boot  string `json:"bootID"`
}

// State is what the kernel says about a process.
type State string

const (
	Running State = "running"
	Frozen  State = "frozen"
	Gone    State = "stopped"
)

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// Of returns the identity of the process that has this pid now.
func Of(pid int) (ID, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ID{}, fmt.Errorf("no process has pid %d: %w", pid, err)
	}
	_, start, err := parseStat(b)
	if err != nil {
		return ID{}, err
	}
	return ID{PID: pid, Start: start, Boot: bootID()}, nil
}

// parseStat returns the state letter and the start time in a line of /proc/PID/stat. The command's name, in brackets, may hold anything.
func parseStat(line []byte) (byte, uint64, error) {
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("unreadable process status %q", line)
	}
	fields := strings.Fields(string(line[end+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process status has %d fields after the name, at least 20 are needed", len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("process start time: %w", err)
	}
	return fields[0][0], start, nil
}

// State tells whether exactly this process still exists; a zombie does not.
func (id ID) State() State {
	if id.PID <= 0 || id.Boot != bootID() {
		return Gone
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(id.PID), "stat"))
	if err != nil {
		return Gone
	}
	letter, start, err := parseStat(b)
	if err != nil || start != id.Start {
		return Gone
	}
	switch letter {
	case 'Z', 'X':
		return Gone
	case 'T':
		return Frozen
	}
	return Running
}

func (id ID) Alive() bool { return id.State() != Gone }

// Signal sends a signal to the process; it is no error that the process has gone.
func (id ID) Signal(sig syscall.Signal) error {
	if !id.Alive() {
		return nil
	}
	if err := syscall.Kill(id.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to process %d: %w", sig, id.PID, err)
	}
	return nil
}

// SignalGroup sends a signal to the process group that the process leads. It does nothing once the leader has gone, since then the
// number may belong to somebody else.
func (id ID) SignalGroup(sig syscall.Signal) error {
	if !id.Alive() {
		return nil
	}
	if err := syscall.Kill(-id.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to process group %d: %w", sig, id.PID, err)
	}
	return nil
}

// AwaitGone waits until the process has gone, at most for the given time, and says whether it has.
func (id ID) AwaitGone(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for id.Alive() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
	return true
}

// Stop asks the process to end, and kills it when it has not done so in time. A frozen process is woken so that it can hear the request.
func (id ID) Stop(grace time.Duration) error {
	if grace > 0 {
		if err := errors.Join(id.Signal(syscall.SIGTERM), id.Signal(syscall.SIGCONT)); err != nil {
			return err
		}
		if id.AwaitGone(grace) {
			return nil
		}
	}
	if err := id.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !id.AwaitGone(10 * time.Second) {
		return fmt.Errorf("process %d is still there 10 s after SIGKILL", id.PID)
	}
	return nil
}

// Memory is what a process holds: RSS counts pages that it shares with others in full, PSS divides them fairly.
type Memory struct {
	RSS int64 `json:"rssBytes"`
	PSS int64 `json:"pssBytes"`
}

// Memory returns zeroes for a process that has gone.
func (id ID) Memory() Memory {
	if !id.Alive() {
		return Memory{}
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(id.PID), "smaps_rollup"))
	if err != nil {
		return Memory{}
	}
	return parseRollup(string(b))
}

func parseRollup(text string) Memory {
	var m Memory
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "Rss:":
			m.RSS = n << 10
		case "Pss:":
			m.PSS = n << 10
		}
	}
	return m
}
