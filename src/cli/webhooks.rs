//! `ceoagent webhooks`: the secret that signs webhooks, test messages, and the webhooks that fail.

use std::{io::Write, process::ExitCode};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, ClientError, Connection, job_path},
    serve,
    terminal::{clean, escaped, given, listing, print_json, print_listing, text},
};

/// The routes of a caller, and the same routes for operators.
const OWN: &str = "/api/v1/webhooks";
const ADMIN: &str = "/api/v1/admin/webhooks";

/// Jobs on a page of the list.
const PAGE: &str = "200";

/// What to do about webhooks.
#[derive(clap::Args, Debug)]
pub struct Webhooks {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Print the secret that signs webhooks
    Secret(Box<Secret>),
    /// Replace the secret and print the new one; the old one signs too for a day
    Rotate(Box<Rotate>),
    /// Send a signed test message to a receiver
    Test(Box<Test>),
    /// List the jobs whose webhook is not accepted by its receiver
    Failing(Box<Failing>),
    /// Send the webhook of an ended job again
    Resend(Box<Resend>),
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each caller has a secret of its own. Without --caller it is the secret for the jobs that you submit
yourself; where callers need no API key, that is the secret of all callers without one.
Exit codes: 0 success; 1 other error; 4 the service refused the request."
)]
struct Secret {
    #[command(flatten)]
    whose: Whose,
}

#[derive(clap::Args, Debug)]
struct Whose {
    /// The secret of this caller; needs the admin token
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,

    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent webhooks rotate
  ceoagent webhooks rotate --caller alice --overlap-hours 0     the old secret has leaked

While both secrets sign, each message has both signatures, and a receiver may check either.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
struct Rotate {
    /// For how many hours the old secret signs too: 0 to 168. Default: 24
    #[arg(long, value_name = "HOURS")]
    overlap_hours: Option<i64>,

    #[command(flatten)]
    whose: Whose,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "The message has the type webhook.test and is signed as the webhooks of your jobs.
Exit codes: 0 the receiver accepted it; 1 it did not, or other error; 4 the service refused the request.")]
struct Test {
    /// The receiver's URL, as the callback URL of a job
    #[arg(value_name = "URL")]
    receiver: String,

    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "With the admin token it lists the jobs of all callers, with an API key the caller's own.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
struct Failing {
    /// Only jobs of this caller; needs the admin token
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,

    /// Print each job as a line of JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "The message has the same webhook-id as before. It is repeated for a day if need be.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
struct Resend {
    /// The job's id
    id: String,

    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Webhooks {
    /// # Errors
    /// If the service can't be reached, or refuses the request.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            match self.action {
                Action::Secret(secret) => secret.whose.run(Method::GET, "/secret", None).await,
                Action::Rotate(rotate) => {
                    let wanted = given(json!({ "overlap_hours": rotate.overlap_hours }));
                    rotate.whose.run(Method::POST, "/secret/rotate", Some(wanted)).await
                }
                Action::Test(test) => test.run().await,
                Action::Failing(failing) => failing.run().await,
                Action::Resend(resend) => resend.run().await,
            }
        })
    }
}

impl Whose {
    /// Prints the secret that the request gives.
    async fn run(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let base = if self.caller.is_some() { ADMIN } else { OWN };
        let mut request = client
            .request(method, &format!("{base}{path}"))
            .query(&self.caller.as_ref().map(|name| [("caller", name)]));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = client.send(request).await?;
        if self.json {
            print_json(&answer)?;
            return Ok(ExitCode::SUCCESS);
        }
        // Only the secret goes to standard output, for scripts.
        writeln!(std::io::stdout(), "{}", text(&answer, "secret"))?;
        for previous in answer["previous"].as_array().into_iter().flatten() {
            let until = previous["expires_at"].as_str().map_or(String::new(), |at| format!(" until {}", clean(at)));
            writeln!(std::io::stderr(), "an old secret signs too{until}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Test {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let request = client.request(Method::POST, &format!("{OWN}/test"));
        let answer = client.send(request.json(&json!({ "callback_url": self.receiver }))).await?;
        let is_accepted = answer["accepted"] == true;
        if self.json {
            print_json(&answer)?;
        } else if is_accepted {
            writeln!(
                std::io::stdout(),
                "the receiver accepted the test message after {} ms: {}",
                answer["duration_ms"],
                outcome(&answer)
            )?;
        } else {
            writeln!(std::io::stderr(), "the receiver did not accept the test message: {}", outcome(&answer))?;
        }
        Ok(if is_accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Failing {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut table = listing(["JOB", "CALLER", "STATE", "TRIES", "LAST ANSWER", "NEXT TRY", "URL"]);
        let mut base = ADMIN;
        let mut cursor: Option<String> = None;
        loop {
            let page = match self.page(&client, base, cursor.as_deref()).await {
                // A caller without the scope admin has a list of their own.
                Err(ClientError::Refused(refusal))
                    if refusal.code == "forbidden" && self.caller.is_none() && base == ADMIN =>
                {
                    base = OWN;
                    continue;
                }
                page => page?,
            };
            for job in page["jobs"].as_array().into_iter().flatten() {
                if self.json {
                    writeln!(std::io::stdout(), "{}", escaped(&job.to_string()))?;
                } else {
                    table.add_row(row(job));
                }
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        if !self.json {
            print_listing(&table)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn page(&self, client: &Client, base: &str, cursor: Option<&str>) -> Result<Value, ClientError> {
        let mut params = vec![("limit", PAGE)];
        params.extend(self.caller.as_deref().map(|caller| ("caller", caller)));
        params.extend(cursor.map(|cursor| ("cursor", cursor)));
        client.send(client.request(Method::GET, &format!("{base}/failing")).query(&params)).await
    }
}

impl Resend {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let job = self.connection.client()?.post(&format!("{}/resend-webhook", job_path(&self.id))).await?;
        if self.json {
            print_json(&job)?;
        } else {
            writeln!(
                std::io::stdout(),
                "{} is sent again to {}",
                text(&job["delivery"], "id"),
                text(&job, "callback_url")
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(job: &Value) -> [String; 7] {
    let delivery = &job["delivery"];
    let tries = delivery["tries"].as_array().map_or(&[][..], Vec::as_slice);
    [
        text(job, "id"),
        text(job, "caller"),
        text(delivery, "state"),
        tries.len().to_string(),
        tries.last().map(outcome).unwrap_or_default(),
        text(delivery, "next_at"),
        text(job, "callback_url"),
    ]
}

/// The receiver's answer, or why no answer came.
pub(super) fn outcome(tried: &Value) -> String {
    let status = tried["http_status"].as_u64().map(|status| format!("HTTP {status}"));
    status.unwrap_or_else(|| text(tried, "error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_webhook_is_one_line_with_its_last_answer_and_next_try() {
        let job = json!({
            "id": "j1", "caller": "alice", "callback_url": "https://a.example/\u{1b}[2J",
            "delivery": {"state": "pending", "next_at": "t9", "tries": [{"error": "no route"}, {"http_status": 503}]}
        });
        assert_eq!(row(&job), ["j1", "alice", "pending", "2", "HTTP 503", "t9", "https://a.example/"]);
        let gone = json!({"delivery": {"state": "given_up", "tries": [{"error": "no route"}]}});
        assert_eq!(row(&gone)[2..6], ["given_up", "1", "no route", ""]);
    }
}
