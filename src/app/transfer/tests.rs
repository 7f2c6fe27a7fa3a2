//! What a move does at moments that a command can't be stopped at.

use secrecy::SecretString;

use super::{error::TransferError, open::Open, place::Place};
use crate::{
    clock::Clock,
    ledger::{Day, Sums},
    metrics::Metrics,
    store::{
        JobStore, Ledger, Registry, archive,
        postgres::{Member, PostgresStore, tests::database::Postgres},
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
