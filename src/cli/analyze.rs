//! `ceoagent analyze`: submits one question and shows its memo. Uses the service at --url or on this machine; if none runs,
//! it starts one for this question.

use std::{
    collections::BTreeMap,
    io::{Read, Write, stderr, stdin, stdout},
    net::Ipv4Addr,
    process::ExitCode,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{
    client::{Client, ClientError, Connection},
    local_service::LocalService,
    logging,
    outcome::{self, Form, id},
    progress,
    serve::Signals,
    terminal::given,
};
use crate::{app::Tuning, claude::simulator::SimulatorConfig, config::text};

/// The data folder of a service started for one question, within the data folder.
const DATA_FOLDER: &str = "analyze";

/// Exit code after an interrupt, as in shells: 128 plus the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Most bytes of a question on standard input: more than any service accepts.
const MAX_STDIN: u64 = 4 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent analyze \"Should we build or buy our CRM?\" --option Build --option Buy
  ceoagent analyze - --markdown < question.txt > memo.md
  ceoagent analyze \"Should we hire?\" --json | jq .result.recommendation
  CEOAGENT_URL=https://memos.example.com CEOAGENT_TOKEN=… ceoagent analyze \"Should we hire?\"

Exit codes: 0 success; 1 other error; 2 wrong command line; 3 the job failed or was cancelled;
  4 the service refused the request; 130 interrupted.

Without --url, the command uses the service at HOST and PORT on this machine. If no service runs
there, it starts one for this question, with ANTHROPIC_API_KEY if set, otherwise with a simulated
Claude.")]
pub(super) struct Analyze {
    /// The decision question, in any language; - reads it from standard input
    #[arg(allow_hyphen_values = false)]
    question: String,

    /// Background: figures, constraints, history
    #[arg(long)]
    context: Option<String>,

    /// An option that the memo must consider; repeatable
    #[arg(long = "option", value_name = "OPTION")]
    options: Vec<String>,

    /// high, normal or low. Default: normal
    #[arg(long)]
    priority: Option<String>,

    /// Depth of the memo: brief, full or auto. Default: auto
    #[arg(long)]
    depth: Option<String>,

    /// Claude model. Default: the service's setting
    #[arg(long)]
    model: Option<String>,

    /// Prompt version. Default: the newest version
    #[arg(long, value_name = "VERSION")]
    prompt_version: Option<String>,

    /// Run the job at this time or later, for example 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    run_at: Option<String>,

    /// Fail the job if it has not started after this many seconds
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,

    /// Send a signed webhook to this URL when the job ends
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,

    /// Send it only for these events, with commas: job.succeeded, job.needs_information, job.failed, job.cancelled
    #[arg(long, value_name = "EVENTS", value_delimiter = ',', requires = "callback_url")]
    callback_events: Vec<String>,

    /// A label for the job; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    metadata: Vec<(String, String)>,

    /// Your id for this request: the same key with the same request returns the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Make a new call to Claude: use no answer of another job with the same question
    #[arg(long)]
    fresh: bool,

    /// Print the job's id when it is accepted, without waiting for the memo
    #[arg(long, conflicts_with_all = ["json", "markdown"])]
    detach: bool,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    connection: Connection,
}

impl Analyze {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let body = self.body()?;
        let _log = logging::start(&self.connection.settings, true);
        let client = self.connection.client()?;
        let accepted = match self.submit(&client, &body).await {
            Err(ClientError::Unreachable { source, .. }) if source.is_connect() && !self.connection.has_url() => {
                return self.ask_local(&body).await;
            }
            accepted => accepted?,
        };
        let id = id(&accepted)?;
        if self.detach {
            writeln!(stdout(), "{id}")?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut signals = Signals::listen()?;
        tokio::select! {
            job = progress::follow(&client, id) => outcome::show(&job?, self.form),
            _ = signals.next() => {
                writeln!(stderr(), "\nThe job continues. To get its memo: ceoagent jobs watch {id}")?;
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    async fn ask_local(&self, body: &Value) -> anyhow::Result<ExitCode> {
        ensure!(!self.detach, "--detach needs a running service; start one with `ceoagent serve`");
        // Webhooks are sent and repeated after the job's end, when this service is gone.
        ensure!(self.callback_url.is_none(), "--callback-url needs a running service; start one with `ceoagent serve`");
        let mut signals = Signals::listen()?;
        let mut settings = self.connection.settings.clone();
        settings.validate()?;
        // Any free port, because another program may use the default one.
        settings.port = 0;
        settings.host = Ipv4Addr::LOCALHOST.into();
        settings.data_dir = settings.data_dir.join(DATA_FOLDER);
        let service = LocalService::start(settings, SimulatorConfig::default(), Tuning::default()).await?;
        if service.simulator.is_some() {
            let note =
                "No service runs and ANTHROPIC_API_KEY is not set: Claude is SIMULATED. The memo is only an example.";
            writeln!(stderr(), "{note}")?;
        }
        let client = service.client()?;
        let answer = async {
            let accepted = self.submit(&client, body).await?;
            let id = id(&accepted)?;
            tokio::select! {
                job = progress::follow(&client, id) => outcome::show(&job?, self.form),
                _ = signals.next() => {
                    // Otherwise the next start would run the job and pay for it.
                    client.post(&format!("/api/v1/jobs/{id}/cancel")).await?;
                    Ok(ExitCode::from(INTERRUPTED))
                }
            }
        };
        let answer = answer.await;
        service.app.stop().await;
        answer
    }

    async fn submit(&self, client: &Client, body: &Value) -> Result<Value, ClientError> {
        let mut request = client.analyze(body);
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
        Ok(given(json!({
            "query": question,
            "context": self.context,
            "options": self.options,
            "priority": self.priority,
            "depth": self.depth,
            "model": self.model,
            "prompt_version": self.prompt_version,
            "run_at": self.run_at,
            "deadline_seconds": self.deadline,
            "callback_url": self.callback_url,
            "callback_events": self.callback_events,
            "metadata": self.metadata.iter().cloned().collect::<BTreeMap<_, _>>(),
        })))
    }
}

fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let read = stdin().lock().take(MAX_STDIN).read_to_end(&mut bytes);
    let count = read.context("can't read the question from standard input")?;
    ensure!((count as u64) < MAX_STDIN, "the question on standard input is longer than any service accepts");
    let text = text::decode(bytes).context("can't read the question from standard input as text")?;
    ensure!(!text.trim().is_empty(), "standard input has no question");
    Ok(text.trim().to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, for example team=ops")?;
    Ok((key.to_owned(), value.to_owned()))
}
