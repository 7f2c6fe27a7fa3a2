//! `ceoagent export` and `import` against running services: every job arrives as it was, however often it is sent.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use ceoagent::claude::simulator::Fault;
use reqwest::Method;
use serde_json::Value;

use crate::harness::{ADMIN_TOKEN, Service, Setup, send, simulator};

/// What `ceoagent ARGS` said to `input`: exit code, standard output, standard error.
async fn run(setup: &Setup, service: &Service, args: &[&str], input: &str) -> (i32, String, String) {
    let mut command: Command = setup.command();
    let mut child = command.env("CEOAGENT_URL", service.base()).args(args).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    writer.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Said at an import of costs.
const LEFT_OUT: &str = "left out, because a running service has its own: 1 ledger_day. Use --to to restore them\n";

fn parsed(archive: &str) -> impl Iterator<Item = Value> {
    archive.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// The lines of jobs.
fn jobs(archive: &str) -> Vec<&str> {
    archive.lines().filter(|line| line.starts_with("{\"kind\":\"job\"")).collect()
}

/// Every job as the service lists it, but for what is of the moment.
async fn listed(service: &Service) -> Vec<Value> {
    let page = service.admin_get("/api/v1/admin/jobs?limit=200").await;
    let mut jobs = page.body["jobs"].as_array().unwrap().clone();
    jobs.iter_mut().for_each(|job| _ = job.as_object_mut().unwrap().remove("queue"));
    jobs
}

#[tokio::test]
async fn every_job_moves_to_another_service_with_its_history_and_pending_ones_go_on_there() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal, Fault::Hold]);
    let here = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let old = here.start();
    for query in ["Succeeded?", "Failed?"] {
        let id = old.submit(query).await.id();
        old.ended(&id).await;
    }
    let running = old.submit("Running?").await.id();
    claude.wait_for_calls(3).await;
    let queued = old.submit("Queued?").await.id();
    let cancelled = old.submit("Cancelled?").await.id();
    send(old.request(Method::POST, &format!("/api/v1/jobs/{cancelled}/cancel"))).await;
    let before = listed(&old).await;
    let (code, lines, said) = run(&here, &old, &["export"], "").await;
    let kinds: Vec<Value> = parsed(&lines).map(|line| line["kind"].clone()).collect();
    let expected = ["header", "ledger_day", "job", "job", "job", "job", "job", "end"];
    assert_eq!((code, said.as_str()), (0, "exported: 1 ledger_day, 5 job\n"));
    assert_eq!(kinds, expected);

    // One that calls nobody, so that pending jobs stay so.
    let there = Setup::new("http://127.0.0.1:9").with("MAX_RETRIES", "20").with("ON_UNKNOWN_OUTCOME", "fail");
    let new = there.start();
    let (code, out, said) = run(&there, &new, &["import"], &lines).await;
    assert_eq!(
        (code, out.as_str(), said.as_str()),
        (0, "5 jobs imported, 0 skipped (they exist already), 0 refused\n", LEFT_OUT)
    );
    let ended = new.ended(&running).await.body;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&"failed".into(), &"outcome_unknown".into()));
    let after = listed(&new).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before["id"], after["id"], "in the same order");
        if !["running", "queued"].contains(&before["status"].as_str().unwrap()) {
            assert_eq!(before, after);
        }
    }
    assert_eq!(after[1]["id"], queued);
    assert!(["queued", "scheduled", "running"].contains(&after[1]["status"].as_str().unwrap()), "{:#}", after[1]);

    let (code, out, _) = run(&there, &new, &["import"], &lines).await;
    assert_eq!((code, out.as_str()), (0, "0 jobs imported, 5 skipped (they exist already), 0 refused\n"));
    new.kill();
    let new = there.start();
    assert_eq!(listed(&new).await.len(), 5, "what was imported is on disk");
    let (_, again, _) = run(&there, &new, &["export"], "").await;
    assert_eq!(jobs(&again).len(), 5);
}

