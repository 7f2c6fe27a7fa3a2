//! Who may do what: every route by everybody, keys made and revoked, tokens, and how much of it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN_TOKEN, Answer, PATIENCE, Service, Setup, send, simulator};

const ALICE: &str = "a-key-of-alice-1234";
const BOB: &str = "a-key-of-bob-567890";
const READER: &str = "a-key-to-read-12345";

async fn ask(service: &Service, key: Option<&str>, method: Method, path: &str, body: Option<Value>) -> Answer {
    let request = service.request(method, path);
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    send(match body {
        Some(body) => request.json(&body),
        None => request,
    })
    .await
}

fn setup(base_url: &str) -> Setup {
    Setup::new(base_url).with("API_KEYS", &format!("alice:{ALICE},bob:{BOB},alice-reads:read:{READER}"))
}

/// Every route of the document by everybody: those without a key, with a wrong one, another caller, one who may only
/// read, and an operator. A job is alice's; `alice` is who it is asked by where no other is.
#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let claude = simulator().await;
    // Wrong keys are limited by address.
    let service = setup(&claude.base_url()).with("TRUSTED_PROXIES", "127.0.0.1").start();
    let mut addresses = (1..=254).map(|last| format!("192.0.2.{last}"));
    let question = || Some(json!({"query": "Mine?", "run_at": "2030-01-01T00:00:00Z"}));
    let job = async || {
        let soon = Some(json!({"query": "Mine?", "deadline_seconds": 600}));
        let answer = ask(&service, Some(ALICE), Method::POST, "/api/v1/analyze", soon).await;
        answer.id()
    };
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    // What each may not: (none, wrong, bob, reader, alice, admin); 0 where they may.
    let open = [0, 0, 0, 0, 0, 0];
    let asking = [401, 401, 0, 403, 0, 0];
    let reading = [401, 401, 0, 0, 0, 0];
    let own = [401, 401, 404, 404, 0, 0];
    let changing = [401, 401, 404, 403, 0, 0];
    let admin = [401, 401, 403, 403, 403, 0];
    let table = [
        (Method::GET, "/health", open),
        (Method::GET, "/health/ready", open),
        (Method::GET, "/metrics", open),
        (Method::POST, "/api/v1/analyze", asking),
        (Method::POST, "/api/v1/analyze/batch", asking),
        (Method::GET, "/api/v1/jobs", reading),
        (Method::GET, "/api/v1/jobs/{id}", own),
        (Method::GET, "/api/v1/jobs/{id}/events", own),
        (Method::DELETE, "/api/v1/jobs/{id}", changing),
        (Method::POST, "/api/v1/jobs/{id}/cancel", changing),
        (Method::POST, "/api/v1/jobs/{id}/retry", changing),
        (Method::POST, "/api/v1/jobs/{id}/resend-webhook", changing),
        (Method::GET, "/api/v1/webhooks/secret", asking),
        (Method::POST, "/api/v1/webhooks/secret/rotate", asking),
        (Method::POST, "/api/v1/webhooks/test", asking),
        (Method::GET, "/api/v1/webhooks/failing", reading),
        (Method::GET, "/api/v1/admin/webhooks/secret", admin),
        (Method::POST, "/api/v1/admin/webhooks/secret/rotate", admin),
        (Method::GET, "/api/v1/admin/webhooks/failing", admin),
        (Method::GET, "/api/v1/admin/jobs", admin),
        (Method::POST, "/api/v1/admin/jobs/actions", admin),
        (Method::GET, "/api/v1/admin/stats", admin),
        (Method::POST, "/api/v1/admin/queue/pause", admin),
        (Method::POST, "/api/v1/admin/queue/resume", admin),
        (Method::GET, "/api/v1/admin/audit", admin),
        (Method::GET, "/api/v1/admin/export", admin),
        (Method::POST, "/api/v1/admin/import", admin),
        (Method::GET, "/api/v1/admin/limits", admin),
        (Method::PATCH, "/api/v1/admin/limits", admin),
        (Method::GET, "/api/v1/admin/keys", admin),
        (Method::POST, "/api/v1/admin/keys", admin),
        (Method::DELETE, "/api/v1/admin/keys/{name}", admin),
        (Method::GET, "/api/v1/admin/prompts", admin),
        (Method::GET, "/api/v1/admin/usage", admin),
        (Method::GET, "/api/v1/admin/history", admin),
        (Method::POST, "/api/v1/admin/prompts/reload", admin),
        (Method::POST, "/api/v1/admin/jobs/{id}/reparse", admin),
    ];
    let document = service.get("/openapi.json").await.body;
    let mut listed: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let known = ["get", "post", "patch", "put", "delete"];
        let of_path = methods.as_object().unwrap().keys().filter(|name| known.contains(&name.as_str()));
        listed.extend(of_path.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    for (method, path, expected) in &table {
        let operation = &document["paths"][*path][method.as_str().to_lowercase()];
        let told = match expected {
            [0, 0, 0, 0, 0, 0] => json!([]),
            [401, 401, 403, 403, 403, 0] => json!([{"bearer": ["admin"]}]),
            [401, 401, 404, 404, 0, 0] | [401, 401, 0, 0, 0, 0] => json!([{"bearer": ["read"]}, {}]),
            _ => json!([{"bearer": ["analyze"]}, {}]),
        };
        assert_eq!(operation["security"], told, "what the document says of {method} {path}");
        for status in expected.iter().filter(|status| **status != 0) {
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.contains_key(&status.to_string()), "{method} {path} does not tell of {status}");
        }
    }
    for route in &listed {
        let is_told = table.iter().any(|(method, path, _)| *route == format!("{method} {path}"));
        assert!(is_told, "{route} is not in the table of who may do what");
    }

    for (method, path, expected) in table {
        let callers = [None, Some("a-key-of-nobody-12"), Some(BOB), Some(READER), Some(ALICE), Some(ADMIN_TOKEN)];
        for (key, refused) in callers.into_iter().zip(expected) {
            let path = path.replace("{id}", &if path.contains("{id}") { job().await } else { String::new() });
            let body = match (path.as_str(), &method) {
                ("/api/v1/analyze", _) => question(),
                ("/api/v1/analyze/batch", _) => Some(json!({"requests": [question()]})),
                (path, _) if path.ends_with("/import") => None,
                (path, method) if path.ends_with("/keys") && *method == Method::POST => Some(json!({"name": "new"})),
                (_, method) if *method == Method::GET => None,
                _ => Some(json!({})),
            };
            let request = service.request(method.clone(), &path);
            let request = request.header("x-forwarded-for", addresses.next().unwrap());
            let request = key.map_or(request.try_clone().unwrap(), |key| request.bearer_auth(key));
            let answer = body.map_or(request.try_clone().unwrap(), |body| request.json(&body)).send().await.unwrap();
            let status = answer.status().as_u16();
            let who = key.unwrap_or("nobody");
            match refused {
                0 => assert!(![401, 403, 429].contains(&status), "{method} {path} by {who}: {status}"),
                _ => assert_eq!(status, refused, "{method} {path} by {who}"),
            }
        }
    }
}

