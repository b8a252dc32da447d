package security

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spillwayio/spillway/services/internal/config"
)

// rule is what an RPC needs.
type rule struct {
	role string
	// object is the field of the request that names what it is about; with a dot, the one of a
	// message of a stream that must come first, and is checked whenever it comes. Empty: the RPC
	// is about everything that the process has.
	object string
	// unscoped objects are not queues or subscriptions: grants on some of those do not count.
	unscoped bool
	// streams: who may append to the queue that is the object, or consume of it, may call it, too.
	streams bool
}

// open RPCs need no identity.
var open = map[string]bool{
	"/grpc.health.v1.Health/Check": true,
	"/grpc.health.v1.Health/Watch": true,
	"/grpc.health.v1.Health/List":  true,
}

// rules has every RPC that is not open. One that is not here is refused (TestNoRPCEscapes).
var rules = map[string]rule{
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {role: config.RoleRead},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {role: config.RoleRead},

	"/spillway.v1.BufferService/Append":  {role: config.RoleAppend, object: "open.queue"},
	"/spillway.v1.BufferService/Consume": {role: config.RoleConsume, object: "open.subscription"},

	"/spillway.v1.ClusterService/ListShards": {role: config.RoleRead, object: "queue", streams: true},

	"/spillway.v1.ClusterService/MoveShard":   {role: config.RoleOperate, object: "queue"},
	"/spillway.v1.ClusterService/DrainBuffer": {role: config.RoleOperate},

	"/spillway.v1.BufferAdminService/ListQueues":         {role: config.RoleRead},
	"/spillway.v1.BufferAdminService/GetQueue":           {role: config.RoleRead, object: "name"},
	"/spillway.v1.BufferAdminService/UpdateQueue":        {role: config.RoleAdmin, object: "name"},
	"/spillway.v1.BufferAdminService/ListSubscriptions":  {role: config.RoleRead, object: "queue"},
	"/spillway.v1.BufferAdminService/GetSubscription":    {role: config.RoleRead, object: "name"},
	"/spillway.v1.BufferAdminService/ListUndelivered":    {role: config.RoleRead, object: "subscription"},
	"/spillway.v1.BufferAdminService/Audit":              {role: config.RoleRead, object: "name"},
	"/spillway.v1.BufferAdminService/ListSessions":       {role: config.RoleRead, object: "subscription"},
	"/spillway.v1.BufferAdminService/ListFlows":          {role: config.RoleRead},
	"/spillway.v1.BufferAdminService/ListSinkState":      {role: config.RoleRead, object: "subscription"},
	"/spillway.v1.BufferAdminService/ListParkedBatches":  {role: config.RoleRead, object: "subscription"},
	"/spillway.v1.BufferAdminService/PeekRecords":        {role: config.RoleTap, object: "subscription"},
	"/spillway.v1.BufferAdminService/TapRecords":         {role: config.RoleTap, object: "queue"},
	"/spillway.v1.BufferAdminService/SeekSubscription":   {role: config.RoleOperate, object: "name"},
	"/spillway.v1.BufferAdminService/ReplaySubscription": {role: config.RoleOperate, object: "name"},
	"/spillway.v1.BufferAdminService/CancelReplay":       {role: config.RoleOperate, object: "name"},
	"/spillway.v1.BufferAdminService/ReadUndelivered":    {role: config.RoleTap, object: "subscription"},
	"/spillway.v1.BufferAdminService/RedriveUndelivered": {role: config.RoleOperate, object: "subscription"},
	"/spillway.v1.BufferAdminService/ForgetUndelivered":  {role: config.RoleAdmin, object: "subscription"},
	"/spillway.v1.BufferAdminService/PauseSubscription":  {role: config.RoleOperate, object: "name"},
	"/spillway.v1.BufferAdminService/ResumeSubscription": {role: config.RoleOperate, object: "name"},
	"/spillway.v1.BufferAdminService/CreateSubscription": {role: config.RoleAdmin, object: "name"},
	"/spillway.v1.BufferAdminService/UpdateSubscription": {role: config.RoleAdmin, object: "name"},
	"/spillway.v1.BufferAdminService/DeleteSubscription": {role: config.RoleAdmin, object: "name"},
	"/spillway.v1.BufferAdminService/ForgetSource":       {role: config.RoleAdmin, object: "queue"},
	"/spillway.v1.BufferAdminService/ForgetSinkState":    {role: config.RoleAdmin, object: "subscription"},

	// KEDA's. The name is the ScaledObject's, which no grant is about.
	"/externalscaler.ExternalScaler/IsActive":       {role: config.RoleRead, object: "name", unscoped: true},
	"/externalscaler.ExternalScaler/StreamIsActive": {role: config.RoleRead, object: "name", unscoped: true},
	"/externalscaler.ExternalScaler/GetMetricSpec":  {role: config.RoleRead, object: "name", unscoped: true},
	"/externalscaler.ExternalScaler/GetMetrics":     {role: config.RoleRead},

	"/spillway.v1.IngestAdminService/ListSources":    {role: config.RoleRead},
	"/spillway.v1.IngestAdminService/ListPartitions": {role: config.RoleRead, object: "source", unscoped: true},
	"/spillway.v1.IngestAdminService/PauseSource":    {role: config.RoleOperate, object: "name", unscoped: true},
	"/spillway.v1.IngestAdminService/ResumeSource":   {role: config.RoleOperate, object: "name", unscoped: true},

	"/spillway.v1.ProcessAdminService/ReloadConfiguration": {role: config.RoleAdmin},

	"/spillway.v1.DeliveryAdminService/GetDelivery":    {role: config.RoleRead},
	"/spillway.v1.DeliveryAdminService/ListOpenFiles":  {role: config.RoleRead},
	"/spillway.v1.DeliveryAdminService/PauseDelivery":  {role: config.RoleOperate},
	"/spillway.v1.DeliveryAdminService/ResumeDelivery": {role: config.RoleOperate},
	"/spillway.v1.DeliveryAdminService/RollFiles":      {role: config.RoleOperate},
}

// audited says whether calls are noted: those that change something, or show what records contain.
func (r rule) audited() bool {
	return r.role == config.RoleOperate || r.role == config.RoleAdmin || r.role == config.RoleTap
}

// scope is the object that grants are compared with.
func (r rule) scope(object string) string {
	if r.unscoped {
		return ""
	}
	return object
}

// objectOf reads a field, by a path of at most one dot, and says whether the message that has it
// is there.
func objectOf(m proto.Message, path string) (object string, there bool) {
	r := m.ProtoReflect()
	for {
		name, rest, inner := cutDot(path)
		f := r.Descriptor().Fields().ByName(protoreflect.Name(name))
		if f == nil {
			return "", false
		}
		if !inner {
			return r.Get(f).String(), true
		}
		if !r.Has(f) {
			return "", false
		}
		r, path = r.Get(f).Message(), rest
	}
}

func cutDot(path string) (first, rest string, found bool) {
	for i := range len(path) {
		if path[i] == '.' {
			return path[:i], path[i+1:], true
		}
	}
	return path, "", false
}
