//! `ceoagent serve`: the service, until SIGTERM or Ctrl-C.

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use super::logging;
use crate::{app::App, clock::Clock, config::Settings};

/// Serves until told to stop; a second signal ends the process at once, which loses nothing.
///
/// # Errors
/// Whatever keeps the service from starting.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let _log = logging::start(settings, false);
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let app = App::start(settings, Clock::system()).await?;
        show_new_token(&app)?;
        signals.next().await;
        stop(app, signals).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Says the admin token that was made at this start, once, beside the log and not as one of its events.
pub(super) fn show_new_token(app: &App) -> anyhow::Result<()> {
    if let Some(token) = app.new_admin_token() {
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "Admin token (shown once, kept in the data folder): {}", token.expose_secret())?;
    }
    Ok(())
}

/// Drains, unless a second signal comes.
pub(super) async fn stop(app: App, mut signals: Signals) {
    tokio::select! {
        () = app.stop() => {}
        () = signals.next() => warn!("a second signal: stopping at once"),
    }
}

/// The signals that ask a service to stop.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("can't start the async runtime")
}
