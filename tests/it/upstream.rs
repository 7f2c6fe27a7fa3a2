//! A Claude that is down, slow, broken or unwilling: what becomes of the job, what its history says, and what is called.

use std::time::{Duration, Instant};

use ceoagent::{
    claude::simulator::{ErrorAnswer, Fault, Simulator, SimulatorConfig},
    clock::{Clock, Timestamp},
};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator};

/// A service whose jobs get one retry, and its Claude, whose next calls go wrong like this.
async fn service(faults: impl IntoIterator<Item = Fault>, settings: &[(&str, &str)]) -> (Service, Simulator, Setup) {
    let claude = simulator().await;
    claude.script(faults);
    let mut setup = Setup::new(&claude.base_url()).with("MAX_RETRIES", "1");
    settings.iter().for_each(|(name, value)| setup.set(name, value));
    (setup.start(), claude, setup)
}

/// Asks, and gives the job at its end.
async fn outcome(service: &Service) -> Value {
    let accepted = service.submit("Should we open a second plant?").await;
    service.ended(&accepted.id()).await.body
}

/// The outcome and the error's code of each attempt.
fn history(job: &Value) -> Vec<(&str, &str)> {
    let attempts = job["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|attempt| (attempt["outcome"].as_str().unwrap(), attempt["error"]["code"].as_str().unwrap_or_default()))
        .collect()
}

/// Cancels or retries a job.
async fn act(service: &Service, id: &str, action: &str) -> Answer {
    send(service.request(reqwest::Method::POST, &format!("/api/v1/jobs/{id}/{action}"))).await
}

fn status(status: u16) -> Fault {
    ErrorAnswer::status(status).into()
}

#[tokio::test]
async fn an_upstream_that_is_down_fails_the_job_at_once_if_no_retries_are_allowed_and_nothing_is_billed() {
    // Nobody listens on the port of `discard`; one that was free a moment ago may be another test's by now.
    let service = Setup::new("http://127.0.0.1:9").with("MAX_RETRIES", "0").start();
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("connect_failed")));
    assert_eq!(history(&job), [("failed", "connect_failed")]);
    for attempt in job["attempts"].as_array().unwrap() {
        assert_eq!(attempt["may_have_been_billed"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_connection_degrade_readiness_until_claude_answers_again() {
    // Nobody listens on it, and nobody else gets it.
    let reserved = TcpSocket::new_v4().unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = reserved.local_addr().unwrap();
    let service = Setup::new(&format!("http://{address}")).start();
    let mut jobs = Vec::new();
    for n in 0..3 {
        jobs.push(service.submit(&format!("Should we open plant {n}?")).await.id());
    }
    let degraded = loop {
        let ready = service.get("/health/ready").await;
        assert_eq!(ready.status, 200, "jobs are accepted all the same");
        if ready.body["status"] == "degraded" {
            break ready.body;
        }
    };
    let reason = &degraded["reasons"][0];
    assert_eq!((&reason["field"], &reason["code"]), (&json!("claude"), &json!("connect_failed")), "{degraded:#}");
    let metrics = async || service.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(metrics().await.contains("\nceoagent_claude_unreachable 1\n"));

    drop(reserved);
    let claude = Simulator::start(SimulatorConfig { addr: address, ..SimulatorConfig::default() }).await.unwrap();
    for id in jobs {
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
    assert!(metrics().await.contains("\nceoagent_claude_unreachable 0\n"));
    assert_eq!(claude.counters().calls, 3);
}

/// What a job's history tells of tokens, against what the simulator billed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tokens {
    /// None, as nothing was billed.
    None,
    /// All that was billed.
    All,
    /// All input; the answer broke off before its own tokens were told.
    Input,
    /// Nothing for sure: an estimate from above is shown instead.
    AtRisk,
}

/// Asks one question of a Claude with whom every call goes wrong like this. The job must come to this end: its status
/// and code, in so many attempts, each of them one call, and with these tokens.
async fn row(fault: Fault, settings: &[(&str, &str)], status: &str, code: &str, attempts: usize, tokens: Tokens) {
    let (service, claude, _setup) = service(vec![fault; attempts], settings).await;
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), job["error"]["code"].as_str().unwrap_or("")), (Some(status), code), "{job:#}");
    assert_eq!(history(&job), vec![(status, code); attempts]);
    assert_eq!(claude.counters().calls, attempts, "one attempt is one call");
    let billed = claude.counters().usage;
    let count = |of: &Value, field: &str| of[field].as_u64().unwrap_or_else(|| panic!("no {field} in {job:#}"));
    match tokens {
        Tokens::None | Tokens::AtRisk => assert_eq!(job.get("usage"), None, "{job:#}"),
        Tokens::All => {
            let told = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
            let told = told.map(|field| count(&job["usage"], field));
            let cached = [billed.cache_creation_input_tokens, billed.cache_read_input_tokens];
            assert_eq!(told, [billed.input_tokens, billed.output_tokens, cached[0], cached[1]]);
            assert!(billed.output_tokens > 0 || code == "invalid_output" || code == "refused");
        }
        Tokens::Input => assert_eq!(count(&job["usage"], "input_tokens"), billed.input_tokens),
    }
    let perhaps = matches!(tokens, Tokens::Input | Tokens::AtRisk);
    let mut at_risk = (0, 0);
    for attempt in job["attempts"].as_array().unwrap() {
        assert_eq!(attempt["may_have_been_billed"], perhaps, "{attempt:#}");
        assert_eq!(attempt["at_risk"]["cost_usd"].as_f64().is_some_and(|cost| cost > 0.0), perhaps, "{attempt:#}");
        assert_eq!(attempt["prompt_version"], "v1");
        assert_eq!(attempt["prompt_sha256"].as_str().map(str::len), Some(64));
        if perhaps {
            at_risk.0 += count(&attempt["at_risk"], "input_tokens");
            at_risk.1 += count(&attempt["at_risk"], "output_tokens");
        }
    }
    assert!(!perhaps || (at_risk.0 >= billed.total_input() && at_risk.1 >= billed.output_tokens), "{at_risk:?}");
}