#[tokio::test]
async fn a_callers_jobs_are_its_own_with_their_keys_and_their_readers() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    let submit = async |key| {
        let request = service.request(Method::POST, "/api/v1/analyze").bearer_auth(key);
        send(request.header("Idempotency-Key", "same").json(&json!({"query": "Same?"}))).await
    };
    let (alice, bob, again) = (submit(ALICE).await, submit(BOB).await, submit(ALICE).await);
    assert_ne!(alice.id(), bob.id(), "a name of a question is its caller's own");
    assert_eq!((alice.id(), again.header("idempotency-replayed")), (again.id(), "true"));
    let path = format!("/api/v1/jobs/{}", alice.id());
    let hidden = ask(&service, Some(BOB), Method::GET, &path, None).await;
    let missing =
        ask(&service, Some(BOB), Method::GET, "/api/v1/jobs/019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70", None).await;
    hidden.assert_problem(404, "job_not_found");
    let told = |answer: &Answer, id: &str| answer.body["detail"].as_str().unwrap().replace(id, "ID");
    assert_eq!(
        told(&hidden, &alice.id()),
        told(&missing, "019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70"),
        "nothing tells them apart"
    );
    let ids = |answer: &Answer| -> Vec<String> {
        let jobs = answer.body["jobs"].as_array().unwrap_or_else(|| panic!("{answer:#?}"));
        jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    let listed = service.admin_get("/api/v1/admin/jobs?caller=alice").await;
    assert_eq!(ids(&listed), [alice.id()]);
    let seen = ask(&service, Some(ALICE), Method::GET, &path, None).await;
    let names = [&listed.body["jobs"][0]["caller"], &seen.body["caller"], &alice.body["caller"]];
    assert_eq!(names, [&json!("alice"); 3]);
    assert_eq!(seen.body["links"]["events"], format!("{path}/events"));
    let own = async |key, query| ask(&service, Some(key), Method::GET, &format!("/api/v1/jobs{query}"), None).await;
    assert_eq!(ids(&own(ALICE, "").await), [alice.id()]);
    assert_eq!(ids(&own(BOB, "?text=same&limit=1").await), [bob.id()]);
    assert_eq!(ids(&own(READER, "").await), [""; 0], "another caller's");
    own(ALICE, "?caller=bob").await.assert_problem(400, "invalid_parameter");
    let both = format!("?ids={},{}", alice.id(), bob.id());
    assert_eq!(ids(&own(ALICE, &both).await), [alice.id()], "also of those that it names");
}

