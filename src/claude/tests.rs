//! The client against the simulator, over real HTTP on a loopback socket.

use std::sync::Mutex;

use serde_json::json;

use super::error::{Concern, MAX_RETRY_AFTER, MIN_RETRY_AFTER};
use super::message::CacheTtl;
use super::simulator::{AccountLimits, ErrorAnswer, Fault, Latency, Simulator, SimulatorConfig};
use super::*;

const KEY: &str = "sk-ant-very-secret";

fn config(base_url: String) -> ClientConfig {
    ClientConfig {
        base_url,
        api_key: Some(KEY.into()),
        auth_token: None,
        custom_headers: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
    }
}

fn question(text: &str) -> MessageRequest {
    MessageRequest {
        model: "claude-sonnet-5-5".to_owned(),
        max_tokens: 8_000,
        system: "You analyse decisions.".to_owned(),
        prompt: format!("<question>{text}</question>"),
        effort: Some("low"),
        thinking: Some("between_tools"),
        schema: Some(schema()),
        cache: CacheTtl::FiveMinutes,
        time_limit: Duration::from_secs(20),
        ..MessageRequest::default()
    }
}

fn schema() -> Arc<serde_json::value::RawValue> {
    crate::analysis::schema::text()
}

async fn pair(faults: impl IntoIterator<Item = Fault>) -> (Simulator, Claude) {
    let simulator = Simulator::start(SimulatorConfig::default()).await.unwrap();
    simulator.script(faults);
    let claude = Claude::new(config(simulator.base_url())).unwrap();
    (simulator, claude)
}

async fn ask(claude: &Claude) -> Result<Reply, CallError> {
    claude.send(&question("Open an office in Oslo?"), &|_| {}).await
}

async fn failure(fault: impl Into<Fault>) -> CallError {
    let (_simulator, claude) = pair([fault.into()]).await;
    ask(&claude).await.unwrap_err()
}

#[tokio::test]
async fn an_answer_arrives_whole_with_its_usage_and_request_id() {
    let (simulator, claude) = pair([]).await;
    let (heard, limits) = (Mutex::new(String::new()), Mutex::new(None));
    let reply = claude
        .send(&question("Open an office in Oslo?"), &|progress| match progress {
            Progress::Head([requests, ..]) => *limits.lock().unwrap() = requests,
            Progress::Text(text) => heard.lock().unwrap().push_str(text),
        })
        .await
        .unwrap();
    let call = simulator.calls().remove(0);
    assert_eq!(reply.stop, StopReason::EndTurn);
    assert_eq!(reply.text, *call.answer.unwrap());
    assert_eq!(reply.text, heard.into_inner().unwrap());
    assert_eq!(reply.model, "claude-sonnet-5-5");
    assert_eq!(reply.usage, call.usage);
    assert_eq!(reply.request_id, Some(call.request_id));
    assert_eq!(limits.into_inner().unwrap(), Some(u64::from(AccountLimits::UNLIMITED.requests)));
}

#[tokio::test]
async fn the_request_is_what_the_api_asks_for() {
    let (simulator, claude) = pair([]).await;
    ask(&claude).await.unwrap();
    let body = simulator.calls()[0].json();
    assert_eq!(body["stream"], true);
    assert_eq!(
        body["system"],
        json!([{"type": "text", "text": "You analyse decisions.", "cache_control": {"type": "ephemeral"}}])
    );
    assert_eq!(body["messages"], json!([{"role": "user", "content": "<question>Open an office in Oslo?</question>"}]));
    let format = &body["output_config"]["format"];
    assert_eq!(format["type"], "json_schema");
    assert!(format["schema"]["properties"].is_object());
    assert!(format["schema"].get("$schema").is_none());
    let fields: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["max_tokens", "messages", "model", "output_config", "stream", "system", "thinking"]);
    assert_eq!(body["thinking"], json!({"type": "between_tools"}));
}

#[tokio::test]
async fn connections_are_used_again() {
    let (simulator, claude) = pair([]).await;
    for _ in 0..20 {
        ask(&claude).await.unwrap();
    }
    assert_eq!(simulator.counters().connections, 1);
}

