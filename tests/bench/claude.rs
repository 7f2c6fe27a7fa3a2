//! How Claude is called: `cargo bench --bench claude`, or one part of it: `cargo bench --bench claude -- latency`
//! (`limits`).
//!
//! - `latency`: what our client adds to a bare reqwest call of the same bytes to the same simulator, side by side
//! - `limits`: how much of an account's limits the shipped binary uses, and how often it is turned away
//!
//! Ends with exit code 1 if a target is missed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a benchmark for people"
)]

mod measure;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use ceoagent::{
    analysis,
    claude::{
        Claude, ClientConfig,
        message::MessageRequest,
        simulator::{AccountLimits, Counters, Latency, Simulator, SimulatorConfig},
    },
};
use tokio::task::JoinSet;

use self::measure::{Connection, Latencies, Service, post};

/// Calls a second, of each client.
const CALLS_PER_SECOND: u32 = 200;

/// How long both clients call.
const LATENCY_ROUND: Duration = Duration::from_secs(20);

/// Longest that our client may add, p50 and p99, in milliseconds.
const ADDED_MS: (f64, f64) = (0.3, 1.0);

/// What a run under limits waits for before it counts: the first burst is over then.
const WARM_UP: Duration = Duration::from_secs(5);

/// How long each run under limits is counted.
const LIMITS_ROUND: Duration = Duration::from_secs(30);

/// Who submits during a run under limits, and how often each does: 64 questions a second, three times what is allowed.
const FEEDERS: usize = 32;
const FEED_EVERY: Duration = Duration::from_millis(500);

/// The part of a limit that must be used, and the part of calls that may be turned away.
const USED: f64 = 0.95;
const TURNED_AWAY: f64 = 0.01;

fn request() -> MessageRequest {
    MessageRequest {
        model: "claude-sonnet-5-5".to_owned(),
        max_tokens: 16_000,
        system: include_str!("../../prompts/v1/system.txt").to_owned(),
        prompt: "<question>Should we open a second plant?</question>".to_owned(),
        effort: Some("low"),
        schema: Some(analysis::schema::text()),
        time_limit: Duration::from_secs(60),
        ..MessageRequest::default()
    }
}

/// Tells whether the targets were met.
async fn latency() -> bool {
    let simulator = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let ours = Claude::new(ClientConfig {
        base_url: simulator.base_url(),
        api_key: Some("bench".into()),
        auth_token: None,
        custom_headers: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(30),
    })
    .unwrap();
    ours.send(&request(), &|_| {}).await.unwrap();
    let body = simulator.calls()[0].body.clone();
    let bare = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let url = format!("{}/v1/messages", simulator.base_url());
    let question = request();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / (CALLS_PER_SECOND * 2));
    let (mut of_ours, mut of_bare) = (JoinSet::new(), JoinSet::new());
    for call in 0..LATENCY_ROUND.as_secs() as u32 * CALLS_PER_SECOND * 2 {
        tick.tick().await;
        if call % 2 == 0 {
            let (ours, question) = (ours.clone(), question.clone());
            of_ours.spawn(async move {
                let begin = Instant::now();
                assert!(!ours.send(&question, &|_| {}).await.unwrap().text.is_empty());
                begin.elapsed()
            });
        } else {
            let call = bare
                .post(&url)
                .header("content-type", "application/json")
                .header("x-api-key", "bench")
                .header("anthropic-version", "2026-10-21")
                .body(body.clone());
            of_bare.spawn(async move {
                let begin = Instant::now();
                assert!(!call.send().await.unwrap().bytes().await.unwrap().is_empty());
                begin.elapsed()
            });
        }
    }
    let (of_ours, of_bare) = (Latencies::new(of_ours.join_all().await), Latencies::new(of_bare.join_all().await));
    let added = |q| of_ours.ms(q) - of_bare.ms(q);
    println!("{CALLS_PER_SECOND} calls/s of each client, {} calls each", of_ours.len());
    println!("bare reqwest   p50 {:.3}  p99 {:.3} ms", of_bare.ms(0.5), of_bare.ms(0.99));
    println!("our client     p50 {:.3}  p99 {:.3} ms", of_ours.ms(0.5), of_ours.ms(0.99));
    println!("added          p50 {:.3}  p99 {:.3} ms", added(0.5), added(0.99));
    added(0.5) < ADDED_MS.0 && added(0.99) < ADDED_MS.1
}