/// Asks, and gives the job once its first attempt has been given back.
async fn given_back(service: &Service) -> Value {
    let id = service.submit("Anyone there?").await.id();
    loop {
        let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
        if job["status"] != "running" && !history(&job).is_empty() {
            return job;
        }
    }
}

/// As [`row`], for what every job would meet: the job is given back unspent after one call, and no other call is made.
async fn held(fault: Fault, code: &str) {
    let (service, claude, _setup) = service([fault], &[]).await;
    let job = given_back(&service).await;
    assert_eq!(history(&job), [("released", code)]);
    assert_eq!((claude.counters().calls, &job["attempts_made"]), (1, &json!(1)));
    let ready = service.get("/health/ready").await.body;
    assert_eq!(
        (&ready["reasons"][0]["field"], &ready["reasons"][0]["code"]),
        (&json!("claude"), &json!(code)),
        "{ready:#}"
    );
}

/// A test for each line, named.
macro_rules! rows {
    ($($name:ident: $fault:expr $(, $settings:expr)? => $status:ident $code:literal $attempts:literal $tokens:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let settings: &[(&str, &str)] = &[$($settings)?];
                row($fault.into(), settings, stringify!($status), $code, $attempts, Tokens::$tokens).await;
            }
        )*
    };
}

/// The error table.
mod errors {
    use super::*;

    rows! {
        bad_request_400: status(400) => failed "invalid_request" 1 None;
        too_large_413: status(413) => failed "request_too_large" 1 None;
        unprocessable_422: status(422) => failed "invalid_request" 1 None;
        request_timeout_408: status(408) => failed "timeout" 2 None;
        conflict_409: status(409) => failed "upstream_error" 2 None;
        api_error_500: status(500) => failed "upstream_error" 2 None;
        bad_gateway_502: status(502) => failed "upstream_error" 2 None;
        unavailable_503: status(503) => failed "upstream_error" 2 None;
        gateway_timeout_504: status(504) => failed "timeout" 2 None;
        overloaded_529: status(529) => failed "overloaded" 4 None;
        a_gateways_own_502: ErrorAnswer::status(502).html("<html>Bad Gateway</html>") => failed "upstream_error" 2 AtRisk;
        told_not_to_retry: ErrorAnswer::status(500).header("x-should-retry", "false") => failed "upstream_error" 1 None;
        told_to_retry: ErrorAnswer::status(400).header("x-should-retry", "true") => failed "invalid_request" 2 None;
    }

    #[tokio::test]
    async fn authentication_401() {
        held(status(401), "authentication_failed").await;
    }

    #[tokio::test]
    async fn billing_402() {
        held(status(402), "billing_failed").await;
    }

    #[tokio::test]
    async fn permission_403() {
        held(status(403), "permission_denied").await;
    }

    #[tokio::test]
    async fn not_found_404() {
        held(status(404), "model_not_found").await;
    }

    #[tokio::test]
    async fn a_redirect_302() {
        held(ErrorAnswer::status(302).header("location", "http://127.0.0.1:1/").into(), "model_not_found").await;
    }

