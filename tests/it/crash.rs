//! SIGKILL of the real binary under load: every job that was answered `202` is there afterwards and ends exactly once.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};

use crate::harness::{Service, Setup, client, simulator};

/// More for the long version: `CEOAGENT_TEST_KILLS=200 cargo test --test it crash`.
const KILLS: usize = 20;

const CLIENTS: usize = 8;

/// Posts until the service dies; tells each accepted id, with the question that it got.
async fn post_until_death(base: String, name: String, accepted: mpsc::UnboundedSender<(String, String)>) {
    let client = client();
    for n in 0.. {
        let query = format!("Should {name} proceed with plan {n}?");
        let body = serde_json::json!({ "query": query });
        let Ok(answer) = client.post(format!("{base}/api/v1/analyze")).json(&body).send().await else { return };
        if answer.status() != 202 {
            return;
        }
        // A 202 whose body was cut off by the kill was not received.
        let Ok(job) = answer.json::<Value>().await else { return };
        let _ = accepted.send((job["id"].as_str().unwrap().to_owned(), query));
    }
}

/// Starts the service, has it killed after `lives` more jobs were accepted, and notes those.
async fn live_and_die(service: Service, life: usize, lives: usize, jobs: &mut BTreeMap<String, String>) {
    let (sender, mut accepted) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let name = format!("team {number} of life {life}");
        clients.spawn(post_until_death(service.base().to_owned(), name, sender.clone()));
    }
    drop(sender);
    for _ in 0..lives {
        let (id, query) = accepted.recv().await.expect("the service died by itself");
        jobs.insert(id, query);
    }
    service.kill();
    clients.join_all().await;
    // Accepted between the last count and the kill.
    while let Some((id, query)) = accepted.recv().await {
        jobs.insert(id, query);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_no_accepted_job_and_ends_each_once() {
    let kills = std::env::var("CEOAGENT_TEST_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "16").with("MAX_RETRIES", "20");
    let mut jobs = BTreeMap::new();
    for life in 0..kills {
        let lives = random.random_range(1..120);
        live_and_die(setup.start(), life, lives, &mut jobs).await;
    }

    let service = setup.start();
    let mut calls_on_record = 0;
    let mut ends = BTreeMap::new();
    for (id, query) in &jobs {
        let ended = service.ended(id).await.body;
        assert_eq!(ended["query"], **query, "a job kept its question");
        assert_eq!(ended["status"], "succeeded", "{ended:#}");
        assert!(ended["result"]["summary"].as_str().unwrap().starts_with("SIMULATED ANSWER"));
        let attempts = ended["attempts"].as_array().unwrap();
        assert!(attempts.len() <= kills + 1, "{attempts:?}");
        let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=attempts.len() as u64).collect::<Vec<_>>(), "the history has no gap");
        let (last, earlier) = attempts.split_last().unwrap();
        assert_eq!(last["outcome"], "succeeded");
        for attempt in earlier {
            assert_eq!(attempt["outcome"], "outcome_unknown", "only a kill ended attempts: {attempt}");
            assert_eq!(attempt["may_have_been_billed"], true);
        }
        calls_on_record += attempts.len();
        ends.insert(id.clone(), ended["finished_at"].clone());
    }
    // Jobs whose 202 was lost with its connection may be there besides; none may be there twice.
    let listed = every_listed_id(&service).await;
    let unique: BTreeSet<_> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "no job is there twice");
    assert!(jobs.keys().all(|id| unique.contains(id)));
    assert!(calls_on_record >= jobs.len());

    // An end is an end: another start changes nothing.
    service.kill();
    let service = setup.start();
    for (id, finished_at) in &ends {
        assert_eq!(service.get(&format!("/api/v1/jobs/{id}")).await.body["finished_at"], *finished_at);
    }
}

async fn every_listed_id(service: &Service) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/admin/jobs?limit=200{cursor}");
        let page = service.admin_get(&path).await;
        assert_eq!(page.status, 200, "{page:#?}");
        ids.extend(page.body["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}
