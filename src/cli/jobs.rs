//! `ceoagent jobs`: look at the jobs of a service, wait for one, give up or retry any.

use std::{io::Write, process::ExitCode};

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};
use serde_json::Value;

use super::{
    client::{Client, Connection},
    memo::clean,
    outcome::{self, Form},
    progress, serve,
};

/// Jobs on a page of the service, at most.
const PAGE: usize = 200;

/// Jobs that are listed unless told otherwise: a screen.
const SCREEN: usize = 20;

/// Widest part of a question in a listing that is not cut.
const QUESTION_WIDTH: usize = 60;

/// Columns and nothing else.
pub(super) const BARE: TableStyle = TableStyle::new();

/// What to do with jobs.
#[derive(clap::Args, Debug)]
pub struct Jobs {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List jobs, newest first unless told otherwise; needs the admin token
    List(Box<List>),
    /// Show a job: its state, its attempts, its memo
    Show(Box<Show>),
    /// Wait for a job with a progress bar, then show its memo
    Watch(Box<Show>),
    /// Give jobs up, also while they run
    Cancel(Box<Several>),
    /// Queue failed or cancelled jobs again
    Retry(Box<Several>),
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent jobs list --status failed --status cancelled
  ceoagent jobs list --code overloaded --created-from 2026-11-23T00:00:00Z --metadata team=ops
  ceoagent jobs list --text Rotterdam --oldest
  ceoagent jobs list --all --json | jq -r 'select(.status == \"failed\") | .id' | xargs ceoagent jobs retry")]
struct List {
    /// Only jobs of this status (queued, scheduled, running, succeeded, failed, cancelled); repeat it for more
    #[arg(long)]
    status: Vec<String>,

    /// Only jobs of this priority (high, normal, low); repeat it for more
    #[arg(long)]
    priority: Vec<String>,

    /// Only jobs that failed with this error code, such as overloaded; repeat it for more
    #[arg(long)]
    code: Vec<String>,

    /// Only jobs whose question holds this, in upper or lower case
    #[arg(long)]
    text: Option<String>,

    /// Only jobs that asked for this model, or that it answered
    #[arg(long)]
    model: Option<String>,

    /// Only jobs of this caller: the name of its key, or jwt: and the subject of its token
    #[arg(long)]
    caller: Option<String>,

    /// Only jobs with this label; repeat it for jobs that have several
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// Only jobs accepted then or later, such as 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    created_from: Option<String>,

    /// Only jobs accepted before then
    #[arg(long, value_name = "TIME")]
    created_before: Option<String>,

    /// The oldest first
    #[arg(long)]
    oldest: bool,

    /// Begin where another listing of the same conditions ended: the cursor that it told
    #[arg(long)]
    cursor: Option<String>,

    /// So many jobs at most
    #[arg(long, default_value_t = SCREEN)]
    limit: usize,

    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    /// Print each job as a line of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Exit codes: 0 there is a memo, or (show) it may still come; 1 something went wrong;
  3 the job ended without a memo; 4 the service refused.")]
struct Show {
    /// The job's id
    id: String,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Exit codes: 0 done for all; 1 something went wrong; 4 the service refused at least one.")]
struct Several {
    /// The jobs' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,

    #[command(flatten)]
    connection: Connection,
}

impl Jobs {
    /// Does it.
    ///
    /// # Errors
    /// If the service can't be asked, or refuses.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            match self.action {
                Action::List(list) => list.run().await,
                Action::Show(show) => {
                    let job = show.connection.client()?.get(&path(&show.id, "")).await?;
                    if show.form == Form::default() {
                        describe(&job)?;
                    }
                    if progress::has_ended(&job) || show.form.json {
                        outcome::show(&job, show.form)
                    } else {
                        Ok(ExitCode::SUCCESS)
                    }
                }
                Action::Watch(show) => {
                    let client = show.connection.client()?;
                    outcome::show(&progress::follow(&client, &escaped(&show.id)).await?, show.form)
                }
                Action::Cancel(several) => several.each("/cancel").await,
                Action::Retry(several) => several.each("/retry").await,
            }
        })
    }
}

