//! All metrics of the service: name, labels, meaning. The other modules count; `/metrics` renders them.

mod process;

use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry, Unit},
};

/// Buckets in seconds. Dense up to 30 s, the limit of waiting clients, and up to an hour for jobs in the queue.
const TIMES_TO: [f64; 21] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 25.0, 28.0, 30.0, 35.0, 45.0, 60.0, 120.0, 300.0,
    900.0, 3600.0,
];

/// No response takes 30 s.
const TIMES_OF_HTTP: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 25.0, 28.0, 30.0];

const TIMES_OF_COMMITS: [f64; 16] = [
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048, 0.4096, 0.8192,
    1.6384, 3.2768,
];

type FloatGauge = Gauge<f64, AtomicU64>;

/// Labels of an answered HTTP request. The route is the pattern, not the path, so the number of series is bounded.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct HttpLabels {
    pub method: String,
    /// For example `/api/v1/jobs/{id}`; `none` if no route matches.
    pub route: String,
    pub status: u16,
}

/// A stable snake_case word.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: &'static str,
}

/// A stable snake_case word.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

/// The program's version.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct VersionLabel {
    pub version: &'static str,
}

/// Declares [`Metrics`]: each line is a field, its type, and the call of [`Ours`] that registers it.
macro_rules! metrics {
    ($($field:ident: $type:ty = $add:ident($($argument:expr),+);)+) => {
        /// All metrics. Clones share the same counters. Gauges are set when the metrics are read, except
        /// `build_info`, `dispatcher`, `feed_position`, `settings_differ`, `disk_free_bytes` and `redis_unavailable`.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            $(pub $field: $type,)+
            registry: Arc<Registry>,
        }

        impl Metrics {
            fn registered() -> Metrics {
                let mut root = Registry::default();
                root.register_collector(Box::new(process::Process::new()));
                let mut ours = Ours(root.sub_registry_with_prefix("ceoagent"));
                Metrics { $($field: ours.$add($($argument),+),)+ registry: Arc::new(root) }
            }
        }
    };
}

// In the order in which they are rendered.
metrics! {
    http_requests: Family<HttpLabels, Counter> = add("http_requests", "Answered HTTP requests");
    http_seconds: Histogram = add_times(
        "http_request_duration", "Time from the request to the response head, including waits", &TIMES_OF_HTTP
    );
    connections_refused: Counter = add("connections_refused", "Connections closed at once because there were too many");
    auth_refused: Family<ReasonLabel, Counter> = add(
        "auth_refused", "Requests refused because of their credential, by reason: missing, wrong, too_many, forbidden"
    );
    waits_declined: Counter = add(
        "waits_declined", "Waiting clients that got 202 at once, because the job can't end in time"
    );
    waits: Family<KindLabel, Counter> = add(
        "waits", "Waiting clients by result: answered, failed, late (202), left (disconnected)"
    );
    jobs_submitted: Counter = add("jobs_submitted", "Accepted jobs");
    jobs_finished: Family<KindLabel, Counter> = add("jobs_finished", "Ended jobs, by status");
    attempts: Family<KindLabel, Counter> = add("attempts", "Ended attempts, by outcome");
    attempt_errors: Family<KindLabel, Counter> = add("attempt_errors", "Failed attempts, by error code");
    attempt_seconds: Histogram = add_times("attempt_duration", "Duration of an attempt", &TIMES_TO);
    time_to_claim_seconds: Histogram = add_times(
        "job_time_to_claim",
        "Time from the moment a job was due (acceptance, or its run_at) to its first attempt",
        &TIMES_TO
    );
    time_to_finish_seconds: Histogram = add_times(
        "job_time_to_finish", "Time from the moment a job was due to its end, without cancelled jobs", &TIMES_TO
    );
    asked_again: Counter = add("answers_asked_again", "Repair attempts, which show Claude its rejected answer");
    answers_shared: Counter = add("answers_shared", "Jobs that got the answer of a running job with the same question");
    answers_cached: Counter = add("answers_cached", "Jobs that got their answer from the cache");
    tokens: Family<KindLabel, Counter> = add("tokens", "Tokens reported by Claude, by kind");
    webhooks: Family<KindLabel, Counter> = add(
        "webhooks", "Webhooks sent, by outcome: delivered, failed (will be retried), given_up, disabled"
    );
    leases_lost: Counter = add("leases_lost", "Results of attempts that were ignored, because the job was not theirs any more");
    panics: Counter = add("attempt_panics", "Attempts that panicked");
    build_info: Family<VersionLabel, Gauge> = add("build_info", "1, labelled with the version of this node's program");
    dispatcher: Gauge = add("dispatcher", "1 while this node is the dispatcher: the one that decides which node makes which call to Claude");
    feed_position: Gauge = add(
        "feed_position", "Number of the newest change in the database that this node knows; 0 if jobs are in DATA_DIR"
    );
    feed_live: Gauge = add(
        "feed_live", "1 while this node hears of changes by other nodes within 2 seconds, or if jobs are in DATA_DIR"
    );
    jobs: Family<KindLabel, Gauge> = add("jobs", "Stored jobs, by status");
    waiters: Gauge = add("waiters", "Clients that wait for a job");
    running_attempts: Gauge = add("running_attempts", "Running attempts");
    tasks: Gauge = add("tasks", "Live tasks of the async runtime");
    gate_closed: Gauge = add("gate_closed", "1 while the gate is closed and no calls to Claude are made");
    claude_unreachable: Gauge = add(
        "claude_unreachable", "1 while one call after another finds no connection to Claude"
    );
    limits_per_minute: Family<KindLabel, Gauge> = add(
        "limits_per_minute", "Limits in force per minute: requests, input_tokens, output_tokens"
    );
    calls_at_once: Gauge = add(
        "calls_at_once", "Most concurrent calls; lower than the number of workers while Claude is overloaded"
    );
    oldest_queued_age_seconds: FloatGauge = add_in(Unit::Seconds, "oldest_queued_age", "Age of the oldest queued job");
    paused: Gauge = add("paused", "1 while the queue is paused by an operator");
    held: Family<KindLabel, Gauge> = add(
        "queue_held",
        "1 while the queue is blocked, by cause: budget_reached ends at midnight UTC, the others when a person fixes them"
    );
    tokens_today: Family<KindLabel, Gauge> = add(
        "tokens_today",
        "Tokens of today (UTC), by kind; at_risk: the most that calls with unknown outcome can have used"
    );
    cost_today: Family<KindLabel, FloatGauge> = add(
        "cost_today_dollars", "Cost of today (UTC) in US dollars: billed, and at_risk in addition"
    );
    budget_used: FloatGauge = add_in(
        Unit::Ratios,
        "budget_used",
        "Used share of the daily budget (the larger one of tokens and cost); 0 without a budget"
    );
    budget_warning: Gauge = add("budget_warning", "1 if 80 % or more of the daily budget is used");
    queue_used: FloatGauge = add_in(
        Unit::Ratios,
        "queue_used",
        "Used share of the places in the queue, or of those for jobs for later, whichever is larger"
    );
    ready: Gauge = add("ready", "1 while this node is ready: /health/ready answers 200");
    store_available: Gauge = add("store_available", "1 while the job store is available");
    settings_failures: Counter = add(
        "settings_failures", "Failed tries to read changed settings, such as API keys and the pause; each is repeated"
    );
    settings_differ: Gauge = add(
        "settings_differ", "Number of settings whose values differ from those of another node of the database; all nodes need the same"
    );
    redis_unavailable: Gauge = add("redis_unavailable", "1 while REDIS_URL is set and Redis can't be used");
    disk_free_bytes: Family<KindLabel, Gauge> = add_in(
        Unit::Bytes, "disk_free", "Free disk space, by place: data_dir. Absent if jobs are in a database"
    );
    store_commits: Counter = add("store_commits", "Commits of the job store");
    store_commit_seconds: Histogram = add_times(
        "store_commit_duration", "Duration of a commit: write and sync", &TIMES_OF_COMMITS
    );
    store_sync_seconds: Histogram = add_times(
        "store_sync_duration", "Duration of the sync of a commit", &TIMES_OF_COMMITS
    );
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let metrics = Metrics::registered();
        // Created at start: otherwise the first of a kind would be invisible to `increase`, and shares could not be computed.
        let families: [(&Family<KindLabel, Counter>, &[&'static str]); 4] = [
            (&metrics.waits, &["answered", "failed", "late", "left"]),
            (&metrics.jobs_finished, &["succeeded", "failed", "cancelled"]),
            (&metrics.attempts, &["succeeded", "failed", "cancelled", "released", "outcome_unknown"]),
            (&metrics.webhooks, &["delivered", "failed", "given_up", "disabled"]),
        ];
        for (family, kinds) in families {
            kinds.iter().for_each(|name| drop(family.get_or_create(&kind(name))));
        }
        metrics.build_info.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        metrics
    }

    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "failed to encode the metrics");
        }
        text
    }
}