#[tokio::test]
async fn every_error_status_has_its_kind_and_whom_it_concerns() {
    use Concern::{Account, Limit, Model, Passing, Question};
    use ErrorKind as K;
    let answers = [
        (400, K::InvalidRequest, Question),
        (401, K::Authentication, Account),
        (402, K::Billing, Account),
        (403, K::Permission, Model),
        (404, K::NotFound, Model),
        (408, K::Timeout, Passing),
        (409, K::ApiError, Passing),
        (413, K::TooLarge, Question),
        (422, K::InvalidRequest, Question),
        (429, K::RateLimit, Limit),
        (500, K::ApiError, Passing),
        (502, K::ApiError, Passing),
        (503, K::ApiError, Passing),
        (504, K::Timeout, Passing),
        (529, K::Overloaded, Passing),
        (302, K::Redirect, Account),
    ];
    for (status, kind, class) in answers {
        let error = failure(ErrorAnswer::status(status).header("location", "http://127.0.0.1:1/")).await;
        assert_eq!((error.kind, error.concern(), error.status), (kind, class, Some(status)), "{status}");
        assert!(!error.may_have_been_billed(), "{status}");
        assert!(error.message.contains(&format!("simulated {status}")), "{error}");
        assert!(error.request_id.unwrap().starts_with("req_sim_"));
    }
}

#[tokio::test]
async fn a_spend_limit_blocks_the_queue_and_a_ramp_limit_only_waits() {
    for code in ["enforced_spend_limit_reached", "contract_spend_limit_reached"] {
        let error = failure(ErrorAnswer::status(429).error_code(code)).await;
        assert_eq!((error.kind, error.concern()), (ErrorKind::Billing, Concern::Account));
    }
    let ramp = ErrorAnswer::status(429).error_code("ramp_limit_exceeded").header("retry-after", "7");
    let error = failure(ramp).await;
    assert_eq!(error.concern(), Concern::Limit);
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn retry_after_is_read_in_milliseconds_seconds_or_as_a_date_and_is_bounded() {
    let wait = async |headers: &[(&str, &str)]| {
        let answer = ErrorAnswer::status(429);
        let answer = headers.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value));
        failure(answer).await.retry_after
    };
    let both = [("retry-after-ms", "1500.5"), ("retry-after", "9")];
    assert_eq!(wait(&both).await, Some(Duration::from_micros(1_500_500)));
    assert_eq!(wait(&[("retry-after-ms", "soon"), ("retry-after", "0.25")]).await, Some(MIN_RETRY_AFTER));
    assert_eq!(wait(&[("retry-after", "1e300")]).await, Some(MAX_RETRY_AFTER));
    for useless in ["0", "-3", "NaN", "tomorrow", "Thu, 01 Jan 1970 00:00:00 GMT"] {
        assert_eq!(wait(&[("retry-after", useless)]).await, None, "{useless}");
    }
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    let seconds = wait(&[("retry-after", &date)]).await.unwrap().as_secs();
    assert!((90..=100).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_body_that_is_not_the_apis_still_gives_a_short_one_line_report() {
    let page = format!("<html>\n<h1>Bad   Gateway</h1>\u{1b}[31m{}", "x".repeat(1 << 20));
    let error = failure(ErrorAnswer::status(502).html(page)).await;
    assert_eq!((error.kind, error.status), (ErrorKind::ApiError, Some(502)));
    assert!(error.message.contains("<html> <h1>Bad Gateway</h1>"), "{error}");
    assert!(error.message.chars().count() < 600 && !error.message.contains(char::is_control));
    assert!(error.request_id.is_some());
}

#[tokio::test]
async fn a_gateways_own_page_leaves_open_whether_the_call_was_billed() {
    for (status, billed) in [(502, true), (504, true), (524, true), (503, false), (529, false), (404, false)] {
        let error = failure(ErrorAnswer::status(status).html("<html>nginx</html>")).await;
        assert_eq!(error.may_have_been_billed(), billed, "{status}");
    }
}

#[tokio::test]
async fn a_page_that_comes_with_200_is_no_answer_and_not_billed() {
    for page in ["<html>Please log in to the Wi-Fi</html>", "Wi-Fi: log in"] {
        let error = failure(ErrorAnswer::status(200).html(page)).await;
        assert_eq!((error.kind, error.concern(), error.is_certain), (ErrorKind::Page, Concern::Account, false));
        assert!(error.message.contains("Wi-Fi") && !error.may_have_been_billed(), "{error}");
    }
}

#[tokio::test]
async fn no_connection_means_nothing_was_billed() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = ask(&Claude::new(config(format!("http://{nobody}"))).unwrap()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectFailed);
    assert_eq!(error.concern(), Concern::Passing);
    assert!(!error.may_have_been_billed());
    assert_eq!(error.status, None);
}

