// Package crilog writes a container's output in the form that the kubelet reads: time, stream, tag, text.
//
// It must never lose a line's order within its stream, nor hold a line longer than its buffer.
package crilog

import (
	"bufio"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

const (
	Stdout = "stdout"
	Stderr = "stderr"

	longest = 16 << 10 // as in containerd: a longer line is written in parts
)

// appendEntry adds one line of the log. Tag F ends a line of the output, P means that the line goes on.
func appendEntry(to []byte, at time.Time, stream string, text []byte, whole bool) []byte {
	to = at.UTC().AppendFormat(to, "2006-01-02T15:04:05.000000000Z")
	to = append(to, ' ')
	to = append(to, stream...)
	if whole {
		to = append(to, " F "...)
	} else {
		to = append(to, " P "...)
	}
	to = append(to, text...)
	return append(to, '\n')
}

// Log is one log file that both streams share.
type Log struct {
	path string
	now  func() time.Time
	mu   sync.Mutex
	file *os.File
}

// Open appends to the file at path.
func Open(path string, now func() time.Time) (*Log, error) {
	l := &Log{path: path, now: now}
	return l, l.Reopen()
}

// Reopen goes on in a new file, after the kubelet has moved the old one away.
func (l *Log) Reopen() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
	}
	l.file = file
	return nil
}

func (l *Log) write(stream string, text []byte, whole bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.file.Write(appendEntry(nil, l.now(), stream, text, whole))
	return err
}

// Copy writes all that comes from r until it ends. When the disk is full it goes on reading, so that the container never blocks.
func (l *Log) Copy(stream string, r io.Reader) {
	reader := bufio.NewReaderSize(r, longest)
	for {
		text, err := reader.ReadSlice('\n')
		switch {
		case err == nil:
			_ = l.write(stream, text[:len(text)-1], true)
		case errors.Is(err, bufio.ErrBufferFull):
			_ = l.write(stream, text, false)
		default:
			if len(text) > 0 {
				_ = l.write(stream, text, true)
			}
			return
		}
	}
}
