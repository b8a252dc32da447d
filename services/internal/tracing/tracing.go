// Package tracing makes OpenTelemetry spans about batches, which are linked to the traces that
// records carry in their headers (W3C Trace Context), and exports them by OTLP over gRPC. It does
// so only when the environment asks for it: a nil *Tracer makes no span, looks at no header, and
// allocates nothing. There is never a span for each record.
//
// The exporter has a goroutine, which ends in Close. All methods may be called concurrently, but
// those of a Links and a Span by one goroutine at a time.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Tracer makes spans. Nil makes none.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// wanted says whether the environment asks for traces, and what of it cannot be.
func wanted(env func(string) string) (bool, error) {
	if strings.EqualFold(env("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	switch exporter := env("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return false, nil
	case "":
		if env("OTEL_EXPORTER_OTLP_ENDPOINT")+env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return false, nil
		}
	case "otlp":
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER=%s: want otlp, or none", exporter)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := env(name); protocol != "" {
			if protocol != "grpc" {
				return false, fmt.Errorf("%s=%s: want grpc", name, protocol)
			}
			break
		}
	}
	return true, nil
}

// New returns a tracer for a service, such as "ingest", and nil when the environment (OTEL_*) does
// not ask for traces. That the receiver is away is no error: it is logged, at most once a minute,
// and spans are dropped.
func New(ctx context.Context, service, version string, log *slog.Logger) (*Tracer, error) {
	if on, err := wanted(os.Getenv); !on || err != nil {
		return nil, err
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("export of traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "spillway-"+service), attribute.String("service.version", version)),
		resource.WithFromEnv()) // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	}
	otel.SetErrorHandler(&problems{log: log})
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)) // OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SPAN_*
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/spillwayio/spillway", trace.WithInstrumentationVersion(version))}, nil
}

// Close exports what is left, as long as ctx lasts.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Span is about one batch, or several that are settled together. Nil is none.
type Span struct{ span trace.Span }

// Attribute is something that a span says of its batch.
type Attribute = attribute.KeyValue

// String returns an attribute that is a text.
func String(key, value string) Attribute { return attribute.String(key, value) }

// Int returns an attribute that is a number.
func Int[T int | int32 | int64](key string, value T) Attribute {
	return attribute.Int64(key, int64(value))
}

// Start begins a span at a time, with the links to records' traces. Whoever calls it makes no
// attributes for a nil Tracer.
func (t *Tracer) Start(name string, at time.Time, links *Links, attributes ...Attribute) *Span {
	if t == nil {
		return nil
	}
	if links.leftOut > 0 {
		attributes = append(attributes, Int("spillway.links_left_out", links.leftOut))
	}
	_, span := t.tracer.Start(context.Background(), name, trace.WithTimestamp(at), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links.all...), trace.WithAttributes(attributes...))
	return &Span{span}
}

// Event notes that something happened now.
func (s *Span) Event(name string) {
	if s != nil {
		s.span.AddEvent(name)
	}
}

// End ends the span; err may be nil.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
	s.span.End()
}

// problems logs what the SDK complains about, such as a receiver that is away.
type problems struct {
	log  *slog.Logger
	last lastTime
}

// Handle implements otel.ErrorHandler.
func (p *problems) Handle(err error) {
	if p.last.longAgo(time.Minute) {
		p.log.Warn("traces are not exported", "err", err)
	}
}
