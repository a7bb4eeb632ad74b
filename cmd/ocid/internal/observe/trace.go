package observe

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/internal/stages"
)

// Tracer makes a span of each call and of each stage. A call continues the
// trace that its caller sent (W3C trace context in the gRPC metadata). It is a
// stages.Observer.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	carry    propagation.TraceContext
}

// NewTracer sends spans to an OTLP collector, http://HOST:PORT without TLS or
// https://HOST:PORT with it, and keeps sampling (0 to 1) of the traces that
// begin here. A collector that is away is no error: spans are dropped.
func NewTracer(ctx context.Context, endpoint string, sampling float64, version string, log *slog.Logger) (*Tracer, error) {
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("traces to %s: %w", endpoint, err)
	}
	otel.SetErrorHandler(&traceErrors{log: log})
	host, _ := os.Hostname()
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(sampling))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "ocid"), attribute.String("service.version", version),
			attribute.String("host.name", host),
		)),
	)
	return &Tracer{provider: p, tracer: p.Tracer("github.com/ocid-io/ocid")}, nil
}

// Close sends what is left.
func (t *Tracer) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Begin implements stages.Observer.
func (t *Tracer) Begin(ctx context.Context, call, stage string, attrs []stages.Attr) (context.Context, stages.End) {
	name, kind := stage, trace.SpanKindInternal
	if stage == "" {
		name, kind = call, trace.SpanKindServer
		if md, ok := metadata.FromIncomingContext(ctx); ok {
			ctx = t.carry.Extract(ctx, carrier(md))
		}
		// What is asked every second is traced only within somebody's trace.
		if !trace.SpanContextFromContext(ctx).IsValid() && polled(call) {
			return ctx, nil
		}
	} else if !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, nil
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(kind))
	if !span.IsRecording() {
		return ctx, nil
	}
	for _, a := range attrs {
		span.SetAttributes(attribute.String(a.Key, a.Value))
	}
	return ctx, func(_ time.Duration, err error) {
		if err != nil {
			span.SetAttributes(attribute.String("rpc.grpc.status_code", status.Code(err).String()))
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// polled tells calls that a client makes again and again.
func polled(call string) bool {
	switch call {
	case "Version", "Status", "ImageFsInfo", "RuntimeConfig", "ContainerStatus", "PodSandboxStatus", "ImageStatus":
		return true
	}
	return strings.HasPrefix(call, "List") || strings.HasPrefix(call, "Stream") || strings.HasSuffix(call, "Stats")
}

// carrier reads gRPC metadata.
type carrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// traceErrors tells of trouble with the collector.
type traceErrors struct{ log *slog.Logger }

// Handle implements otel.ErrorHandler.
func (e *traceErrors) Handle(err error) { e.log.Warn("traces are lost", "error", err) }
