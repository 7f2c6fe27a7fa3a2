//! Starts and stops: what keeps the service from starting and how it says so, and what is there after it comes back.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use ceoagent::{
    app::{App, error::StartError},
    claude::simulator::{Fault, Simulator, SimulatorConfig},
    clock::Clock,
    job::{Job, JobId, JobRequest, Priority},
    metrics::Metrics,
    store::{
        JobStore,
        sled::{SledConfig, SledStore},
    },
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Service, Setup, below_a_file, send, settings, simulator};

/// A start that must never come to a call.
fn setup() -> Setup {
    Setup::new("http://127.0.0.1:9")
}

/// Asserts that `ceoagent serve` fails, says all of `words` and no secret. Gives what it said.
#[track_caller]
fn assert_refused(setup: &Setup, words: &[&str]) -> String {
    let (status, said) = setup.run(&["serve"]);
    assert!(!status.success(), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(!said.contains("sk-test-secret") && !said.contains("panicked"), "{said}");
    said
}

/// The outcome of each attempt that has ended.
fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}

fn job_path(id: &str) -> String {
    format!("/api/v1/jobs/{id}")
}

#[test]
fn a_proxy_that_can_not_be_used_stops_the_start_by_name() {
    for (name, address, problem) in [
        ("HTTPS_PROXY", "ftp://proxy.example:21", "the scheme \"ftp\""),
        ("http_proxy", "htp://proxy.example:3128", "the scheme \"htp\""),
        ("ALL_PROXY", "socks6://user:hunter2@proxy.example", "the scheme \"socks6\""),
        ("all_proxy", "http:proxy.example", "the address (not shown) can't be read"),
    ] {
        let said = assert_refused(&setup().with(name, address), &[name, problem, "socks5h", "proxy.example:3128"]);
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn settings_as_docker_kubernetes_and_people_write_them_start_and_arrive() {
    let claude =
        Simulator::start(SimulatorConfig { api_key: Some("sk-ant-test".into()), ..SimulatorConfig::default() });
    let claude = claude.await.unwrap();
    for settings in [
        &[("ANTHROPIC_API_KEY", "\"sk-ant-test\""), ("MODEL_NAME", "\"claude-haiku-5-5\"")][..],
        &[("ANTHROPIC_API_KEY", "sk-ant-test\n"), ("MODEL_NAME", " claude-haiku-5-5 , claude-opus-5-5 ")],
        &[("ANTHROPIC_API_KEY", "'sk-ant-test'\r\n"), ("MODEL_NAME", "claude-haiku-5-5\n"), ("HOST", "localhost")],
        &[
            ("ANTHROPIC_API_KEY", " sk-ant-test "),
            ("MODEL_NAME", "'claude-haiku-5-5, claude-opus-5-5'"),
            ("HOST", "LocalHost"),
        ],
    ] {
        let mut setup = Setup::new(&claude.base_url());
        settings.iter().for_each(|(name, value)| setup.set(name, value));
        let service = setup.start();
        let job = service.ended(&service.submit("Does it arrive?").await.id()).await.body;
        assert_eq!(
            (&job["status"], &job["answered_by"]),
            (&json!("succeeded"), &json!("claude-haiku-5-5")),
            "{settings:?}: {job:#}"
        );
    }
    let setup = Setup::new(&claude.base_url()).without("ANTHROPIC_API_KEY");
    let file = "ANTHROPIC_API_KEY=sk-ant-test\r\n".encode_utf16().flat_map(u16::to_le_bytes);
    fs::write(setup.folder().join(".env"), [0xff, 0xfe].into_iter().chain(file).collect::<Vec<u8>>()).unwrap();
    let service = setup.start();
    assert_eq!(service.ended(&service.submit("By PowerShell?").await.id()).await.body["status"], "succeeded");
}

#[test]
fn without_a_key_serve_ends_at_once_and_names_the_setting_and_the_demo() {
    assert_refused(&setup().without("ANTHROPIC_API_KEY"), &["ANTHROPIC_API_KEY", "ceoagent demo"]);
    assert_refused(&setup().with("ANTHROPIC_API_KEY", ""), &["ANTHROPIC_API_KEY", "ceoagent demo"]);
}

#[test]
fn an_occupied_port_is_named() {
    let occupant = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupant.local_addr().unwrap();
    let setup = setup().with("PORT", &address.port().to_string());
    assert_refused(&setup, &[&address.to_string(), "choose another PORT"]);
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let mut setup = setup();
    let folder = below_a_file(&setup).display().to_string();
    setup.set("DATA_DIR", &folder);
    assert_refused(&setup, &[&folder, "DATA_DIR must be a folder that this user can write to"]);
}

#[test]
fn a_data_folder_in_use_is_left_to_its_owner() {
    let setup = setup();
    let _owner = setup.start();
    assert_refused(&setup, &["is in use by another ceoagent", "DATA_DIR"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_late_claims_no_job_and_leaves_nothing_running() {
    let claude = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let open = || {
        let path = folder.path().join("queue");
        let config = SledConfig { path, cache_bytes: 16 << 20, keep_answers: false };
        SledStore::open(config, clock.clone(), Metrics::new()).unwrap()
    };
    let store = open();
    let jobs: Vec<Job> = (0..20).map(|n| Job::new(JobId::from_u128(n), Priority::Normal, clock.now())).collect();
    for job in &jobs {
        store.insert(job.clone(), JobRequest::default().into()).await.unwrap();
    }
    drop(store);
    for bad in ["--api-keys=no-colon", "--webhook-secret=whsec_no-base64"] {
        let settings = settings(&claude.base_url(), folder.path(), &[bad]);
        let error = App::start(&settings, clock.clone()).await.err().unwrap();
        assert!(matches!(error, StartError::Keys(_) | StartError::WebhookSecrets(_)), "{error}");
        // A worker would keep it open.
        let store = open();
        for job in &jobs {
            assert_eq!(store.find(job.id).await.unwrap().as_ref(), Some(job), "queued, and without an attempt");
        }
    }
    assert_eq!(claude.counters().calls, 0);
}

#[test]
fn missing_prompts_are_named() {
    let setup = setup().with("PROMPTS_DIR", "no-prompts");
    assert_refused(&setup, &["no-prompts", "PROMPTS_DIR must have"]);
}

#[test]
fn a_broken_prompt_is_told_with_file_and_line() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/v1");
    let setup = setup().with("PROMPTS_DIR", "prompts");
    let folder = setup.folder().join("prompts/v1");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(shipped.join("system.txt"), folder.join("system.txt")).unwrap();
    let good = fs::read_to_string(shipped.join("decision_analysis.txt")).unwrap();
    let line = format!("line {}", good.lines().count() + 1);
    for (last_line, words) in [("{{ quarter }}", "unknown variable `quarter`"), ("{% if %}", "syntax error")] {
        fs::write(folder.join("decision_analysis.txt"), format!("{}\n{last_line}\n", good.trim_end_matches('\n')))
            .unwrap();
        assert_refused(&setup, &["prompts/v1/decision_analysis.txt", &line, words]);
    }
}

#[test]
fn a_bad_setting_is_told_with_its_name_its_value_and_what_is_allowed() {
    for (name, value, allowed) in [
        ("PORT", "70000", "from 0 to 65535"),
        ("HOST", "my-server", "must be an IP address"),
        ("WORKERS", "0", "from 1 to 1024"),
        ("REQUEST_TIMEOUT", "soon", "from 1 to 3600"),
        ("MAX_RETRIES", "-1", "from 0 to 20"),
        ("MAX_QUERY_LENGTH", "1e4", "from 1 to 100000"),
        ("MODEL_NAME", "claude sonnet", "visible ASCII characters without blanks"),
        ("DEBUG", "maybe", "must be true or false"),
        ("LOG_FORMAT", "xml", "text, json"),
        ("ON_UNKNOWN_OUTCOME", "ignore", "retry, fail"),
        ("ANTHROPIC_BASE_URL", "ftp://example", "starts with http:// or https://"),
    ] {
        assert_refused(&setup().with(name, value), &[name, value, allowed]);
    }
}

#[test]
fn a_bad_secret_is_told_without_its_value() {
    for (name, value, allowed) in [
        ("ADMIN_TOKEN", "too-short", "16 or more visible ASCII characters"),
        ("ANTHROPIC_API_KEY", "sk-test-secret with blanks", "a key as Anthropic's console shows it"),
        ("ANTHROPIC_BASE_URL", "http://user:too-short@127.0.0.1", "ANTHROPIC_API_KEY"),
    ] {
        let said = assert_refused(&setup().with(name, value), &[name, allowed]);
        assert!(!said.contains("too-short"), "{said}");
    }
}

#[test]
fn a_placeholder_where_a_secret_belongs_is_refused_and_so_is_the_example_secret_of_kubernetes() {
    let example = include_str!("../../k8s/base/secret.example.yaml");
    let (_, values) = example.split_once("stringData:\n").unwrap();
    let values: Vec<_> = values.lines().filter_map(|line| line.trim().split_once(": ")).collect();
    let given: Vec<_> = values.iter().map(|(name, _)| *name).filter(|name| !name.starts_with('#')).collect();
    assert_eq!(given, ["ANTHROPIC_API_KEY", "ADMIN_TOKEN"]);
    let known = [("ANTHROPIC_API_KEY", "sk-ant-your-key"), ("ADMIN_TOKEN", "aaaaaaaaaaaaaaaaaaaaaaaa")];
    for (name, value) in values.into_iter().filter(|(name, _)| given.contains(name)).chain(known) {
        let said = assert_refused(&setup().with(name, value), &[name, "is a placeholder or easy to guess"]);
        assert!(said.lines().count() == 1 && !said.contains(value), "{said}");
    }
}

#[test]
fn a_stored_admin_token_that_others_can_read_or_guess_is_refused() {
    let setup = setup().without("ADMIN_TOKEN");
    let file = setup.folder().join("data/admin-token");
    fs::create_dir(setup.folder().join("data")).unwrap();
    for (token, mode, words) in [
        ("0123456789abcdef", 0o644, "other users can read data/admin-token (mode 644)"),
        ("short", 0o600, "the admin token in data/admin-token is not safe: ADMIN_TOKEN"),
        ("replace-me-replace-me", 0o600, "the admin token in data/admin-token is not safe: ADMIN_TOKEN"),
    ] {
        fs::write(&file, token).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let said = assert_refused(&setup, &[words]);
        assert!(
            said.lines().filter(|line| line.starts_with("error: ")).count() == 1 && !said.contains(token),
            "{said}"
        );
    }
    fs::write(&file, "0123456789abcdef\n").unwrap();
    drop(setup.start());
}

#[test]
fn settings_are_checked_for_the_service_before_its_folder_changes_hands() {
    let setup = setup();
    let check = |setup: &Setup| setup.run(&["own-data", "--owner", "0:0", "--check-settings"]);
    fs::create_dir(setup.folder().join("data")).unwrap();
    let (status, said) = check(&setup);
    assert!(status.success(), "{said}");
    for (name, value) in
        [("ANTHROPIC_API_KEY", ""), ("API_KEYS", "no-colon"), ("JWT_AUTH", "keys=none.json, issuer=i, audience=a")]
    {
        let setup = Setup::new("http://127.0.0.1:9").with(name, value);
        let (status, said) = check(&setup);
        assert!(status.code() == Some(2) && said.contains(name), "{said}");
    }
}

#[test]
fn a_bad_line_of_the_settings_file_is_told_by_its_number_and_not_repeated() {
    let setup = setup();
    fs::write(setup.folder().join(".env"), "WORKERS=2\n# a comment\nADMIN_TOKEN=\"sk-test-secret\n").unwrap();
    assert_refused(&setup, &["line 3", ".env", "NAME=value"]);
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset_and_the_settings_file_as_second_choice() {
    let setup = setup().with("MAX_QUERY_LENGTH", "").with("WORKERS", "").with("PORT", "0");
    fs::write(setup.folder().join(".env"), "MAX_QUERY_LENGTH=5\nPORT=1\n").unwrap();
    let service = setup.start();
    let answer = service.submit("123456").await;
    answer.assert_problem(422, "validation_failed");
    assert!(answer.body["detail"].as_str().unwrap().contains("at most 5 characters, not 6"));
    assert_eq!(service.admin_get("/api/v1/admin/stats").await.body["workers"], 512, "the default");
}

#[tokio::test]
async fn the_key_is_in_no_log_even_in_detail() {
    let claude = simulator().await;
    claude.script([Fault::Malformed]);
    let service = Setup::new(&claude.base_url()).with("LOG_LEVEL", "trace").start();
    let id = service.submit("Is the key safe?").await.id();
    let job = service.ended(&id).await;
    assert!(!job.body.to_string().contains("sk-test-secret"));
    let log = service.kill();
    assert!(log.contains("Is the key safe?"), "the log is in detail");
    assert!(!log.contains("sk-test-secret"), "{log}");
}

#[tokio::test]
async fn an_admin_token_is_made_once_and_the_log_names_its_file_only() {
    let setup = setup().without("ADMIN_TOKEN");
    let service = setup.start();
    let file = setup.folder().join("data/admin-token");
    let list =
        |service: &Service, token: &str| send(service.request(Method::GET, "/api/v1/admin/jobs").bearer_auth(token));
    let token = fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(token.len(), 32);
    assert_eq!(list(&service, &token).await.status, 200);
    let (_, log) = service.terminate();
    assert!(log.contains("data/admin-token") && !log.contains(&token), "{log}");

    let service = setup.start();
    assert_eq!(list(&service, &token).await.status, 200, "it is kept");
    assert!(!service.kill().contains("admin-token"), "it was not made again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_the_call_under_way_finish_and_takes_nothing_new() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let id = service.submit("Before the stop?").await.id();
    claude.wait_for_calls(1).await;
    service.signal("TERM");
    let ready = loop {
        let ready = service.get("/health/ready").await;
        if ready.status != 200 {
            break ready;
        }
    };
    ready.assert_problem(503, "not_ready");
    assert!(ready.body["detail"].as_str().unwrap().contains("is shutting down"));
    let refused = service.submit("After the stop?").await;
    refused.assert_problem(503, "shutting_down");
    assert!(!refused.header("retry-after").is_empty());
    claude.release();
    let (status, log) = service.wait();
    assert!(status.success(), "{log}");

    let job = setup.start().get(&job_path(&id)).await.body;
    assert_eq!((job["status"].as_str(), outcomes(&job)), (Some("succeeded"), vec!["succeeded"]));
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_during_a_stop_gets_its_job_which_ends_after_the_restart() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("SHUTDOWN_GRACE", "0");
    let service = setup.start();
    let body = json!({"query": "Is it worth waiting?", "wait": true});
    let (answer, ()) = tokio::join!(service.post("/api/v1/analyze", &body), async {
        claude.wait_for_calls(1).await;
        service.signal("TERM");
    });
    assert_eq!((answer.status, answer.body["status"].as_str()), (202, Some("running")), "{answer:#?}");
    let (status, log) = service.wait();
    assert!(status.success(), "{log}");

    let job = setup.start().ended(&answer.id()).await.body;
    assert_eq!((job["status"].as_str(), outcomes(&job)), (Some("succeeded"), vec!["outcome_unknown", "succeeded"]));
}

#[tokio::test]
async fn a_restart_in_the_middle_keeps_finished_running_and_queued_jobs() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let service = setup.start();
    let finished = service.ended(&service.submit("Finished?").await.id()).await.body;
    let mut pending = Vec::new();
    for n in 0..6 {
        pending.push(service.submit(&format!("Pending {n}?")).await.id());
    }
    claude.wait_for_calls(2).await;
    service.kill();

    let restarted = Instant::now();
    let service = setup.start();
    assert_eq!(service.get(&job_path(finished["id"].as_str().unwrap())).await.body, finished);
    for (n, id) in pending.iter().enumerate() {
        let job = service.ended(id).await.body;
        assert_eq!((&job["query"], &job["status"]), (&json!(format!("Pending {n}?")), &json!("succeeded")));
        let expected = if n == 0 { vec!["outcome_unknown", "succeeded"] } else { vec!["succeeded"] };
        assert_eq!(outcomes(&job), expected, "{job:#}");
        let interrupted = &job["attempts"][0];
        assert_eq!(interrupted["may_have_been_billed"], n == 0, "{interrupted}");
    }
    // Whoever ran the orphan is dead, so nobody waits for its lease of 30 s to end.
    assert!(restarted.elapsed() < Duration::from_secs(20), "{:?}", restarted.elapsed());
    assert_eq!(claude.counters().calls, 8);
}

#[tokio::test]
async fn a_killed_call_is_not_repeated_where_the_operator_forbids_it() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("ON_UNKNOWN_OUTCOME", "fail");
    let service = setup.start();
    let id = service.submit("Once only?").await.id();
    claude.wait_for_calls(1).await;
    service.kill();

    let job = setup.start().ended(&id).await.body;
    assert_eq!((job["status"].as_str(), outcomes(&job)), (Some("failed"), vec!["outcome_unknown"]));
    assert_eq!(job["error"]["code"], "outcome_unknown");
    assert!(job["error"]["message"].as_str().unwrap().contains("may have been billed"), "{job:#}");
    assert_eq!(claude.counters().calls, 1);
}

#[test]
fn the_demo_shows_a_memo_that_says_it_is_simulated_and_ends() {
    let (status, said) = setup().without("ANTHROPIC_API_KEY").run(&["demo", "--once", "Should we lease a warehouse?"]);
    assert!(status.success(), "{said}");
    for words in ["Claude is SIMULATED", "SIMULATED ANSWER", "Should we lease a warehouse?"] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
}

#[tokio::test]
async fn the_printed_api_description_has_every_route_and_is_the_served_one() {
    let (status, said) = setup().without("ANTHROPIC_API_KEY").run(&["openapi"]);
    assert!(status.success(), "{said}");
    let document: Value = serde_json::from_str(&said).unwrap();
    let mut routes: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    routes.sort();
    assert_eq!(
        routes,
        [
            "/api/v1/admin/audit",
            "/api/v1/admin/export",
            "/api/v1/admin/history",
            "/api/v1/admin/import",
            "/api/v1/admin/jobs",
            "/api/v1/admin/jobs/actions",
            "/api/v1/admin/jobs/{id}/reparse",
            "/api/v1/admin/keys",
            "/api/v1/admin/keys/{name}",
            "/api/v1/admin/limits",
            "/api/v1/admin/prompts",
            "/api/v1/admin/prompts/reload",
            "/api/v1/admin/queue/pause",
            "/api/v1/admin/queue/resume",
            "/api/v1/admin/stats",
            "/api/v1/admin/usage",
            "/api/v1/admin/webhooks/failing",
            "/api/v1/admin/webhooks/secret",
            "/api/v1/admin/webhooks/secret/rotate",
            "/api/v1/analyze",
            "/api/v1/analyze/batch",
            "/api/v1/jobs",
            "/api/v1/jobs/{id}",
            "/api/v1/jobs/{id}/cancel",
            "/api/v1/jobs/{id}/events",
            "/api/v1/jobs/{id}/resend-webhook",
            "/api/v1/jobs/{id}/retry",
            "/api/v1/webhooks/failing",
            "/api/v1/webhooks/secret",
            "/api/v1/webhooks/secret/rotate",
            "/api/v1/webhooks/test",
            "/health",
            "/health/ready",
            "/metrics"
        ]
    );
    assert_eq!(setup().start().get("/openapi.json").await.body, document);
}

#[test]
fn the_health_check_tells_a_running_service_from_a_dead_one() {
    let mut setup = setup();
    let service = setup.start();
    let port = service.base().rsplit(':').next().unwrap().to_owned();
    setup.set("PORT", &port);
    setup.set("HOST", "0.0.0.0");
    let (status, said) = setup.run(&["healthcheck"]);
    assert!(status.success() && said.contains("ok"), "{said}");
    let base = service.base().to_owned();
    setup.set("PORT", "9");
    let (status, said) = setup.run(&["healthcheck", "--url", &base]);
    assert!(status.success() && said.contains("ok"), "{said}");
    setup.set("PORT", &port);
    service.kill();
    let (status, said) = setup.run(&["healthcheck"]);
    assert!(!status.success() && said.contains(&format!("127.0.0.1:{port}")), "{said}");
}

#[tokio::test]
async fn the_health_check_tells_whether_questions_are_taken_and_why_not() {
    let mut setup = setup();
    let service = setup.start();
    setup.set("CEOAGENT_URL", service.base());
    let (status, said) = setup.run(&["healthcheck", "--ready"]);
    assert!(status.success() && said == "ready\n", "{said}");
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let (status, said) = setup.run(&["healthcheck", "--ready"]);
    assert!(status.success() && said.starts_with("degraded: "), "{said}");
    assert!(said.contains("\n  queue: was paused by an operator at 2"), "{said}");
    drop(service);

    let problem = r#"{"status":503,"code":"not_ready","errors":[{"field":"disk","message":"is full"}]}"#;
    let stub = TcpListener::bind("127.0.0.1:0").unwrap();
    setup.set("CEOAGENT_URL", &format!("http://{}", stub.local_addr().unwrap()));
    let answering = std::thread::spawn(move || {
        let (mut caller, _) = stub.accept().unwrap();
        let mut head = [0; 1024];
        let read = caller.read(&mut head).unwrap();
        let length = problem.len();
        write!(caller, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {length}\r\n\r\n{problem}").unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let (status, said) = setup.run(&["healthcheck", "--ready"]);
    assert_eq!((status.code(), said.as_str()), (Some(1), "not ready\n  disk: is full\n"));
    let head = answering.join().unwrap();
    assert!(head.starts_with("GET /health/ready ") && !head.to_lowercase().contains("authorization"), "{head}");
    setup.set("CEOAGENT_URL", "nonsense");
    let (status, said) = setup.run(&["healthcheck", "--ready"]);
    assert!(!status.success() && said.contains("not the URL of a service"), "{said}");
}
