package filesink

import (
	"context"
	"errors"
)

// ErrExist is returned for a name that is taken. Nothing is ever overwritten.
var ErrExist = errors.New("file exists")

// ErrNotExist is returned for a file that is not there.
var ErrNotExist = errors.New("file does not exist")

// ErrEnded is returned by Write for a file that nothing more can be written to: it is as it was, and to be taken. The
// file system works, and takes others.
var ErrEnded = errors.New("the file ends here")

// ErrDenied is returned where the file system works, but not for this place: it may not be written to, its quota is
// used up, its name is not allowed.
var ErrDenied = errors.New("denied")

// FS is what the commit protocol asks of a file system: hdfsfs, localfs, and the faulty one of the
// tests. fstest says what each must keep to. Paths are absolute, slash-separated, below the URL.
// All methods may be called concurrently for different files. An error that wraps neither ErrExist nor
// ErrNotExist says nothing about what became of the operation. One of them may wrap ErrDenied.
type FS interface {
	// Write makes data the bytes from length on of the file at path, which has exactly length bytes, and
	// returns when all of it would survive a crash of every machine but one replica's. With length 0
	// it creates the file and its directories, and fails with ErrExist when there is one already.
	// After an error nothing is known of what lies at length and beyond, nor whether a writer is still
	// at work: the file must not be used again but by Take. The FS that created a file writes to it; others may get ErrEnded.
	Write(ctx context.Context, path string, length int64, data []byte) error
	// Take makes alias, a name that only the caller uses, hold exactly the first length bytes of the
	// file at from, durably, shuts out whoever is writing from, and leaves no from behind. It may wait:
	// for a dead writer's lease on HDFS a minute or more. After an error, or a crash, it may be repeated
	// with the same names: when alias is there already and from is not, it goes on with alias. It fails
	// with ErrNotExist when neither is there, and with an error that says so when there are fewer than
	// length bytes.
	Take(ctx context.Context, from, alias string, length int64) error
	// Rename gives the file at from the name to, making to's directory. It fails with ErrExist when
	// there is a to, and with ErrNotExist when there is no from. Repeating it after a crash is safe.
	Rename(ctx context.Context, from, to string) error
	// Size returns the length of the file at path, or ErrNotExist.
	Size(ctx context.Context, path string) (int64, error)
	// Remove deletes the file at path; that there is none is no error.
	Remove(ctx context.Context, path string) error
	// Probe returns nil when the file system answers and can be written to.
	Probe(ctx context.Context) error
	// Close releases connections. No other method runs or is called after it.
	Close() error
}
