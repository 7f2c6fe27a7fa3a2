//! The same `Idempotency-Key` means the same job: raced, across a restart, and across kills.

use std::collections::BTreeSet;

use ceoagent::claude::simulator::Fault;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Answer, Service, Setup, client, send, simulator};

/// Asks `body` under `key`.
async fn ask(service: &Service, key: &str, body: &Value) -> Answer {
    let request = service.request(Method::POST, "/api/v1/analyze").header("Idempotency-Key", key);
    send(request.json(body)).await
}

#[tokio::test]
async fn a_key_brings_the_same_job_again_before_and_after_its_end_and_a_restart() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let body = json!({ "query": "Once?", "metadata": { "b": "2", "a": "1" } });
    let first = ask(&service, "order-4711", &body).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, ""));
    let again = ask(&service, "\"order-4711\"", &body).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"), "quoted, it is the same key");
    assert_eq!(again.id(), first.id());
    claude.wait_for_calls(1).await;
    claude.release();
    service.ended(&first.id()).await;

    let waited = json!({ "metadata": { "a": "1", "b": "2" }, "query": "Once?", "wait": true });
    let done = ask(&service, "order-4711", &waited).await;
    assert_eq!((done.status, done.id()), (200, first.id()), "how long to wait makes no other question of it");
    service.kill();
    let service = setup.start();
    assert_eq!(ask(&service, "order-4711", &body).await.id(), first.id());
    let other = ask(&service, "order-4712", &body).await;
    assert_ne!(other.id(), first.id());
    service.ended(&other.id()).await;
    assert_eq!(claude.counters().calls, 2);
}

#[tokio::test]
async fn a_key_used_for_another_question_is_refused() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let first = ask(&service, "k", &json!({ "query": "Buy?" })).await;
    for other in [json!({ "query": "Build?" }), json!({ "query": "Buy?", "priority": "high" })] {
        ask(&service, "k", &other).await.assert_problem(422, "idempotency_key_reused");
    }
    assert_eq!(ask(&service, "k", &json!({ "query": "Buy?" })).await.id(), first.id());
}

#[tokio::test]
async fn a_key_that_is_none_is_told() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for bad in ["", "\"\"", &"k".repeat(256)] {
        let answer = ask(&service, bad, &json!({ "query": "Buy?" })).await;
        answer.assert_problem(400, "invalid_parameter");
        assert_eq!(answer.body["errors"][0]["field"], "Idempotency-Key");
    }
    let request = service.request(Method::POST, "/api/v1/analyze").json(&json!({ "query": "Buy?" }));
    let twice = send(request.header("Idempotency-Key", "a").header("Idempotency-Key", "b")).await;
    twice.assert_problem(400, "invalid_parameter");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_get_one_job_and_one_call() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for round in 0..5 {
        let mut racing = JoinSet::new();
        for _ in 0..32 {
            let request =
                service.request(Method::POST, "/api/v1/analyze").header("Idempotency-Key", format!("k{round}"));
            racing.spawn(send(request.json(&json!({ "query": "Race?", "wait": true }))));
        }
        let answers = racing.join_all().await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:#?}");
        let ids: BTreeSet<String> = answers.iter().map(Answer::id).collect();
        assert_eq!(ids.len(), 1);
        let fresh = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count();
        assert_eq!(fresh, 1, "one of them brought the job");
    }
    assert_eq!(claude.counters().calls, 5);
}

#[tokio::test]
async fn a_full_queue_still_answers_for_what_it_has() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).with("MAX_QUEUED_JOBS", "1").start();
    let first = ask(&service, "k", &json!({ "query": "Buy?" })).await;
    service.submit("Another?").await.assert_problem(503, "queue_full");
    assert_eq!(ask(&service, "k", &json!({ "query": "Buy?" })).await.id(), first.id());
}

#[tokio::test]
async fn a_key_outlives_a_job_that_was_removed() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("RETENTION", "1 job");
    let service = setup.start();
    let first = ask(&service, "k", &json!({ "query": "Buy?" })).await;
    service.ended(&first.id()).await;
    service.ended(&service.submit("Another?").await.id()).await;
    // The sweeper removes it in a moment.
    while service.get(&format!("/api/v1/jobs/{}", first.id())).await.status == 200 {
        tokio::task::yield_now().await;
    }
    let answer = ask(&service, "k", &json!({ "query": "Buy?" })).await;
    answer.assert_problem(410, "job_removed");
    service.kill();
    let service = setup.start();
    ask(&service, "k", &json!({ "query": "Buy?" })).await.assert_problem(410, "job_removed");
    assert_eq!(claude.counters().calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_repeats_itself_through_kills_gets_one_job_a_key() {
    const KILLS: usize = 8;
    const KEYS: usize = 60;
    let mut random = StdRng::seed_from_u64(rand::random());
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("MAX_RETRIES", "20").with("WORKERS", "16");
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); KEYS];
    for _ in 0..KILLS {
        let service = setup.start();
        let mut asking = JoinSet::new();
        for key in 0..KEYS {
            let url = format!("{}/api/v1/analyze", service.base());
            asking.spawn(async move {
                let body = json!({ "query": format!("Plan {key}?") });
                let request = client().post(url).header("Idempotency-Key", format!("key-{key}")).json(&body);
                let job: Value = request.send().await.ok()?.json().await.ok()?;
                Some((key, job["id"].as_str()?.to_owned()))
            });
        }
        let answers = random.random_range(0..KEYS);
        for _ in 0..answers {
            if let Some(Ok(Some((key, id)))) = asking.join_next().await {
                seen[key].insert(id);
            }
        }
        service.kill();
        while let Some(answered) = asking.join_next().await {
            if let Ok(Some((key, id))) = answered {
                seen[key].insert(id);
            }
        }
    }
    let service = setup.start();
    for (key, ids) in seen.iter_mut().enumerate() {
        let answer = ask(&service, &format!("key-{key}"), &json!({ "query": format!("Plan {key}?") })).await;
        ids.insert(answer.id());
        assert_eq!(ids.len(), 1, "key {key} brought several jobs");
    }
    let total = service.admin_get("/api/v1/admin/jobs?limit=200").await.body["jobs"].as_array().unwrap().len();
    assert_eq!(total, KEYS);
}