    #[tokio::test]
    async fn rate_limit_429() {
        held(ErrorAnswer::status(429).header("retry-after", "60").into(), "rate_limited").await;
    }

    #[tokio::test]
    async fn spend_limits_429() {
        for code in ["enforced_spend_limit_reached", "contract_spend_limit_reached"] {
            held(ErrorAnswer::status(429).error_code(code).into(), "billing_failed").await;
        }
    }
}

/// The stop reasons.
mod stops {
    use super::*;

    fn stop(reason: &str) -> Fault {
        Fault::Stop(reason.to_owned())
    }

    fn half(reason: &str) -> Fault {
        Fault::StopAtHalf(reason.to_owned())
    }

    rows! {
        end_turn: Fault::Normal => succeeded "" 1 All;
        stop_sequence: stop("stop_sequence") => succeeded "" 1 All;
        tool_use: stop("tool_use") => succeeded "" 1 All;
        tool_use_in_the_middle: half("tool_use") => failed "invalid_output" 2 All;
        pause_turn: stop("pause_turn") => succeeded "" 1 All;
        pause_turn_in_the_middle: half("pause_turn") => failed "invalid_output" 2 All;
        a_reason_of_tomorrow: stop("bored") => succeeded "" 1 All;
        a_reason_of_tomorrow_in_the_middle: half("bored") => failed "invalid_output" 2 All;
        max_tokens: Fault::MaxTokens => failed "answer_truncated" 2 All;
        max_tokens_after_a_whole_memo: stop("max_tokens") => succeeded "" 1 All;
        context_window: half("model_context_window_exceeded") => failed "context_window_exceeded" 1 All;
        context_window_after_a_whole_memo: stop("model_context_window_exceeded") => succeeded "" 1 All;
        refusal: Fault::Refusal => failed "refused" 1 None;
        thinking_first: Fault::ThinkingFirst => succeeded "" 1 All;
        no_memo: Fault::Answer("no json".to_owned()) => failed "invalid_output" 2 All;
        no_content: Fault::Answer(String::new()) => failed "invalid_output" 2 All;
    }
}

/// The faults of streams.
mod streams {
    use super::*;

    const IDLE: (&str, &str) = ("REQUEST_TIMEOUT", "2");
    const TOTAL: (&str, &str) = ("REQUEST_TIMEOUT", "1");

    fn event(error_type: &str) -> Fault {
        Fault::ErrorEvent(error_type.to_owned())
    }

    rows! {
        cut: Fault::CutAfter(5) => failed "stream_cut" 2 Input;
        cut_before_anything: Fault::CutAfter(0) => failed "stream_cut" 2 AtRisk;
        cut_before_its_stop_reason: Fault::CutBeforeStop => failed "stream_cut" 2 Input;
        cut_before_its_last_event: Fault::CutBeforeLast => succeeded "" 1 All;
        connection_lost: Fault::DropAfter(5) => failed "connection_lost" 2 Input;
        silent: Fault::StallAfter(5), IDLE => failed "timeout" 2 Input;
        silent_from_the_start: Fault::Hold, IDLE => failed "timeout" 2 AtRisk;
        too_slow_in_all: Fault::Takes(Duration::from_secs(8)), TOTAL => failed "time_limit" 2 Input;
        not_json: Fault::Malformed => failed "malformed_response" 2 Input;
        a_whole_message_instead: Fault::Unstreamed => succeeded "" 1 All;
        an_error_event: event("api_error") => failed "stream_error" 2 Input;
        an_error_event_of_tomorrow: event("error_of_tomorrow") => failed "stream_error" 2 Input;
        an_overload_in_the_middle: event("overloaded_error") => failed "overloaded" 2 Input;
        a_timeout_in_the_middle: event("timeout_error") => failed "timeout" 2 Input;
        a_bad_request_in_the_middle: event("invalid_request_error") => failed "invalid_request" 1 Input;
    }

    #[tokio::test]
    async fn closed_before_the_answer() {
        let (service, claude, _setup) = service(vec![Fault::CloseBeforeAnswer; 4], &[]).await;
        let job = outcome(&service).await;
        assert_eq!(history(&job), [("failed", "connection_lost"); 2]);
        assert!(job["attempts"].as_array().unwrap().iter().all(|attempt| attempt["may_have_been_billed"] == true));
        // The look at the models may have left a connection, and a call on a used one is made again on a new one.
        assert!((2..=3).contains(&claude.counters().calls), "{:?}", claude.counters());
    }

