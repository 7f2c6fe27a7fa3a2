//! `ceoagent export --salvage`: what is in the data folder comes out, whatever state that is in, and stays as it is.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt, path::PathBuf};

use ceoagent::claude::simulator::Fault;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Service, Setup, send, simulator};

/// What is written over the store.
static DAMAGE: [u8; 32 << 10] = [0xA5; 32 << 10];

const EXPORT: [&str; 2] = ["export", "--salvage"];

/// The exit code, the jobs by id and the summary.
fn export(setup: &Setup) -> (i32, Vec<Value>, String) {
    let output = setup.command().args(EXPORT).output().unwrap();
    let jobs = String::from_utf8(output.stdout).unwrap();
    let summary = String::from_utf8(output.stderr).unwrap();
    let lines = jobs.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let jobs = lines.filter(|line| line["kind"] == "job").collect();
    assert!(!summary.contains("panicked"), "{summary}");
    (output.status.code().unwrap(), jobs, summary)
}

/// Every file of the store.
fn store(setup: &Setup) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(setup.folder().join("data/queue")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Asserts that an exported job is the one that the service told of.
#[track_caller]
fn assert_same(exported: &Value, told: &Value) {
    assert_eq!(exported["id"], told["id"]);
    assert_eq!(exported["status"], told["status"]);
    assert_eq!(exported["request"]["query"], told["query"]);
    assert!(exported["unreadable"].is_null() && exported["only_in_log"].is_null(), "{exported:#}");
    let (ours, theirs) = (exported["attempts"].as_array().unwrap(), told["attempts"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len(), "{exported:#}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        for field in ["number", "outcome", "started_at", "finished_at"] {
            assert_eq!(ours[field], theirs[field], "{field}");
        }
    }
    for field in ["priority", "created_at", "started_at", "finished_at"] {
        assert_eq!(exported[field], told[field], "{field}");
    }
    if told["status"] == "succeeded" {
        let report = &ours.last().unwrap()["report"];
        for (field, value) in report["result"].as_object().unwrap() {
            assert_eq!(told["result"][field], *value, "{field}");
        }
        assert!(report["raw_answer"].as_str().is_some_and(|answer| !answer.is_empty()), "{report:#}");
    }
}

async fn job(service: &Service, id: &str) -> Value {
    service.get(&format!("/api/v1/jobs/{id}")).await.body
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_of_a_healthy_store_comes_out_as_the_service_told_it() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal, Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let service = setup.start();
    let mut ids = Vec::new();
    for query in ["Succeeded?", "Failed?"] {
        let id = service.submit(query).await.id();
        service.ended(&id).await;
        ids.push(id);
    }
    for query in ["Running?", "Queued?", "Cancelled?"] {
        ids.push(service.submit(query).await.id());
    }
    claude.wait_for_calls(3).await;
    let cancel = format!("/api/v1/jobs/{}/cancel", ids[4]);
    assert_eq!(send(service.request(Method::POST, &cancel)).await.status, 200);
    let mut told = Vec::new();
    for id in &ids {
        told.push(job(&service, id).await);
    }
    let statuses: Vec<_> = told.iter().map(|job| job["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["succeeded", "failed", "running", "queued", "cancelled"]);

    let (code, _, said) = export(&setup);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in use by another ceoagent"), "{said}");
    service.kill();
    let before = store(&setup);
    let (code, jobs, summary) = export(&setup);
    assert_eq!(code, 0, "{summary}");
    assert!(summary.contains("5 jobs read from data/queue") && summary.contains("all records were read"), "{summary}");
    assert_eq!(jobs.len(), 5);
    for (exported, told) in jobs.iter().zip(&told) {
        assert_same(exported, told);
    }
    assert_eq!(jobs[1]["error_code"], "refused");
    assert_eq!(store(&setup), before, "the original is as it was");
}

#[tokio::test]
async fn of_a_store_that_serve_refuses_everything_is_read_that_is_not_damaged() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "100000").with("PATH", env!("PATH"));
    let service = setup.start();
    let mut told = BTreeMap::new();
    for n in 0..60 {
        let query = format!("Should we keep plan {n}? {}", "It was a good one. ".repeat(1_050));
        let id = service.post("/api/v1/analyze", &json!({ "query": query })).await.id();
        told.insert(id.clone(), service.ended(&id).await.body);
    }
    let (status, log) = service.terminate();
    assert!(status.success(), "{log}");
    let db = fs::File::options().write(true).open(setup.folder().join("data/queue/db")).unwrap();
    let size = db.metadata().unwrap().len();
    // In so many places that some of it is still in use, and in every segment.
    for place in (0..size - DAMAGE.len() as u64).step_by(512 << 10) {
        db.write_all_at(&DAMAGE, place).unwrap();
    }

    let mut serve = setup.command_of("timeout");
    let output = serve.args(["60", env!("CARGO_BIN_EXE_ceoagent"), "serve"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ceoagent export --salvage"), "{said}");
    let before = store(&setup);
    let (code, jobs, summary) = export(&setup);
    assert_eq!(code, 3, "{summary}");
    assert_eq!(store(&setup), before, "the original is as it was");
    let whole: Vec<&Value> = jobs.iter().filter(|job| job["unreadable"].is_null()).collect();
    for exported in &whole {
        assert_same(exported, &told[exported["id"].as_str().unwrap()]);
    }
    assert!(whole.len() >= 20, "{}: {summary}", whole.len());
    for marked in jobs.iter().filter(|job| !job["unreadable"].is_null()) {
        let number = format!("job number {}", marked["number"]);
        let name = marked["id"].as_str().map_or(number, str::to_owned);
        assert!(summary.contains(&name), "{name}: {summary}");
    }
    assert!(summary.contains("the store is damaged"), "{summary}");
}

#[test]
fn a_folder_without_a_store_is_told_and_none_is_made() {
    let setup = Setup::new("http://127.0.0.1:9");
    let (code, jobs, said) = export(&setup);
    assert_eq!((code, jobs.len()), (1, 0));
    assert!(said.contains("no job store in data/queue"), "{said}");
    assert!(!setup.folder().join("data").exists());
    let (status, said) = setup.run(&["export"]);
    assert!(!status.success() && said.contains("--salvage"), "{said}");
}
