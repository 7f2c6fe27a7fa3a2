//! A Claude that is down, slow, broken or unwilling: what becomes of the job, what its history says, and what is called.

use std::{net::TcpListener, time::Duration};

use ceoagent::claude::simulator::{ErrorAnswer, Fault, Simulator};
use serde_json::{Value, json};

use crate::harness::{Answer, Service, Setup, send, simulator};

/// A service whose jobs get one retry, and its Claude, whose next calls go wrong like this.
async fn service(faults: impl IntoIterator<Item = Fault>, settings: &[(&str, &str)]) -> (Service, Simulator, Setup) {
    let claude = simulator().await;
    claude.script(faults);
    let mut setup = Setup::new(&claude.base_url()).with("MAX_RETRIES", "1").with("MAX_OVERLOAD_RETRIES", "1");
    settings.iter().for_each(|(name, value)| setup.set(name, value));
    (setup.start(), claude, setup)
}

/// Asks, and gives the job at its end.
async fn outcome(service: &Service) -> Value {
    let accepted = service.submit("Should we open a second plant?").await;
    service.ended(&accepted.id()).await.body
}

/// The outcome and the error's code of each attempt.
fn history(job: &Value) -> Vec<(&str, &str)> {
    let attempts = job["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|attempt| (attempt["outcome"].as_str().unwrap(), attempt["error"]["code"].as_str().unwrap_or_default()))
        .collect()
}

/// Cancels or retries a job.
async fn act(service: &Service, id: &str, action: &str) -> Answer {
    send(service.request(reqwest::Method::POST, &format!("/api/v1/jobs/{id}/{action}"))).await
}

fn status(status: u16) -> Fault {
    ErrorAnswer::status(status).into()
}

#[tokio::test]
async fn an_upstream_that_is_down_fails_the_job_after_its_retries_and_nothing_is_billed() {
    // A port that was free a moment ago, and that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = Setup::new(&format!("http://{address}")).with("MAX_CONNECT_RETRIES", "1").start();
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("connect_failed")));
    assert_eq!(history(&job), [("failed", "connect_failed"); 2]);
    for attempt in job["attempts"].as_array().unwrap() {
        assert_eq!(attempt["may_have_been_billed"], false);
    }
}

