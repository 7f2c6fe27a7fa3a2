//! What a move does at moments that a command can't be stopped at.

use secrecy::SecretString;

use super::{error::TransferError, export, import, move_all, open::Open, place::Place};
use crate::{
    app::parts,
    clock::Clock,
    job::{JobEvent, JobRecord, delivery::DeliveryState},
    ledger::{Day, Sums},
    metrics::Metrics,
    store::{
        JobStore, Ledger, Registry,
        archive::{self, Writer},
        contract::{at, job, request_with_callback},
        postgres::{Member, PostgresStore, tests::database::Postgres},
        sled::{SledStore, salvage},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_between_the_first_look_and_the_mark_stops_the_move() {
    let postgres = Postgres::start();
    let (clock, url) = (Clock::system(), SecretString::from(postgres.create("jobs")));
    let target = Open::target(&Place::Database(url.clone()), &clock).await.unwrap();
    let node = PostgresStore::open(&url, &Member::COMMAND, clock, Metrics::new()).await.unwrap();
    let error = target.begin("the data folder x").await.unwrap_err();
    assert!(matches!(error, TransferError::InUse(_)), "{error}");
    assert_eq!(archive::marked(&node).await, Ok(None), "the node may go on");
    node.close().await;
    drop(node);
    while target.check_alone(1).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(target.begin("the data folder x").await.unwrap());
    assert!(target.begin("the data folder y").await.unwrap(), "another move may continue");
    let error = target.begin(&Open::archive(uuid::Uuid::nil())).await.unwrap_err();
    assert!(matches!(error, TransferError::Half(..)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_a_moment_saves_the_service_time() {
    let postgres = Postgres::start();
    let place = Place::Database(SecretString::from(postgres.create("jobs")));
    Open::target(&place, &Clock::system()).await.unwrap().store.close().await;
    assert_eq!(postgres.sql("jobs", "select clock is not null from ceoagent.seat"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_ledger_of_a_database_is_read_however_many_changes_came_before() {
    let postgres = Postgres::start();
    let (clock, url) = (Clock::system(), SecretString::from(postgres.create("jobs")));
    let node = PostgresStore::open(&url, &Member::COMMAND, clock.clone(), Metrics::new()).await.unwrap();
    node.put("a".to_owned(), "1".to_owned()).await.unwrap();
    node.add(Day::from_number(20_000), "model".to_owned(), Sums { calls: 1, ..Sums::default() }).await.unwrap();
    node.close().await;
    drop(node);
    postgres.sql("jobs", "update ceoagent.feed set n = 9000 where n = 2");
    let fill = "insert into ceoagent.feed \
                select more.n, body from ceoagent.feed, generate_series(2, 8999) more(n) where feed.n = 1";
    postgres.sql("jobs", fill);
    let source = Open::source(&Place::Database(url), &clock).await.unwrap();
    assert_eq!(source.store.days(9).await.unwrap().len(), 1);
}

/// A store of a pending job and one that ended, both with a callback URL and without a stored webhook.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_the_webhook_that_it_should_have_is_moved_imported_and_salvaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    let open = |name| SledStore::open(parts::store(&path(name), false), Clock::system(), Metrics::new()).unwrap();
    let source = open("data");
    let ended = job(1).apply(&JobEvent::Cancel { at_risk: None }, at(1)).unwrap();
    let record = |job, n| JobRecord { delivery: None, ..JobRecord::fresh(job, request_with_callback(n)) };
    source.import(vec![record(job(0), 0), record(ended, 1)], None).await.unwrap();
    source.insert(job(2), request_with_callback(2)).await.unwrap();
    source.transition(job(2).id, JobEvent::Cancel { at_risk: None }, at(2)).await.unwrap();
    source.close().await;
    drop(source);

    let data = Place::Folder(path("data"));
    let [mut exported, mut salvaged] =
        [(); 2].map(|()| Writer::new(Vec::new(), |line| line.into(), Clock::system().now(), false));
    export(&data, &mut exported).await.unwrap();
    salvage::export(&parts::store_folder(&path("data")), &mut salvaged).unwrap();
    import(&exported.out()[..], &Place::Folder(path("exported")), &mut |_| {}).await.unwrap();
    import(&salvaged.out()[..], &Place::Folder(path("salvaged")), &mut |_| {}).await.unwrap();
    move_all(&data, &Place::Folder(path("moved")), &mut |_| {}).await.unwrap();

    let states = async |name| {
        let store = open(name);
        let mut states = Vec::new();
        for n in 0..3 {
            let webhook = store.get(job(n).id).await.unwrap().unwrap().delivery;
            states.push(webhook.map(|webhook| (webhook.state, webhook.number)));
        }
        store.close().await;
        states
    };
    let due = Some((DeliveryState::Pending { next_at: at(2) }, 1));
    let complete = [Some((DeliveryState::Waiting, 0)), Some((DeliveryState::Skipped, 0)), due];
    assert_eq!(states("exported").await, complete);
    assert_eq!(states("salvaged").await, complete, "and who waits for a message gets it");
    assert_eq!(states("moved").await, [None, None, due], "a move changes nothing");
}
