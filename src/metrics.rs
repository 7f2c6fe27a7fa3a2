//! Every metric of the service, once: its name, its labels, its meaning. Counted where things happen, read by `/metrics`.

mod process;

use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

/// Seconds from acceptance to a claim or to the end. Closest where it is decided whether a client that waits has its memo
/// in time, for which it has 29 s, and up to an hour for what waits in the queue.
const TIMES_TO: [f64; 21] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 25.0, 28.0, 30.0, 35.0, 45.0, 60.0, 120.0, 300.0,
    900.0, 3600.0,
];

/// Seconds to the head of an HTTP answer, none of which takes 30.
const TIMES_OF_HTTP: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 25.0, 28.0, 30.0];

/// Labels of an answered HTTP request. The route is the pattern, never the path, so the number of series is bounded.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct HttpLabels {
    /// `GET`, `POST`, …
    pub method: String,
    /// As `/api/v1/jobs/{id}`; `none` where no route matched.
    pub route: String,
    /// The status code.
    pub status: u16,
}

/// One label: how something ended, or what it is about.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    /// The stable snake_case word.
    pub kind: &'static str,
}

/// Why something was refused.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The stable snake_case word.
    pub reason: &'static str,
}

/// All metrics. Clones count into the same ones.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// HTTP requests answered.
    pub http_requests: Family<HttpLabels, Counter>,
    /// Seconds from the request's head to the answer's head.
    pub http_seconds: Histogram,
    /// Requests refused for who sent them, by why: missing, wrong, too_many (wrong ones), forbidden (a scope too small).
    pub auth_refused: Family<ReasonLabel, Counter>,
    /// Questions whose client asked to be held for the answer and was not, as it can't come in time.
    pub waits_declined: Counter,
    /// Clients that asked to be held for their memo, by how that ended: answered (with it), failed (the job did, in time),
    /// late (told to come back), left (hung up).
    pub waits: Family<KindLabel, Counter>,
    /// Jobs accepted.
    pub jobs_submitted: Counter,
    /// Jobs that reached an end, by status.
    pub jobs_finished: Family<KindLabel, Counter>,
    /// Attempts ended, by outcome.
    pub attempts: Family<KindLabel, Counter>,
    /// Attempts that came to nothing, by the code of their error.
    pub attempt_errors: Family<KindLabel, Counter>,
    /// Seconds that an attempt took.
    pub attempt_seconds: Histogram,
    /// Seconds from acceptance to the first claim.
    pub time_to_claim_seconds: Histogram,
    /// Seconds from acceptance to the end.
    pub time_to_finish_seconds: Histogram,
    /// Attempts in which Claude was told what was wrong with its last answer.
    pub asked_again: Counter,
    /// Jobs that got the answer of another, which asked the same at the same time.
    pub answers_shared: Counter,
    /// Jobs that got an answer that was there before them.
    pub answers_cached: Counter,
    /// Tokens reported by the upstream, by kind.
    pub tokens: Family<KindLabel, Counter>,
    /// Messages to callback URLs sent, by what came of it: delivered, failed (to be tried again), given_up, disabled.
    pub webhooks: Family<KindLabel, Counter>,
    /// Settles and heartbeats that came too late and changed nothing.
    pub leases_lost: Counter,
    /// Attempts that panicked.
    pub panics: Counter,
    /// Jobs in the store by status; set when the metrics are read.
    pub jobs: Family<KindLabel, Gauge>,
    /// Clients that wait for a job's end; set when the metrics are read.
    pub waiters: Gauge,
    /// Attempts under way in this process; set when the metrics are read.
    pub running_attempts: Gauge,
    /// Tasks of the runtime that have not ended; set when the metrics are read.
    pub tasks: Gauge,
    /// 1 while the gate to the upstream is closed; set when the metrics are read.
    pub gate_closed: Gauge,
    /// The limits in force, a minute, by what of; set when the metrics are read.
    pub limits_per_minute: Family<KindLabel, Gauge>,
    /// Most calls at once, fewer than there are workers while Claude is overloaded; set when the metrics are read.
    pub calls_at_once: Gauge,
    /// How long the oldest job has waited that could run; set when the metrics are read.
    pub oldest_queued_age_seconds: Gauge<f64, AtomicU64>,
    /// 1 while an operator has paused the queue; set when the metrics are read.
    pub paused: Gauge,
    /// 1 while the queue is held, by what for; set when the metrics are read.
    pub held: Family<KindLabel, Gauge>,
    /// Tokens reported today (UTC), by kind; set when the metrics are read.
    pub tokens_today: Family<KindLabel, Gauge>,
    /// Cost of today (UTC) in US dollars, by how sure it is; set when the metrics are read.
    pub cost_today: Family<KindLabel, Gauge<f64, AtomicU64>>,
    /// The part of the daily budget that is used, 0 without one; set when the metrics are read.
    pub budget_used: Gauge<f64, AtomicU64>,
    /// 1 from 80 % of the daily budget on; set when the metrics are read.
    pub budget_warning: Gauge,
    /// 1 while the store can be used; set when the metrics are read.
    pub store_available: Gauge,
    /// Free bytes on the store's disk, as last looked at.
    pub disk_free_bytes: Gauge,
    /// Groups of changes made durable.
    pub store_commits: Counter,
    /// Seconds to write and sync one group.
    pub store_commit_seconds: Histogram,
    /// Seconds of it until the disk had it.
    pub store_sync_seconds: Histogram,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Metrics {
        let mut root = Registry::default();
        root.register_collector(Box::new(process::Process));
        let registry = root.sub_registry_with_prefix("ceoagent");
        // 0.1 ms to 3.3 s.
        let quick = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let slow = || Histogram::new(TIMES_TO);
        // In the order in which they are rendered.
        let metrics = Metrics {
            http_requests: add(registry, "http_requests", "HTTP requests answered", Family::default()),
            http_seconds: add_in(
                Unit::Seconds,
                registry,
                "http_request_duration",
                "Time to the head of the answer, waits included",
                Histogram::new(TIMES_OF_HTTP),
            ),
            auth_refused: add(
                registry,
                "auth_refused",
                "Requests refused for who sent them, by reason",
                Family::default(),
            ),
            waits_declined: add(
                registry,
                "waits_declined",
                "Clients that asked to be held for an answer and were not, as it can't come in time",
                Counter::default(),
            ),
            waits: add(
                registry,
                "waits",
                "Clients that asked to be held for their memo, by how that ended: answered, failed, late, left",
                Family::default(),
            ),
            jobs_submitted: add(registry, "jobs_submitted", "Jobs accepted", Counter::default()),
            jobs_finished: add(registry, "jobs_finished", "Jobs that reached an end, by status", Family::default()),
            attempts: add(registry, "attempts", "Attempts ended, by outcome", Family::default()),
            attempt_errors: add(
                registry,
                "attempt_errors",
                "Attempts that came to nothing, by the code of their error",
                Family::default(),
            ),
            attempt_seconds: add_in(Unit::Seconds, registry, "attempt_duration", "Time that an attempt took", slow()),
            time_to_claim_seconds: add_in(
                Unit::Seconds,
                registry,
                "job_time_to_claim",
                "From acceptance to the first claim",
                slow(),
            ),
            time_to_finish_seconds: add_in(
                Unit::Seconds,
                registry,
                "job_time_to_finish",
                "From acceptance to the end",
                slow(),
            ),
            asked_again: add(
                registry,
                "answers_asked_again",
                "Attempts in which Claude was told what was wrong with its last answer",
                Counter::default(),
            ),
            answers_shared: add(
                registry,
                "answers_shared",
                "Jobs that got the answer of another, which asked the same at the same time: calls saved",
                Counter::default(),
            ),
            answers_cached: add(
                registry,
                "answers_cached",
                "Jobs that got an answer that was there before them: calls saved",
                Counter::default(),
            ),
            tokens: add(registry, "tokens", "Tokens reported by the upstream, by kind", Family::default()),
            webhooks: add(registry, "webhooks", "Messages to callback URLs sent, by outcome", Family::default()),
            leases_lost: add(
                registry,
                "leases_lost",
                "Settles and heartbeats that came too late and changed nothing",
                Counter::default(),
            ),
            panics: add(registry, "attempt_panics", "Attempts that panicked", Counter::default()),
            jobs: add(registry, "jobs", "Jobs in the store, by status", Family::default()),
            waiters: add(registry, "waiters", "Clients that wait for a job's end", Gauge::default()),
            running_attempts: add(registry, "running_attempts", "Attempts under way", Gauge::default()),
            tasks: add(registry, "tasks", "Tasks of the runtime that have not ended", Gauge::default()),
            gate_closed: add(registry, "gate_closed", "1 while the gate to the upstream is closed", Gauge::default()),
            limits_per_minute: add(
                registry,
                "limits_per_minute",
                "The limits in force, a minute: of requests, input_tokens, output_tokens",
                Family::default(),
            ),
            calls_at_once: add(
                registry,
                "calls_at_once",
                "Most calls at once; fewer than there are workers while Claude is overloaded",
                Gauge::default(),
            ),
            oldest_queued_age_seconds: add_in(
                Unit::Seconds,
                registry,
                "oldest_queued_age",
                "How long the oldest job has waited that could run",
                Gauge::default(),
            ),
            paused: add(registry, "paused", "1 while an operator has paused the queue", Gauge::default()),
            held: add(
                registry,
                "queue_held",
                "1 while the queue is held, by what for: until a person mends it, or until the day turns",
                Family::default(),
            ),
            tokens_today: add(
                registry,
                "tokens_today",
                "Tokens of today (UTC), by kind; at_risk are those of calls whose end is not known",
                Family::default(),
            ),
            cost_today: add(
                registry,
                "cost_today_dollars",
                "Cost of today (UTC) in US dollars: billed, and at risk beyond that",
                Family::default(),
            ),
            budget_used: add_in(
                Unit::Ratios,
                registry,
                "budget_used",
                "The used part of the daily budget, of tokens or money, whichever is more; 0 without one",
                Gauge::default(),
            ),
            budget_warning: add(registry, "budget_warning", "1 from 80 % of the daily budget on", Gauge::default()),
            store_available: add(registry, "store_available", "1 while the store can be used", Gauge::default()),
            disk_free_bytes: add_in(
                Unit::Bytes,
                registry,
                "disk_free",
                "Free space on the file system of DATA_DIR",
                Gauge::default(),
            ),
            store_commits: add(registry, "store_commits", "Groups of changes made durable", Counter::default()),
            store_commit_seconds: add_in(
                Unit::Seconds,
                registry,
                "store_commit_duration",
                "Time to write and sync one group of changes",
                quick(),
            ),
            store_sync_seconds: add_in(
                Unit::Seconds,
                registry,
                "store_sync_duration",
                "Time until the disk had a group of changes",
                quick(),
            ),
            registry: Arc::new(root),
        };
        // From the start, so that a share can be told before there was one of each.
        for end in ["answered", "failed", "late", "left"] {
            drop(metrics.waits.get_or_create(&kind(end)));
        }
        metrics
    }

    /// The metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only if a metric's own encoding does, which none of ours can.
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics can't be encoded");
        }
        text
    }
}

