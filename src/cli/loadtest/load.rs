//! Submits questions at random times, as from independent people, and records the result of each.
//!
//! **Open loop**: a question is sent at its scheduled time, even if earlier ones are unanswered. Its latency counts from
//! the scheduled time. So a service that stalls can't hide it by slowing down the load.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use rand::RngExt;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};

use super::tally::{Met, Pending, Tally};
use crate::{
    claude::simulator::{Latency, pace::Timing},
    cli::client::{Client, job_path},
    clock::{Clock, Timestamp},
    job::JobId,
};

/// Most questions a second: above that, sending them takes the CPU time that the service needs.
pub(super) const MAX_RATE: u32 = 10_000;

/// In seconds.
pub(super) const MAX_DURATION: u32 = 3_600;

/// Longest query, in bytes: the service accepts it with every setting.
const MAX_QUERY_BYTES: usize = 100_000;

/// The shortest question: room for its number, so that all questions differ.
const MIN_QUERY_BYTES: usize = 64;

const SAMPLE: u64 = 1_000;

/// Longest wait for an answer: longer than the 30 s that the service promises, so that late answers are seen.
const GIVE_UP: Duration = Duration::from_secs(60);

const HANG_UP_WITHIN: Duration = Duration::from_secs(10);

const LOOKS_AT_ONCE: usize = 32;

#[derive(clap::Args, Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Load {
    /// Average number of questions a second, submitted at random times
    #[arg(long, default_value = "10", value_parser = positive::<MAX_RATE>)]
    #[serde(rename = "rate_per_second")]
    pub(super) rate: f64,

    /// Seconds to submit questions (up to 3600)
    #[arg(long, default_value = "60", value_parser = positive::<MAX_DURATION>)]
    #[serde(rename = "duration_seconds")]
    pub(super) duration: f64,

    /// Share of clients that wait for the answer (0 to 1)
    #[arg(long, default_value = "1", value_parser = share)]
    #[serde(rename = "waiters_share")]
    pub(super) waiters: f64,

    /// Longest wait of a client, in seconds (up to 30)
    #[arg(long, default_value = "30", value_parser = positive::<30>)]
    #[serde(rename = "wait_seconds")]
    pub(super) wait: f64,

    /// Share of waiting clients that disconnect within ten seconds (0 to 1)
    #[arg(long, default_value = "0", value_parser = share)]
    #[serde(rename = "hang_up_share")]
    pub(super) hang_up: f64,

    /// Length of each question in bytes
    #[arg(long, default_value = "256", value_parser = query_bytes)]
    pub(super) query_bytes: usize,
}

/// How long the answer to a question takes, if answers are simulated with this latency.
fn takes(latency: Option<Latency>, query: &str, waits: bool) -> Option<Duration> {
    match latency? {
        Latency::Fixed(time) => Some(time),
        Latency::Claude => Some(claude(query, waits)),
        Latency::Zero | Latency::LogNormal { .. } => None,
    }
}

/// How long Claude takes for a brief memo that a client waits for, and for a full one that nobody does.
fn claude(query: &str, waits: bool) -> Duration {
    let (effort, thinking) = if waits { ("low", Some("between_tools")) } else { ("high", None) };
    Timing::of(query, waits, Some(effort), thinking).total()
}

/// The mean of that in seconds, where this share of the clients waits.
pub(super) fn mean_of_claude(waiters: f64) -> f64 {
    let mean = |waits| (0..SAMPLE).map(|n| claude(&question(n, MIN_QUERY_BYTES), waits).as_secs_f64()).sum::<f64>();
    (waiters * mean(true) + (1.0 - waiters) * mean(false)) / SAMPLE as f64
}

#[derive(Deserialize)]
struct JobAnswer {
    id: JobId,
    status: String,
    finished_at: Option<Timestamp>,
    queue: Option<OutlookAnswer>,
}

#[derive(Deserialize)]
struct OutlookAnswer {
    eta_seconds: Option<u64>,
}

