//! `ceoagent healthcheck`: for container engines, so that the image needs no shell and no curl.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};

use super::client::local_base;
use crate::config::Settings;

/// A service that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the service at HOST and PORT for `/health`.
///
/// # Errors
/// If there is no answer, or a bad one.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let url = format!("{}/health", local_base(settings));
    // reqwest wants one to be named, though this call is never encrypted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    super::serve::runtime()?.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let answer = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
        ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        writeln!(std::io::stdout(), "{}", answer.text().await?)?;
        Ok(ExitCode::SUCCESS)
    })
}