#[tokio::test]
async fn a_caller_deletes_its_own_ended_jobs_and_an_operator_any_which_goes_on_record() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let submit = async |query: &str| {
        ask(&service, Some(ALICE), Method::POST, "/api/v1/analyze", Some(json!({"query": query}))).await.id()
    };
    let (first, second) = (submit("First?").await, submit("Second?").await);
    let delete =
        async |key, id: &str| ask(&service, Some(key), Method::DELETE, &format!("/api/v1/jobs/{id}"), None).await;
    let early = delete(ALICE, &first).await;
    early.assert_problem(409, "conflict");
    assert_eq!(early.body["detail"], "the job is queued; cancel it before you delete it");
    for id in [&first, &second] {
        ask(&service, Some(ALICE), Method::POST, &format!("/api/v1/jobs/{id}/cancel"), None).await;
    }
    delete(BOB, &first).await.assert_problem(404, "job_not_found");
    let deleted = delete(ALICE, &first).await;
    assert_eq!((deleted.status, &deleted.body), (204, &json!("")));
    delete(ALICE, &first).await.assert_problem(404, "job_not_found");
    let audit = async || service.admin_get("/api/v1/admin/audit?limit=1").await.body["entries"][0].clone();
    assert_eq!(audit().await["action"], "pause", "callers' own actions are not on record");
    assert_eq!(delete(ADMIN_TOKEN, &second).await.status, 204);
    let entry = audit().await;
    assert_eq!([&entry["action"], &entry["detail"], &entry["jobs"]], [&json!("delete"), &json!(second), &json!(1)]);
}

#[tokio::test]
async fn keys_are_made_shown_once_kept_as_hashes_and_revoked_for_good() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("REQUIRE_API_KEY", "true");
    let service = setup.start();
    let made = service.admin_post("/api/v1/admin/keys", &json!({"name": "ci", "scope": "analyze"})).await;
    assert_eq!((made.status, made.body["name"].as_str()), (201, Some("ci")), "{made:#?}");
    assert_eq!(made.body.get("notice"), None);
    let key = made.body["key"].as_str().unwrap().to_owned();
    service.submit("Without a key?").await.assert_problem(401, "unauthorized");
    let with_key = async |service: &Service| {
        ask(service, Some(&key), Method::POST, "/api/v1/analyze", Some(json!({"query": "Let in?"}))).await.status
    };
    assert_eq!(with_key(&service).await, 202);
    service.admin_post("/api/v1/admin/keys", &json!({"name": "ci"})).await.assert_problem(409, "conflict");
    service.admin_post("/api/v1/admin/keys", &json!({"name": "a b"})).await.assert_problem(422, "validation_failed");
    let log = service.kill();
    assert!(log.contains("callers need an API key or a JWT"), "{log}");

    let service = setup.start();
    assert_eq!(with_key(&service).await, 202, "it survives a kill");
    let revoke = async |name: &str| {
        ask(&service, Some(ADMIN_TOKEN), Method::DELETE, &format!("/api/v1/admin/keys/{name}"), None).await
    };
    assert_eq!(revoke("ci").await.status, 200);
    revoke("ci").await.assert_problem(404, "key_not_found");
    assert_eq!(with_key(&service).await, 401);
    service.submit("Without a key again?").await.assert_problem(401, "unauthorized");
    let keys = service.admin_get("/api/v1/admin/keys").await.body;
    assert!(!keys.to_string().contains(&key) && keys["keys"][0]["revoked_at"].is_string(), "{keys:#}");
    let audit = service.admin_get("/api/v1/admin/audit").await.body;
    assert_eq!(
        (&audit["entries"][0]["action"], &audit["entries"][1]["action"]),
        (&json!("key_revoke"), &json!("key_create"))
    );
    service.terminate();
    let folder = std::fs::read_dir(setup.folder().join("data/queue")).unwrap();
    for file in folder.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{}", file.display());
    }
}

