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

use crate::harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator};

const ALICE: &str = "alice-has-this-key";
const BOB: &str = "bob-has-this-other-key";
const READER: &str = "alices-reader-has-this";
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
    assert_eq!(service.metric("ceoagent_webhooks_total{kind=\"delivered\"}").await, "1");
}

/// Without WEBHOOK_SECRET: each caller has a secret of its own.
fn derived(claude: &str) -> Setup {
    let keys = format!("alice:{ALICE},bob:{BOB},alice-reads:read:{READER}");
    Setup::new(claude).with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8").with("API_KEYS", &keys)
}

async fn as_caller(service: &Service, key: &str, method: Method, path: &str, body: Option<&Value>) -> Answer {
    let request = service.request(method, path).bearer_auth(key);
    send(body.map_or(request.try_clone().unwrap(), |body| request.json(body))).await
}

/// The secret that a caller gets of the service.
async fn secret(service: &Service, key: &str) -> String {
    let answer = as_caller(service, key, Method::GET, "/api/v1/webhooks/secret", None).await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    answer.body["secret"].as_str().unwrap().to_owned()
}

/// Has alice send a job to the receiver; gives what arrived, which was accepted.
async fn message_of(
    service: &Service,
    key: &str,
    url: &str,
    arrived: &mut UnboundedReceiver<Arrived>,
) -> (BTreeMap<String, String>, String) {
    let question = json!({ "query": "Signed?", "callback_url": url });
    let answer = as_caller(service, key, Method::POST, "/api/v1/analyze", Some(&question)).await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    arrived.recv().await.unwrap().take(200)
}

