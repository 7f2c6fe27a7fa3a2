//! `ceoagent jobs cancel`, `retry` and `delete`, by ids or by a filter.

use std::{
    io::{BufRead, IsTerminal, Write, stderr, stdin, stdout},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{CommandFactory, error::ErrorKind};
use reqwest::Method;
use serde_json::{Value, json};

use super::{conditions::Conditions, path, text};
use crate::cli::{
    Cli, REFUSED,
    client::{Client, ClientError, Connection},
    outcome,
    terminal::clean,
};

/// Stands for ids on standard input.
const STDIN: &str = "-";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Cancel,
    Retry,
    Delete,
}

/// The arguments of `jobs cancel`, `jobs retry` and `jobs delete`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent jobs retry 019ab…
  ceoagent jobs retry --status failed --code overloaded
  ceoagent jobs cancel --caller alice --yes
  ceoagent jobs delete --status failed --created-before 2026-11-23T00:00:00Z
  ceoagent jobs list --all --json | jq -r 'select(.attempts_made > 3) | .id' |
    ceoagent jobs cancel -

A filter selects all matching jobs that the action applies to. It needs the admin token. The command
prints the number of jobs and asks for confirmation.

Exit codes: 0 success; 1 other error, or not confirmed; 2 wrong command line; 4 the service refused
  the request for at least one job.")]
pub(super) struct Several {
    /// Ids of jobs; - reads them from standard input
    #[arg(conflicts_with = "conditions", value_name = "ID")]
    ids: Vec<String>,

    /// Do not ask for confirmation; needed with a filter if there is no terminal
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    connection: Connection,
}

impl Several {
    pub(super) async fn run(&self, deed: Deed) -> anyhow::Result<ExitCode> {
        if self.conditions.is_empty() && self.ids.is_empty() {
            let message = "which jobs? Give their ids, - to read ids from standard input, or a filter such as \
                           --status failed";
            Cli::command().error(ErrorKind::MissingRequiredArgument, message).exit();
        }
        let client = self.connection.client()?;
        if !self.conditions.is_empty() {
            return self.all(&client, deed).await;
        }
        let mut code = ExitCode::SUCCESS;
        for id in &self.ids {
            if id != STDIN {
                each(&client, id, deed, &mut code).await?;
                continue;
            }
            for line in stdin().lock().lines() {
                let line = line.context("can't read the ids from standard input")?;
                for id in line.split_whitespace() {
                    each(&client, id, deed, &mut code).await?;
                }
            }
        }
        Ok(code)
    }

    /// Applies the action to all jobs that match the filter.
    async fn all(&self, client: &Client, deed: Deed) -> anyhow::Result<ExitCode> {
        let filter = self.conditions.filter()?;
        let trial = act(client, deed, &filter, true).await?;
        if trial.matched == 0 {
            writeln!(stdout(), "0 jobs match the filter and can be {}", deed.done())?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(stderr(), "{} jobs will be {}{}", trial.matched, deed.done(), trial.estimate(deed))?;
        if !self.yes && !is_confirmed()? {
            bail!("nothing was changed");
        }
        let done = act(client, deed, &filter, false).await?;
        let others = match done.matched.saturating_sub(done.changed) {
            0 => String::new(),
            others => format!("; {others} others changed their state in the meantime"),
        };
        writeln!(stdout(), "{} jobs {}{others}", done.changed, deed.done())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Applies the action to one job. A refusal is printed, and the command continues with the next job.
async fn each(client: &Client, id: &str, deed: Deed, code: &mut ExitCode) -> anyhow::Result<()> {
    let request = match deed {
        Deed::Cancel | Deed::Retry => client.request(Method::POST, &path(id, &format!("/{}", deed.word()))),
        Deed::Delete => client.request(Method::DELETE, &path(id, "")),
    };
    match client.send(request).await {
        Ok(Value::Null) => writeln!(stdout(), "{id} {}", deed.done())?,
        Ok(job) => writeln!(stdout(), "{id} {}", text(&job, "status"))?,
        Err(ClientError::Refused(refusal)) => {
            writeln!(stderr(), "{}: {refusal}", clean(id))?;
            *code = ExitCode::from(REFUSED);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

impl Deed {
    /// The API's word for it.
    fn word(self) -> &'static str {
        match self {
            Deed::Cancel => "cancel",
            Deed::Retry => "retry",
            Deed::Delete => "delete",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Deed::Cancel => "cancelled",
            Deed::Retry => "retried",
            Deed::Delete => "deleted",
        }
    }
}

/// The sums over all steps of an action.
#[derive(Default)]
struct Sum {
    matched: u64,
    changed: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// `None` if a price is not known.
    cost_usd: Option<f64>,
}

impl Sum {
    /// The estimated tokens and cost, in words.
    fn estimate(&self, deed: Deed) -> String {
        let cost = self.cost_usd.map_or(String::new(), |cost| format!(", {}", outcome::dollars(cost)));
        let what = match deed {
            Deed::Cancel => "this saves",
            Deed::Retry => "this takes",
            Deed::Delete => return "; deleted jobs can't be restored".to_owned(),
        };
        format!("; {what} about {} input and at most {} output tokens{cost}", self.input_tokens, self.output_tokens)
    }
}

/// Runs the action or its dry run on all jobs that match the filter. Each request works for a limited time, so it takes
/// several requests.
async fn act(client: &Client, deed: Deed, filter: &Value, is_trial: bool) -> anyhow::Result<Sum> {
    let mut sum = Sum { cost_usd: Some(0.0), ..Sum::default() };
    let mut cursor = Value::Null;
    loop {
        let body = json!({"action": deed.word(), "filter": filter, "dry_run": is_trial, "cursor": cursor});
        let request = client.request(Method::POST, "/api/v1/admin/jobs/actions").json(&body);
        let answer = client.send(request).await.map_err(|error| match sum.changed {
            0 => anyhow::Error::from(error),
            changed => anyhow::Error::from(error)
                .context(format!("the action stopped after {changed} or more jobs; repeat it for the rest")),
        })?;
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        let estimate = &answer["estimate"];
        sum.matched += count(&answer["matched"]);
        sum.changed += count(&answer["changed"]);
        sum.input_tokens += count(&estimate["input_tokens"]);
        sum.output_tokens += count(&estimate["output_tokens"]);
        sum.cost_usd = sum.cost_usd.zip(estimate["cost_usd"].as_f64()).map(|(sum, cost)| sum + cost);
        cursor = answer["next_cursor"].clone();
        if cursor.is_null() {
            return Ok(sum);
        }
    }
}

/// Asks the person at the terminal.
fn is_confirmed() -> anyhow::Result<bool> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        bail!("nothing was changed: use --yes, because there is no terminal to ask for confirmation");
    }
    write!(stderr(), "Continue? [y/N] ")?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
