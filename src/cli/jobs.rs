//! `ceoagent jobs`: lists, shows, watches, cancels, retries and deletes jobs.

mod conditions;
mod several;
mod show;

use std::process::ExitCode;

use comfy_table::CellAlignment;
use serde_json::Value;

use self::{
    conditions::Conditions,
    several::{CANCEL, DELETE, RETRY, Several},
    show::describe,
};
use super::{
    client::{Connection, job_path, path_segment},
    list::JobList,
    outcome::{self, Form},
    progress,
    terminal::{listing, text},
};

/// Default number of listed jobs.
const SCREEN: usize = 20;

const QUESTION_WIDTH: usize = 60;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Jobs {
    /// List jobs, newest first: all jobs with the admin token, your own with your API key
    List(Box<List>),
    /// Show a job with its attempts and memo
    Show(Box<Show>),
    /// Wait for a job, then show its memo
    Watch(Box<Show>),
    /// Cancel jobs, also running ones, by their ids or by a filter
    Cancel(Box<Several>),
    /// Retry failed or cancelled jobs, by their ids or by a filter
    Retry(Box<Several>),
    /// Delete ended jobs with their memos, by their ids or by a filter
    Delete(Box<Several>),
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent jobs list --status failed --status cancelled
  ceoagent jobs list --code overloaded --created-from 2026-11-23T00:00:00Z --metadata team=ops
  ceoagent jobs list --text Rotterdam --oldest
  ceoagent jobs list --all --json | jq -r 'select(.attempts_made > 3) | .id'")]
pub(super) struct List {
    /// List the oldest jobs first
    #[arg(long)]
    oldest: bool,

    /// Continue an earlier listing with the same filter, from the cursor that it printed
    #[arg(long)]
    cursor: Option<String>,

    /// Most jobs to list
    #[arg(long, default_value_t = SCREEN)]
    limit: usize,

    /// List all jobs
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    /// Print each job as one line of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Exit codes: 0 the job has succeeded or, with show, is pending; 1 other error;
  3 the job failed or was cancelled; 4 the service refused the request.")]
pub(super) struct Show {
    /// The job's id
    id: String,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    connection: Connection,
}

impl Jobs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Jobs::List(list) => list.run().await,
            Jobs::Show(show) => {
                let job = show.connection.client()?.get(&job_path(&show.id)).await?;
                let is_plain = show.form == Form::default();
                if is_plain {
                    describe(&job)?;
                }
                match progress::has_ended(&job) {
                    // The description has the error already.
                    true if is_plain && job["status"] != "succeeded" => Ok(ExitCode::from(outcome::NO_MEMO)),
                    false if !show.form.json => Ok(ExitCode::SUCCESS),
                    _ => outcome::show(&job, show.form),
                }
            }
            Jobs::Watch(show) => {
                let client = show.connection.client()?;
                outcome::show(&progress::follow(&client, &path_segment(&show.id)).await?, show.form)
            }
            Jobs::Cancel(several) => several.run(CANCEL).await,
            Jobs::Retry(several) => several.run(RETRY).await,
            Jobs::Delete(several) => several.run(DELETE).await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut table = listing(["ID", "STATUS", "CREATED", "ATTEMPTS", "CALLER", "QUESTION"]);
        if let Some(attempts) = table.column_mut(3) {
            attempts.set_cell_alignment(CellAlignment::Right);
        }
        let mut params = self.conditions.params();
        params.extend(self.oldest.then_some(("order", "oldest")));
        let list = JobList {
            all: "/api/v1/admin/jobs",
            own: Some("/api/v1/jobs"),
            params,
            limit: if self.all { usize::MAX } else { self.limit },
            cursor: self.cursor,
            json: self.json,
            table,
            row,
        };
        list.print(&self.connection.client()?).await
    }
}

fn row(job: &Value) -> [String; 6] {
    let created = text(job, "created_at");
    let created = created.split_once('.').map_or(created.as_str(), |(start, _)| start).replace('T', " ");
    let question = console::truncate_str(&text(job, "query"), QUESTION_WIDTH, "…").into_owned();
    let attempts = job["attempts_made"].to_string();
    [text(job, "id"), text(job, "status"), created, attempts, text(job, "caller"), question]
}
