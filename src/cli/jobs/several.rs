//! `ceoagent jobs cancel`, `retry` and `delete`, by ids or by a filter.

use std::{
    io::{BufRead, IsTerminal, Write, stderr, stdin, stdout},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Command, error::ErrorKind};
use reqwest::Method;
use serde_json::{Value, json};

use super::conditions::Conditions;
use crate::cli::{
    client::{Client, ClientError, Connection, REFUSED, job_path},
    terminal::{clean, count, dollars, text},
};

const STDIN: &str = "-";

#[derive(Clone, Copy)]
pub(super) struct Action {
    word: &'static str,
    done: &'static str,
    /// What it does to the expected tokens.
    effect: Option<&'static str>,
}

pub(super) const CANCEL: Action = Action { word: "cancel", done: "cancelled", effect: Some("this saves") };
pub(super) const RETRY: Action = Action { word: "retry", done: "retried", effect: Some("this takes") };
pub(super) const DELETE: Action = Action { word: "delete", done: "deleted", effect: None };

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
pub(in crate::cli) struct Several {
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
    pub(super) async fn run(&self, action: Action) -> anyhow::Result<ExitCode> {
        if self.conditions.is_empty() && self.ids.is_empty() {
            let message = "which jobs? Give their ids, - to read ids from standard input, or a filter such as \
                           --status failed";
            Command::new("ceoagent")
                .override_usage("ceoagent <COMMAND>")
                .error(ErrorKind::MissingRequiredArgument, message)
                .exit();
        }
        let client = self.connection.client()?;
        if !self.conditions.is_empty() {
            return self.all(&client, action).await;
        }
        let mut code = ExitCode::SUCCESS;
        for id in &self.ids {
            if id != STDIN {
                each(&client, id, action, &mut code).await?;
                continue;
            }
            for line in stdin().lock().lines() {
                let line = line.context("can't read the ids from standard input")?;
                for id in line.split_whitespace() {
                    each(&client, id, action, &mut code).await?;
                }
            }
        }
        Ok(code)
    }

    async fn all(&self, client: &Client, action: Action) -> anyhow::Result<ExitCode> {
        let filter = self.conditions.filter()?;
        let dry_run = apply(client, action, &filter, true).await?;
        if dry_run.matched == 0 {
            writeln!(stdout(), "0 jobs match the filter and can be {}", action.done)?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(stderr(), "{} jobs will be {}{}", dry_run.matched, action.done, dry_run.estimate(action))?;
        if !self.yes && !is_confirmed()? {
            bail!("nothing was changed");
        }
        let done = apply(client, action, &filter, false).await?;
        let others = match done.matched.saturating_sub(done.changed) {
            0 => String::new(),
            others => format!("; {others} others changed their state in the meantime"),
        };
        writeln!(stdout(), "{} jobs {}{others}", done.changed, action.done)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Applies the action to one job. A refusal is printed, and the command continues with the next job.
async fn each(client: &Client, id: &str, action: Action, code: &mut ExitCode) -> anyhow::Result<()> {
    let request = match action.word {
        "delete" => client.request(Method::DELETE, &job_path(id)),
        word => client.request(Method::POST, &format!("{}/{word}", job_path(id))),
    };
    match client.send(request).await {
        Ok(Value::Null) => writeln!(stdout(), "{id} {}", action.done)?,
        Ok(job) => writeln!(stdout(), "{id} {}", text(&job, "status"))?,
        Err(ClientError::Refused(refusal)) => {
            writeln!(stderr(), "{}: {refusal}", clean(id))?;
            *code = ExitCode::from(REFUSED);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

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
    fn estimate(&self, action: Action) -> String {
        let Some(effect) = action.effect else { return "; deleted jobs can't be restored".to_owned() };
        let cost = self.cost_usd.map_or(String::new(), |cost| format!(", {}", dollars(cost)));
        let Sum { input_tokens, output_tokens, .. } = self;
        format!("; {effect} about {input_tokens} input and at most {output_tokens} output tokens{cost}")
    }
}

/// Applies the action, or makes its dry run, to all jobs that match the filter. Each request works for a limited time, so
/// it takes several requests.
async fn apply(client: &Client, action: Action, filter: &Value, dry_run: bool) -> anyhow::Result<Sum> {
    let mut sum = Sum { cost_usd: Some(0.0), ..Sum::default() };
    let mut cursor = Value::Null;
    loop {
        let body = json!({"action": action.word, "filter": filter, "dry_run": dry_run, "cursor": cursor});
        let request = client.request(Method::POST, "/api/v1/admin/jobs/actions").json(&body);
        let answer = client.send(request).await.map_err(|error| match sum.changed {
            0 => anyhow::Error::from(error),
            changed => anyhow::Error::from(error)
                .context(format!("the action stopped after {changed} or more jobs; repeat it for the rest")),
        })?;
        let estimate = &answer["estimate"];
        sum.matched += count(&answer, "matched");
        sum.changed += count(&answer, "changed");
        sum.input_tokens += count(estimate, "input_tokens");
        sum.output_tokens += count(estimate, "output_tokens");
        sum.cost_usd = sum.cost_usd.zip(estimate["cost_usd"].as_f64()).map(|(sum, cost)| sum + cost);
        cursor = answer["next_cursor"].clone();
        if cursor.is_null() {
            return Ok(sum);
        }
    }
}

fn is_confirmed() -> anyhow::Result<bool> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        bail!("nothing was changed: use --yes, because there is no terminal to ask for confirmation");
    }
    write!(stderr(), "Continue? [y/N] ")?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
