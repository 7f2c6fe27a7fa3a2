//! The schema of memos is compiled before the first question, at a bounded cost that is in the ledger and paid once a day.

use std::{path::Path, time::Duration};

use ceoagent::{
    app::{App, Tuning},
    claude::simulator::{ErrorAnswer, Fault, Simulator},
    clock::{Clock, Timestamp},
};
use serde_json::{Value, json};

use crate::harness::{Service, settings, simulator};

/// 2026-11-27, when the prices were looked up.
fn clock() -> Clock {
    Clock::manual(Timestamp::from_millis(1_795_737_600_000))
}

/// A service that warms up at once, or never.
async fn start(claude: &Simulator, folder: &Path, clock: &Clock, warms_up: bool) -> (App, Service) {
    let settings = settings(&claude.base_url(), folder, &["--shutdown-grace=5"]);
    let tuning = Tuning { warm_up_after: warms_up.then_some(Duration::ZERO), ..Tuning::default() };
    let app = App::start_tuned(&settings, tuning, clock.clone()).await.unwrap();
    let service = Service::in_process(&app);
    (app, service)
}

/// Gives a service time for a call that it must not make.
async fn ask_around(service: &Service) {
    for _ in 0..20 {
        service.get("/health").await;
    }
}

/// What was spent, once so many calls are in the ledger or at risk.
async fn spent(service: &Service, calls: u64) -> Value {
    loop {
        let spent = service.admin_get("/api/v1/admin/usage").await.body["spent_today"].clone();
        if spent["calls"].as_u64().unwrap() + spent["at_risk"]["calls"].as_u64().unwrap() >= calls {
            return spent;
        }
    }
}

async fn schema_used_at(service: &Service) -> Value {
    service.admin_get("/api/v1/admin/stats").await.body["models"][0]["schema_used_at"].clone()
}

#[tokio::test]
async fn an_idle_start_makes_one_small_call_that_is_billed_and_no_restart_within_a_day_makes_another() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    let spent = spent(&service, 1).await;
    let calls = claude.calls();
    let (body, usage) = (calls[0].json(), calls[0].usage);
    assert_eq!((&body["max_tokens"], body.get("system")), (&json!(1), None), "{body:#}");
    assert_eq!(body["output_config"]["format"]["type"], "json_schema");
    assert_eq!((&spent["input_tokens"], &spent["output_tokens"]), (&json!(usage.input_tokens), &json!(1)), "{spent:#}");
    let cost = spent["cost_usd"].as_f64().unwrap();
    assert!(cost > 0.0 && cost < 0.01, "{cost}");
    assert_eq!(schema_used_at(&service).await, json!(clock.now()));
    app.stop().await;
    for _ in 0..3 {
        clock.advance(Duration::from_hours(7));
        let (app, service) = start(&claude, folder.path(), &clock, true).await;
        ask_around(&service).await;
        app.stop().await;
    }
    clock.advance(Duration::from_hours(3));
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    claude.wait_for_calls(2).await;
    ask_around(&service).await;
    app.stop().await;
    assert_eq!(claude.counters().calls, 2, "24 hours after the first");
}

#[tokio::test]
async fn a_question_uses_the_schema_too_and_the_use_outlives_a_restart() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    let (app, service) = start(&claude, folder.path(), &clock, false).await;
    service.ended(&service.submit("Who compiles it?").await.id()).await;
    app.stop().await;
    clock.advance(Duration::from_hours(22));
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    ask_around(&service).await;
    assert_ne!(schema_used_at(&service).await, Value::Null);
    app.stop().await;
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn with_jobs_in_the_queue_no_call_is_made_but_theirs() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    let (app, service) = start(&claude, folder.path(), &clock, false).await;
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let id = service.submit("And this?").await.id();
    app.stop().await;
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    ask_around(&service).await;
    assert_eq!(claude.counters().calls, 0);
    service.admin_post("/api/v1/admin/queue/resume", &json!({})).await;
    assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    app.stop().await;
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_warm_up_that_a_stop_cuts_off_is_at_risk_and_not_repeated() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    claude.script([Fault::Hold]);
    let (app, _) = start(&claude, folder.path(), &clock, true).await;
    claude.wait_for_calls(1).await;
    app.stop().await;
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    let spent = spent(&service, 1).await;
    assert_eq!((&spent["calls"], &spent["at_risk"]["calls"]), (&json!(0), &json!(1)), "{spent:#}");
    assert!(spent["at_risk"]["cost_usd"].as_f64().unwrap() < 0.05, "{spent:#}");
    ask_around(&service).await;
    app.stop().await;
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_warm_up_that_fails_unbilled_stops_nothing_and_is_made_at_the_next_start() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    claude.script([ErrorAnswer::status(401).into()]);
    let (app, service) = start(&claude, folder.path(), &clock, true).await;
    claude.wait_for_calls(1).await;
    assert_eq!(service.ended(&service.submit("And yet?").await.id()).await.body["status"], "succeeded");
    let day = service.admin_get("/api/v1/admin/usage").await.body["spent_today"].clone();
    assert_eq!((&day["calls"], &day["at_risk"]["calls"]), (&json!(1), &json!(0)), "only the question is billed");
    app.stop().await;
}

#[tokio::test]
async fn prices_that_are_older_than_sixty_days_are_noted_but_degrade_nothing() {
    let (claude, folder, clock) = (simulator().await, tempfile::tempdir().unwrap(), clock());
    let (app, service) = start(&claude, folder.path(), &clock, false).await;
    let notes = async || {
        let ready = service.get("/health/ready").await.body;
        let stats = service.admin_get("/api/v1/admin/stats").await.body;
        assert_eq!((ready["status"].as_str(), ready.get("reasons")), (Some("ready"), None), "{ready:#}");
        (ready["notes"].clone(), stats["notes"].clone())
    };
    assert_eq!(notes().await, (Value::Null, json!([])));
    clock.advance(Duration::from_hours(24 * 60));
    assert_eq!(notes().await, (Value::Null, json!([])), "60 days are not more than 60");
    clock.advance(Duration::from_hours(24));
    let (ready, stats) = notes().await;
    assert_eq!((&ready, &ready[0]["code"]), (&stats, &json!("price_outdated")));
    let message = ready[0]["message"].as_str().unwrap();
    assert!(message.contains("claude-sonnet-5-5") && message.contains("MODEL_PRICES"), "{message}");
    app.stop().await;
}
