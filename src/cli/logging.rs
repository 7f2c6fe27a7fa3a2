//! Where log lines go: one line an event, to standard error, written by a separate thread so that a slow reader delays
//! nothing; under pressure lines are dropped, not requests. While traces are sent, a line bears the `trace_id` and the
//! `span_id` of the step that it was written in.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{self, FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::terminal;
use crate::{
    config::{LogFormat, Settings, values::LogLevel},
    telemetry,
};

/// Most lines in memory, 40 bytes each while empty: almost half a second of full load.
const BUFFERED_LINES: usize = 16_000;

const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts logging; keep the guard to the end of the process, it waits for the last lines. `quiet` leaves warnings only.
pub(super) fn start(settings: &Settings, quiet: bool) -> Guard {
    let (lines, guard) = write_behind();
    let writer = move || lines.clone();
    let filter = match &settings.log_level {
        Some(LogLevel(filter)) => filter.clone(),
        None if settings.debug => LogLevel::debug().0,
        None if quiet => "warn".to_owned(),
        None => "info".to_owned(),
    };
    // More of it would show the parameters of statements: questions, and the digests of keys.
    let filter = filter.parse::<Targets>().unwrap_or_default().with_target("tokio_postgres", LevelFilter::INFO);
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

/// Sends lines to the thread that writes them, and drops them if it can't keep up.
#[derive(Clone)]
struct Lines(SyncSender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(printable(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line without characters that a terminal obeys. It is given at once, so a line break inside it is text of others.
fn printable(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let Some(text) = text.strip_suffix('\n') else { return line.to_vec() };
    (terminal::escaped(text).replace('\n', "\\n") + "\n").into_bytes()
}

/// Waits for the last lines when it is dropped.
pub(super) struct Guard {
    lines: Lines,
    is_closing: Arc<AtomicBool>,
    written: Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.is_closing.store(true, Relaxed);
        // Wakes the thread if it waits for a line.
        let _ = self.lines.write(&[]);
        let _ = self.written.recv_timeout(LAST_LINES_TIMEOUT);
    }
}

fn write_behind() -> (Lines, Guard) {
    let (lines, waiting) = sync_channel::<Vec<u8>>(BUFFERED_LINES);
    let (end, written) = channel();
    let is_closing = Arc::new(AtomicBool::new(false));
    let guard = Guard { lines: Lines(lines.clone()), is_closing: Arc::clone(&is_closing), written };
    thread::spawn(move || {
        let mut stderr = BufWriter::new(io::stderr());
        while let Ok(line) = waiting.recv() {
            // One system call for all lines that wait.
            for line in std::iter::once(line).chain(waiting.try_iter()) {
                let _ = stderr.write_all(&line);
            }
            let _ = stderr.flush();
            if is_closing.load(Relaxed) {
                break;
            }
        }
        let _ = end.send(());
    });
    (Lines(lines), guard)
}

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
