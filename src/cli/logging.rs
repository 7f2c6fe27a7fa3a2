//! Where log lines go: one line an event, to standard error, written by a separate thread so that a slow reader delays
//! nothing; under pressure lines are dropped, not requests. While traces are sent, a line bears the `trace_id` and the
//! `span_id` of the step that it was written in.

use std::io;

use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    config::{LogFormat, Settings, values::LogLevel},
    telemetry,
};

/// Lines in memory at most, 40 bytes each while empty: almost half a second's worth at full load.
const BUFFERED_LINES: usize = 16_000;

/// Starts logging; keep the guard to the end of the process, it writes the last lines. `quiet` leaves warnings only.
pub(super) fn start(settings: &Settings, quiet: bool) -> WorkerGuard {
    // The writing thread flushes whenever it has caught up: one system call for all lines that wait.
    let stderr = io::BufWriter::new(io::stderr());
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).lossy(true).finish(stderr);
    let filter = match &settings.log_level {
        Some(LogLevel(filter)) => filter.clone(),
        None if settings.debug => LogLevel::debug().0,
        None if quiet => "warn".to_owned(),
        None => "info".to_owned(),
    };
    let filter = EnvFilter::new(filter);
    let lines = fmt::layer().with_writer(writer).with_target(false).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match settings.log_format {
        LogFormat::Text => registry.with(lines.map_event_format(|lines| Traced { lines, is_json: false })).try_init(),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            registry.with(lines.map_event_format(|lines| Traced { lines, is_json: true })).try_init()
        }
    };
    // Fails only where a subscriber is already set, as in tests.
    drop(started);
    guard
}

/// Lines as another format has them, with the trace at their end: as further words, or as further members of the object.
struct Traced<F> {
    lines: F,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some((trace, span)) = telemetry::current() else {
            return self.lines.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match line.strip_suffix('}').filter(|_| self.is_json) {
            Some(open) => writeln!(writer, r#"{open},"trace_id":"{trace}","span_id":"{span}"}}"#),
            None => writeln!(writer, "{line} trace_id={trace} span_id={span}"),
        }
    }
}
