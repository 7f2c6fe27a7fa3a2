//! A disk that runs full and is made room on: refused submissions, a process that lives, and not one accepted job lost.
//!
//! Twice: a bound on the size of a file, which fails writes of the store alone and at once; and a small disk that other
//! files fill up, where the file system too may find out late that there is no room.

use std::{
    fs::File,
    io::{self, Write},
    process::Command,
};

use ceoagent::{
    app::{App, Tuning},
    clock::{Clock, Timestamp},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Duration, Instant, timeout_at},
};

use crate::{
    harness::{Answer, PATIENCE, Service, Setup, client, send, settings, simulator},
    loop_disk::LoopDisk,
};

/// Starts the service with files of 8 MiB at most, four of sled's segments. A write beyond fails instead of killing it.
const ON_A_SMALL_DISK: &str = "trap '' XFSZ; ulimit -S -f 16384; exec \"$0\" serve";

/// A question of 20,000 characters.
fn long_question(n: usize) -> String {
    format!("Should we keep plan {n}? {}", "It was a good one. ".repeat(1_050))
}

#[tokio::test]
async fn a_full_disk_refuses_questions_and_room_on_it_brings_the_service_back_with_every_job() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "100000").with("PATH", env!("PATH"));
    let mut small = setup.command_of("sh");
    let service = setup.start_as(small.args(["-c", ON_A_SMALL_DISK, env!("CARGO_BIN_EXE_ceoagent")]));
    let deadline = Instant::now() + PATIENCE;

    let mut accepted = Vec::new();
    let refused = loop {
        let answer = service.submit(&long_question(accepted.len())).await;
        if answer.status != 202 {
            break answer;
        }
        accepted.push(answer.id());
    };
    refused.assert_problem(503, "storage_unavailable");
    assert!(!refused.header("retry-after").is_empty());
    assert!(accepted.len() > 40, "{}", accepted.len());
    let ready = service.get("/health/ready").await;
    ready.assert_problem(503, "not_ready");
    assert_eq!(ready.body["errors"][0]["field"], "store");
    assert!(service.get("/metrics").await.body.as_str().unwrap().contains("ceoagent_store_available 0\n"));
    assert_eq!(service.get("/health").await.status, 200, "the process lives");

    let pid = service.pid().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:"]).status().unwrap();
    assert!(lifted.success());
    // Clients that keep asking must not keep the store from opening.
    let works_again = async {
        loop {
            let answer = service.submit(&long_question(accepted.len())).await;
            if answer.status == 202 {
                break answer.id();
            }
            answer.assert_problem(503, "storage_unavailable");
        }
    };
    accepted.push(timeout_at(deadline, works_again).await.expect("the store opens again by itself"));
    assert_eq!(service.get("/health/ready").await.status, 200);
    for (n, id) in accepted.iter().enumerate() {
        let job = service.ended(id).await.body;
        assert_eq!(job["query"], long_question(n), "a job kept its question");
        assert_eq!(job["status"], "succeeded", "{job:#}");
    }
}

/// Makes `file` longer by `bytes`, or by what the disk has room for.
fn grow(file: &mut File, bytes: usize) {
    let chunk = [b'x'; 4 << 10];
    for _ in 0..bytes / chunk.len() {
        if let Err(error) = file.write_all(&chunk) {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
            return;
        }
    }
}

/// By how much the other file grows with each job: the disk is full after a hundred or so.
const GROWTH: usize = 256 << 10;

