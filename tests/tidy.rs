//! Holds the sources to the house rules a compiler doesn't know: imports point down, and nothing is left unfinished.
//!
//! The layers are those of the map in `src/lib.rs`. Paths are read from the text, `use` trees included; comments and
//! test modules don't count. A new module has to be placed in [`LAYERS`] before it may import anything.

#![allow(clippy::unwrap_used, reason = "a failed read is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer, topmost first, and what it may import besides itself and the leaves.
const LAYERS: [(&str, &str); 25] = [
    ("main", "cli"),
    ("cli", "app http::openapi analysis claude::simulator store::archive job"),
    (
        "app",
        "http auth dashboard dispatch worker sweeper webhook redis agent queue audit history registry store store::sled store::postgres limits prompts claude analysis ledger job",
    ),
    // All nodes of a cluster in one test.
    ("simulation", "dispatch worker sweeper agent queue registry store store::postgres limits ledger claude job"),
    // These two show memos, and why calls to Claude are held.
    ("http", "auth agent::models webhook queue audit history registry store limits prompts analysis ledger job"),
    ("dashboard", "queue audit registry limits analysis ledger job"),
    ("dispatch", "worker agent queue limits job"),
    ("worker", "agent queue limits job"),
    ("sweeper", "queue history job"),
    ("webhook", "queue registry store analysis job"),
    ("redis", "queue job"),
    ("auth", "registry job"),
    ("agent", "prompts claude analysis job"),
    ("queue", "audit history registry store ids ledger job"),
    ("audit", "registry store ids"),
    ("history", "registry job"),
    ("prompts", "registry"),
    ("registry", "store"),
    ("store", "ledger job"),
    ("limits", "ledger job"),
    // Its simulator writes memos.
    ("claude", "analysis"),
    ("analysis", ""),
    ("ledger", "job"),
    ("job", ""),
    ("ids", ""),
];

/// Anyone may import these; they import nothing of the crate.
const LEAVES: [&str; 6] = ["config", "clock", "digest", "metrics", "process", "telemetry"];

/// Leave to import the module around these is no leave to import them.
const NAMED_ONLY: [&str; 3] = ["store::sled", "store::postgres", "claude::simulator"];

/// Marks of unfinished work, in two parts so that this file holds none.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimpl", "emented!"), concat!("to", "do!")];

