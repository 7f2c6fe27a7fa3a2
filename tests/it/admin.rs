//! What an operator does: looks for jobs, acts on many at once, holds the queue, and finds it all on record.

use ceoagent::claude::simulator::Fault;
use serde_json::{Value, json};

use crate::harness::{Answer, Service, Setup, simulator};

const JOBS: &str = "/api/v1/admin/jobs";
const ACTIONS: &str = "/api/v1/admin/jobs/actions";
const AUDIT: &str = "/api/v1/admin/audit";

fn ids(page: &Answer) -> Vec<String> {
    assert_eq!(page.status, 200, "{page:#?}");
    page.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

async fn pause(service: &Service) {
    let paused = service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    assert_eq!((paused.status, &paused.body["paused"]["by"]), (200, &json!("admin_token")), "{paused:#?}");
}

async fn resume(service: &Service) {
    let resumed = service.admin_post("/api/v1/admin/queue/resume", &json!({})).await;
    assert_eq!((resumed.status, &resumed.body["paused"]), (200, &Value::Null), "{resumed:#?}");
}

async fn ask(service: &Service, body: Value) -> String {
    service.post("/api/v1/analyze", &body).await.id()
}

async fn act(service: &Service, body: Value) -> Value {
    let answer = service.admin_post(ACTIONS, &body).await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    answer.body
}

#[tokio::test]
async fn jobs_are_found_by_each_condition_and_by_several() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let memo = ask(&service, json!({"query": "Lager nach ROTTERDAM?", "metadata": {"team": "ops"}})).await;
    service.ended(&memo).await;
    let refused = ask(&service, json!({"query": "Is it legal?", "priority": "high"})).await;
    service.ended(&refused).await;
    pause(&service).await;
    let waits = ask(&service, json!({"query": "And Antwerp?", "model": "claude-fable-5-2"})).await;
    let cases = [
        ("text=rotterdam", vec![&memo]),
        ("text=nowhere", vec![]),
        ("metadata=team=ops", vec![&memo]),
        ("metadata=team=op", vec![]),
        ("code=refused", vec![&refused]),
        ("priority=high", vec![&refused]),
        ("model=claude-fable-5-2", vec![&waits]),
        ("model=claude-sonnet-5-5", vec![&refused, &memo]),
        ("status=failed&status=queued&order=oldest", vec![&refused, &waits]),
        ("priority=normal&text=a&order=oldest", vec![&memo, &waits]),
        ("created_from=2099-01-01T00:00:00Z", vec![]),
        ("created_before=2099-01-01T00:00:00Z", vec![&waits, &refused, &memo]),
        ("caller=nobody", vec![]),
        (&format!("ids={memo}&ids={waits}"), vec![&waits, &memo]),
        (&format!("ids={memo},{waits}&status=queued"), vec![&waits]),
    ];
    for (condition, expected) in cases {
        let found = ids(&service.admin_get(&format!("{JOBS}?{condition}")).await);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{condition}");
    }
    let uncounted = service.admin_get(&format!("{JOBS}?text=a")).await.body;
    assert_eq!((&uncounted["matched"], &uncounted["unfinished_search"]), (&Value::Null, &Value::Null));
    let zero = json!({"queued": 0, "scheduled": 0, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0});
    for (condition, counted) in [
        ("", vec!["queued", "succeeded", "failed"]),
        ("&status=failed&status=cancelled", vec!["failed"]),
        ("&text=a&limit=1", vec!["queued", "succeeded", "failed"]),
        ("&text=antwerp", vec!["queued"]),
        ("&priority=high", vec!["failed"]),
        (&format!("&ids={memo}&status=queued"), vec![]),
    ] {
        let mut expected = zero.clone();
        counted.iter().for_each(|status| expected[*status] = json!(1));
        let matched = service.admin_get(&format!("{JOBS}?count=true{condition}")).await.body["matched"].clone();
        assert_eq!(matched, expected, "{condition}");
    }
    let first = service.admin_get(&format!("{JOBS}?limit=1")).await;
    assert_eq!((ids(&first), &first.body["prev_cursor"]), (vec![waits], &Value::Null));
    let next = first.body["next_cursor"].as_str().unwrap();
    let second = service.admin_get(&format!("{JOBS}?limit=1&cursor={next}")).await;
    assert_eq!(ids(&second), [refused]);
    let prev = second.body["prev_cursor"].as_str().unwrap();
    assert_eq!(ids(&service.admin_get(&format!("{JOBS}?limit=1&cursor={prev}")).await), ids(&first));
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing_and_then_the_action_does_what_it_told() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    pause(&service).await;
    for n in 0..5 {
        ask(&service, json!({"query": format!("Plan {n}?"), "metadata": {"batch": "a"}})).await;
    }
    let other = ask(&service, json!({"query": "Keep me?"})).await;
    let filter = json!({"metadata": {"batch": "a"}});

    let told = act(&service, json!({"action": "cancel", "filter": filter, "dry_run": true})).await;
    assert_eq!((&told["matched"], &told["more"], told.get("changed")), (&json!(5), &json!(false), None), "{told:#}");
    let estimate = &told["estimate"];
    assert!(estimate["input_tokens"].as_u64() > Some(500) && estimate["seconds"].as_f64() > Some(0.0), "{told:#}");
    assert!(estimate["output_tokens"] == 5 * 16_000 && estimate["cost_usd"].as_f64() > Some(0.0), "{told:#}");
    assert_eq!(service.admin_get(JOBS).await.body["total"]["queued"], 6, "nothing was changed");

    let cancelled = act(&service, json!({"action": "cancel", "filter": filter})).await;
    assert_eq!((&cancelled["matched"], &cancelled["changed"]), (&json!(5), &json!(5)), "{cancelled:#}");
    let again = act(&service, json!({"action": "cancel", "filter": filter})).await;
    assert_eq!(again["matched"], 0, "a cancelled job can't be cancelled");
    let retried = act(&service, json!({"action": "retry", "filter": {"text": "plan 3"}})).await;
    assert_eq!(retried["changed"], 1);
    let cancelled = ids(&service.admin_get(&format!("{JOBS}?status=cancelled")).await);
    let named = act(&service, json!({"action": "delete", "filter": {"ids": [cancelled[0], other]}})).await;
    assert_eq!(named["changed"], 1, "the other one has not ended");
    let deleted = act(&service, json!({"action": "delete", "filter": {}})).await;
    assert_eq!(deleted["changed"], 3, "what waits stays");
    let total = service.admin_get(JOBS).await.body["total"].clone();
    assert_eq!((&total["queued"], &total["cancelled"]), (&json!(2), &json!(0)));

    resume(&service).await;
    assert_eq!(service.ended(&other).await.body["status"], "succeeded");

    let audit = service.admin_get(AUDIT).await.body;
    let told: Vec<String> = audit["entries"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|entry| {
            let text = |name: &str| entry[name].as_str().unwrap().to_owned();
            format!("{} {} {} {}", text("actor"), entry["count"], text("action"), entry["jobs"])
        })
        .collect();
    let expected = ["1 pause null", "2 cancel 5", "1 retry 1", "2 delete 4", "1 resume null"];
    assert_eq!(told, expected.map(|deed| format!("admin_token {deed}")));
    assert_eq!(audit["entries"][3]["detail"], filter.to_string());
    let page = service.admin_get(&format!("{AUDIT}?limit=2")).await.body;
    let next = page["next_cursor"].as_str().unwrap();
    let second = service.admin_get(&format!("{AUDIT}?limit=9&cursor={next}")).await.body;
    assert_eq!((&second["entries"][0], &second["next_cursor"]), (&audit["entries"][2], &Value::Null));
}

