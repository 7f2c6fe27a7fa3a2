//! `ceoagent healthcheck`: for container engines, so that the image needs no shell and no curl.

use std::{io::Write, net::IpAddr, net::Ipv4Addr, net::Ipv6Addr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};

use crate::config::Settings;

/// A service that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the service at HOST and PORT for `/health`.
///
/// # Errors
/// If there is no answer, or a bad one.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let host = match settings.host {
        // A service that listens everywhere is asked here.
        IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    let url = format!("http://{}/health", std::net::SocketAddr::new(host, settings.port));
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
