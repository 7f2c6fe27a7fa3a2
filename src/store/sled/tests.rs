use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use proptest::prelude::*;

use super::{keys::Seq, ledger::LedgerEntry, *};
use crate::{
    clock::SavedTime,
    job::{
        FailureClass, JobFilter, JobState, JobStatus, Owner, Priority,
        delivery::{DeliveryTry, UNNOTIFIED_RETENTION},
    },
    store::{
        EndedCounts, Totals,
        contract::{self, Heard, at, claim, job, request, spent, success},
        record,
    },
};

impl SledStore {
    /// Panics unless every list of the index agrees with its jobs.
    pub(crate) fn assert_consistent(&self) {
        let View { index, deliveries, .. } = &*self.shared.view.read();
        index.assert_consistent();
        let pending = deliveries.pending().collect();
        assert_eq!(index.unnotified(), pending, "the unnotified jobs disagree with the webhooks");
    }

    pub(crate) fn pending(&self) -> Vec<Arc<Job>> {
        self.shared.view.read().index.pending()
    }

    /// Loses what a job asks and damages nothing else, as a page that went bad on disk does.
    pub(crate) fn lose_request(&self, id: JobId) {
        let seq = self.shared.view.read().index.seq(id).unwrap();
        self.shared.disk().unwrap().tree().remove(keys::chunk(&keys::request(seq), 0)).unwrap();
        self.shared.cache.remove(seq);
    }
}

fn open(path: &Path) -> SledStore {
    let config = SledConfig { path: path.to_owned(), cache_bytes: 16 << 20, keep_answers: false };
    SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap()
}

/// As [`open`], and answers can be looked for.
fn open_with_answers(path: &Path) -> SledStore {
    let config = SledConfig { path: path.to_owned(), cache_bytes: 16 << 20, keep_answers: true };
    SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap()
}

/// What a start loads.
fn load(disk: &Disk) -> (View, Seq) {
    load::load(disk, false, &Clock::manual(at(0))).unwrap()
}

