//! The command line as a person or a script meets it: the real binary against a real service, through pipes.

use std::{
    io::{Read, Write},
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use ceoagent::{claude::simulator::Fault, clock::Timestamp};
use serde_json::Value;

use crate::harness::{Service, Setup, send, simulator};

/// What a command said, and how it ended.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// `ceoagent ARGS`, which finds `service` by its URL.
fn client(setup: &Setup, service: &Service, args: &[&str]) -> Command {
    let mut command = setup.command();
    command.env("CEOAGENT_URL", service.base()).args(args);
    command
}

/// Runs it to its end, off the runtime's threads.
async fn run(mut command: Command) -> Said {
    tokio::task::spawn_blocking(move || command.output().unwrap().into()).await.unwrap()
}

fn assert_no_panic(said: &Said) {
    assert!(!said.err.contains("panicked"), "{}", said.err);
}

#[tokio::test]
async fn a_question_comes_back_as_a_page_as_json_and_as_markdown() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let question = "Should we rent a *second* warehouse?";
    let page = run(client(&setup, &service, &["analyze", question])).await;
    assert_eq!(page.code, Some(0), "{}", page.err);
    assert!(page.out.contains("BOTTOM LINE") && page.out.contains(question) && !page.out.contains('\u{1b}'));
    assert_eq!(page.err, "", "a pipe gets no bar");

    let args = ["analyze", question, "--json", "--option", "Rent", "--option", "Don't", "--metadata", "team=ops"];
    let json =
        run(client(&setup, &service, &[&args[..], &["--priority", "high", "--context", "We grow."]].concat())).await;
    assert_eq!(json.code, Some(0), "{}", json.err);
    let job: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&job["query"], &job["status"]), (&question.into(), &"succeeded".into()));
    assert_eq!(job["options"], serde_json::json!(["Rent", "Don't"]));
    assert_eq!(
        (&job["metadata"]["team"], &job["priority"], &job["context"]),
        (&"ops".into(), &"high".into(), &"We grow.".into())
    );
    assert!(job["result"]["recommendation"].is_object());

    let markdown = run(client(&setup, &service, &["analyze", question, "--markdown"])).await;
    assert!(markdown.out.starts_with("# ") && markdown.out.contains("\n## Recommendation\n"), "{}", markdown.out);
}

#[tokio::test]
async fn a_question_is_read_from_standard_input() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let mut command = client(&setup, &service, &["analyze", "-", "--json"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("Should we\nmove to Lyon?\n".as_bytes()).unwrap();
    let said: Said = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap().into()).await.unwrap();
    let job: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(job["query"], "Should we\nmove to Lyon?");
    let empty = run(client(&setup, &service, &["analyze", "-"])).await;
    assert_eq!(empty.code, Some(1));
    assert!(empty.err.contains("standard input has no question"), "{}", empty.err);
}

#[tokio::test]
async fn each_way_to_end_has_its_exit_code_and_says_why() {
    let claude = simulator().await;
    claude.script([Fault::Refusal]);
    let mut setup = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "40");
    let service = setup.start();
    let failed = run(client(&setup, &service, &["analyze", "Should we lie?"])).await;
    assert_eq!((failed.code, failed.out.as_str()), (Some(3), ""));
    assert!(failed.err.contains(" failed: ") && failed.err.contains("refused"), "{}", failed.err);

    let refused = run(client(&setup, &service, &["analyze", &"Why? ".repeat(30), "--model", "a b"])).await;
    assert_eq!(refused.code, Some(4));
    for words in ["query: must be at most 40 characters", "model: must be", "validation_failed"] {
        assert!(refused.err.contains(words), "{words:?} is not in {}", refused.err);
    }

    let wrong = run(client(&setup, &service, &["analyze", "Why?", "--json", "--markdown"])).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);

    let base = service.base().to_owned();
    service.kill();
    setup.set("CEOAGENT_URL", &base);
    let mut command = setup.command();
    command.args(["analyze", "Is anybody there?"]);
    let alone = run(command).await;
    assert_eq!(alone.code, Some(1));
    assert!(alone.err.contains(&format!("no service answers at {base}")), "{}", alone.err);
    assert!(alone.err.contains("ceoagent serve") && alone.err.contains("CEOAGENT_URL"), "{}", alone.err);
}

