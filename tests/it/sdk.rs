//! The official Python SDK against the simulator: what it takes without complaint is likely what the real API sends.

use std::{path::Path, process::Command};

use ceoagent::claude::simulator::{ErrorAnswer, Fault};

use crate::harness::simulator;

fn status(status: u16) -> Fault {
    ErrorAnswer::status(status).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_sdk_talks_to_the_simulator_without_complaint() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = Command::new(root.join("tests/sdk/install.sh")).status().unwrap();
    assert!(installed.success(), "the SDK can't be installed; tests/run.sh installs what that needs");
    let claude = simulator().await;
    let soon = |status| Fault::from(ErrorAnswer::status(status).header("retry-after-ms", "1"));
    // In the order of tests/sdk/check.py.
    let messages = [Fault::Normal, Fault::ThinkingFirst, Fault::Refusal, Fault::MaxTokens, Fault::Normal];
    let streams =
        [Fault::Normal, Fault::ThinkingFirst, Fault::Normal, Fault::ErrorEvent("overloaded_error".to_owned())];
    let errors = [400, 401, 403, 404, 409, 429, 500].map(status).into_iter().chain([Fault::Normal]);
    let unwilling = ErrorAnswer::status(500).header("x-should-retry", "false").into();
    let retries = [soon(500), soon(529), Fault::Normal, unwilling, soon(429), Fault::Normal];
    let script: Vec<Fault> = messages.into_iter().chain(streams).chain(errors).chain(retries).collect();
    let calls = script.len();
    claude.script(script);
    let url = claude.base_url();
    let run = move || {
        let python = root.join("target/sdk/bin/python");
        Command::new(python).arg("-I").arg(root.join("tests/sdk/check.py")).arg(url).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "after {} of {calls} calls:\n{said}", claude.counters().calls);
    assert_eq!((claude.counters().calls, said.as_ref()), (calls, ""));
}