#[tokio::test]
async fn each_lasting_fault_is_retried_and_then_fails_the_job_with_its_code() {
    let quick = Duration::from_millis(1);
    let idle = [("STREAM_IDLE_TIMEOUT", "1")];
    let total = [("REQUEST_TIMEOUT", "1")];
    for (fault, settings, code, billed) in [
        (Fault::StallAfter(5), &idle[..], "timeout", true),
        (Fault::Hold, &total, "timeout", true),
        (Fault::SlowBytes { bytes: 1, pause: quick }, &total, "timeout", true),
        (Fault::Malformed, &[], "malformed_response", true),
        (Fault::CutAfter(5), &[], "connection_lost", true),
        (Fault::DropAfter(5), &[], "connection_lost", true),
        (Fault::CloseBeforeAnswer, &[], "connection_lost", true),
        (Fault::ErrorEvent("overloaded_error".to_owned()), &[], "overloaded", true),
        (status(500), &[], "upstream_error", false),
        (status(529), &[], "overloaded", false),
        (ErrorAnswer::status(502).html("<html>Bad Gateway</html>").into(), &[], "upstream_error", true),
    ] {
        let (service, claude, _setup) = service([fault.clone(), fault.clone()], settings).await;
        let job = outcome(&service).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{fault:?}: {job:#}");
        assert_eq!(history(&job), [("failed", code); 2], "{fault:?}");
        for attempt in job["attempts"].as_array().unwrap() {
            assert_eq!(attempt["may_have_been_billed"], billed, "{fault:?}: {attempt:#}");
            let at_risk = attempt["at_risk"]["cost_usd"].as_f64();
            assert_eq!(at_risk.is_some_and(|cost| cost > 0.0), billed, "{fault:?}: {attempt:#}");
        }
        assert_eq!(claude.counters().calls, 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_fault_that_passes_is_in_the_history_of_a_job_that_succeeds() {
    for (fault, code, http_status) in [
        (status(500), "upstream_error", json!(500)),
        (status(529), "overloaded", json!(529)),
        (Fault::Malformed, "malformed_response", json!(200)),
        (Fault::Answer("no json".to_owned()), "invalid_output", json!(200)),
    ] {
        let (service, claude, _setup) = service([fault.clone()], &[]).await;
        let job = outcome(&service).await;
        assert_eq!(job["status"], "succeeded", "{fault:?}: {job:#}");
        assert_eq!(history(&job), [("failed", code), ("succeeded", "")], "{fault:?}");
        assert_eq!(job["attempts"][0]["http_status"], http_status, "{fault:?}: {job:#}");
        assert_eq!((job["attempts_made"].as_u64(), claude.counters().calls), (Some(2), 2));
        assert_eq!(job.get("error"), None);
    }
}

#[tokio::test]
async fn rubbish_fails_the_job_and_is_shown_as_it_came() {
    let (service, _claude, setup) =
        service([Fault::Answer("no json".to_owned()), Fault::Answer("{}".to_owned())], &[]).await;
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("invalid_output")));
    assert_eq!(
        (&job["attempts"][0]["raw_answer"], &job["attempts"][1]["raw_answer"]),
        (&json!("no json"), &json!("{}"))
    );
    assert!(job["usage"]["output_tokens"].as_u64().unwrap() > 0, "an unreadable answer is paid for all the same");
    service.kill();
    let kept = setup.start().get(&format!("/api/v1/jobs/{}", job["id"].as_str().unwrap())).await.body;
    assert_eq!(kept, job, "a restart changes nothing of it");
}

#[tokio::test]
async fn an_answer_in_a_fence_amid_prose_is_read() {
    let (service, claude, _setup) = service([], &[]).await;
    let plain = outcome(&service).await;
    let text = claude.calls()[0].answer.clone().unwrap();
    claude.script([Fault::Answer(format!("Here is my analysis:\n\n```json\n{text}\n```\n\nI hope it helps."))]);
    let fenced = outcome(&service).await;
    assert_eq!(fenced["status"], "succeeded", "{fenced:#}");
    assert_eq!(fenced["result"], plain["result"]);
}

#[tokio::test]
async fn a_rate_limit_gives_the_job_back_unspent_and_closes_the_gate_for_all() {
    let limited = ErrorAnswer::status(429).header("retry-after", "1").into();
    let (service, claude, _setup) = service([limited], &[("MAX_RETRIES", "0")]).await;
    let accepted = service.submit("Should we wait?").await;
    claude.wait_for_calls(1).await;
    let ready = loop {
        let ready = service.get("/health/ready").await;
        assert_eq!(ready.status, 200, "questions are still accepted");
        if ready.body["status"] == "degraded" {
            break ready;
        }
    };
    assert!(ready.body["reasons"][0]["message"].as_str().unwrap().starts_with("rate_limited"), "{ready:#?}");
    let metrics = service.get("/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains("ceoagent_gate_closed 1\n"));
    let job = service.ended(&accepted.id()).await.body;
    assert_eq!(history(&job), [("released", "rate_limited"), ("succeeded", "")], "{job:#}");
    assert_eq!(job["status"], "succeeded", "without a retry to spend");
    let calls = claude.calls();
    let pause = calls[1].at.duration_since(calls[0].at).unwrap();
    assert!(pause >= Duration::from_secs(1), "called again after {pause:?}");
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
}

#[tokio::test]
async fn a_refused_key_holds_the_queue_and_readiness_says_why() {
    let (service, claude, _setup) = service([status(401)], &[("WORKERS", "1")]).await;
    let job = service.post("/api/v1/analyze", &json!({"query": "Anyone there?", "wait": 1})).await;
    assert_eq!((job.status, job.body["status"].as_str()), (202, Some("queued")), "{job:#?}");
    assert_eq!(history(&job.body), [("released", "authentication_failed")]);
    let ready = service.get("/health/ready").await;
    assert_eq!((ready.status, ready.body["status"].as_str()), (200, Some("degraded")));
    let reason = ready.body["reasons"][0]["message"].as_str().unwrap();
    assert!(reason.starts_with("authentication_failed") && reason.contains("check the API key"), "{reason}");
    let other = service.post("/api/v1/analyze", &json!({"query": "And now?", "wait": 1})).await;
    assert_eq!((other.status, other.body["attempts"].clone()), (202, json!([])), "{other:#?}");
    assert_eq!(claude.counters().calls, 1, "no other job is sent into the same wall");
    let log = service.kill();
    assert!(log.contains("the queue is held") && !log.contains("sk-test-secret"), "{log}");
}

#[tokio::test]
async fn what_can_never_work_is_called_once_and_told_to_who_waits() {
    for (fault, http_status, code) in [
        (Fault::Refusal, 422, "refused"),
        (Fault::MaxTokens, 502, "answer_truncated"),
        (status(400), 502, "invalid_request"),
        (status(413), 502, "request_too_large"),
    ] {
        let (service, claude, _setup) = service([fault], &[]).await;
        let answer = service.post("/api/v1/analyze", &json!({"query": "Will you?", "wait": true})).await;
        answer.assert_problem(http_status, code);
        assert_eq!(answer.body["type"], format!("urn:ceoagent:failure:{code}"));
        let job = &answer.body["job"];
        assert_eq!((job["status"].as_str(), history(job)), (Some("failed"), vec![("failed", code)]));
        assert_eq!(answer.header("location"), job["links"]["self"]);
        assert_eq!(claude.counters().calls, 1);
    }
}

#[tokio::test]
async fn cancelling_a_running_job_aborts_its_call_for_good() {
    let (service, claude, _setup) = service([Fault::Hold], &[("WORKERS", "1")]).await;
    let id = service.submit("Shall we stop?").await.id();
    claude.wait_for_calls(1).await;
    let cancelled = act(&service, &id, "cancel").await;
    assert_eq!((cancelled.status, cancelled.body["status"].as_str()), (200, Some("cancelled")));
    claude.wait_for_aborted(1).await;
    claude.release();
    // The one worker is free again.
    assert_eq!(outcome(&service).await["status"], "succeeded");
    let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
    assert_eq!(job["status"], "cancelled");
    assert_eq!(job["attempts"][0]["outcome"], "cancelled");
    assert_eq!(job["attempts"][0]["may_have_been_billed"], true);
    let again = act(&service, &id, "cancel").await;
    assert_eq!((again.status, again.body), (200, job), "a second cancel changes nothing");
}

#[tokio::test]
async fn cancelling_a_queued_job_keeps_it_from_ever_being_called() {
    let (service, claude, _setup) = service([Fault::Hold], &[("WORKERS", "1")]).await;
    let first = service.submit("First?").await.id();
    claude.wait_for_calls(1).await;
    let second = service.submit("Second?").await.id();
    let cancelled = act(&service, &second, "cancel").await;
    assert_eq!((cancelled.status, cancelled.body["status"].as_str()), (200, Some("cancelled")));
    claude.release();
    assert_eq!(service.ended(&first).await.body["status"], "succeeded");
    assert_eq!(outcome(&service).await["status"], "succeeded");
    assert_eq!(claude.counters().calls, 2);
    let job = service.get(&format!("/api/v1/jobs/{second}")).await.body;
    assert_eq!((job["status"].as_str(), &job["attempts"]), (Some("cancelled"), &json!([])));
}

#[tokio::test]
async fn a_waiter_is_told_when_its_job_is_cancelled() {
    let (service, claude, _setup) = service([Fault::Hold], &[]).await;
    let body = json!({"query": "Wait?", "wait": true});
    let (answer, ()) = tokio::join!(service.post("/api/v1/analyze", &body), async {
        claude.wait_for_calls(1).await;
        let listing = service.admin_get("/api/v1/admin/jobs").await;
        let id = listing.body["jobs"][0]["id"].as_str().unwrap();
        assert_eq!(act(&service, id, "cancel").await.status, 200);
    });
    answer.assert_problem(409, "cancelled");
    assert_eq!(answer.body["job"]["status"], "cancelled");
}

#[tokio::test]
async fn a_job_that_succeeded_can_be_neither_cancelled_nor_retried() {
    let (service, claude, _setup) = service([], &[]).await;
    let job = outcome(&service).await;
    for action in ["cancel", "retry"] {
        let answer = act(&service, job["id"].as_str().unwrap(), action).await;
        answer.assert_problem(409, "conflict");
        assert!(answer.body["detail"].as_str().unwrap().contains("succeeded"));
    }
    assert_eq!(service.ended(job["id"].as_str().unwrap()).await.body, job);
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_failed_job_that_is_retried_runs_again_and_keeps_its_history() {
    let (service, claude, _setup) = service([Fault::Refusal], &[]).await;
    let failed = outcome(&service).await;
    assert_eq!(failed["status"], "failed");
    let id = failed["id"].as_str().unwrap();
    let again = act(&service, id, "retry").await;
    assert_eq!(again.status, 202, "{again:#?}");
    let job = service.ended(id).await.body;
    assert_eq!(history(&job), [("failed", "refused"), ("succeeded", "")]);
    assert_eq!((job["status"].as_str(), job.get("error")), (Some("succeeded"), None));
    assert_eq!(claude.counters().calls, 2);
}