/// The files as they are now, in another folder: what a kill at this moment would leave.
fn copy_of(path: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_beside_the_jobs_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let id = Uuid::from_u128(7);
    store.put("paused".to_owned(), "yes".to_owned()).await.unwrap();
    store.append_audit(id, "an entry".to_owned(), Uuid::nil()).await.unwrap();
    let copy = copy_of(folder.path());
    let survivor = open(copy.path());
    assert_eq!(survivor.prefix("").await.unwrap(), [("paused".to_owned(), "yes".to_owned())]);
    assert_eq!(survivor.read_audit(None, 9).await.unwrap(), [(id, "an entry".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_goes_on_until_its_page_is_full_or_its_time_is_over_and_says_how_far_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let named = |n| {
        if n == 7 { Arc::new(JobRequest { query: "Rare?".to_owned(), ..JobRequest::default() }) } else { request(n) }
    };
    let all = (0..3_000).map(|n| JobRecord { job: job(n), request: named(n), attempts: Vec::new(), delivery: None });
    store.insert_all(all.collect()).await.unwrap();
    let rare = JobFilter::default().with_text(Some("rare"));
    let page = |cursor, look_time| {
        let listing = Listing { filter: rare.clone(), cursor, limit: 1, ..Listing::default() };
        let page = store.shared.list(&store.shared.disk().unwrap(), &listing, at(9_000), look_time).unwrap();
        (page.jobs.iter().map(|record| record.job.id).collect::<Vec<_>>(), page.next, page.unfinished)
    };
    let (found, _, unfinished) = page(None, Duration::from_mins(1));
    assert_eq!((found, unfinished), (vec![job(7).id], None));

    let (mut cursor, mut percents, mut found) = (None, Vec::new(), Vec::new());
    loop {
        let (jobs, next, unfinished) = page(cursor, Duration::ZERO);
        found.extend(jobs);
        percents.extend(unfinished.map(|search| search.percent));
        assert!(next.is_some() || unfinished.is_none());
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, [job(7).id], "once, however often the search stopped");
    assert!(percents.is_sorted() && percents.first() == Some(&0) && percents.last() == Some(&99), "{percents:?}");
    let (_, first, unfinished) = page(None, Duration::ZERO);
    assert_eq!(unfinished.map(|search| search.searched_to), Some(job(2_999).created_at));
    assert!(first.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_gives_one_answer_to_no_more_than_it_has_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let same = (0..600).map(|n| JobRecord::fresh(contract::asking(n, 7), request(n))).collect();
    store.insert_all(same).await.unwrap();
    claim(&store, 0, 650).await;
    let JobEvent::Succeed { report, .. } = success(1, 100) else { unreachable!() };
    let followers = (1..600).map(|n| job(n).id).collect();
    assert_eq!(store.succeed(job(0).id, 1, report, followers, at(660)).await.unwrap().len(), 1 + 512);
    assert_eq!(Heard::of(&store).await.pending().len(), 600 - 513, "the others ask for themselves");
    store.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_becomes_queued_twice_in_a_batch_is_given_an_answer_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    // Most of these rounds are one batch of the writer's.
    for n in (0..40).step_by(2) {
        let [asked, other] = [n, n + 1].map(|n| job(n).id);
        for n in [n, n + 1] {
            store.insert(contract::asking(n, 7), request(n)).await.unwrap();
        }
        claim(&store, n, 50).await;
        store.transition(other, JobEvent::Cancel { at_risk: None }, at(50)).await.unwrap();
        let changes = [
            JobEvent::Requeue { run_at: at(50) },
            JobEvent::Cancel { at_risk: None },
            JobEvent::Requeue { run_at: at(50) },
        ];
        let changes = futures_util::future::join_all(changes.map(|event| store.transition(other, event, at(50))));
        let JobEvent::Succeed { report, .. } = success(1, 100) else { unreachable!() };
        let (changed, answered) =
            futures_util::join!(changes, store.succeed(asked, 1, report, vec![other, other], at(60)));
        changed.into_iter().for_each(|change| drop(change.unwrap()));
        let answered: Vec<_> = answered.unwrap().into_iter().map(|job| job.id).collect();
        assert_eq!(answered, [asked, other]);
        assert_eq!(store.get(other).await.unwrap().unwrap().attempts.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_answer_is_found_after_a_kill_too_and_not_once_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_with_answers(folder.path());
    let question = contract::asking(0, 7).question.unwrap();
    for n in 0..3 {
        store.insert(contract::asking(n, 7), request(n)).await.unwrap();
        claim(&store, n, 10).await;
        // The first to be asked is the last to be answered.
        store.transition(job(n).id, success(1, 100), at(20 - n)).await.unwrap();
    }
    let newest = async |store: &SledStore| store.newest_answer(question).await.unwrap().map(|job| job.id);
    assert_eq!(newest(&store).await, Some(job(0).id));
    let copy = copy_of(folder.path());
    let survivor = open_with_answers(copy.path());
    assert_eq!(newest(&survivor).await, Some(job(0).id));
    survivor.remove(vec![job(0).id], at(30)).await.unwrap();
    assert_eq!(newest(&survivor).await, Some(job(1).id));
    survivor.prune(at(99), 0, 9).await.unwrap();
    assert_eq!(newest(&survivor).await, None);
    survivor.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_removed_by_several_calls_in_one_batch_leave_nothing_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..4 {
        store.insert(job(n), request(n)).await.unwrap();
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(9)).await.unwrap();
    }
    let removals = (0..4).map(|n| store.remove(vec![job(n).id], at(10)));
    let removed: usize = futures_util::future::join_all(removals).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(removed, 4);
    let copy = copy_of(folder.path());
    let survivor = open(copy.path());
    let heard = Heard::of(&survivor).await;
    assert_eq!((heard.pending().len(), heard.ended()), (0, EndedCounts::default()));
    let disk = survivor.shared.disk().unwrap();
    for seq in 1..=4 {
        assert!(disk.tree().get(keys::chunk(&keys::request(seq), 0)).unwrap().is_none(), "the request of {seq}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_keeps_the_contract() {
    let folders = std::cell::RefCell::new(Vec::new());
    contract::holds_for(async || {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        folders.borrow_mut().push(folder);
        store
    })
    .await;
}

#[tokio::test]
async fn what_was_answered_is_on_disk_at_that_moment() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), request(0)).await.unwrap();
    store.insert(job(1), request(1)).await.unwrap();
    let after_insert = copy_of(folder.path());
    claim(&store, 0, 2).await;
    let after_claim = copy_of(folder.path());
    store.transition(job(0).id, success(1, 60_000), at(3)).await.unwrap();
    let after_settle = copy_of(folder.path());

    let reopened = open(after_insert.path());
    assert_eq!(Heard::of(&reopened).await.pending(), [job(0), job(1)]);
    assert_eq!(reopened.get(job(1).id).await.unwrap().unwrap().request, request(1));
    let reopened = open(after_claim.path());
    assert!(reopened.find(job(0).id).await.unwrap().unwrap().is_running());
    let reopened = open(after_settle.path());
    let record = reopened.get(job(0).id).await.unwrap().unwrap();
    assert_eq!(record.job.status(at(4)), JobStatus::Succeeded);
    assert!(record.attempts[0].report.result.as_ref().unwrap().get().len() > 60_000);
}

#[tokio::test]
async fn a_job_whose_metadata_was_never_written_is_not_there_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).insert(job(0), request(0)).await.unwrap();
    let seq_of_orphan = 2;
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        codec::write_chunks(disk.tree(), &keys::request(seq_of_orphan), b"{\"query\":\"half\"}").unwrap();
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    assert_eq!(Heard::of(&store).await.pending().len(), 1);
    store.close().await;
    drop(store);
    let disk = Disk::open(folder.path(), 16 << 20).unwrap();
    assert_eq!(codec::read_chunks(disk.tree(), &keys::request(seq_of_orphan)).unwrap(), None);
}

/// With `CEOAGENT_TEST_BATCHES=100` it is the measurement of docs/measurements.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_waits_for_two_batches_at_most_however_many_come_at_once() {
    const SMALL: u32 = 2_000;
    let batches: u32 = std::env::var("CEOAGENT_TEST_BATCHES").map_or(20, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (store, written) = (Arc::new(open(folder.path())), Arc::new(AtomicUsize::new(0)));
    let small = (0..SMALL).map(|n| JobRecord::fresh(job(n), request(n))).collect();
    store.insert_all(small).await.unwrap();
    let writing: Vec<_> = (1..=batches)
        .map(|batch| {
            let (store, written) = (Arc::clone(&store), Arc::clone(&written));
            let of_batch = (batch * 10_000..batch * 10_000 + 1_000).map(|n| JobRecord::fresh(job(n), request(n)));
            let jobs = of_batch.collect();
            tokio::spawn(async move {
                store.insert_all(jobs).await.unwrap();
                written.fetch_add(1, SeqCst);
            })
        })
        .collect();
    while written.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let mut times = Vec::new();
    for n in 0..SMALL {
        let (before, started) = (written.load(SeqCst), std::time::Instant::now());
        if before + 5 > batches as usize {
            break;
        }
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(SMALL)).await.unwrap();
        times.push(started.elapsed());
        let passed = written.load(SeqCst) - before;
        assert!(passed <= 3, "{passed} batches were written before a cancel");
    }
    assert!(!times.is_empty());
    times.sort_unstable();
    let part = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{} cancels beside {batches} batches: p50 {:?}, p99 {:?}", times.len(), part(50), part(99));
    futures_util::future::join_all(writing).await;
}

/// Writes a batch of two jobs after the store's one up to its `steps`-th write, and what a crash then leaves is opened.
async fn after_a_batch_cut_off_at(steps: usize) -> (tempfile::TempDir, SledStore) {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).insert(job(0), request(0)).await.unwrap();
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        let (View { index, .. }, first) = load(&disk);
        let body = |n: u32| {
            let bytes = serde_json::to_vec(&*request(n)).unwrap();
            codec::write_chunks(disk.tree(), &keys::request(first + u64::from(n) - 1), &bytes).unwrap();
        };
        let metadata = |n: u32| {
            let record = record::encode(&job(n)).unwrap();
            disk.tree().insert(keys::metadata(first + u64::from(n) - 1), record).unwrap();
        };
        let writes: [&dyn Fn(); 7] = [
            &|| disk.begin_insert_all(first, 2).unwrap(),
            &|| body(1),
            &|| body(2),
            &|| disk.begin(vec![first, first + 1], &index, SavedTime::default()).unwrap(),
            &|| metadata(1),
            &|| metadata(2),
            &|| disk.end_insert_all(first).unwrap(),
        ];
        writes[..steps].iter().for_each(|write| write());
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    (folder, store)
}