#[tokio::test]
async fn a_new_connection_closed_without_an_answer_may_have_been_billed_and_is_not_tried_again() {
    let (simulator, claude) = pair([Fault::CloseBeforeAnswer]).await;
    let error = ask(&claude).await.unwrap_err();
    assert_eq!((error.kind, error.concern()), (ErrorKind::ConnectionLost, Concern::Passing));
    assert!(error.may_have_been_billed());
    assert_eq!(error.status, None);
    assert_eq!(simulator.counters().calls, 1);
}

#[tokio::test]
async fn a_reused_connection_closed_without_an_answer_is_replaced_by_a_new_one_within_the_call() {
    let (simulator, claude) = pair([Fault::Normal, Fault::CloseBeforeAnswer]).await;
    ask(&claude).await.unwrap();
    ask(&claude).await.unwrap();
    assert_eq!((simulator.counters().calls, simulator.counters().connections), (3, 2));
}

#[tokio::test]
async fn a_stream_that_ends_early_reports_what_came() {
    let error = failure(Fault::CutAfter(6)).await;
    assert_eq!((error.kind, error.concern(), error.status), (ErrorKind::StreamCut, Concern::Passing, Some(200)));
    assert!(error.may_have_been_billed());
    assert!(error.text.unwrap().starts_with("{\"language\":"));
    assert!(error.usage.unwrap().input_tokens > 0);
    assert!(error.request_id.is_some());
}

#[tokio::test]
async fn an_answer_without_its_last_event_is_one_if_its_stop_reason_came() {
    let reply = pair_reply(Fault::CutBeforeLast).await;
    assert_eq!((reply.stop, reply.is_complete, reply.has_whole_usage), (StopReason::EndTurn, false, true));
    assert_eq!(failure(Fault::CutBeforeStop).await.kind, ErrorKind::StreamCut);
}

