package hdfsfs

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestMessages: what is used of the library beyond what it exports is as in the version that was
// read.
func TestMessages(t *testing.T) {
	for name, fields := range map[protoreflect.Name]string{
		"CreateRequestProto": "src masked clientName createFlag createParent replication blockSize", "CreateResponseProto": "fs", "FsPermissionProto": "perm",
		"HdfsFileStatusProto": "fileId storagePolicy ecPolicy", "ErasureCodingPolicyProto": "id",
		"AddBlockRequestProto": "src clientName fileId previous excludeNodes", "AddBlockResponseProto": "block", "AbandonBlockRequestProto": "b src holder fileId", "AbandonBlockResponseProto": "",
		"FsyncRequestProto": "src client lastBlockLength fileId", "FsyncResponseProto": "", "CompleteRequestProto": "src clientName fileId last", "CompleteResponseProto": "result",
		"RenewLeaseRequestProto": "clientName", "RenewLeaseResponseProto": "", "RecoverLeaseRequestProto": "src clientName", "RecoverLeaseResponseProto": "result",
		"TruncateRequestProto": "src newLength clientName", "TruncateResponseProto": "result", "ConcatRequestProto": "trg srcs", "ConcatResponseProto": "",
		"Rename2RequestProto": "src dst overwriteDest", "Rename2ResponseProto": "", "GetBlockLocationsRequestProto": "src offset length", "GetBlockLocationsResponseProto": "locations",
		"LocatedBlocksProto": "fileLength underConstruction lastBlock", "LocatedBlockProto": "b offset locs blockToken storageTypes storageIDs", "ExtendedBlockProto": "blockId numBytes",
		"DatanodeInfoProto": "id", "DatanodeIDProto": "ipAddr hostName datanodeUuid xferPort",
		"OpWriteBlockProto":          "header targets stage pipelineSize minBytesRcvd maxBytesRcvd latestGenerationStamp requestedChecksum storageType targetStorageTypes storageId targetStorageIds",
		"ClientOperationHeaderProto": "baseHeader clientName", "BaseHeaderProto": "block token", "ChecksumProto": "type bytesPerChecksum",
		"BlockOpResponseProto": "status message firstBadLink", "PipelineAckProto": "seqno reply", "PacketHeaderProto": "offsetInBlock seqno lastPacketInBlock dataLen syncBlock",
	} {
		for _, field := range strings.Fields(fields) {
			if message(name).Descriptor().Fields().ByName(protoreflect.Name(field)) == nil {
				t.Errorf("%s has no %s", name, field)
			}
		}
	}
}