#[tokio::test]
async fn a_batch_cut_off_before_its_commit_is_gone_and_leaves_nothing_and_with_it_all_is_there() {
    for steps in 0..7 {
        let (folder, store) = after_a_batch_cut_off_at(steps).await;
        assert_eq!(Heard::of(&store).await.pending().len(), 1, "after {steps} writes");
        store.assert_consistent();
        store.close().await;
        drop(store);
        let (jobs, summary) = salvage::tests::lines(folder.path()).unwrap();
        assert!(summary.is_complete(), "{summary}");
        assert_eq!(jobs.len(), 1);
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        for prefix in [&keys::INSERT_ALL[..], &keys::request(2), &keys::request(3)] {
            assert_eq!(disk.tree().scan_prefix(prefix).count(), 0, "after {steps} writes");
        }
        drop(disk);
        // What comes next is neither taken for the batch nor lost with it.
        let store = open(folder.path());
        store.insert(job(5), request(5)).await.unwrap();
        store
            .insert_all(vec![JobRecord::fresh(job(6), request(6)), JobRecord::fresh(job(7), request(7))])
            .await
            .unwrap();
        store.close().await;
        drop(store);
        assert_eq!(Heard::of(&open(folder.path())).await.pending().len(), 4, "after {steps} writes");
    }
    let (_folder, store) = after_a_batch_cut_off_at(7).await;
    assert_eq!(Heard::of(&store).await.pending().len(), 3);
    assert_eq!(store.get(job(2).id).await.unwrap().unwrap().request, request(2));
}

