//! A job's life as its client sees it.

use ceoagent::claude::simulator::Fault;
use serde_json::json;

use crate::harness::{Setup, simulator};

#[tokio::test]
async fn a_question_is_accepted_at_once_and_becomes_a_memo() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let accepted = service.submit("Should we open a second plant?").await;
    assert_eq!(accepted.status, 202);
    assert_eq!(accepted.header("location"), format!("/api/v1/jobs/{}", accepted.id()));
    assert!(!accepted.header("retry-after").is_empty());
    let ended = service.ended(&accepted.id()).await.body;
    assert_eq!(ended["status"], "succeeded");
    assert!(ended["result"]["decision_question"].as_str().unwrap().contains("open a second plant"));
    assert_eq!(ended["result"]["weighted_totals"][0]["rank"], 1);
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_client_that_waits_gets_the_memo_in_the_same_answer() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let answer = service.post("/api/v1/analyze", &json!({ "query": "要不要进入新市场？", "wait": true })).await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert!(answer.body["result"]["summary"].as_str().unwrap().starts_with("模拟回答"));
}

#[tokio::test]
async fn a_wait_that_ends_before_the_job_answers_202_with_the_job() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let answer = service.post("/api/v1/analyze", &json!({ "query": "Wait?", "wait": 1 })).await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    assert_eq!(answer.body["status"], "running");
    claude.release();
    assert_eq!(service.ended(&answer.id()).await.body["status"], "succeeded");
}
