package hdfsfs

import (
	"errors"
	"io"
	"os"
	"testing"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// remote is an exception that a NameNode answered with.
type remote struct{ class, message string }

func (r remote) Error() string     { return r.class }
func (r remote) Method() string    { return "create" }
func (r remote) Desc() string      { return "ERROR_APPLICATION" }
func (r remote) Exception() string { return r.class }
func (r remote) Message() string   { return r.message }

// TestWhatIsAboutThePlace tells the exceptions that one name or place meets from those that every
// file would meet.
func TestWhatIsAboutThePlace(t *testing.T) {
	for _, test := range []struct {
		err    error
		denied bool
	}{
		{os.ErrPermission, true},
		{os.ErrInvalid, true}, // what the library makes of HadoopIllegalArgumentException: ".snapshot" is a reserved name
		{remote{"org.apache.hadoop.hdfs.protocol.SnapshotAccessControlException", "Modification on a read-only snapshot is disallowed"}, true},
		{remote{"org.apache.hadoop.hdfs.protocol.SnapshotException", "The directory cannot be deleted"}, true},
		{remote{"org.apache.hadoop.fs.InvalidPathException", "Invalid path name"}, true},
		{remote{"org.apache.hadoop.fs.ParentNotDirectoryException", "/a is not a directory"}, true},
		{remote{"org.apache.hadoop.fs.PathAccessDeniedException", ""}, true},
		{remote{"org.apache.hadoop.hdfs.protocol.FSLimitException$PathComponentTooLongException", ""}, true},
		{remote{"org.apache.hadoop.hdfs.protocol.FSLimitException$MaxDirectoryItemsExceededException", ""}, true},
		{remote{"org.apache.hadoop.hdfs.protocol.NSQuotaExceededException", ""}, true},
		{remote{"org.apache.hadoop.hdfs.protocol.UnresolvedPathException", ""}, true},
		{remote{"java.io.IOException", "create: Pathname too long.  Limit 8000 characters, 1000 levels."}, true},
		{remote{"org.apache.ranger.authorization.hadoop.exceptions.RangerAccessControlException", "Permission denied"}, true},
		{remote{"com.example.PolicyViolation", "no"}, true},

		{io.EOF, false},
		{errors.New("connection refused"), false},
		{remote{"java.io.IOException", "File /a could only be written to 0 of the 1 minReplication nodes."}, false},
		{remote{"java.lang.NullPointerException", ""}, false},
		{remote{"org.apache.hadoop.hdfs.server.namenode.SafeModeException", "Name node is in safe mode."}, false},
		{remote{"org.apache.hadoop.hdfs.server.namenode.NotReplicatedYetException", ""}, false},
		{remote{"org.apache.hadoop.hdfs.server.namenode.LeaseExpiredException", ""}, false},
		{remote{"org.apache.hadoop.hdfs.protocol.AlreadyBeingCreatedException", ""}, false},
		{remote{"org.apache.hadoop.hdfs.protocol.RecoveryInProgressException", ""}, false},
		{remote{"org.apache.hadoop.ipc.StandbyException", ""}, false},
		{remote{"org.apache.hadoop.ipc.RetriableException", ""}, false},
		{remote{"org.apache.hadoop.security.token.SecretManager$InvalidToken", ""}, false},
		{remote{"org.apache.hadoop.security.authorize.AuthorizationException", "User: a is not allowed to impersonate b"}, false},
		{remote{"", ""}, false},
	} {
		err := &os.PathError{Op: "create", Path: "/a", Err: test.err}
		if got := errors.Is(placeErr(err), filesink.ErrDenied); got != test.denied {
			t.Errorf("%v: denied is %v, want %v", test.err, got, test.denied)
		}
	}
	if placeErr(nil) != nil {
		t.Error("no error became one")
	}
}
