//! Load that ends with its service, and what must hold afterwards of all that it was told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};

use crate::harness::{Service, client};

const CLIENTS: usize = 8;

/// What clients were told, over any number of lives of the service.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Each job that was answered `202`, with its question.
    pub(crate) accepted: BTreeMap<String, String>,
    /// Each job whose end somebody was told, with the moment of it.
    ended: BTreeMap<String, Value>,
}

enum News {
    Accepted { id: String, query: String },
    Ended { id: String, finished_at: Value },
}

/// Clients that ask, and ask for answers, until the service dies.
pub(crate) struct Load {
    clients: JoinSet<()>,
    news: mpsc::UnboundedReceiver<News>,
}

impl Load {
    /// On `service`, in its `life`-th life.
    pub(crate) fn start(service: &Service, life: usize) -> Load {
        let (sender, news) = mpsc::unbounded_channel();
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (base, sender) = (service.base().to_owned(), sender.clone());
            clients.spawn(async move {
                ask_until_death(&base, &format!("team {number} of life {life}"), &sender).await;
            });
        }
        Load { clients, news }
    }

    /// Notes news until `count` more jobs were accepted.
    pub(crate) async fn accepted(&mut self, count: usize, ledger: &mut Ledger) {
        let wanted = ledger.accepted.len() + count;
        while ledger.accepted.len() < wanted {
            ledger.note(self.news.recv().await.expect("the service died by itself"));
        }
    }

    /// Ends the clients of a service that lives, and notes what came.
    pub(crate) async fn stop(mut self, ledger: &mut Ledger) {
        // An answer that none received may have been given.
        self.clients.shutdown().await;
        self.end(ledger).await;
    }

    /// Notes what came until the end. The service must be dead.
    pub(crate) async fn end(mut self, ledger: &mut Ledger) {
        self.clients.join_all().await;
        while let Some(news) = self.news.recv().await {
            ledger.note(news);
        }
    }
}

/// Posts, and looks after the job before, until there is no answer any more.
async fn ask_until_death(base: &str, name: &str, news: &mpsc::UnboundedSender<News>) {
    let client = client();
    let mut last: Option<String> = None;
    for n in 0.. {
        let query = format!("Should {name} proceed with plan {n}?");
        let body = serde_json::json!({ "query": query });
        let Ok(answer) = client.post(format!("{base}/api/v1/analyze")).json(&body).send().await else { return };
        if answer.status() != 202 {
            return;
        }
        // A 202 whose body was cut off by the end was not received.
        let Ok(job) = answer.json::<Value>().await else { return };
        let id = job["id"].as_str().unwrap().to_owned();
        let _ = news.send(News::Accepted { id: id.clone(), query });
        if let Some(id) = last.replace(id) {
            let Ok(answer) = client.get(format!("{base}/api/v1/jobs/{id}")).send().await else { return };
            let Ok(mut job) = answer.json::<Value>().await else { return };
            if job["status"] == "succeeded" {
                let _ = news.send(News::Ended { id, finished_at: job["finished_at"].take() });
            }
        }
    }
}

impl Ledger {
    fn note(&mut self, news: News) {
        match news {
            News::Accepted { id, query } => drop(self.accepted.insert(id, query)),
            News::Ended { id, finished_at } => drop(self.ended.insert(id, finished_at)),
        }
    }

    /// Asserts that every accepted job is there with its question, and every end that was told still stands.
    pub(crate) async fn assert_kept(&self, service: &Service) {
        for (id, query) in &self.accepted {
            let answer = service.get(&format!("/api/v1/jobs/{id}")).await;
            assert_eq!(answer.status, 200, "a job that was accepted is lost: {query} {answer:#?}");
            assert_eq!(answer.body["query"], **query, "a job kept its question");
            if let Some(finished_at) = self.ended.get(id) {
                assert_eq!(answer.body["finished_at"], *finished_at, "an end is an end: {:#}", answer.body);
            }
        }
    }

    /// Waits for the end of every accepted job and asserts that each came there by one success, after at most `deaths`
    /// attempts that died with the service, and that the listing has no job twice. Notes the ends.
    pub(crate) async fn assert_ended_once(&mut self, service: &Service, deaths: usize) {
        for (id, query) in &self.accepted {
            let ended = service.ended(id).await.body;
            assert_eq!(ended["query"], **query, "a job kept its question");
            assert_eq!(ended["status"], "succeeded", "{ended:#}");
            assert!(ended["result"]["summary"].as_str().unwrap().starts_with("SIMULATED ANSWER"));
            let attempts = ended["attempts"].as_array().unwrap();
            assert!(attempts.len() <= deaths + 1, "{attempts:?}");
            let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
            assert_eq!(numbers, (1..=attempts.len() as u64).collect::<Vec<_>>(), "the history has no gap");
            let (last, earlier) = attempts.split_last().unwrap();
            assert_eq!(last["outcome"], "succeeded");
            for attempt in earlier {
                // Released: the store was down before the call was made.
                let is_unknown = attempt["outcome"] == "outcome_unknown";
                assert!(is_unknown || attempt["outcome"] == "released", "only a death ended attempts: {attempt}");
                assert_eq!(attempt["may_have_been_billed"], is_unknown);
            }
            let finished_at = ended["finished_at"].clone();
            if let Some(told) = self.ended.insert(id.clone(), finished_at.clone()) {
                assert_eq!(finished_at, told, "a job ended twice: {ended:#}");
            }
        }
        // Jobs whose 202 was lost with its connection may be there besides; none may be there twice.
        let listed = every_listed_id(service).await;
        let unique: BTreeSet<_> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len(), "no job is there twice");
        assert!(self.accepted.keys().all(|id| unique.contains(id)));
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