/// Registers `metric`, and gives it back to be counted in.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// As [`add`], of a metric in `unit`, which ends its name.
fn add_in<M: Metric + Clone>(unit: Unit, registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

/// The label `kind`.
pub fn kind(kind: &'static str) -> KindLabel {
    KindLabel { kind }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Metrics of which each has a series, as those without any are not shown.
    fn with_series() -> Metrics {
        let metrics = Metrics::new();
        let http = HttpLabels { method: "GET".to_owned(), route: "none".to_owned(), status: 404 };
        drop(metrics.http_requests.get_or_create(&http));
        drop(metrics.auth_refused.get_or_create(&ReasonLabel { reason: "missing" }));
        for family in [
            &metrics.waits,
            &metrics.jobs_finished,
            &metrics.attempts,
            &metrics.attempt_errors,
            &metrics.tokens,
            &metrics.webhooks,
        ] {
            drop(family.get_or_create(&kind("any")));
        }
        for family in [&metrics.jobs, &metrics.limits_per_minute, &metrics.held, &metrics.tokens_today] {
            drop(family.get_or_create(&kind("any")));
        }
        drop(metrics.cost_today.get_or_create(&kind("any")));
        metrics
    }

    /// The labels of a series, but for the one that every histogram has.
    fn labels(series: &str) -> Vec<&str> {
        let labels = series.split_once('{').map_or("", |(_, labels)| labels);
        let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name);
        names.filter(|name| *name != "le").collect()
    }

    #[test]
    fn the_page_of_metrics_is_made_from_them() {
        let text = with_series().render();
        let mut expected = String::new();
        for help in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            let (name, meaning) = help.split_once(' ').unwrap();
            let form = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
            let suffix = if form == "counter" { "_total" } else { "" };
            let of_it = |line: &&str| {
                let rest = line.strip_prefix(name).map(|rest| rest.strip_prefix(suffix).unwrap_or(rest));
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']) || rest.starts_with("_bucket"))
            };
            let series = text.lines().find(of_it).unwrap();
            let labels = labels(series).join("`, `");
            let labels = if labels.is_empty() { labels } else { format!("`{labels}`") };
            writeln!(expected, "| `{name}{suffix}` | {form} | {labels} | {} |", meaning.trim_end_matches('.')).unwrap();
        }
        // Each is registered by one call, but for those of the process: none is left out for want of a series.
        let (code, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let registered = code.matches(": add(").count() + code.matches(": add_in(").count();
        assert_eq!(expected.lines().filter(|line| line.contains("ceoagent_")).count(), registered);
        let page = include_str!("../docs/metrics.md");
        let (_, table) = page.split_once("|---|---|---|---|\n").expect("a table");
        assert_eq!(table, expected, "expected:\n{expected}");
    }
}
