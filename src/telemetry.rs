//! Traces by OTLP: one for each question, from its HTTP request through the queue to Claude and its webhook.
//!
//! A job stores the context of its request as a W3C `traceparent`, so its attempts belong to the same trace in whatever
//! process they run. Without an endpoint no span is made. The library reads the variables of OpenTelemetry
//! (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and so on).

use std::{collections::HashMap, sync::OnceLock};

use futures_util::future::Either;
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::TextMapPropagator,
    trace::{FutureExt, Link, SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer, TracerProvider},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

/// The header of a context: <https://www.w3.org/TR/trace-context/>.
pub const TRACEPARENT: &str = "traceparent";

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Sends what is left of the traces when dropped, which may take a moment.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Sends traces to `endpoint`, an address without `/v1/traces`. Call it before the runtime starts: it starts a thread.
pub fn start(endpoint: Option<&str>) -> Result<Telemetry, ExporterBuildError> {
    let Some(endpoint) = endpoint else { return Ok(Telemetry(None)) };
    // The HTTP client wants one to be named.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let address = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(address).build()?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let mut resource = Resource::builder().with_attribute(version);
    if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name("ceoagent");
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let _ = TRACER.set(provider.tracer("ceoagent"));
    Ok(Telemetry(Some(provider)))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "failed to send the last traces");
        }
    }
}

/// Ends when dropped. Does nothing if no traces are sent.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    /// The answering of an HTTP request, part of its client's trace if that came with one.
    pub fn server(name: impl FnOnce() -> String, traceparent: Option<&str>) -> Span {
        Span::begin(SpanKind::Server, name, || remote(traceparent), false)
    }

    /// Work on what was queued by the request with this context, also linked to it.
    pub fn consumer(name: &'static str, traceparent: Option<&str>) -> Span {
        Span::begin(SpanKind::Consumer, || name.to_owned(), || remote(traceparent), true)
    }

    /// A call to another service about such work, also linked.
    pub fn sender(name: &'static str, traceparent: Option<&str>) -> Span {
        Span::begin(SpanKind::Client, || name.to_owned(), || remote(traceparent), true)
    }

    /// A call of this step to another service.
    pub fn client(&self, name: impl FnOnce() -> String) -> Span {
        let Some(parent) = &self.0 else { return Span(None) };
        Span::begin(SpanKind::Client, name, || parent.clone(), false)
    }

    fn begin(kind: SpanKind, name: impl FnOnce() -> String, parent: impl FnOnce() -> Context, is_linked: bool) -> Span {
        let Some(tracer) = TRACER.get() else { return Span(None) };
        let parent = parent();
        let mut builder = tracer.span_builder(name()).with_kind(kind);
        if is_linked && parent.span().span_context().is_valid() {
            builder = builder.with_links(vec![Link::with_context(parent.span().span_context().clone())]);
        }
        let span = tracer.build_with_context(builder, &parent);
        Span(Some(parent.with_span(span)))
    }

    /// The keys are those of OpenTelemetry's semantic conventions where there is one.
    pub fn note(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    pub fn fail(&self, reason: &str) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(reason.to_owned()));
        }
    }

    /// Does `work` as a part of this step, which its log lines name.
    pub fn scope<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        match &self.0 {
            Some(context) => Either::Left(work.with_context(context.clone())),
            None => Either::Right(work),
        }
    }

    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?;
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(context, &mut carrier);
        carrier.remove(TRACEPARENT)
    }
}

pub fn current() -> Option<(TraceId, SpanId)> {
    TRACER.get()?;
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| (context.trace_id(), context.span_id()))
    })
}

/// The context of a `traceparent`; an empty one if it is absent or not valid.
fn remote(traceparent: Option<&str>) -> Context {
    let Some(traceparent) = traceparent else { return Context::new() };
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}
