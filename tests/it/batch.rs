//! `POST /api/v1/analyze/batch`: all of a batch is there or none of it, whatever is wrong with it and whatever dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Service, Setup, send, simulator};

const BATCH: &str = "/api/v1/analyze/batch";

/// Lives of the service that end in a kill while batches come in.
const KILLS: u64 = 10;

/// Jobs in each batch of the kill test: enough for a group to have a middle.
const SIZE: usize = 40;

fn questions(name: &str, count: usize) -> Value {
    let request = |n: usize| json!({ "query": format!("Is plan {n} good?"), "metadata": { "batch": name } });
    json!({ "requests": (0..count).map(request).collect::<Vec<_>>() })
}

fn ids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 202, "{answer:#?}");
    answer.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

async fn pending(service: &Service) -> u64 {
    let total = &service.admin_get("/api/v1/admin/jobs?limit=1").await.body["total"];
    ["queued", "scheduled", "running", "succeeded", "failed"].iter().map(|status| total[status].as_u64().unwrap()).sum()
}

/// How many jobs there are of each batch.
async fn jobs_by_batch(service: &Service) -> BTreeMap<String, BTreeSet<String>> {
    let mut batches: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = service.admin_get(&format!("/api/v1/admin/jobs?limit=200{cursor}")).await;
        for job in page.body["jobs"].as_array().unwrap() {
            let name = job["metadata"]["batch"].as_str().unwrap().to_owned();
            batches.entry(name).or_default().insert(job["id"].as_str().unwrap().to_owned());
        }
        let Some(next) = page.body["next_cursor"].as_str() else { return batches };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test]
async fn a_batch_is_accepted_in_its_order_and_every_job_of_it_ends() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let answer = service.post(BATCH, &questions("one", 25)).await;
    let ids = ids(&answer);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 25);
    assert_eq!(answer.body["jobs"][3]["links"]["self"], format!("/api/v1/jobs/{}", ids[3]));
    for (id, n) in ids.iter().zip(0..) {
        let job = service.ended(id).await.body;
        assert_eq!((&job["status"], &job["query"]), (&"succeeded".into(), &format!("Is plan {n} good?").into()));
        assert_eq!(job["request_id"], answer.header("x-request-id"));
    }
}

#[tokio::test]
async fn a_batch_with_a_mistake_is_refused_with_its_index_and_leaves_nothing() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let mut body = questions("bad", 4);
    body["requests"][1]["query"] = " ".into();
    body["requests"][2]["wait"] = true.into();
    body["requests"][3]["options"] = json!(["fine", ""]);
    body["requests"][3]["qurey"] = 1.into();
    let answer = service.post(BATCH, &body).await;
    answer.assert_problem(422, "validation_failed");
    let fields: BTreeSet<&str> =
        answer.body["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    let expected = ["requests[1].query", "requests[2].wait", "requests[3].options[1]", "requests[3].qurey"];
    assert_eq!(fields, expected.into());

    let cases = [
        (json!({"requests": []}), "requests", "must not be empty"),
        (questions("many", 1_001), "requests", "at most 1000, not 1001"),
        (json!({"requests": [{"query": 1}]}), "requests[0].query", "expected a string"),
        (json!({"requests": "all"}), "requests", "expected a sequence"),
        (json!({}), "requests", "is required"),
    ];
    for (body, field, words) in cases {
        let answer = service.post(BATCH, &body).await;
        answer.assert_problem(422, "validation_failed");
        let error = &answer.body["errors"][0];
        assert_eq!(error["field"], field, "{answer:#?}");
        assert!(error["message"].as_str().unwrap().contains(words), "{answer:#?}");
    }
    let blank = json!({ "requests": vec![json!({"query": ""}); 1_000] });
    let answer = service.post(BATCH, &blank).await;
    assert_eq!(answer.body["errors"].as_array().unwrap().len(), 101, "{}", answer.body["errors"][100]);
    assert!(answer.body["errors"][100]["message"].as_str().unwrap().contains("900 more"));
    let large = json!({ "requests": [{ "query": "q", "context": "x".repeat(9 << 20) }] });
    service.post(BATCH, &large).await.assert_problem(413, "body_too_large");
    assert_eq!(pending(&service).await, 0);
}