    #[tokio::test]
    async fn a_rate_limit_in_the_middle() {
        held(event("rate_limit_error"), "rate_limited").await;
    }

    #[tokio::test]
    async fn a_refused_key_in_the_middle() {
        held(event("authentication_error"), "authentication_failed").await;
    }
}

#[tokio::test]
async fn tiny_and_slow_bytes_make_an_answer_too() {
    let slow = Fault::SlowBytes { bytes: 200, pause: Duration::from_millis(1) };
    row(slow, &[], "succeeded", "", 1, Tokens::All).await;
}

/// A service whose first answer is of no use, and what it asked the second time.
async fn asked_again(fault: Fault) -> (Value, Value) {
    let (service, claude, _setup) = service([fault], &[]).await;
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), claude.counters().calls), (Some("succeeded"), 2), "{job:#}");
    assert_eq!(
        (&job["attempts"][0]["asked_again_after"], &job["attempts"][1]["asked_again_after"]),
        (&Value::Null, &json!(1))
    );
    let metrics = service.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("ceoagent_answers_asked_again_total 1\n"));
    (job, claude.calls()[1].json())
}

#[tokio::test]
async fn an_unreadable_answer_is_asked_for_once_more_with_what_was_wrong() {
    let (job, call) = asked_again(Fault::Answer("{\"status\": \"complete\"}".to_owned())).await;
    assert_eq!(history(&job), [("failed", "invalid_output"), ("succeeded", "")]);
    let messages = call["messages"].as_array().unwrap();
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    assert_eq!(messages[1]["content"], "{\"status\": \"complete\"}");
    let complaint = messages[2]["content"].as_str().unwrap();
    assert!(complaint.contains("missing field") && complaint.contains("Write the whole memo again"), "{complaint}");
}

#[tokio::test]
async fn of_an_answer_with_one_broken_part_only_that_part_is_asked_for() {
    let sample: Value = serde_json::from_str(include_str!("../../src/analysis/samples/v3noopt.json")).unwrap();
    let mut recommendation = sample["answer"]["recommendation"].clone();
    recommendation["option_id"] = json!("o2");
    let part = Fault::Answer(json!({ "recommendation": recommendation }).to_string());
    let (service, claude, _setup) = service([Fault::Answer(sample["answer"].to_string()), part], &[]).await;
    let job = outcome(&service).await;
    assert_eq!(history(&job), [("failed", "invalid_output"), ("succeeded", "")], "{job:#}");
    assert_eq!(job["result"]["headline"], "Do: One-quarter pilot");
    assert_eq!(job["result"]["summary"], sample["answer"]["summary"]);
    let call = claude.calls()[1].json();
    let complaint = call["messages"][2]["content"].as_str().unwrap();
    assert!(complaint.contains("Write only `recommendation` again"), "{complaint}");
    assert!(call["output_config"]["format"].is_null(), "a part has not the schema of a memo: {call}");
}

#[tokio::test]
async fn the_depth_asked_for_decides_the_prompt_and_is_shown() {
    let (service, claude, _setup) = service([], &[]).await;
    for (depth, wait, used) in [
        (Some("brief"), false, "brief"),
        (Some("full"), true, "full"),
        (None, false, "full"),
        (Some("auto"), true, "brief"),
    ] {
        let mut body = json!({"query": format!("Should we move to {depth:?} {wait}?"), "wait": wait});
        body["depth"] = json!(depth);
        let id = service.post("/api/v1/analyze", &body).await.id();
        let job = service.ended(&id).await.body;
        assert_eq!((&job["depth"], &job["attempts"][0]["depth"]), (&json!(used), &json!(used)), "{job:#}");
        let asked = if used == "brief" { "Write a brief decision memo" } else { "Write the full decision memo" };
        assert!(claude.calls().last().unwrap().prompt.contains(asked), "{depth:?}");
        let has_reasons = job["result"]["scores"][0]["cells"][0]["why"].is_string();
        assert_eq!((has_reasons, &job["result"]["flags"]), (used == "full", &json!([])));
    }
    let refused = service.post("/api/v1/analyze", &json!({"query": "q", "depth": "deep"})).await;
    refused.assert_problem(422, "validation_failed");
}

