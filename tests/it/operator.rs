//! What an operator has: the listing, the health routes, the metrics, the API's page.

use std::collections::BTreeMap;

use ceoagent::claude::simulator::Fault;
use serde_json::{Value, json};

use crate::harness::{Answer, Service, Setup, simulator};

fn ids(page: &Answer) -> Vec<String> {
    assert_eq!(page.status, 200, "{page:#?}");
    page.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// A service with five succeeded jobs, and the ids in order of submission.
async fn with_five_jobs(setup: &Setup) -> (Service, Vec<String>) {
    let service = setup.start();
    let mut ids = Vec::new();
    for n in 1..=5 {
        let id = service.submit(&format!("Is plan {n} good?")).await.id();
        service.ended(&id).await;
        ids.push(id);
    }
    (service, ids)
}

#[tokio::test]
async fn the_listing_is_newest_first_and_pages_to_the_end() {
    let claude = simulator().await;
    let (service, mut expected) = with_five_jobs(&Setup::new(&claude.base_url())).await;
    expected.reverse();
    let whole = service.admin_get("/api/v1/admin/jobs").await;
    assert_eq!(ids(&whole), expected);
    assert_eq!(whole.body["next_cursor"], Value::Null);
    let (mut listed, mut pages, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = service.admin_get(&format!("/api/v1/admin/jobs?limit=2{cursor}")).await;
        pages.push(ids(&page).len());
        listed.extend(ids(&page));
        let Some(next) = page.body["next_cursor"].as_str() else { break };
        let link = page.header("link").split(['<', '>']).nth(1).unwrap();
        assert!(link.starts_with("http://127.0.0.1:"), "{link}");
        let linked = service.admin_get(&link[link.find("/api").unwrap()..]).await;
        assert_eq!(ids(&linked)[0], expected[listed.len()], "{link}");
        cursor = format!("&cursor={next}");
        // What comes in between is on no later page.
        service.submit("Another one?").await;
    }
    assert_eq!((listed, pages), (expected, vec![2, 2, 1]));
}

#[tokio::test]
async fn the_listing_filters_by_each_status_given_and_counts_all() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal, Fault::Hold]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let mut jobs = BTreeMap::new();
    for status in ["succeeded", "failed", "running", "queued"] {
        let id = service.submit(&format!("Shall this one be {status}?")).await.id();
        match status {
            "succeeded" | "failed" => assert_eq!(service.ended(&id).await.body["status"], status),
            _ => claude.wait_for_calls(3).await,
        }
        jobs.insert(status, id);
    }
    for status in ["succeeded", "failed", "running", "queued", "cancelled", "scheduled"] {
        let page = service.admin_get(&format!("/api/v1/admin/jobs?status={status}")).await;
        assert_eq!(ids(&page), jobs.get(status).cloned().into_iter().collect::<Vec<_>>(), "{status}");
        assert_eq!(page.body["total"][status], u64::from(jobs.contains_key(status)), "{status}");
    }
    let page = service.admin_get("/api/v1/admin/jobs?status=failed&status=queued").await;
    assert_eq!(ids(&page), [jobs["queued"].clone(), jobs["failed"].clone()]);
    assert_eq!(page.body["total"]["succeeded"], 1, "totals are of all jobs");
}

#[tokio::test]
async fn a_fresh_service_is_alive_and_ready() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let health = service.get("/health").await;
    assert_eq!((health.status, health.body["status"].as_str()), (200, Some("ok")));
    assert_eq!(health.body["version"], env!("CARGO_PKG_VERSION"));
    let ready = service.get("/health/ready").await;
    assert_eq!((ready.status, ready.body["status"].as_str()), (200, Some("ready")));
}

