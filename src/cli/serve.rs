//! `ceoagent serve`: the service, until SIGTERM or Ctrl-C.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::logging;
use crate::{
    app::{self, App},
    clock::Clock,
    config::{self, LogFormat, Settings},
    telemetry,
};

/// Exit code of a process that a signal ended, as in shells, less the signal's number.
const ENDED_BY_SIGNAL: i32 = 128;

pub(super) fn run(settings: &Settings, (mut signals, mut hangup): (Signals, Signal)) -> anyhow::Result<ExitCode> {
    let endpoint = config::otlp_endpoint()?;
    config::proxy::check()?;
    let _log = logging::start(settings, false);
    // Dropped before the log, because its end may be logged.
    let _telemetry = telemetry::start(endpoint.as_deref())?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let mut app = tokio::select! {
            app = App::start(settings, Clock::system()) => app?,
            _ = signals.next() => {
                info!("stopped before the start was complete");
                return Ok(ExitCode::SUCCESS);
            }
        };
        show_new_token(&app, &settings.data_dir, settings.log_format)?;
        let unfit = loop {
            tokio::select! {
                _ = signals.next() => break None,
                error = app.unfit() => break Some(error),
                _ = hangup.recv() => app.reload("SIGHUP").await,
            }
        };
        let code = stop(app, signals).await;
        unfit.map_or(Ok(code), |error| Err(error.into()))
    });
    // Does not wait for tasks that are still running.
    runtime.shutdown_background();
    ended
}

/// Shows the admin token that this start created: the token at a terminal, the name of its file in a collected log.
pub(super) fn show_new_token(app: &App, data_dir: &Path, format: LogFormat) -> anyhow::Result<()> {
    let Some(token) = app.new_admin_token() else { return Ok(()) };
    let file = app::admin_token_file(data_dir);
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() && format == LogFormat::Text {
        let token = token.expose_secret();
        writeln!(stderr, "Admin token (shown once, stored in {}): {token}", file.display())?;
    } else {
        info!(file = %file.display(), "an admin token was created");
    }
    Ok(())
}

/// Drains. A second signal ends the process at once, with a failure. That loses nothing: every accepted job is on disk.
pub(super) async fn stop(app: App, mut signals: Signals) -> ExitCode {
    tokio::select! {
        () = app.stop() => ExitCode::SUCCESS,
        signal = signals.next() => {
            warn!("a second signal: stopping at once");
            let code = ENDED_BY_SIGNAL + signal.as_raw_value();
            u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Signals> {
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Listens for all signals of a service and SIGHUP, before there is a runtime. Signals that arrive from now on are not
    /// lost. SIGHUP is for `serve` alone, or the demo would outlive its terminal.
    pub(super) fn listen_early() -> anyhow::Result<(Signals, Signal)> {
        // Without threads, because variables of the environment are still to be set. The handlers outlive the runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.context("can't listen for signals")?;
        let _entered = runtime.enter();
        Ok((Signals::listen()?, listen(SignalKind::hangup())?))
    }

    pub(super) async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

fn listen(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("can't listen for signals")
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("can't start the async runtime")
}
