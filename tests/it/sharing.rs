//! What nodes share through Redis, between real nodes on a real PostgreSQL.

use std::time::{Duration, Instant};

use ceoagent::claude::simulator::Fault;
use serde_json::json;

use crate::{
    cluster_faults::certificate,
    database::Postgres,
    follow::Events,
    harness::{Answer, PATIENCE, simulator},
    nodes::node,
    redis_server::RedisServer,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_streams_the_text_of_a_call_that_another_makes_and_goes_on_where_one_left_off() {
    let (postgres, redis, claude) = (Postgres::start(), RedisServer::start(), simulator().await);
    // Longer than Redis is left alone after a slow answer.
    claude.script([Fault::SlowBytes { bytes: 200, pause: Duration::from_millis(50) }]);
    let url = postgres.create("jobs");
    let start = || node(&claude.base_url(), &url).with("REDIS_URL", &redis.url()).start();
    let (caller, other) = (start(), start());
    let id = other.submit("Where is the text?").await.id();
    let (mut text, mut last, mut pieces_elsewhere) = (String::new(), None::<String>, 0);
    let done = 'streams: loop {
        for (service, is_elsewhere) in [(&other, true), (&caller, false)] {
            let mut events = Events::follow(service, &id, last.as_deref()).await;
            let event = events.next().await.unwrap();
            match event.name.as_str() {
                "progress" => {
                    assert_eq!(event.data["reset"], text.is_empty(), "{event:?}");
                    text.push_str(event.data["text"].as_str().unwrap());
                    pieces_elsewhere += u32::from(is_elsewhere);
                }
                "done" => break 'streams event,
                _ => assert!(text.is_empty(), "a status that was sent already: {event:?}"),
            }
            last = Some(event.id);
        }
        if pieces_elsewhere == 2 {
            redis.command(&["flushall"]);
        }
    };
    assert_eq!(done.data["status"], "succeeded");
    let answer = claude.calls()[0].answer.clone().unwrap();
    assert!(answer.starts_with(&text), "{text}\n{answer}");
    assert!(pieces_elsewhere > 3, "{pieces_elsewhere} of {text}");
}

fn has_note(ready: &Answer) -> bool {
    let notes = ready.body["notes"].as_array();
    notes.is_some_and(|notes| notes.iter().any(|note| note["field"] == "redis" && note["code"] == "redis_unavailable"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_without_its_redis_and_notes_that_until_it_is_connected() {
    let (postgres, mut redis, claude) = (Postgres::start(), RedisServer::start(), simulator().await);
    redis.kill();
    let service = node(&claude.base_url(), &postgres.create("jobs")).with("REDIS_URL", &redis.url());
    let service = service.with("SUBMITS_PER_MINUTE", "1000000").start();
    let ready = service.get("/health/ready").await;
    assert!(ready.status == 200 && has_note(&ready), "{ready:#?}");
    assert!(service.get("/metrics").await.body.as_str().unwrap().contains("ceoagent_redis_unavailable 1"));
    let answer = service.post("/api/v1/analyze", &json!({ "query": "Without it?", "wait": true })).await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    redis.start_again();
    let deadline = Instant::now() + PATIENCE;
    while has_note(&service.get("/health/ready").await) {
        assert!(Instant::now() < deadline, "it doesn't connect");
        tokio::task::yield_now().await;
    }
    redis.signal("STOP");
    while !has_note(&service.get("/health/ready").await) {
        assert_eq!(service.submit("Does it hang?").await.status, 202);
    }
    redis.signal("CONT");
    let (_, log) = service.terminate();
    // Any slow answer is such a moment too.
    assert!(log.matches("Redis can't be used").count() >= 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_redis_is_used_and_its_certificate_checked() {
    let folder = tempfile::tempdir().unwrap();
    let ([cert, key], [other, _]) = (certificate(folder.path(), "server"), certificate(folder.path(), "other"));
    let (postgres, redis) = (Postgres::start(), RedisServer::start_with_tls([cert.clone(), key]));
    assert!(redis.url().starts_with("rediss://"));
    let (claude, url) = (simulator().await, postgres.create("jobs"));
    let start = |trusted: &str| {
        let setup = node(&claude.base_url(), &url).with("REDIS_URL", &redis.url());
        setup.with("SSL_CERT_FILE", trusted).start()
    };
    let (service, stranger) = (start(&cert), start(&other));
    let deadline = Instant::now() + PATIENCE;
    while has_note(&service.get("/health/ready").await) {
        assert!(Instant::now() < deadline, "it doesn't connect");
        tokio::task::yield_now().await;
    }
    assert!(redis.command(&["info", "commandstats"]).contains("cmdstat_eval:"));
    let ready = stranger.get("/health/ready").await;
    assert!(has_note(&ready), "it trusts another certificate: {ready:#?}");
}

#[test]
fn a_wrong_redis_url_stops_the_start_in_words_and_shows_no_password() {
    let redis = RedisServer::start_with_password("s3cret");
    let wrong = redis.url().replace("s3cret", "wr0ng");
    for (url, why) in [(wrong.as_str(), "the server refuses"), ("http://:wr0ng@redis.example", "redis:// or rediss://")]
    {
        let (status, said) =
            node("http://127.0.0.1:9", "postgres://127.0.0.1:9/jobs").with("REDIS_URL", url).run(&["serve"]);
        assert!(!status.success() && said.contains("REDIS_URL") && said.contains(why), "{said}");
        assert!(!said.contains("wr0ng"), "{said}");
    }
}