#[tokio::test]
async fn a_batch_that_does_not_fit_is_refused_whole_and_the_largest_one_is_taken() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("MAX_QUEUED_JOBS", "10000").start();
    let later = |count| {
        let mut body = questions("later", count);
        let requests = body["requests"].as_array_mut().unwrap();
        let run_at = Value::from(in_an_hour());
        requests.iter_mut().for_each(|request| request["run_at"] = run_at.clone());
        body
    };
    assert_eq!(ids(&service.post(BATCH, &later(1)).await).len(), 1);
    service.post(BATCH, &later(1_000)).await.assert_problem(429, "too_many_pending");
    assert_eq!(pending(&service).await, 1);
    assert_eq!(ids(&service.post(BATCH, &later(999)).await).len(), 999);
    assert_eq!(pending(&service).await, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_come_at_once_pass_no_bound() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("MAX_QUEUED_JOBS", "4000").start();
    service.admin_post("/api/v1/admin/queue/pause", &json!({})).await;
    let post = async |n: usize| service.post(BATCH, &questions(&format!("batch {n}"), 100)).await.status;
    let answers = futures_util::future::join_all((0..30).map(post)).await;
    let count = |wanted| answers.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(202), count(429)), (4, 26), "a caller may have a tenth");
    assert_eq!(pending(&service).await, 400);
}

/// A moment that has not come when the test ends.
pub(crate) fn in_an_hour() -> String {
    let now = ceoagent::clock::Clock::system().now();
    now.plus(Duration::from_hours(1)).to_string()
}

#[tokio::test]
async fn a_key_brings_the_same_batch_again_also_after_a_kill_and_is_refused_for_another() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url());
    let mut service = setup.start();
    let ask = |service: &Service, body: &Value| {
        send(service.request(Method::POST, BATCH).header("idempotency-key", "nightly-7").json(body))
    };
    let body = questions("keyed", 7);
    let first = ask(&service, &body).await;
    let expected = ids(&first);
    assert_eq!(first.header("idempotency-replayed"), "");
    for kill in [false, true] {
        if kill {
            service.kill();
            service = setup.start();
        }
        let again = ask(&service, &body).await;
        assert_eq!((ids(&again), again.header("idempotency-replayed")), (expected.clone(), "true"));
    }
    let mut others = vec![questions("keyed", 6), questions("keyed", 8), questions("keyed", 7)];
    others[2]["requests"][6]["priority"] = "low".into();
    for other in others {
        ask(&service, &other).await.assert_problem(422, "idempotency_key_reused");
    }
    // A question of that name is another thing.
    let single = service.request(Method::POST, "/api/v1/analyze").header("idempotency-key", "nightly-7");
    assert_eq!(send(single.json(&json!({"query": "Alone?"}))).await.status, 202);
    assert_eq!(pending(&service).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_each_batch_whole_or_not_at_all() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let claude = simulator().await;
    // Nobody is to work on them: this is about what comes in.
    let setup = Setup::new(&claude.base_url()).with("RATE_LIMITS", "1 request").with("MAX_QUEUED_JOBS", "1000000");
    let mut accepted = BTreeMap::new();
    let mut begun = 0_u64;
    for life in 0..KILLS {
        let service = setup.start();
        let (news, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (base, news) = (service.base().to_owned(), news.clone());
                tokio::spawn(async move {
                    let http = crate::harness::client();
                    for n in 0.. {
                        let name = format!("{life}-{client}-{n}");
                        let _ = news.send((name.clone(), None));
                        let Ok(answer) = http.post(format!("{base}{BATCH}")).json(&questions(&name, SIZE)).send().await
                        else {
                            return;
                        };
                        let Ok(body) = answer.json::<Value>().await else { return };
                        let _ = news.send((name, Some(body["jobs"].as_array().unwrap().len())));
                    }
                })
            })
            .collect();
        drop(news);
        let mut left = random.random_range(1..30);
        while left > 0 {
            match heard.recv().await.unwrap() {
                (name, Some(jobs)) => {
                    accepted.insert(name, jobs);
                    left -= 1;
                }
                (_, None) => begun += 1,
            }
        }
        service.kill();
        for client in clients {
            client.await.unwrap();
        }
        while let Some((name, jobs)) = heard.recv().await {
            match jobs {
                Some(jobs) => _ = accepted.insert(name, jobs),
                None => begun += 1,
            }
        }
    }
    let batches = jobs_by_batch(&setup.start()).await;
    println!("{begun} batches begun, {} answered, {} there", accepted.len(), batches.len());
    for (name, jobs) in &batches {
        assert_eq!(jobs.len(), SIZE, "batch {name} is there in part");
    }
    for (name, jobs) in &accepted {
        assert_eq!((*jobs, batches.contains_key(name)), (SIZE, true), "batch {name} was accepted");
    }
}
