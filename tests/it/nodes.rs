//! Several nodes on one PostgreSQL: all of them answer and make calls, one hands them out. What holds when that one is killed or paused, and
//! when the database itself crashes.

use std::time::{Duration, Instant};

use ceoagent::claude::simulator::Fault;
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use reqwest::Method;
use serde_json::json;

use crate::{
    batch::in_an_hour,
    database::Postgres,
    harness::{ADMIN_TOKEN, PATIENCE, Service, Setup, client, send, simulator},
    load::{Ledger, Load},
    prompts,
};

const KILLS: usize = 5;

/// A node in a folder of its own.
pub(crate) fn node(base_url: &str, database_url: &str) -> Setup {
    Setup::new(base_url)
        .with("DATABASE_URL", database_url)
        .with("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
        .with("WORKERS", "16")
        .with("MAX_RETRIES", "20")
}

async fn until_ready(service: &Service) {
    let deadline = Instant::now() + PATIENCE;
    while service.get("/health/ready").await.status != 200 {
        assert!(Instant::now() < deadline, "it never became ready");
        tokio::task::yield_now().await;
    }
}

const TOOK_OVER: &str = "this node hands out the calls from now on";

#[tokio::test(flavor = "multi_thread")]
async fn another_node_makes_the_calls_after_a_kill_under_load_and_no_accepted_job_is_lost() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let start = || node(&claude.base_url(), &url).start();
    let mut ledger = Ledger::default();
    let mut active = start();
    for life in 0..KILLS {
        let other = start();
        until_ready(&other).await;
        let (mut load, mut beside) = (Load::start(&active, life), Load::start(&other, KILLS + life));
        load.accepted(rand::rng().random_range(1..60), &mut ledger).await;
        active.kill();
        let killed = Instant::now();
        load.end(&mut ledger).await;
        other.until_said(TOOK_OVER);
        println!("taken over after {:?}", killed.elapsed());
        // Its clients noticed nothing.
        beside.accepted(20, &mut ledger).await;
        beside.stop(&mut ledger).await;
        active = other;
    }
    ledger.assert_ended_once(&active, KILLS).await;
    let (status, log) = active.terminate();
    assert!(status.success(), "{log}");
    ledger.assert_kept(&start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_waits_and_operates_whichever_makes_the_calls() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let (first, second) = (node(&claude.base_url(), &url).start(), node(&claude.base_url(), &url).start());
    assert_eq!(
        (first.metric("ceoagent_dispatcher").await, second.metric("ceoagent_dispatcher").await),
        ("1".to_owned(), "0".to_owned())
    );
    let answer = second.post("/api/v1/analyze", &json!({ "query": "Which node calls?", "wait": true })).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("succeeded")), "{answer:#?}");
    let id = answer.body["id"].as_str().unwrap();
    let elsewhere = first.get(&format!("/api/v1/jobs/{id}")).await;
    assert_eq!(elsewhere.body["result"], answer.body["result"]);

    let later = json!({ "query": "When?", "run_at": in_an_hour() });
    let id = second.post("/api/v1/analyze", &later).await.body["id"].as_str().unwrap().to_owned();
    let cancelled = first.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).await;
    assert_eq!(cancelled.body["status"], "cancelled", "{cancelled:#?}");
    assert_eq!(second.get(&format!("/api/v1/jobs/{id}")).await.body["status"], "cancelled");
    let with_key = |node: &Service| {
        let request = node.request(Method::POST, "/api/v1/analyze").header("idempotency-key", "once");
        send(request.json(&json!({ "query": "Twice?" })))
    };
    let (one, two) = tokio::join!(with_key(&first), with_key(&second));
    assert_eq!(one.body["id"], two.body["id"], "{one:#?} {two:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_node_that_wakes_up_after_another_took_its_seat_writes_nothing_and_ends() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let paused = node(&claude.base_url(), &url).start();
    let other = node(&claude.base_url(), &url).start();
    let mut ledger = Ledger::default();
    let mut load = Load::start(&paused, 0);
    load.accepted(10, &mut ledger).await;
    paused.signal("STOP");
    let in_time = other.submit("In time?").await;
    assert_eq!(in_time.status, 202, "{in_time:#?}");
    other.until_said(TOOK_OVER);
    let late = tokio::spawn({
        let url = format!("{}/api/v1/analyze", paused.base());
        async move { client().post(url).json(&json!({ "query": "Too late?" })).send().await }
    });
    paused.signal("CONT");
    let (status, log) = paused.wait();
    assert!(!status.success() && log.contains("another node has taken the seat"), "{log}");
    if let Ok(answer) = late.await.unwrap() {
        assert_ne!(answer.status(), 202);
    }
    load.end(&mut ledger).await;
    let found = other.admin_get("/api/v1/admin/jobs?text=Too+late").await;
    assert_eq!(found.body["jobs"].as_array().map(Vec::len), Some(0), "{:#}", found.body);
    ledger.assert_ended_once(&other, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_while_it_gets_short_calls_leaves_no_attempt_without_an_outcome() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let first = node(&claude.base_url(), &url).start();
    let (mut load, mut ledger) = (Load::start(&first, 0), Ledger::default());
    for _ in 0..3 {
        let stopping = node(&claude.base_url(), &url).start();
        while stopping.metric("ceoagent_attempt_duration_seconds_count").await == "0" {
            load.accepted(10, &mut ledger).await;
        }
        let (status, log) = stopping.terminate();
        assert!(status.success(), "{log}");
        load.accepted(10, &mut ledger).await;
    }
    load.stop(&mut ledger).await;
    for id in ledger.accepted.keys() {
        let job = first.ended(id).await.body;
        let attempts = job["attempts"].as_array().unwrap();
        let is_known = |attempt: &serde_json::Value| {
            ["released", "succeeded"].map(|name| json!(name)).contains(&attempt["outcome"])
        };
        assert!(attempts.iter().all(is_known), "{job:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_node_that_stays_dead_have_an_unknown_outcome_after_its_lease_and_are_made_once_more() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let [first, second] = [(); 2].map(|()| node(&claude.base_url(), &url).start());
    let mut calls = 0;
    // Until the dispatcher knows of both nodes: then each makes one of two calls.
    let jobs = loop {
        claude.always(|_| true, Fault::Hold);
        let mut jobs = Vec::new();
        for _ in 0..2 {
            calls += 1;
            jobs.push(first.submit(&format!("Who makes call {calls}?")).await.id());
        }
        claude.wait_for_calls(calls).await;
        if second.metric("ceoagent_running_attempts").await == "1" {
            break jobs;
        }
        claude.relent();
        claude.release();
        for id in &jobs {
            first.ended(id).await;
        }
    };
    second.kill();
    claude.relent();
    claude.release();
    let meanwhile = first.ended(&first.submit("Does it go on?").await.id()).await;
    assert_eq!(meanwhile.body["status"], "succeeded");

    let mut second_calls = 0;
    for id in &jobs {
        let job = first.ended(id).await.body;
        assert_eq!(job["status"], "succeeded", "{job:#}");
        if let [lost, _] = &job["attempts"].as_array().unwrap()[..] {
            assert_eq!((&lost["outcome"], &lost["may_have_been_billed"]), (&json!("outcome_unknown"), &json!(true)));
            let [started, finished] = ["started_at", "finished_at"].map(|at| lost[at].as_str().unwrap());
            let lasted = finished.parse::<Timestamp>().unwrap().duration_since(started.parse().unwrap());
            assert!(lasted > SignedDuration::from_secs(25), "a node may be silent for almost a lease: {job:#}");
            second_calls += 1;
        }
    }
    assert_eq!(second_calls, 1);
    assert_eq!(claude.calls().len(), calls + 2, "one call for each attempt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_database_under_load_loses_no_accepted_job_and_jobs_go_on() {
    let (mut postgres, claude) = (Postgres::start(), simulator().await);
    let service = node(&claude.base_url(), &postgres.create("jobs")).start();
    let mut ledger = Ledger::default();
    for life in 0..2 {
        let mut load = Load::start(&service, life);
        load.accepted(40, &mut ledger).await;
        postgres.stop_immediately();
        load.end(&mut ledger).await;
        let refused = service.submit("Is anybody there?").await;
        refused.assert_problem(503, "storage_unavailable");
        postgres.start_again();
        until_ready(&service).await;
    }
    ledger.assert_ended_once(&service, 2).await;
}

#[test]
fn what_a_node_lacks_for_a_database_stops_its_start_in_words() {
    let postgres = Postgres::start_with(&["fsync=off"]);
    let setup = node("http://127.0.0.1:9", &postgres.create("jobs"));
    let (status, said) = setup.run(&["serve"]);
    assert!(!status.success() && said.contains("fsync=off, so a power cut loses acknowledged jobs"), "{said}");
    for name in ["ADMIN_TOKEN", "WEBHOOK_SECRET"] {
        let (status, said) = node("http://127.0.0.1:9", &postgres.url("jobs")).without(name).run(&["serve"]);
        assert!(!status.success() && said.contains(&format!("DATABASE_URL needs {name}")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_use_the_prompts_that_one_of_them_loaded_last() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let start = |line| {
        let setup = node(&claude.base_url(), &url).with("PROMPTS_DIR", "prompts");
        prompts::write(&setup, "v1", line);
        (setup.start(), setup)
    };
    let ((first, _one), (second, _two)) = (start("Be brief."), start("Be thorough."));
    let brief = prompts::list(&first).await;
    assert_eq!(prompts::list(&second).await, brief, "those of the first node");
    let thorough = second.admin_post("/api/v1/admin/prompts/reload", &json!({})).await.body;
    assert_ne!(thorough, brief);
    let deadline = Instant::now() + PATIENCE;
    while prompts::list(&first).await != thorough {
        assert!(Instant::now() < deadline, "the first node never used them");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cant_use_the_prompts_of_the_others_is_not_ready_until_prompts_are_loaded_on_it() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let (first, other) = (node(&claude.base_url(), &url).start(), node(&claude.base_url(), &url).start());
    // As a later version of the service would share them.
    let broken = r#"{"v1":{"system":"Be brief.","user":"{{ of_a_later_version }}"}}"#;
    let change = format!("update ceoagent.setting set value = '{broken}' where name = 'node/prompts' returning 1");
    assert_eq!(postgres.sql("jobs", &change), "1");
    let third = node(&claude.base_url(), &url).start();
    let ready = third.get("/health/ready").await;
    ready.assert_problem(503, "not_ready");
    assert_eq!(ready.body["errors"][0]["field"], "prompts", "{ready:#?}");
    assert_eq!(third.admin_get("/api/v1/admin/stats").await.body["troubles"], ready.body["errors"]);
    assert_eq!(third.admin_post("/api/v1/admin/prompts/reload", &json!({})).await.status, 200);
    for node in [&first, &other, &third] {
        until_ready(node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_operators_who_make_one_key_on_two_nodes_at_once_one_succeeds_and_it_is_dead_everywhere_a_second_after_its_end()
 {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let start = || node(&claude.base_url(), &url).with("REQUIRE_API_KEY", "true").start();
    let (first, second) = (start(), start());
    for n in 0..20 {
        let request = json!({ "name": format!("ci-{n}") });
        let (one, two) = tokio::join!(
            first.admin_post("/api/v1/admin/keys", &request),
            second.admin_post("/api/v1/admin/keys", &request)
        );
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{one:#?} {two:#?}");
        let made = if one.status == 201 { one } else { two };
        let key = made.body["key"].as_str().unwrap().to_owned();
        let status =
            async |node: &Service| send(node.request(Method::GET, "/api/v1/jobs").bearer_auth(&key)).await.status;
        let deadline = Instant::now() + PATIENCE;
        while (status(&first).await, status(&second).await) != (200, 200) {
            assert!(Instant::now() < deadline, "it never became valid");
        }
        let path = format!("/api/v1/admin/keys/ci-{n}");
        let revoked = send(first.request(Method::DELETE, &path).bearer_auth(ADMIN_TOKEN)).await;
        assert_eq!(revoked.status, 200, "{revoked:#?}");
        let revoked_at = Instant::now();
        loop {
            let asked_after = revoked_at.elapsed();
            if status(&second).await == 401 {
                break;
            }
            assert!(asked_after < Duration::from_secs(1), "it works a second later");
        }
        assert_eq!(status(&first).await, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_limits_on_two_nodes_at_once_both_hold() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let (first, second) = (node(&claude.base_url(), &url).start(), node(&claude.base_url(), &url).start());
    let change = async |node: &Service, change: serde_json::Value| {
        let request = node.request(Method::PATCH, "/api/v1/admin/limits").bearer_auth(ADMIN_TOKEN);
        assert_eq!(send(request.json(&change)).await.status, 200);
    };
    for n in 1..=20 {
        tokio::join!(
            change(&first, json!({ "requests_per_minute": n })),
            change(&second, json!({ "input_tokens_per_minute": 10_000 + n })),
        );
        let stored =
            postgres.sql("jobs", "select convert_from(value, 'utf8') from ceoagent.setting where name = 'limits'");
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        let caps = &stored["caps"];
        assert!(caps.to_string().contains(&(10_000 + n).to_string()) && caps["requests_per_minute"] == n, "{stored}");
    }
}

#[test]
fn the_schema_is_made_by_a_command_too_and_one_that_this_program_can_not_use_stops_the_start_in_words() {
    let postgres = Postgres::start();
    let setup = node("http://127.0.0.1:9", &postgres.create("jobs"));
    for did in ["created the schema ceoagent, version 1\n", "nothing to do: the schema has version 1\n"] {
        let (status, said) = setup.run(&["migrate"]);
        assert!(status.success() && said == did, "{said}");
    }
    postgres.sql("jobs", "update ceoagent.schema_version set version = 3, usable_from = 2");
    for command in ["migrate", "serve"] {
        let (status, said) = setup.run(&[command]);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("schema version 3, and this program knows versions up to 1"), "{said}");
    }
    let (status, said) = setup.without("DATABASE_URL").run(&["migrate"]);
    assert!(!status.success() && said.contains("DATABASE_URL is not set"), "{said}");
}