#[tokio::test]
async fn a_thousand_jobs_are_changed_in_steps_by_one_request() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    pause(&service).await;
    let ask = async |n: usize| service.submit(&format!("Plan {n}?")).await.status;
    let statuses = futures_util::future::join_all((0..1_000).map(ask)).await;
    assert!(statuses.iter().all(|status| *status == 202), "{statuses:?}");
    assert_eq!(act(&service, json!({"action": "cancel", "filter": {}})).await["changed"], 1_000);
    assert_eq!(act(&service, json!({"action": "retry", "filter": {}, "dry_run": true})).await["matched"], 1_000);
    assert_eq!(act(&service, json!({"action": "delete", "filter": {}})).await["changed"], 1_000);
    assert_eq!(service.admin_get(JOBS).await.body["total"]["cancelled"], 0);
}

#[tokio::test]
async fn a_pause_holds_back_what_waits_across_restarts_and_lets_what_runs_end() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let running = service.submit("Under way?").await.id();
    claude.wait_for_calls(1).await;
    pause(&service).await;
    let waits = service.submit("Held back?").await;
    assert_eq!((waits.status, &waits.body["queue"]["waiting_for"]), (202, &json!("paused")), "{waits:#?}");
    assert_eq!(waits.body["queue"].get("eta_seconds"), None, "nobody can tell");
    claude.release();
    assert_eq!(service.ended(&running).await.body["status"], "succeeded", "a pause stops no attempt");
    let ready = service.get("/health/ready").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &json!("degraded")), "{ready:#?}");
    assert!(ready.body["reasons"][0]["message"].as_str().unwrap().contains("paused by an operator"), "{ready:#?}");
    service.terminate();

    let service = setup.start();
    let metrics = service.get("/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains("ceoagent_paused 1"), "it is still paused");
    let stats = service.admin_get("/api/v1/admin/stats").await.body;
    assert_eq!((&stats["paused"]["by"], &stats["jobs"]["queued"]), (&json!("admin_token"), &json!(1)), "{stats:#}");
    assert!(stats["oldest_queued_at"] == waits.body["created_at"] && stats["workers"] == 512, "{stats:#}");
    assert_eq!(claude.counters().calls, 1);
    resume(&service).await;
    assert_eq!(service.ended(&waits.id()).await.body["status"], "succeeded");
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
}

