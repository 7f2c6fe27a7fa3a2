//! Where log lines go: one line an event, to standard error, written by a thread of its own so that a slow reader holds
//! nobody up; under pressure lines are dropped, not requests.

use std::io;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, Settings};

/// Lines in memory at most: a second's worth at full load.
const BUFFERED_LINES: usize = 50_000;

/// Starts logging; keep the guard to the end of the process, it writes the last lines. `quiet` leaves warnings only.
pub(super) fn start(settings: &Settings, quiet: bool) -> WorkerGuard {
    // The writing thread flushes whenever it has caught up: one system call for all lines that wait.
    let stderr = io::BufWriter::new(io::stderr());
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).lossy(true).finish(stderr);
    let level = match (settings.debug, quiet) {
        (true, _) => "info,ceoagent=debug",
        (false, true) => "warn",
        (false, false) => "info",
    };
    // RUST_LOG, the field's habit, outranks the setting.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let lines = fmt::layer().with_writer(writer).with_target(false).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match settings.log_format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
    };
    // Fails only where a subscriber is already set, as in tests.
    drop(started);
    guard
}
