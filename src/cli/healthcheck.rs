//! `ceoagent healthcheck`: for container engines, so that the image needs no shell and no curl, and for operators who want
//! to know why a service accepts no jobs.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::{anyhow, ensure};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{
    client::{Client, base, local_base},
    terminal::{self, items},
};
use crate::config::Settings;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent healthcheck                       liveness, for container engines
  ceoagent healthcheck --ready               readiness, with the reasons if the service is not ready
  ceoagent healthcheck --ready --url https://memos.example.com

Exit codes: 0 healthy; 1 not healthy or no answer. A degraded service accepts jobs, but runs none at
  the moment. --ready prints the reasons, with exit code 0.")]
pub(super) struct Healthcheck {
    /// Check that the service accepts jobs (/health/ready) instead of that it is alive (/health)
    #[arg(long)]
    ready: bool,

    /// URL of the service, for example https://memos.example.com. Default: HOST and PORT on this machine
    #[arg(long, env = "CEOAGENT_URL", value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: Settings,
}

impl Healthcheck {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        let base = self.url.as_deref().map_or_else(|| Ok(local_base(&self.settings)), base)?;
        // Both routes are public.
        let client = Client::new(base, None)?;
        let path = if self.ready { "/health/ready" } else { "/health" };
        let (status, _, text) = client.answer(client.request(Method::GET, path).timeout(TIMEOUT)).await?;
        let unexpected = || anyhow!("{} answers {status}", client.at(path));
        let mut out = stdout().lock();
        if !self.ready {
            ensure!(status.is_success(), unexpected());
            writeln!(out, "{}", terminal::escaped(&text))?;
            return Ok(ExitCode::SUCCESS);
        }
        let answer: Value = serde_json::from_str(&text).map_err(|_| unexpected())?;
        let state = match (status, answer["status"].as_str()) {
            (StatusCode::SERVICE_UNAVAILABLE, _) if answer["code"] == "not_ready" => "not ready",
            (StatusCode::OK, Some("ready")) => "ready",
            (StatusCode::OK, Some("degraded")) => "degraded: jobs are accepted, but not run at the moment",
            _ => return Err(unexpected()),
        };
        writeln!(out, "{state}")?;
        for reason in items(&answer, "reasons").iter().chain(items(&answer, "errors")) {
            writeln!(out, "  {}: {}", terminal::text(reason, "field"), terminal::text(reason, "message"))?;
        }
        Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
