//! Waiting clients under overload, by `ceoagent loadtest` of the shipped binary: `cargo bench --bench overload`.
//!
//! Claude is simulated at its real pace. Twenty calls at once are a capacity of some two brief memos a second. Clients that
//! wait come at half of it, at it, at three and at ten times it, in the order by deadlines and, for comparison, first in
//! first out; and at three times it with a storm of 429s, with clients that hang up, with background jobs, with a disk
//! whose `fdatasync` takes 50 ms longer (by `strace`, which must be installed). Exits with 1 if a target is missed.
//!
//! `possible` is what an oracle that knows how long each answer takes could answer in time, in the order of the deadlines
//! and without a call in vain. `shortest first` is what it could answer if it also picked the short answers, which no
//! service can: it learns a length only from the answer. See `src/cli/loadtest/oracle.rs`.
//!
//! After the runs without a disturbance, the jobs of clients that got a `202` are waited for, so that their estimates can be
//! checked: 10 minutes at three times the capacity, 45 at ten times.
//!
//! - `--seconds N`: how long questions come in each run, 300 if absent
//! - `--at-once N`: how many runs share the machine, 1 if absent; they mostly sleep
//! - `--only TEXT`: the runs whose name contains it
//! - `--service PATH`: another binary than the one built with it
//! - `--reports FOLDER`: where to write the reports, as JSON and as pages

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
};

use serde_json::Value;

/// Calls at once.
const WORKERS: u32 = 20;

/// Answers a second: the mean of a brief memo is 10.4 s.
const CAPACITY: f64 = WORKERS as f64 / 10.4;

/// Least part of the clients with a `202` at once for whom no worker may have been free in their time.
const RIGHTLY_DECLINED: f64 = 0.9;

/// What the disk takes longer for a sync, in microseconds.
const SYNC_DELAY: u32 = 50_000;

/// Longest that any answer may take, in milliseconds.
const LONGEST_MS: f64 = 30_000.0;

/// Most that half of the estimates may be off by.
const ETA_ERROR: f64 = 0.25;

/// Fewer estimates prove nothing.
const LEAST_ESTIMATES: f64 = 50.0;

/// Longest time to wait for the jobs after the load, in seconds: ten times the capacity for five minutes, and some.
const DRAIN: &str = "3600";

struct Run {
    name: String,
    load: f64,
    order: &'static str,
    args: Vec<String>,
    slow_disk: bool,
    /// Least share of what could be answered.
    share: Option<f64>,
}

impl Run {
    fn new(name: &str, load: f64, order: &'static str) -> Run {
        let share = match (order, load) {
            ("deadline", 0.5 | 3.0) => Some(0.95),
            ("deadline", 10.0) => Some(0.9),
            _ => None,
        };
        let args = if order == "deadline" { vec!["--drain".to_owned(), DRAIN.to_owned()] } else { Vec::new() };
        Run { name: name.to_owned(), load, order, args, slow_disk: false, share }
    }

    fn with(mut self, args: &[&str]) -> Run {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
        // Part of the capacity goes elsewhere: what is left depends on the run, and is shown.
        self.share = None;
        self
    }
}

fn runs(seconds: f64) -> Vec<Run> {
    let mut runs = Vec::new();
    for order in ["deadline", "fifo"] {
        for load in [0.5, 1.0, 3.0, 10.0] {
            runs.push(Run::new(&format!("{load} C, {order}"), load, order));
        }
    }
    let storm = (seconds / 2.0 - 10.0).max(1.0).to_string();
    runs.push(Run::new("3 C, 429s for 20 s", 3.0, "deadline").with(&["--storm-at", &storm, "--storm-for", "20"]));
    runs.push(Run::new("3 C, half hang up", 3.0, "deadline").with(&["--hang-up", "0.5"]));
    runs.push(Run::new("3 C, half background", 3.0, "deadline").with(&["--waiters", "0.5"]));
    runs.push(Run { slow_disk: true, args: Vec::new(), ..Run::new("3 C, slow disk", 3.0, "deadline") });
    runs
}

