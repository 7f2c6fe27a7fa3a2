//! `ceoagent stats`, `pause` and `resume`: how a service is, and holding it.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use super::{client::Connection, memo::clean, outcome, serve};

/// Settings of these commands.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent stats
  ceoagent stats --json | jq .jobs.queued
  ceoagent pause      no further job is begun, also after a restart; what runs ends as it would
  ceoagent resume

They need the admin token. Exit codes: 0 done; 1 something went wrong; 4 the service refused.")]
pub struct Operate {
    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Look,
    Pause,
    Resume,
}

impl Operate {
    /// Does it.
    ///
    /// # Errors
    /// If the service can't be asked, or refuses.
    pub(super) fn run(&self, deed: Deed) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            let client = self.connection.client()?;
            let answer = match deed {
                Deed::Look => client.get("/api/v1/admin/stats").await?,
                Deed::Pause => client.post("/api/v1/admin/queue/pause").await?,
                Deed::Resume => client.post("/api/v1/admin/queue/resume").await?,
            };
            let mut out = std::io::stdout().lock();
            if self.json {
                writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
            } else if deed == Deed::Look {
                write!(out, "{}", told(&answer, outcome::colours()))?;
            } else {
                let state = if answer["paused"].is_null() { "the queue is not paused" } else { "the queue is paused" };
                writeln!(out, "{state}")?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// The figures of a service, a line each.
fn told(stats: &Value, colours: bool) -> String {
    let dim = console::Style::new().force_styling(colours).dim();
    let loud = console::Style::new().force_styling(colours).yellow();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{} {value}\n", dim.apply_to(format!("{name:<12}"))));
    };
    let count = |object: &str, field: &str| stats[object][field].as_u64().unwrap_or_default();
    let jobs = ["queued", "scheduled", "running", "succeeded", "failed", "cancelled"];
    line("Jobs", jobs.map(|status| format!("{} {status}", count("jobs", status))).join(", "));
    if let Some(at) = stats["oldest_queued_at"].as_str() {
        line("Oldest", format!("waits since {}", clean(at)));
    }
    let seconds = stats["attempt_seconds"].as_f64().unwrap_or_default();
    line(
        "Workers",
        format!("{}, {} attempts under way, of {seconds:.1} s each", stats["workers"], stats["running_attempts"]),
    );
    line("Waiting", format!("{} clients", stats["waiters"]));
    let ended = ["submitted", "succeeded", "failed", "cancelled"];
    line("Since start", ended.map(|what| format!("{} {what}", count("since_start", what))).join(", "));
    let rate = stats["limits"]["calls_per_second"].as_f64().unwrap_or_default();
    line("Limits", format!("{rate:.1} calls a second, at most {} at once", stats["limits"]["calls_at_once"]));
    if let Some(gate) = stats["limits"]["gate"]["detail"].as_str() {
        line("Gate", loud.apply_to(format!("closed: {}", clean(gate))).to_string());
    }
    if !stats["paused"].is_null() {
        let (by, since) = (&stats["paused"]["by"], &stats["paused"]["at"]);
        let of = |value: &Value| clean(value.as_str().unwrap_or("an operator"));
        let since = since.as_str().map(|at| format!(" since {}", clean(at))).unwrap_or_default();
        line("Paused", loud.apply_to(format!("by {}{since}", of(by))).to_string());
    }
    for trouble in stats["troubles"].as_array().into_iter().flatten() {
        line("Trouble", loud.apply_to(clean(trouble["message"].as_str().unwrap_or_default())).to_string());
    }
    text
}
