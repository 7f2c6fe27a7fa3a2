//! What must hold of several nodes after any fault: no accepted job is lost, each ends once, Claude is called once for each
//! attempt and only after an unknown outcome again, the ledger agrees with Claude's bill, the budget and the account's limit
//! hold, and callers take turns.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use crate::{
    cluster::{Accepted, CALLS_PER_MINUTE, GREEDY, PATIENCE, Received, WORKERS},
    harness::Service,
};

/// Fewer calls say nothing of the turns.
const ENOUGH_CALLS: usize = 18;

/// A call may be late: between two calls that are closer, the order says nothing.
const JITTER: Duration = Duration::from_millis(200);

#[expect(dead_code, reason = "printed")]
#[derive(Debug)]
pub(crate) struct Figures {
    jobs: usize,
    calls: usize,
    /// Calls of a job after its first.
    pub(crate) second_calls: usize,
    /// Attempts whose outcome is unknown.
    pub(crate) unknown: usize,
}

/// Asserts that each call of a job belongs to an attempt, and every one but the last to one whose outcome is unknown.
pub(crate) fn assert_one_call_an_attempt(jobs: &[Value], received: &[Received]) -> Figures {
    let mut calls = HashMap::<&str, usize>::new();
    for call in received {
        *calls.entry(&call.question).or_default() += 1;
    }
    let mut figures = Figures { jobs: jobs.len(), calls: received.len(), second_calls: 0, unknown: 0 };
    for job in jobs {
        let attempts = job["attempts"].as_array().unwrap();
        let calls = calls.get(job["query"].as_str().unwrap()).copied().unwrap_or_default();
        // One entry stands for several releases in a row.
        let stands_for = |attempt: &Value| {
            let number = attempt["number"].as_u64().unwrap();
            number + 1 - attempt["releases"].as_u64().unwrap_or(1)..=number
        };
        let numbers: Vec<_> = attempts.iter().flat_map(stands_for).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "the history has no gap: {job:#}");
        let (last, earlier) = attempts.split_last().unwrap();
        assert_eq!(last["outcome"], "succeeded", "{job:#}");
        let mut unknown = 0;
        for attempt in earlier {
            // Released: the store was down before the call was made.
            let is_unknown = attempt["outcome"] == "outcome_unknown";
            assert!(is_unknown || attempt["outcome"] == "released", "only a fault ended attempts: {job:#}");
            assert_eq!(attempt["may_have_been_billed"], is_unknown, "{job:#}");
            unknown += usize::from(is_unknown);
        }
        assert!((1..=unknown + 1).contains(&calls), "{calls} calls for: {job:#}");
        figures.second_calls += calls - 1;
        figures.unknown += unknown;
    }
    figures
}

/// What was spent, once every job has ended, also those whose clients received no answer, and no budget is reserved any more.
pub(crate) async fn settled_usage(services: &[Service]) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let jobs = services[0].admin_get("/api/v1/admin/jobs?limit=1").await;
        assert_eq!(jobs.status, 200, "{jobs:?}");
        let total = &jobs.body["total"];
        let all: u64 = total.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        let mut usages = Vec::new();
        for service in services {
            usages.push(service.admin_get("/api/v1/admin/usage").await.body);
        }
        if total["succeeded"] == all && usages.iter().all(|usage| usage["budget"]["tokens"]["reserved"] == 0) {
            return usages.swap_remove(0);
        }
        assert!(Instant::now() < deadline, "jobs run or budget is reserved: {total:#} {usages:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asserts that what Claude billed lies between the ledger and the ledger with all that is at risk, and within the budget.
pub(crate) fn assert_ledger(usage: &Value, calls: &[Received]) {
    let days = usage["days"].as_array().unwrap();
    // A test may run at midnight.
    let sum = |part: &dyn Fn(&Value) -> u64| days.iter().map(|day| part(&day["total"])).sum::<u64>();
    let number = |value: &Value| value.as_u64().unwrap();
    let input = |total: &Value| {
        ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
            .map(|kind| number(&total[kind]))
            .iter()
            .sum()
    };
    let ledger = [sum(&input), sum(&|total| number(&total["output_tokens"]))];
    let at_risk = ["input_tokens", "output_tokens"].map(|kind| sum(&|total| number(&total["at_risk"][kind])));
    let billed = calls
        .iter()
        .fold([0, 0], |[input, output], call| [input + call.usage.total_input(), output + call.usage.output_tokens]);
    for kind in 0..2 {
        let within = ledger[kind]..=ledger[kind] + at_risk[kind];
        assert!(
            within.contains(&billed[kind]),
            "Claude billed {billed:?}, and the ledger has {ledger:?} and {at_risk:?} at risk"
        );
    }
    let budget = number(&usage["budget"]["tokens"]["limit"]);
    let spent = number(&usage["budget"]["tokens"]["spent"]);
    assert!(billed[0] + billed[1] <= budget, "{billed:?} of {budget} tokens");
    let is_one_day = days.iter().filter(|day| day["total"]["calls"] != 0).count() == 1;
    let all = ledger.iter().chain(&at_risk).sum::<u64>();
    assert!(spent == all || !is_one_day, "the budget counts {spent} tokens, and the ledger {all}");
}

/// Asserts that every minute, and every few seconds, had no more calls than the account allows.
pub(crate) fn assert_calls_a_minute(calls: &[Received]) {
    let mut at: Vec<SystemTime> = calls.iter().map(|call| call.at).collect();
    at.sort_unstable();
    let most = |window: Duration| {
        let within = |first: usize| at[first..].partition_point(|later| *later < at[first] + window);
        (0..at.len()).map(within).max().unwrap_or_default()
    };
    let (a_minute, a_moment) = (most(Duration::from_mins(1)), most(Duration::from_secs(5)));
    let limit = CALLS_PER_MINUTE as usize;
    assert!(a_minute <= limit, "{a_minute} calls in a minute, and {limit} are allowed");
    // Half a second's calls at once, and those that a busy machine delayed.
    let limit = limit * 11 / 120 + 2 * WORKERS;
    assert!(a_moment <= limit, "{a_moment} calls in 5 s, and {limit} are allowed");
    println!("  at most {a_minute} calls in a minute, {a_moment} in 5 s");
}

/// Asserts that greedy callers get about the same number of calls while each of them has a job that waits.
pub(crate) fn assert_fair_turns<'a>(accepted: impl Iterator<Item = &'a Accepted>, calls: &[Received]) {
    let mut first_calls = HashMap::<&str, SystemTime>::new();
    for call in calls {
        first_calls.entry(&call.question).and_modify(|at| *at = call.at.min(*at)).or_insert(call.at);
    }
    // Caller, and from when until when the job waited.
    let jobs = accepted.filter_map(|job| Some((job.caller?, job.at, first_calls[job.query.as_str()])));
    let jobs: Vec<(usize, SystemTime, SystemTime)> = jobs.collect();
    let mut turns = [0; GREEDY.len()];
    for (caller, _, called_at) in &jobs {
        let waits = |other| {
            jobs.iter()
                .any(|(of, from, until)| *of == other && *from + JITTER < *called_at && *called_at + JITTER < *until)
        };
        if (0..GREEDY.len()).all(waits) {
            turns[*caller] += 1;
        }
    }
    println!("  calls of greedy callers while all waited: {turns:?}");
    let all: usize = turns.iter().sum();
    assert!(all >= ENOUGH_CALLS, "greedy callers hardly ever waited: {turns:?}");
    let share = all / GREEDY.len();
    assert!(turns.iter().all(|calls| calls * 5 >= share * 4), "callers that always waited were given {turns:?} calls");
}
