//! `ceoagent stats`, `pause` and `resume`: shows the state of a service, pauses and resumes its queue.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use super::{
    client::Connection,
    terminal::{clean, colours, count, dollars, facts, items, print_json, text},
};

const STATS: &str = "/api/v1/admin/stats";

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent stats
  ceoagent stats --json | jq .usage.budget
  ceoagent pause      no job starts until `resume`, also after a restart; running attempts finish
  ceoagent resume

These commands need the admin token.

Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
pub(super) struct Operate {
    /// Print the service's answer as JSON; stats adds today's cost as `usage`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Operate {
    pub(super) async fn stats(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut stats = client.get(STATS).await?;
        let mut usage = client.get("/api/v1/admin/usage?days=1").await?;
        // Only today is shown.
        usage.as_object_mut().and_then(|usage| usage.remove("days"));
        stats["usage"] = usage;
        let text = describe(&stats, colours());
        self.print(&stats, &text)
    }

    pub(super) async fn pause(&self) -> anyhow::Result<ExitCode> {
        let text = |before| match before {
            Some(before) => format!("the queue is already paused, {before}\n"),
            None => "the queue is paused\n".to_owned(),
        };
        self.switch("pause", text).await
    }

    pub(super) async fn resume(&self) -> anyhow::Result<ExitCode> {
        let text = |before| match before {
            Some(before) => format!("the queue is resumed; it was paused {before}\n"),
            None => "the queue was not paused\n".to_owned(),
        };
        self.switch("resume", text).await
    }

