//! Webhooks as their receiver meets them: over a real socket, across a kill, and verified by the library that the makers of
//! Standard Webhooks give out for Python.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use axum::{Router, extract::State, http::HeaderMap};
use ceoagent::claude::simulator::Fault;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::harness::{Service, Setup, send, simulator};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Exits with 0 if the message on standard input is genuine: secret, headers and body, a line each.
const VERIFY: &str = "
import json, sys
from standardwebhooks.webhooks import Webhook
secret, headers, body = sys.stdin.read().split('\\n', 2)
Webhook(secret).verify(body, json.loads(headers))
";

/// A message as it arrived, with the way to answer it.
struct Arrived {
    headers: BTreeMap<String, String>,
    body: String,
    answer: tokio::sync::oneshot::Sender<u16>,
}

impl Arrived {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Answers, and gives what came.
    fn take(self, status: u16) -> (BTreeMap<String, String>, String) {
        let _ = self.answer.send(status);
        (self.headers, self.body)
    }
}

async fn arrive(
    State(news): State<UnboundedSender<Arrived>>,
    headers: HeaderMap,
    body: String,
) -> axum::http::StatusCode {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let text = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let _ = news.send(Arrived { headers: headers.iter().map(text).collect(), body, answer });
    axum::http::StatusCode::from_u16(answered.await.unwrap_or(500)).unwrap()
}

/// Somebody to be called, and its address.
async fn receiver() -> (String, UnboundedReceiver<Arrived>) {
    let (news, arrived) = unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(arrive).with_state(news)).await });
    (url, arrived)
}

fn setup(claude: &str) -> Setup {
    Setup::new(claude).with("WEBHOOK_SECRET", SECRET).with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8")
}

async fn ask(service: &Service, query: &str, url: &str) -> String {
    let answer = service.post("/api/v1/analyze", &json!({ "query": query, "callback_url": url })).await;
    assert_eq!(answer.body["delivery"]["state"], "waiting", "{answer:#?}");
    answer.id()
}

/// The job's delivery once it is in `state`.
async fn delivery(service: &Service, id: &str, state: &str) -> Value {
    loop {
        let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
        if job["delivery"]["state"] == state {
            return job["delivery"].clone();
        }
        tokio::task::yield_now().await;
    }
}