#[test]
fn imports_point_down() {
    let violations: Vec<String> = sources("src")
        .iter()
        .filter(|path| !path.ends_with("tests.rs") && !path.parent().unwrap().ends_with("tests"))
        .filter(|path| *path != Path::new("src/lib.rs"))
        .flat_map(|path| violations(path, &fs::read_to_string(path).unwrap()))
        .collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Other words for a thing that has one name in the API, the pages, the command line and the documentation, and that name.
const OTHER_NAMES: [(&str, &str); 13] = [
    ("requeue", "retry"),
    ("queue it again", "retry it"),
    ("queue them again", "retry them"),
    ("queued again", "retried"),
    ("resubmit", "retry"),
    ("abort a job", "cancel a job"),
    ("abort the job", "cancel the job"),
    ("stop the job", "cancel the job"),
    ("requests a minute", "requests per minute"),
    ("requests/minute", "requests per minute"),
    ("requests_limit", "requests_per_minute"),
    ("tokens a minute", "tokens per minute"),
    ("remove a job", "delete a job"),
];

#[test]
fn a_thing_has_one_name_in_the_api_the_pages_the_command_line_and_the_documentation() {
    let is_for_users = |path: &Path| !path.starts_with("docs/dev") && !path.ends_with("CONTRIBUTING.md");
    let mut texts: Vec<PathBuf> = files("docs", "md").into_iter().filter(|path| is_for_users(path)).collect();
    texts.extend(files("src/dashboard/templates", "html"));
    let others = ["README.md", "src/dashboard/strings.json", "tests/golden/help.txt", "tests/golden/openapi.json"];
    texts.extend(others.map(PathBuf::from));
    let mut wrong = Vec::new();
    for path in texts {
        let text = fs::read_to_string(&path).unwrap().to_lowercase().replace("\n", " ");
        let found = OTHER_NAMES.iter().filter(|(other, _)| text.contains(other));
        wrong.extend(found.map(|(other, name)| format!("{}: {other:?} is {name:?}", path.display())));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    for path in sources("src").iter().chain(&sources("tests")) {
        let text = fs::read_to_string(path).unwrap();
        let mark = UNFINISHED.iter().find(|mark| text.contains(**mark));
        assert!(mark.is_none(), "{}: {}", path.display(), mark.unwrap());
    }
}

#[test]
fn the_table_itself_points_down() {
    for (place, (layer, allowed)) in LAYERS.iter().enumerate() {
        for path in allowed.split_whitespace() {
            let root = path.split("::").next().unwrap();
            assert!(LAYERS[place + 1..].iter().any(|(lower, _)| *lower == root), "{layer} → {path}");
        }
    }
}

#[test]
fn a_broken_rule_is_found_however_it_is_written() {
    let cases = [
        ("src/http/jobs.rs", "use crate::worker::Worker;", "worker::Worker"),
        ("src/http.rs", "fn f(claude: &crate::claude::Claude) {}", "claude::Claude"),
        ("src/queue.rs", "use crate::{\n    job::Job,\n    store::{self as s, sled::{A, B}},\n};", "store::sled::A"),
        ("src/store.rs", "use crate::{job::*, queue as q};", "queue"),
        ("src/store/sled.rs", "use super::super::queue::Queue;", "queue::Queue"),
        ("src/store.rs", "use super::queue::Queue;", "queue::Queue"),
        (
            "src/worker.rs",
            "let a = crate::claude::simulator::Simulator::start();",
            "claude::simulator::Simulator::start",
        ),
        ("src/analysis.rs", "use crate::job::Job;", "job::Job"),
        ("src/clock.rs", "use crate::config::Settings;", "config::Settings"),
        ("src/main.rs", "ceoagent::queue::run()", "queue::run"),
        ("src/novel.rs", "use crate::job::Job;", "job::Job"),
    ];
    for (file, code, import) in cases {
        let expected = format!("{file} must not import crate::{import}");
        assert!(violations(Path::new(file), code).contains(&expected), "{file}: {code}");
    }
}

#[test]
fn what_is_allowed_passes() {
    let cases = [
        ("src/main.rs", "ceoagent::cli::run()"),
        ("src/app.rs", "use crate::{clock::Clock, store::{JobStore, sled::SledStore}};"),
        ("src/store/sled/writer.rs", "use super::super::StoreError; use crate::store::sled::keys; use super::keys;"),
        ("src/job.rs", "//! [`crate::queue`]\nuse crate::clock::Timestamp; // see crate::store\npub(crate) fn f() {}"),
        ("src/job.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use super::*;\n    use crate::queue::Queue;\n}"),
    ];
    for (file, code) in cases {
        assert_eq!(violations(Path::new(file), code), [""; 0], "{file}: {code}");
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files: Vec<(String, String)> = sources("src")
        .iter()
        .filter(|path| !["lib.rs", "main.rs"].iter().any(|root| path.ends_with(root)))
        .map(|path| (module(path), fs::read_to_string(path).unwrap()))
        .collect();
    assert_eq!(circles(&files), [""; 0]);
}

#[test]
fn a_circle_of_files_is_found_and_what_only_leads_to_it_is_not_part_of_it() {
    let files = [
        ("a", "mod b;"),
        ("a::b", "use super::{super::c::C, d};"),
        ("a::d", "pub(in crate::a) fn f() {}"),
        ("c", "mod d;\nuse self::d::D;"),
        ("c::d", "use crate::c::C; use super::tests::T;"),
        ("c::tests", "use super::*;"),
    ];
    assert_eq!(circles(&files.map(|(module, code)| (module.to_owned(), code.to_owned()))), ["c", "c::d"]);
}

/// The Rust files below `folder`.
fn sources(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    files(folder, "rs")
}

/// All files of a folder, and of those in it, whose names end so.
fn files(folder: impl AsRef<Path>, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// The module of a file: `http::problem` for `src/http/problem.rs`.
fn module(file: &Path) -> String {
    let path = file.with_extension("");
    path.iter().skip(1).map(|name| name.to_str().unwrap()).collect::<Vec<_>>().join("::")
}

fn lies_in(module: &str, folder: &str) -> bool {
    module.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The modules on a circle of imports, or between two circles. A module imports its submodules, because it wires them.
fn circles(files: &[(String, String)]) -> Vec<&str> {
    let modules: Vec<&str> = files.iter().map(|(module, _)| module.as_str()).collect();
    let file_of = |path: &str| {
        let named = modules.iter().copied().filter(|module| lies_in(path, module));
        named.max_by_key(|module| module.len())
    };
    let imports = |module: &str, code: &str| -> Vec<&str> {
        let named = relative_imports(module, code);
        let wired = modules.iter().copied().filter(|other| other.rsplit_once("::").is_some_and(|(up, _)| up == module));
        named.iter().filter_map(|path| file_of(path)).chain(wired).filter(|other| *other != module).collect()
    };
    let is_test = |module: &str| ["tests", "fuzz", "contract"].contains(&module.rsplit("::").next().unwrap());
    let mut left: Vec<(&str, Vec<&str>)> = files
        .iter()
        .filter(|(module, _)| !is_test(module))
        .map(|(module, code)| (module.as_str(), imports(module, code)))
        .collect();
    loop {
        let before = left.clone();
        let is_left = |module: &str| before.iter().any(|(other, _)| *other == module);
        let is_imported = |module: &str| before.iter().any(|(_, imports)| imports.contains(&module));
        left.retain(|(module, imports)| is_imported(module) && imports.iter().any(|other| is_left(other)));
        if left.len() == before.len() {
            return left.into_iter().map(|(module, _)| module).collect();
        }
    }
}

/// The paths below the crate's root that `module` names, also by `super` and `self`.
fn relative_imports(module: &str, code: &str) -> Vec<String> {
    let code = without_tests(code).replace("pub(in crate::", "pub(in ");
    let folders: Vec<&str> = module.split("::").collect();
    let roots = [
        ("crate::", String::new()),
        ("self::", format!("{module}::")),
        ("super::", folders[..folders.len() - 1].iter().map(|folder| format!("{folder}::")).collect()),
    ];
    let mut named: Vec<(usize, &str, &str)> = Vec::new();
    for (root, base) in &roots {
        named.extend(code.match_indices(root).map(|(start, _)| (start, *root, base.as_str())));
    }
    named.sort_unstable();
    let (mut found, mut read) = (Vec::new(), 0);
    for (start, root, base) in named {
        let is_within = code[..start].ends_with(|before: char| before.is_alphanumeric() || "_$:".contains(before));
        if start >= read && !is_within {
            read = code.len() - expand(&code[start + root.len()..], base, &mut found).len();
        }
    }
    let resolved = found.iter().map(|path| {
        let mut steps = Vec::new();
        for step in path.split("::") {
            if step == "super" {
                steps.pop();
            } else {
                steps.push(step);
            }
        }
        steps.join("::")
    });
    resolved.collect()
}

/// What `file`, which holds `code`, imports against the rules.
fn violations(file: &Path, code: &str) -> Vec<String> {
    let modules = file.with_extension("");
    let modules: Vec<&str> = modules.iter().skip(1).map(|name| name.to_str().unwrap()).collect();
    imports(code, modules.len())
        .into_iter()
        .filter(|import| !is_allowed(modules[0], import))
        .map(|import| format!("{} must not import crate::{import}", file.display()))
        .collect()
}

fn is_allowed(layer: &str, import: &str) -> bool {
    let lies_in = |folder: &str| lies_in(import, folder);
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return lies_in(layer); // a leaf, or a module without a place
    };
    let named_only = NAMED_ONLY.iter().find(|module| lies_in(module));
    lies_in(layer)
        || LEAVES.iter().any(|leaf| lies_in(leaf))
        || named_only.map_or(allowed.split_whitespace().any(lies_in), |module| {
            allowed.split_whitespace().any(|name| name == *module)
        })
}

/// The paths below the crate's root that `code` names; `depth` is how many `super` lead there.
fn imports(code: &str, depth: usize) -> Vec<String> {
    let code = without_tests(code);
    let to_root = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", "ceoagent::", &to_root] {
        for (start, _) in code.match_indices(root) {
            if !code[..start].ends_with(|before: char| before.is_alphanumeric() || "_$:".contains(before)) {
                expand(&code[start + root.len()..], "", &mut found);
            }
        }
    }
    found
}

/// `code` without its tests and comments.
fn without_tests(code: &str) -> String {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

/// Reads one path or `{…}` tree at the start of `tree`, whose names all begin with `prefix`; returns what follows it.
fn expand<'a>(tree: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    if let Some(mut rest) = tree.strip_prefix('{') {
        while !rest.is_empty() {
            rest = match rest.trim_start().split_at_checked(1) {
                Some(("}", after)) => return after,
                Some((",", after)) => after,
                _ => expand(rest.trim_start(), prefix, found).trim_start_matches(|c| c != ',' && c != '}'),
            };
        }
        return rest;
    }
    let (name, rest) = tree.split_at(tree.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tree.len()));
    match rest.strip_prefix("::") {
        Some(below) => expand(below, &format!("{prefix}{name}::"), found),
        None => {
            found.push(format!("{prefix}{name}").trim_end_matches("::").to_owned());
            rest
        }
    }
}
