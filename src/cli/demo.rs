//! `ceoagent demo`: the whole service on this machine, one question asked over HTTP, its memo shown as a person would
//! like to read it. Without a key, Claude is simulated, and everything says so.

use std::{io::IsTerminal, io::Write, net::Ipv4Addr, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{memo, serve};
use crate::{
    analysis::Memo,
    app::App,
    claude::simulator::{Latency, Simulator, SimulatorConfig},
    clock::Clock,
    config::Settings,
};

/// The question that is asked if none is given.
const QUESTION: &str = "Should we expand to new markets next year, or deepen our position at home first?";

/// How long the simulated Claude takes: long enough to see the bar move.
const LATENCY: Latency = Latency::LogNormal { median: Duration::from_secs(4), sigma: 0.25 };

/// What an answer usually takes: half of it fills half of the bar.
const EXPECTED: Duration = Duration::from_secs(8);

/// The demo's folder within the data folder, so that it never mixes with real jobs.
const DATA_FOLDER: &str = "demo";

/// Settings of the demo.
#[derive(clap::Args, Debug)]
pub struct Demo {
    /// The question to ask
    #[arg(default_value = QUESTION)]
    question: String,

    /// End after the memo instead of serving on
    #[arg(long)]
    once: bool,

    /// The service's own
    #[command(flatten)]
    pub settings: Settings,
}

impl Demo {
    /// Runs the demo. It listens on this machine only, unless HOST is set.
    ///
    /// # Errors
    /// Whatever keeps the service from starting, or the question from being answered.
    pub fn run(mut self, host_is_set: bool) -> anyhow::Result<ExitCode> {
        let _log = super::logging::start(&self.settings, true);
        serve::runtime()?.block_on(async {
            let mut signals = serve::Signals::listen()?;
            // Dropping it would stop it.
            let simulator = self.prepare(host_is_set).await?;
            let mut app = App::start(&self.settings, Clock::system()).await?;
            let base = format!("http://{}", app.address());
            let mut out = std::io::stdout();
            match &simulator {
                Some(_) => writeln!(
                    out,
                    "No ANTHROPIC_API_KEY is set: Claude is SIMULATED. The memo below shows the form, not a real analysis."
                )?,
                None => writeln!(out, "Asking {} with your key.", self.settings.model_name)?,
            }
            writeln!(out, "Question: {}\n", self.question)?;
            let answer = tokio::select! {
                answer = ask(&base, &self.question) => Some(answer?),
                _ = signals.next() => None,
                error = app.unfit() => return Err(error.into()),
            };
            let Some(answer) = answer else {
                serve::stop(app, signals).await;
                return Ok(ExitCode::FAILURE);
            };
            let width = console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns));
            write!(out, "{}", memo::render(&answer, width, console::colors_enabled()))?;
            if !self.once {
                writeln!(out, "\nThe service goes on until Ctrl-C.")?;
                writeln!(out, "  Try the API in a browser:  {base}/docs")?;
                writeln!(out, "  Ask by curl:               curl {base}/api/v1/analyze?wait=30 \\")?;
                writeln!(out, "                               --json '{{\"query\": \"Should we buy or build our CRM?\"}}'")?;
                serve::show_new_token(&app)?;
                out.flush()?;
                signals.next().await;
            }
            Ok(serve::stop(app, signals).await)
        })
    }

    /// Turns the settings into the demo's, and starts the simulated Claude if there is no key.
    async fn prepare(&mut self, host_is_set: bool) -> anyhow::Result<Option<Simulator>> {
        let settings = &mut self.settings;
        settings.data_dir = settings.data_dir.join(DATA_FOLDER);
        std::fs::create_dir_all(&settings.data_dir)
            .with_context(|| format!("the data folder {} can't be made", settings.data_dir.display()))?;
        if !host_is_set {
            settings.host = Ipv4Addr::LOCALHOST.into();
        }
        if settings.anthropic_api_key.is_some() {
            return Ok(None);
        }
        let config = SimulatorConfig { latency: LATENCY, ..SimulatorConfig::default() };
        let simulator = Simulator::start(config).await.context("the simulated Claude can't be started")?;
        settings.anthropic_base_url = simulator.base_url();
        settings.anthropic_api_key = Some("simulated".into());
        Ok(Some(simulator))
    }
}

/// Asks the service as any client would, with a bar while it waits.
async fn ask(base: &str, question: &str) -> anyhow::Result<Memo> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let started = Instant::now();
    let accepted = read(client.post(format!("{base}/api/v1/analyze")).json(&json!({ "query": question }))).await?;
    let id = accepted["id"].as_str().context("the service gave no job id")?.to_owned();
    let bar = ProgressBar::new(1_000);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.set_style(ProgressStyle::with_template("{msg:>10} [{bar:40}] {elapsed}")?.progress_chars("=> "));
    let job = loop {
        // A short wait, so that the bar moves.
        let job = read(client.get(format!("{base}/api/v1/jobs/{id}?wait=1"))).await?;
        match job["status"].as_str() {
            Some("succeeded") => break job,
            Some("failed" | "cancelled") => bail!("the job ended without a memo: {}", job["error"]["message"]),
            status => {
                bar.set_message(status.unwrap_or_default().to_owned());
                // Slower and slower, and never full before the answer is there.
                let waited = started.elapsed().as_millis();
                let part = 1_000 * waited / (waited + EXPECTED.as_millis() / 2);
                bar.set_position(u64::try_from(part).unwrap_or(0));
            }
        }
    };
    bar.finish_and_clear();
    serde_json::from_value(job["result"].clone()).context("the memo can't be read")
}

async fn read(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.send().await.context("the service does not answer")?;
    let status = answer.status();
    let body: Value = answer.json().await.context("the service's answer is not JSON")?;
    if !status.is_success() {
        bail!("the service answers {status}: {}", body["detail"].as_str().unwrap_or_default());
    }
    Ok(body)
}
