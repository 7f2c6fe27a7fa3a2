//! `ceoagent move`, and the offline forms of `export` and `import`: all that a service knows is there after a move, also after
//! kills, and a service starts with all of it or not at all.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use axum::{Router, http::StatusCode};
use ceoagent::claude::simulator::Fault;
use rand::RngExt;
use reqwest::{Client, Method, redirect::Policy};
use serde_json::{Value, json};

use crate::{
    database::Postgres,
    harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

static HOOKS: AtomicUsize = AtomicUsize::new(0);

/// A receiver that accepts what comes to `/hook`, and wants everything else an hour later.
async fn receiver() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let answer = |uri: axum::http::Uri| async move {
        HOOKS.fetch_add(1, Ordering::SeqCst);
        let is_busy = uri.path() != "/hook";
        (if is_busy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, [("retry-after", "3600")])
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    base
}

/// What `ceoagent ARGS` said to `input`: exit code, standard output, standard error.
fn run(setup: &Setup, args: &[&str], input: impl AsRef<[u8]>) -> (i32, String, String) {
    let mut child = setup.command().args(args).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.as_ref().to_vec());
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The records of an offline archive.
fn records(setup: &Setup, from: &str) -> Vec<String> {
    let (code, archive, said) = run(setup, &["export", "--from", from], "");
    assert_eq!(code, 0, "{said}");
    let lines: Vec<String> = archive.lines().map(str::to_owned).collect();
    lines[1..lines.len() - 1].to_vec()
}

fn kinds(records: &[String]) -> Vec<String> {
    let kind = |line: &String| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned();
    let mut kinds: Vec<String> = records.iter().map(kind).collect();
    kinds.dedup();
    kinds
}

async fn ask(service: &Service, key: &str, body: &Value) -> Answer {
    let request = service.request(Method::POST, "/api/v1/analyze").header("Idempotency-Key", key);
    send(request.json(body)).await
}

/// A session of the pages, and whether it is valid at a service.
async fn sign_in(service: &Service) -> String {
    let request = service.request(Method::POST, "/admin/login");
    let form = request.header("content-type", "application/x-www-form-urlencoded");
    let answer = pages().execute(form.body(format!("token={ADMIN_TOKEN}")).build().unwrap()).await.unwrap();
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

async fn is_signed_in(service: &Service, session: &str) -> bool {
    let request = service.request(Method::GET, "/admin").header("cookie", session).header("accept", "text/html");
    pages().execute(request.build().unwrap()).await.unwrap().status() == StatusCode::OK
}

fn pages() -> Client {
    Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

/// What a service knows, but for what is of the moment and of the running job.
async fn known(service: &Service, running: &str) -> Value {
    let mut jobs = service.admin_get("/api/v1/admin/jobs?limit=200").await.body["jobs"].clone();
    let jobs = jobs.as_array_mut().unwrap();
    jobs.retain(|job| job["id"] != running);
    jobs.iter_mut().for_each(|job| _ = job.as_object_mut().unwrap().remove("queue"));
    let keys = service.admin_get("/api/v1/admin/keys").await.body;
    // The cost at risk of the running job is that of an unknown model.
    let days = service.admin_get("/api/v1/admin/usage").await.body["days"].clone();
    let models = days.as_array().unwrap().iter().flat_map(|day| day["models"].as_array().unwrap());
    let usage: Vec<&Value> = models.filter(|model| model["model"] != "unknown").collect();
    let failing = service.admin_get("/api/v1/admin/webhooks/failing").await.body;
    let stats = service.admin_get("/api/v1/admin/stats").await.body;
    json!({ "jobs": jobs, "keys": keys, "usage": usage, "failing": failing, "paused": stats["paused"]["by"] })
}

/// Entries that both logs have, oldest last.
async fn audit(service: &Service) -> Vec<Value> {
    service.admin_get("/api/v1/admin/audit").await.body["entries"].as_array().unwrap().clone()
}

/// Questions that Claude was asked, in order.
fn asked(calls: &[ceoagent::claude::simulator::Call]) -> Vec<String> {
    calls.iter().map(|call| String::from_utf8_lossy(&call.body).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_the_same_on_postgresql_and_back_in_a_folder() {
    let (postgres, claude, hook) = (Postgres::start(), simulator().await, receiver().await);
    let url = postgres.create("jobs");
    claude.script([Fault::Normal, Fault::Normal, Fault::Refusal, Fault::Normal, Fault::Hold]);
    let setup = Setup::new(&claude.base_url())
        .with("WORKERS", "1")
        .with("SHUTDOWN_GRACE", "0")
        .with("ON_UNKNOWN_OUTCOME", "fail")
        .with("WEBHOOK_SECRET", SECRET)
        .with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.1/32");
    let service = setup.start();

    // Jobs of all statuses, a webhook that was accepted and one that is due, a key whose job is deleted.
    let told = service
        .post("/api/v1/analyze", &json!({ "query": "Told?", "callback_url": format!("{hook}/hook") }))
        .await
        .id();
    service.ended(&told).await;
    let due =
        service.post("/api/v1/analyze", &json!({ "query": "Due?", "callback_url": format!("{hook}/busy") })).await.id();
    service.ended(&due).await;
    let failed = service.submit("Failed?").await.id();
    service.ended(&failed).await;
    let deleted = json!({ "query": "Deleted?" });
    let gone = ask(&service, "gone", &deleted).await.id();
    service.ended(&gone).await;
    send(service.request(Method::DELETE, &format!("/api/v1/jobs/{gone}"))).await;
    let held = json!({ "query": "Running?" });
    let running = ask(&service, "held", &held).await.id();
    claude.wait_for_calls(5).await;
    let made = service.admin_post("/api/v1/admin/keys", &json!({ "name": "alice" })).await;
    let key = made.body["key"].as_str().unwrap().to_owned();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    for (query, priority) in [("First?", "normal"), ("Last?", "low"), ("Second?", "normal"), ("Urgent?", "high")] {
        service.post("/api/v1/analyze", &json!({ "query": query, "priority": priority })).await;
    }
    service.post("/api/v1/analyze", &json!({ "query": "Later?", "run_at": "2027-06-01T00:00:00Z" })).await;
    let cancelled = service.submit("Cancelled?").await.id();
    send(service.request(Method::POST, &format!("/api/v1/jobs/{cancelled}/cancel"))).await;
    let session = sign_in(&service).await;
    while HOOKS.load(Ordering::SeqCst) < 2 || known(&service, "").await["failing"]["jobs"] == json!([]) {
        tokio::task::yield_now().await;
    }
    let (before, log) = (known(&service, &running).await, audit(&service).await);
    assert_eq!(before["jobs"].as_array().unwrap().len(), 9);
    let replayed = ask(&service, "gone", &deleted).await;

    let (code, _, said) = run(&setup, &["move", "--from", "data", "--to", &url], "");
    assert_eq!(code, 1);
    assert!(said.contains("data/queue is in use by another ceoagent: stop that one"), "{said}");
    let history = service.admin_get("/api/v1/admin/history?resolution=hour").await.body["periods"].clone();
    let (status, said) = service.terminate();
    assert!(status.success(), "{said}");

    let (code, out, said) = run(&setup, &["move", "--from", "data", "--to", &url], "");
    assert_eq!(code, 0, "{out}{said}");
    assert!(out.contains("/jobs: both sides are equal") && !out.contains("postgres@"), "{out}");
    let moved = records(&setup, "data");
    let all = ["setting", "api_key", "session", "history", "ledger_day", "audit_entry", "idempotency_key", "job"];
    assert_eq!(kinds(&moved), all);
    assert_eq!(records(&setup, &url), moved);
    let (code, out, _) = run(&setup, &["move", "--from", "data", "--to", &url], "");
    assert_eq!((code, out.contains("nothing was written: all of it was there")), (0, true), "{out}");
    assert_eq!((claude.counters().calls, HOOKS.load(Ordering::SeqCst)), (5, 2), "nothing is called or sent");

    // The service on PostgreSQL: the running job has an unknown outcome, all else is as it was.
    let database = Setup::new(&claude.base_url())
        .with("WORKERS", "1")
        .with("DATABASE_URL", &url)
        .with("ON_UNKNOWN_OUTCOME", "fail")
        .with("WEBHOOK_SECRET", SECRET)
        .with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.1/32");
    let node = database.start();
    assert_eq!(known(&node, &running).await, before);
    assert_eq!(audit(&node).await, log);
    let ended = node.ended(&running).await.body;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&"failed".into(), &"outcome_unknown".into()));
    assert_eq!(ask(&node, "held", &held).await.body["job"]["id"], running, "under the same key");
    let again = ask(&node, "gone", &deleted).await;
    assert_eq!((again.status, &again.body["code"]), (replayed.status, &replayed.body["code"]));
    ask(&node, "gone", &json!({ "query": "Other?" })).await.assert_problem(422, "idempotency_key_reused");
    assert!(is_signed_in(&node, &session).await);
    let own = node.request(Method::GET, "/api/v1/jobs").bearer_auth(&key);
    assert_eq!(send(own).await.status, 200);
    let there = node.admin_get("/api/v1/admin/history?resolution=hour").await.body["periods"].clone();
    let accepted = |periods: &Value| -> u64 {
        periods.as_array().unwrap().iter().map(|hour| hour["accepted"].as_u64().unwrap()).sum()
    };
    assert_eq!(accepted(&there), accepted(&history));
    let (code, _, said) = run(&database, &["move", "--from", "DATABASE_URL", "--to", "back"], "");
    assert_eq!(code, 1);
    assert!(said.contains("is in use: nodes of a service are connected to it"), "{said}");
    let after = known(&node, "").await;
    node.terminate();
    let of_nodes = "select count(*) from ceoagent.setting where encode(name, 'escape') like 'node/%'";
    assert_ne!(postgres.sql("jobs", of_nodes), "0");

    // And back: the queue goes on in its order.
    let (code, out, said) = run(&database, &["move", "--from", "DATABASE_URL", "--to", "back"], "");
    assert_eq!(code, 0, "{out}{said}");
    let stale = records(&database, "back").iter().any(|line| line.contains("\"node/"));
    assert!(!stale, "prompts and what the dispatcher knows belong to the nodes");
    let back = database.without("DATABASE_URL").with("DATA_DIR", "back");
    let service = back.start();
    assert_eq!(known(&service, "").await, after);
    assert!(is_signed_in(&service, &session).await);
    service.admin_post("/api/v1/admin/queue/resume", &json!({})).await;
    claude.wait_for_calls(9).await;
    let calls = asked(&claude.calls()[5..]);
    for (call, query) in calls.iter().zip(["Urgent?", "First?", "Second?", "Last?"]) {
        assert!(call.contains(query), "{query} is not in {call}");
    }
    assert_eq!(HOOKS.load(Ordering::SeqCst), 2, "what is due in an hour is not sent before");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_copy_ahead_a_move_copies_only_what_has_changed_since() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    claude.script([vec![Fault::Normal; 8], vec![Fault::Refusal; 2]].concat());
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let service = setup.start();
    let mut ended = Vec::new();
    for n in 0..10 {
        let id = ask(&service, &format!("key {n}"), &json!({ "query": format!("Plan {n}?") })).await.id();
        service.ended(&id).await;
        ended.push(id);
    }
    let later =
        service.post("/api/v1/analyze", &json!({ "query": "Later?", "run_at": "2027-06-01T00:00:00Z" })).await.id();

    // Ahead, from the running service, and no node starts with it.
    let ahead = ["move", "--from", service.base(), "--to", &url];
    let (code, out, said) = run(&setup, &ahead, "");
    assert_eq!(code, 0, "{out}{said}");
    assert!(out.contains("10 jobs that have ended, 0 were there, 1 are left to the move"), "{out}");
    let database = Setup::new(&claude.base_url()).with("WORKERS", "1").with("DATABASE_URL", &url);
    let database = database.with("WEBHOOK_SECRET", SECRET);
    let (status, said) = database.run(&["serve"]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("has only a part of the service at http://127.0.0.1:"), "{said}");

    // The service goes on: a retry that succeeds, a deletion, a new job. Then once more ahead.
    let job = |id: &str, action: &str| format!("/api/v1/jobs/{id}{action}");
    send(service.request(Method::POST, &job(&ended[8], "/retry"))).await;
    service.ended(&ended[8]).await;
    send(service.request(Method::DELETE, &job(&ended[3], ""))).await;
    let new = service.submit("New?").await.id();
    service.ended(&new).await;
    let (code, out, said) = run(&setup, &ahead, "");
    assert_eq!(code, 0, "{out}{said}");
    assert!(out.contains("2 jobs that have ended, 8 were there, 1 are left to the move"), "{out}");

    // A retry and a new job that still wait when it stops.
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    send(service.request(Method::POST, &job(&ended[9], "/retry"))).await;
    let waiting = ask(&service, "waiting", &json!({ "query": "Waiting?" })).await.id();
    let (before, log) = (known(&service, "").await, audit(&service).await);
    let deleted = json!({ "query": "Plan 3?" });
    let gone = ask(&service, "key 3", &deleted).await;
    let (status, said) = service.terminate();
    assert!(status.success(), "{said}");
    let (code, out, said) = run(&setup, &["move", "--from", "data", "--to", &url], "");
    assert_eq!(code, 0, "{out}{said}");
    assert!(out.contains("both sides are equal\n3 jobs copied, 1 removed that the source no longer has"), "{out}");
    assert_eq!(records(&setup, &url), records(&setup, "data"), "in the same order too");

    let node = database.start();
    assert_eq!((known(&node, "").await, audit(&node).await), (before, log));
    assert_eq!(node.get(&job(&later, "")).await.body["status"], "scheduled");
    node.get(&job(&ended[3], "")).await.assert_problem(404, "job_not_found");
    let again = ask(&node, "key 3", &deleted).await;
    assert_eq!((again.status, &again.body["code"]), (gone.status, &gone.body["code"]), "the key of the deleted job");
    for (key, query, id) in [("key 8", "Plan 8?", &ended[8]), ("waiting", "Waiting?", &waiting)] {
        assert_eq!(&ask(&node, key, &json!({ "query": query })).await.id(), id);
    }
    node.admin_post("/api/v1/admin/queue/resume", &json!({})).await;
    for id in [&ended[9], &waiting] {
        assert_eq!(node.ended(id).await.body["status"], "succeeded");
    }
    assert_eq!(claude.counters().calls, 14, "nothing was asked twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_a_record_that_the_source_lacks_is_named_by_kind_and_continues_once_that_is_gone() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let setup = filled(1).await;
    let service = setup.start();
    let (code, out, said) = run(&setup, &["move", "--from", service.base(), "--to", &url], "");
    assert_eq!(code, 0, "{out}{said}");
    service.terminate();
    // As if a move had been interrupted, and the source had removed old entries since.
    postgres.sql("jobs", "insert into ceoagent.audit values ('00000000-0000-7000-8000-000000000001', '{}')");
    let to_database = ["move", "--from", "data", "--to", &url];
    let (code, out, said) = run(&setup, &to_database, "");
    assert_eq!(code, 1, "{out}");
    assert!(said.contains("both sides differ in: audit_entry. ") && said.contains("empty it and repeat"), "{said}");
    postgres.sql("jobs", "delete from ceoagent.audit where id = '00000000-0000-7000-8000-000000000001'");
    let (code, out, said) = run(&setup, &to_database, "");
    assert_eq!(code, 0, "{out}{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_can_not_be_read_are_named_by_an_export_and_stop_a_move() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let setup = Setup::new(&claude.base_url()).with("DATABASE_URL", &url).with("WEBHOOK_SECRET", SECRET);
    let node = setup.start();
    let mut ids = Vec::new();
    for query in ["First?", "Second?", "Third?"] {
        let id = node.submit(query).await.id();
        node.ended(&id).await;
        ids.push(id);
    }
    postgres.sql("jobs", "update ceoagent.request set body = 'x' where seq = 1");
    postgres.sql("jobs", "delete from ceoagent.request where seq = 3");
    let (code, archive, said) = run(&setup, &["export", "--url", node.base()], "");
    assert_eq!(code, 3, "{said}");
    for (id, why) in [(&ids[0], "expected value"), (&ids[2], "its request is missing")] {
        let line = said.lines().find(|line| line.contains(id.as_str())).unwrap();
        assert!(line.contains("can't be read") && line.contains(why), "{said}");
        assert!(archive.contains(&format!("{{\"kind\":\"unreadable_job\",\"id\":\"{id}\"")), "{archive}");
    }
    assert!(said.contains("1 job, 2 unreadable_job"), "{said}");

    let other = Setup::new(&claude.base_url());
    let service = other.start();
    for args in [&["import", "--url", service.base()][..], &["import", "--to", "restored"]] {
        let (code, out, said) = run(&other, args, &archive);
        assert!(code == 3 && said.contains("2 jobs are missing: the service that exported them"), "{out}{said}");
    }
    node.terminate();
    for args in [&["move", "--from", &url, "--to", "back"][..], &["export", "--from", &url]] {
        let (code, _, said) = run(&setup, args, "");
        assert!(code == 1 && said.contains(&format!("job {} can't be read", ids[0])), "{said}");
    }
}

/// A folder of a stopped service with so many queued jobs.
async fn filled(jobs: usize) -> Setup {
    let setup = Setup::new("http://127.0.0.1:9").with("MAX_QUEUED_JOBS", "100000");
    let service = setup.start();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    for first in (0..jobs).step_by(1_000) {
        let questions: Vec<Value> =
            (first..jobs.min(first + 1_000)).map(|n| json!({ "query": format!("Plan {n}?") })).collect();
        let batch = send(
            service
                .request(Method::POST, "/api/v1/analyze/batch")
                .bearer_auth(ADMIN_TOKEN)
                .json(&json!({ "requests": questions })),
        );
        assert_eq!(batch.await.status, 202);
    }
    let (status, said) = service.terminate();
    assert!(status.success(), "{said}");
    setup
}

/// Starts the move, kills it after a moment and repeats it; then it has to end well.
fn move_with_kills(setup: &Setup, from: &str, to: &str) {
    let mut killed = 0;
    while killed < 4 {
        let mut child: Command = setup.command();
        let mut child = child.args(["move", "--from", from, "--to", to]).spawn().unwrap();
        // Not a wait for anything: the kill may come at any moment.
        thread::sleep(Duration::from_millis(rand::rng().random_range(20..800)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
    }
    let (code, out, said) = run(setup, &["move", "--from", from, "--to", to], "");
    assert_eq!(code, 0, "after {killed} kills: {out}{said}");
    assert!(out.contains("both sides are equal"), "{out}");
    println!("{from}: {killed} kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_killed_continues_and_ends_equal_in_both_directions() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let setup = filled(5_000).await;
    move_with_kills(&setup, "data", &url);
    move_with_kills(&setup, &url, "back");
    let moved = records(&setup, "data");
    assert_eq!(moved.iter().filter(|line| line.starts_with("{\"kind\":\"job\"")).count(), 5_000);
    assert_eq!(records(&setup, "back"), moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_does_not_start_with_a_part_of_the_jobs_and_places_that_can_not_be_used_are_refused_in_words() {
    let setup = filled(300).await;
    let (_, archive, _) = run(&setup, &["export", "--from", "data"], "");
    let lines: Vec<&str> = archive.lines().collect();
    let text = |lines: &[&str]| format!("{}\n", lines.join("\n"));

    let whole = run(&setup, &["import", "--to", "whole"], &archive);
    assert_eq!(whole.0, 0, "{whole:?}");
    assert_eq!(records(&setup, "whole"), records(&setup, "data"));
    // The address of a service in the environment is for other commands.
    let setup = setup.with("CEOAGENT_URL", "http://127.0.0.1:9");
    assert_eq!(records(&setup, "whole"), records(&setup, "data"));
    let again = run(&setup, &["import", "--to", "whole"], &archive);
    assert_eq!((again.0, again.1.contains("nothing was written")), (0, true), "{again:?}");
    for args in [["export", "--from", "data"], ["import", "--to", "whole"]] {
        let (code, _, said) = run(&setup, &[&args[..], &["--url", "http://127.0.0.1:9"]].concat(), &archive);
        assert!(code == 2 && said.contains(&format!("'{}' cannot be used with '--url'", args[1])), "{said}");
    }
    let setup = setup.without("CEOAGENT_URL");

    // A byte that is no text.
    let mut bytes = archive.clone().into_bytes();
    let at = archive.rfind("Plan").unwrap();
    bytes[at] = 0xff;
    let (code, _, said) = run(&setup, &["import", "--to", "bytes"], &bytes);
    assert!(code == 1 && said.contains(&format!("line {}: not a record", lines.len() - 1)), "{said}");
    let service = setup.start();
    let client = Setup::new("http://127.0.0.1:9").with("CEOAGENT_URL", service.base()).with("ADMIN_TOKEN", ADMIN_TOKEN);
    let (code, out, said) = run(&client, &["import"], &bytes);
    assert!(code == 3 && out.contains("0 jobs imported, 299 skipped (they exist already), 1 refused"), "{out}{said}");
    assert!(said.contains(&format!("line {}: not a record", lines.len() - 1)), "{said}");
    service.terminate();

    // Damage is found at its line, and what came before it serves nobody.
    let last = lines.len() - 1;
    let (mut swapped, mut nonsense, mut changed) = (lines.clone(), lines.clone(), lines.clone());
    swapped.swap(last - 1, last - 2);
    nonsense[last - 3] = "{\"kind\":\"job\",\"id\":7";
    let other = lines[last - 1].replace("Plan", "Plot");
    changed[last - 1] = &other;
    let end = lines.len();
    for (folder, lines, line, words) in [
        ("cut", &lines[..last], end - 1, "the end of the archive is missing"),
        ("swapped", &swapped[..], end, "the checksum of its records of the kind job"),
        ("nonsense", &nonsense[..], end - 3, "not a record of an archive"),
        ("changed", &changed[..], end, "the checksum of its records of the kind job"),
    ] {
        let (code, _, said) = run(&setup, &["import", "--to", folder], text(lines));
        assert_eq!(code, 1, "{folder}: {said}");
        let is_told = said.contains(&format!("line {line}: ")) && said.contains(words);
        assert!(is_told && said.contains("Nothing was imported"), "{folder}: {said}");
        assert!(!setup.folder().join(folder).exists());
    }
    let (code, _, said) = run(&setup, &["import", "--to", "none"], text(&lines[1..]));
    assert!(code == 1 && said.contains("line 1: not the header of an archive"), "{said}");

    let many = filled(1_200).await;
    let (_, archive, _) = run(&many, &["export", "--from", "data"], "");
    let cut = text(&archive.lines().take(1_000).collect::<Vec<_>>());
    let (code, _, said) = run(&many, &["import", "--to", "part"], &cut);
    assert_eq!(code, 1);
    assert!(said.contains("records before it are in the data folder part, and no service starts with them"), "{said}");
    let part = Setup::new("http://127.0.0.1:9").with("DATA_DIR", many.folder().join("part").to_str().unwrap());
    let (status, said) = part.run(&["serve"]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("the job store has only a part of the archive "), "{said}");
    let whole = run(&many, &["import", "--to", "part"], &archive);
    assert_eq!(whole.0, 0, "the same archive, whole: {whole:?}");
    part.start();

    for (args, words) in [
        (&["move", "--from", "data", "--to", "./data"][..], "is the source and the target"),
        (&["move", "--from", "nowhere", "--to", "x"], "there is no job store in nowhere: name the data folder"),
        (&["move", "--from", "data", "--to", "DATABASE_URL"], "--to DATABASE_URL: this setting is not set"),
        (
            &["move", "--from", "postgres://u:secret@127.0.0.1:9/jobs", "--to", "x"],
            "can't use the database 127.0.0.1:9/jobs: ",
        ),
        (
            &["move", "--from", "postgres://u:sec?ret@127.0.0.1:9/jobs", "--to", "x"],
            "can't use the database of this URL: ",
        ),
        (
            &["move", "--from", "data", "--to", "posgres://u:secret@127.0.0.1:9/jobs"],
            "--to: not a folder, and not a URL",
        ),
    ] {
        let (code, _, said) = run(&many, args, "");
        assert!(
            code == 1 && said.contains(words) && !said.contains("secret") && !said.contains("ret@"),
            "{args:?}: {said}"
        );
        assert!(!many.folder().join("x").exists());
    }
    let (code, _, said) =
        run(&many, &["move", "--from", "data", "--to", setup.folder().join("whole").to_str().unwrap()], "");
    assert!(code == 1 && said.contains("has records already. Name an empty place"), "{said}");
}
