use std::sync::Mutex;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use super::*;
use crate::{
    clock::Clock,
    job::{JobEvent, JobRequest},
    ledger::Spending,
    queue::{Policy, Submission},
    registry::Registry,
    store::{
        contract::{at, job, request_with_callback},
        fault::{Call, FaultStore, Moment},
        sled::{SledConfig, SledStore},
    },
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Callbacks to this machine are accepted.
fn local() -> Callbacks {
    Callbacks::new(vec![crate::config::values::network("127.0.0.0/8").unwrap()])
}

/// A message as it arrived.
#[derive(Debug)]
struct Arrived {
    path: String,
    id: String,
    body: Value,
}

struct Inbox {
    answers: Mutex<Vec<Response>>,
    news: UnboundedSender<Arrived>,
}

async fn take(State(inbox): State<Arc<Inbox>>, uri: Uri, headers: HeaderMap, body: String) -> Response {
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    let body = serde_json::from_str(&body).unwrap();
    let _ = inbox.news.send(Arrived { path: uri.path().to_owned(), id, body });
    let mut answers = inbox.answers.lock().unwrap();
    if answers.is_empty() { StatusCode::NO_CONTENT.into_response() } else { answers.remove(0) }
}

/// A service of only a queue, and somebody to be called who gives `answers`, then `204`.
struct World {
    queue: Queue,
    store: Arc<FaultStore<SledStore>>,
    clock: Clock,
    url: String,
    arrived: UnboundedReceiver<Arrived>,
    closing: CancellationToken,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(callbacks: Callbacks, answers: Vec<Response>) -> World {
        World::with(Policy::plain(), callbacks, answers).await
    }

    async fn with(policy: Policy, callbacks: Callbacks, answers: Vec<Response>) -> World {
        let (news, arrived) = unbounded_channel();
        let inbox = Arc::new(Inbox { answers: Mutex::new(answers), news });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take).with_state(inbox)).await });
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(at(0));
        let config = SledConfig { path: folder.path().join("queue"), cache_bytes: 16 << 20, keep_answers: false };
        let store = SledStore::open(config, clock.clone(), Metrics::new()).unwrap();
        let store = Arc::new(FaultStore::over(store));
        let closing = CancellationToken::new();
        let queue =
            Queue::open(store.clone(), clock.clone(), policy, Metrics::new(), Spending::default(), closing.clone());
        let queue = queue.await.unwrap();
        let secrets = Secrets::from_setting(&SECRET.into(), Registry::new(store.clone()), clock.clone()).unwrap();
        let public_url = Some(crate::config::values::origin("https://ceo.example").unwrap());
        let webhooks =
            Webhooks::new(queue.clone(), store.clone(), secrets, callbacks, public_url, Metrics::new()).unwrap();
        tokio::spawn(webhooks.run(closing.clone()));
        World { queue, store, clock, url, arrived, closing, _folder: folder }
    }

    /// A job that has just been cancelled, with its callback at `url`.
    async fn ended(&self, url: &str) -> JobId {
        let request = JobRequest {
            query: "Why?".to_owned(),
            callback_url: Some(url.to_owned()),
            metadata: [("team".to_owned(), "ops".to_owned())].into(),
            ..JobRequest::default()
        };
        let submission = Submission { request, ..Submission::default() };
        let id = self.queue.enqueue(submission).await.unwrap().record.job.id;
        self.queue.cancel(id).await.unwrap();
        id
    }

    /// The delivery once it has come to `tries` tries.
    async fn tried(&self, id: JobId, tries: usize) -> Delivery {
        loop {
            let delivery = self.queue.get(id).await.unwrap().delivery.unwrap();
            if delivery.tries.len() >= tries {
                return delivery;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_is_sent_with_its_labels_its_url_and_its_page() {
    let mut world = World::new(local(), vec![]).await;
    let id = world.ended(&format!("{}/hook", world.url)).await;
    let Arrived { path, id: message, body } = world.arrived.recv().await.unwrap();
    assert_eq!((path.as_str(), message), ("/hook", format!("msg_{}_1", id.simple())));
    assert_eq!(body["type"], "job.cancelled");
    assert_eq!(body["timestamp"], body["data"]["finished_at"]);
    assert_eq!(body["data"]["callback_url"], format!("{}/hook", world.url));
    assert_eq!((&body["data"]["id"], &body["data"]["metadata"]["team"]), (&id.to_string().into(), &"ops".into()));
    assert_eq!(body["data"]["page"], format!("https://ceo.example/jobs/{id}"));
    let delivery = world.tried(id, 1).await;
    assert_eq!((delivery.state, delivery.tries[0].http_status), (DeliveryState::Delivered, Some(204)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_accepted_is_sent_again_under_the_same_id_and_no_redirect_is_folldue_delivery() {
    let redirect = (StatusCode::TEMPORARY_REDIRECT, [("location", "/elsewhere")]).into_response();
    let mut world = World::new(local(), vec![StatusCode::INTERNAL_SERVER_ERROR.into_response(), redirect]).await;
    let id = world.ended(&world.url).await;
    let mut ids = Vec::new();
    for (status, pause) in [(500, 5), (307, 300)] {
        ids.push(world.arrived.recv().await.unwrap());
        let delivery = world.tried(id, ids.len()).await;
        assert_eq!(delivery.tries.last().unwrap().http_status, Some(status));
        assert_eq!(delivery.next_at(), Some(world.clock.now().plus(Duration::from_secs(pause))));
        world.clock.advance(Duration::from_secs(pause));
    }
    ids.push(world.arrived.recv().await.unwrap());
    assert!(ids.iter().all(|arrived| arrived.path == "/" && arrived.id == ids[0].id), "{ids:?}");
    assert_eq!(world.tried(id, 3).await.state, DeliveryState::Delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_answers_410_gets_no_further_message_of_the_job() {
    let mut world = World::new(local(), vec![StatusCode::GONE.into_response()]).await;
    let gone = world.ended(&world.url).await;
    world.arrived.recv().await.unwrap();
    assert_eq!(world.tried(gone, 1).await.state, DeliveryState::Disabled);
    world.queue.requeue(gone, None).await.unwrap();
    world.queue.cancel(gone).await.unwrap();
    let other = world.ended(&world.url).await;
    assert!(world.arrived.recv().await.unwrap().id.contains(&other.simple().to_string()), "only the other one");
    world.tried(other, 1).await;
    assert_eq!(world.queue.get(gone).await.unwrap().delivery.unwrap().state, DeliveryState::Disabled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_end_is_a_second_message() {
    let mut world = World::new(local(), vec![]).await;
    let id = world.ended(&world.url).await;
    let first = world.arrived.recv().await.unwrap();
    world.tried(id, 1).await;
    world.queue.requeue(id, None).await.unwrap();
    assert_eq!(world.queue.get(id).await.unwrap().delivery.unwrap().state, DeliveryState::Waiting);
    world.queue.cancel(id).await.unwrap();
    assert_ne!(world.arrived.recv().await.unwrap().id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_resent_while_its_next_try_is_hours_away_goes_at_once() {
    let mut world = World::new(local(), vec![StatusCode::INTERNAL_SERVER_ERROR.into_response()]).await;
    let id = world.ended(&world.url).await;
    let first = world.arrived.recv().await.unwrap();
    let failed = world.tried(id, 1).await;
    assert!(failed.next_at().unwrap() > world.clock.now());
    let resent = world.queue.operations().resend_webhook(id, None).await.unwrap();
    assert_eq!(resent.delivery.unwrap().next_at(), Some(world.clock.now()));
    assert_eq!(world.arrived.recv().await.unwrap().id, first.id);
    let delivered = world.tried(id, 2).await;
    assert_eq!((delivered.state, delivered.failed), (DeliveryState::Delivered, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_delays_nobody_elses_message() {
    let mut world = World::new(local(), vec![]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}/", silent.local_addr().unwrap());
    let count = std::env::var("CEOAGENT_TEST_DEAD_WEBHOOKS").map_or(320, |count| count.parse().unwrap());
    futures_util::future::join_all((0..count).map(|_| world.ended(&dead))).await;
    // Its slots are taken.
    let (mut held, _) = silent.accept().await.unwrap();
    held.read_u8().await.unwrap();
    let started = Instant::now();
    let id = world.ended(&world.url).await;
    assert!(world.arrived.recv().await.unwrap().id.contains(&id.simple().to_string()));
    println!("{count} messages to a receiver that never answers: another one came after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn nothing_is_due_before_the_end_of_the_job() {
    let mut record = JobRecord::fresh(job(0), request_with_callback(0));
    assert_eq!(due_delivery(&record), None);
    let due = Delivery::to("https://example.com").due(at(5));
    record.delivery = Some(due.clone());
    assert_eq!(due_delivery(&record), None);
    record.job = record.job.apply(&JobEvent::Cancel { at_risk: None }, at(5)).unwrap();
    assert_eq!(due_delivery(&record), Some(&due));
    record.delivery = Some(due.withdrawn());
    assert_eq!(due_delivery(&record), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_waits_for_a_receiver_that_is_down() {
    let down = || StatusCode::SERVICE_UNAVAILABLE.into_response();
    let policy = Policy { max_finished: 4, keep_finished_for: Duration::from_hours(2), ..Policy::plain() };
    let world = World::with(policy, local(), (0..6).map(|_| down()).collect()).await;
    let ids = [world.ended(&world.url).await, world.ended(&world.url).await];
    // At the third they are too old.
    for (tries, pause) in [(1, 5), (2, 3 * 60 * 60), (3, 30 * 60)] {
        for id in ids {
            assert!(world.tried(id, tries).await.next_at().is_some());
        }
        assert!(!world.queue.work().sweep().await.unwrap());
        world.clock.advance(Duration::from_secs(pause));
    }
    for id in ids {
        assert_eq!(world.tried(id, 4).await.state, DeliveryState::Delivered);
    }
    world.queue.work().sweep().await.unwrap();
    for id in ids {
        assert!(matches!(world.queue.get(id).await, Err(QueueError::NotFound(_))), "its message is delivered");
    }
}

#[tokio::test]
async fn a_message_whose_sending_panics_is_sent_again_whatever_else_is_under_way() {
    let mut world = World::new(local(), vec![]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.ended(&format!("http://{}/", silent.local_addr().unwrap())).await;
    let (mut never_answered, _) = silent.accept().await.unwrap();
    never_answered.read_u8().await.unwrap();

    // Its insertion and its end pass.
    world.store.fail_after(2, Moment::Panic);
    let id = world.ended(&world.url).await;
    let first = world.arrived.recv().await.unwrap();
    while world.store.is_armed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.store.take_fired(), [(Call::NoteDelivery(id), Moment::Panic)]);
    tokio::time::pause();
    tokio::time::advance(UNWRITTEN_PAUSE).await;
    tokio::time::resume();
    let second = tokio::time::timeout(Duration::from_secs(30), world.arrived.recv()).await.unwrap().unwrap();
    assert_eq!(second.id, first.id);
    assert_eq!(world.tried(id, 1).await.state, DeliveryState::Delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_a_private_address_is_not_called() {
    let mut world = World::new(Callbacks::default(), vec![]).await;
    let port = world.url.rsplit(':').next().unwrap().to_owned();
    for (url, why) in [
        (format!("https://localhost:{port}/"), "the host has no public address"),
        ("https://no-such-host.invalid/".to_owned(), "the host has no public address"),
        (format!("https://127.0.0.1:{port}/"), "not a public address"),
        (format!("http://localhost:{port}/"), "starts with https://"),
    ] {
        let id = world.ended(&url).await;
        let delivery = world.tried(id, 1).await;
        let error = delivery.tries[0].error.clone().unwrap();
        assert!(error.contains(why) && delivery.next_at().is_some(), "{url}: {error}");
    }
    assert!(world.arrived.try_recv().is_err(), "nobody was called");
}

#[test]
fn a_retry_after_is_in_seconds_or_a_date() {
    let now = Timestamp::from_millis(1_795_428_600_000);
    let wait = |value: &str| {
        let headers = header::HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        retry_after(&headers, now)
    };
    let date = |seconds| {
        let now = std::time::UNIX_EPOCH + Duration::from_millis(1_795_428_600_000);
        httpdate::fmt_http_date(now + Duration::from_secs(seconds))
    };
    assert_eq!(wait(" 120 "), Some(Duration::from_secs(120)));
    assert_eq!(wait(&date(90)), Some(Duration::from_secs(90)));
    assert_eq!(wait("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
    assert_eq!((wait("soon"), retry_after(&header::HeaderMap::new(), now)), (None, None));
}
