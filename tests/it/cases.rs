//! Answers of gateways and models as public bug reports have them, played byte for byte over HTTP.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use serde_json::{Value, json};

use crate::harness::{Service, Setup};

/// A memo that is whole.
pub(crate) const MEMO: &str = include_str!("../../src/analysis/samples/english.json");

pub(crate) const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// An upstream that answers the n-th `POST` with the n-th of its answers, and every further one with the last.
struct Upstream {
    base: String,
    /// The heads of all `POST`s.
    posts: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    fn start(answers: Vec<Vec<u8>>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let posts: Arc<Mutex<Vec<String>>> = Arc::default();
        let (count, answers, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(answers), Arc::clone(&posts));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (count, answers, seen) = (Arc::clone(&count), Arc::clone(&answers), Arc::clone(&seen));
                thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    while let Some(head) = request(&mut connection) {
                        if head.starts_with("GET ") {
                            let body = r#"{"type":"model","id":"m","lifecycle":"active","max_tokens":64000}"#;
                            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
                            let _ = write!(connection, "{head}: {}\r\n\r\n{body}", body.len());
                            continue;
                        }
                        seen.lock().unwrap().push(head);
                        let n = count.fetch_add(1, SeqCst);
                        let _ = connection.write_all(&answers[n.min(answers.len() - 1)]);
                        return;
                    }
                });
            }
        });
        Upstream { base, posts }
    }

    fn calls(&self) -> usize {
        self.posts.lock().unwrap().len()
    }
}

/// The head of the next request on a connection, whose body is read too.
pub(crate) fn request(connection: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length =
                head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                return Some(head);
            }
        }
        match connection.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

pub(crate) fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// The events of an answer, as the API sends them.
pub(crate) fn events(text: &str) -> Vec<String> {
    let start = json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant",
        "model": "claude-sonnet-5-5", "content": [], "usage": {"input_tokens": 900, "output_tokens": 1}}});
    let block = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
    let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let end = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 700}});
    let stop = json!({"type": "message_stop"});
    [
        event("message_start", &start),
        event("content_block_start", &block),
        event("content_block_delta", &delta),
        event("message_delta", &end),
        event("message_stop", &stop),
    ]
    .to_vec()
}

fn stream(body: &str) -> Vec<u8> {
    format!("{STREAM}{body}").into_bytes()
}

/// A stream whose text this is.
fn answer(text: &str) -> Vec<u8> {
    stream(&events(text).concat())
}

/// A whole message instead of a stream.
fn message(body: &Value) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: Application/JSON\r\nconnection: close\r\n\r\n{body}").into_bytes()
}

/// A service before an upstream, and the job of one question that it ended.
async fn ask(answers: Vec<Vec<u8>>) -> (Upstream, Value) {
    let upstream = Upstream::start(answers);
    let service = Setup::new(&upstream.base).with("MAX_RETRIES", "1").start();
    let id = service.submit("Shall we open a second counter?").await.id();
    let job = service.ended(&id).await.body;
    (upstream, job)
}

/// Asserts that the answer brings the memo in one call, and gives what was repaired.
#[track_caller]
fn assert_read(name: &str, upstream: &Upstream, job: &Value) -> Vec<String> {
    assert_eq!((job["status"].as_str(), upstream.calls()), (Some("succeeded"), 1), "{name}: {job:#}");
    let memo: Value = serde_json::from_str(MEMO).unwrap();
    assert_eq!(job["result"]["decision_question"], memo["decision_question"], "{name}");
    let repaired = job["attempts"][0]["repaired"].as_array().cloned().unwrap_or_default();
    repaired.iter().map(|repair| repair.as_str().unwrap().to_owned()).collect()
}

fn draft() -> String {
    let mut memo: Value = serde_json::from_str(MEMO).unwrap();
    memo["summary"] = json!("DRAFT: do not open.");
    memo.to_string()
}