#[tokio::test]
async fn a_key_does_not_close_an_open_service_but_names_its_caller_and_the_answer_says_how_to_require_keys() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let made = service.admin_post("/api/v1/admin/keys", &json!({"name": "alice"})).await;
    assert!(made.body["notice"].as_str().unwrap().contains("REQUIRE_API_KEY=true"), "{made:#?}");
    let key = made.body["key"].as_str().unwrap();
    let question = || Some(json!({"query": "Open?"}));
    let everybodys = ask(&service, None, Method::POST, "/api/v1/analyze", question()).await;
    let alices = ask(&service, Some(key), Method::POST, "/api/v1/analyze", question()).await;
    let operators = ask(&service, Some(ADMIN_TOKEN), Method::POST, "/api/v1/analyze", question()).await;
    assert_eq!([&everybodys, &alices, &operators].map(|answer| answer.status), [202; 3]);
    let see = async |key, job: &Answer| {
        ask(&service, key, Method::GET, &format!("/api/v1/jobs/{}", job.id()), None).await.status
    };
    assert_eq!((see(None, &everybodys).await, see(None, &operators).await, see(None, &alices).await), (200, 200, 404));
    assert_eq!(see(Some(key), &alices).await, 200);
    let own = ask(&service, Some(key), Method::GET, "/api/v1/jobs", None).await;
    assert_eq!((&own.body["jobs"][0]["id"], own.body["jobs"].as_array().unwrap().len()), (&json!(alices.id()), 1));
    let unknown = ask(&service, Some("a-key-of-a-gateway"), Method::POST, "/api/v1/analyze", question()).await;
    assert_eq!(unknown.status, 202, "a gateway before it may have credentials of its own");
    ask(&service, None, Method::GET, "/api/v1/jobs", None).await.assert_problem(401, "unauthorized");
    ask(&service, Some(key), Method::GET, "/api/v1/admin/jobs", None).await.assert_problem(403, "forbidden");
}

#[tokio::test]
async fn of_those_who_make_a_key_of_one_name_at_once_one_has_it_and_the_others_are_told() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for round in 0..5 {
        let body = json!({"name": format!("ci-{round}"), "scope": "analyze"});
        let make = || service.admin_post("/api/v1/admin/keys", &body);
        let answers = tokio::join!(make(), make(), make(), make());
        let (made, refused): (Vec<_>, Vec<_>) =
            <[Answer; 4]>::from(answers).into_iter().partition(|answer| answer.status == 201);
        assert_eq!(made.len(), 1, "{made:#?}");
        for answer in &refused {
            answer.assert_problem(409, "conflict");
        }
        let query = Some(json!({"query": "Let in?"}));
        let answer = ask(&service, made[0].body["key"].as_str(), Method::POST, "/api/v1/analyze", query).await;
        assert_eq!(answer.status, 202, "{answer:#?}");
    }
}

#[tokio::test]
async fn a_caller_that_asks_too_often_is_told_when_to_come_again_and_others_are_served() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).with("SUBMITS_PER_MINUTE", "3").start();
    let submit =
        async |key| ask(&service, Some(key), Method::POST, "/api/v1/analyze", Some(json!({"query": "q"}))).await;
    for left in ["2", "1", "0"] {
        let answer = submit(ALICE).await;
        assert_eq!((answer.status, answer.header("ratelimit-policy")), (202, "\"submits\";q=3;w=60"));
        assert!(answer.header("ratelimit").starts_with(&format!("\"submits\";r={left};t=")), "{answer:#?}");
    }
    let refused = submit(ALICE).await;
    refused.assert_problem(429, "rate_limited");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 21, "{refused:#?}");
    assert!(refused.header("ratelimit").starts_with("\"submits\";r=0;t="), "{refused:#?}");
    assert_eq!(submit(BOB).await.status, 202);
}