#[tokio::test]
async fn more_jobs_than_a_page_are_exported_in_order_and_imported_in_as_many_requests_as_it_takes() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let questions: Vec<Value> = (0..230).map(|n| serde_json::json!({ "query": format!("Plan {n}?") })).collect();
    let batch = service.post("/api/v1/analyze/batch", &serde_json::json!({ "requests": questions })).await;
    for job in batch.body["jobs"].as_array().unwrap() {
        service.ended(job["id"].as_str().unwrap()).await;
    }
    let (code, lines, said) = run(&setup, &service, &["export"], "").await;
    assert_eq!((code, said.as_str()), (0, "exported: 1 ledger_day, 230 job\n"));
    let ids: Vec<Value> = parsed(&lines).filter(|line| line["kind"] == "job").map(|line| line["id"].clone()).collect();
    let submitted: Vec<Value> = batch.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect();
    assert_eq!(ids, submitted);

    let other = Setup::new(&claude.base_url());
    let target = other.start();
    let (code, out, said) = run(&other, &target, &["import"], &lines).await;
    assert_eq!((code, out.as_str()), (0, "230 jobs imported, 0 skipped (they exist already), 0 refused\n"), "{said}");
    let (_, again, _) = run(&other, &target, &["export"], "").await;
    assert_eq!(jobs(&again), jobs(&lines), "word for word");
    assert_eq!(claude.counters().calls, 230, "nothing is asked again");
}

#[tokio::test]
async fn lines_that_are_no_job_are_told_by_number_and_keep_no_other_from_coming() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let id = service.submit("Why?").await.id();
    service.ended(&id).await;
    let (_, archive, _) = run(&setup, &service, &["export"], "").await;
    let [header, costs, job, end] = archive.lines().collect::<Vec<_>>()[..] else { panic!("{archive}") };
    let other = Setup::new(&claude.base_url());
    let target = other.start();
    let import = async |lines: &[&str]| run(&other, &target, &["import"], &lines.join("\n")).await;
    let unknown = job.replace("\"kind\":\"job\"", "\"kind\":\"memo\"");
    let (code, out, said) = import(&[header, "{}", "", &unknown, "nonsense", costs, job, end]).await;
    assert_eq!((code, out.as_str()), (3, "1 jobs imported, 0 skipped (they exist already), 3 refused\n"));
    let told: Vec<&str> = said.lines().filter_map(|line| line.split_once(':').map(|(place, _)| place)).collect();
    assert_eq!(told[..3], ["line 2", "line 4", "line 5"], "{said}");
    assert!(said.contains("unknown variant `memo`"), "{said}");
    assert_eq!(listed(&target).await.len(), 1);

    // An archive that is not whole is noticed, also where each of its lines is sound.
    let future = header.replace("\"format\":2", "\"format\":3");
    for (lines, words) in [
        (&[header, costs, job][..], "the end of the archive is missing"),
        (&[header, costs, end], "its end line states 1 records of the kind job, it has 0"),
        (&[costs, job, end], "line 1: not the header of an archive"),
        (&[&future, job, end], "line 1: format 3 is newer than the format 2"),
        (&[], "not the header of an archive"),
    ] {
        let (code, _, said) = import(lines).await;
        assert!(code == 1 && said.contains(words), "{words}: {said}");
    }
    let sent = target
        .request(Method::POST, "/api/v1/admin/import")
        .bearer_auth(ADMIN_TOKEN)
        .body(format!("{job}\n{costs}\n?"));
    let answer = send(sent).await.body;
    assert_eq!((&answer["skipped"], &answer["refused"][0]["line"]), (&1.into(), &3.into()), "{answer}");

    for path in ["/api/v1/admin/export?after=1"] {
        target.admin_get(path).await.assert_problem(400, "invalid_parameter");
    }
    target.get("/api/v1/admin/export").await.assert_problem(401, "unauthorized");
    send(target.request(Method::POST, "/api/v1/admin/import")).await.assert_problem(401, "unauthorized");
}

#[tokio::test]
async fn what_was_salvaged_of_a_dead_service_can_be_imported() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let id = service.submit("Why?").await.id();
    let told = service.ended(&id).await.body;
    service.kill();
    let output = setup.command().args(["export", "--salvage"]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let other = Setup::new(&claude.base_url());
    let target = other.start();
    let (code, _, said) = run(&other, &target, &["import"], &lines).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(target.get(&format!("/api/v1/jobs/{id}")).await.body, told);
}