#[tokio::test]
async fn an_empty_stream_is_a_cut_one() {
    let error = failure(Fault::CutAfter(0)).await;
    assert_eq!((error.kind, error.text, error.usage), (ErrorKind::StreamCut, None, None));
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_is_lost() {
    let error = failure(Fault::DropAfter(6)).await;
    assert_eq!((error.kind, error.concern(), error.status), (ErrorKind::ConnectionLost, Concern::Passing, Some(200)));
    assert!(error.may_have_been_billed());
    assert!(error.text.is_some());
}

#[tokio::test]
async fn a_stream_that_falls_silent_fails_after_the_idle_timeout_and_is_hung_up() {
    let (simulator, _) = pair([Fault::StallAfter(6)]).await;
    let idle_timeout = Duration::from_millis(600);
    let claude = Claude::new(ClientConfig { idle_timeout, ..config(simulator.base_url()) }).unwrap();
    let error = ask(&claude).await.unwrap_err();
    assert_eq!((error.kind, error.concern()), (ErrorKind::Silent, Concern::Passing));
    assert!(error.text.is_some() && error.may_have_been_billed());
    simulator.wait_for_aborted(1).await;
}

#[tokio::test]
async fn bytes_that_make_no_event_are_silence() {
    let (simulator, _) = pair([Fault::SlowBytes { bytes: 1, pause: Duration::from_millis(40) }]).await;
    let idle_timeout = Duration::from_millis(400);
    let claude = Claude::new(ClientConfig { idle_timeout, ..config(simulator.base_url()) }).unwrap();
    assert_eq!(ask(&claude).await.unwrap_err().kind, ErrorKind::Silent);
}

#[tokio::test]
async fn no_answer_at_all_is_silence_too() {
    let (simulator, _) = pair([Fault::Hold]).await;
    let idle_timeout = Duration::from_millis(150);
    let claude = Claude::new(ClientConfig { idle_timeout, ..config(simulator.base_url()) }).unwrap();
    let error = ask(&claude).await.unwrap_err();
    assert_eq!((error.kind, error.status), (ErrorKind::Silent, None));
    assert!(error.may_have_been_billed());
    simulator.wait_for_aborted(1).await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_in_all_fails_though_it_is_not_silent() {
    let (_simulator, claude) = pair([Fault::Takes(Duration::from_secs(10))]).await;
    let call = MessageRequest { time_limit: Duration::from_secs(1), ..question("Open an office in Oslo?") };
    let error = claude.send(&call, &|_| {}).await.unwrap_err();
    assert_eq!((error.kind, error.concern(), error.status), (ErrorKind::TotalTimeout, Concern::Passing, Some(200)));
    assert!(error.may_have_been_billed());
    let output = error.usage.unwrap().output_tokens;
    assert_eq!(output, stream::tokens(&error.text.unwrap()).max(1), "estimated from what came");
}

#[tokio::test]
async fn an_event_that_is_not_json_is_malformed() {
    let error = failure(Fault::Malformed).await;
    assert_eq!((error.kind, error.concern()), (ErrorKind::Malformed, Concern::Passing));
    assert!(error.message.contains("content_block_delta") && error.text.is_some(), "{error}");
}

#[tokio::test]
async fn an_error_event_after_200_means_what_its_type_says() {
    let types = [
        ("overloaded_error", ErrorKind::Overloaded, Concern::Passing),
        ("api_error", ErrorKind::StreamError, Concern::Passing),
        ("timeout_error", ErrorKind::Timeout, Concern::Passing),
        ("rate_limit_error", ErrorKind::RateLimit, Concern::Limit),
        ("invalid_request_error", ErrorKind::InvalidRequest, Concern::Question),
        ("authentication_error", ErrorKind::Authentication, Concern::Account),
        ("billing_error", ErrorKind::Billing, Concern::Account),
        ("permission_error", ErrorKind::Permission, Concern::Model),
        ("not_found_error", ErrorKind::NotFound, Concern::Model),
        ("conflict_error", ErrorKind::ApiError, Concern::Passing),
        ("request_too_large", ErrorKind::TooLarge, Concern::Question),
        ("error_of_tomorrow", ErrorKind::StreamError, Concern::Passing),
    ];
    for (error_type, kind, class) in types {
        let error = failure(Fault::ErrorEvent(error_type.to_owned())).await;
        assert_eq!((error.kind, error.concern(), error.status), (kind, class, Some(200)), "{error_type}");
        assert!(error.may_have_been_billed() && error.text.is_some());
    }
}

#[tokio::test]
async fn an_answer_in_tiny_pieces_that_split_characters_and_events_arrives_whole() {
    let (simulator, claude) = pair([Fault::SlowBytes { bytes: 7, pause: Duration::ZERO }]).await;
    let reply = claude.send(&question("我们应该在奥斯陆开设办事处吗？"), &|_| {}).await.unwrap();
    assert_eq!(reply.text, *simulator.calls()[0].answer.clone().unwrap());
    assert!(reply.text.contains("奥斯陆"));
    assert_eq!(simulator.counters().aborted, 0);
}

#[tokio::test]
async fn an_answer_spread_over_time_comes_in_many_pieces() {
    let latency = Latency::Fixed(Duration::from_millis(300));
    let simulator = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let claude = Claude::new(config(simulator.base_url())).unwrap();
    let (pieces, begin) = (Mutex::new(0), std::time::Instant::now());
    claude.send(&question("Open an office in Oslo?"), &|_| *pieces.lock().unwrap() += 1).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(*pieces.lock().unwrap() > 50);
}

#[tokio::test]
async fn thinking_is_left_out() {
    let (simulator, claude) = pair([Fault::ThinkingFirst]).await;
    let reply = ask(&claude).await.unwrap();
    assert_eq!(reply.text, *simulator.calls()[0].answer.clone().unwrap());
}

#[tokio::test]
async fn every_stop_reason_is_reported() {
    let stop = async |fault| pair_reply(fault).await.stop;
    assert_eq!(stop(Fault::MaxTokens).await, StopReason::MaxTokens);
    assert_eq!(stop(Fault::Stop("stop_sequence".into())).await, StopReason::StopSequence);
    assert_eq!(stop(Fault::Stop("tool_use".into())).await, StopReason::ToolUse);
    assert_eq!(stop(Fault::Stop("pause_turn".into())).await, StopReason::PauseTurn);
    assert_eq!(stop(Fault::Stop("model_context_window_exceeded".into())).await, StopReason::ModelContextWindowExceeded);
    assert_eq!(stop(Fault::Stop("bored".into())).await, StopReason::Other("bored".into()));
}

async fn pair_reply(fault: Fault) -> Reply {
    let (_simulator, claude) = pair([fault]).await;
    ask(&claude).await.unwrap()
}

#[tokio::test]
async fn a_refusal_before_any_output_is_a_reply_without_content() {
    let reply = pair_reply(Fault::Refusal).await;
    let StopReason::Refusal { category, explanation } = reply.stop else { panic!("{:?}", reply.stop) };
    assert_eq!((category.as_deref(), explanation.as_deref()), (Some("general_harms"), Some("A simulated refusal.")));
    assert_eq!((reply.text.as_str(), reply.has_content), ("", false));
    assert!(reply.usage.total_input() > 0, "its usage is shown");
}

#[tokio::test]
async fn an_answer_longer_than_max_tokens_is_cut_there() {
    let (_simulator, claude) = pair([]).await;
    let reply = claude.send(&MessageRequest { max_tokens: 100, ..question("Buy or build?") }, &|_| {}).await.unwrap();
    assert_eq!((reply.stop, reply.usage.output_tokens), (StopReason::MaxTokens, 100));
}

#[tokio::test]
async fn an_endless_answer_is_not_taken() {
    let (_simulator, claude) = pair([Fault::Answer("x".repeat(stream::MAX_ANSWER_BYTES + 1))]).await;
    let request = MessageRequest { max_tokens: 10_000_000, ..question("Buy or build?") };
    let error = claude.send(&request, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Malformed);
    assert!(error.text.unwrap().len() <= stream::MAX_ANSWER_BYTES);
}

#[tokio::test]
async fn an_endless_event_is_not_taken() {
    let error = failure(Fault::ErrorEvent("x".repeat(events::MAX_EVENT_BYTES * 2))).await;
    assert_eq!(error.kind, ErrorKind::Malformed);
    assert!(error.message.contains("an event of more than"), "{error}");
}

#[tokio::test]
async fn dropping_the_call_hangs_up() {
    let (simulator, claude) = pair([Fault::Hold]).await;
    let call = tokio::spawn(async move { ask(&claude).await });
    simulator.wait_for_calls(1).await;
    assert_eq!(simulator.counters().in_flight, 1);
    call.abort();
    simulator.wait_for_aborted(1).await;
    assert_eq!(simulator.counters().in_flight, 0);
}

#[tokio::test]
async fn parked_calls_go_on_when_released() {
    let (simulator, claude) = pair([Fault::Hold, Fault::Hold]).await;
    let calls = [claude.clone(), claude].map(|claude| tokio::spawn(async move { ask(&claude).await }));
    simulator.wait_for_calls(2).await;
    simulator.release();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(simulator.counters().peak_in_flight, 2);
}

#[tokio::test]
async fn the_key_shows_nowhere() {
    let (simulator, claude) = pair([
        ErrorAnswer::status(401).message(format!("no such key: {KEY}")).into(),
        ErrorAnswer::status(502).html(format!("<html>x-api-key: {KEY}</html>")).into(),
        Fault::ErrorEvent(KEY.to_owned()),
    ])
    .await;
    let mut shown = format!("{claude:?} {:?} {simulator:?}", config(simulator.base_url()));
    for _ in 0..3 {
        let error = ask(&claude).await.unwrap_err();
        shown += &format!("{error} {error:?}");
    }
    for key in ["sk-ant very-secret", "sk-ant-very-secret\n", ""] {
        let error =
            Claude::new(ClientConfig { api_key: Some(key.into()), ..config(simulator.base_url()) }).unwrap_err();
        shown += &format!("{error} {error:?}");
    }
    assert!(!shown.contains("very-secret"), "{shown}");
    assert!(shown.contains("[secret]"));
}

#[tokio::test]
async fn only_the_right_key_is_let_in() {
    let config_of = |key: &str| SimulatorConfig { api_key: Some(key.into()), ..SimulatorConfig::default() };
    let simulator = Simulator::start(config_of(KEY)).await.unwrap();
    ask(&Claude::new(config(simulator.base_url())).unwrap()).await.unwrap();
    let simulator = Simulator::start(config_of("sk-ant-another")).await.unwrap();
    let error = ask(&Claude::new(config(simulator.base_url())).unwrap()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication);
}

#[test]
fn a_base_url_of_no_use_is_refused_without_showing_its_password() {
    for bad in ["", "api.anthropic.com", "ftp://host", "https://me:hunter2@host", "https://host/?a=1", "https://h/#x"] {
        let error = Claude::new(config(bad.to_owned())).unwrap_err();
        assert!(matches!(error, ClientError::BaseUrl(_)), "{bad}: {error}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_models_life_cycle_can_be_asked_for() {
    let (_simulator, claude) = pair([]).await;
    let lifecycle = async |id| claude.model(id).await.unwrap().lifecycle.unwrap();
    assert_eq!(lifecycle("claude-sonnet-5-5").await, "active");
    assert_eq!(lifecycle("claude-sonnet-4-5").await, "deprecated");
    assert_eq!(lifecycle("claude-3-5-sonnet-20241022").await, "retired");
    let error = claude.model("../messages").await.unwrap_err();
    assert_eq!((error.kind, error.may_have_been_billed()), (ErrorKind::NotFound, false));
}

#[tokio::test]
async fn a_retired_model_blocks_the_queue() {
    let (_simulator, claude) = pair([]).await;
    let retired = MessageRequest { model: "claude-3-5-sonnet-20241022".to_owned(), ..question("Buy or build?") };
    let error = claude.send(&retired, &|_| {}).await.unwrap_err();
    assert_eq!((error.kind, error.concern()), (ErrorKind::NotFound, Concern::Model));
    assert!(error.message.contains("claude-3-5-sonnet-20241022"), "{error}");
}

#[tokio::test]
async fn a_reached_limit_is_a_429_that_says_when_to_come_back() {
    let limits = AccountLimits { requests: 2, burst: Duration::from_secs(60), ..AccountLimits::START };
    let config_ = SimulatorConfig { limits: Some(limits), ..SimulatorConfig::default() };
    let simulator = Simulator::start(config_).await.unwrap();
    let claude = Claude::new(config(simulator.base_url())).unwrap();
    ask(&claude).await.unwrap();
    ask(&claude).await.unwrap();
    let error = ask(&claude).await.unwrap_err();
    assert_eq!(error.concern(), Concern::Limit);
    assert!((25..=30).contains(&error.retry_after.unwrap().as_secs()), "{:?}", error.retry_after);
}

#[tokio::test]
async fn the_system_prompt_is_cached_for_five_minutes_an_hour_or_not_at_all() {
    let (simulator, claude) = pair([]).await;
    for (cache, mark) in [
        (CacheTtl::FiveMinutes, json!({"type": "ephemeral"})),
        (CacheTtl::OneHour, json!({"type": "ephemeral", "ttl": "1h"})),
        (CacheTtl::Off, json!(null)),
    ] {
        let system = format!("{mark} {}", "word ".repeat(2_000));
        let usage = claude.send(&MessageRequest { system, cache, ..question("Why?") }, &|_| {}).await.unwrap().usage;
        assert_eq!(simulator.calls().last().unwrap().json()["system"][0]["cache_control"], mark);
        assert_eq!(usage.cache_creation_input_tokens > 0, cache != CacheTtl::Off);
        let written_1h = usage.cache_creation_1h_input_tokens;
        assert_eq!(written_1h == usage.cache_creation_input_tokens, cache != CacheTtl::FiveMinutes);
    }
}

#[tokio::test]
async fn a_long_system_prompt_is_written_to_the_cache_once_and_then_read() {
    let (_simulator, claude) = pair([]).await;
    let request = MessageRequest { system: "word ".repeat(2_000), ..question("Buy or build?") };
    let first = claude.send(&request, &|_| {}).await.unwrap().usage;
    let second = claude.send(&request, &|_| {}).await.unwrap().usage;
    assert_eq!((first.cache_creation_input_tokens, first.cache_read_input_tokens), (2_500, 0));
    assert_eq!((second.cache_creation_input_tokens, second.cache_read_input_tokens), (0, 2_500));
    assert_eq!(first.total_input(), second.total_input());
}