/// Which of the limits is the narrow one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Narrow {
    Requests,
    OutputTokens,
}

impl Narrow {
    /// An account's limits, of which this one is met: 20 calls or 20,000 tokens a second.
    fn limits(self, share: f64) -> AccountLimits {
        let narrow = |per_minute: f64| (per_minute * share) as u32;
        match self {
            Narrow::Requests => {
                AccountLimits { requests: narrow(1_200.0), burst: Duration::from_secs(1), ..AccountLimits::UNLIMITED }
            }
            Narrow::OutputTokens => AccountLimits { output_tokens: narrow(1_200_000.0), ..AccountLimits::UNLIMITED },
        }
    }

    /// How much of it was used.
    fn used(self, counters: &Counters) -> f64 {
        match self {
            Narrow::Requests => (counters.calls - counters.limited) as f64,
            Narrow::OutputTokens => counters.usage.output_tokens as f64,
        }
    }

    fn per_second(self, share: f64) -> f64 {
        let limits = self.limits(share);
        match self {
            Narrow::Requests => f64::from(limits.requests) / 60.0,
            Narrow::OutputTokens => f64::from(limits.output_tokens) / 60.0,
        }
    }
}

/// How the service comes to know the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    BySetting,
    FromHeaders,
    CutInHalf,
}

/// Tells whether the targets were met.
async fn under_limits(narrow: Narrow, known: Known) -> bool {
    let claude = Simulator::start(SimulatorConfig {
        latency: Latency::LogNormal { median: Duration::from_millis(300), sigma: 0.4 },
        writes: 4,
        limits: Some(narrow.limits(1.0)),
        ..SimulatorConfig::default()
    })
    .await
    .unwrap();
    let limits = narrow.limits(1.0);
    let caps = format!(
        "{} requests, {} output tokens",
        limits.requests.min(1_000_000),
        limits.output_tokens.min(1_000_000_000)
    );
    let mut settings = vec![("WORKERS", "64")];
    if known != Known::FromHeaders {
        settings.push(("RATE_LIMITS", &caps));
    }
    let service = Service::start(&claude.base_url(), &settings).await;
    // An endless queue: more comes in than can be called.
    let mut feeders = JoinSet::new();
    for _ in 0..FEEDERS {
        let mut connection = Connection::open(&service.address).await.unwrap();
        feeders.spawn(async move {
            let mut tick = tokio::time::interval(FEED_EVERY);
            loop {
                tick.tick().await;
                assert_eq!(connection.ask(&post("Should we open a second plant?", false)).await.0, 202);
            }
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let mut met = true;
    let shares: &[f64] = if known == Known::CutInHalf { &[1.0, 0.5] } else { &[1.0] };
    for share in shares {
        let before = claude.counters();
        if *share < 1.0 {
            claude.set_limits(Some(narrow.limits(*share)));
        }
        let begin = Instant::now();
        tokio::time::sleep(LIMITS_ROUND).await;
        let after = claude.counters();
        let allowed = narrow.per_second(*share) * begin.elapsed().as_secs_f64();
        let used = (narrow.used(&after) - narrow.used(&before)) / allowed;
        let (calls, limited) = (after.calls - before.calls, after.limited - before.limited);
        let turned_away = limited as f64 / calls as f64;
        println!(
            "{narrow:?} {known:?} at {share}: {:5.1} % of the limit used, {limited} of {calls} calls turned away ({:.2} %)",
            used * 100.0,
            turned_away * 100.0
        );
        met &= used >= USED && turned_away < TURNED_AWAY;
    }
    feeders.abort_all();
    let all = claude.counters();
    let turned_away = all.limited as f64 / all.calls as f64;
    println!("    from the start: {} of {} calls turned away ({:.2} %)", all.limited, all.calls, turned_away * 100.0);
    met && turned_away < TURNED_AWAY
}

async fn limits() -> bool {
    let mut met = true;
    for narrow in [Narrow::Requests, Narrow::OutputTokens] {
        for known in [Known::BySetting, Known::FromHeaders, Known::CutInHalf] {
            met &= under_limits(narrow, known).await;
        }
    }
    met
}

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let parts: Vec<String> = std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let mut met = true;
    if wanted("latency") {
        met &= latency().await;
    }
    if wanted("limits") {
        met &= limits().await;
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
