//! Submits questions at random times, as from independent people, and records the result of each.
//!
//! **Open loop**: a question is sent at its scheduled time, even if earlier ones are unanswered. Its latency counts from
//! the scheduled time. So a service that stalls can't hide it by slowing down the load.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use rand::RngExt;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep_until, timeout},
};

use super::tally::{Met, Pending, Tally};
use crate::{claude::simulator::pace::Timing, clock::Timestamp, job::JobId};

/// Most questions a second: above that, sending them takes the CPU time that the service needs.
pub(super) const MAX_RATE: u32 = 10_000;

/// Longest load, in seconds.
pub(super) const MAX_DURATION: u32 = 3_600;

/// Longest query, in bytes: the service accepts it with every setting.
const MAX_QUERY_BYTES: usize = 100_000;

/// The shortest question: it must have room for its number, so that no two are equal.
const MIN_QUERY_BYTES: usize = 64;

/// Questions from which a mean is computed.
const SAMPLE: u64 = 1_000;

/// A client gives up after this time: longer than the 30 s that the service promises, so that longer answers are seen.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Clients that disconnect do so within this time.
const HANG_UP_WITHIN: Duration = Duration::from_secs(10);

/// Jobs that are read at the same time after the load.
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

/// How long answers take.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    Unknown,
    Fixed(Duration),
    Claude,
}

impl Pace {
    /// How long the answer to a question takes.
    fn of(self, query: &str, waits: bool) -> Option<Duration> {
        match self {
            Pace::Unknown => None,
            Pace::Fixed(time) => Some(time),
            Pace::Claude => Some(claude(query, waits)),
        }
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

#[derive(Clone)]
pub(super) struct Target {
    http: Client,
    base: String,
    token: Option<String>,
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

/// Submits all questions of the load and waits until each has its result.
pub(super) async fn run(load: Load, pace: Pace, target: &Target, tally: &Arc<Tally>) {
    let started = tally.start();
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
        tally.note_sent(waits, started.elapsed().saturating_sub(at));
        let (target, tally) = (target.clone(), Arc::clone(tally));
        let query = question(number, load.query_bytes);
        let wait = waits.then_some(load.wait);
        let takes = pace.of(&query, waits);
        clients.spawn(async move {
            let met = match timeout(patience, target.ask(&query, wait)).await {
                Ok(met) => met,
                Err(_) if hangs_up => Met::HungUp,
                Err(_) => Met::Nothing,
            };
            tally.note_met(at, wait.filter(|_| !hangs_up), takes, met);
        });
        // Frees the tasks that have ended.
        while clients.try_join_next().is_some() {}
    }
    while clients.join_next().await.is_some() {}
}

/// A unique question of `bytes` bytes.
fn question(number: u64, bytes: usize) -> String {
    let mut query = format!("Load test question {number}: should we go ahead with this plan? ");
    query.extend(std::iter::repeat_n('x', bytes.saturating_sub(query.len())));
    query.truncate(bytes);
    query
}

impl Target {
    /// The service at `base`, with `token` if it needs one.
    pub(super) fn new(base: String, token: Option<String>) -> anyhow::Result<Target> {
        // reqwest needs a TLS provider, also for unencrypted calls.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().no_proxy().tcp_nodelay(true).pool_max_idle_per_host(usize::MAX).build()?;
        Ok(Target { http, base, token })
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Fails if the service does not answer.
    pub(super) async fn check(&self) -> anyhow::Result<()> {
        let url = format!("{}/health", self.base);
        let answer =
            self.http.get(&url).timeout(GIVE_UP).send().await.with_context(|| format!("{url} does not answer"))?;
        ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        Ok(())
    }

    /// Submits a question and, with `wait`, waits for its answer.
    async fn ask(&self, query: &str, wait: Option<f64>) -> Met {
        let request = self.http.post(format!("{}/api/v1/analyze", self.base));
        let depth = if wait.is_some() { "brief" } else { "full" };
        let answer = self
            .with_token(request)
            .json(&json!({ "query": query, "wait": wait.unwrap_or(0.0), "depth": depth }))
            .send()
            .await;
        let Ok(answer) = answer else { return Met::Nothing };
        match answer.status() {
            StatusCode::OK => match answer.bytes().await {
                Ok(_) => Met::Answer,
                Err(_) => Met::Nothing,
            },
            StatusCode::ACCEPTED => match answer.json::<JobAnswer>().await {
                Ok(job) => Met::Accepted(Pending {
                    id: job.id,
                    waits: wait.is_some(),
                    told_at: now(),
                    eta_seconds: job.queue.and_then(|queue| queue.eta_seconds),
                }),
                Err(_) => Met::Nothing,
            },
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Met::Refused,
            _ => Met::Failed,
        }
    }

    /// The number of jobs in one of these states, from the service's metrics.
    pub(super) async fn jobs(&self, states: &[&str]) -> Option<u64> {
        let request = self.http.get(format!("{}/metrics", self.base)).timeout(Duration::from_secs(1));
        let text = self.with_token(request).send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
        let count = |state: &&str| -> Option<u64> {
            let name = format!("ceoagent_jobs{{kind=\"{state}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name))?.trim().parse().ok()
        };
        states.iter().map(count).sum()
    }

    /// Reads the accepted jobs whose end no client has seen.
    pub(super) async fn look_after(&self, tally: &Arc<Tally>) {
        let places = Arc::new(Semaphore::new(LOOKS_AT_ONCE));
        let mut looks = JoinSet::new();
        for pending in tally.pending() {
            let (target, tally, places) = (self.clone(), Arc::clone(tally), Arc::clone(&places));
            looks.spawn(async move {
                let _place = places.acquire().await;
                let request = target.http.get(format!("{}/api/v1/jobs/{}", target.base, pending.id)).timeout(GIVE_UP);
                if let Ok(answer) = target.with_token(request).send().await
                    && let Ok(job) = answer.json::<JobAnswer>().await
                    && job.status == "succeeded"
                    && let Some(finished_at) = job.finished_at
                {
                    tally.note_finished(pending, finished_at);
                }
            });
        }
        while looks.join_next().await.is_some() {}
    }
}

fn now() -> Timestamp {
    crate::clock::Clock::system().now()
}

/// A number above 0 and up to `MAX`.
pub(super) fn positive<const MAX: u32>(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number > 0.0 && number <= f64::from(MAX) {
        return Ok(number);
    }
    Err(format!("must be above 0 and at most {MAX}"))
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
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