#[tokio::test]
async fn a_retry_counts_like_a_submission() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).with("SUBMITS_PER_MINUTE", "3").start();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let question = Some(json!({"query": "q"}));
    let id = ask(&service, Some(ALICE), Method::POST, "/api/v1/analyze", question).await.id();
    let act =
        async |key, action| ask(&service, Some(key), Method::POST, &format!("/api/v1/jobs/{id}/{action}"), None).await;
    for left in ["1", "0"] {
        act(ALICE, "cancel").await;
        let retried = act(ALICE, "retry").await;
        assert_eq!(retried.status, 202, "{retried:#?}");
        assert!(retried.header("ratelimit").starts_with(&format!("\"submits\";r={left};t=")), "{retried:#?}");
    }
    act(ALICE, "cancel").await;
    act(ALICE, "retry").await.assert_problem(429, "rate_limited");
    assert_eq!(act(ADMIN_TOKEN, "retry").await.status, 202, "an operator has no such limit");
}

#[tokio::test]
async fn callers_without_a_key_are_told_apart_by_the_address_that_a_trusted_proxy_saw() {
    let claude = simulator().await;
    let base = claude.base_url();
    for (proxies, told_apart) in [("", false), ("10.0.0.0/8", false), ("10.0.0.0/8,127.0.0.1", true)] {
        let setup = Setup::new(&base).with("SUBMITS_PER_MINUTE", "2").with("TRUSTED_PROXIES", proxies);
        let service = setup.start();
        let submit = async |address: &str| {
            let request = service.request(Method::POST, "/api/v1/analyze").header("x-forwarded-for", address);
            send(request.json(&json!({"query": "q"}))).await.status
        };
        let answers = [submit("192.0.2.1").await, submit("192.0.2.1").await, submit("192.0.2.2").await];
        assert_eq!(answers, [202, 202, if told_apart { 202 } else { 429 }], "{proxies}");
        // Whatever a client writes before what the proxy appends does not count.
        assert_eq!(submit("192.0.2.77, 192.0.2.1").await, 429, "{proxies}");
    }
}

#[tokio::test]
async fn an_open_stream_ends_with_its_key() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let made = service.admin_post("/api/v1/admin/keys", &json!({"name": "alice/phone"})).await;
    let key = made.body["key"].as_str().unwrap();
    let id = ask(&service, Some(key), Method::POST, "/api/v1/analyze", Some(json!({"query": "q"}))).await.id();
    let follow = async |key: &str| {
        let request = service.request(Method::GET, &format!("/api/v1/jobs/{id}/events")).bearer_auth(key);
        let mut stream = request.send().await.unwrap();
        let mut text = String::new();
        while !text.contains("event: status") {
            text.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
        }
        stream
    };
    let (mut revoked, mut valid) = (follow(key).await, follow(ALICE).await);
    let path = "/api/v1/admin/keys/alice%2Fphone";
    assert_eq!(ask(&service, Some(ADMIN_TOKEN), Method::DELETE, path, None).await.status, 200);
    ask(&service, Some(ALICE), Method::POST, &format!("/api/v1/jobs/{id}/cancel"), None).await;
    assert_eq!(revoked.chunk().await.unwrap(), None, "not one more byte");
    let news = valid.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&news).contains("event: done"), "{news:?}");
}