#[tokio::test]
async fn where_no_service_runs_a_question_gets_one_of_its_own_that_leaves_nothing_behind() {
    let claude = simulator().await;
    // A port that nobody listens on any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    // It must not join the nodes of a real service.
    let setup = Setup::new(&claude.base_url())
        .with("PORT", &port)
        .with("DATABASE_URL", "postgres://127.0.0.1:9/production")
        .with("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let mut command = setup.command();
    command.args(["analyze", "Should we try it alone?"]);
    let with_key = run(command).await;
    assert_eq!(with_key.code, Some(0), "{}", with_key.err);
    assert!(with_key.out.contains("BOTTOM LINE") && !with_key.err.contains("SIMULATED"), "{}", with_key.err);
    assert_eq!(claude.counters().calls, 1, "the key's own Claude was asked");

    let setup = setup.without("ANTHROPIC_API_KEY");
    let mut command = setup.command();
    command.args(["analyze", "Should we try it without a key?", "--json"]);
    let without = run(command).await;
    assert_eq!(without.code, Some(0), "{}", without.err);
    assert!(without.err.contains("Claude is SIMULATED") && without.out.contains("SIMULATED ANSWER"), "{}", without.err);
    assert!(setup.folder().join("data/analyze").is_dir() && !setup.folder().join("data/queue").exists());
    assert_no_panic(&without);
}

#[tokio::test]
async fn jobs_are_listed_shown_watched_cancelled_and_retried() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal, Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let service = setup.start();
    let done = service.submit("Done\u{1b}[31m\u{9b}31m\u{202e}?").await.id();
    service.ended(&done).await;
    let failed = service.submit("Failed?").await.id();
    service.ended(&failed).await;
    service.submit("Held?").await;
    claude.wait_for_calls(3).await;
    let detached = run(client(&setup, &service, &["analyze", "Queued?", "--detach"])).await;
    let queued = detached.out.trim();

    let list = run(client(&setup, &service, &["jobs", "list"])).await;
    let lines: Vec<&str> = list.out.lines().collect();
    assert_eq!((list.code, lines.len()), (Some(0), 5), "{}{}", list.out, list.err);
    assert!(lines[0].starts_with("ID") && lines[1].starts_with(queued) && lines[1].contains("Queued?"), "{}", list.out);
    assert!(lines[4].starts_with(&done) && !list.out.contains('\u{1b}'), "{}", list.out);
    let some =
        run(client(&setup, &service, &["jobs", "list", "--status=failed", "--status=succeeded", "--json"])).await;
    let ids: Vec<String> =
        some.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string()).collect();
    assert_eq!(ids, [format!("{failed:?}"), format!("{done:?}")]);
    let shown = run(client(&setup, &service, &["jobs", "show", &done, "--json"])).await;
    let exported = run(client(&setup, &service, &["export"])).await;
    for json in [&some.out, &shown.out, &exported.out] {
        assert!(json.contains("Done\\u001b[31m\\u009b31m\\u202e?"), "a terminal would obey them: {json}");
    }
    let one = run(client(&setup, &service, &["jobs", "list", "--limit=1"])).await;
    assert_eq!(one.out.lines().count(), 2);

    let show = run(client(&setup, &service, &["jobs", "show", &done])).await;
    assert_eq!(show.code, Some(0), "{}", show.err);
    for words in ["Status", "succeeded", "Attempt", "BOTTOM LINE"] {
        assert!(show.out.contains(words), "{words:?} is not in {}", show.out);
    }
    let pending = run(client(&setup, &service, &["jobs", "show", queued])).await;
    assert_eq!(pending.code, Some(0), "{}", pending.err);
    assert!(pending.out.contains("waits for worker"), "{}", pending.out);

    let cancel = run(client(&setup, &service, &["jobs", "cancel", queued, &done, "nonsense"])).await;
    assert_eq!((cancel.code, cancel.out), (Some(4), format!("{queued} cancelled\n")));
    assert!(cancel.err.contains(&format!("{done}: ")) && cancel.err.contains("invalid_job_id"), "{}", cancel.err);
    let retry = run(client(&setup, &service, &["jobs", "retry", queued])).await;
    assert_eq!((retry.code, retry.out), (Some(0), format!("{queued} queued\n")), "{}", retry.err);

    let watch = tokio::spawn(run(client(&setup, &service, &["jobs", "watch", queued, "--json"])));
    claude.release();
    let watched = watch.await.unwrap();
    assert_eq!(watched.code, Some(0), "{}", watched.err);
    assert_eq!(serde_json::from_str::<Value>(&watched.out).unwrap()["id"], queued);
    let watch = run(client(&setup, &service, &["jobs", "watch", &failed])).await;
    assert_eq!(watch.code, Some(3), "{}", watch.err);
}