struct Ours<'a>(&'a mut Registry);

impl Ours<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// The unit becomes the suffix of the name.
    fn add_in<M: Metric + Clone + Default>(&mut self, unit: Unit, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    fn add_times(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let times = Histogram::new(buckets.iter().copied());
        self.0.register_with_unit(name, help, Unit::Seconds, times.clone());
        times
    }
}

pub fn kind(kind: &'static str) -> KindLabel {
    KindLabel { kind }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Metrics with a series each, because metrics without series are not rendered.
    fn with_series() -> Metrics {
        let metrics = Metrics::new();
        let http = HttpLabels { method: "GET".to_owned(), route: "none".to_owned(), status: 404 };
        drop(metrics.http_requests.get_or_create(&http));
        drop(metrics.auth_refused.get_or_create(&ReasonLabel { reason: "missing" }));
        for family in [&metrics.attempt_errors, &metrics.tokens] {
            drop(family.get_or_create(&kind("any")));
        }
        for family in [&metrics.jobs, &metrics.limits_per_minute, &metrics.held, &metrics.tokens_today] {
            drop(family.get_or_create(&kind("any")));
        }
        drop(metrics.cost_today.get_or_create(&kind("any")));
        drop(metrics.disk_free_bytes.get_or_create(&kind("any")));
        metrics
    }

    /// The labels of a series, without `le`.
    fn labels(series: &str) -> Vec<&str> {
        let labels = series.split_once('{').map_or("", |(_, labels)| labels);
        let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name);
        names.filter(|name| *name != "le").collect()
    }

    #[test]
    fn the_table_in_docs_equals_the_registered_metrics() {
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
        // Each metric has one registering call, so this finds metrics without a series.
        let (code, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let registered = code.matches(" = add").count();
        assert_eq!(expected.lines().filter(|line| line.contains("ceoagent_")).count(), registered);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (head, table) = page.split_once("|---|---|---|---|\n").expect("a table");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, format!("{head}|---|---|---|---|\n{expected}")).unwrap();
        } else {
            assert_eq!(table, expected, "UPDATE_DOCS=1 cargo test --lib metrics writes {path}");
        }
    }
}