#[tokio::test]
async fn the_last_memo_counts_and_nothing_before_the_end_of_thinking() {
    let (draft, summary) = (draft(), serde_json::from_str::<Value>(MEMO).unwrap()["summary"].clone());
    for text in [
        format!("<think>A first draft:\n{draft}\nNo, the rent is lower.</think>\n{MEMO}"),
        format!("First try:\n```json\n{draft}\n```\nOn second thought, corrected:\n```json\n{MEMO}\n```\n"),
    ] {
        let (upstream, job) = ask(vec![answer(&text)]).await;
        assert_read("draft", &upstream, &job);
        assert_eq!(job["result"]["summary"], summary);
    }
    // A draft whose correction is cut is not the memo.
    let cut = format!("{draft}\nCorrected:\n{}", &MEMO[..MEMO.len() / 2]);
    let (upstream, job) = ask(vec![answer(&cut), answer(MEMO)]).await;
    assert_eq!((&job["result"]["summary"], upstream.calls()), (&summary, 2));
    let thought = format!("<think>Perhaps {draft}");
    let (_, job) = ask(vec![answer(&thought), answer(MEMO)]).await;
    assert_eq!(job["result"]["summary"], summary);
}

#[tokio::test]
async fn streams_in_an_odd_form_are_read_in_one_call() {
    let plain = events(MEMO).concat();
    let nameless: String =
        plain.lines().filter(|line| !line.starts_with("event:")).flat_map(|line| [line, "\n"]).collect();
    let mut no_stop = events(MEMO);
    no_stop.pop();
    let no_stop = no_stop.concat();
    let halves = |text: &str| -> String {
        let units: Vec<u16> = text.encode_utf16().collect();
        let delta = |units: &[u16]| {
            let text: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            format!(
                "event: content_block_delta\ndata: {{\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
            )
        };
        units.chunks(7).map(delta).collect()
    };
    let mut split = events("");
    split[2] = halves(&format!("😀😀😀😀😀 {MEMO}"));
    for (name, body) in [
        ("byte order mark", format!("\u{feff}{plain}")),
        ("no event names", nameless),
        ("lines end in CR", plain.replace('\n', "\r")),
        ("no message_stop", no_stop.clone()),
        ("no last blank line", no_stop.trim_end().to_owned()),
        ("comments", format!(": heartbeat\n\n{plain}").replace("\n\n", "\n\n: heartbeat\n\n")),
        ("halved surrogate pairs", split.concat()),
        ("done", format!("{no_stop}data: [DONE]\n\n")),
        ("no blank after the colon", plain.replace("data: ", "data:").replace("event: ", "event:")),
        ("deltas without a type", plain.replace(r#""type":"text_delta""#, r#""kind":null"#)),
        ("a type that is null", plain.replace(r#""type":"text_delta""#, r#""type":null"#)),
        ("no number", plain.replace("900", "NaN")),
        ("fields of no use", plain.replace("event: ", "retry: 3000\nid: 7\nevent: ")),
        ("blank lines first", format!("\r\n\n{plain}")),
    ] {
        let (upstream, job) = ask(vec![stream(&body)]).await;
        assert_eq!(assert_read(name, &upstream, &job), [""; 0], "{name}");
    }
    let typed = String::from_utf8(answer(MEMO)).unwrap();
    for kind in [
        "Content-Type: Text/Event-Stream;charset=UTF-8",
        "content-type: text/plain; charset=utf-8",
        "content-type: application/octet-stream",
        "content-type: application/json",
        "x-content-type: none",
    ] {
        let typed = typed.replace("content-type: text/event-stream", kind);
        let (upstream, job) = ask(vec![typed.into_bytes()]).await;
        assert_read(kind, &upstream, &job);
    }
}

#[tokio::test]
async fn a_whole_message_is_read_under_any_type_and_with_its_text_alone() {
    let usage = json!({"input_tokens": 9, "output_tokens": 9});
    let blocks = json!({"type": "message", "model": "m", "content": [{"type": "text", "text": MEMO}],
        "stop_reason": "end_turn", "usage": usage});
    let text = json!({"type": "message", "model": "m", "content": MEMO, "stop_reason": "end_turn", "usage": usage});
    for (kind, body) in [
        ("text/event-stream", format!("\u{feff}{blocks}")),
        ("text/plain", format!("\n  {blocks}")),
        ("application/json", text.to_string()),
        ("application/json", blocks.to_string().replace(":9}", ":Infinity}")),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
        let (upstream, job) = ask(vec![format!("{head}{body}").into_bytes()]).await;
        assert_read(kind, &upstream, &job);
    }
}

#[tokio::test]
async fn an_error_that_comes_with_200_is_that_error_and_no_empty_memo() {
    const OVERLOADED: &str = r#"{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}"#;
    let started = || events("")[0].clone();
    for (kind, body, code) in [
        ("application/json", OVERLOADED.to_owned(), "overloaded"),
        ("text/event-stream", OVERLOADED.to_owned(), "overloaded"),
        ("text/event-stream", format!("{}data: {OVERLOADED}\n\n", started()), "overloaded"),
        (
            "text/event-stream",
            format!("{}event: error\ndata: {OVERLOADED}\n\n", events(&MEMO[..99])[..3].concat()),
            "overloaded",
        ),
        ("application/json", r#"{"error": {"message": "upstream timed out", "code": 504}}"#.to_owned(), "stream_error"),
        ("application/json", r#"{"error": "no healthy upstream"}"#.to_owned(), "stream_error"),
        (
            "text/event-stream",
            format!("{}data: {{\"error\": {{\"message\": \"gone\"}}}}\n\n", started()),
            "stream_error",
        ),
        ("text/event-stream", format!("{}event: error\ndata: gone\n\n", started()), "stream_error"),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
        let (_, job) = ask(vec![format!("{head}{body}").into_bytes(), answer(MEMO)]).await;
        assert_eq!(job["attempts"][0]["error"]["code"], code, "{body}: {job:#}");
        assert_eq!(job["status"], "succeeded", "{body}");
    }
}

#[tokio::test]
async fn a_memo_in_an_odd_wrapping_is_read_in_one_call() {
    let memo: Value = serde_json::from_str(MEMO).unwrap();
    let (text, draft) = (memo.to_string(), draft());
    let score = text.replacen("\"score\":4", "\"score\":４", 1);
    assert_ne!(score, text);
    for (name, answered, repairs) in [
        ("thinking", format!("<thinking>\n{draft}\n</thinking>\n{text}"), &[][..]),
        ("thinking in the midst", format!("I will.\n<think>{draft}</think>\nHere:\n{text}"), &[]),
        ("thinking after it", format!("{text}\n<think>Was {draft} better?"), &[]),
        ("another tag", format!("<reasoning>{draft}</reasoning><answer>{text}</answer>"), &[]),
        ("prose between three", format!("One: {draft}\nTwo: {draft}\nAt last: {text}\nThat is {{all}}."), &[]),
        ("a fence without a name", format!("Here:\n```\n{text}\n```\nI hope {{it}} helps."), &[]),
        ("within an object", json!({"memo": memo, "note": "done"}).to_string(), &[]),
        ("within a list", format!("[{text}]"), &[]),
        ("within two objects", json!({"output": {"decision_memo": memo}}).to_string(), &[]),
        ("as a text", json!(text).to_string(), &["quoted_json"]),
        ("as a text in an object", json!({"memo": MEMO}).to_string(), &["quoted_json"]),
        ("escaped twice", json!(MEMO).to_string().trim_matches('"').to_owned(), &["quoted_json"]),
        ("a key twice", text.replacen('{', "{\"summary\": \"DRAFT\", ", 1), &[]),
        ("half of a surrogate pair", text.replacen("\"name\":\"", "\"name\":\"\\ud83d", 1), &["escape"]),
        ("a full-width digit", score, &["punctuation"]),
        ("a byte order mark", format!("\u{feff}\u{200b}\n{text}"), &[]),
    ] {
        let (upstream, job) = ask(vec![answer(&answered)]).await;
        assert_eq!(assert_read(name, &upstream, &job), repairs, "{name}");
        assert_eq!(job["result"]["summary"], memo["summary"], "{name}");
    }
}

#[tokio::test]
async fn an_error_event_without_a_name_is_that_error() {
    let error = r#"data: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}"#;
    let start = &events("")[0];
    let (_, job) = ask(vec![stream(&format!("{start}{error}\n\n")), answer(MEMO)]).await;
    assert_eq!(job["attempts"][0]["error"]["code"], "overloaded", "{job:#}");
    assert_eq!(job["status"], "succeeded");
}

#[tokio::test]
async fn counts_that_are_none_cost_no_memo_but_are_at_risk() {
    let with = |index: usize, pointer: &str, value: Value| {
        let mut events = events(MEMO);
        let (name, data) = events[index].split_once("\ndata: ").unwrap();
        let mut data: Value = serde_json::from_str(data).unwrap();
        *data.pointer_mut(pointer).unwrap() = value;
        events[index] = format!("{name}\ndata: {data}\n\n");
        stream(&events.concat())
    };
    let whole = json!({"type": "message", "model": "m", "content": [{"type": "text", "text": MEMO}],
        "stop_reason": "end_turn", "usage": null});
    for (name, answer, is_known) in [
        ("start null", with(0, "/message/usage", Value::Null), false),
        ("delta null", with(3, "/usage", Value::Null), false),
        ("minus one", with(3, "/usage/output_tokens", json!(-1)), false),
        ("absurd", with(3, "/usage/output_tokens", json!(4_000_000_000_000_u64)), false),
        ("absurd input", with(0, "/message/usage/input_tokens", json!(4_000_000_000_000_u64)), false),
        ("float", with(3, "/usage/output_tokens", json!(700.0)), true),
        ("text", with(3, "/usage/output_tokens", json!("700")), true),
        ("model null", with(0, "/message/model", Value::Null), true),
        ("stop null", with(3, "/delta/stop_reason", Value::Null), true),
        ("whole", message(&whole), false),
    ] {
        let (upstream, job) = ask(vec![answer]).await;
        assert_read(name, &upstream, &job);
        assert_eq!(job["attempts"][0]["may_have_been_billed"], !is_known, "{name}: {job:#}");
        assert!(job["usage"]["output_tokens"].as_u64().unwrap() < 10_000, "{name}: {job:#}");
    }
    let no_content = json!({"type": "message", "model": "m", "content": null, "stop_reason": "end_turn",
        "usage": {"input_tokens": 9, "output_tokens": 9}});
    let (_, job) = ask(vec![message(&no_content), answer(MEMO)]).await;
    assert_eq!(job["attempts"][0]["error"]["code"], "invalid_output", "{job:#}");
    assert_eq!(job["status"], "succeeded");
}

#[tokio::test]
async fn small_errors_in_the_json_are_repaired_without_a_second_call() {
    let memo: Value = serde_json::from_str(MEMO).unwrap();
    let weight = &memo["criteria"][0]["weight"].as_u64().unwrap();
    let weighted = |value: Value| {
        let mut memo = memo.clone();
        memo["criteria"][0]["weight"] = value;
        memo.to_string()
    };
    let text = memo.to_string();
    let key = |from: &str, to: &str| text.replacen(from, to, 1);
    assert!(text.contains("status_quo"));
    for (name, answered, repair) in [
        ("4.0", weighted(json!(*weight as f64)), "whole_number"),
        ("\"4\"", weighted(json!(weight.to_string())), "number_as_text"),
        ("trailing comma", format!("{},}}", text.trim_end_matches('}')), "trailing_comma"),
        ("raw newline", key("\"summary\":\"", "\"summary\":\"\n"), "control_character"),
        ("comment", key("{", "{ // the memo\n"), "comment"),
        ("full-width punctuation", key("\":", "\"："), "punctuation"),
        ("curly quotes at a key", key("{\"", "{“").replacen("\":", "”:", 1), "quote_character"),
        ("python", text.replace(":true", ":True").replace(":false", ":False"), "literal"),
        ("a fence and a comma", format!("```json\n{},}}\n```", text.trim_end_matches('}')), "trailing_comma"),
    ] {
        let (upstream, job) = ask(vec![answer(&answered)]).await;
        assert_eq!(assert_read(name, &upstream, &job), [repair], "{name}");
    }
    for (wrong, reason) in [(json!(4.5), "4.5"), (Value::Null, "null")] {
        let (upstream, job) = ask(vec![answer(&weighted(wrong))]).await;
        assert_eq!((job["error"]["code"].as_str(), upstream.calls()), (Some("invalid_output"), 2), "{job:#}");
        assert!(job["error"]["message"].as_str().unwrap().contains(reason), "{job:#}");
    }
}

#[tokio::test]
async fn a_memo_that_is_the_input_of_a_tool_is_the_answer() {
    let mut events = events("");
    let tool = json!({"type": "tool_use", "id": "t1", "name": "json_tool_call", "input": {}});
    events[1] = event("content_block_start", &json!({"type": "content_block_start", "content_block": tool}));
    let (first, second) = MEMO.split_at(MEMO.len() / 2);
    events[2] = [first, second]
        .map(|part| event("content_block_delta", &json!({"delta": {"type": "input_json_delta", "partial_json": part}})))
        .concat();
    events[3] = events[3].replace("end_turn", "tool_use");
    let (upstream, job) = ask(vec![stream(&events.concat())]).await;
    assert_read("stream", &upstream, &job);
    let input: Value = serde_json::from_str(MEMO).unwrap();
    let whole = json!({"type": "message", "model": "m", "content": [{"type": "tool_use", "input": input}],
        "stop_reason": "tool_use", "usage": {"input_tokens": 9, "output_tokens": 9}});
    let (upstream, job) = ask(vec![message(&whole)]).await;
    assert_read("whole", &upstream, &job);
    for (name, input) in
        [("a text", json!(MEMO)), ("a field", json!({ "memo": input })), ("a text in a field", json!({ "memo": MEMO }))]
    {
        let whole = json!({"type": "message", "model": "m", "stop_reason": "tool_use",
            "content": [{"type": "text", "text": "I use the tool."}, {"type": "tool_use", "input": input}],
            "usage": {"input_tokens": 9, "output_tokens": 9}});
        let (upstream, job) = ask(vec![message(&whole)]).await;
        assert_read(name, &upstream, &job);
    }
}

/// A service whose base URL ends so, and the path of its call.
async fn path_for(end: &str) -> String {
    let upstream = Upstream::start(vec![answer(MEMO)]);
    let service = Setup::new(&format!("{}{end}", upstream.base)).start();
    service.ended(&service.submit("Which path?").await.id()).await;
    let posts = upstream.posts.lock().unwrap();
    posts[0].split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn a_base_url_may_end_in_v1() {
    for end in ["/v1", "/v1/", "/v1/messages"] {
        assert_eq!(path_for(end).await, "/v1/messages", "{end}");
    }
}

#[tokio::test]
async fn a_body_in_another_encoding_is_refused_by_its_name() {
    let service: Service = Setup::new("http://127.0.0.1:9").start();
    let post = |name: &'static str, value: &'static str, body: &'static [u8]| {
        let request =
            service.request(reqwest::Method::POST, "/api/v1/analyze").header("content-type", "application/json");
        crate::harness::send(request.header(name, value).body(body))
    };
    let answer = post("content-encoding", "gzip", b"\x1f\x8b\x08").await;
    answer.assert_problem(415, "unsupported_media_type");
    assert_eq!(answer.header("accept-encoding"), "identity");
    assert!(answer.body["detail"].as_str().unwrap().contains("gzip"));
    let answer = post("x-none", "", b"\xef\xbb\xbf{\"query\": \"With a mark?\"}").await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    let id = answer.id();
    let events = service.request(reqwest::Method::GET, &format!("/api/v1/jobs/{id}/events")).send().await.unwrap();
    assert_eq!(events.headers()["x-accel-buffering"], "no");
    assert_eq!(events.headers()["cache-control"], "no-cache, no-transform");
}

#[tokio::test]
async fn a_bearer_token_further_headers_and_a_key_from_a_file_are_sent() {
    let upstream = Upstream::start(vec![answer(MEMO)]);
    let setup = Setup::new(&upstream.base).without("ANTHROPIC_API_KEY").with("HOST", "localhost");
    let key = setup.folder().join("key");
    std::fs::write(&key, "sk-from-a-file\n").unwrap();
    let service = setup
        .with("ANTHROPIC_API_KEY_FILE", key.to_str().unwrap())
        .with("ANTHROPIC_AUTH_TOKEN", "'sk-quoted'")
        .with("ANTHROPIC_CUSTOM_HEADERS", "x-team: ops\nx-tier: a,b")
        .start();
    service.ended(&service.submit("Who asks?").await.id()).await;
    let head = upstream.posts.lock().unwrap()[0].to_lowercase();
    for line in ["x-api-key: sk-from-a-file", "authorization: bearer sk-quoted", "x-team: ops", "x-tier: a,b"] {
        assert!(head.lines().any(|sent| sent == line), "{line} is not in {head}");
    }
}

#[tokio::test]
async fn a_socks_proxy_of_the_environment_is_used() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("socks5h://{}", proxy.local_addr().unwrap());
    let service = Setup::new("https://api.gateway.invalid").with("ALL_PROXY", &address).start();
    service.submit("Through the tunnel?").await;
    let mut greeting = [0; 3];
    proxy.accept().unwrap().0.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, [5, 1, 0], "version 5, one method, no authentication");
}
