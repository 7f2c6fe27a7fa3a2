//! Questions that are the same: asked once while they wait together, and answered again from what is there.

use std::path::Path;

use ceoagent::claude::simulator::{ErrorAnswer, Fault, Simulator};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator};

const QUERY: &str = "Should we open a second plant?";

/// A service against `claude` that has it think as hard where a client waits as where none does.
fn setup(claude: &Simulator) -> Setup {
    Setup::new(&claude.base_url()).with("EFFORT", "none")
}

async fn batch(service: &Service, count: usize) -> Vec<String> {
    let requests = vec![json!({ "query": QUERY }); count];
    let batch = service.post("/api/v1/analyze/batch", &json!({ "requests": requests })).await;
    assert_eq!(batch.status, 202, "{batch:#?}");
    batch.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// The jobs at their ends.
async fn ended(service: &Service, ids: &[String]) -> Vec<Value> {
    let mut jobs = Vec::new();
    for id in ids {
        jobs.push(service.ended(id).await.body);
    }
    jobs
}

fn statuses(jobs: &[Value]) -> Vec<&str> {
    jobs.iter().map(|job| job["status"].as_str().unwrap()).collect()
}

/// Calls in the ledger, over all days.
async fn calls_billed(service: &Service) -> u64 {
    let usage = service.admin_get("/api/v1/admin/usage").await.body;
    usage["days"].as_array().unwrap().iter().map(|day| day["total"]["calls"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn however_many_ask_the_same_at_once_claude_is_asked_once_and_each_has_its_own_job() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = setup(&claude).start();
    let accepted = futures_util::future::join_all((0..8).map(|_| service.submit(QUERY))).await;
    let mut ids: Vec<String> = accepted.iter().map(Answer::id).collect();
    // Those that wait are answered with their own jobs; a difference of white space is none.
    let body = json!({ "query": format!(" {}\n", QUERY.replace(' ', "  ")), "depth": "full", "wait": true });
    let (waiting, ()) = futures_util::future::join(
        futures_util::future::join_all((0..3).map(|_| service.post("/api/v1/analyze", &body))),
        async {
            while service.admin_get("/api/v1/admin/jobs?status=queued").await.body["jobs"].as_array().unwrap().len()
                < 10
            {}
            let queued = service.admin_get("/api/v1/admin/jobs?status=queued").await.body;
            for job in queued["jobs"].as_array().unwrap() {
                assert_eq!(job["queue"]["waiting_for"], "same_question", "{job:#}");
            }
            claude.release();
        },
    )
    .await;
    for answer in &waiting {
        assert_eq!((answer.status, answer.body["status"].as_str()), (200, Some("succeeded")), "{answer:#?}");
    }
    ids.extend(waiting.iter().map(Answer::id));
    let jobs = ended(&service, &ids).await;
    assert_eq!(statuses(&jobs), ["succeeded"; 11]);
    let (own, shared): (Vec<&Value>, Vec<&Value>) = jobs.iter().partition(|job| job["shared_with"].is_null());
    assert_eq!((own.len(), shared.len()), (1, 10));
    for job in shared {
        assert_eq!((&job["shared_with"], &job["result"]), (&own[0]["id"], &own[0]["result"]));
        assert_eq!((&job["usage"], &job["cost_usd"]), (&Value::Null, &Value::Null));
        assert_eq!(job["attempts"][0]["outcome"], "shared");
        assert_eq!(job["attempts"][0]["model"], own[0]["attempts"][0]["model"]);
    }
    let distinct: std::collections::HashSet<&String> = ids.iter().collect();
    assert_eq!((distinct.len(), claude.counters().calls, calls_billed(&service).await), (11, 1, 1));
    assert_eq!(service.metric("ceoagent_answers_shared_total").await, "10");
}

#[tokio::test]
async fn where_the_one_that_was_asked_fails_or_is_cancelled_the_next_one_asks() {
    let claude = simulator().await;
    claude.script([Fault::Error(ErrorAnswer::status(400))]);
    let service = setup(&claude).start();
    let jobs = ended(&service, &batch(&service, 3).await).await;
    let mut told = statuses(&jobs);
    told.sort_unstable();
    assert_eq!((told, claude.counters().calls), (vec!["failed", "succeeded", "succeeded"], 2));

    claude.script([Fault::Hold]);
    let ids = batch(&service, 4).await;
    claude.wait_for_calls(3).await;
    let running = service.admin_get("/api/v1/admin/jobs?status=running").await.body;
    let asked = running["jobs"][0]["id"].as_str().unwrap();
    let other = ids.iter().find(|id| *id != asked).unwrap();
    // One that waits is cancelled for itself alone.
    for id in [other, asked] {
        assert_eq!(service.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).await.status, 200);
    }
    let jobs = ended(&service, &ids).await;
    let mut told = statuses(&jobs);
    told.sort_unstable();
    assert_eq!((told, claude.counters().calls), (vec!["cancelled", "cancelled", "succeeded", "succeeded"], 4));
}

#[tokio::test]
async fn after_a_kill_all_that_waited_for_the_same_answer_get_one() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = setup(&claude);
    let service = setup.start();
    let ids = batch(&service, 5).await;
    claude.wait_for_calls(1).await;
    service.kill();
    let service = setup.start();
    let jobs = ended(&service, &ids).await;
    assert_eq!((statuses(&jobs), claude.counters().calls), (vec!["succeeded"; 5], 2));
    claude.release();
}

#[tokio::test]
async fn other_questions_callers_models_and_who_wants_its_own_answer_share_nothing() {
    let claude = simulator().await;
    claude.script(vec![Fault::Hold; 8]);
    let [alice, bob] = ["key-of-alice-0123", "key-of-bob-4567890"];
    let keys = format!("alice:{alice},bob:{bob}");
    let service = setup(&claude).with("API_KEYS", &keys).with("CACHE_TTL", "3600").start();
    let ask = async |key: &str, body: Value, header: Option<&str>| {
        let request = service.request(Method::POST, "/api/v1/analyze").bearer_auth(key).json(&body);
        let request = header.into_iter().fold(request, |request, value| request.header("cache-control", value));
        let answer = send(request).await;
        assert_eq!(answer.status, 202, "{answer:#?}");
        answer.body["id"].clone()
    };
    let plain = || json!({ "query": QUERY });
    ask(alice, plain(), None).await;
    ask(bob, plain(), None).await;
    ask(alice, json!({ "query": QUERY, "model": "claude-opus-5-5" }), None).await;
    ask(alice, json!({ "query": QUERY, "context": "We are ten." }), None).await;
    ask(alice, json!({ "query": QUERY, "options": ["Yes", "No"] }), None).await;
    ask(alice, json!({ "query": QUERY, "prompt_version": "v1" }), None).await;
    ask(alice, plain(), Some("max-age=0, No-Cache")).await;
    claude.wait_for_calls(7).await;
    let shares = ask(alice, json!({ "query": QUERY, "priority": "low", "metadata": { "team": "ops" } }), None).await;
    claude.release();
    let shared = send(
        service.request(Method::GET, &format!("/api/v1/jobs/{}?wait=20", shares.as_str().unwrap())).bearer_auth(alice),
    );
    let shared = shared.await.body;
    assert_eq!((&shared["status"], shared["shared_with"].is_string()), (&json!("succeeded"), true), "{shared:#}");
    assert_eq!(claude.counters().calls, 7);
}

#[tokio::test]
async fn no_answer_is_given_again_unless_the_operator_wants_that() {
    let claude = simulator().await;
    let service = setup(&claude).start();
    for calls in 1..=2 {
        let job = service.post("/api/v1/analyze", &json!({ "query": QUERY, "wait": true })).await;
        assert_eq!((job.status, job.body.get("cached"), claude.counters().calls), (200, None, calls));
    }
}

#[tokio::test]
async fn an_answer_that_is_there_is_given_again_at_once_for_nothing_and_after_a_restart_too() {
    let claude = simulator().await;
    let setup = setup(&claude).with("CACHE_TTL", "3600").with("PROMPTS_DIR", "prompts");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/v1");
    let prompts = setup.folder().join("prompts/v1");
    std::fs::create_dir_all(&prompts).unwrap();
    for file in ["system.txt", "decision_analysis.txt"] {
        std::fs::copy(shipped.join(file), prompts.join(file)).unwrap();
    }
    let service = setup.start();
    let first = service.post("/api/v1/analyze", &json!({ "query": QUERY, "depth": "full", "wait": true })).await;
    let wanted = json!({ "job_id": first.body["id"], "finished_at": first.body["finished_at"] });
    let again = service.post("/api/v1/analyze", &json!({ "query": QUERY, "depth": "full", "wait": true })).await;
    let unwaited = service.submit(QUERY).await;
    for answer in [&again, &unwaited] {
        assert_eq!((answer.status, &answer.body["cached"]), (200, &wanted), "{answer:#?}");
        assert_eq!(answer.body["result"], first.body["result"]);
        assert_eq!((answer.body.get("usage"), &answer.body["status"]), (None, &json!("succeeded")));
        assert_eq!(service.ended(&answer.id()).await.body["cached"], wanted);
    }
    assert_eq!((claude.counters().calls, calls_billed(&service).await), (1, 1));
    assert_eq!(service.metric("ceoagent_answers_cached_total").await, "2");
    let mut command = setup.command();
    let output = command.env("CEOAGENT_URL", service.base()).args(["jobs", "show", &again.id()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("comes from the cache: job {}", first.id())), "{said}");

    let page = service.get(&format!("/jobs/{}", again.id())).await.body;
    assert!(page.as_str().unwrap().contains(&format!("href=\"/jobs/{}\"", first.id())), "{page}");

    service.kill();
    let service = setup.start();
    assert_eq!(service.submit(QUERY).await.body["cached"], wanted);
    let own = service.request(Method::POST, "/api/v1/analyze").header("cache-control", "no-cache");
    let own = send(own.json(&json!({ "query": QUERY, "depth": "full", "wait": true }))).await;
    assert_eq!((own.body.get("cached"), claude.counters().calls), (None, 2));

    let template = prompts.join("decision_analysis.txt");
    let text = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, format!("{text}Weigh the exit costs.\n")).unwrap();
    let reload = service.request(Method::POST, "/api/v1/admin/prompts/reload").bearer_auth(ADMIN_TOKEN);
    assert_eq!(send(reload).await.status, 200);
    let anew = service.post("/api/v1/analyze", &json!({ "query": QUERY, "depth": "full", "wait": true })).await;
    assert_eq!((anew.body.get("cached"), claude.counters().calls), (None, 3));
    assert_eq!(service.submit(QUERY).await.body["cached"]["job_id"], anew.body["id"]);

    let delete = json!({ "action": "delete", "filter": {} });
    assert_eq!(service.admin_post("/api/v1/admin/jobs/actions", &delete).await.status, 200);
    let gone = service.post("/api/v1/analyze", &json!({ "query": QUERY, "depth": "full", "wait": true })).await;
    assert_eq!((gone.body.get("cached"), claude.counters().calls), (None, 4));
}
