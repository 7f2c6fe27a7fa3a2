//! Ways to wait for a job: server-sent events, which go on where they were, and long polls that send nothing twice.

use std::time::Duration;

use ceoagent::claude::simulator::{ErrorAnswer, Fault, Latency, Simulator, SimulatorConfig};
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpSocket,
    time::{interval, timeout},
};

use crate::harness::{Answer, PATIENCE, Service, Setup, send, simulator};

/// One event, read.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

/// Follows a job from the event `last`; all that comes until the stream ends.
pub(crate) struct Events {
    stream: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl Events {
    pub(crate) async fn follow(service: &Service, id: &str, last: Option<&str>) -> Events {
        let mut request = service.request(Method::GET, &format!("/api/v1/jobs/{id}/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let events = answer.bytes_stream().eventsource().map(|event| event.unwrap());
        let events = events.map(|event| Event {
            name: event.event,
            id: event.id,
            data: serde_json::from_str(&event.data).unwrap(),
        });
        Events { stream: Box::pin(events) }
    }

    pub(crate) async fn next(&mut self) -> Option<Event> {
        timeout(PATIENCE, self.stream.next()).await.expect("no event comes")
    }

    /// The next event, which has this name.
    async fn expect(&mut self, name: &str) -> Event {
        let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// The text of all progress up to the next event of another kind, with that event.
    async fn text(&mut self) -> (String, Event) {
        let mut text = String::new();
        loop {
            let event = self.next().await.expect("the stream ended in the middle of the text");
            if event.name != "progress" {
                return (text, event);
            }
            assert_eq!(event.data["reset"], text.is_empty(), "{event:?}");
            text.push_str(event.data["text"].as_str().unwrap());
        }
    }
}

/// Where a follower gets nothing more.
async fn resumed_at_the_end(service: &Service, id: &str, last: &str) -> Answer {
    send(service.request(Method::GET, &format!("/api/v1/jobs/{id}/events")).header("last-event-id", last)).await
}

#[tokio::test]
async fn a_follower_sees_the_job_wait_run_bring_its_text_and_end() {
    let claude = simulator().await;
    claude.script([Fault::Hold, Fault::Takes(Duration::from_millis(500))]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let first = service.submit("First?").await;
    claude.wait_for_calls(1).await;
    let second = service.submit("Second?").await.id();
    let mut events = Events::follow(&service, &second, None).await;
    let queued = events.expect("status").await;
    assert_eq!(queued.data["status"], "queued");
    assert_eq!((&queued.data["id"], &queued.data["queue"]["position"]), (&json!(second), &json!(1)));
    claude.release();
    service.ended(&first.id()).await;
    let running = events.expect("status").await;
    assert_eq!((&running.data["status"], &running.data["attempts_made"]), (&json!("running"), &json!(1)));
    let (text, done) = events.text().await;
    assert_eq!(done.name, "done");
    let ended = service.ended(&second).await.body;
    assert_eq!(done.data, ended, "what a GET shows");
    let answer = claude.calls()[1].answer.clone().unwrap();
    assert!(!text.is_empty() && answer.starts_with(&text), "{text}");
    assert!(events.next().await.is_none(), "nothing follows the end");
    let again = resumed_at_the_end(&service, &second, &done.id).await;
    assert_eq!((again.status, again.body), (204, json!("")));
}

#[tokio::test]
async fn a_follower_that_comes_again_misses_nothing_and_gets_nothing_twice() {
    let claude = simulator().await;
    claude.script([Fault::SlowBytes { bytes: 400, pause: Duration::from_millis(20) }]);
    let service = Setup::new(&claude.base_url()).start();
    let id = service.submit("Again?").await.id();
    let mut text = String::new();
    let mut last: Option<String> = None;
    let done = loop {
        let mut events = Events::follow(&service, &id, last.as_deref()).await;
        let event = events.next().await.unwrap();
        match event.name.as_str() {
            "progress" => {
                assert_eq!(event.data["reset"], text.is_empty(), "{event:?}");
                text.push_str(event.data["text"].as_str().unwrap());
            }
            "done" => break event,
            _ => assert!(text.is_empty(), "a status that was told already: {event:?}"),
        }
        last = Some(event.id);
    };
    assert_eq!(done.data["status"], "succeeded");
    let answer = claude.calls()[0].answer.clone().unwrap();
    assert!(!text.is_empty() && answer.starts_with(&text), "{text}\n{answer}");
}

#[tokio::test]
async fn the_text_of_a_failed_attempt_is_void_and_the_next_says_so() {
    let claude = simulator().await;
    let slowly = Fault::SlowBytes { bytes: 2_000, pause: Duration::from_millis(150) };
    claude.script([Fault::StallAfter(5), slowly]);
    // The first attempt's text stays as it is until the silence, half of the time-out, ends it.
    let service = Setup::new(&claude.base_url()).with("REQUEST_TIMEOUT", "8").start();
    let id = service.submit("Twice?").await.id();
    let mut events = Events::follow(&service, &id, None).await;
    let mut attempts = Vec::new();
    let mut text = String::new();
    loop {
        let event = events.next().await.unwrap();
        match event.name.as_str() {
            "progress" => {
                if event.data["reset"] == true {
                    text.clear();
                    attempts.push(event.data["attempt"].as_u64().unwrap());
                }
                text.push_str(event.data["text"].as_str().unwrap());
            }
            "done" => break,
            _ => {}
        }
    }
    assert_eq!(attempts, [1, 2], "each attempt's text begins anew");
    assert!(claude.calls()[1].answer.clone().unwrap().starts_with(&text), "{text}");
}

#[tokio::test]
async fn what_is_settled_is_followed_on_across_a_restart() {
    let claude = simulator().await;
    claude.script([ErrorAnswer::status(400).into(), Fault::Hold]);
    let setup = Setup::new(&claude.base_url());
    let service = setup.start();
    let failed = service.submit("Wrong?").await.id();
    let done = {
        let mut events = Events::follow(&service, &failed, None).await;
        loop {
            let event = events.next().await.unwrap();
            if event.name == "done" {
                break event;
            }
        }
    };
    assert_eq!(done.data["status"], "failed");
    let held = service.submit("Held?").await.id();
    claude.wait_for_calls(2).await;
    let mut events = Events::follow(&service, &held, None).await;
    let running = loop {
        let event = events.expect("status").await;
        if event.data["status"] == "running" {
            break event;
        }
    };
    service.kill();

    let service = setup.start();
    assert_eq!(resumed_at_the_end(&service, &failed, &done.id).await.status, 204);
    let mut events = Events::follow(&service, &failed, Some("0.queued.0")).await;
    assert_eq!(events.expect("done").await.data["id"], json!(failed), "an end that was missed is told");
    let mut events = Events::follow(&service, &held, Some(&running.id)).await;
    let ended = loop {
        let event = events.next().await.unwrap();
        if event.name == "done" {
            break event;
        }
    };
    assert_eq!(ended.data["status"], "succeeded");
    assert_eq!(ended.data["attempts"][0]["outcome"], "outcome_unknown");
}

#[tokio::test]
async fn a_stream_ends_before_thirty_seconds_and_says_when_to_come_again() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let id = service.submit("Long?").await.id();
    claude.wait_for_calls(1).await;
    let answer = service.request(Method::GET, &format!("/api/v1/jobs/{id}/events")).send().await.unwrap();
    let text = timeout(Duration::from_secs(30), answer.text()).await.expect("no answer takes over 30 s").unwrap();
    assert!(text.starts_with("retry: 1000\n\n"), "{text}");
    assert!(text.contains("id: 1.running.0\n"), "{text}");
    assert!(text.matches("\n:").count() >= 4, "a sign of life every five seconds: {text}");
    claude.release();
}

#[tokio::test]
async fn followers_hear_of_a_shutdown_by_the_end_of_their_stream() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).with("SHUTDOWN_GRACE", "0").start();
    let id = service.submit("Closing?").await.id();
    claude.wait_for_calls(1).await;
    let mut events = Events::follow(&service, &id, None).await;
    events.expect("status").await;
    let (status, log) = service.terminate();
    assert!(status.success(), "{log}");
    while let Some(event) = events.next().await {
        assert_eq!(event.name, "status", "{event:?}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_its_answers_is_cut_off() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let question = json!({ "query": "Read?", "context": "x".repeat(50_000) });
    let id = service.post("/api/v1/analyze", &question).await.id();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let address = service.base().trim_start_matches("http://").parse().unwrap();
    let mut client = socket.connect(address).await.unwrap();
    // More than any buffer between the two takes in.
    let requests = format!("GET /api/v1/jobs/{id} HTTP/1.1\r\nhost: test\r\n\r\n").repeat(400);
    client.write_all(requests.as_bytes()).await.unwrap();
    // Whoever ends a connection like that says nothing: only a client that sends hears of it.
    let mut ticks = interval(Duration::from_millis(200));
    let cut_off = async {
        while client.write_all(b"x").await.is_ok() {
            ticks.tick().await;
        }
    };
    timeout(PATIENCE, cut_off).await.expect("it is held for ever");
}

#[tokio::test]
async fn nothing_is_followed_that_is_not_there() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    service.get("/api/v1/jobs/019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70/events").await.assert_problem(404, "job_not_found");
    service.get("/api/v1/jobs/seven/events").await.assert_problem(400, "invalid_job_id");
    let id = service.submit("There?").await.id();
    service.get(&format!("/api/v1/jobs/{id}/events?from=1")).await.assert_problem(400, "invalid_parameter");
}

#[tokio::test]
async fn a_job_that_the_client_has_is_not_sent_again() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let id = service.submit("Changed?").await.id();
    claude.wait_for_calls(1).await;
    let path = format!("/api/v1/jobs/{id}");
    let ask = |tag: &str| send(service.request(Method::GET, &path).header("if-none-match", tag));
    let running = service.get(&path).await;
    let tag = running.header("etag").to_owned();
    let same = ask(&tag).await;
    assert_eq!((same.status, same.header("etag"), &same.body), (304, tag.as_str(), &json!("")));
    assert_eq!(same.header("retry-after"), "1", "still pending");
    claude.release();
    let ended = service.ended(&id).await;
    let other = ask(&tag).await;
    assert_eq!((other.status, &other.body), (200, &ended.body));
    assert_eq!(ask(&format!("W/{}, {tag}", other.header("etag"))).await.status, 304);
}

#[tokio::test]
async fn a_preferred_wait_is_followed_and_told_unless_another_is_given() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let id = service.submit("Preferred?").await.id();
    let ask = |query: &str| {
        let request = service.request(Method::GET, &format!("/api/v1/jobs/{id}{query}"));
        send(request.header("prefer", "respond-async, wait=20"))
    };
    claude.wait_for_calls(1).await;
    let given = ask("?wait=0").await;
    assert_eq!((given.body["status"].as_str(), given.header("preference-applied")), (Some("running"), ""));
    let (waited, ()) = tokio::join!(ask(""), async { claude.release() });
    assert_eq!(waited.body["status"], "succeeded", "{waited:#?}");
    assert_eq!(waited.header("preference-applied"), "wait=20");
}

#[tokio::test]
async fn a_wait_that_can_not_be_met_is_declined_at_once_and_counted() {
    let latency = Latency::Fixed(Duration::from_millis(200));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let service = Setup::new(&claude.base_url()).start();
    let ask = async |wait: &str| {
        let answer = service.post(&format!("/api/v1/analyze?wait={wait}"), &json!({ "query": "In time?" })).await;
        answer.status
    };
    // So many answers tell how long one takes.
    for _ in 0..5 {
        assert_eq!(ask("20").await, 200);
    }
    assert_eq!(ask("0.05").await, 202);
    for (end, count) in [("answered", "5"), ("late", "1"), ("failed", "0"), ("left", "0")] {
        assert_eq!(service.metric(&format!("ceoagent_waits_total{{kind=\"{end}\"}}")).await, count, "{end}");
    }
    assert_eq!(service.metric("ceoagent_waits_declined_total").await, "1");
}