#[tokio::test]
async fn all_jobs_that_meet_conditions_are_retried_or_cancelled_once_that_is_confirmed() {
    let claude = simulator().await;
    claude.script(std::iter::repeat_n(Fault::Refusal, 25));
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    for n in 0..25 {
        service.ended(&service.submit(&format!("Refused {n}?")).await.id()).await;
    }
    service.admin_post("/api/v1/admin/queue/pause", &serde_json::json!({})).await;
    let jobs = async |args: &[&str]| run(client(&setup, &service, &[&["jobs"], args].concat())).await;
    let count = async |status: &str| service.admin_get("/api/v1/admin/jobs").await.body["total"][status].clone();

    let unconfirmed = jobs(&["retry", "--status=failed", "--text=refused"]).await;
    assert_eq!((unconfirmed.code, unconfirmed.out.as_str()), (Some(1), ""));
    for words in ["25 jobs will be retried", "US dollars", "nothing was changed", "--yes"] {
        assert!(unconfirmed.err.contains(words), "{words:?} is not in {}", unconfirmed.err);
    }
    assert_eq!(count("failed").await, 25);
    let retried = jobs(&["retry", "--status=failed", "--text=refused", "--yes"]).await;
    assert_eq!((retried.code, retried.out.as_str()), (Some(0), "25 jobs retried\n"), "{}", retried.err);
    assert_eq!(count("queued").await, 25, "more than a page of the listing");
    let none = jobs(&["retry", "--status=failed"]).await;
    assert_eq!(none.code, Some(0), "nothing to do needs no word: {}", none.err);
    assert!(none.out.starts_with("0 jobs"), "{}", none.out);
    let some = jobs(&["cancel", "--text", "Refused 1", "--yes"]).await;
    assert_eq!(some.out, "11 jobs cancelled\n", "{}", some.err);
    assert_eq!((count("cancelled").await, count("queued").await), (11.into(), 14.into()));

    for (wrong, words) in [(&["retry"][..], "--status failed"), (&["retry", "some-id", "--status=failed"], "<ID>")] {
        let said = jobs(wrong).await;
        assert!(said.code == Some(2) && said.err.contains(words), "{wrong:?}: {}", said.err);
    }
    let refused = jobs(&["cancel", "--status=failing", "--yes"]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.err);
    let label = jobs(&["cancel", "--metadata=team", "--yes"]).await;
    assert!(label.code == Some(1) && label.err.contains("KEY=VALUE"), "{}", label.err);

    let deleted = jobs(&["delete", "--text", "Refused 1", "--yes"]).await;
    assert_eq!(deleted.out, "11 jobs deleted\n", "{}", deleted.err);
    assert!(deleted.err.contains("11 jobs will be deleted; deleted jobs can't be restored"), "{}", deleted.err);
    let waits =
        service.admin_get("/api/v1/admin/jobs?limit=1").await.body["jobs"][0]["id"].as_str().unwrap().to_owned();
    let early = jobs(&["delete", &waits]).await;
    assert!(early.code == Some(4) && early.err.contains("cancel it before you delete it"), "{}", early.err);
    assert_eq!(jobs(&["cancel", &waits]).await.code, Some(0));
    assert_eq!(jobs(&["delete", &waits]).await.out, format!("{waits} deleted\n"));
}

