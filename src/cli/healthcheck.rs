//! `ceoagent healthcheck`: for container engines, so that the image needs no shell and no curl; and for whoever wants to
//! know why a service takes no questions.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{anyhow, ensure};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{
    client::{Client, base, local_base},
    memo::clean,
};
use crate::config::Settings;

/// A service that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The command.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent healthcheck                       for container engines: whether the process serves
  ceoagent healthcheck --ready               before questions are sent; or why none are taken
  ceoagent healthcheck --ready --url https://memos.example.com

Exit codes: 0 it does; 1 it does not, or there is no answer. A service that is degraded takes
  questions, but analyses none at the moment: --ready says why, with exit code 0.")]
pub struct Healthcheck {
    /// Ask whether questions are taken (/health/ready) instead of whether the process serves (/health)
    #[arg(long)]
    ready: bool,

    /// Where the service is, such as https://memos.example.com; the one at HOST and PORT of this machine if absent
    #[arg(long, env = "CEOAGENT_URL", value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: Settings,
}

impl Healthcheck {
    /// Asks the service.
    ///
    /// # Errors
    /// If there is no answer, or a bad one.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let base = self.url.as_deref().map_or_else(|| Ok(local_base(&self.settings)), base)?;
        super::serve::runtime()?.block_on(async {
            // Who asks for this is nobody's business, so no token goes along.
            let client = Client::new(base, None)?;
            let path = if self.ready { "/health/ready" } else { "/health" };
            let (status, text) = client.answer(client.request(Method::GET, path).timeout(TIMEOUT)).await?;
            let at = client.at(path);
            if !self.ready {
                ensure!(status.is_success(), "{at} answers {status}");
                writeln!(std::io::stdout(), "{text}")?;
                return Ok(ExitCode::SUCCESS);
            }
            let answer: Value = serde_json::from_str(&text).map_err(|_| anyhow!("{at} answers {status}"))?;
            let state = match (status, answer["status"].as_str()) {
                (StatusCode::SERVICE_UNAVAILABLE, _) if answer["code"] == "not_ready" => "not ready",
                (StatusCode::OK, Some("ready")) => "ready",
                (StatusCode::OK, Some("degraded")) => "degraded: questions are taken, but not analysed at the moment",
                _ => return Err(anyhow!("{at} answers {status}")),
            };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{state}")?;
            let reasons = ["reasons", "errors"].into_iter().filter_map(|name| answer[name].as_array());
            for reason in reasons.flatten() {
                let of = |name: &str| clean(reason[name].as_str().unwrap_or_default());
                writeln!(out, "  {}: {}", of("field"), of("message"))?;
            }
            Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    }
}