/// What `ceoagent ARGS` prints and says, and whether it succeeds.
async fn cli(setup: &Setup, service: &Service, args: &[&str]) -> (bool, String, String) {
    let mut command = setup.command();
    command.args(args).args(["--url", service.base()]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_a_secret_of_its_own_from_the_first_start_on() {
    let claude = simulator().await;
    let setup = derived(&claude.base_url());
    let service = setup.start();
    let file = setup.folder().join("data/webhook-root");
    let root = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (of_alice, of_bob) = (secret(&service, ALICE).await, secret(&service, BOB).await);
    assert!(of_alice != of_bob && of_alice != root);
    let (url, mut arrived) = receiver().await;
    let (headers, body) = message_of(&service, ALICE, &url, &mut arrived).await;
    assert!(is_genuine(&of_alice, &headers, &body));
    assert!(!is_genuine(&of_bob, &headers, &body) && !is_genuine(&root, &headers, &body));

    let path = "/api/v1/webhooks/secret";
    as_caller(&service, READER, Method::GET, path, None).await.assert_problem(403, "forbidden");
    service.get(path).await.assert_problem(401, "unauthorized");
    let shown = service.admin_get("/api/v1/admin/webhooks/secret?caller=alice").await.body;
    assert_eq!(shown, json!({ "caller": "alice", "secret": of_alice, "previous": [] }));
    let (done, printed, said) = cli(&setup, &service, &["webhooks", "secret", "--caller", "bob"]).await;
    assert!(done && said.is_empty(), "{said}");
    assert_eq!(printed, format!("{of_bob}\n"));

    let log = service.kill();
    assert!(!log.contains(&root) && !log.contains(&of_alice));
    let service = setup.start();
    assert_eq!(secret(&service, ALICE).await, of_alice, "the next start has the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_both_secrets_sign_also_across_a_restart_until_the_overlap_is_ended() {
    let claude = simulator().await;
    let setup = derived(&claude.base_url());
    let service = setup.start();
    let (url, mut arrived) = receiver().await;
    let old = secret(&service, ALICE).await;
    let rotate = "/api/v1/webhooks/secret/rotate";
    let rotated = as_caller(&service, ALICE, Method::POST, rotate, Some(&json!({}))).await;
    let new = rotated.body["secret"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    assert!(rotated.body["previous"][0]["expires_at"].is_string(), "{rotated:#?}");
    service.kill();
    let service = setup.start();
    let (headers, body) = message_of(&service, ALICE, &url, &mut arrived).await;
    assert_eq!(headers["webhook-signature"].split(' ').count(), 2);
    assert!(is_genuine(&old, &headers, &body) && is_genuine(&new, &headers, &body));

    // It has leaked: an operator ends all old ones.
    let (done, newest, said) =
        cli(&setup, &service, &["webhooks", "rotate", "--caller", "alice", "--overlap-hours", "0"]).await;
    assert!(done && said.is_empty(), "{said}");
    let (headers, body) = message_of(&service, ALICE, &url, &mut arrived).await;
    assert!(is_genuine(newest.trim(), &headers, &body));
    assert!(!is_genuine(&old, &headers, &body) && !is_genuine(&new, &headers, &body));
    let entry = service.admin_get("/api/v1/admin/audit?limit=1").await.body["entries"][0].clone();
    assert_eq!((&entry["action"], &entry["detail"]), (&"webhook_secret_rotate".into(), &"alice".into()));
    let wrong = as_caller(&service, ALICE, Method::POST, rotate, Some(&json!({ "overlap_hours": 169 }))).await;
    wrong.assert_problem(422, "validation_failed");
    for _ in 0..4 {
        assert_eq!(as_caller(&service, ALICE, Method::POST, rotate, Some(&json!({}))).await.status, 200);
    }
    as_caller(&service, ALICE, Method::POST, rotate, Some(&json!({}))).await.assert_problem(409, "conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_setting_signs_for_all_callers_with_each_secret_that_it_lists() {
    let claude = simulator().await;
    let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let setup = derived(&claude.base_url()).with("WEBHOOK_SECRET", &format!("{other},{SECRET}"));
    let service = setup.start();
    assert!(!setup.folder().join("data/webhook-root").exists());
    let (url, mut arrived) = receiver().await;
    let (headers, body) = message_of(&service, ALICE, &url, &mut arrived).await;
    assert!(is_genuine(other, &headers, &body) && is_genuine(SECRET, &headers, &body));
    let own = as_caller(&service, ALICE, Method::GET, "/api/v1/webhooks/secret", None).await;
    own.assert_problem(409, "conflict");
    let (done, printed, _) = cli(&setup, &service, &["webhooks", "secret"]).await;
    assert!(done && printed.trim() == other, "{printed}");
    let (done, _, said) = cli(&setup, &service, &["webhooks", "rotate"]).await;
    assert!(!done && said.contains("WEBHOOK_SECRET=<new>,<old>"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_message_is_signed_like_a_real_one_and_marked_as_a_test() {
    let claude = simulator().await;
    let setup = derived(&claude.base_url()).with("SUBMITS_PER_MINUTE", "3");
    let service = setup.start();
    let (url, mut arrived) = receiver().await;
    let test = async |url: &str| {
        let body = json!({ "callback_url": url });
        as_caller(&service, ALICE, Method::POST, "/api/v1/webhooks/test", Some(&body)).await
    };
    let answered = async |arrived: &mut UnboundedReceiver<Arrived>, status| arrived.recv().await.unwrap().take(status);
    let (answer, (headers, body)) = tokio::join!(test(&url), answered(&mut arrived, 204));
    assert!(is_genuine(&secret(&service, ALICE).await, &headers, &body));
    let message: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(message["type"], "webhook.test");
    assert_eq!(message["data"], json!({ "test": true, "caller": "alice", "callback_url": url }));
    assert_eq!((&answer.body["accepted"], &answer.body["http_status"]), (&true.into(), &204.into()), "{answer:#?}");
    assert_eq!(answer.body["id"], headers["webhook-id"].as_str());

    test("https://no-such-host.invalid/").await;
    let private = test("https://10.0.0.1/").await;
    private.assert_problem(422, "validation_failed");
    assert_eq!(private.body["errors"][0]["field"], "callback_url");
    let dead = test("http://127.0.0.1:1/").await.body;
    assert!(dead["accepted"] == false && dead["error"].is_string() && dead.get("http_status").is_none(), "{dead:#}");
    test(&url).await.assert_problem(429, "rate_limited");

    let refuse = tokio::spawn(async move { arrived.recv().await.unwrap().take(401) });
    let (done, _, said) = cli(&setup, &service, &["webhooks", "test", &url]).await;
    assert!(!done && said.contains("did not accept the test message: HTTP 401"), "{said}");
    refuse.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_webhook_is_listed_and_sent_again_by_hand_under_its_id() {
    let claude = simulator().await;
    let setup = derived(&claude.base_url());
    let service = setup.start();
    let (url, mut arrived) = receiver().await;
    let question = json!({ "query": "Who fails?", "callback_url": url });
    let id = as_caller(&service, ALICE, Method::POST, "/api/v1/analyze", Some(&question)).await.id();
    let gone = arrived.recv().await.unwrap();
    let message_id = gone.headers["webhook-id"].clone();
    gone.take(410);
    let job = format!("/api/v1/jobs/{id}");
    let get = async || as_caller(&service, ALICE, Method::GET, &job, None).await.body;
    while get().await["delivery"]["state"] != "disabled" {
        tokio::task::yield_now().await;
    }
    for (key, path, count) in [
        (ALICE, "/api/v1/webhooks/failing", 1),
        (BOB, "/api/v1/webhooks/failing", 0),
        (ADMIN_TOKEN, "/api/v1/admin/webhooks/failing", 1),
        (ADMIN_TOKEN, "/api/v1/admin/webhooks/failing?caller=bob", 0),
    ] {
        let list = as_caller(&service, key, Method::GET, path, None).await.body;
        let jobs = list["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), count, "{path}: {list:#}");
        for job in jobs {
            assert_eq!((&job["id"], &job["delivery"]["tries"][0]["http_status"]), (&id.as_str().into(), &410.into()));
        }
    }
    for key in [ALICE, ADMIN_TOKEN] {
        let (done, printed, said) = cli(&setup, &service, &["webhooks", "failing", "--token", key]).await;
        assert!(done && printed.contains(&id) && printed.contains("HTTP 410"), "{printed}{said}");
    }

    let resend = format!("{job}/resend-webhook");
    assert_eq!(get().await["links"]["resend_webhook"], resend);
    as_caller(&service, BOB, Method::POST, &resend, None).await.assert_problem(404, "job_not_found");
    let (done, printed, said) = cli(&setup, &service, &["webhooks", "resend", &id]).await;
    assert!(done && printed.contains(&message_id), "{printed}{said}");
    let again = arrived.recv().await.unwrap();
    assert_eq!(again.headers["webhook-id"], message_id);
    again.take(200);
    while get().await["delivery"]["state"] != "delivered" {
        tokio::task::yield_now().await;
    }
    assert_eq!(get().await["delivery"]["tries"].as_array().unwrap().len(), 2, "the page shows both tries");
    let list = service.admin_get("/api/v1/admin/webhooks/failing").await.body;
    assert_eq!(list, json!({ "jobs": [], "next_cursor": null }));
    let entry = service.admin_get("/api/v1/admin/audit?limit=1").await.body["entries"][0].clone();
    assert_eq!((&entry["action"], &entry["detail"]), (&"webhook_resend".into(), &id.as_str().into()));

    let silent =
        as_caller(&service, ALICE, Method::POST, "/api/v1/analyze", Some(&json!({ "query": "No hook" }))).await;
    let path = format!("/api/v1/jobs/{}/resend-webhook", silent.id());
    as_caller(&service, ALICE, Method::POST, &path, None).await.assert_problem(409, "conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_chosen_events_are_sent_and_a_memo_that_asks_for_information_is_one() {
    let claude = simulator().await;
    let asks = include_str!("../../src/analysis/samples/info.json");
    let asks = serde_json::from_str::<Value>(asks).unwrap()["answer"].to_string();
    claude.script([Fault::Normal, Fault::Refusal, Fault::Answer(asks.clone()), Fault::Answer(asks)]);
    let service = setup(&claude.base_url()).with("WORKERS", "1").start();
    let (url, mut arrived) = receiver().await;
    let ask = async |query: &str, events: Value| {
        let question = json!({ "query": query, "callback_url": url, "callback_events": events });
        service.post("/api/v1/analyze", &question).await
    };
    let chosen = json!(["job.failed", "job.needs_information"]);
    let quiet = ask("A good memo?", chosen.clone()).await;
    assert_eq!(quiet.body["callback_events"], chosen);
    delivery(&service, &quiet.id(), "skipped").await;
    ask("Refused?", chosen.clone()).await;
    let failed = arrived.recv().await.unwrap();
    assert_eq!(failed.json()["type"], "job.failed");
    failed.take(200);
    ask("Can you know?", chosen).await;
    let asking = arrived.recv().await.unwrap();
    let message = asking.json();
    assert_eq!(message["type"], "job.needs_information", "{message:#}");
    assert_eq!(message["data"]["result"]["status"], "needs_information");
    asking.take(200);
    // Who chose nothing gets the three ends of a job and no other event.
    service.post("/api/v1/analyze", &json!({ "query": "And now?", "callback_url": url })).await;
    let plain = arrived.recv().await.unwrap();
    assert_eq!(plain.json()["type"], "job.succeeded");
    plain.take(200);

    service.post(&format!("/api/v1/jobs/{}/resend-webhook", quiet.id()), &json!({})).await;
    let wanted = arrived.recv().await.unwrap();
    assert_eq!((&wanted.json()["type"], &wanted.json()["data"]["id"]), (&"job.succeeded".into(), &quiet.id().into()));
    wanted.take(200);
    ask("Why?", json!(["job.done"])).await.assert_problem(422, "validation_failed");
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