#[tokio::test]
async fn the_key_of_a_caller_lists_its_own_jobs_and_without_a_key_the_service_says_what_it_needs() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("API_KEYS", "alice:a-key-of-alice-1234,bob:a-key-of-bob-567890");
    let service = setup.start();
    let list = async |token: Option<&str>, args: &[&str]| {
        let mut command = client(&setup, &service, &[&["jobs", "list", "--json"], args].concat());
        // Without them, the command finds the admin token of the service on this machine.
        command.env("DATA_DIR", "nowhere").env_remove("ADMIN_TOKEN");
        run(match token {
            Some(token) => {
                command.env("CEOAGENT_TOKEN", token);
                command
            }
            None => command,
        })
        .await
    };
    let mut ids = Vec::new();
    for key in ["a-key-of-alice-1234", "a-key-of-bob-567890"] {
        let request = service.request(reqwest::Method::POST, "/api/v1/analyze").bearer_auth(key);
        ids.push(send(request.json(&serde_json::json!({"query": "Mine?"}))).await.id());
    }
    let own = list(Some("a-key-of-alice-1234"), &["--text", "mine"]).await;
    assert_eq!((own.code, own.out.lines().count()), (Some(0), 1), "{}{}", own.out, own.err);
    assert!(own.out.contains(&ids[0]), "{}", own.out);
    let unnamed = list(None, &[]).await;
    assert!(unnamed.code == Some(4) && unnamed.err.contains("CEOAGENT_TOKEN"), "{}", unnamed.err);
    let wrong = list(Some("a-key-of-nobody-12"), &[]).await;
    assert!(wrong.code == Some(4) && wrong.err.contains("unauthorized"), "{}", wrong.err);
    let others = list(Some("a-key-of-alice-1234"), &["--caller", "bob"]).await;
    assert!(others.code == Some(4) && others.err.contains("caller: is not a parameter"), "{}", others.err);
}