#[tokio::test]
async fn a_pause_answers_a_client_that_waits_for_a_queued_job_at_once_and_says_why() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let ask = |n: usize| json!({"query": format!("Should we buy stall {n}?"), "wait": true});
    // Once the service knows that answers are quick, a client may wait behind a running job.
    for n in 0..5 {
        assert_eq!(service.post("/api/v1/analyze", &ask(n)).await.status, 200);
    }
    claude.script([Fault::Hold]);
    let running = service.submit("Under way?").await.id();
    claude.wait_for_calls(6).await;
    let question = ask(6);
    let waits = service.post("/api/v1/analyze", &question);
    let paused = async {
        while !service.get("/metrics").await.body.as_str().unwrap().contains("ceoagent_waiters 1\n") {}
        pause(&service).await;
        std::time::Instant::now()
    };
    let (answer, paused_at) = tokio::join!(waits, paused);
    assert!(paused_at.elapsed().as_secs() < 15, "long before the end of its wait");
    assert_eq!((answer.status, &answer.body["queue"]["waiting_for"]), (202, &json!("paused")), "{answer:#?}");
    resume(&service).await;
    claude.release();
    for id in [running, answer.id()] {
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_action_is_told_and_nothing_is_done() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for (body, field) in [
        (json!({"filter": {}}), "action"),
        (json!({"action": "delete"}), "filter"),
        (json!({"action": "explode", "filter": {}}), "action"),
        (json!({"action": "delete", "filter": {"state": "failed"}}), "filter.state"),
        (json!({"action": "delete", "filter": {"text": ""}}), "filter.text"),
        (json!({"action": "delete", "filter": {"ids": []}}), "filter.ids"),
        (json!({"action": "delete", "filter": {"ids": ["x"]}}), "filter.ids[0]"),
        (json!({"action": "delete", "filter": {"status": ["done"]}}), "filter.status[0]"),
        (json!({"action": "delete", "filter": {}, "cursor": "x"}), "cursor"),
    ] {
        let answer = service.admin_post(ACTIONS, &body).await;
        answer.assert_problem(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["field"], field, "{body}: {answer:#?}");
    }
    service.post(ACTIONS, &json!({"action": "delete", "filter": {}})).await.assert_problem(401, "unauthorized");
    assert_eq!(service.admin_get(AUDIT).await.body["entries"], json!([]));
}
