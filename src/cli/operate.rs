//! `ceoagent stats`, `pause` and `resume`: shows the state of a service, pauses and resumes its queue.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use super::{
    client::Connection,
    serve,
    terminal::{clean, colours, dollars, print_json, text},
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent stats
  ceoagent stats --json | jq .usage.budget
  ceoagent pause      no job starts until `resume`, also after a restart; running attempts finish
  ceoagent resume

These commands need the admin token.

Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
pub struct Operate {
    /// Print the service's answer as JSON; stats adds today's cost as `usage`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Stats,
    Pause,
    Resume,
}

impl Operate {
    pub(super) fn run(&self, action: Action) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            let client = self.connection.client()?;
            let mut stats = client.get("/api/v1/admin/stats").await?;
            let (answer, said) = match action {
                Action::Stats => {
                    let mut usage = client.get("/api/v1/admin/usage?days=1").await?;
                    // Only today is shown.
                    usage.as_object_mut().and_then(|usage| usage.remove("days"));
                    stats["usage"] = usage;
                    let said = told(&stats, colours());
                    (stats, said)
                }
                // The answer does not say whether the queue was paused before.
                Action::Pause => {
                    let said = match pause(&stats) {
                        Some(before) => format!("the queue is already paused, {before}\n"),
                        None => "the queue is paused\n".to_owned(),
                    };
                    (client.post("/api/v1/admin/queue/pause").await?, said)
                }
                Action::Resume => {
                    let said = match pause(&stats) {
                        Some(before) => format!("the queue is resumed; it was paused {before}\n"),
                        None => "the queue was not paused\n".to_owned(),
                    };
                    (client.post("/api/v1/admin/queue/resume").await?, said)
                }
            };
            match self.json {
                true => print_json(&answer)?,
                false => write!(std::io::stdout(), "{said}")?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Who paused the queue and when, if it is paused.
fn pause(stats: &Value) -> Option<String> {
    let pause = stats["paused"].as_object()?;
    let of = |name: &str| pause.get(name).and_then(Value::as_str).map(clean);
    let since = of("at").map(|at| format!(" since {at}")).unwrap_or_default();
    Some(format!("by {}{since}", of("by").as_deref().unwrap_or("an operator")))
}

/// The state of a service, one line for each fact.
fn told(stats: &Value, colours: bool) -> String {
    let dim = console::Style::new().force_styling(colours).dim();
    let loud = console::Style::new().force_styling(colours).yellow();
    let mut page = String::new();
    let mut line = |name: &str, value: String| {
        page.push_str(&format!("{} {value}\n", dim.apply_to(format!("{name:<12}"))));
    };
    let count = |object: &str, field: &str| stats[object][field].as_u64().unwrap_or_default();
    let jobs = ["queued", "scheduled", "running", "succeeded", "failed", "cancelled"];
    line("Jobs", jobs.map(|status| format!("{} {status}", count("jobs", status))).join(", "));
    if let Some(at) = stats["oldest_queued_at"].as_str() {
        line("Oldest", format!("queued since {}", clean(at)));
    }
    let seconds = stats["attempt_seconds"].as_f64().unwrap_or_default();
    // Until an attempt has succeeded, the service uses a default.
    let guess = if count("since_start", "succeeded") == 0 { " (default, not measured yet)" } else { "" };
    line(
        "Workers",
        format!(
            "{}, {} running attempts, {seconds:.1} s per attempt{guess}",
            stats["workers"], stats["running_attempts"]
        ),
    );
    line("Waiting", format!("{} clients", stats["waiters"]));
    let ended = ["submitted", "succeeded", "failed", "cancelled"];
    line("Since start", ended.map(|what| format!("{} {what}", count("since_start", what))).join(", "));
    let rate = stats["limits"]["calls_per_second"].as_f64().unwrap_or_default();
    line("Limits", format!("{rate:.1} calls a second, at most {} at once", stats["limits"]["calls_at_once"]));
    let budget = &stats["usage"]["budget"];
    line("Spent today", spent(&stats["usage"]["spent_today"]));
    if !budget.is_null() {
        let used = used(budget);
        let is_loud = budget["is_nearly_used"] == true || budget["is_reached"] == true;
        line("Budget", if is_loud { loud.apply_to(used).to_string() } else { used });
    }
    if let Some(gate) = stats["limits"]["gate"]["detail"].as_str() {
        line("Gate", loud.apply_to(format!("closed: {}", clean(gate))).to_string());
    }
    if budget["is_reached"] == true {
        let until = text(budget, "resets_at");
        let why = format!("the rest of the daily budget is too small for a call; the queue continues at {until}");
        line("Blocked", loud.apply_to(why).to_string());
    }
    if let Some(pause) = pause(stats) {
        line("Paused", loud.apply_to(pause).to_string());
    }
    for trouble in stats["troubles"].as_array().into_iter().flatten() {
        line("Trouble", loud.apply_to(text(trouble, "message")).to_string());
    }
    page
}

/// Tokens and cost of a day.
fn spent(sums: &Value) -> String {
    let count = |sums: &Value, field: &str| sums[field].as_u64().unwrap_or_default();
    let kinds = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
    let tokens = |sums: &Value| kinds.iter().map(|kind| count(sums, kind)).sum::<u64>();
    let cost = |sums: &Value| dollars(sums["cost_usd"].as_f64().unwrap_or_default());
    let mut text = format!("{} tokens, {}, {} calls", tokens(sums), cost(sums), count(sums, "calls"));
    let unpriced = count(sums, "unpriced_calls");
    if unpriced > 0 {
        text.push_str(&format!(" ({unpriced} of models without a known price)"));
    }
    let risk = &sums["at_risk"];
    if count(risk, "calls") > 0 {
        text.push_str(&format!(
            "; at most {} tokens, {} more for calls with unknown outcome",
            tokens(risk),
            cost(risk)
        ));
    }
    text
}

/// The used part of a budget.
fn used(budget: &Value) -> String {
    let tokens = &budget["tokens"];
    let tokens = (!tokens.is_null()).then(|| format!("{} of {} tokens used", tokens["spent"], tokens["limit"]));
    let cost = &budget["cost_usd"];
    let cost = cost["limit"].as_f64().map(|limit| {
        let spent = cost["spent"].as_f64().unwrap_or_default();
        format!("{spent:.2} of {limit:.2} US dollars used")
    });
    tokens.into_iter().chain(cost).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stats(succeeded: u64, budget: &Value) -> Value {
        json!({
            "attempt_seconds": 20.0, "workers": 8, "running_attempts": 0, "paused": null,
            "since_start": {"succeeded": succeeded},
            "usage": {"budget": budget, "spent_today": {
                "calls": 3, "input_tokens": 1000, "output_tokens": 200, "cache_creation_input_tokens": 30,
                "cache_read_input_tokens": 4, "cost_usd": 0.0123, "unpriced_calls": 1,
                "at_risk": {"calls": 1, "input_tokens": 10, "output_tokens": 16000, "cost_usd": 0.16}
            }}
        })
    }

    #[test]
    fn the_spending_is_shown_and_the_budget_if_there_is_one() {
        let text = told(&stats(1, &Value::Null), false);
        let spent = "1234 tokens, 0.0123 US dollars, 3 calls (1 of models without a known price); \
                     at most 16010 tokens, 0.1600 US dollars more for calls with unknown outcome";
        assert!(text.contains(spent), "{text}");
        assert!(!text.contains("Budget") && !text.contains("Blocked"), "{text}");
        let budget = json!({
            "tokens": {"limit": 100_000, "spent": 85_000}, "cost_usd": {"limit": 5.0, "spent": 1.234},
            "is_reached": true, "is_nearly_used": true, "resets_at": "2026-11-24T00:00:00.000Z"
        });
        let text = told(&stats(1, &budget), false);
        for words in
            ["85000 of 100000 tokens used, 1.23 of 5.00 US dollars used", "continues at 2026-11-24T00:00:00.000Z"]
        {
            assert!(text.contains(words), "{words:?} is not in {text}");
        }
    }

    #[test]
    fn the_duration_of_an_attempt_is_marked_as_a_default_until_one_is_measured() {
        assert!(told(&stats(0, &Value::Null), false).contains("20.0 s per attempt (default, not measured yet)"));
        assert!(!told(&stats(1, &Value::Null), false).contains("default"));
    }

    #[test]
    fn a_pause_is_shown_with_its_operator() {
        let stats = json!({"paused": {"by": "admin_token", "at": "2026-11-24T09:30:00.000Z"}});
        assert_eq!(pause(&stats).as_deref(), Some("by admin_token since 2026-11-24T09:30:00.000Z"));
        assert_eq!(pause(&json!({"paused": null})), None);
    }
}