#[tokio::test]
async fn an_end_and_its_message_are_there_together_or_not_at_all_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), contract::request_with_callback(0)).await.unwrap();
    let before = copy_of(folder.path());
    store.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(5)).await.unwrap();
    let after = copy_of(folder.path());
    let reopened = open(after.path());
    assert_eq!(contract::due(&reopened, 5).await, [job(0).id]);

    // Cut off between the message and the end that it tells of.
    {
        let disk = Disk::open(before.path(), 16 << 20).unwrap();
        let ahead = disk.delivery(1).unwrap().unwrap().due(at(5));
        disk.write_delivery(1, &ahead).unwrap();
        // One of a job that was never committed.
        disk.write_delivery(7, &ahead).unwrap();
        disk.sync().unwrap();
    }
    let reopened = open(before.path());
    assert!(reopened.due(at(99), 9).await.unwrap().is_empty(), "there is no end to tell of");
    reopened.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(6)).await.unwrap();
    let delivery = reopened.get(job(0).id).await.unwrap().unwrap().delivery.unwrap();
    assert_eq!((delivery.number, delivery.next_at()), (1, Some(at(6))));
    reopened.close().await;
    drop(reopened);
    assert_eq!(Disk::open(before.path(), 16 << 20).unwrap().delivery(7), Ok(None));
}

#[tokio::test]
async fn an_end_whose_job_was_not_quite_queued_again_before_a_crash_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..3 {
        store.insert(job(n), contract::request_with_callback(n)).await.unwrap();
    }
    for n in 0..2 {
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(5)).await.unwrap();
    }
    let gone = store.get(job(1).id).await.unwrap().unwrap().delivery.unwrap();
    let gone = gone.tried(DeliveryTry { at: at(6), http_status: Some(410), error: None }, None);
    store.record(job(1).id, gone.clone()).await.unwrap();
    store.close().await;
    drop(store);
    // Cut off between the messages and the metadata.
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        for seq in 1..=2 {
            let ahead = disk.delivery(seq).unwrap().unwrap().withdrawn();
            disk.write_delivery(seq, &ahead).unwrap();
        }
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    store.assert_consistent();
    assert_eq!(contract::due(&store, 5).await, [job(0).id], "neither who wants no more nor who has not ended");
    let delivery = async |n| store.get(job(n).id).await.unwrap().unwrap().delivery.unwrap();
    assert_eq!(
        (delivery(0).await.number, delivery(1).await, delivery(2).await),
        (1, gone, Delivery::to("https://example.com/hook"))
    );
    assert_eq!(store.prune(at(99), 9, 9).await, Ok(1), "it is kept until it is told");
}

#[tokio::test]
async fn expired_keys_do_not_come_back_at_a_start_and_many_go_at_once() {
    const KEYS: u8 = 200;
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(at(0)));
    let open = || {
        let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        SledStore::open(config, clock.clone(), Metrics::new()).unwrap()
    };
    let known = |store: &SledStore| store.shared.view.read().keys.expired(at(u32::MAX), 1_000).len();
    let store = open();
    for n in 0..KEYS {
        let key = IdempotencyKey { key: [n; 16], body: [1; 16], expires_at: at(100) };
        let named = Job { idempotency: Some(Box::new(key)), ..job(u32::from(n)) };
        store.insert(named, request(u32::from(n))).await.unwrap();
        store.transition(job(u32::from(n)).id, JobEvent::Cancel { at_risk: None }, at(5)).await.unwrap();
    }
    // Half of them outlive their jobs.
    store.prune(at(0), usize::from(KEYS) / 2, usize::MAX).await.unwrap();
    assert_eq!(known(&store), usize::from(KEYS));
    clock.advance(Duration::from_secs(100));
    store.close().await;
    drop(store);
    let store = open();
    assert_eq!(known(&store), usize::from(KEYS) / 2, "those of jobs that are there do not come back");
    store.prune(at(0), usize::MAX, 1).await.unwrap();
    assert_eq!(known(&store), 0);
    store.close().await;
    drop(store);
    assert_eq!(known(&open()), 0);
}

