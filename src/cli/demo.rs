//! `ceoagent demo`: the whole service on this machine, one question asked over HTTP, its memo shown as a person would
//! like to read it. Without a key, Claude is simulated, and everything says so.

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    client::{Client, DEMO_FOLDER},
    outcome::{self, Form},
    own::Own,
    progress, serve,
};
use crate::{
    app,
    claude::simulator::{Latency, SimulatorConfig},
    config::Settings,
};

/// The question that is asked if none is given.
const QUESTION: &str = "Should we expand to new markets next year, or deepen our position at home first?";

/// Settings of the demo.
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
    /// Runs the demo. It listens on this machine only, unless HOST is set.
    ///
    /// # Errors
    /// Whatever keeps the service from starting, or the question from being answered.
    pub fn run(self, host_is_set: bool) -> anyhow::Result<ExitCode> {
        let _log = super::logging::start(&self.settings, true);
        serve::runtime()?.block_on(async {
            let mut signals = serve::Signals::listen()?;
            let simulator = SimulatorConfig { latency: Latency::Claude, ..SimulatorConfig::default() };
            let mut own = Own::start(self.settings.clone(), DEMO_FOLDER, host_is_set, simulator).await?;
            let base = own.base();
            let mut out = std::io::stdout();
            if own.is_simulated() {
                writeln!(
                    out,
                    "No ANTHROPIC_API_KEY is set: Claude is SIMULATED. The memo below shows the form, not a real analysis."
                )?;
            } else {
                writeln!(out, "Asking {} with your key.", self.settings.model())?;
            }
            writeln!(out, "Question: {}\n", self.question)?;
            let token = own.app.admin_token().clone();
            let shown = tokio::select! {
                job = ask(&base, &token, &self.question) => outcome::show(&job?, Form::default())?,
                _ = signals.next() => ExitCode::FAILURE,
                error = own.app.unfit() => return Err(error.into()),
            };
            if shown != ExitCode::SUCCESS {
                serve::stop(own.app, signals).await;
                return Ok(shown);
            }
            let folder = self.settings.data_dir.join(DEMO_FOLDER);
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
                serve::show_new_token(&own.app, &folder, self.settings.log_format)?;
                out.flush()?;
                signals.next().await;
            }
            Ok(serve::stop(own.app, signals).await)
        })
    }
}

/// Asks the service as any client would that may, with a bar while it waits.
async fn ask(base: &str, token: &SecretString, question: &str) -> anyhow::Result<Value> {
    let client = Client::new(base.to_owned(), Some(token.clone()))?;
    // A person waits, so the memo is to be a quick one; its text is shown as it comes.
    let request = client.request(Method::POST, "/api/v1/analyze").json(&json!({ "query": question, "wait": 1 }));
    let accepted = client.send(request).await?;
    let id = accepted["id"].as_str().context("the service gave no job id")?;
    Ok(progress::follow(&client, id).await?)
}