/// An answer while the disk is full: what was asked for, or that the store can't be used.
#[track_caller]
fn assert_sane(answer: &Answer) {
    if answer.status != 200 {
        answer.assert_problem(503, "storage_unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_other_files_fill_under_load_costs_no_job_and_work_goes_on_once_there_is_room() {
    let claude = simulator().await;
    let disk = LoopDisk::new(64);
    let flags = ["--max-query-length=100000", "--max-retries=20"];
    let settings = settings(&claude.base_url(), &disk.path().join("data"), &flags);
    // No worker runs a claim that failed half-way until its lease is over.
    let tuning = Tuning { has_disk_floor: false, lease: Duration::from_secs(5), ..Tuning::default() };
    let app = App::start_tuned(&settings, tuning, Clock::system()).await.unwrap();
    let service = Service::in_process(&app);
    let deadline = Instant::now() + PATIENCE;
    let tomorrow = Timestamp::from_millis(Clock::system().now().as_millis() + 86_400_000);
    let later = service.post("/api/v1/analyze", &json!({ "query": "Tomorrow?", "run_at": tomorrow })).await;
    assert_eq!(later.status, 202, "{later:#?}");
    let later = format!("/api/v1/jobs/{}", later.id());

    let (sender, mut news) = mpsc::unbounded_channel();
    let mut load = JoinSet::new();
    for team in 0..4 {
        let (url, sender) = (format!("{}/api/v1/analyze", service.base()), sender.clone());
        load.spawn(async move {
            let client = client();
            for n in 0.. {
                let query = long_question(team * 100_000 + n);
                let answer = send(client.post(&url).json(&json!({ "query": query }))).await;
                if answer.status != 202 {
                    answer.assert_problem(503, "storage_unavailable");
                    assert!(!answer.header("retry-after").is_empty());
                    return;
                }
                sender.send((answer.id(), query)).unwrap();
            }
        });
    }
    drop(sender);
    let filler = disk.path().join("filler");
    let mut file = File::create(&filler).unwrap();
    let mut accepted = Vec::new();
    while let Some(job) = news.recv().await {
        accepted.push(job);
        grow(&mut file, GROWTH);
    }
    load.join_all().await;
    grow(&mut file, usize::MAX);
    assert!(accepted.len() > 40, "{}", accepted.len());

    // The store may have opened again with the last bytes that there were: then it takes a few more.
    let not_ready = loop {
        let ready = service.get("/health/ready").await;
        if ready.status != 200 {
            break ready;
        }
        assert!(Instant::now() < deadline, "a full disk is not noticed");
        let query = long_question(accepted.len());
        let answer = service.submit(&query).await;
        if answer.status == 202 {
            accepted.push((answer.id(), query));
        }
    };
    not_ready.assert_problem(503, "not_ready");
    assert_eq!(not_ready.body["errors"][0]["field"], "store");
    let why = not_ready.body["errors"][0]["message"].as_str().unwrap();
    assert!(why.contains("No space left"), "{why}");
    assert_eq!(service.get("/health").await.status, 200, "the process lives");
    assert_sane(&service.get(&later).await);
    assert_sane(&service.post(&format!("{later}/cancel"), &json!({})).await);
    assert_sane(&service.admin_get("/api/v1/admin/jobs").await);

    // Both the name and the handle keep its room.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let works_again = async {
        loop {
            let query = long_question(accepted.len());
            let answer = service.submit(&query).await;
            if answer.status == 202 {
                break (answer.id(), query);
            }
            answer.assert_problem(503, "storage_unavailable");
        }
    };
    let first = timeout_at(deadline, works_again).await.expect("the store opens again by itself");
    accepted.push(first);
    assert_eq!(service.get("/health/ready").await.status, 200);
    for (id, query) in &accepted {
        let job = service.ended(id).await.body;
        assert_eq!(job["query"], **query, "a job kept its question");
        assert_eq!(job["status"], "succeeded", "{job:#}");
    }
    let cancelled = service.post(&format!("{later}/cancel"), &json!({})).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")), "{cancelled:#?}");
    println!("{} jobs accepted", accepted.len());
    // Before its disk is unmounted.
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk_names_the_disk_and_not_a_backup_and_room_brings_every_job_back() {
    let claude = simulator().await;
    let disk = LoopDisk::new(64);
    let setup = Setup::new(&claude.base_url())
        .with("MAX_QUERY_LENGTH", "100000")
        .with("DATA_DIR", &disk.path().join("data").display().to_string());
    let service = setup.start();
    let mut accepted = Vec::new();
    for n in 0..40 {
        accepted.push(service.submit(&long_question(n)).await.id());
    }
    service.kill();
    let filler = disk.path().join("filler");
    grow(&mut File::create(&filler).unwrap(), usize::MAX);

    let (status, said) = setup.run(&["serve"]);
    assert!(!status.success());
    assert!(said.contains("No space left on device") && !said.contains("backup"), "{said}");

    std::fs::remove_file(&filler).unwrap();
    let service = setup.start();
    for id in &accepted {
        assert_eq!(service.ended(id).await.body["status"], "succeeded");
    }
}