#[tokio::test]
async fn a_message_that_is_due_keeps_its_job_across_a_restart_and_for_so_long() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), contract::request_with_callback(0)).await.unwrap();
    store.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(5)).await.unwrap();
    store.close().await;
    drop(store);
    let store = open(folder.path());
    store.assert_consistent();
    let long_after = at(5).plus(UNNOTIFIED_RETENTION);
    store.shared.clock.advance(long_after.since(at(0)));
    assert_eq!(store.prune(long_after, 9, 9).await, Ok(0));
    store.shared.clock.advance(Duration::from_millis(1));
    assert_eq!(store.prune(at(5), 9, 9).await, Ok(0), "it is not that old");
    assert_eq!(store.prune(long_after, 9, 9).await, Ok(1));
    assert!(store.due(long_after, 9).await.unwrap().is_empty());
    store.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_shown_before_the_end_that_it_tells_of() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    store.insert(job(0), contract::request_with_callback(0)).await.unwrap();
    let (due, ended) = {
        let reading = store.shared.view.read();
        let ended = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(5)).await }
        });
        // Until the writer waits to show the end.
        while !store.shared.view.is_locked_exclusive() {
            std::thread::yield_now();
        }
        (reading.deliveries.due(at(9), 9), ended)
    };
    ended.await.unwrap().unwrap();
    assert_eq!((due, contract::due(&*store, 9).await), (vec![], vec![job(0).id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_owes_a_message_exactly_if_it_tells_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    store.insert(job(0), contract::request_with_callback(0)).await.unwrap();
    let changes = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 1..=200 {
                store.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(n)).await.unwrap();
                store.transition(job(0).id, JobEvent::Requeue { run_at: at(n) }, at(n)).await.unwrap();
            }
        }
    });
    while !changes.is_finished() {
        let JobRecord { job, delivery, .. } = store.get(job(0).id).await.unwrap().unwrap();
        let delivery = delivery.unwrap();
        assert_eq!(delivery.next_at(), job.finished_at, "{job:?} {delivery:?}");
    }
    changes.await.unwrap();
}

#[tokio::test]
async fn of_a_batch_that_is_cut_off_nothing_is_salvaged() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).insert(job(0), request(0)).await.unwrap();
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        let (View { index, .. }, first) = load(&disk);
        disk.begin_insert_all(first, 2).unwrap();
        codec::write_chunks(disk.tree(), &keys::request(first), b"{\"query\":\"half\"}").unwrap();
        disk.begin(vec![first, first + 1], &index, SavedTime::default()).unwrap();
        disk.tree().insert(keys::metadata(first), record::encode(&job(1)).unwrap()).unwrap();
        disk.sync().unwrap();
    }
    let (jobs, summary) = salvage::tests::lines(folder.path()).unwrap();
    assert!(summary.is_complete(), "{summary}");
    assert_eq!((jobs.len(), jobs[0].contains("half")), (1, false), "{jobs:?}");
}

#[tokio::test]
async fn an_interrupted_prune_is_finished_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), request(0)).await.unwrap();
    store.insert(job(1), request(1)).await.unwrap();
    store.close().await;
    drop(store);
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        disk.tree().insert(keys::PRUNING, &1u64.to_be_bytes()).unwrap();
        let (View { index, .. }, _) = load(&disk);
        disk.begin(vec![1], &index, SavedTime::default()).unwrap();
        disk.tree().remove(keys::metadata(1)).unwrap();
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    assert!(store.find(job(0).id).await.unwrap().is_none() && store.find(job(1).id).await.unwrap().is_some());
    store.close().await;
    drop(store);
    let disk = Disk::open(folder.path(), 16 << 20).unwrap();
    assert_eq!(codec::read_chunks(disk.tree(), &keys::request(1)).unwrap(), None);
    assert!(codec::read_chunks(disk.tree(), &keys::request(2)).unwrap().is_some());
}

#[tokio::test]
async fn an_attempt_that_was_written_but_not_committed_is_no_history() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), request(0)).await.unwrap();
    claim(&store, 0, 1).await;
    store.close().await;
    drop(store);
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        codec::write_chunks(disk.tree(), &keys::attempt(1, 1), b"never committed, not even JSON").unwrap();
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    assert!(store.get(job(0).id).await.unwrap().unwrap().attempts.is_empty());
    let expire = JobEvent::Expire { attempt: 1, retry_at: None, at_risk: None };
    store.transition(job(0).id, expire, at(2)).await.unwrap();
    assert_eq!(store.get(job(0).id).await.unwrap().unwrap().attempts.len(), 1);
}

