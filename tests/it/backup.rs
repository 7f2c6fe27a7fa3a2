//! A backup by `pg_dump` and `pg_restore`, as docs/deploy.md describes it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    database::Postgres,
    harness::{Service, send, simulator},
    nodes::node,
};

/// All that a backup must bring, but for the place in the queue.
async fn known(service: &Service) -> Value {
    let mut known = json!({});
    for what in ["jobs", "keys", "usage", "audit"] {
        known[what] = service.admin_get(&format!("/api/v1/admin/{what}")).await.body;
    }
    for job in known["jobs"]["jobs"].as_array_mut().unwrap() {
        job.as_object_mut().unwrap().remove("queue");
    }
    known["paused"] = service.admin_get("/api/v1/admin/stats").await.body["paused"].clone();
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_restored_dump_has_all_of_the_running_service_and_answers_the_job_that_waited() {
    let (postgres, claude, folder) = (Postgres::start(), simulator().await, tempfile::tempdir().unwrap());
    let service = node(&claude.base_url(), &postgres.create("jobs")).start();
    let done = service.submit("Done?").await.id();
    service.ended(&done).await;
    let made = service.admin_post("/api/v1/admin/keys", &json!({ "name": "alice" })).await;
    let key = made.body["key"].as_str().unwrap();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let asking = service.request(Method::POST, "/api/v1/analyze").bearer_auth(key);
    let waiting = send(asking.json(&json!({ "query": "Waiting?" }))).await.id();
    let before = known(&service).await;
    let statuses = before["jobs"]["jobs"].as_array().unwrap().iter().map(|job| job["status"].as_str().unwrap());
    assert_eq!(statuses.collect::<Vec<_>>(), ["queued", "succeeded"], "{before:#}");
    let dump = folder.path().join("ceoagent.dump");
    postgres.dump("jobs", &dump);
    service.kill();

    let url = postgres.create("restored");
    // Into an empty database, then over one that has all of it.
    postgres.restore("restored", &dump);
    postgres.restore("restored", &dump);
    let service = node(&claude.base_url(), &url).start();
    assert_eq!(known(&service).await, before);
    assert!(before["paused"]["by"].is_string(), "{before:#}");
    service.admin_post("/api/v1/admin/queue/resume", &json!({})).await;
    let own = service.request(Method::GET, &format!("/api/v1/jobs/{waiting}?wait=20")).bearer_auth(key);
    let answered = send(own).await;
    assert_eq!((answered.status, &answered.body["status"]), (200, &json!("succeeded")), "{answered:#?}");
    assert_eq!(claude.counters().calls, 2);
}
