//! Shows an ended job and gives the exit code.

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use serde_json::Value;

use super::{
    memo, progress,
    terminal::{clean, colours, print_json, text, width},
};
use crate::analysis::{markdown::markdown, memo::Memo};

/// Exit code for a job that failed or was cancelled.
pub(super) const NO_MEMO: u8 = 3;

#[derive(clap::Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Print the job with its memo as JSON
    #[arg(long, conflicts_with = "markdown")]
    pub(super) json: bool,

    /// Print the memo as Markdown
    #[arg(long)]
    markdown: bool,
}

/// Prints an ended job: the memo to standard output, a failure to standard error. As JSON, also a pending job.
pub(super) fn show(job: &Value, form: Form) -> anyhow::Result<ExitCode> {
    if form.json {
        print_json(job)?;
        if !progress::has_ended(job) {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if job["status"] != "succeeded" {
        let error = &job["error"];
        let why = match error["message"].as_str() {
            Some(message) => format!("failed: {} ({})", clean(message), text(error, "code")),
            None => "was cancelled".to_owned(),
        };
        writeln!(std::io::stderr(), "job {} {why}", text(job, "id"))?;
        return Ok(ExitCode::from(NO_MEMO));
    }
    if !form.json {
        let mut out = std::io::stdout().lock();
        let memo: Memo = serde_json::from_value(job["result"].clone()).context("can't read the memo")?;
        let text = if form.markdown { markdown(&memo) } else { memo::render(&memo, width(), colours()) };
        write!(out, "{text}")?;
        if let Some(origin) = origin(job) {
            writeln!(out, "\n{origin}")?;
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn id(job: &Value) -> anyhow::Result<&str> {
    job["id"].as_str().context("the service's answer has no job id")
}

fn origin(job: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(clean);
    if let Some(other) = text(&job["shared_with"]) {
        return Some(format!(
            "This memo was shared with job {other}, which had the same question. This job cost nothing."
        ));
    }
    let (other, at) = (text(&job["cached"]["job_id"])?, text(&job["cached"]["finished_at"])?);
    Some(format!("This memo comes from the cache: job {other} got it at {at}. This job cost nothing."))
}
