//! `ceoagent jobs cancel` and `retry`: jobs by their ids, or all that meet conditions.

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
    memo::clean,
    outcome,
};

/// Stands for the ids on standard input.
const STDIN: &str = "-";

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Cancel,
    Retry,
}

/// To which jobs.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent jobs retry 019ab…
  ceoagent jobs retry --status failed --code overloaded
  ceoagent jobs cancel --caller alice --yes
  ceoagent jobs list --all --json | jq -r 'select(.attempts_made > 3) | .id' |
    ceoagent jobs cancel -

Conditions mean all jobs that meet them and that it can be done to, by one action of the service,
which needs the admin token. How many these are is told first.

Exit codes: 0 done for all; 1 something went wrong, or it was not confirmed; 2 the command line is
  wrong; 4 the service refused at least one.")]
pub(super) struct Several {
    /// The jobs' ids; - reads them from standard input
    #[arg(conflicts_with = "conditions", value_name = "ID")]
    ids: Vec<String>,

    /// Do it without asking; needed with conditions where there is no terminal to ask on
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
            let told = "say which jobs: by their ids, by - for those on standard input, or by conditions such as \
                        --status failed";
            Cli::command().error(ErrorKind::MissingRequiredArgument, told).exit();
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
                let line = line.context("the ids can't be read from standard input")?;
                for id in line.split_whitespace() {
                    each(&client, id, deed, &mut code).await?;
                }
            }
        }
        Ok(code)
    }

    /// All jobs that meet the conditions, by the service's own action.
    async fn all(&self, client: &Client, deed: Deed) -> anyhow::Result<ExitCode> {
        let filter = self.conditions.filter()?;
        let trial = act(client, deed, &filter, true).await?;
        if trial.matched == 0 {
            writeln!(stdout(), "0 jobs: none that meets the conditions can be {}", deed.done())?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(stderr(), "{} jobs would be {}{}", trial.matched, deed.done(), trial.estimate(deed))?;
        if !self.yes && !is_confirmed()? {
            bail!("nothing was changed");
        }
        let done = act(client, deed, &filter, false).await?;
        let others = match done.matched.saturating_sub(done.changed) {
            0 => String::new(),
            others => format!("; {others} others moved on meanwhile"),
        };
        writeln!(stdout(), "{} jobs {}{others}", done.changed, deed.done())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A refusal of one is told and does not keep the others from it.
async fn each(client: &Client, id: &str, deed: Deed, code: &mut ExitCode) -> anyhow::Result<()> {
    match client.post(&path(id, &format!("/{}", deed.word()))).await {
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
        }
    }

    fn done(self) -> &'static str {
        match self {
            Deed::Cancel => "cancelled",
            Deed::Retry => "queued again",
        }
    }
}

/// What was done, or would be, over all parts of an action.
#[derive(Default)]
struct Sum {
    matched: u64,
    changed: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// None if the price of a part is not known.
    cost_usd: Option<f64>,
}

impl Sum {
    /// What calls for the jobs take, in words.
    fn estimate(&self, deed: Deed) -> String {
        let cost = self.cost_usd.map_or(String::new(), |cost| format!(", {}", outcome::dollars(cost)));
        let what = match deed {
            Deed::Cancel => "calls for them would take",
            Deed::Retry => "calls for them take",
        };
        format!("; {what} some {} input and at most {} output tokens{cost}", self.input_tokens, self.output_tokens)
    }
}

/// Has the service act on all jobs that the filter means, or tell what that would be: part by part, as it works on each
/// for so long only.
async fn act(client: &Client, deed: Deed, filter: &Value, is_trial: bool) -> anyhow::Result<Sum> {
    let mut sum = Sum { cost_usd: Some(0.0), ..Sum::default() };
    let mut cursor = Value::Null;
    loop {
        let body = json!({"action": deed.word(), "filter": filter, "dry_run": is_trial, "cursor": cursor});
        let request = client.request(Method::POST, "/api/v1/admin/jobs/actions").json(&body);
        let answer = client.send(request).await.map_err(|error| match sum.changed {
            0 => anyhow::Error::from(error),
            changed => anyhow::Error::from(error).context(format!(
                "it broke off after {changed} jobs, and perhaps some more; repeated, it goes on with the others"
            )),
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
        bail!("nothing was changed: without a terminal to ask on, --yes is needed");
    }
    write!(stderr(), "Do it? [y/N] ")?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