/// Submits all questions of the load and waits for their ends. `latency`: of the simulated answers.
pub(super) async fn run(load: Load, latency: Option<Latency>, client: &Client, tally: &Arc<Tally>) {
    let started = tally.started;
    let mut clients = JoinSet::new();
    let mut at = Duration::ZERO;
    for number in 1.. {
        // Exponential gaps: clients are independent of each other.
        at += Duration::from_secs_f64(-(1.0 - rand::random::<f64>()).ln() / load.rate);
        if at.as_secs_f64() >= load.duration {
            break;
        }
        sleep_until(started + at).await;
        let waits = rand::rng().random_bool(load.waiters);
        let hangs_up = waits && rand::rng().random_bool(load.hang_up);
        let patience = if hangs_up { HANG_UP_WITHIN.mul_f64(rand::random()) } else { GIVE_UP };
        tally.record_sent(waits, started.elapsed().saturating_sub(at));
        let (client, tally) = (client.clone(), Arc::clone(tally));
        let query = question(number, load.query_bytes);
        let wait = waits.then_some(load.wait);
        let takes = takes(latency, &query, waits);
        clients.spawn(async move {
            let met = match timeout(patience, ask(&client, &query, wait)).await {
                Ok(met) => met,
                Err(_) if hangs_up => Met::HungUp,
                Err(_) => Met::Nothing,
            };
            tally.record_end(at, wait.filter(|_| !hangs_up), takes, met);
        });
        // Frees the tasks that have ended.
        while clients.try_join_next().is_some() {}
    }
    while clients.join_next().await.is_some() {}
}

fn question(number: u64, bytes: usize) -> String {
    let mut query = format!("Load test question {number}: should we go ahead with this plan? ");
    query.extend(std::iter::repeat_n('x', bytes.saturating_sub(query.len())));
    query.truncate(bytes);
    query
}

pub(super) async fn check(client: &Client) -> anyhow::Result<()> {
    let url = client.at("/health");
    let request = client.request(Method::GET, "/health").timeout(GIVE_UP);
    let answer = request.send().await.with_context(|| format!("{url} does not answer"))?;
    ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    Ok(())
}

async fn ask(client: &Client, query: &str, wait: Option<f64>) -> Met {
    let depth = if wait.is_some() { "brief" } else { "full" };
    let request = client.analyze(&json!({ "query": query, "wait": wait.unwrap_or(0.0), "depth": depth }));
    let Ok(answer) = request.send().await else { return Met::Nothing };
    match answer.status() {
        StatusCode::OK => answer.bytes().await.map_or(Met::Nothing, |_| Met::Answer),
        StatusCode::ACCEPTED => answer.json::<JobAnswer>().await.map_or(Met::Nothing, |job| {
            Met::Accepted(Pending {
                id: job.id,
                waits: wait.is_some(),
                answered_at: Clock::system().now(),
                eta_seconds: job.queue.and_then(|queue| queue.eta_seconds),
                takes: None,
            })
        }),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Met::Refused,
        _ => Met::Failed,
    }
}

/// The number of jobs in these states, from the service's metrics.
pub(super) async fn jobs(client: &Client, states: &[&str]) -> Option<u64> {
    let request = client.request(Method::GET, "/metrics").timeout(Duration::from_secs(1));
    let text = request.send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
    let count = |state: &&str| -> Option<u64> {
        let name = format!("ceoagent_jobs{{kind=\"{state}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name))?.trim().parse().ok()
    };
    states.iter().map(count).sum()
}

pub(super) async fn look_after(client: &Client, tally: &Tally) {
    let looks = stream::iter(tally.pending()).for_each_concurrent(LOOKS_AT_ONCE, async |pending| {
        let request = client.request(Method::GET, &job_path(&pending.id.to_string())).timeout(GIVE_UP);
        if let Ok(answer) = request.send().await
            && let Ok(job) = answer.json::<JobAnswer>().await
            && job.status == "succeeded"
            && let Some(finished_at) = job.finished_at
        {
            tally.record_finished(pending, finished_at);
        }
    });
    looks.await;
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

pub(super) fn positive<const MAX: u32>(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    let is_allowed = number > 0.0 && number <= f64::from(MAX);
    if is_allowed { Ok(number) } else { Err(format!("must be above 0 and at most {MAX}")) }
}

fn share(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 1".to_owned()) }
}

fn query_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
    let allowed = MIN_QUERY_BYTES..=MAX_QUERY_BYTES;
    if allowed.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("must be from {} to {}", allowed.start(), allowed.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_the_size_that_is_wanted_and_are_all_different() {
        for bytes in [MIN_QUERY_BYTES, 256, 5_000] {
            let (one, other) = (question(1, bytes), question(u64::MAX, bytes));
            assert_eq!((one.len(), other.len()), (bytes, bytes));
            assert_ne!(one, other);
        }
    }
}