#[tokio::test]
async fn the_ids_of_jobs_are_read_from_standard_input() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    service.admin_post("/api/v1/admin/queue/pause", &serde_json::json!({})).await;
    let (first, second) = (service.submit("The first?").await.id(), service.submit("The second?").await.id());
    let cancel = async |ids: String| -> Said {
        let mut child = client(&setup, &service, &["jobs", "cancel", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(ids.as_bytes()).unwrap();
        tokio::task::spawn_blocking(move || child.wait_with_output().unwrap().into()).await.unwrap()
    };
    let said = cancel(format!("{first}\n\n  {second} nonsense\n")).await;
    assert_eq!((said.code, said.out), (Some(4), format!("{first} cancelled\n{second} cancelled\n")), "{}", said.err);
    assert!(said.err.contains("nonsense: ") && said.err.contains("invalid_job_id"), "{}", said.err);
    let none = cancel(String::new()).await;
    assert_eq!((none.code, none.out + &none.err), (Some(0), String::new()), "an empty list is no failure");
}

#[tokio::test]
async fn a_job_is_shown_with_what_it_cost_and_why_it_failed_once() {
    let claude = simulator().await;
    claude.script([Fault::Normal, Fault::Refusal]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let show = async |id: &str| run(client(&setup, &service, &["jobs", "show", id])).await;
    let done = service.submit("Done?").await.id();
    let job = service.ended(&done).await.body;
    let cost = format!("{:.4} US dollars", job["cost_usd"].as_f64().unwrap());
    let said = show(&done).await;
    for words in [cost.as_str(), " output\n", "claude-sonnet-5-5"] {
        assert!(said.out.contains(words), "{words:?} is not in {}", said.out);
    }
    let failed = service.submit("Failed?").await.id();
    let job = service.ended(&failed).await.body;
    let why = job["error"]["message"].as_str().unwrap();
    let said = show(&failed).await;
    assert_eq!((said.code, said.err.as_str()), (Some(3), ""));
    assert_eq!(said.out.matches(why).count(), 1, "{}", said.out);
    assert!(said.out.contains("(refused)"), "{}", said.out);
}

#[tokio::test]
async fn a_question_takes_every_field_of_the_service() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url())
        .with("WEBHOOK_SECRET", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
        .with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8");
    let service = setup.start();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_hours(1);
    let at = Timestamp::from_millis(i64::try_from(now.as_millis()).unwrap()).to_string();
    let args = ["analyze", "Later?", "--detach", "--run-at", &at, "--deadline=7200", "--prompt-version=v1"];
    let hook = ["--callback-url", "http://127.0.0.1:9/hook"];
    let asked = run(client(&setup, &service, &[&args[..], &hook[..]].concat())).await;
    assert_eq!(asked.code, Some(0), "{}", asked.err);
    let job = service.get(&format!("/api/v1/jobs/{}", asked.out.trim())).await.body;
    assert_eq!((&job["run_at"], &job["prompt_version"]), (&at.as_str().into(), &"v1".into()), "{job:#}");
    assert_eq!((&job["callback_url"], job["deadline_at"].is_string()), (&hook[1].into(), true), "{job:#}");
    let shown = run(client(&setup, &service, &["jobs", "show", asked.out.trim()])).await;
    for words in [at.as_str(), "Deadline", "waits for run_at", "sent when the job ends, to http://127.0.0.1:9/hook"] {
        assert!(shown.out.contains(words), "{words:?} is not in {}", shown.out);
    }

    let plain = run(client(&setup, &service, &["analyze", "Now?", "--json"])).await;
    let plain: Value = serde_json::from_str(&plain.out).unwrap();
    assert!(plain["prompt_version"].is_null(), "the setting's default is not the question's: {plain:#}");
    let unknown = run(client(&setup, &service, &["analyze", "Now?", "--prompt-version=v99"])).await;
    assert!(unknown.code == Some(4) && unknown.err.contains("prompt_version"), "{}", unknown.err);
}

#[tokio::test]
async fn the_token_of_this_machines_service_goes_to_no_other() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).without("ADMIN_TOKEN");
    let service = setup.start();
    let port = service.base().rsplit(':').next().unwrap();
    let mut local = setup.command();
    local.env("PORT", port).env("HOST", "0.0.0.0").args(["jobs", "list"]);
    let local = run(local).await;
    assert_eq!(local.code, Some(0), "the kept token is found: {}", local.err);
    let mut wrong = client(&setup, &service, &["jobs", "list", "--token", "not-the-right-one"]);
    wrong.env("ADMIN_TOKEN", "neither-is-this-one");
    let wrong = run(wrong).await;
    assert_eq!(wrong.code, Some(4));
    assert!(wrong.err.contains("unauthorized") && wrong.err.contains("CEOAGENT_TOKEN"), "{}", wrong.err);

    // Another host of the same machine, as far as the client can tell.
    let stranger = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let address = format!("http://ceoagent-test.invalid:{}", stranger.local_addr().unwrap().port());
    let proxy = format!("http://127.0.0.1:{}", stranger.local_addr().unwrap().port());
    let mut other = setup.command();
    other.env("CEOAGENT_URL", &address).env("http_proxy", &proxy).env("ADMIN_TOKEN", "a-secret-of-this-machine");
    let mut other = other.args(["jobs", "list"]).spawn().unwrap();
    let head = tokio::task::spawn_blocking(move || {
        let (mut caller, _) = stranger.accept().unwrap();
        let mut head = vec![0; 4096];
        let read = caller.read(&mut head).unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let head = head.await.unwrap();
    let _ = other.kill();
    let _ = other.wait();
    assert!(head.contains("/api/v1/admin/jobs") && !head.to_lowercase().contains("authorization"), "{head}");
}

#[tokio::test]
async fn colours_are_for_who_wants_them_and_a_closed_pipe_is_no_panic() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let id = service.submit("Red or blue?").await.id();
    service.ended(&id).await;
    let show = ["jobs", "show", &id];
    let mut forced = client(&setup, &service, &show);
    forced.env("CLICOLOR_FORCE", "1");
    assert!(run(forced).await.out.contains('\u{1b}'));
    let mut none = client(&setup, &service, &show);
    none.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!run(none).await.out.contains('\u{1b}'));

    for args in [&show[..], &["jobs", "list"], &["completions", "bash"], &["openapi"], &["--help"]] {
        let mut child = client(&setup, &service, args).spawn().unwrap();
        drop(child.stdout.take());
        let said: Said = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap().into()).await.unwrap();
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[tokio::test]
async fn an_operator_looks_at_a_service_holds_it_and_lets_it_go_on() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let pause = run(client(&setup, &service, &["pause"])).await;
    assert_eq!((pause.code, pause.out.as_str()), (Some(0), "the queue is paused\n"), "{}", pause.err);
    let id = service.submit("Does it wait?").await.id();
    let stats = run(client(&setup, &service, &["stats"])).await;
    assert_eq!(stats.code, Some(0), "{}", stats.err);
    for words in ["1 queued", "512, 0 running attempts", "not measured yet", "1 submitted", "0 tokens", "Paused"] {
        assert!(stats.out.contains(words), "{words:?} is not in {}", stats.out);
    }
    assert!(!stats.out.contains("Budget"), "there is none: {}", stats.out);
    let again = run(client(&setup, &service, &["pause"])).await;
    assert!(again.out.starts_with("the queue is already paused, by admin_token since 2"), "{}", again.out);
    let resume = run(client(&setup, &service, &["resume"])).await;
    assert_eq!(resume.code, Some(0), "{}", resume.err);
    assert!(resume.out.starts_with("the queue is resumed; it was paused by admin_token since 2"), "{}", resume.out);
    let again = run(client(&setup, &service, &["resume"])).await;
    assert_eq!((again.code, again.out.as_str()), (Some(0), "the queue was not paused\n"), "{}", again.err);
    assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    let json = run(client(&setup, &service, &["stats", "--json"])).await;
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["jobs"]["succeeded"], &json["usage"]["spent_today"]["calls"]), (&1.into(), &1.into()));
    let stranger = run(client(&setup, &service, &["pause", "--token", "not-the-right-one"])).await;
    assert_eq!(stranger.code, Some(4), "{}", stranger.err);
}

