//! `ceoagent jobs`: look at the jobs of a service, wait for one, give up or retry any.

mod conditions;
mod several;
mod show;

use std::{io::Write, process::ExitCode};

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};
use serde_json::Value;

use self::{
    conditions::Conditions,
    several::{Deed, Several},
    show::describe,
};
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
    /// Give jobs up, also while they run: by their ids, or all that meet conditions
    Cancel(Box<Several>),
    /// Queue failed or cancelled jobs again: by their ids, or all that meet conditions
    Retry(Box<Several>),
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent jobs list --status failed --status cancelled
  ceoagent jobs list --code overloaded --created-from 2026-11-23T00:00:00Z --metadata team=ops
  ceoagent jobs list --text Rotterdam --oldest
  ceoagent jobs list --all --json | jq -r 'select(.attempts_made > 3) | .id'")]
struct List {
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
    conditions: Conditions,

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
                    let is_plain = show.form == Form::default();
                    if is_plain {
                        describe(&job)?;
                    }
                    match progress::has_ended(&job) {
                        // Why there is none is told already.
                        true if is_plain && job["status"] != "succeeded" => Ok(ExitCode::from(outcome::NO_MEMO)),
                        false if !show.form.json => Ok(ExitCode::SUCCESS),
                        _ => outcome::show(&job, show.form),
                    }
                }
                Action::Watch(show) => {
                    let client = show.connection.client()?;
                    outcome::show(&progress::follow(&client, &escaped(&show.id)).await?, show.form)
                }
                Action::Cancel(several) => several.run(Deed::Cancel).await,
                Action::Retry(several) => several.run(Deed::Retry).await,
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
        let mut params = self.conditions.params();
        params.extend(self.oldest.then_some(("order", "oldest")));
        params.extend(cursor.map(|cursor| ("cursor", cursor)));
        let limit = limit.to_string();
        params.push(("limit", &limit));
        let request = client.request(reqwest::Method::GET, "/api/v1/admin/jobs");
        Ok(client.send(request.query(&params)).await?)
    }
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
