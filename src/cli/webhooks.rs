//! `ceoagent webhooks`: the secret that signs webhooks, test messages, and the webhooks that fail.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::{Call, Connection, job_path},
    list::JobList,
    terminal::{clean, given, items, listing, text},
};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Webhooks {
    /// Print the secret that signs webhooks
    #[command(
        after_help = "Each caller has a secret of its own. Without --caller it is the secret for the jobs that you submit
yourself; where callers need no API key, that is the secret of all callers without one.
Exit codes: 0 success; 1 other error; 4 the service refused the request."
    )]
    Secret(Box<Whose>),
    /// Replace the secret and print the new one; the old one signs too for a day
    #[command(after_help = "Examples:
  ceoagent webhooks rotate
  ceoagent webhooks rotate --caller alice --overlap-hours 0     the old secret has leaked

While both secrets sign, each message has both signatures, and a receiver may check either.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
    Rotate {
        /// For how many hours the old secret signs too: 0 to 168. Default: 24
        #[arg(long, value_name = "HOURS")]
        overlap_hours: Option<i64>,

        #[command(flatten)]
        whose: Box<Whose>,
    },
    /// Send a signed test message to a receiver
    #[command(after_help = "The message has the type webhook.test and is signed as the webhooks of your jobs.
Exit codes: 0 the receiver accepted it; 1 it did not, or other error; 4 the service refused the request.")]
    Test {
        /// The receiver's URL, as the callback URL of a job
        #[arg(value_name = "URL")]
        receiver: String,

        #[command(flatten)]
        call: Box<Call>,
    },
    /// List the jobs whose webhook is not accepted by its receiver
    #[command(after_help = "With the admin token it lists the jobs of all callers, with an API key the caller's own.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
    Failing {
        /// Only jobs of this caller; needs the admin token
        #[arg(long, value_name = "NAME")]
        caller: Option<String>,

        /// Print each job as a line of JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        connection: Box<Connection>,
    },
    /// Send the webhook of an ended job again
    #[command(after_help = "The message has the same webhook-id as before. It is repeated for a day if need be.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
    Resend {
        /// The job's id
        id: String,

        #[command(flatten)]
        call: Box<Call>,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Whose {
    /// The secret of this caller; needs the admin token
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,

    #[command(flatten)]
    call: Call,
}

impl Webhooks {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Webhooks::Secret(whose) => whose.run(Method::GET, "secret", &Value::Null).await,
            Webhooks::Rotate { overlap_hours, whose } => {
                whose.run(Method::POST, "secret/rotate", &given(json!({ "overlap_hours": overlap_hours }))).await
            }
            Webhooks::Test { receiver, call } => test(&receiver, &call).await,
            Webhooks::Failing { caller, json, connection } => {
                let list = JobList {
                    all: "/api/v1/admin/webhooks/failing",
                    own: caller.is_none().then_some("/api/v1/webhooks/failing"),
                    params: caller.iter().map(|caller| ("caller", caller.as_str())).collect(),
                    limit: usize::MAX,
                    cursor: None,
                    json,
                    table: listing(["JOB", "CALLER", "STATE", "TRIES", "LAST ANSWER", "NEXT TRY", "URL"]),
                    row,
                };
                list.print(&connection.client()?).await
            }
            Webhooks::Resend { id, call } => {
                let path = format!("{}/resend-webhook", job_path(&id));
                let print = |job: &Value| {
                    let (message, url) = (text(&job["delivery"], "id"), text(job, "callback_url"));
                    writeln!(stdout(), "{message} is sent again to {url}")
                };
                call.run(|client| client.request(Method::POST, &path), print).await?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Whose {
    async fn run(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<ExitCode> {
        let of = if self.caller.is_some() { "admin/webhooks" } else { "webhooks" };
        let print = |answer: &Value| {
            // Only the secret goes to standard output, for scripts.
            writeln!(stdout(), "{}", text(answer, "secret"))?;
            items(answer, "previous").iter().try_for_each(|previous| {
                let until = previous["expires_at"].as_str().map_or(String::new(), |at| format!(" until {}", clean(at)));
                writeln!(stderr(), "an old secret signs too{until}")
            })
        };
        let call = self.call.run(
            |client| {
                let request = client.request(method, &format!("/api/v1/{of}/{path}"));
                let request = request.query(&[("caller", &self.caller)]);
                if body.is_null() { request } else { request.json(body) }
            },
            print,
        );
        call.await?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn test(receiver: &str, call: &Call) -> anyhow::Result<ExitCode> {
    let print = |answer: &Value| {
        let (outcome, duration) = (outcome(answer), &answer["duration_ms"]);
        match answer["accepted"] == true {
            true => writeln!(stdout(), "the receiver accepted the test message after {duration} ms: {outcome}"),
            false => writeln!(stderr(), "the receiver did not accept the test message: {outcome}"),
        }
    };
    let body = json!({ "callback_url": receiver });
    let answer = call.run(|client| client.request(Method::POST, "/api/v1/webhooks/test").json(&body), print).await?;
    Ok(if answer["accepted"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(job: &Value) -> [String; 7] {
    let delivery = &job["delivery"];
    let tries = items(delivery, "tries");
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