#[tokio::test]
async fn an_answer_that_was_cut_is_asked_for_once_more_and_shorter() {
    let (job, call) = asked_again(Fault::MaxTokens).await;
    assert_eq!(history(&job), [("failed", "answer_truncated"), ("succeeded", "")]);
    let messages = call["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1);
    let question = messages[0]["content"].as_str().unwrap();
    assert!(question.contains("Should we open a second plant?") && question.contains("much shorter"), "{question}");
}

#[tokio::test]
async fn a_call_that_its_time_limit_cut_is_made_once_more_with_less_effort_and_then_fails_with_advice() {
    let slow = Fault::Takes(Duration::from_secs(10));
    let settings = [("REQUEST_TIMEOUT", "1"), ("MAX_RETRIES", "5")];
    let (service, claude, _setup) = service([slow.clone(), slow], &settings).await;
    let job = outcome(&service).await;
    assert_eq!(history(&job), [("failed", "time_limit"); 2], "{job:#}");
    let [first, second] = [0, 1].map(|call: usize| claude.calls()[call].json());
    assert_eq!((&first["output_config"]["effort"], &first["thinking"]), (&json!("high"), &Value::Null));
    let reduced = (&second["output_config"]["effort"], &second["thinking"]["type"]);
    assert_eq!(reduced, (&json!("low"), &json!("between_tools")));
    for attempt in job["attempts"].as_array().unwrap() {
        let text = attempt["raw_answer"].as_str().unwrap_or_else(|| panic!("the text that came is shown: {attempt:#}"));
        assert!(attempt["usage"]["output_tokens"].as_u64().unwrap() >= text.len() as u64 / 8, "{attempt:#}");
    }
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("after 1 s") && message.contains("raise REQUEST_TIMEOUT"), "{message}");
}

#[tokio::test]
async fn what_was_wrong_is_told_after_a_restart_and_other_failures_too() {
    let (first, claude, setup) =
        service([Fault::Answer("no json".to_owned()), status(500)], &[("MAX_RETRIES", "2")]).await;
    claude.script([Fault::Hold]);
    let id = first.submit("Should we?").await.id();
    claude.wait_for_calls(3).await;
    first.kill();
    let second = setup.start();
    claude.release();
    let job = second.ended(&id).await.body;
    assert_eq!(job["status"], "succeeded", "{job:#}");
    let last = claude.calls().pop().unwrap().json();
    assert_eq!(last["messages"][1]["content"], "no json", "{last:#}");
}

#[tokio::test]
async fn a_question_that_is_waited_for_gets_less_effort_and_none_can_be_sent_at_all() {
    let efforts = async |settings: &[(&str, &str)]| {
        let (service, claude, _setup) = service([], settings).await;
        service.post("/api/v1/analyze", &json!({"query": "Now?", "wait": true})).await;
        outcome(&service).await;
        let calls = claude.calls();
        [0, 1].map(|call| calls[call].json()["output_config"]["effort"].clone())
    };
    assert_eq!(efforts(&[]).await, [json!("low"), json!("high")]);
    assert_eq!(efforts(&[("EFFORT", "medium")]).await, [json!("medium"), json!("medium")]);
    assert_eq!(efforts(&[("EFFORT", "none")]).await, [Value::Null, Value::Null]);
}

