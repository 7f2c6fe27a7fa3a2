//! `ceoagent analyze`: one question, one memo. Asks the service that is told or runs on this machine; where none runs, a
//! service of its own for as long as it takes.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    client::{Client, ClientError, Connection},
    logging,
    outcome::{self, Form},
    own::Own,
    progress, serve,
};
use crate::claude::simulator::SimulatorConfig;

/// Where a service of its own keeps its data, within the data folder.
const DATA_FOLDER: &str = "analyze";

/// Exit code of whoever is interrupted, as shells have it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Most bytes of a question on standard input: more than any service takes, less than any memory.
const MAX_STDIN: u64 = 4 << 20;

/// What is asked.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent analyze \"Should we build or buy our CRM?\" --option Build --option Buy
  ceoagent analyze - --markdown < question.txt > memo.md
  ceoagent analyze \"Should we hire?\" --json | jq .result.recommendation
  CEOAGENT_URL=https://memos.example.com CEOAGENT_TOKEN=… ceoagent analyze \"Should we hire?\"

Exit codes: 0 there is a memo; 1 something went wrong on the way; 2 the command line is wrong;
  3 the job ended without a memo; 4 the service refused; 130 interrupted.

Without --url, the service at HOST and PORT of this machine is asked; if none runs, one is started
for this question, with ANTHROPIC_API_KEY if that is set, else with a simulated Claude.")]
pub struct Analyze {
    /// The question, in any language; - reads it from standard input
    #[arg(allow_hyphen_values = false)]
    question: String,

    /// What you know besides: figures, constraints, history
    #[arg(long)]
    context: Option<String>,

    /// An option that you want considered; repeat it for more
    #[arg(long = "option", value_name = "OPTION")]
    options: Vec<String>,

    /// Its place in the order: high, normal or low
    #[arg(long)]
    priority: Option<String>,

    /// How much the memo says: brief, full, or auto
    #[arg(long)]
    depth: Option<String>,

    /// A Claude model; the service's own setting if absent
    #[arg(long)]
    model: Option<String>,

    /// Version of the prompts; the service's default if absent
    #[arg(long, value_name = "VERSION")]
    prompt_version: Option<String>,

    /// Not before this time, such as 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    run_at: Option<String>,

    /// Fail it if Claude has not been asked after so many seconds
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,

    /// Have the service tell this URL of the end, by a signed message
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,

    /// A label of your own; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    metadata: Vec<(String, String)>,

    /// Your own name for this question: asked again under it, it is the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Have Claude asked for this question alone, whatever answer may be there or on its way
    #[arg(long)]
    fresh: bool,

    /// Print the job's id as soon as it is accepted, and end
    #[arg(long, conflicts_with_all = ["json", "markdown"])]
    detach: bool,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    connection: Connection,
}

impl Analyze {
    /// Asks, waits and shows the memo.
    ///
    /// # Errors
    /// If the service can't be asked, or refuses.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let body = self.body()?;
        let _log = logging::start(&self.connection.settings, true);
        serve::runtime()?.block_on(async {
            let client = self.connection.client()?;
            match self.submit(&client, &body).await {
                Err(ClientError::Unreachable { source, .. }) if source.is_connect() && !self.connection.is_told() => {
                    self.ask_own(&body).await
                }
                accepted => self.finish(&client, &accepted?).await,
            }
        })
    }

    /// The memo of a job that the service has accepted.
    async fn finish(&self, client: &Client, accepted: &Value) -> anyhow::Result<ExitCode> {
        let id = id(accepted)?;
        if self.detach {
            writeln!(std::io::stdout(), "{id}")?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut signals = serve::Signals::listen()?;
        tokio::select! {
            job = progress::follow(client, id) => outcome::show(&job?, self.form),
            _ = signals.next() => {
                writeln!(std::io::stderr(), "\nThe job goes on; come back for its memo: ceoagent jobs watch {id}")?;
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    /// As [`Analyze::finish`], of a service that is started for this question.
    async fn ask_own(&self, body: &Value) -> anyhow::Result<ExitCode> {
        ensure!(!self.detach, "no service runs that the question could be left with; start one with `ceoagent serve`");
        // The message is sent after the end, and again if it is not taken; the service would be gone.
        ensure!(
            self.callback_url.is_none(),
            "no service runs that could tell --callback-url; start one with `ceoagent serve`"
        );
        let mut signals = serve::Signals::listen()?;
        let mut settings = self.connection.settings.clone();
        settings.validate()?;
        // Any port, since the usual one may be what another program has.
        settings.port = 0;
        let own = Own::start(settings, DATA_FOLDER, false, SimulatorConfig::default()).await?;
        if own.is_simulated() {
            let note =
                "No service runs and no ANTHROPIC_API_KEY is set: Claude is SIMULATED, the memo shows the form only.";
            writeln!(std::io::stderr(), "{note}")?;
        }
        let client = Client::new(own.base(), Some(own.app.admin_token().clone()))?;
        let answer = async {
            let accepted = self.submit(&client, body).await?;
            let id = id(&accepted)?;
            tokio::select! {
                job = progress::follow(&client, id) => outcome::show(&job?, self.form),
                _ = signals.next() => {
                    // Else the next question would find it in the queue, and pay for it.
                    client.post(&format!("/api/v1/jobs/{id}/cancel")).await?;
                    Ok(ExitCode::from(INTERRUPTED))
                }
            }
        };
        let answer = answer.await;
        own.app.stop().await;
        answer
    }

    async fn submit(&self, client: &Client, body: &Value) -> Result<Value, ClientError> {
        let mut request = client.request(Method::POST, "/api/v1/analyze").json(body);
        if let Some(key) = &self.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if self.fresh {
            request = request.header("cache-control", "no-cache");
        }
        client.send(request).await
    }

    fn body(&self) -> anyhow::Result<Value> {
        let question = if self.question == "-" { read_stdin()? } else { self.question.clone() };
        let mut body = json!({ "query": question });
        let texts = [
            ("context", &self.context),
            ("priority", &self.priority),
            ("depth", &self.depth),
            ("model", &self.model),
            ("prompt_version", &self.prompt_version),
            ("run_at", &self.run_at),
            ("callback_url", &self.callback_url),
        ];
        for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))) {
            body[name] = json!(text);
        }
        if let Some(seconds) = self.deadline {
            body["deadline_seconds"] = json!(seconds);
        }
        if !self.options.is_empty() {
            body["options"] = json!(self.options);
        }
        if !self.metadata.is_empty() {
            let labels: Map<String, Value> = self.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            body["metadata"] = Value::Object(labels);
        }
        Ok(body)
    }
}

fn id(job: &Value) -> anyhow::Result<&str> {
    job["id"].as_str().context("the service gave no job id")
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_STDIN).read_to_string(&mut text);
    let bytes = read.context("the question can't be read from standard input as UTF-8 text")?;
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        bail!("there is no question on standard input");
    }
    ensure!((bytes as u64) < MAX_STDIN, "the question on standard input is longer than any service takes");
    // PowerShell pipes a byte order mark.
    Ok(text.trim_start_matches('\u{feff}').trim().to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, such as team=ops")?;
    Ok((key.to_owned(), value.to_owned()))
}
