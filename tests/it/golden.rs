//! What clients, operators and scripts rely on, as files under tests/golden: the help of every command, the OpenAPI document,
//! and the codes of all errors. A change of them shows in review. To write the files again:
//! `UPDATE_GOLDEN=1 cargo test --test it golden`. For metrics, docs/metrics.md is that file, held by src/metrics.rs.

use std::{collections::BTreeSet, env, fmt::Write, fs, path::Path, process::Command};

use serde_json::Value;

#[test]
fn the_help_of_every_command_is_its_golden_file() {
    let mut all = String::new();
    help(&[], &mut all);
    assert_golden("help.txt", &all);
}

#[test]
fn the_openapi_document_is_its_golden_file() {
    assert_golden("openapi.json", &output(&["openapi"]));
}

/// Codes of refused requests with their status, then the codes of failed jobs.
#[test]
fn the_codes_of_errors_are_their_golden_file() {
    let source = include_str!("../../src/http/problem/kinds.rs");
    let kinds = source.split("Kind(").filter_map(|kind| kind.trim_start().strip_prefix("StatusCode::"));
    let code =
        |kind: &str| kind.replace(',', "").split('"').take(2).map(str::trim).collect::<Vec<_>>().join(" ") + "\n";
    let mut codes: BTreeSet<String> = kinds.map(code).collect();
    assert!(codes.len() > 20, "{codes:?}");
    let document: Value = serde_json::from_str(&output(&["openapi"])).unwrap();
    let failures = document["components"]["schemas"]["FailureCode"]["enum"].as_array().unwrap();
    codes.extend(failures.iter().map(|code| format!("failed job: {}\n", code.as_str().unwrap())));
    assert_golden("codes.txt", &codes.into_iter().collect::<String>());
}

/// Adds the help of a command and of the commands below it.
fn help(command: &[&str], all: &mut String) {
    let text = output(&[command, &["--help"]].concat());
    write!(all, "$ ceoagent {}\n\n{text}\n", [command, &["--help"]].concat().join(" ")).unwrap();
    let below = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or_default());
    let names = below.lines().filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| *name != "help") {
        help(&[command, &[name]].concat(), all);
    }
}

/// What the program prints without settings.
fn output(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ceoagent"));
    let output = command.args(arguments).env_clear().current_dir(env::temp_dir()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let differing = text.lines().zip(golden.lines()).position(|(now, then)| now != then);
    assert!(text == golden, "{} differs from line {:?} on", path.display(), differing.map(|line| line + 1));
}