/// Makes the run and gives its report.
fn report(run: &Run, seconds: f64, service: &Path, reports: &Path) -> Value {
    let file = |kind: &str| reports.join(format!("{}.{kind}", run.name.replace([' ', ','], "-")));
    let mut command = match run.slow_disk {
        true => {
            let mut strace = Command::new("strace");
            // With a filter in the kernel, no other call is slowed down.
            strace.args(["-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]);
            strace.arg(format!("inject=fdatasync:delay_enter={SYNC_DELAY}")).arg(service);
            strace
        }
        false => Command::new(service),
    };
    let data = tempfile::tempdir().unwrap();
    command
        .args(["loadtest", "--rate", &(run.load * CAPACITY).to_string(), "--duration", &seconds.to_string()])
        .args(["--workers", &WORKERS.to_string()])
        .args(["--json", &file("json").display().to_string(), "--html", &file("html").display().to_string()])
        .args(["--order", run.order])
        .args(&run.args)
        .env("DATA_DIR", data.path())
        .env("PROMPTS_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/prompts"))
        .stdout(Stdio::null());
    assert!(command.status().unwrap().success(), "{} failed", run.name);
    serde_json::from_str(&std::fs::read_to_string(file("json")).unwrap()).unwrap()
}

/// A row of the table, and whether it meets its targets.
fn row(run: &Run, report: &Value) -> (String, bool) {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let count = |path: &str| number(path).unwrap_or_default();
    let share = number("/share_of_answerable").unwrap_or_default();
    let eta = number("/estimates/median_error").filter(|_| count("/estimates/compared") >= LEAST_ESTIMATES);
    let longest = count("/answers/max_ms");
    let declined = count("/declined/count");
    let right = (declined > 0.0).then(|| count("/declined/right") / declined);
    let is_good = longest <= LONGEST_MS
        && count("/met/unanswered") + count("/met/failed") == 0.0
        && run.share.is_none_or(|least| share >= least)
        && (run.share.is_none() || right.is_none_or(|right| right >= RIGHTLY_DECLINED))
        && (run.share.is_none() || eta.is_none_or(|error| error <= ETA_ERROR));
    let (in_time, shortest) = (count("/answered_in_time"), count("/answerable_shortest_first"));
    let row = format!(
        "| {} | {} | {in_time} | {} | {:.1} % | {shortest} | {:.1} % | {} | {} | {:.1} | {:.1} | {:.1} | {} | {} |",
        run.name,
        count("/sent"),
        count("/answerable"),
        share * 100.0,
        in_time / shortest * 100.0,
        count("/met/accepted"),
        right.map_or("-".to_owned(), |right| format!("{:.1} % of {declined}", right * 100.0)),
        count("/latency/p50_ms") / 1e3,
        count("/latency/p99_ms") / 1e3,
        longest / 1e3,
        eta.map_or("-".to_owned(), |error| format!("{:.0} % of {}", error * 100.0, count("/estimates/compared"))),
        count("/ordinary/finished"),
    );
    (row, is_good)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let given = |name: &str| args.iter().position(|arg| arg == name).and_then(|place| args.get(place + 1)).cloned();
    let seconds: f64 = given("--seconds").map_or(300.0, |text| text.parse().unwrap());
    let at_once: usize = given("--at-once").map_or(1, |text| text.parse().unwrap());
    let only = given("--only").unwrap_or_default();
    let service = given("--service").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ceoagent")), PathBuf::from);
    let own = tempfile::tempdir().unwrap();
    let reports = given("--reports").map_or_else(|| own.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(&reports).unwrap();
    let waiting: Vec<Run> = runs(seconds).into_iter().filter(|run| run.name.contains(&only)).rev().collect();
    let waiting = Mutex::new(waiting);
    println!(
        "| run | sent | 200 in time | possible | share | shortest first | share | 202 | at once, right | p50 s | p99 s \
         | longest answer s | half of the estimates off by | background done |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..at_once {
            threads.spawn(|| {
                loop {
                    let Some(run) = waiting.lock().unwrap().pop() else { break };
                    let (row, is_good) = row(&run, &report(&run, seconds, &service, &reports));
                    println!("{row}");
                    if !is_good {
                        missed.lock().unwrap().push(run.name);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    if missed.is_empty() {
        println!("all targets are met");
        return ExitCode::SUCCESS;
    }
    println!("targets missed: {}", missed.join("; "));
    ExitCode::FAILURE
}
