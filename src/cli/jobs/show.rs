//! A job in words, without its memo.

use std::io::Write;

use serde_json::Value;

use crate::cli::{
    progress,
    terminal::{clean, colours, count, dollars, facts, items, text},
    webhooks::outcome,
};

pub(super) fn describe(job: &Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", facts(&lines(job), 10, colours()))?)
}

fn lines(job: &Value) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut line = |name, value: String| {
        if !value.is_empty() {
            lines.push((name, value));
        }
    };
    for (name, field) in [
        ("Job", "id"),
        ("Status", "status"),
        ("Question", "query"),
        ("Caller", "caller"),
        ("Created", "created_at"),
        ("Not before", "run_at"),
        ("Deadline", "deadline_at"),
        ("Started", "started_at"),
        ("Finished", "finished_at"),
    ] {
        line(name, text(job, field));
    }
    line("Queue", queue(&job["queue"]));
    let attempts = items(job, "attempts");
    let error = &job["error"];
    for attempt in attempts {
        // The job's own error has its own line.
        let why = attempt["error"]["message"].as_str().filter(|why| error["message"] != **why);
        let why = why.map_or(String::new(), |why| format!(": {}", clean(why)));
        let (outcome, at) = (text(attempt, "outcome"), text(attempt, "finished_at"));
        let times = attempt["releases"].as_u64().filter(|count| *count > 1);
        let times = times.map_or(String::new(), |count| format!(" {count} times in a row"));
        line("Attempt", format!("{} {outcome}{times}, {at}{why}", attempt["number"]));
    }
    if error.is_object() {
        line("Error", format!("{} ({})", text(error, "message"), text(error, "code")));
    }
    let answered = attempts.iter().rev().map(|attempt| text(attempt, "model")).find(|model| !model.is_empty());
    line("Model", answered.unwrap_or_else(|| text(job, "model")));
    if job["usage"].is_object() {
        line("Tokens", tokens(&job["usage"]));
    }
    line("Cost", job["cost_usd"].as_f64().map_or(String::new(), dollars));
    line("Webhook", webhook(job));
    let labels = job["metadata"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| clean(&format!("{key}={}", value.as_str().unwrap_or_default())));
    line("Metadata", labels.collect::<Vec<_>>().join(" "));
    lines
}

fn queue(queue: &Value) -> String {
    let position = queue["position"].as_u64().map(|position| format!("position {position}"));
    let cause = queue["waiting_for"].as_str().map(|cause| format!("waits for {}", clean(cause)));
    let eta = queue.is_object().then(|| match queue["eta_seconds"].as_u64() {
        Some(seconds) => format!("answer expected in about {}", progress::readable(seconds)),
        None => "no estimate".to_owned(),
    });
    [position, cause, eta].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn tokens(usage: &Value) -> String {
    let cached = count(usage, "cache_read_input_tokens");
    let input = count(usage, "input_tokens") + count(usage, "cache_creation_input_tokens") + cached;
    let cached = if cached == 0 { String::new() } else { format!(" ({cached} of them from the cache)") };
    format!("{input} input{cached}, {} output", count(usage, "output_tokens"))
}

fn webhook(job: &Value) -> String {
    let delivery = &job["delivery"];
    let state = match delivery["state"].as_str() {
        None => return String::new(),
        Some("waiting") => "sent when the job ends".to_owned(),
        Some("given_up") => "not delivered, no further tries".to_owned(),
        Some("disabled") => "disabled by the receiver".to_owned(),
        Some("skipped") => "not sent: callback_events does not have the event, or the job was imported".to_owned(),
        Some(state) => clean(state),
    };
    let tries = items(delivery, "tries");
    let tried = tries.last().map(|last| format!("try {}: {}", tries.len(), outcome(last)));
    let next = delivery["next_at"].as_str().map(|at| format!("next try {}", clean(at)));
    let state = [Some(state), tried, next].into_iter().flatten().collect::<Vec<_>>().join(", ");
    format!("{state}, to {}", text(job, "callback_url"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn described(job: &Value) -> Vec<String> {
        lines(job).into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn a_waiting_job_shows_its_position_estimate_and_webhook() {
        let job = json!({
            "status": "queued", "query": "Why?\u{1b}[2J", "model": "m", "callback_url": "https://a.example/hook",
            "queue": {"position": 3, "eta_seconds": 35, "waiting_for": "worker"}, "delivery": {"state": "waiting"}
        });
        assert_eq!(
            described(&job),
            [
                "Status: queued",
                "Question: Why?",
                "Queue: position 3, waits for worker, answer expected in about 35 s",
                "Model: m",
                "Webhook: sent when the job ends, to https://a.example/hook",
            ]
        );
        let held = json!({"queue": {"position": 1, "waiting_for": "paused"}});
        assert_eq!(described(&held), ["Queue: position 1, waits for paused, no estimate"]);
    }

    #[test]
    fn a_failed_job_shows_its_error_once_and_its_cost() {
        let job = json!({
            "status": "failed", "error": {"code": "refused", "message": "it did not want to"}, "cost_usd": 0.0123,
            "attempts": [
                {"number": 1, "outcome": "failed", "finished_at": "t1", "error": {"message": "too busy"}},
                {"number": 2, "outcome": "failed", "finished_at": "t2", "model": "m",
                    "error": {"message": "it did not want to"}}
            ],
            "usage": {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 5,
                "output_tokens": 7},
            "callback_url": "https://a.example/hook",
            "delivery": {"state": "pending", "next_at": "t9", "tries": [{"http_status": 500}, {"error": "no route"}]}
        });
        assert_eq!(
            described(&job),
            [
                "Status: failed",
                "Attempt: 1 failed, t1: too busy",
                "Attempt: 2 failed, t2",
                "Error: it did not want to (refused)",
                "Model: m",
                "Tokens: 35 input (5 of them from the cache), 7 output",
                "Cost: 0.0123 US dollars",
                "Webhook: pending, try 2: no route, next try t9, to https://a.example/hook",
            ]
        );
    }
}