#[tokio::test]
async fn the_figures_tell_that_the_budget_holds_the_queue() {
    let claude = simulator().await;
    // Room for one call at its most, and once that has spent anything for no other.
    let setup = Setup::new(&claude.base_url()).with("DAILY_BUDGET", "24000 tokens");
    let service = setup.start();
    service.ended(&service.submit("The only one today?").await.id()).await;
    let stats = run(client(&setup, &service, &["stats"])).await;
    assert!(
        stats.out.contains("of 24000 tokens used") && stats.out.contains("the queue continues at 2"),
        "{}",
        stats.out
    );
    assert!(stats.out.contains("1 calls") && !stats.out.contains("not measured"), "{}", stats.out);
}

#[test]
fn help_has_examples_and_its_own_options_and_completions_know_every_command() {
    let setup = Setup::new("http://127.0.0.1:9");
    let help = |args: &[&str]| Said::from(setup.command().args(args).output().unwrap()).out;
    let analyze = help(&["analyze", "--help"]);
    for words in ["Examples:", "Exit codes:", "--markdown", "CEOAGENT_URL", "--idempotency-key"] {
        assert!(analyze.contains(words), "{words:?} is not in {analyze}");
    }
    assert!(!analyze.contains("--max-retries"), "{analyze}");
    let serve = help(&["serve", "--help"]);
    assert!(serve.contains("--max-retries") && serve.contains("ANTHROPIC_API_KEY"), "{serve}");
    assert!(!serve.contains("--anthropic-api-key"), "a flag that is always refused: {serve}");
    for command in [&["demo"][..], &["loadtest"], &["healthcheck"], &["own-data"], &["jobs", "list"], &["stats"]] {
        let text = help(&[command, &["--help"]].concat());
        assert!(!text.contains("--max-retries") && text.lines().count() <= 60, "{command:?}: {text}");
    }
    for (command, setting) in [("demo", "--host"), ("loadtest", "--workers"), ("own-data", "--data-dir")] {
        let text = help(&[command, "--help"]);
        assert!(text.contains(setting) && text.contains("all others of `ceoagent serve --help`"), "{text}");
    }
    assert!(!help(&["demo", "--help"]).contains("0.0.0.0"), "it listens on this machine alone");
    let hidden = setup.command().args(["loadtest", "--max-retries=21"]).output().unwrap();
    let hidden = Said::from(hidden);
    assert!(hidden.code == Some(2) && hidden.err.contains("from 0 to 20"), "it is taken: {}", hidden.err);
    for shell in ["bash", "zsh", "fish"] {
        let script = help(&["completions", shell]);
        for word in ["analyze", "watch", "completions", "idempotency-key"] {
            assert!(script.contains(word), "{word} is not completed in {shell}");
        }
    }
}