/// Whether the library of the specification's makers takes the message for genuine.
fn is_genuine(secret: &str, headers: &BTreeMap<String, String>, body: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = Command::new(root.join("tests/sdk/install.sh")).status().unwrap();
    assert!(installed.success(), "the library can't be installed; tests/run.sh installs what that needs");
    let mut python = Command::new(root.join("target/sdk/bin/python"));
    let mut child = python.args(["-I", "-c", VERIFY]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let message = format!("{secret}\n{}\n{body}", serde_json::to_string(headers).unwrap());
    child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("WebhookVerificationError"), "{said}");
    output.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_genuine_to_the_specifications_own_library_and_a_changed_one_is_not() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    let (url, mut arrived) = receiver().await;
    let id = ask(&service, "Should we sign it? Übermorgen?", &url).await;
    let message = arrived.recv().await.unwrap();
    let json = message.json();
    let (headers, body) = message.take(200);
    assert_eq!((&json["type"], &json["data"]["id"]), (&"job.succeeded".into(), &id.as_str().into()));
    assert!(json["data"]["result"]["recommendation"].is_object());
    assert_eq!(headers["content-type"], "application/json");
    assert!(is_genuine(SECRET, &headers, &body));
    assert!(!is_genuine(SECRET, &headers, &body.replace("sign it", "sing it")));
    assert!(!is_genuine("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &headers, &body));
    let delivery = delivery(&service, &id, "delivered").await;
    assert_eq!(
        (&delivery["id"], &delivery["tries"][0]["http_status"]),
        (&headers["webhook-id"].as_str().into(), &200.into())
    );
    let metrics = service.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("ceoagent_webhooks_total{kind=\"delivered\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_one_is_made_at_the_first_start_and_stored_for_its_owner_alone() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8");
    let service = setup.start();
    let file = setup.folder().join("data/webhook-secret");
    let secret = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (url, mut arrived) = receiver().await;
    ask(&service, "Signed with it?", &url).await;
    let (headers, body) = arrived.recv().await.unwrap().take(200);
    assert!(is_genuine(&secret, &headers, &body));
    let log = service.kill();
    assert!(!log.contains(&secret));
    drop(setup.start());
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), secret, "the next start uses it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_end_is_told() {
    let claude = simulator().await;
    claude.script([Fault::Refusal, Fault::Hold]);
    let service = setup(&claude.base_url()).with("WORKERS", "1").start();
    let (url, mut arrived) = receiver().await;
    ask(&service, "Refused?", &url).await;
    let message = arrived.recv().await.unwrap();
    let json = message.json();
    message.take(200);
    assert_eq!((&json["type"], &json["data"]["error"]["code"]), (&"job.failed".into(), &"refused".into()));
    assert!(json["data"].get("result").is_none());

    service.submit("Held?").await;
    claude.wait_for_calls(2).await;
    let late = json!({ "query": "Late?", "callback_url": url, "deadline_seconds": 1 });
    service.post("/api/v1/analyze", &late).await;
    let message = arrived.recv().await.unwrap();
    assert_eq!(message.json()["data"]["error"]["code"], "deadline_exceeded");
    message.take(200);
    let batch = json!({ "requests": [{ "query": "Given up?", "callback_url": url }] });
    let batch = service.post("/api/v1/analyze/batch", &batch).await;
    let id = batch.body["jobs"][0]["id"].as_str().unwrap();
    send(service.request(Method::POST, &format!("/api/v1/jobs/{id}/cancel"))).await;
    assert_eq!(arrived.recv().await.unwrap().json()["type"], "job.cancelled");
}

#[tokio::test]
async fn a_failed_job_whose_kept_answer_is_read_after_all_is_told_again_as_a_success() {
    let claude = simulator().await;
    claude.script([Fault::CutBeforeStop]);
    let service = setup(&claude.base_url()).with("MAX_RETRIES", "0").start();
    let (url, mut arrived) = receiver().await;
    let id = ask(&service, "Should we read it again?", &url).await;
    let failed = arrived.recv().await.unwrap();
    let first = failed.headers["webhook-id"].clone();
    assert_eq!(failed.json()["type"], "job.failed");
    failed.take(200);
    delivery(&service, &id, "delivered").await;
    let read = service.admin_post(&format!("/api/v1/admin/jobs/{id}/reparse"), &json!({})).await;
    assert_eq!(read.status, 200, "{read:#?}");
    let succeeded = arrived.recv().await.unwrap();
    let told = succeeded.json();
    assert_eq!((&told["type"], &told["data"]["id"]), (&"job.succeeded".into(), &id.as_str().into()));
    assert!(told["data"]["result"]["recommendation"].is_object());
    assert_ne!(succeeded.headers["webhook-id"], first, "it is another message, which must not be taken for the first");
    succeeded.take(200);
    delivery(&service, &id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_taken_is_a_warning() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    let (url, mut arrived) = receiver().await;
    ask(&service, "Is anybody there?", &url).await;
    arrived.recv().await.unwrap().take(500);
    service.until_said("webhook failed");
    let log = service.kill();
    let line = log.lines().find(|line| line.contains("webhook failed")).unwrap();
    assert!(line.contains(" WARN ") && line.contains("http.status=500"), "{line}");
    assert!(!log.contains("webhook sent"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_message_is_under_way_sends_it_again_under_the_same_id() {
    let claude = simulator().await;
    let setup = setup(&claude.base_url());
    let service = setup.start();
    let (url, mut arrived) = receiver().await;
    let id = ask(&service, "Should we pull the plug?", &url).await;
    let first = arrived.recv().await.unwrap();
    service.kill();
    let service = setup.start();
    let again = arrived.recv().await.unwrap();
    assert_eq!(again.headers["webhook-id"], first.headers["webhook-id"]);
    assert_eq!(again.body, first.body);
    again.take(204);
    let told = delivery(&service, &id, "delivered").await;
    service.kill();
    let service = setup.start();
    assert_eq!(delivery(&service, &id, "delivered").await, told);
    ask(&service, "Another one?", &url).await;
    assert!(arrived.recv().await.unwrap().body.contains("Another one?"), "what was delivered is not sent again");
}

#[tokio::test]
async fn a_message_that_is_not_taken_shows_on_the_job_with_its_next_try() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    let (url, mut arrived) = receiver().await;
    let id = ask(&service, "Should we try again?", &url).await;
    arrived.recv().await.unwrap().take(503);
    arrived.recv().await.unwrap().take(503);
    let delivery = loop {
        let delivery = delivery(&service, &id, "pending").await;
        if delivery["tries"].as_array().unwrap().len() == 2 {
            break delivery;
        }
    };
    assert_eq!(delivery["tries"][1]["http_status"], 503);
    assert!(delivery["next_at"].is_string(), "{delivery:#}");
}

#[tokio::test]
async fn a_callback_that_must_not_be_is_refused_before_the_job_is_taken() {
    let claude = simulator().await;
    let refused = async |service: &Service, url: &str, words: &str| {
        let answer = service.post("/api/v1/analyze", &json!({ "query": "Why?", "callback_url": url })).await;
        answer.assert_problem(422, "validation_failed");
        let error = &answer.body["errors"][0];
        assert_eq!(error["field"], "callback_url");
        assert!(error["message"].as_str().unwrap().contains(words), "{url}: {error}");
    };
    let public = Setup::new(&claude.base_url()).start();
    for url in ["https://127.0.0.1/", "https://169.254.169.254/latest/meta-data", "https://[::ffff:10.0.0.1]/"] {
        refused(&public, url, "not a public address").await;
    }
    refused(&public, "http://example.com/hook", "starts with https://").await;
    refused(&public, "javascript:alert(1)", "starts with https://").await;
    let mut setup = Setup::new(&claude.base_url());
    setup.set("WEBHOOK_SECRET", "not-a-secret-of-that-form");
    let (status, said) = setup.run(&["serve"]);
    assert!(!status.success() && said.contains("WEBHOOK_SECRET") && !said.contains("not-a-secret"), "{said}");
}
