package buffer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spillwayio/spillway/gen/externalscaler"
	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestScalerSpeaksKEDA compares the API with what KEDA's proto has, name by name and number by
// number: github.com/kedacore/keda, pkg/scalers/externalscaler/externalscaler.proto.
func TestScalerSpeaksKEDA(t *testing.T) {
	want := strings.Fields(`
		/externalscaler.ExternalScaler/IsActive(ScaledObjectRef)IsActiveResponse,stream=false
		/externalscaler.ExternalScaler/StreamIsActive(ScaledObjectRef)IsActiveResponse,stream=true
		/externalscaler.ExternalScaler/GetMetricSpec(ScaledObjectRef)GetMetricSpecResponse,stream=false
		/externalscaler.ExternalScaler/GetMetrics(GetMetricsRequest)GetMetricsResponse,stream=false
		ScaledObjectRef.name=1:string ScaledObjectRef.namespace=2:string ScaledObjectRef.scalerMetadata=3:message
		IsActiveResponse.result=1:bool
		GetMetricSpecResponse.metricSpecs=1:message
		MetricSpec.metricName=1:string MetricSpec.targetSize=2:int64 MetricSpec.targetSizeFloat=3:double
		GetMetricsRequest.scaledObjectRef=1:message GetMetricsRequest.metricName=2:string
		GetMetricsResponse.metricValues=1:message
		MetricValue.metricName=1:string MetricValue.metricValue=2:int64 MetricValue.metricValueFloat=3:double`)
	var got []string
	file := externalscaler.File_externalscaler_externalscaler_proto
	for i := range file.Services().Len() {
		service := file.Services().Get(i)
		for j := range service.Methods().Len() {
			m := service.Methods().Get(j)
			got = append(got, fmt.Sprintf("/%s/%s(%s)%s,stream=%v", service.FullName(), m.Name(), m.Input().Name(), m.Output().Name(), m.IsStreamingServer()))
		}
	}
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			got = append(got, fmt.Sprintf("%s.%s=%d:%s", m.Name(), f.Name(), f.Number(), f.Kind()))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the API is\n%s\nand KEDA's\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if f := file.Messages().ByName("ScaledObjectRef").Fields().ByName("scalerMetadata"); !f.IsMap() || f.MapValue().Kind() != protoreflect.StringKind {
		t.Error("scalerMetadata is no map of strings")
	}
}

// TestScaler follows a subscription as KEDA does: idle, with a backlog, paused, with files in use
// that nobody has, and while its queue is not open.
func TestScaler(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	keda := externalscaler.NewExternalScalerClient(r.conn)
	ref := &externalscaler.ScaledObjectRef{Name: "delivery", ScalerMetadata: map[string]string{"subscription": "c/all", "targetAgeSeconds": "0.5e2", "scalerAddress": "x"}}
	active := func() bool {
		t.Helper()
		a, err := keda.IsActive(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return a.Result
	}
	age := func() float64 {
		t.Helper()
		m, err := keda.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref, MetricName: scalerMetric})
		if err != nil || len(m.MetricValues) != 1 || m.MetricValues[0].MetricName != scalerMetric {
			t.Fatal(m, err)
		}
		return m.MetricValues[0].MetricValueFloat
	}
	spec, err := keda.GetMetricSpec(t.Context(), ref)
	if err != nil || len(spec.MetricSpecs) != 1 || spec.MetricSpecs[0].MetricName != scalerMetric || spec.MetricSpecs[0].TargetSizeFloat != 50 || spec.MetricSpecs[0].TargetSize != 50 {
		t.Errorf("the metric is %v, %v", spec, err)
	}
	if active() || age() != 0 {
		t.Error("an instance is wanted for nothing")
	}
	changes, err := keda.StreamIsActive(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	change := func(want bool) {
		t.Helper()
		if m, err := changes.Recv(); err != nil || m.Result != want {
			t.Fatalf("told %v, %v, want %v", m, err, want)
		}
	}
	change(false)

	in := r.appendStream()
	r.assign(in, "t")
	r.appended(in, batch("t", 0, 10, "x"))
	if !active() {
		t.Error("no instance is wanted, and records are pending")
	}
	change(true)
	eventually(t, "an age", func() bool { return age() > 0 })
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	if _, err := admin.PauseSubscription(t.Context(), &spillwayv1.PauseSubscriptionRequest{Name: "c/all"}); err != nil {
		t.Fatal(err)
	}
	if age() != 0 || !active() {
		t.Error("a paused subscription with a backlog is to scale neither up nor to zero")
	}
	if _, err := admin.ResumeSubscription(t.Context(), &spillwayv1.ResumeSubscriptionRequest{Name: "c/all"}); err != nil {
		t.Fatal(err)
	}

	out := r.consume("c/all")
	lease := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: lease.LeaseId}}, StateChanges: []*spillwayv1.StateChange{{Key: "file", Value: []byte("x")}}})
	next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult)
	if err := out.CloseSend(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the session", func() bool {
		q, _ := r.service.queue("c")
		all := q.Sessions()
		return len(all) == 1 && !all[0].Live
	})
	if !active() {
		t.Error("no instance is wanted, and a file waits for an heir")
	}

	m := r.service.only("c")
	q, _ := m.get()
	r.service.set(m, nil, "recovering")
	if !active() {
		t.Error("no instance is wanted while nobody knows")
	}
	if _, err := keda.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref, MetricName: scalerMetric}); status.Code(err) != codes.Unavailable {
		t.Errorf("a metric of a queue that is not open: %v", err)
	}
	r.service.set(m, q, "open")

	for _, test := range []struct {
		metadata map[string]string
		want     codes.Code
	}{
		{nil, codes.InvalidArgument},
		{map[string]string{"subscription": "c/none"}, codes.NotFound},
		{map[string]string{"subscription": "none/all"}, codes.NotFound},
		{map[string]string{"subscription": "c/all", "targetAgeSeconds": "1m"}, codes.InvalidArgument},
		{map[string]string{"subscription": "c/all", "targetAgeSeconds": "NaN"}, codes.InvalidArgument},
	} {
		if _, err := keda.IsActive(t.Context(), &externalscaler.ScaledObjectRef{Name: "d", ScalerMetadata: test.metadata}); status.Code(err) != test.want {
			t.Errorf("%v: %v, want %s", test.metadata, err, test.want)
		}
	}
	began := time.Now()
	r.stop() // with the stream open
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	for { // what it told meanwhile, and its end
		if _, err := changes.Recv(); err != nil {
			break
		}
	}
}