#[tokio::test]
async fn the_metrics_tell_what_happened_in_openmetrics() {
    let claude = simulator().await;
    let (service, _) = with_five_jobs(&Setup::new(&claude.base_url())).await;
    let metrics = service.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = metrics.body.as_str().unwrap();
    for line in [
        "ceoagent_jobs_submitted_total 5",
        "ceoagent_jobs_finished_total{kind=\"succeeded\"} 5",
        "ceoagent_attempts_total{kind=\"succeeded\"} 5",
        "ceoagent_jobs{kind=\"succeeded\"} 5",
        "ceoagent_http_requests_total{method=\"POST\",route=\"/api/v1/analyze\",status=\"202\"} 5",
        "ceoagent_job_time_to_claim_seconds_count 5",
        "ceoagent_job_time_to_finish_seconds_count 5",
        "ceoagent_job_time_to_finish_seconds_bucket{le=\"28.0\"} 5",
        "ceoagent_attempt_duration_seconds_count 5",
        "ceoagent_gate_closed 0",
        "ceoagent_store_available 1",
        "ceoagent_leases_lost_total 0",
        "ceoagent_attempt_panics_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    for name in [
        "ceoagent_disk_free_bytes{",
        "ceoagent_tokens_total{kind=\"output\"}",
        "ceoagent_store_commit_duration_seconds_bucket",
        "ceoagent_store_sync_duration_seconds_bucket",
        "ceoagent_limits_per_minute{kind=\"requests\"} ",
        "ceoagent_calls_at_once ",
        "\nprocess_cpu_seconds_total ",
        "\nprocess_resident_memory_bytes ",
        "\nprocess_open_fds ",
        "\nprocess_max_fds ",
        "\nprocess_start_time_seconds ",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

/// The addresses that a page has a browser load: the values of `src` and `href`.
fn loaded(page: &str) -> Vec<&str> {
    let values = |name: &'static str| page.split(name).skip(1).filter_map(|rest| rest.split('"').next());
    values("src=\"").chain(values("href=\"")).collect()
}

#[tokio::test]
async fn the_api_page_is_served_whole_and_loads_nothing_from_elsewhere() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let page = service.get("/docs").await;
    assert_eq!(page.status, 200);
    let page = page.body.as_str().unwrap();
    let loaded = loaded(page);
    assert!(loaded.iter().any(|address| address.contains("/docs.js?")), "{page}");
    for address in loaded {
        assert!(!address.contains("//"), "{address} is of another host");
        if !address.starts_with('#') && !address.contains("lang=") && !address.contains("theme=") {
            let part = service.get(address).await;
            assert!([200, 303].contains(&part.status), "{address}: {}", part.status);
        }
    }

    let document = service.get("/openapi.json").await;
    let operations = document.body["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap());
    for (_, operation) in operations {
        let id = operation["operationId"].as_str().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id} is missing");
    }
    for name in document.body["components"]["schemas"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("<details id=\"{name}\">")), "{name} is missing");
    }
    assert!(page.contains("Should we move our warehouse to Rotterdam?"), "the body's example");
    assert!(document.body["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document.body["paths"]["/api/v1/analyze"]["post"].is_object());
    assert_eq!(document.body["servers"][0]["url"], "/", "it names no host");
    for code in ["problem-queue_full", "problem-rate_limited", "failure-rate_limited", "failure-refused"] {
        assert!(page.contains(&format!("id=\"{code}\"")), "the type of a problem leads nowhere: {code}");
    }
}

#[tokio::test]
async fn what_an_operator_does_to_one_job_is_on_record_and_what_callers_do_to_theirs_is_not() {
    let claude = simulator().await;
    claude.script([Fault::CutBeforeStop]);
    let service = Setup::new(&claude.base_url()).with("MAX_RETRIES", "0").start();
    let id = service.submit("Cut?").await.id();
    service.ended(&id).await;
    let deeds = async || service.admin_get("/api/v1/admin/audit").await.body["entries"].clone();
    let reparse = format!("/api/v1/admin/jobs/{id}/reparse");
    for path in [&reparse, &reparse, "/api/v1/admin/prompts/reload"] {
        assert_eq!(service.admin_post(path, &json!({})).await.status, 200, "{path}");
    }
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let id = service.submit("Given up?").await.id();
    let (cancel, retry) = (format!("/api/v1/jobs/{id}/cancel"), format!("/api/v1/jobs/{id}/retry"));
    for path in [&cancel, &cancel, &retry] {
        assert!(service.admin_post(path, &json!({})).await.status < 300, "{path}");
    }
    let told: Vec<(String, Value, Value)> = deeds()
        .await
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap().to_owned(), entry["count"].clone(), entry["jobs"].clone()))
        .collect();
    let expected = [
        ("retry", 1, json!(1)),
        ("cancel", 2, json!(1)),
        ("pause", 1, Value::Null),
        ("prompts_reload", 1, Value::Null),
        ("reparse", 2, json!(1)),
    ];
    assert_eq!(told, expected.map(|(action, count, jobs)| (action.to_owned(), json!(count), jobs)), "newest first");
    let newest = &deeds().await[0];
    assert_eq!((&newest["actor"], &newest["detail"]), (&"admin_token".into(), &id.as_str().into()), "{newest:#}");
    service.post(&cancel, &json!({})).await;
    assert_eq!(deeds().await[1]["count"], 2, "a caller's own action is not recorded");
}