#[tokio::test]
async fn the_ledger_is_as_durable_as_the_attempts_and_never_ahead_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), request(0)).await.unwrap();
    claim(&store, 0, 1).await;
    let settle = JobEvent::Succeed { attempt: 1, report: contract::spending("a", 5) };
    store.transition(job(0).id, settle, at(2)).await.unwrap();
    let day = Day::of(at(2));
    assert_eq!(spent(&open(copy_of(folder.path()).path()), day).await.calls, 1);

    store.insert(job(1), request(1)).await.unwrap();
    claim(&store, 1, 3).await;
    store.close().await;
    drop(store);
    {
        // A settle that a crash cut off before its commit point.
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        let (View { ledger, .. }, _) = load(&disk);
        let entry = LedgerEntry { day, seq: 2, attempt: 1, model: "a".to_owned(), sums: ledger.day(day) };
        for record in ledger.records(&[entry]) {
            disk.tree().insert(record.key(), record.encode().unwrap()).unwrap();
        }
        disk.sync().unwrap();
    }
    let store = open(folder.path());
    assert_eq!(spent(&store, day).await.calls, 1, "an attempt that still runs has cost nothing yet");
    let expire = JobEvent::Expire { attempt: 1, retry_at: None, at_risk: None };
    store.transition(job(1).id, expire, at(90_000)).await.unwrap();
    store.close().await;
    drop(store);
    let store = open(folder.path());
    assert_eq!(spent(&store, day).await.calls, 1, "nor has it since it ended, another day and otherwise");
    assert_eq!(spent(&store, Day::of(at(90_000))).await.at_risk.calls, 1);
}

#[test]
fn a_store_that_is_open_can_not_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(folder.path());
    let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
    let error = SledStore::open(config, Clock::system(), Metrics::new()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_store_stops_every_start_with_its_path_and_never_becomes_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..8 {
        store.insert(job(n), request(n)).await.unwrap();
    }
    store.close().await;
    drop(store);
    let db = folder.path().join("db");
    let mut bytes = std::fs::read(&db).unwrap();
    let end = bytes.len().min(64 << 10);
    bytes[16..end].fill(0xA5);
    std::fs::write(&db, &bytes).unwrap();
    for _ in 0..2 {
        let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        let error = SledStore::open(config, Clock::system(), Metrics::new()).err().unwrap();
        assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
        assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    }
}

/// Opens what a start left half-made, and asserts that it is a whole store from then on.
async fn assert_made(folder: &Path, what: &str) {
    let open = || {
        let config = SledConfig { path: folder.to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        let store = SledStore::open(config, Clock::manual(at(0)), Metrics::new());
        store.unwrap_or_else(|error| panic!("{what}: {error}"))
    };
    let store = open();
    assert!(!folder.join("creating").exists(), "{what}");
    store.insert(job(0), request(0)).await.unwrap();
    store.close().await;
    drop(store);
    assert_eq!(open().pending().len(), 1, "{what}");
}

#[tokio::test]
async fn a_first_start_that_died_anywhere_leaves_nothing_that_stops_the_next() {
    let whole = tempfile::tempdir().unwrap();
    drop(Disk::open(whole.path(), 16 << 20).unwrap());
    let left = |db: Option<&[u8]>, conf: Option<&[u8]>| {
        let folder = tempfile::tempdir().unwrap();
        init::begin(folder.path()).unwrap();
        for (name, bytes) in [("db", db), ("conf", conf)] {
            if let Some(bytes) = bytes {
                std::fs::write(folder.path().join(name), bytes).unwrap();
            }
        }
        folder
    };
    let [db, conf] = ["db", "conf"].map(|name| std::fs::read(whole.path().join(name)).unwrap());
    assert_made(left(None, None).path(), "nothing but the mark of the making").await;
    for cut in (0..=conf.len()).step_by(9) {
        assert_made(left(None, Some(&conf[..cut])).path(), &format!("{cut} bytes of the parameters")).await;
    }
    let zeros = vec![0; conf.len()];
    assert_made(left(Some(&[]), Some(&zeros)).path(), "parameters that a power cut took").await;
    for cut in (0..=db.len()).step_by(5) {
        assert_made(left(Some(&db[..cut]), Some(&conf)).path(), &format!("{cut} bytes of the database")).await;
        let mut torn = db.clone();
        torn[cut..].fill(0);
        assert_made(left(Some(&torn), Some(&conf)).path(), &format!("zeros from byte {cut} on")).await;
    }
    assert_made(left(Some(&db), Some(&conf)).path(), "all but the removal of the mark").await;
    let bare = left(None, None);
    drop(disk::config(bare.path(), 16 << 20).open().unwrap());
    assert_made(bare.path(), "what sled makes by itself").await;
}

/// The mark of the making, where it does not belong.
#[tokio::test]
async fn a_store_with_jobs_is_never_taken_for_one_in_the_making() {
    for keeps_count in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        assert!(!folder.path().join("creating").exists(), "gone before a job can come");
        store.insert(job(0), request(0)).await.unwrap();
        store.close().await;
        drop(store);
        if !keeps_count {
            std::fs::remove_file(commit_counter::path(folder.path())).unwrap();
        }
        let damaged = copy_of(folder.path());
        for folder in [&folder, &damaged] {
            init::begin(folder.path()).unwrap();
        }
        let store = open(folder.path());
        assert_eq!(store.get(job(0).id).await.unwrap().unwrap().request, request(0));
        assert!(!folder.path().join("creating").exists());

        // sled alone would take it for empty.
        let db = std::fs::File::options().write(true).open(damaged.path().join("db")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&db, &[0xA5; 20], 0).unwrap();
        let error = Disk::open(damaged.path(), 16 << 20).unwrap_err();
        assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
        let (jobs, _) = salvage::tests::lines(damaged.path()).unwrap();
        assert!(jobs[0].contains(&job(0).id.to_string()), "{jobs:?}");
    }
}

