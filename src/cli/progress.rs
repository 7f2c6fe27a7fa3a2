//! The progress bar of a pending job: its stage and the estimated time left.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    client::{Client, PATIENCE, RETRY_PAUSE},
    terminal::{self, clean},
};

const STEPS: u64 = 1_000;

const USUAL_ANSWER_TIME: Duration = Duration::from_secs(20);

/// Waits for the end of a job, also while the service restarts. Returns the ended job.
pub(super) async fn follow(client: &Client, id: &str) -> anyhow::Result<Value> {
    let bar = terminal::bar(STEPS, "{elapsed:>4}  {msg}")?;
    let mut away_since = None;
    loop {
        // A short wait, so that the bar moves.
        match client.get(&format!("/api/v1/jobs/{id}?wait=1")).await {
            Ok(job) if has_ended(&job) => {
                bar.finish_and_clear();
                return Ok(job);
            }
            Ok(job) => {
                away_since = None;
                let left = job["queue"]["eta_seconds"].as_u64().map(Duration::from_secs);
                bar.set_message(stage(&job));
                bar.set_position(bar.position().max(filled(bar.elapsed(), left)));
            }
            Err(error) if error.may_pass() => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(error.into());
                }
                bar.set_message("the service does not answer; trying again".to_owned());
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn has_ended(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("succeeded" | "failed" | "cancelled"))
}

fn stage(job: &Value) -> String {
    let queue = &job["queue"];
    let stage = match (job["status"].as_str(), queue["waiting_for"].as_str()) {
        (Some("running"), _) => match job["attempts_made"].as_u64() {
            Some(attempt @ 2..) => format!("running, attempt {attempt}"),
            _ => "running".to_owned(),
        },
        (_, Some("worker")) => match queue["position"].as_u64() {
            Some(position @ 2..) => format!("waiting, {} ahead", position - 1),
            _ => "waiting for a worker".to_owned(),
        },
        (_, Some("rate_limit")) => "waiting for the account's rate limit".to_owned(),
        (_, Some("gate")) => "waiting: Claude accepts no calls at the moment".to_owned(),
        (_, Some("run_at")) => "scheduled".to_owned(),
        (_, Some("retry")) => "waiting for the next attempt".to_owned(),
        (_, Some("paused")) => "waiting: the queue is paused".to_owned(),
        (_, Some("same_question")) => "waiting: a job with the same question is running".to_owned(),
        (_, Some("budget")) => "waiting: the daily budget is used up".to_owned(),
        (status, other) => clean(other.or(status).unwrap_or("waiting")),
    };
    match queue["eta_seconds"].as_u64() {
        Some(seconds) => format!("{stage}, about {} left", readable(seconds)),
        None => stage,
    }
}

pub(super) fn readable(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6_000 => format!("{} min", seconds.div_ceil(60)),
        6_000..172_800 => format!("{} h", seconds.div_ceil(3_600)),
        _ => format!("{} days", seconds.div_ceil(86_400)),
    }
}

/// The position of the bar: by the estimate, or slower and slower without one. Never full before the end.
fn filled(elapsed: Duration, left: Option<Duration>) -> u64 {
    let left = left.unwrap_or(USUAL_ANSWER_TIME / 2).max(Duration::from_secs(1));
    let part = elapsed.as_millis() * u128::from(STEPS) / (elapsed + left).as_millis();
    u64::try_from(part).unwrap_or(STEPS).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_stage_is_shown_with_its_estimate() {
        let cases = [
            (json!({"status": "running", "attempts_made": 1}), "running"),
            (json!({"status": "running", "attempts_made": 3}), "running, attempt 3"),
            (
                json!({"status": "queued", "queue": {"position": 4, "eta_seconds": 35, "waiting_for": "worker"}}),
                "waiting, 3 ahead, about 35 s left",
            ),
            (
                json!({"status": "scheduled", "queue": {"eta_seconds": 7200, "waiting_for": "run_at"}}),
                "scheduled, about 2 h left",
            ),
            (json!({"status": "queued", "queue": {"waiting_for": "new_reason\u{1b}[2J"}}), "new_reason"),
        ];
        for (job, expected) in cases {
            assert_eq!(stage(&job), expected);
        }
    }

    #[test]
    fn the_bar_moves_and_is_never_full_before_the_end() {
        let seconds = Duration::from_secs;
        assert_eq!(filled(seconds(0), Some(seconds(30))), 0);
        assert_eq!(filled(seconds(10), Some(seconds(10))), STEPS / 2);
        assert_eq!(filled(seconds(1_000_000), Some(seconds(0))), STEPS - 1);
        assert!(filled(seconds(20), None) > filled(seconds(10), None));
    }
}
