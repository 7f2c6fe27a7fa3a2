//! `ceoagent loadtest` as its users have it.

use std::{os::unix::fs::PermissionsExt, process::Stdio};

use serde_json::Value;

use crate::harness::{Setup, simulator};

/// A setup for loads on a service of their own.
fn setup() -> Setup {
    Setup::new("http://127.0.0.1:1").without("ANTHROPIC_API_KEY")
}

/// Runs a load with these arguments: its report, and what it said.
fn run(setup: &Setup, args: &[&str]) -> (Value, String) {
    let (status, said) = setup.run(&[&["loadtest", "--json", "report.json"], args].concat());
    assert!(status.success(), "{said}");
    (report(setup), said)
}

fn report(setup: &Setup) -> Value {
    serde_json::from_str(&std::fs::read_to_string(setup.folder().join("report.json")).unwrap()).unwrap()
}

/// How many questions met an end of this kind; of all kinds together if none is named.
fn met(report: &Value, kind: &str) -> u64 {
    let counts = report["met"].as_object().unwrap();
    counts.iter().filter(|(name, _)| kind.is_empty() || *name == kind).map(|(_, count)| count.as_u64().unwrap()).sum()
}

#[test]
fn a_load_on_a_service_of_its_own_is_told_in_words_as_json_and_as_a_page() {
    let setup = setup();
    let args = ["--rate", "60", "--duration", "3", "--waiters", "0.5", "--latency", "0.05", "--html", "report.html"];
    let (report, said) = run(&setup, &[&args[..], &["--drain", "60"]].concat());
    let sent = report["sent"].as_u64().unwrap();
    assert!(sent > 0 && said.contains("SIMULATED"), "{said}");
    assert!(said.contains(" possible: ") && !said.contains("chmod"), "{said}");
    assert_eq!(met(&report, ""), sent, "every question met an end: {report:#}");
    assert_eq!(met(&report, "answered") + met(&report, "accepted"), sent, "and a good one: {report:#}");
    assert_eq!(report["ordinary"]["accepted"], sent - report["sent_by_waiters"].as_u64().unwrap());
    assert_eq!(report["ordinary"]["finished"], report["ordinary"]["accepted"], "their end is waited for");
    assert_eq!(report["latency"]["count"], report["met"]["answered"]);
    assert_eq!((&report["setup"]["simulated"], &report["setup"]["interrupted"]), (&true.into(), &false.into()));
    let parts = report["over_time"].as_array().unwrap();
    let answered: u64 = parts.iter().map(|part| part["met"]["answered"].as_u64().unwrap()).sum();
    assert_eq!(answered, met(&report, "answered"), "the parts are the whole");

    let page = std::fs::read_to_string(setup.folder().join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("url("), "it needs nothing else");
    assert!(page.contains("200 with the memo"));
    let data = setup.folder().join("data");
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700, "made for its owner");
    let left: Vec<_> = std::fs::read_dir(data).unwrap().collect();
    assert!(left.is_empty(), "its data is removed: {left:?}");
}

#[tokio::test]
async fn a_load_on_a_running_service_that_is_interrupted_reports_what_there_was() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let setup = setup();
    let args = ["loadtest", "--url", service.base(), "--rate", "50", "--duration", "3600", "--json", "report.json"];
    let load = setup.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    claude.wait_for_calls(10).await;
    let pid = load.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let output = load.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("Interrupted"), "{said}");
    let report = report(&setup);
    assert_eq!((&report["setup"]["simulated"], &report["setup"]["interrupted"]), (&false.into(), &true.into()));
    assert!(report["sent"].as_u64().unwrap() >= 10, "{report:#}");
    assert!(met(&report, "answered") >= 1, "{report:#}");
}

#[test]
fn a_load_on_nobody_fails_before_it_starts() {
    let (status, said) = setup().run(&["loadtest", "--url", "http://127.0.0.1:1"]);
    assert!(!status.success() && said.contains("does not answer"), "{said}");
}

#[test]
fn a_load_that_makes_no_sense_is_refused() {
    let wrong =
        [["--rate", "0"], ["--rate", "nan"], ["--waiters", "1.5"], ["--query-bytes", "3"], ["--duration", "-1"]];
    for args in wrong {
        let arg = format!("{}={}", args[0], args[1]);
        let (status, said) = setup().run(&["loadtest", &arg]);
        assert!(!status.success() && said.contains("must be"), "{args:?}: {said}");
    }
}

/// Eight times the capacity, from clients that wait five seconds. First in first out, those of the first 0.6 s would be
/// answered, 30 or so, and of all others nobody.
#[test]
fn under_overload_waiting_clients_are_answered_at_capacity_and_the_others_told_so() {
    let setup = setup();
    let args = ["--rate", "40", "--duration", "20", "--wait", "5", "--latency", "1", "--workers", "5"];
    let (report, _) = run(&setup, &args);
    let sent = report["sent"].as_u64().unwrap();
    assert_eq!(met(&report, "answered") + met(&report, "accepted"), sent, "{report:#}");
    // 100 are possible. Half of that tells the order from the other one on the slowest machine.
    assert!(met(&report, "answered") >= 50, "{report:#}");
    assert!(met(&report, "accepted") > 0, "{report:#}");
}