#[tokio::test]
async fn who_asked_is_in_the_listing_and_with_the_job() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("API_KEYS", "alice:a-key-of-alice-1234");
    let service = setup.start();
    let request = service.request(reqwest::Method::POST, "/api/v1/analyze").bearer_auth("a-key-of-alice-1234");
    let id = send(request.json(&serde_json::json!({"query": "Mine?"}))).await.id();
    let list = run(client(&setup, &service, &["jobs", "list"])).await;
    assert!(list.out.contains("CALLER") && list.out.contains(" alice "), "{}{}", list.out, list.err);
    let show = run(client(&setup, &service, &["jobs", "show", &id])).await;
    assert!(show.out.contains("Caller     alice\n"), "{}{}", show.out, show.err);
}

#[tokio::test]
async fn a_listing_takes_every_condition_of_the_service_and_goes_on_from_a_cursor() {
    let claude = simulator().await;
    claude.script([Fault::Refusal]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let ask = async |body: Value| {
        let id = service.post("/api/v1/analyze", &body).await.id();
        service.ended(&id).await;
        id
    };
    let refused = ask(serde_json::json!({"query": "Refused?", "metadata": {"team": "ops"}})).await;
    let low = ask(serde_json::json!({"query": "Rotterdam?", "priority": "low"})).await;
    let last = ask(serde_json::json!({"query": "The last?", "metadata": {"team": "ops", "floor": "2"}})).await;
    let list = async |args: &[&str]| {
        let said = run(client(&setup, &service, &[&["jobs", "list", "--json"], args].concat())).await;
        assert_eq!(said.code, Some(0), "{args:?}: {}", said.err);
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        (said.out.lines().map(id).collect::<Vec<_>>(), said.err)
    };
    let all = [last.clone(), low.clone(), refused.clone()];
    for (args, expected) in [
        (&["--text", "ROTTER"][..], &all[1..2]),
        (&["--priority", "low"], &all[1..2]),
        (&["--code", "refused", "--code", "overloaded"], &all[2..]),
        (&["--ids", &format!("{low},{refused}")], &all[1..]),
        (&["--metadata", "team=ops", "--metadata", "floor=2"], &all[..1]),
        (&["--model", "no-such-model"], &[]),
        (&["--caller", "nobody"], &[]),
        (&["--created-before", "2026-01-01T00:00:00Z"], &[]),
        (&["--created-from", "2026-01-01T00:00:00Z"], &all),
    ] {
        assert_eq!(list(args).await.0, expected, "{args:?}");
    }
    let (first, told) = list(&["--oldest", "--limit=2"]).await;
    assert_eq!(first, [refused, low]);
    let cursor = told.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(told.starts_with("for more jobs add: --cursor "), "{told}");
    assert_eq!(list(&["--oldest", "--cursor", &cursor]).await, (vec![last], String::new()));
    let wrong = run(client(&setup, &service, &["jobs", "list", "--created-from", "yesterday"])).await;
    assert_eq!(wrong.code, Some(4));
    assert!(wrong.err.contains("created_from") && wrong.err.contains("RFC 3339"), "{}", wrong.err);
}

#[tokio::test]
async fn a_question_on_standard_input_is_text_in_any_unicode_encoding() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let query = "Shall we open a second Café counter? 我们";
    let file = format!("\u{feff}{query}\r\n");
    let utf16 = |bytes: fn(u16) -> [u8; 2]| file.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    for bytes in
        [file.clone().into_bytes(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes), query.as_bytes().to_vec()]
    {
        let mut command = client(&setup, &service, &["analyze", "-", "--json"]);
        let question = setup.folder().join("question.txt");
        std::fs::write(&question, bytes).unwrap();
        command.stdin(std::fs::File::open(question).unwrap());
        let said = run(command).await;
        let job: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{}", said.err));
        assert_eq!((job["query"].as_str(), said.code), (Some(query), Some(0)));
    }
    let mut command = client(&setup, &service, &["analyze", "-"]);
    std::fs::write(setup.folder().join("question.txt"), b"caf\xe9?").unwrap();
    command.stdin(std::fs::File::open(setup.folder().join("question.txt")).unwrap());
    let said = run(command).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("standard input") && said.err.contains("UTF-8"), "{}", said.err);
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_and_shown_once() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("REQUIRE_API_KEY", "true");
    let service = setup.start();
    let keys = async |args: &[&str]| run(client(&setup, &service, &[&["keys"], args].concat())).await;
    let made = keys(&["create", "alice"]).await;
    let key = made.out.trim();
    assert_eq!((made.code, key.split_whitespace().count()), (Some(0), 1), "{}", made.err);
    assert!(made.err.contains("\"alice\" of scope analyze; it is shown only once"), "{}", made.err);
    service.submit("Without a key?").await.assert_problem(401, "unauthorized");
    let mut command = client(&setup, &service, &["analyze", "With it?", "--token", key]);
    assert_eq!(run(command).await.code, Some(0));

    let json = keys(&["create", "alice/reports", "--scope", "read", "--json"]).await;
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["name"], &json["scope"]), (&"alice/reports".into(), &"read".into()));
    assert!(json["key"].is_string());
    for (args, words) in [
        (&["create", "alice"][..], "conflict"),
        (&["create", "a b"], "name"),
        (&["create", "c", "--scope", "everything"], "scope"),
        (&["revoke", "nobody"], "key_not_found"),
        (&["revoke", "../jobs"], "key_not_found"),
    ] {
        let refused = keys(args).await;
        assert_eq!((refused.code, refused.out.as_str()), (Some(4), ""), "{args:?}");
        assert!(refused.err.contains(words), "{args:?}: {}", refused.err);
    }

    let revoked = keys(&["revoke", "alice"]).await;
    assert_eq!((revoked.code, revoked.out.as_str()), (Some(0), "alice revoked\n"), "{}", revoked.err);
    command = client(&setup, &service, &["analyze", "With it again?", "--token", key]);
    assert_eq!(run(command).await.code, Some(4));
    let list = keys(&["list"]).await;
    let lines: Vec<Vec<&str>> = list.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SCOPE", "CREATED", "BY", "REVOKED"]);
    assert_eq!((&lines[1][..2], lines[1].len()), (&["alice", "analyze"][..], 5), "{}", list.out);
    assert_eq!((&lines[2][..2], lines[2].len()), (&["alice/reports", "read"][..], 4), "{}", list.out);
    assert!(!list.out.contains(key) && keys(&["list", "--json"]).await.out.contains("revoked_at"));
    let revoked = keys(&["revoke", "alice/reports"]).await;
    assert_eq!((revoked.code, revoked.out.as_str()), (Some(0), "alice/reports revoked\n"), "{}", revoked.err);
}