#[tokio::test]
async fn a_snapshot_that_a_full_disk_cut_off_does_not_stop_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.insert(job(0), request(0)).await.unwrap();
    store.close().await;
    drop(store);
    let torn = folder.path().join("snap.FFFFFFFFFFFFFFFF.generating");
    for bytes in [&[][..], &[7; 500]] {
        std::fs::write(&torn, bytes).unwrap();
        let store = open(folder.path());
        assert_eq!(store.pending(), [Arc::new(job(0))], "{} bytes", bytes.len());
        assert!(!torn.exists());
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    {
        let disk = Disk::open(folder.path(), 16 << 20).unwrap();
        disk.tree().insert(keys::FORMAT, &[2]).unwrap();
        // What this program could not read, and would take for damage.
        disk.tree().insert(keys::CHECKSUM, &[0xFF; 3]).unwrap();
        disk.sync().unwrap();
    }
    let error = Disk::open(folder.path(), 16 << 20).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    let said = error.to_string();
    for words in [
        &*folder.path().display().to_string(),
        "format 2",
        "newer than the format 1 of this program",
        "start the newer",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said:?}");
    }
}

/// Damage in what was written last looks to sled like a write that a crash cut off.
#[tokio::test]
async fn no_damage_anywhere_makes_acknowledged_changes_vanish_unnoticed() {
    const JOBS: u32 = 120;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..JOBS {
        store.insert(job(n), request(n)).await.unwrap();
        claim(&store, n, n).await;
        store.transition(job(n).id, success(1, 10_000), at(n)).await.unwrap();
    }
    drop(store);
    let size = std::fs::metadata(folder.path().join("db")).unwrap().len();
    let mut refused = 0;
    for place in (0..size).step_by(96 << 10) {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        let db = std::fs::File::options().write(true).open(copy.path().join("db")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&db, &[0xA5; 4 << 10], place).unwrap();
        let config = SledConfig { path: copy.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        match SledStore::open(config, Clock::manual(at(0)), Metrics::new()) {
            Err(_) => refused += 1,
            Ok(store) => {
                let ended = EndedCounts { succeeded: JOBS as usize, ..EndedCounts::default() };
                assert_eq!(Heard::of(&store).await.ended(), ended, "damage at byte {place} of {size}");
            }
        }
    }
    assert!(refused > 0, "the damage met nothing");
}

/// A step of the random walk.
#[derive(Clone, Debug)]
enum Step {
    Insert(Priority, u32),
    Claim,
    /// Of the n-th job, for its own attempt or a stale one.
    Event(usize, u8, bool),
    Prune(usize),
    Pass(u32),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)];
    prop_oneof![
        6 => (priority, 0u32..20).prop_map(|(priority, later)| Step::Insert(priority, later)),
        6 => Just(Step::Claim),
        8 => (0usize..40, 0u8..8, proptest::bool::weighted(0.2)).prop_map(|(n, kind, stale)| Step::Event(n, kind, stale)),
        1 => (0usize..6).prop_map(Step::Prune),
        3 => (1u32..15).prop_map(Step::Pass),
        1 => Just(Step::Reopen),
    ]
}