#[tokio::test]
async fn the_key_is_in_no_log_no_answer_and_no_argument_list() {
    let echo = ErrorAnswer::status(400).message("no such key: sk-test-secret, sorry").into();
    let (service, _claude, _setup) = service([echo], &[("LOG_LEVEL", "trace")]).await;
    let job = outcome(&service).await;
    assert!(job["error"]["message"].as_str().unwrap().contains("[secret]"), "{job:#}");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", service.pid())).unwrap();
    let metrics = service.get("/metrics").await.body;
    let shown = format!("{job} {metrics} {} {}", String::from_utf8_lossy(&arguments), service.kill());
    assert!(!shown.contains("sk-test-secret"));
    let setup = Setup::new("http://127.0.0.1:9").without("ANTHROPIC_API_KEY");
    let (status, said) = setup.run(&["serve", "--anthropic-api-key", "sk-test-secret"]);
    assert!(!status.success() && said.contains("ANTHROPIC_API_KEY") && said.contains("process list"), "{said}");
    assert!(!said.contains("sk-test-secret"), "{said}");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used_but_not_for_this_machine() {
    let proxy = simulator().await;
    let mut setup = Setup::new("http://claude.invalid/anthropic/..").with("HTTP_PROXY", &proxy.base_url());
    let job = outcome(&setup.start()).await;
    assert_eq!((job["status"].as_str(), proxy.counters().calls), (Some("succeeded"), 1), "{job:#}");
    let claude = simulator().await;
    setup.set("ANTHROPIC_BASE_URL", &claude.base_url());
    assert_eq!(outcome(&setup.start()).await["status"], "succeeded");
    assert_eq!((proxy.counters().calls, claude.counters().calls), (1, 1));
}

async fn reparse(service: &Service, id: &str) -> Answer {
    let path = format!("/api/v1/admin/jobs/{id}/reparse");
    send(service.request(reqwest::Method::POST, &path).bearer_auth(ADMIN_TOKEN)).await
}

#[tokio::test]
async fn a_kept_answer_that_can_be_read_after_all_makes_a_failed_job_a_success_for_nothing() {
    let (service, claude, setup) = service([Fault::CutBeforeStop], &[("MAX_RETRIES", "0")]).await;
    let failed = outcome(&service).await;
    let id = failed["id"].as_str().unwrap();
    assert_eq!((history(&failed), failed.get("result")), (vec![("failed", "stream_cut")], None));
    let read = reparse(&service, id).await;
    assert_eq!((read.status, read.body["status"].as_str()), (200, Some("succeeded")), "{read:#?}");
    assert_eq!(history(&read.body), [("failed", "stream_cut"), ("reparsed", "")]);
    assert_eq!(read.body["attempts"][1]["reparsed_from"], 1);
    assert_eq!((&read.body["usage"], read.body.get("error")), (&failed["usage"], None), "nothing is counted twice");
    assert!(read.body["result"]["summary"].as_str().unwrap().contains("SIMULATED"));
    assert!(!read.body["result"]["weighted_totals"].as_array().unwrap().is_empty());
    let again = reparse(&service, id).await;
    assert_eq!((again.status, &again.body), (200, &read.body), "a second time changes nothing");
    assert_eq!(claude.counters().calls, 1);
    service.kill();
    let kept = setup.start().get(&format!("/api/v1/jobs/{id}")).await.body;
    assert_eq!(kept, read.body, "nor does a restart");
}

#[tokio::test]
async fn a_reparse_that_fails_changes_nothing_and_says_why() {
    let unreadable = Fault::Answer("no json".to_owned());
    let (service, claude, _setup) =
        service([unreadable, status(400), Fault::Refusal, Fault::Hold], &[("MAX_RETRIES", "0")]).await;
    for (http_status, code, said) in
        [(422, "answer_unreadable", "no JSON object"), (409, "conflict", "no stored answer"), (409, "conflict", "")]
    {
        let job = outcome(&service).await;
        let id = job["id"].as_str().unwrap();
        let answer = reparse(&service, id).await;
        answer.assert_problem(http_status, code);
        assert!(answer.body["detail"].as_str().unwrap().contains(said), "{answer:#?}");
        assert_eq!(service.ended(id).await.body, job);
    }
    let running = service.submit("Still running?").await.id();
    claude.wait_for_calls(4).await;
    reparse(&service, &running).await.assert_problem(409, "conflict");
    reparse(&service, "019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70").await.assert_problem(404, "job_not_found");
    let path = format!("/api/v1/admin/jobs/{running}/reparse");
    send(service.request(reqwest::Method::POST, &path)).await.assert_problem(401, "unauthorized");
}

#[tokio::test]
async fn a_fault_that_passes_is_in_the_history_of_a_job_that_succeeds() {
    for (fault, code, http_status) in [
        (status(500), "upstream_error", json!(500)),
        (status(529), "overloaded", json!(529)),
        (Fault::Malformed, "malformed_response", json!(200)),
        (Fault::Answer("no json".to_owned()), "invalid_output", json!(200)),
    ] {
        let (service, claude, _setup) = service([fault.clone()], &[]).await;
        let job = outcome(&service).await;
        assert_eq!(job["status"], "succeeded", "{fault:?}: {job:#}");
        assert_eq!(history(&job), [("failed", code), ("succeeded", "")], "{fault:?}");
        assert_eq!(job["attempts"][0]["http_status"], http_status, "{fault:?}: {job:#}");
        assert_eq!((job["attempts_made"].as_u64(), claude.counters().calls), (Some(2), 2));
        assert_eq!(job.get("error"), None);
    }
}

#[tokio::test]
async fn rubbish_fails_the_job_and_is_shown_as_it_came() {
    let (service, _claude, setup) =
        service([Fault::Answer("no json".to_owned()), Fault::Answer("{}".to_owned())], &[]).await;
    let job = outcome(&service).await;
    assert_eq!((job["status"].as_str(), job["error"]["code"].as_str()), (Some("failed"), Some("invalid_output")));
    let said = "Claude's answer could not be parsed as a memo: the answer's JSON is not a decision memo: missing field \
                `language` (at `.`); retry the job";
    assert_eq!(job["error"]["message"], said);
    assert_eq!(job["attempts"][0]["error"]["message"], "the answer has no JSON object", "no word to the model in it");
    assert_eq!(
        (&job["attempts"][0]["raw_answer"], &job["attempts"][1]["raw_answer"]),
        (&json!("no json"), &json!("{}"))
    );
    assert!(job["usage"]["output_tokens"].as_u64().unwrap() > 0, "an unreadable answer is paid for all the same");
    service.kill();
    let kept = setup.start().get(&format!("/api/v1/jobs/{}", job["id"].as_str().unwrap())).await.body;
    assert_eq!(kept, job, "a restart changes nothing of it");
}

#[tokio::test]
async fn an_answer_in_a_fence_amid_prose_is_read() {
    let (service, claude, _setup) = service([], &[]).await;
    let plain = outcome(&service).await;
    let text = claude.calls()[0].answer.clone().unwrap();
    claude.script([Fault::Answer(format!("Here is my analysis:\n\n```json\n{text}\n```\n\nI hope it helps."))]);
    let fenced = outcome(&service).await;
    assert_eq!(fenced["status"], "succeeded", "{fenced:#}");
    assert_eq!(fenced["result"], plain["result"]);
}

#[tokio::test]
async fn a_rate_limit_gives_the_job_back_unspent_and_closes_the_gate_for_all() {
    let limited = ErrorAnswer::status(429).header("retry-after", "1").into();
    let (service, claude, _setup) = service([limited], &[("MAX_RETRIES", "0")]).await;
    let before = Clock::system().now();
    let accepted = service.submit("Should we wait?").await;
    claude.wait_for_calls(1).await;
    let ready = loop {
        let ready = service.get("/health/ready").await;
        assert_eq!(ready.status, 200, "questions are still accepted");
        if ready.body["status"] == "degraded" {
            break ready;
        }
    };
    let reason = &ready.body["reasons"][0];
    assert_eq!((&reason["field"], &reason["code"]), (&json!("claude"), &json!("rate_limited")), "{ready:#?}");
    assert!(
        reason["message"].as_str().unwrap().starts_with("Claude answered 429"),
        "the code is told once: {ready:#?}"
    );
    let until: Timestamp = serde_json::from_value(reason["until"].clone()).unwrap();
    assert!(until.since(before) >= Duration::from_millis(990), "not before Claude said: {ready:#?}");
    let metrics = service.get("/metrics").await;
    assert!(metrics.body.as_str().unwrap().contains("ceoagent_gate_closed 1\n"));
    let job = service.ended(&accepted.id()).await.body;
    assert_eq!(history(&job), [("released", "rate_limited"), ("succeeded", "")], "{job:#}");
    assert_eq!(job["status"], "succeeded", "without a retry to spend");
    let calls = claude.calls();
    let pause = calls[1].at.duration_since(calls[0].at).unwrap();
    assert!(pause >= Duration::from_secs(1), "called again after {pause:?}");
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
}

#[tokio::test]
async fn a_refused_key_holds_the_queue_and_readiness_says_why() {
    let (service, claude, _setup) = service(vec![status(401); 8], &[("WORKERS", "1")]).await;
    assert_eq!(history(&given_back(&service).await), [("released", "authentication_failed")]);
    let ready = service.get("/health/ready").await;
    assert_eq!((ready.status, ready.body["status"].as_str()), (200, Some("degraded")));
    let reason = &ready.body["reasons"][0];
    assert_eq!((&reason["code"], reason.get("until")), (&json!("authentication_failed"), None), "{ready:#?}");
    assert!(reason["message"].as_str().unwrap().contains("check the API key"), "{ready:#?}");
    let asked = Instant::now();
    let other = service.post("/api/v1/analyze", &json!({"query": "And now?", "wait": true})).await;
    assert_eq!((other.status, other.body["attempts"].clone()), (202, json!([])), "{other:#?}");
    let waits = json!({"position": 1, "waiting_for": "gate"});
    assert_eq!(other.body["queue"], waits, "when a person ends the cause, nobody can tell");
    assert!(asked.elapsed() < Duration::from_secs(15), "there is nothing to wait for");
    assert!(claude.counters().calls <= 2, "one other job finds out whether it concerns all");
    let log = service.kill();
    assert!(log.contains("the queue is blocked") && !log.contains("sk-test-secret"), "{log}");
}

#[tokio::test]
async fn what_can_never_work_is_called_once_and_told_to_who_waits() {
    for (fault, http_status, code) in [
        (Fault::Refusal, 422, "refused"),
        (Fault::StopAtHalf("model_context_window_exceeded".to_owned()), 502, "context_window_exceeded"),
        (status(400), 502, "invalid_request"),
        (status(413), 502, "request_too_large"),
    ] {
        let (service, claude, _setup) = service([fault], &[]).await;
        let answer = service.post("/api/v1/analyze", &json!({"query": "Will you?", "wait": true})).await;
        answer.assert_problem(http_status, code);
        assert_eq!(answer.body["type"], format!("/docs#failure-{code}"));
        let job = &answer.body["job"];
        assert_eq!((job["status"].as_str(), history(job)), (Some("failed"), vec![("failed", code)]));
        assert_eq!(answer.header("location"), job["links"]["self"]);
        assert_eq!(claude.counters().calls, 1);
    }
}

#[tokio::test]
async fn cancelling_a_running_job_aborts_its_call_for_good() {
    let (service, claude, _setup) = service([Fault::Hold], &[("WORKERS", "1")]).await;
    let id = service.submit("Shall we stop?").await.id();
    claude.wait_for_calls(1).await;
    let cancelled = act(&service, &id, "cancel").await;
    assert_eq!((cancelled.status, cancelled.body["status"].as_str()), (200, Some("cancelled")));
    claude.wait_for_aborted(1).await;
    claude.release();
    // The one worker is free again.
    assert_eq!(outcome(&service).await["status"], "succeeded");
    let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
    assert_eq!(job["status"], "cancelled");
    assert_eq!(job["attempts"][0]["outcome"], "cancelled");
    assert_eq!(job["attempts"][0]["may_have_been_billed"], true);
    let again = act(&service, &id, "cancel").await;
    assert_eq!((again.status, again.body), (200, job), "a second cancel changes nothing");
}

#[tokio::test]
async fn cancelling_a_queued_job_keeps_it_from_ever_being_called() {
    let (service, claude, _setup) = service([Fault::Hold], &[("WORKERS", "1")]).await;
    let first = service.submit("First?").await.id();
    claude.wait_for_calls(1).await;
    let second = service.submit("Second?").await.id();
    let cancelled = act(&service, &second, "cancel").await;
    assert_eq!((cancelled.status, cancelled.body["status"].as_str()), (200, Some("cancelled")));
    claude.release();
    assert_eq!(service.ended(&first).await.body["status"], "succeeded");
    assert_eq!(outcome(&service).await["status"], "succeeded");
    assert_eq!(claude.counters().calls, 2);
    let job = service.get(&format!("/api/v1/jobs/{second}")).await.body;
    assert_eq!((job["status"].as_str(), &job["attempts"]), (Some("cancelled"), &json!([])));
}

#[tokio::test]
async fn a_waiter_is_told_when_its_job_is_cancelled() {
    let (service, claude, _setup) = service([Fault::Hold], &[]).await;
    let body = json!({"query": "Wait?", "wait": true});
    let (answer, ()) = tokio::join!(service.post("/api/v1/analyze", &body), async {
        claude.wait_for_calls(1).await;
        let listing = service.admin_get("/api/v1/admin/jobs").await;
        let id = listing.body["jobs"][0]["id"].as_str().unwrap();
        assert_eq!(act(&service, id, "cancel").await.status, 200);
    });
    answer.assert_problem(409, "cancelled");
    assert_eq!(answer.body["job"]["status"], "cancelled");
}

#[tokio::test]
async fn a_job_that_succeeded_can_be_neither_cancelled_nor_retried() {
    let (service, claude, _setup) = service([], &[]).await;
    let job = outcome(&service).await;
    for action in ["cancel", "retry"] {
        let answer = act(&service, job["id"].as_str().unwrap(), action).await;
        answer.assert_problem(409, "conflict");
        assert!(answer.body["detail"].as_str().unwrap().contains("succeeded"));
    }
    assert_eq!(service.ended(job["id"].as_str().unwrap()).await.body, job);
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_failed_job_that_is_retried_runs_again_and_keeps_its_history() {
    let (service, claude, _setup) = service([Fault::Refusal], &[]).await;
    let failed = outcome(&service).await;
    assert_eq!(failed["status"], "failed");
    let id = failed["id"].as_str().unwrap();
    let again = act(&service, id, "retry").await;
    assert_eq!(again.status, 202, "{again:#?}");
    let job = service.ended(id).await.body;
    assert_eq!(history(&job), [("failed", "refused"), ("succeeded", "")]);
    assert_eq!((job["status"].as_str(), job.get("error")), (Some("succeeded"), None));
    assert_eq!(claude.counters().calls, 2);
}
