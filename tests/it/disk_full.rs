//! A disk that runs full and is made room on: refused submissions, a process that lives, and not one accepted job lost.
//!
//! A bound on the size of a file stands for the full disk: a write fails alike, and it needs no mount and no rights.

use std::process::Command;

use tokio::time::{Instant, timeout_at};

use crate::harness::{PATIENCE, Setup, simulator};

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
    assert!(accepted.len() > 50, "{}", accepted.len());
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