    /// `text` gets who had paused the queue, which the service's answer does not say.
    async fn switch(&self, action: &str, text: fn(Option<String>) -> String) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let before = pause(&client.get(STATS).await?);
        let answer = client.post(&format!("/api/v1/admin/queue/{action}")).await?;
        self.print(&answer, &text(before))
    }

    fn print(&self, answer: &Value, text: &str) -> anyhow::Result<ExitCode> {
        match self.json {
            true => print_json(answer)?,
            false => write!(std::io::stdout(), "{text}")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn pause(stats: &Value) -> Option<String> {
    let pause = &stats["paused"];
    let since = pause["at"].as_str().map(|at| format!(" since {}", clean(at))).unwrap_or_default();
    pause.is_object().then(|| format!("by {}{since}", clean(pause["by"].as_str().unwrap_or("an operator"))))
}

fn describe(stats: &Value, colours: bool) -> String {
    let warning = console::Style::new().force_styling(colours).yellow();
    let warn = |text: String| warning.apply_to(text).to_string();
    let counts = |object: &str, names: &[&str]| {
        names.iter().map(|name| format!("{} {name}", count(&stats[object], name))).collect::<Vec<_>>().join(", ")
    };
    let jobs = ["queued", "scheduled", "running", "succeeded", "failed", "cancelled"];
    let mut lines = vec![("Jobs", counts("jobs", &jobs))];
    if let Some(at) = stats["oldest_queued_at"].as_str() {
        lines.push(("Oldest", format!("queued since {}", clean(at))));
    }
    let seconds = stats["attempt_seconds"].as_f64().unwrap_or_default();
    // Until an attempt has succeeded, the service uses a default.
    let guess = if count(&stats["jobs"], "succeeded") == 0 { " (default, not measured yet)" } else { "" };
    let (workers, running) = (&stats["workers"], &stats["running_attempts"]);
    let (limits, usage) = (&stats["limits"], &stats["usage"]);
    let rate = limits["calls_per_second"].as_f64().unwrap_or_default();
    lines.extend([
        ("Workers", format!("{workers}, {running} running attempts, {seconds:.1} s per attempt{guess}")),
        ("Waiting", format!("{} clients", stats["waiters"])),
        ("Since start", counts("since_start", &["submitted", "succeeded", "failed", "cancelled"])),
        ("Limits", format!("{rate:.1} calls a second, at most {} at once", limits["calls_at_once"])),
        ("Spent today", spent(&usage["spent_today"])),
    ]);
    let budget = &usage["budget"];
    let is_reached = budget["is_reached"] == true;
    if !budget.is_null() {
        let used = used(budget);
        lines.push(("Budget", if is_reached || budget["is_nearly_used"] == true { warn(used) } else { used }));
    }
    if let Some(gate) = limits["gate"]["detail"].as_str() {
        lines.push(("Gate", warn(format!("closed: {}", clean(gate)))));
    }
    if is_reached {
        let until = text(budget, "resets_at");
        let why = format!("the rest of the daily budget is too small for a call; the queue continues at {until}");
        lines.push(("Blocked", warn(why)));
    }
    lines.extend(pause(stats).map(|pause| ("Paused", warn(pause))));
    if let Some(since) = stats["no_dispatcher_since"].as_str() {
        lines.push(("Blocked", warn(format!("no node has handed out calls to Claude since {}", clean(since)))));
    }
    lines.extend(items(stats, "troubles").iter().map(|trouble| ("Trouble", warn(text(trouble, "message")))));
    lines.extend(items(stats, "notes").iter().map(|note| ("Note", warn(text(note, "message")))));
    facts(&lines, 12, colours)
}

fn spent(sums: &Value) -> String {
    let kinds = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
    let cost = |sums: &Value| {
        let tokens: u64 = kinds.iter().map(|kind| count(sums, kind)).sum();
        format!("{tokens} tokens, {}", dollars(sums["cost_usd"].as_f64().unwrap_or_default()))
    };
    let mut text = format!("{}, {} calls", cost(sums), count(sums, "calls"));
    let unpriced = count(sums, "unpriced_calls");
    if unpriced > 0 {
        text += &format!(" ({unpriced} of models without a known price)");
    }
    let risk = &sums["at_risk"];
    if count(risk, "calls") > 0 {
        text += &format!("; at most {} more for calls with unknown outcome", cost(risk));
    }
    text
}

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
            "jobs": {"succeeded": succeeded},
            "usage": {"budget": budget, "spent_today": {
                "calls": 3, "input_tokens": 1000, "output_tokens": 200, "cache_creation_input_tokens": 30,
                "cache_read_input_tokens": 4, "cost_usd": 0.0123, "unpriced_calls": 1,
                "at_risk": {"calls": 1, "input_tokens": 10, "output_tokens": 16000, "cost_usd": 0.16}
            }}
        })
    }

    #[test]
    fn the_spending_is_shown_and_the_budget_if_there_is_one() {
        let text = describe(&stats(1, &Value::Null), false);
        let spent = "1234 tokens, 0.0123 US dollars, 3 calls (1 of models without a known price); \
                     at most 16010 tokens, 0.1600 US dollars more for calls with unknown outcome";
        assert!(text.contains(spent), "{text}");
        assert!(!text.contains("Budget") && !text.contains("Blocked"), "{text}");
        let budget = json!({
            "tokens": {"limit": 100_000, "spent": 85_000}, "cost_usd": {"limit": 5.0, "spent": 1.234},
            "is_reached": true, "is_nearly_used": true, "resets_at": "2026-11-24T00:00:00.000Z"
        });
        let text = describe(&stats(1, &budget), false);
        for words in
            ["85000 of 100000 tokens used, 1.23 of 5.00 US dollars used", "continues at 2026-11-24T00:00:00.000Z"]
        {
            assert!(text.contains(words), "{words:?} is not in {text}");
        }
    }

    #[test]
    fn the_duration_of_an_attempt_is_marked_as_a_default_until_one_is_measured() {
        assert!(describe(&stats(0, &Value::Null), false).contains("20.0 s per attempt (default, not measured yet)"));
        assert!(!describe(&stats(1, &Value::Null), false).contains("default"));
    }

    #[test]
    fn the_time_since_which_no_node_has_been_the_dispatcher_is_shown() {
        let mut stats = stats(1, &Value::Null);
        stats["no_dispatcher_since"] = json!("2026-11-24T09:30:00.000Z");
        let text = describe(&stats, false);
        let line = text.lines().find(|line| line.starts_with("Blocked")).unwrap();
        assert!(line.ends_with("no node has handed out calls to Claude since 2026-11-24T09:30:00.000Z"), "{text}");
    }

    #[test]
    fn what_an_operator_should_look_at_is_shown() {
        let mut stats = stats(1, &Value::Null);
        stats["notes"] =
            json!([{"field": "settings", "code": "settings_differ", "message": "other values of API_KEYS"}]);
        let text = describe(&stats, false);
        assert!(
            text.lines().any(|line| line.starts_with("Note") && line.ends_with("other values of API_KEYS")),
            "{text}"
        );
    }

    #[test]
    fn a_pause_is_shown_with_its_operator() {
        let stats = json!({"paused": {"by": "admin_token", "at": "2026-11-24T09:30:00.000Z"}});
        assert_eq!(pause(&stats).as_deref(), Some("by admin_token since 2026-11-24T09:30:00.000Z"));
        assert_eq!(pause(&json!({"paused": null})), None);
    }
}
