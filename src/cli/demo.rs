//! `ceoagent demo`: the whole service on this machine, one question asked over HTTP, its memo shown as a person would
//! like to read it. Without a key, Claude is simulated, and everything says so.

use std::{io::Write, net::Ipv4Addr, process::ExitCode};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    client::{Client, DEMO_FOLDER},
    local_service::LocalService,
    outcome::{self, Form},
    progress, serve,
};
use crate::{
    app::{self, Tuning},
    claude::simulator::{Latency, SimulatorConfig},
    config::Settings,
};

/// The question that is asked if none is given.
const QUESTION: &str = "Should we expand to new markets next year, or deepen our position at home first?";

#[derive(clap::Args, Debug)]
pub struct Demo {
    /// The question to ask
    #[arg(default_value = QUESTION)]
    question: String,

    /// Stop after the memo
    #[arg(long)]
    once: bool,

    /// The service's own
    #[command(flatten)]
    pub settings: Settings,
}

impl Demo {
    /// Listens on this machine only, unless HOST is set.
    pub fn run(self, host_is_set: bool) -> anyhow::Result<ExitCode> {
        let _log = super::logging::start(&self.settings, true);
        serve::runtime()?.block_on(async {
            let mut signals = serve::Signals::listen()?;
            let simulator = SimulatorConfig { latency: Latency::Claude, ..SimulatorConfig::default() };
            let folder = self.settings.data_dir.join(DEMO_FOLDER);
            let mut settings = Settings { data_dir: folder.clone(), ..self.settings.clone() };
            if !host_is_set {
                settings.host = Ipv4Addr::LOCALHOST.into();
            }
            let mut service = LocalService::start(settings, simulator, Tuning::default()).await?;
            let base = service.base();
            let mut out = std::io::stdout();
            if service.simulator.is_some() {
                writeln!(
                    out,
                    "No ANTHROPIC_API_KEY is set: Claude is SIMULATED. The memo below shows the form, not a real analysis."
                )?;
            } else {
                writeln!(out, "Asking {} with your key.", self.settings.model())?;
            }
            writeln!(out, "Question: {}\n", self.question)?;
            let client = service.client()?;
            let shown = tokio::select! {
                job = ask(&client, &self.question) => outcome::show(&job?, Form::default())?,
                _ = signals.next() => ExitCode::FAILURE,
                error = service.app.unfit() => return Err(error.into()),
            };
            if shown != ExitCode::SUCCESS {
                serve::stop(service.app, signals).await;
                return Ok(shown);
            }
            let token = match self.settings.admin_token {
                Some(_) => "your ADMIN_TOKEN".to_owned(),
                None => format!("the admin token in {}", app::admin_token_file(&folder).display()),
            };
            if self.once {
                writeln!(out, "\nWithout --once the service keeps running: ask at {base}/, manage the queue at {base}/admin")?;
                writeln!(out, "with {token}.")?;
            } else {
                writeln!(out, "\nThe service runs until Ctrl-C.")?;
                writeln!(out, "  Ask and read in a browser: {base}/")?;
                writeln!(out, "  Manage the queue:          {base}/admin, with {token}")?;
                writeln!(out, "    on the command line:     ceoagent stats --url {base}")?;
                writeln!(out, "  Try the API in a browser:  {base}/docs")?;
                writeln!(out, "  Ask by curl:               curl {base}/api/v1/analyze?wait=30 \\")?;
                writeln!(out, "                               -H 'Content-Type: application/json' \\")?;
                writeln!(out, "                               -d '{{\"query\": \"Should we buy or build our CRM?\"}}'")?;
                serve::show_new_token(&service.app, &folder, self.settings.log_format)?;
                out.flush()?;
                signals.next().await;
            }
            Ok(serve::stop(service.app, signals).await)
        })
    }
}

/// Submits the question, as any client would. A person waits, so a short memo is asked for.
async fn ask(client: &Client, question: &str) -> anyhow::Result<Value> {
    let accepted = client.send(client.analyze(&json!({ "query": question, "wait": 1 }))).await?;
    let id = accepted["id"].as_str().context("the service gave no job id")?;
    progress::follow(client, id).await
}