fn event(kind: u8, attempt: u32, now: u32) -> JobEvent {
    let report = std::sync::Arc::default();
    match kind {
        0 => success(attempt, 10),
        1 => JobEvent::Retry { attempt, run_at: at(now + 5), class: FailureClass::Other, report },
        2 => JobEvent::Release { attempt, run_at: at(now), is_demoted: now.is_multiple_of(2), report },
        3 => JobEvent::Fail { attempt, code: crate::job::FailureCode::Refused, report },
        4 => JobEvent::Cancel { at_risk: None },
        5 => JobEvent::Expire { attempt, retry_at: Some(at(now)), at_risk: None },
        _ => JobEvent::Requeue { run_at: at(now + 1) },
    }
}

/// Every job as plain data: what the store must agree with at each step.
#[derive(Default)]
struct Model(Vec<Job>);

impl Model {
    /// The job that a claim at `now` must take.
    fn first_ready(&self, now: u32) -> Option<usize> {
        let ready = |job: &Job| matches!(job.state, JobState::Queued { run_at } if run_at <= at(now));
        (0..self.0.len()).filter(|&n| ready(&self.0[n])).min_by_key(|&n| (self.0[n].effective_at(), n))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_leaves_the_store_as_a_plain_model_has_it(
        steps in proptest::collection::vec(any_step(), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut store = open(folder.path());
            let mut model = Model::default();
            let mut now = 0;
            let mut inserted = 0;
            for step in steps {
                match step {
                    Step::Insert(priority, later) => {
                        let mut new = Job { priority, created_at: at(now), ..job(inserted) };
                        new.state = JobState::Queued { run_at: at(now + later) };
                        store.insert(new.clone(), request(inserted)).await.unwrap();
                        inserted += 1;
                        model.0.push(new);
                    }
                    Step::Claim => {
                        let Some(n) = model.first_ready(now) else { continue };
                        let claimed = store.claim(model.0[n].id, Owner::ANY, None, at(now)).await.unwrap();
                        model.0[n] = model.0[n].apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(now)).unwrap();
                        prop_assert_eq!(&claimed.job, &model.0[n]);
                    }
                    Step::Event(n, kind, stale) => {
                        let Some(job) = model.0.get_mut(n) else { continue };
                        let event = event(kind, job.attempt + u32::from(stale), now);
                        let expected = job.apply(&event, at(now));
                        let result = store.transition(job.id, event, at(now)).await;
                        prop_assert_eq!(result, expected.clone().map_err(StoreError::from));
                        *job = expected.unwrap_or_else(|_| job.clone());
                    }
                    Step::Prune(keep) => {
                        store.prune(at(0), keep, 64).await.unwrap();
                        let mut ends: Vec<_> = model.0.iter().enumerate()
                            .filter_map(|(n, job)| Some((job.finished_at?, n))).collect();
                        ends.sort_unstable();
                        ends.truncate(ends.len().saturating_sub(keep));
                        let mut gone: Vec<_> = ends.into_iter().map(|(_, n)| n).collect();
                        gone.sort_unstable();
                        for n in gone.into_iter().rev() {
                            model.0.remove(n);
                        }
                    }
                    Step::Pass(seconds) => now += seconds,
                    Step::Reopen => {
                        store.close().await;
                        drop(store);
                        store = open(folder.path());
                    }
                }
                store.shared.view.read().index.assert_consistent();
                let listing = Listing { limit: 200, ..Listing::default() };
                let mut listed: Vec<Job> =
                    store.list(listing, at(now)).await.unwrap().jobs.into_iter().map(|record| record.job).collect();
                listed.reverse();
                prop_assert_eq!(&listed, &model.0);
            }
            Ok(())
        })?;
    }
}

/// A feed that panics at so many changes.
struct Panics(AtomicUsize);

impl Feed for Panics {
    fn reset(&self, _: Vec<Arc<Job>>, _: Totals) {}

    fn changed(&self, _: &[Arc<Job>], _: Totals) {
        assert!(self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err(), "a feed that panics");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_writer_costs_no_durable_change_and_not_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.subscribe(Arc::new(Panics(AtomicUsize::new(1)))).await.unwrap();
    let failed = store.insert(job(0), request(0)).await;
    assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
    while store.insert(job(1), request(1)).await != Ok(Insertion::Accepted) {
        tokio::task::yield_now().await;
    }
    assert!(store.find(job(0).id).await.unwrap().is_some(), "the first was durable before the panic");
    assert!(!store.lost().is_cancelled());
    store.assert_consistent();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_does_nothing_but_panic_gives_up_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.subscribe(Arc::new(Panics(AtomicUsize::new(usize::MAX)))).await.unwrap();
    for n in 0..u32::MAX {
        if store.lost().is_cancelled() {
            break;
        }
        let failed = store.insert(job(n), request(n)).await;
        assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
    }
    assert!(store.trouble().is_some());
}
