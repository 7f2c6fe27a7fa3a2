//! A disk that runs low, on a small file system of the service's own: questions are refused before it is full, and
//! everything else goes on. And a data folder that is taken away from under the service.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ceoagent::claude::simulator::Fault;
use reqwest::Method;
use tokio::time::{Instant, timeout_at};

use crate::harness::{ADMIN_TOKEN, Answer, PATIENCE, Service, Setup, send, simulator};

/// Mounts a file system of 128 MiB as the data folder, where only this process and its children see it, and does what $1
/// says before it serves. An eighth of it, 16 MiB, must stay free.
const ON_A_DISK_OF_ITS_OWN: &str =
    "mkdir data && mount -t tmpfs -o size=128m tmpfs data && eval \"$1\" && exec \"$0\" serve";

/// Leaves 12 MiB free, of which the store takes a few.
const BALLAST_BYTES: usize = 116 << 20;

/// The service on a disk of its own, after `before`, and the data folder as others see it.
fn start(setup: &Setup, before: &str) -> (Service, PathBuf) {
    let mut small = setup.command_of("unshare");
    small.args([
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        ON_A_DISK_OF_ITS_OWN,
        env!("CARGO_BIN_EXE_ceoagent"),
        before,
    ]);
    let service = setup.start_as(&mut small);
    let inside = setup.folder().join("data");
    let folder =
        Path::new("/proc").join(service.pid().to_string()).join("root").join(inside.strip_prefix("/").unwrap());
    (service, folder)
}

/// Asks until the answer is of `status`, and gives that.
async fn submit_until(service: &Service, status: u16) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    let asked = async {
        loop {
            let answer = service.submit("Is there room?").await;
            if answer.status == status {
                break answer;
            }
        }
    };
    timeout_at(deadline, asked).await.expect("the disk watch looks again")
}

async fn free_bytes(service: &Service) -> u64 {
    service.metric("ceoagent_disk_free_bytes{kind=\"data_dir\"}").await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_floor_questions_are_refused_and_all_else_goes_on_until_there_is_room() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("PATH", env!("PATH")).with("WORKERS", "1");
    let (service, folder) = start(&setup, "true");
    let running = service.submit("Running?").await.id();
    claude.wait_for_calls(1).await;
    let queued = service.submit("Queued?").await.id();
    assert_eq!(service.get("/health/ready").await.status, 200);
    assert!(free_bytes(&service).await > 112 << 20);

    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![1; BALLAST_BYTES]).unwrap();
    let refused = submit_until(&service, 503).await;
    refused.assert_problem(503, "storage_low");
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("MiB free") && detail.contains("needs 16"), "{detail}");
    assert!(!refused.header("retry-after").is_empty());
    let ready = service.get("/health/ready").await;
    ready.assert_problem(503, "not_ready");
    assert_eq!(ready.body["errors"][0]["field"], "disk");
    assert!(free_bytes(&service).await < 16 << 20);

    let cancel = service.request(Method::POST, &format!("/api/v1/jobs/{queued}/cancel"));
    assert_eq!(send(cancel).await.body["status"], "cancelled");
    claude.release();
    let settled = service.ended(&running).await.body;
    assert_eq!(settled["status"], "succeeded", "an answer that is paid for is kept: {settled:#}");
    let retry = || service.request(Method::POST, &format!("/api/v1/jobs/{queued}/retry")).bearer_auth(ADMIN_TOKEN);
    send(retry()).await.assert_problem(503, "storage_low");
    let listing = service.admin_get("/api/v1/admin/jobs").await;
    assert!(listing.body["jobs"].as_array().is_some_and(|jobs| jobs.len() >= 2), "{listing:#?}");
    assert_eq!(service.get("/health").await.status, 200);

    fs::remove_file(&ballast).unwrap();
    let accepted = submit_until(&service, 202).await;
    assert_eq!(service.ended(&accepted.id()).await.body["status"], "succeeded");
    assert_eq!(send(retry()).await.status, 202);
    assert_eq!(service.ended(&queued).await.body["status"], "succeeded");
    assert_eq!(service.get("/health/ready").await.status, 200);
    let (status, log) = service.terminate();
    assert!(status.success(), "{log}");
    assert!(log.contains("no jobs are accepted") && log.contains("enough disk space again"), "{log}");
}

#[tokio::test]
async fn a_service_that_starts_below_the_floor_refuses_its_first_question() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("PATH", env!("PATH"));
    for (before, status) in [("fallocate -l 116M data/ballast", 503), ("true", 202)] {
        let (service, _) = start(&setup, before);
        assert_eq!(service.submit("Is there room?").await.status, status, "{before}");
        drop(service);
        fs::remove_dir(setup.folder().join("data")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_data_folder_is_gone_nothing_is_accepted_or_called_and_once_it_is_back_all_goes_on() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let first = service.submit("Before?").await.id();
    service.ended(&first).await;
    let (data, moved) = (setup.folder().join("data"), setup.folder().join("moved"));
    for another_in_its_place in [false, true] {
        fs::rename(&data, &moved).unwrap();
        if another_in_its_place {
            fs::create_dir_all(data.join("queue")).unwrap();
            fs::copy(moved.join("queue/db"), data.join("queue/db")).unwrap();
        }
        submit_until(&service, 503).await.assert_problem(503, "storage_unavailable");
        let ready = service.get("/health/ready").await;
        ready.assert_problem(503, "not_ready");
        assert!(ready.body["detail"].as_str().unwrap().contains("the data folder was removed"), "{ready:#?}");
        let _ = fs::remove_dir_all(&data);
        fs::rename(&moved, &data).unwrap();
        let accepted = submit_until(&service, 202).await;
        assert_eq!(service.ended(&accepted.id()).await.body["status"], "succeeded");
    }
    service.kill();
    let service = setup.start();
    assert_eq!(service.get(&format!("/api/v1/jobs/{first}")).await.body["status"], "succeeded");
}
