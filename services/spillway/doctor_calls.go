package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// collectedCall is an RPC whose answers are in the archive.
type collectedCall struct {
	service, method string
	of              string // queue or subscription: it is called for each
	field           string // of the request, with the name
}

// collected are the RPCs by service. TestDoctorAsksAll compares them with what there is.
var collected = map[string][]collectedCall{
	"buffer": {
		{"BufferAdminService", "ListQueues", "", ""},
		{"BufferAdminService", "ListSubscriptions", "", ""},
		{"BufferAdminService", "ListFlows", "", ""},
		{"BufferAdminService", "ListSessions", "", ""},
		{"BufferAdminService", "Audit", "", ""},
		{"BufferAdminService", "GetQueue", "queue", "name"},
		{"BufferAdminService", "GetSubscription", "subscription", "name"},
		{"BufferAdminService", "ListUndelivered", "subscription", "subscription"},
		{"BufferAdminService", "ListSinkState", "subscription", "subscription"},
		{"BufferAdminService", "ListParkedBatches", "subscription", "subscription"},
	},
	"ingest": {
		{"IngestAdminService", "ListSources", "", ""},
		{"IngestAdminService", "ListPartitions", "", ""},
	},
	"delivery": {
		{"DeliveryAdminService", "GetDelivery", "", ""},
		{"DeliveryAdminService", "ListOpenFiles", "", ""},
	},
}

const (
	// maxPages bounds what is read of one list, and maxNames of how many queues and subscriptions.
	maxPages = 20
	maxNames = 200
)

// asking calls the RPCs of one service.
type asking struct {
	conn    *grpc.ClientConn
	timeout time.Duration
	names   map[string][]string // queues and subscriptions, as the lists have them
}

// ask returns all pages as one JSON array, and why there are no more.
func (a *asking) ask(ctx context.Context, c collectedCall, name string) ([]byte, error) {
	service, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("spillway.v1." + c.service))
	if err != nil {
		return nil, err
	}
	method := service.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(c.method))
	var pages [][]byte
	token := ""
	for {
		request, response := messageOf(method.Input()), messageOf(method.Output())
		set(request, c.field, protoreflect.ValueOfString(name))
		set(request, "page_token", protoreflect.ValueOfString(token))
		set(request, "page_size", protoreflect.ValueOfInt32(1000))
		page, cancel := context.WithTimeout(ctx, a.timeout)
		err := a.conn.Invoke(page, fmt.Sprintf("/spillway.v1.%s/%s", c.service, c.method), request, response)
		cancel()
		if err != nil {
			return joined(pages), err
		}
		a.note(response)
		withoutRecords(response.ProtoReflect())
		b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(response)
		if err != nil {
			return joined(pages), err
		}
		pages = append(pages, b)
		next := ""
		if f := method.Output().Fields().ByName("next_page_token"); f != nil {
			next = response.ProtoReflect().Get(f).String()
		}
		switch {
		case next == "":
			return joined(pages), nil
		case next == token || len(pages) == maxPages:
			return joined(pages), fmt.Errorf("there is more; %d pages were read", len(pages))
		}
		token = next
	}
}

// note keeps the names for the calls that follow.
func (a *asking) note(m proto.Message) {
	add := func(kind, name string) {
		if len(a.names[kind]) < maxNames {
			a.names[kind] = append(a.names[kind], name)
		}
	}
	switch m := m.(type) {
	case *spillwayv1.ListQueuesResponse:
		for _, q := range m.Queues {
			add("queue", q.Name)
		}
	case *spillwayv1.ListSubscriptionsResponse:
		for _, s := range m.Subscriptions {
			add("subscription", s.Name)
		}
	}
}

func messageOf(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // it is linked, as its service is
	}
	return t.New().Interface()
}

// set sets a field where there is one of that name and kind.
func set(m proto.Message, name string, v protoreflect.Value) {
	r := m.ProtoReflect()
	f := r.Descriptor().Fields().ByName(protoreflect.Name(name))
	if f == nil || f.IsList() {
		return
	}
	if _, text := v.Interface().(string); text == (f.Kind() == protoreflect.StringKind) {
		r.Set(f, v)
	}
}

// withoutRecords takes out what may be of records: bytes, the value of sink state, and reasons,
// which may quote a record.
func withoutRecords(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Kind() == protoreflect.BytesKind, f.Name() == "reason", f.Name() == "value" && f.Kind() == protoreflect.StringKind:
			m.Clear(f)
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				withoutRecords(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			withoutRecords(v.Message())
		}
		return true
	})
}

// joined is an array of pages, indented.
func joined(pages [][]byte) []byte {
	if len(pages) == 0 {
		return nil
	}
	var out bytes.Buffer
	array := append(append([]byte{'['}, bytes.Join(pages, []byte{','})...), ']')
	if json.Indent(&out, array, "", " ") != nil {
		return array
	}
	return append(out.Bytes(), '\n')
}