impl List {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut left = if self.all { usize::MAX } else { self.limit };
        let mut table = Table::new();
        table.load_style(BARE).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["ID", "STATUS", "CREATED", "TRIES", "CALLER", "QUESTION"]);
        let mut cursor = self.cursor.clone();
        let mut out = std::io::stdout().lock();
        while left > 0 {
            let page = self.page(&client, left.min(PAGE), cursor.as_deref()).await?;
            for job in page["jobs"].as_array().into_iter().flatten() {
                if self.json {
                    writeln!(out, "{job}")?;
                } else {
                    table.add_row(row(job));
                }
                left -= 1;
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        if let Some(cursor) = cursor.filter(|_| !self.all) {
            writeln!(std::io::stderr(), "there are more: --cursor {}", clean(&cursor))?;
        }
        if !self.json {
            if let Some(tries) = table.column_mut(3) {
                tries.set_cell_alignment(CellAlignment::Right);
            }
            for line in table.lines() {
                writeln!(out, "{}", line.trim())?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }

    async fn page(&self, client: &Client, limit: usize, cursor: Option<&str>) -> anyhow::Result<Value> {
        let several = [
            ("status", &self.status),
            ("priority", &self.priority),
            ("code", &self.code),
            ("metadata", &self.metadata),
        ];
        let single = [
            ("text", self.text.as_deref()),
            ("model", self.model.as_deref()),
            ("caller", self.caller.as_deref()),
            ("created_from", self.created_from.as_deref()),
            ("created_before", self.created_before.as_deref()),
            ("order", self.oldest.then_some("oldest")),
            ("cursor", cursor),
        ];
        let mut params: Vec<(&str, &str)> = Vec::new();
        for (name, values) in several {
            params.extend(values.iter().map(|value| (name, value.as_str())));
        }
        params.extend(single.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let limit = limit.to_string();
        params.push(("limit", &limit));
        let request = client.request(reqwest::Method::GET, "/api/v1/admin/jobs");
        Ok(client.send(request.query(&params)).await?)
    }
}

impl Several {
    /// One after the other; a refusal of one is told and does not keep the others from it.
    async fn each(&self, action: &str) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut refused = None;
        for id in &self.ids {
            match client.post(&path(id, action)).await {
                Ok(job) => writeln!(std::io::stdout(), "{id} {}", text(&job, "status"))?,
                Err(super::client::ClientError::Refused(refusal)) => {
                    writeln!(std::io::stderr(), "{}: {refusal}", clean(id))?;
                    refused = Some(refusal);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(refused.map_or(ExitCode::SUCCESS, |_| ExitCode::from(super::REFUSED)))
    }
}

/// The life of a job before its memo.
fn describe(job: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let dim = console::Style::new().force_styling(outcome::colours()).dim();
    let mut line = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => writeln!(out, "{} {value}", dim.apply_to(format!("{name:<10}"))),
    };
    line("Job", &text(job, "id"))?;
    line("Status", &text(job, "status"))?;
    line("Question", &text(job, "query"))?;
    line("Caller", &text(job, "caller"))?;
    for (name, field) in [("Created", "created_at"), ("Started", "started_at"), ("Finished", "finished_at")] {
        line(name, &text(job, field))?;
    }
    let queue = &job["queue"];
    if queue.is_object() {
        let when = match queue["eta_seconds"].as_u64() {
            Some(seconds) => format!("in about {}", progress::readable(seconds)),
            None => "nobody can tell when".to_owned(),
        };
        line("Expected", &format!("{when}, waits for {}", text(queue, "waiting_for")))?;
    }
    for attempt in job["attempts"].as_array().into_iter().flatten() {
        let error = attempt["error"]["message"].as_str().map(|message| format!(": {}", clean(message)));
        let told = format!(
            "{} {}, {}{}",
            attempt["number"],
            text(attempt, "outcome"),
            text(attempt, "finished_at"),
            error.unwrap_or_default()
        );
        line("Attempt", &told)?;
    }
    line(
        "Metadata",
        &job["metadata"].as_object().map_or(String::new(), |labels| {
            let labels =
                labels.iter().map(|(key, value)| clean(&format!("{key}={}", value.as_str().unwrap_or_default())));
            labels.collect::<Vec<_>>().join(" ")
        }),
    )?;
    writeln!(out)?;
    Ok(())
}

fn row(job: &Value) -> [String; 6] {
    let created = text(job, "created_at");
    // To the second is enough to read.
    let created = created.split_once('.').map_or(created.as_str(), |(start, _)| start).replace('T', " ");
    let question = console::truncate_str(&text(job, "query"), QUESTION_WIDTH, "…").into_owned();
    let tries = job["attempts_made"].to_string();
    [text(job, "id"), text(job, "status"), created, tries, text(job, "caller"), question]
}

/// A field as text that is fit for a terminal; empty if it is missing.
pub(super) fn text(object: &Value, field: &str) -> String {
    clean(object[field].as_str().unwrap_or_default())
}

fn path(id: &str, action: &str) -> String {
    format!("/api/v1/jobs/{}{action}", escaped(id))
}

/// An id as part of a path: what can be in no id becomes something that is none either.
fn escaped(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
