package filesink

import (
	"context"
	"errors"
	"time"
)

// ErrExist is returned for a name that is taken. Nothing is ever overwritten.
var ErrExist = errors.New("file exists")

// ErrNotExist is returned for a file that is not there.
var ErrNotExist = errors.New("file does not exist")

// ErrDenied is returned where the file system works, but not for this place: it may not be
// written to, its quota is used up, its name is not allowed.
var ErrDenied = errors.New("denied")

// ErrWait is returned by Take while the file system still has to do its part. Nothing is wrong:
// Take is to be called again a little later. The error names what is waited for.
var ErrWait = errors.New("not yet")

// WaitError is an ErrWait that says after how long to call Take again.
type WaitError struct {
	After  time.Duration
	Reason string
}

// Error implements error.
func (e *WaitError) Error() string { return ErrWait.Error() + ": " + e.Reason }

// Is has errors.Is find ErrWait.
func (e *WaitError) Is(target error) bool { return target == ErrWait }

// FS is what the commit protocol asks of a file system: hdfsfs, localfs, and the faulty one of
// the tests. fstest says what each must keep to. Paths are absolute, slash-separated, below the
// URL. All methods may be called concurrently for different files. An error that wraps neither
// ErrExist nor ErrNotExist says nothing about what became of the operation. One of them may wrap
// ErrDenied.
type FS interface {
	// Create makes an empty file at path, and its directories, and returns it open. It fails with
	// ErrExist when there is a path. Once the file is open, notify is called, by any goroutine,
	// when its Err or RollAt has changed by itself; it must return at once. After an error a file
	// may be there nevertheless: it is to be taken, or removed.
	Create(ctx context.Context, path string, notify func()) (File, error)
	// Take does the next step to finish a file that nobody of this process writes any more, and
	// returns nil when it is done. It does not wait for others: see ErrWait. It may be repeated,
	// after a crash and after any error: when Alias is there and From is not, it goes on with
	// Alias. It fails with ErrNotExist when neither is there, and with an error that says so when
	// there are fewer bytes than were committed.
	Take(ctx context.Context, t Taking) error
	// Rename gives the file at from the name to, making to's directory. It fails with ErrExist
	// when there is a to, and with ErrNotExist when there is no from. Repeating it after a crash
	// is safe.
	Rename(ctx context.Context, from, to string) error
	// Size returns the length of the file at path, or ErrNotExist. That of a file in use may be
	// older.
	Size(ctx context.Context, path string) (int64, error)
	// Remove deletes the file at path, and shuts out who writes it; that there is none is no
	// error.
	Remove(ctx context.Context, path string) error
	// Probe returns nil when the file system answers and can be written to.
	Probe(ctx context.Context) error
	// Close gives up the files that are open, and releases connections. No other method runs or
	// is called after it.
	Close() error
}

// File is a file that is open for writing. One goroutine uses it at a time, but for Abandon, Err
// and RollAt.
type File interface {
	// Commit appends data, which the file does not keep, and returns when it would survive a
	// crash of every machine but one replica's; how much more depends on the file system and its
	// configuration. After an error the file takes nothing more, and is to be abandoned and
	// taken: nothing is known of what lies behind the commits before.
	Commit(ctx context.Context, data []byte) error
	// Close closes the file with exactly what was committed, after which nobody holds it. An
	// error is as one of Commit.
	Close(ctx context.Context) error
	// Abandon lets go of the file as it is. When it returns, nothing is sent to it any more.
	// After Close it does nothing.
	Abandon()
	// Tail returns the last bytes that were committed which Taking.Tail must have, at most 511.
	// They are the file's, and valid until the next Commit.
	Tail() []byte
	// Err returns nil while the file takes commits, else why it does not.
	Err() error
	// RollAt returns when the file should be closed for reasons of the file system; zero is never.
	RollAt() time.Time
}

// Taking is a file to be finished: so that Alias holds its first Length bytes, durably, that no
// one writes it, and that there is no From.
type Taking struct {
	From  string
	Alias string // a name in the same directory that only the caller uses
	Spare string // another one, for what is needed on the way; nothing is there in the end
	// Length is what was committed, Tail what File.Tail returned then.
	Length int64
	Tail   []byte
	// Since is when its writer was gone, at the latest.
	Since time.Time
}