#[tokio::test]
async fn wrong_credentials_are_answered_so_often_only_and_the_right_one_always() {
    let claude = simulator().await;
    let service = setup(&claude.base_url()).start();
    let look = async |key: &str| ask(&service, Some(key), Method::GET, "/api/v1/admin/stats", None).await;
    let mut refused = 0;
    let limited = loop {
        let answer = look("a-key-of-nobody-12").await;
        if answer.status == 429 {
            break answer;
        }
        answer.assert_problem(401, "unauthorized");
        refused += 1;
    };
    limited.assert_problem(429, "too_many_failures");
    ask(&service, None, Method::GET, "/api/v1/admin/stats", None).await.assert_problem(401, "unauthorized");
    look(ALICE).await.assert_problem(403, "forbidden");
    let metrics = service.get("/metrics").await.body;
    for (reason, count) in [("wrong", refused), ("too_many", 1), ("missing", 1), ("forbidden", 1)] {
        let line = format!("ceoagent_auth_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.as_str().unwrap().lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    assert!((30..60).contains(&refused) && !limited.header("retry-after").is_empty(), "{refused}");
    assert_eq!(look(ADMIN_TOKEN).await.status, 200);
}

#[tokio::test]
async fn answers_say_what_a_browser_may_make_of_them_and_which_pages_may_ask() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("CORS_ORIGINS", "https://app.example").start();
    for path in ["/health", "/nothing", "/api/v1/admin/jobs", "/docs"] {
        let answer = service.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert!(answer.header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert_eq!((answer.header("server"), answer.header("x-powered-by")), ("", ""), "{path}");
    }
    let from = async |origin: &str| send(service.request(Method::GET, "/health").header("origin", origin)).await;
    assert_eq!(from("https://app.example").await.header("access-control-allow-origin"), "https://app.example");
    assert_eq!(from("https://evil.example").await.header("access-control-allow-origin"), "");
}

#[test]
fn settings_that_would_let_the_wrong_ones_in_stop_the_start() {
    for (name, value, said) in [
        ("API_KEYS", "alice:short", "API_KEYS: entry 1"),
        ("API_KEYS", &format!("alice:{ALICE},bob:read:{ALICE}"), "API_KEYS: alice and bob have the same key"),
        ("API_KEYS", &format!("alice:{ADMIN_TOKEN}"), "the API key of alice is the admin token too"),
        ("API_KEYS", "alice:change-me-change-me", "API_KEYS: the key of entry 1 is a placeholder"),
        ("JWT_AUTH", "keys=/nowhere", "must name all of keys, issuer and audience"),
        ("CORS_ORIGINS", "*", "\"*\" is not an origin"),
        ("PUBLIC_URL", "https://ceo.example/memos", "Use scheme and host only, for example https://ceo.example"),
    ] {
        let (status, output) = Setup::new("http://127.0.0.1:1").with(name, value).run(&["serve"]);
        assert!(status.code() == Some(2) && output.contains(said), "{name}: {output}");
    }
}

#[tokio::test]
async fn tokens_with_an_unknown_extension_or_a_long_life_are_refused_and_a_hangup_signal_changes_the_keys() {
    const OLD: &[u8] = b"the old shared secret, of more than 32 bytes";
    const NEW: &[u8] = b"the new shared secret, of more than 32 bytes";
    let token = |secret: &[u8], life_days: u64, header: Value| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let exp = now + life_days * 24 * 3_600;
        let claims =
            json!({"iss": "https://id.example", "aud": "ceoagent", "sub": "alice", "exp": exp, "scope": "analyze"});
        let [header, claims] = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        let signature = ring::hmac::sign(&key, format!("{header}.{claims}").as_bytes());
        format!("{header}.{claims}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    };
    let plain = || json!({"alg": "HS256", "typ": "JWT"});
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let file = setup.folder().join("jwt-secret");
    std::fs::write(&file, OLD).unwrap();
    let names = format!("keys={}, issuer=https://id.example, audience=ceoagent", file.display());
    let service = setup.with("JWT_AUTH", &names).start();
    let ask = async |token: &str| ask(&service, Some(token), Method::GET, "/api/v1/jobs", None).await.status;
    assert_eq!(ask(&token(OLD, 30, plain())).await, 200);
    let critical = json!({"alg": "HS256", "crit": ["urn:example:only-from-here"], "urn:example:only-from-here": true});
    for refused in [token(OLD, 32, plain()), token(OLD, 1, critical), token(NEW, 1, plain())] {
        assert_eq!(ask(&refused).await, 401, "{refused}");
    }
    // A file that can't be used leaves the keys as they were.
    std::fs::write(&file, "short").unwrap();
    service.signal("HUP");
    service.until_said("failed to reload the keys of JWT_AUTH");
    assert_eq!(ask(&token(OLD, 1, plain())).await, 200);
    std::fs::write(&file, NEW).unwrap();
    service.signal("HUP");
    let changed = async { while ask(&token(NEW, 1, plain())).await != 200 {} };
    tokio::time::timeout(PATIENCE, changed).await.expect("the new key is known");
    assert_eq!(ask(&token(OLD, 1, plain())).await, 401, "the old key is not");
}
