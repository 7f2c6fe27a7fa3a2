//! The suite that every store passes: what [`super::JobStore`] promises, tried. Stores call [`holds_for`] with a way to
//! make one; how a store survives a crash is tested beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;

use super::{
    EndedCounts, Feed, Insertion, Store, StoreError, Totals,
    archive::{self, Reader, Record, Scope},
};
use crate::{
    clock::Timestamp,
    job::{
        AtRisk, AttemptOutcome, AttemptReport, FailureClass, FailureCode, IdempotencyKey, Job, JobEvent, JobFilter,
        JobId, JobRecord, JobRequest, JobState, JobStatus, Listing, MAX_ATTEMPTS, Order, Owner, Priority, TokenUsage,
        TransitionError, caller,
        delivery::{Delivery, DeliveryTry},
    },
    ledger::{self, Day, Risk, Spent, Sums, UNKNOWN_MODEL},
};

/// What a call may cost.
pub(crate) const RISK: AtRisk = AtRisk { input_tokens: 1, output_tokens: 1, nanodollars: Some(1) };

/// A moment of the suite.
pub(crate) fn at(seconds: u32) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + i64::from(seconds) * 1_000)
}

/// The `n`-th job of a test, submitted in second `n`.
pub(crate) fn job(n: u32) -> Job {
    Job::new(uuid::Uuid::from_u128(u128::from(n) + 1), Priority::Normal, at(n))
}

/// What it asks.
pub(crate) fn request(n: u32) -> Arc<JobRequest> {
    Arc::new(JobRequest { query: format!("question {n}"), ..JobRequest::default() })
}

/// A success with a memo of about `bytes`.
pub(crate) fn success(attempt: u32, bytes: usize) -> JobEvent {
    let memo = serde_json::json!({ "summary": "x".repeat(bytes) });
    let report = AttemptReport {
        result: serde_json::value::to_raw_value(&memo).ok(),
        raw_answer: Some("as it came".to_owned()),
        ..AttemptReport::default()
    };
    JobEvent::Succeed { attempt, report: Arc::new(report) }
}

/// Everything, on a fresh store each.
pub(crate) async fn holds_for<S: Store, F: AsyncFn() -> S>(fresh: F) {
    tells_the_feed_of_every_change_in_order(&fresh().await).await;
    gives_each_job_to_one_claimant(fresh().await).await;
    takes_a_job_together_with_its_claim(&fresh().await).await;
    gives_an_answer_to_the_followers_that_still_want_it(&fresh().await).await;
    refuses_a_cancel_that_does_not_know_of_the_attempt(&fresh().await).await;
    keeps_requests_results_and_history(&fresh().await).await;
    folds_releases_in_a_row_and_bounds_the_history(&fresh().await).await;
    refuses_what_the_life_cycle_refuses_and_changes_nothing(&fresh().await).await;
    lists_page_by_page_in_both_orders_and_both_ways(&fresh().await).await;
    looks_for_what_was_asked_and_answered(&fresh().await).await;
    removes_what_has_ended_and_nothing_else(&fresh().await).await;
    keeps_settings_and_an_audit_log(&fresh().await).await;
    announces_each_changed_setting_to_all_who_watch(&fresh().await).await;
    prunes_oldest_ends_first(&fresh().await).await;
    keeps_jobs_whose_message_is_due(&fresh().await).await;
    bounds_jobs_whose_message_is_due(&fresh().await).await;
    keeps_one_job_a_key(fresh().await).await;
    takes_jobs_together_or_not_at_all(&fresh().await).await;
    takes_over_the_jobs_of_another_store(&fresh().await, &fresh().await).await;
    puts_imported_jobs_at_their_places(&fresh().await).await;
    moves_all_that_it_holds_to_another_store(fresh().await, fresh().await).await;
    owes_a_message_for_each_end_of_a_job_with_a_callback(&fresh().await).await;
    sends_a_message_again_and_lists_those_that_fail(&fresh().await).await;
    sends_the_message_of_an_end_after_a_skipped_one(&fresh().await).await;
    adds_up_what_attempts_cost_and_outlives_their_jobs(&fresh().await).await;
}

/// What an attempt saw that used so many tokens of a model.
pub(crate) fn spending(model: &str, tokens: u64) -> Arc<AttemptReport> {
    Arc::new(AttemptReport {
        model: Some(model.to_owned()),
        usage: Some(TokenUsage { output_tokens: tokens, ..TokenUsage::default() }),
        nanodollars: Some(tokens * 10),
        ..AttemptReport::default()
    })
}

async fn add(store: &impl Store, jobs: impl IntoIterator<Item = Job>) {
    for (n, job) in (0..).zip(jobs) {
        store.insert(job, request(n)).await.unwrap();
    }
}

async fn find(store: &impl Store, n: u32) -> Option<Job> {
    store.find(job(n).id).await.unwrap()
}

/// Which of the first `count` jobs are there.
async fn there(store: &impl Store, count: u32) -> Vec<u32> {
    let mut there = Vec::new();
    for n in 0..count {
        there.extend(find(store, n).await.map(|_| n));
    }
    there
}

/// What a day cost.
pub(crate) async fn spent(store: &impl Store, day: Day) -> Sums {
    let days = store.days(usize::MAX).await.unwrap();
    ledger::total(days.iter().filter(|sums| sums.day == day).flat_map(|sums| sums.models.values()))
}

/// Claims job `n`.
pub(crate) async fn claim(store: &impl Store, n: u32, now: u32) -> Job {
    store.claim(job(n).id, Owner::ANY, None, at(now)).await.unwrap().job
}

/// A feed that notes what it hears.
#[derive(Default)]
pub(crate) struct Heard(Mutex<(BTreeMap<JobId, Job>, Vec<JobId>, Totals)>);

impl Heard {
    /// Of the changes of this store.
    pub(crate) async fn of(store: &impl Store) -> Arc<Heard> {
        let heard = Arc::<Heard>::default();
        store.subscribe(Arc::clone(&heard) as Arc<dyn Feed>).await.unwrap();
        heard
    }

    /// The pending jobs.
    pub(crate) fn pending(&self) -> Vec<Job> {
        self.0.lock().unwrap().0.values().cloned().collect()
    }

    pub(crate) fn ended(&self) -> EndedCounts {
        self.totals().ended
    }

    pub(crate) fn totals(&self) -> Totals {
        self.0.lock().unwrap().2
    }

    /// What was spent on the newest day of the ledger.
    fn spent(&self) -> Spent {
        self.totals().spent
    }

    /// Every change since the last time, by its job.
    fn take_changes(&self) -> Vec<JobId> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

impl Feed for Heard {
    fn reset(&self, pending: Vec<Arc<Job>>, totals: Totals) {
        let pending = pending.into_iter().map(|job| (job.id, (*job).clone())).collect();
        *self.0.lock().unwrap() = (pending, Vec::new(), totals);
    }

    fn changed(&self, jobs: &[Arc<Job>], totals: Totals) {
        let mut heard = self.0.lock().unwrap();
        for job in jobs {
            heard.1.push(job.id);
            heard.0.remove(&job.id);
            if !job.state.is_final() {
                heard.0.insert(job.id, (**job).clone());
            }
        }
        heard.2 = totals;
    }
}

async fn tells_the_feed_of_every_change_in_order(store: &impl Store) {
    add(store, [job(0), job(1)]).await;
    let heard = Heard::of(store).await;
    assert_eq!((heard.pending(), heard.ended()), (vec![job(0), job(1)], EndedCounts::default()), "what was there");
    add(store, [job(2)]).await;
    let claimed = claim(store, 0, 10).await;
    assert_eq!(heard.pending(), [claimed.clone(), job(1), job(2)]);
    store.transition(job(0).id, success(1, 1), at(11)).await.unwrap();
    store.transition(job(1).id, JobEvent::Cancel { at_risk: None }, at(11)).await.unwrap();
    assert_eq!(heard.take_changes(), [2, 0, 0, 1].map(|n| job(n).id));
    let ended = EndedCounts { succeeded: 1, cancelled: 1, ..EndedCounts::default() };
    assert_eq!((heard.pending(), heard.ended()), (vec![job(2)], ended));
    store.transition(job(1).id, JobEvent::Requeue { run_at: at(12) }, at(12)).await.unwrap();
    assert_eq!((heard.pending().len(), heard.ended().cancelled), (2, 0));
    assert_eq!(store.remove(vec![job(0).id], at(13)).await, Ok(1));
    store.transition(job(2).id, JobEvent::Cancel { at_risk: None }, at(13)).await.unwrap();
    assert_eq!(heard.ended(), EndedCounts { cancelled: 1, ..EndedCounts::default() });
    assert!(store.transition(job(2).id, success(1, 1), at(14)).await.is_err());
    assert_eq!(heard.take_changes(), [1, 2].map(|n| job(n).id), "what was refused changes nothing");
}

async fn gives_each_job_to_one_claimant<S: Store>(store: S) {
    let store = Arc::new(store);
    let later = Job { state: JobState::Queued { run_at: at(50) }, ..job(1) };
    add(&*store, [job(0), later, Job { deadline_at: Some(at(5)), ..job(2) }]).await;
    let claims: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.claim(job(0).id, Owner::ANY, None, at(10)).await })
        })
        .collect();
    let mut given = Vec::new();
    for claim in claims {
        match claim.await.unwrap() {
            Ok(claimed) => given.push(claimed),
            Err(error) => assert!(matches!(error, StoreError::Transition(_)), "{error}"),
        }
    }
    let [claimed] = &given[..] else { panic!("one claim, not {}", given.len()) };
    assert_eq!((claimed.job.state, claimed.job.attempt), (JobState::Running, 1));
    assert_eq!(claimed.request, request(0));
    for n in [1, 2] {
        let refused = store.claim(job(n).id, Owner::ANY, None, at(10)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Transition(TransitionError::Illegal { .. })), "{refused}");
    }
    assert_eq!(store.claim(job(9).id, Owner::ANY, None, at(10)).await.unwrap_err(), StoreError::NotFound(job(9).id));
    assert_eq!(claim(&*store, 1, 50).await.attempt, 1);
}

async fn takes_a_job_together_with_its_claim(store: &impl Store) {
    let claimed = job(0).apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(1)).unwrap();
    add(store, [claimed.clone()]).await;
    assert_eq!(find(store, 0).await, Some(claimed.clone()));
    assert!(store.claim(claimed.id, Owner::ANY, None, at(2)).await.is_err(), "it has its worker");
    let done = store.transition(claimed.id, success(1, 1), at(3)).await.unwrap();
    assert_eq!(done.status(at(3)), JobStatus::Succeeded);
}

async fn gives_an_answer_to_the_followers_that_still_want_it(store: &impl Store) {
    let later = Job { state: JobState::Queued { run_at: at(50) }, due_at: at(50), ..asking(3, 7) };
    add(store, [asking(0, 7), asking(1, 7), asking(2, 7), later]).await;
    claim(store, 0, 10).await;
    store.transition(job(2).id, JobEvent::Cancel { at_risk: None }, at(11)).await.unwrap();
    let JobEvent::Succeed { report, .. } = success(1, 60_000) else { unreachable!() };
    let report = Arc::new(AttemptReport { result: report.result.clone(), ..(*spending("a", 5)).clone() });
    let followers: Vec<JobId> = [1, 2, 3, 9].map(|n| job(n).id).to_vec();
    let late = store.succeed(job(0).id, 2, Arc::clone(&report), followers.clone(), at(12)).await;
    assert!(late.is_err(), "of another attempt");
    assert_eq!(find(store, 1).await.unwrap().state, asking(1, 7).state);
    let answered = store.succeed(job(0).id, 1, report, followers, at(12)).await.unwrap();
    let ids: Vec<JobId> = answered.iter().map(|job| job.id).collect();
    assert_eq!(ids, [0, 1].map(|n| job(n).id), "one was cancelled, one is for later, one never was");
    let [own, shared] = [store.get(job(0).id).await.unwrap().unwrap(), store.get(job(1).id).await.unwrap().unwrap()];
    assert_eq!([&own.job, &shared.job], [&answered[0], &answered[1]]);
    assert_eq!(shared.result().unwrap().get(), own.result().unwrap().get());
    let attempt = shared.answer().unwrap();
    assert_eq!((attempt.outcome, attempt.report.shared_with), (AttemptOutcome::Shared, Some(job(0).id)));
    assert_eq!((attempt.report.model.as_deref(), attempt.report.usage), (Some("a"), None));
    assert_eq!(spent(store, Day::of(at(12))).await.calls, 1, "paid for once");
}

async fn keeps_requests_results_and_history(store: &impl Store) {
    add(store, [job(0)]).await;
    claim(store, 0, 1).await;
    let report = Arc::new(AttemptReport { http_status: Some(529), ..AttemptReport::default() });
    store
        .transition(job(0).id, JobEvent::Retry { attempt: 1, run_at: at(2), class: FailureClass::Other, report }, at(2))
        .await
        .unwrap();
    claim(store, 0, 3).await;
    let running = store.get(job(0).id).await.unwrap().unwrap();
    assert_eq!((running.request, running.attempts.len()), (request(0), 1));
    store.transition(job(0).id, success(2, 100_000), at(4)).await.unwrap();
    let done = store.get(job(0).id).await.unwrap().unwrap();
    assert_eq!(done.job.status(at(4)), JobStatus::Succeeded);
    let numbers: Vec<_> = done.attempts.iter().map(|attempt| (attempt.number, attempt.outcome)).collect();
    assert_eq!(numbers, [(1, AttemptOutcome::Failed), (2, AttemptOutcome::Succeeded)]);
    assert_eq!(done.attempts[0].report.http_status, Some(529));
    assert!(done.attempts[1].report.result.as_ref().unwrap().get().len() > 100_000);
    assert!(store.get(job(9).id).await.unwrap().is_none());
}

async fn folds_releases_in_a_row_and_bounds_the_history(store: &impl Store) {
    add(store, [job(0)]).await;
    let mut now = 1;
    let mut run = async |event: fn(u32, u32) -> JobEvent| {
        now += 1;
        let attempt = claim(store, 0, now).await.attempt;
        store.transition(job(0).id, event(attempt, now), at(now)).await.unwrap();
    };
    let release = |attempt, now| JobEvent::Release {
        attempt,
        run_at: at(now),
        is_demoted: false,
        report: Arc::new(AttemptReport { http_status: Some(429), ..AttemptReport::default() }),
    };
    let retry = |attempt, now| {
        let (class, report) = (FailureClass::Other, Arc::default());
        JobEvent::Retry { attempt, run_at: at(now), class, report }
    };
    for _ in 0..50 {
        run(release).await;
    }
    run(retry).await;
    run(release).await;
    let history = async || store.get(job(0).id).await.unwrap().unwrap().attempts;
    let attempts = history().await;
    let entries: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.outcome, attempt.folded)).collect();
    let expected =
        [(50, AttemptOutcome::Released, 49), (51, AttemptOutcome::Failed, 0), (52, AttemptOutcome::Released, 0)];
    assert_eq!(entries, expected);
    assert_eq!((attempts[0].started_at, attempts[0].finished_at), (at(2), at(51)), "the first and the last");
    for _ in 0..MAX_ATTEMPTS {
        run(retry).await;
    }
    let numbers: Vec<u32> = history().await.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (53..153).collect::<Vec<u32>>(), "the newest");
}

async fn refuses_what_the_life_cycle_refuses_and_changes_nothing(store: &impl Store) {
    add(store, [job(0)]).await;
    assert_eq!(
        store.transition(job(7).id, JobEvent::Cancel { at_risk: None }, at(1)).await.unwrap_err(),
        StoreError::NotFound(job(7).id)
    );
    let claimed = claim(store, 0, 1).await;
    let late = store.transition(claimed.id, success(7, 1), at(2)).await.unwrap_err();
    assert!(matches!(late, StoreError::Transition(TransitionError::LeaseLost { attempt: 7, current: 1, .. })));
    assert_eq!(find(store, 0).await, Some(claimed));
}

async fn refuses_a_cancel_that_does_not_know_of_the_attempt(store: &impl Store) {
    add(store, [job(0)]).await;
    let claimed = claim(store, 0, 1).await;
    let refused = store.transition(claimed.id, JobEvent::Cancel { at_risk: None }, at(2)).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Transition(TransitionError::Illegal { status: JobStatus::Running, .. })),
        "{refused}"
    );
    assert_eq!(find(store, 0).await, Some(claimed.clone()));
    store.transition(claimed.id, JobEvent::Cancel { at_risk: Some(RISK) }, at(3)).await.unwrap();
    let record = store.get(claimed.id).await.unwrap().unwrap();
    assert_eq!((record.job.state, record.attempts[0].report.at_risk), (JobState::Cancelled, Some(RISK)));
}

async fn lists_page_by_page_in_both_orders_and_both_ways(store: &impl Store) {
    add(store, (0..5).map(job)).await;
    store.transition(job(1).id, JobEvent::Cancel { at_risk: None }, at(9)).await.unwrap();
    store.transition(job(3).id, JobEvent::Cancel { at_risk: None }, at(9)).await.unwrap();
    let page = async |statuses: &[JobStatus], order, limit, cursor| {
        let filter = JobFilter { statuses: statuses.to_vec(), ..JobFilter::default() };
        let page = store.list(Listing { filter, order, cursor, limit }, at(10)).await.unwrap();
        (page.jobs.iter().map(|record| record.job.id).collect::<Vec<_>>(), page.next, page.prev)
    };
    let ids = |numbers: &[u32]| numbers.iter().map(|n| job(*n).id).collect::<Vec<_>>();
    for (order, all) in [(Order::NewestFirst, [4, 3, 2, 1, 0]), (Order::OldestFirst, [0, 1, 2, 3, 4])] {
        let (first, next, prev) = page(&[], order, 2, None).await;
        assert_eq!((first, prev), (ids(&all[..2]), None));
        let (second, next, prev) = page(&[], order, 2, next).await;
        assert_eq!(second, ids(&all[2..4]));
        let (third, end, back) = page(&[], order, 2, next).await;
        assert_eq!((third, end), (ids(&all[4..]), None));
        assert_eq!(page(&[], order, 2, back).await.0, ids(&all[2..4]));
        let (first, next, begin) = page(&[], order, 2, prev).await;
        assert_eq!((first, begin), (ids(&all[..2]), None));
        assert_eq!(page(&[], order, 2, next).await.0, ids(&all[2..4]));
    }
    let (cancelled, _, _) = page(&[JobStatus::Cancelled], Order::OldestFirst, 10, None).await;
    assert_eq!(cancelled, ids(&[1, 3]));
    let (both, more, _) = page(&[JobStatus::Cancelled, JobStatus::Queued], Order::NewestFirst, 4, None).await;
    assert_eq!(both, ids(&[4, 3, 2, 1]));
    assert!(more.is_some());
    let (scheduled, _, _) = page(&[JobStatus::Scheduled], Order::NewestFirst, 4, None).await;
    assert!(scheduled.is_empty());
}

async fn looks_for_what_was_asked_and_answered(store: &impl Store) {
    add(store, (0..4).map(job)).await;
    let labelled = JobRequest {
        query: "Kaufen oder BAUEN?".to_owned(),
        metadata: BTreeMap::from([("team".to_owned(), "ops".to_owned())]),
        caller: Some("alice".to_owned()),
        model: Some("asked".to_owned()),
        ..JobRequest::default()
    };
    store.insert(job(4), Arc::new(labelled)).await.unwrap();
    claim(store, 0, 10).await;
    let report = AttemptReport { model: Some("answered".to_owned()), ..AttemptReport::default() };
    let failed = JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: Arc::new(report) };
    store.transition(job(0).id, failed, at(11)).await.unwrap();
    let plain = JobFilter::default;
    let find = async |filter: JobFilter| {
        let listing = Listing { filter, limit: 9, ..Listing::default() };
        let found = store.select(listing.clone(), at(20)).await.unwrap();
        let listed = store.list(listing, at(20)).await.unwrap();
        assert!(listed.jobs.iter().map(|record| record.job.id).eq(found.ids.iter().copied()));
        found.ids
    };
    assert_eq!(find(plain().with_text(Some("Question 2"))).await, [job(2).id]);
    assert_eq!(find(plain().with_text(Some("oder bauen"))).await, [job(4).id]);
    assert_eq!(find(JobFilter { caller: Some("alice".to_owned()), ..plain() }).await, [job(4).id]);
    assert_eq!(find(JobFilter { model: Some("asked".to_owned()), ..plain() }).await, [job(4).id]);
    assert_eq!(find(JobFilter { model: Some("answered".to_owned()), ..plain() }).await, [job(0).id]);
    assert_eq!(find(JobFilter { codes: vec![FailureCode::Refused], ..plain() }).await, [job(0).id]);
    let from = JobFilter { created_from: Some(at(1)), created_before: Some(at(3)), ..plain() };
    assert_eq!(find(from).await, [job(2).id, job(1).id]);
    let metadata = BTreeSet::from([("team".to_owned(), "ops".to_owned())]);
    assert_eq!(find(JobFilter { metadata, ..plain() }).await, [job(4).id]);
    let both = JobFilter { caller: Some("alice".to_owned()), priorities: vec![Priority::High], ..plain() };
    assert!(find(both).await.is_empty(), "conditions add up");
    let ids = |numbers: &[u32]| Some(numbers.iter().map(|n| job(*n).id).collect());
    assert_eq!(find(JobFilter { ids: ids(&[1, 3, 77]), ..plain() }).await, [job(3).id, job(1).id]);
    assert!(find(JobFilter { ids: ids(&[]), ..plain() }).await.is_empty(), "no ids are not all ids");
    let all = ids(&[0, 1, 2]);
    assert_eq!(find(JobFilter { ids: all.clone(), ..plain() }.with_text(Some("Question 2"))).await, [job(2).id]);
    let filter = JobFilter { ids: all, ..plain() };
    let first = store.list(Listing { filter: filter.clone(), limit: 2, ..Listing::default() }, at(20)).await.unwrap();
    assert!(first.unfinished.is_none(), "the page is full");
    let next = Listing { filter, limit: 2, cursor: first.next, ..Listing::default() };
    let next = store.select(next, at(20)).await.unwrap();
    assert_eq!((next.ids, next.next), (vec![job(0).id], None));
}

async fn removes_what_has_ended_and_nothing_else(store: &impl Store) {
    add(store, (0..3).map(job)).await;
    for n in [0, 1] {
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(9)).await.unwrap();
    }
    let ids = vec![job(0).id, job(2).id, job(7).id];
    assert_eq!(store.remove(ids, at(10)).await.unwrap(), 1);
    assert!(store.get(job(0).id).await.unwrap().is_none());
    assert!(find(store, 1).await.is_some() && find(store, 2).await.is_some());
}

async fn keeps_settings_and_an_audit_log(store: &impl Store) {
    let settings = async |prefix| {
        let settings = store.prefix(prefix).await.unwrap().into_iter();
        settings.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    for (name, value) in [("b/1", "x"), ("a", "y"), ("b/2", "z"), ("b/1", "w")] {
        store.put(name.to_owned(), value.to_owned()).await.unwrap();
    }
    assert_eq!(settings("b/").await, ["b/1=w", "b/2=z"]);
    store.delete("b/1".to_owned()).await.unwrap();
    assert_eq!(settings("").await, ["a=y", "b/2=z"]);
    changes_a_setting_only_if_it_is_as_expected(store).await;
    assert_eq!(settings("").await, ["a=y", "b/2=z"]);

    let id = |n: u128| uuid::Uuid::from_u128(n);
    for (n, text) in [(1, "one"), (2, "two"), (3, "three"), (2, "two again")] {
        store.append_audit(id(n), text.to_owned(), id(0)).await.unwrap();
    }
    let entry = |n, text: &str| (id(n), text.to_owned());
    assert_eq!(store.read_audit(None, 2).await.unwrap(), [entry(3, "three"), entry(2, "two again")]);
    assert_eq!(store.read_audit(Some(id(2)), 9).await.unwrap(), [entry(1, "one")]);
    store.append_audit(id(4), "four".to_owned(), id(2)).await.unwrap();
    assert_eq!(store.read_audit(Some(id(3)), 9).await.unwrap(), [entry(2, "two again")], "the first is too old");
}

async fn changes_a_setting_only_if_it_is_as_expected(store: &impl Store) {
    let text = |text: &str| Some(text.to_owned());
    let change = async |expected, value| store.compare_and_set("c".to_owned(), expected, value).await.unwrap();
    let mut watch = store.watch();
    assert!(!change(text("x"), text("y")).await, "it is not there");
    assert!(change(None, text("x")).await);
    assert!(!change(None, text("y")).await && !change(text("z"), None).await);
    assert_eq!(store.prefix("c").await.unwrap(), [("c".to_owned(), "x".to_owned())]);
    // Of several at once, also in one commit, one changes it.
    let all = join_all((0..8).map(|n| change(text("x"), Some(n.to_string())))).await;
    assert_eq!(all.iter().filter(|is_done| **is_done).count(), 1, "{all:?}");
    let value = store.prefix("c").await.unwrap().remove(0).1;
    assert_eq!(all.iter().position(|is_done| *is_done).unwrap().to_string(), value);
    assert!(change(Some(value), None).await && store.prefix("c").await.unwrap().is_empty());
    let announced = std::iter::from_fn(|| watch.try_recv().ok()).count();
    assert_eq!(announced, 3, "each change, and nothing else");
}

async fn announces_each_changed_setting_to_all_who_watch(store: &impl Store) {
    store.put("before".to_owned(), "x".to_owned()).await.unwrap();
    let mut watches = [store.watch(), store.watch()];
    for name in ["a", "b/1"] {
        store.put(name.to_owned(), "x".to_owned()).await.unwrap();
    }
    store.delete("a".to_owned()).await.unwrap();
    for watch in &mut watches {
        let names: Vec<String> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
        assert_eq!(names, ["a", "b/1", "a"], "before the caller is answered");
    }
}

/// A job that its client calls `name`, from second `n`, for 100 seconds.
pub(crate) fn named(n: u32, name: u8, body: u8) -> Job {
    let expires_at = at(n + 100);
    Job { idempotency: Some(Box::new(IdempotencyKey { key: [name; 16], body: [body; 16], expires_at })), ..job(n) }
}

async fn keeps_one_job_a_key<S: Store>(store: S) {
    let store = Arc::new(store);
    let racing: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.insert(named(n, 7, 1), request(n)).await.unwrap() })
        })
        .collect();
    let mut insertions = Vec::new();
    for insertion in racing {
        insertions.push(insertion.await.unwrap());
    }
    let winners = there(&*store, 4).await;
    let [winner] = winners[..] else { panic!("one job, not {winners:?}") };
    insertions.retain(|insertion| *insertion != Insertion::Accepted);
    assert_eq!(insertions, [Insertion::Existing(job(winner).id); 3]);
    assert_eq!(store.insert(named(5, 7, 2), request(5)).await, Err(StoreError::KeyReused));
    assert_eq!(store.insert(named(5, 8, 2), request(5)).await, Ok(Insertion::Accepted), "another name, another job");

    store.transition(job(winner).id, JobEvent::Cancel { at_risk: None }, at(6)).await.unwrap();
    assert_eq!(store.prune(at(0), 0, 10).await.unwrap(), 1);
    assert_eq!(store.insert(named(9, 7, 1), request(9)).await, Ok(Insertion::Existing(job(winner).id)), "it is gone");
    assert_eq!(store.insert(named(winner + 100, 7, 2), request(0)).await, Ok(Insertion::Accepted), "out of force");
}

async fn adds_up_what_attempts_cost_and_outlives_their_jobs(store: &impl Store) {
    const DAY: u32 = 24 * 60 * 60;
    let day = |seconds| Day::of(at(seconds));
    let sums = |calls, tokens| {
        let mut sums = Sums { calls, nanodollars: tokens * 10, ..Sums::default() };
        sums.tokens.output_tokens = tokens;
        sums
    };
    let settle = async |n: u32, event, now| store.transition(job(n).id, event, at(now)).await.unwrap();
    add(store, (0..4).map(job)).await;
    claim(store, 0, 10).await;
    let (run_at, class) = (at(11), FailureClass::Other);
    settle(0, JobEvent::Retry { attempt: 1, run_at, class, report: spending("a", 5) }, 11).await;
    assert_eq!(spent(store, day(11)).await, sums(1, 5), "a failed attempt is billed all the same");
    claim(store, 0, 12).await;
    settle(0, JobEvent::Succeed { attempt: 2, report: spending("b", 7) }, DAY).await;
    assert_eq!(
        (spent(store, day(11)).await, spent(store, day(DAY)).await),
        (sums(1, 5), sums(1, 7)),
        "by the day of its end"
    );
    store.transition(job(0).id, JobEvent::Succeed { attempt: 2, report: spending("b", 7) }, at(DAY)).await.unwrap_err();

    let at_risk = Some(AtRisk { input_tokens: 3, output_tokens: 4, nanodollars: Some(9) });
    claim(store, 1, 13).await;
    settle(1, JobEvent::Expire { attempt: 1, retry_at: None, at_risk }, DAY + 1).await;
    claim(store, 2, 14).await;
    settle(2, JobEvent::Cancel { at_risk }, DAY + 2).await;
    settle(3, JobEvent::Cancel { at_risk }, DAY + 2).await;
    let risk = Risk { calls: 2, input_tokens: 6, output_tokens: 8, nanodollars: 18, unpriced_calls: 0 };
    assert_eq!(spent(store, day(DAY)).await, Sums { at_risk: risk, ..sums(1, 7) }, "job 3 was never called");

    while store.prune(at(3 * DAY), 0, 10).await.unwrap() > 0 {}
    assert_eq!(store.get(job(0).id).await.unwrap().map(|record| record.job), None);
    let ledger = store.days(9).await.unwrap();
    let [today, before] = &ledger[..] else { panic!("{ledger:?}") };
    assert_eq!((today.day, before.day), (day(DAY), day(11)));
    assert_eq!((today.models["b"], before.models["a"]), (sums(1, 7), sums(1, 5)));
    assert_eq!(today.models[UNKNOWN_MODEL].at_risk, risk);
    assert_eq!(store.days(1).await.unwrap().len(), 1);
    assert_eq!(spent(store, day(2 * DAY)).await, Sums::default());

    let heard = Heard::of(store).await;
    assert_eq!(heard.spent(), Spent { day: day(DAY), sums: Sums { at_risk: risk, ..sums(1, 7) } });
    store.add(day(2 * DAY), "a".to_owned(), sums(1, 9)).await.unwrap();
    assert_eq!(heard.spent(), Spent { day: day(2 * DAY), sums: sums(1, 9) });
    store.add(day(DAY), "b".to_owned(), sums(1, 1)).await.unwrap();
    assert_eq!(
        (spent(store, day(2 * DAY)).await, store.days(9).await.unwrap()[1].models["b"]),
        (sums(1, 9), sums(2, 8)),
        "of no job"
    );
}

async fn takes_jobs_together_or_not_at_all(store: &impl Store) {
    let batch = |jobs: &[Job]| {
        jobs.iter().zip(0..).map(|(job, n)| JobRecord::fresh(job.clone(), request(n))).collect::<Vec<_>>()
    };
    let first = [named(0, 1, 1), named(1, 2, 1), named(2, 3, 1)];
    assert_eq!(store.insert_all(batch(&first)).await, Ok(vec![Insertion::Accepted; 3]));
    assert_eq!(store.get(first[2].id).await.unwrap().unwrap().request, request(2));

    let again = [named(10, 1, 1), named(11, 2, 1), named(12, 3, 1)];
    let existing = first.iter().map(|job| Insertion::Existing(job.id)).collect();
    assert_eq!(store.insert_all(batch(&again)).await, Ok(existing));
    for other in [[named(10, 1, 1), named(11, 2, 9)], [named(10, 4, 1), named(11, 2, 1)]] {
        assert_eq!(store.insert_all(batch(&other)).await, Err(StoreError::KeyReused));
    }
    assert_eq!(Heard::of(store).await.pending().len(), 3, "what was refused is not there in part");
}

async fn takes_over_the_jobs_of_another_store(from: &impl Store, to: &impl Store) {
    add(from, (0..5).map(job)).await;
    claim(from, 0, 10).await;
    from.transition(job(0).id, success(1, 60_000), at(11)).await.unwrap();
    claim(from, 1, 12).await;
    from.transition(job(2).id, JobEvent::Cancel { at_risk: None }, at(13)).await.unwrap();
    let all = |cursor, limit| Listing { order: Order::OldestFirst, cursor, limit, ..Listing::default() };
    let first = from.list(all(None, 3), at(10)).await.unwrap();
    let second = from.list(all(first.next, 3), at(10)).await.unwrap();
    assert_eq!((first.jobs.len(), second.jobs.len(), second.next), (3, 2, None));
    let records: Vec<_> = first.jobs.into_iter().chain(second.jobs).collect();
    let ids: Vec<_> = records.iter().map(|record| record.job.id).collect();
    assert_eq!(ids, (0..5).map(|n| job(n).id).collect::<Vec<_>>(), "in the order of submission");

    add(to, [job(3)]).await;
    let insertion = |id, known| if known { Insertion::Existing(id) } else { Insertion::Accepted };
    let known = [false, false, false, true, false, true];
    let twice = [records.clone(), records[..1].to_vec()].concat();
    let expected = twice.iter().zip(known).map(|(record, known)| insertion(record.job.id, known)).collect();
    assert_eq!(to.import(twice, None).await, Ok(expected));
    assert_eq!(to.import(records.clone(), None).await, Ok(ids.iter().map(|id| Insertion::Existing(*id)).collect()));
    for record in &records {
        let here = to.get(record.job.id).await.unwrap().unwrap();
        assert_eq!((&here.job, here.attempts.len()), (&record.job, record.attempts.len()));
    }
    let memo = to.get(ids[0]).await.unwrap().unwrap();
    assert!(memo.attempts[0].report.result.as_ref().unwrap().get().len() > 60_000);
}

async fn puts_imported_jobs_at_their_places(store: &impl Store) {
    let record = |n| JobRecord::fresh(job(n), request(n));
    store.import(vec![record(2), record(9)], Some(vec![2, 9])).await.unwrap();
    store.import(vec![record(1), record(2), record(4)], Some(vec![1, 3, 4])).await.unwrap();
    store.insert(job(10), request(10)).await.unwrap();
    let heads = store.heads(0, 99).await.unwrap();
    let numbers: Vec<_> = heads.iter().map(|head| (head.number, head.id)).collect();
    assert_eq!(numbers, [1, 2, 4, 9, 10].map(|n| (u64::from(n), job(n).id)));
    assert_eq!(heads[2].life, Ok((job(4), None)));
    assert_eq!(store.heads(2, 2).await.unwrap(), heads[2..4]);
    assert_eq!(store.heads(10, 2).await, Ok(Vec::new()));
    let listing = Listing { order: Order::OldestFirst, limit: 9, ..Listing::default() };
    let listed = store.select(listing, at(20)).await.unwrap().ids;
    assert_eq!(listed, [1, 2, 4, 9, 10].map(|n| job(n).id), "in the order of their numbers");
}

/// All records of a store, and the lines of an archive of it.
async fn all_records(store: &Arc<dyn Store>) -> (Vec<Record>, Vec<String>) {
    let mut reader = Reader::new(Arc::clone(store), Scope::Everything, at(0));
    let (mut records, mut lines) = (Vec::new(), Vec::new());
    while let Some(some) = reader.next().await.unwrap() {
        lines.extend(some.iter().map(|record| record.line().unwrap()));
        records.extend(some);
    }
    (records, lines)
}

async fn moves_all_that_it_holds_to_another_store<S: Store>(from: S, to: S) {
    let (from, to): (Arc<S>, Arc<S>) = (from.into(), to.into());
    for n in 0..6 {
        let job = if n == 0 {
            Job { caller: caller::named("alice"), ..named(0, 7, 1) }
        } else {
            named(n, u8::try_from(n).unwrap(), 1)
        };
        from.insert(job, if n < 4 { request_with_callback(n) } else { request(n) }).await.unwrap();
    }
    let cancel = |n| (job(n).id, JobEvent::Cancel { at_risk: None });
    for (id, event) in [cancel(0), cancel(1), cancel(2)] {
        from.transition(id, event, at(10)).await.unwrap();
    }
    // It is copied as it is.
    let without_webhook = JobRecord { delivery: None, ..JobRecord::fresh(named(6, 6, 1), request_with_callback(6)) };
    from.import(vec![without_webhook], None).await.unwrap();
    claim(&*from, 4, 11).await;
    from.transition(
        job(4).id,
        JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: spending("a", 5) },
        at(12),
    )
    .await
    .unwrap();
    claim(&*from, 5, 13).await;
    // A delivered message, a failing one, and one of a job that waits again.
    let delivery = async |store: &S, n| store.get(job(n).id).await.unwrap().unwrap().delivery.unwrap();
    let answered = |status| DeliveryTry { at: at(14), http_status: Some(status), error: None };
    from.record(job(1).id, delivery(&from, 1).await.tried(answered(204), None)).await.unwrap();
    from.record(job(2).id, delivery(&from, 2).await.tried(answered(500), None)).await.unwrap();
    from.transition(job(1).id, JobEvent::Requeue { run_at: at(15) }, at(15)).await.unwrap();
    assert_eq!(from.remove(vec![job(0).id], at(16)).await, Ok(1), "its key outlives it");
    from.add(Day::of(at(0)), ledger::OTHER_MODELS.to_owned(), Sums { calls: 1, ..Sums::default() }).await.unwrap();
    for name in ["paused", "key/alice", "session/1", "history/hour/0001"] {
        from.put(name.to_owned(), format!("\"{name}\"")).await.unwrap();
    }
    let entry = uuid::Uuid::from_u128(5);
    from.append_audit(entry, "{}".to_owned(), uuid::Uuid::nil()).await.unwrap();

    let (source, target): (Arc<dyn Store>, Arc<dyn Store>) = (from.clone(), to.clone());
    let (records, lines) = all_records(&source).await;
    let kinds: Vec<String> = records.iter().map(|record| record.kind().to_string()).collect();
    let expected = "setting api_key session history ledger_day audit_entry idempotency_key job job job job job job";
    assert_eq!(kinds.join(" "), expected);
    // A move that was interrupted, and repeated as often as need be.
    archive::mark(&*target, "there").await.unwrap();
    for part in [5, 9, 2, records.len(), records.len()] {
        archive::restore(&*target, records[..part].to_vec()).await.unwrap();
    }
    assert_eq!(archive::marked(&*target).await, Ok(Some("there".to_owned())));
    archive::unmark(&*target).await.unwrap();
    assert_eq!(archive::marked(&*target).await, Ok(None));
    assert_eq!(all_records(&target).await.1, lines);
    for n in 1..4 {
        assert_eq!(delivery(&to, n).await, delivery(&from, n).await);
    }
    assert_eq!(due(&*to, 99).await, [job(2).id], "what is due there is due here, and nothing else");
    let running = to.find(job(5).id).await.unwrap().unwrap();
    assert_eq!((running.is_running(), running.attempt, running.owner), (true, 1, None));
    let again = to.insert(named(30, 7, 1), request(30)).await;
    assert_eq!(again, Ok(Insertion::Existing(job(0).id)), "the key is in force");
    assert_eq!(to.insert(named(31, 3, 2), request(31)).await, Err(StoreError::KeyReused), "as those of jobs");
    let known = to.orphaned_keys(None, 9).await.unwrap();
    assert_eq!((known.len(), known[0].2), (1, caller::named("alice")), "who used it");
    to.add_keys(vec![(IdempotencyKey { key: [7; 16], body: [9; 16], expires_at: at(1) }, job(9).id, None)])
        .await
        .unwrap();
    assert_eq!(to.orphaned_keys(None, 9).await.unwrap().len(), 1, "the later end counts");
    assert_eq!(to.orphaned_keys(Some([7; 16]), 9).await, Ok(Vec::new()));
}

/// A job that shares its answer with all of this question.
pub(crate) fn asking(n: u32, question: u64) -> Job {
    Job { question: std::num::NonZeroU64::new(question), ..job(n) }
}

/// As [`request`], of somebody who wants to be told.
pub(crate) fn request_with_callback(n: u32) -> Arc<JobRequest> {
    Arc::new(JobRequest { callback_url: Some(CALLBACK.to_owned()), ..(*request(n)).clone() })
}

const CALLBACK: &str = "https://example.com/hook";

/// Jobs whose message is due.
pub(crate) async fn due(store: &impl Store, now: u32) -> Vec<JobId> {
    store.due(at(now), 9).await.unwrap().into_iter().map(|due| due.job).collect()
}

async fn owes_a_message_for_each_end_of_a_job_with_a_callback(store: &impl Store) {
    let cancel = async |n, now| store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(now)).await.unwrap();
    let delivery = async || store.get(job(0).id).await.unwrap().unwrap().delivery.unwrap();
    let answered = |now, status| DeliveryTry { at: at(now), http_status: Some(status), error: None };
    store.insert(job(0), request_with_callback(0)).await.unwrap();
    store.insert(job(1), request(1)).await.unwrap();
    assert_eq!((delivery().await, due(store, 99).await.len()), (Delivery::to(CALLBACK), 0));
    cancel(0, 5).await;
    cancel(1, 5).await;
    assert_eq!((due(store, 4).await.len(), due(store, 5).await), (0, vec![job(0).id]));
    assert!(store.get(job(1).id).await.unwrap().unwrap().delivery.is_none());

    let failed = delivery().await.tried(answered(6, 500), None);
    store.record(job(0).id, failed.clone()).await.unwrap();
    assert_eq!((delivery().await, due(store, 10).await.len()), (failed.clone(), 0));
    assert_eq!(store.next_due(at(6)).await.unwrap(), Some(at(11)));
    let taken = failed.clone().tried(answered(11, 200), None);
    store.record(job(0).id, taken.clone()).await.unwrap();
    assert_eq!((delivery().await, store.next_due(at(0)).await.unwrap()), (taken.clone(), None));

    store.transition(job(0).id, JobEvent::Requeue { run_at: at(20) }, at(20)).await.unwrap();
    cancel(0, 21).await;
    let second = delivery().await;
    assert_eq!((second.number, second.next_at()), (2, Some(at(21))));
    store.record(job(0).id, taken).await.unwrap();
    assert_eq!(delivery().await, second, "what came of an older message is no news");
    assert_eq!(
        store.remove(vec![job(0).id], at(99)).await,
        Ok(1),
        "whoever wants it gone need not wait for its message"
    );
    assert!(due(store, 99).await.is_empty());
    store.record(job(0).id, second).await.unwrap();
}

async fn sends_a_message_again_and_lists_those_that_fail(store: &impl Store) {
    let cancel = async |n, now| store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(now)).await.unwrap();
    let delivery = async |n| store.get(job(n).id).await.unwrap().unwrap().delivery.unwrap();
    let failing = async |name: Option<&str>| {
        let filter = JobFilter {
            caller: name.map(str::to_owned),
            caller_digest: name.and_then(caller::named),
            ..JobFilter::default()
        };
        let (mut ids, mut cursor) = (Vec::new(), None);
        loop {
            let listing = Listing { filter: filter.clone(), limit: 2, cursor, ..Listing::default() };
            let page = store.failing(listing).await.unwrap();
            ids.extend(page.jobs.iter().map(|record| record.job.id));
            cursor = page.next;
            if cursor.is_none() {
                return ids;
            }
        }
    };
    for n in 0..5 {
        let name = if n < 3 { "alice" } else { "bob" };
        let request = JobRequest { caller: Some(name.to_owned()), ..(*request_with_callback(n)).clone() };
        store.insert(Job { caller: caller::named(name), ..job(n) }, Arc::new(request)).await.unwrap();
    }
    let refused = store.resend(job(0).id, at(4)).await;
    assert!(matches!(refused, Err(StoreError::Transition(TransitionError::Illegal { .. }))), "{refused:?}");
    assert_eq!(store.resend(job(9).id, at(4)).await, Err(StoreError::NotFound(job(9).id)));
    // What ended elsewhere is announced only if a person wants it.
    let ended = |n| job(n).apply(&JobEvent::Cancel { at_risk: None }, at(3)).unwrap();
    let records = [(6, request_with_callback(6)), (7, request(7))];
    let records = records.map(|(n, request)| JobRecord { delivery: None, ..JobRecord::fresh(ended(n), request) });
    store.import(records.to_vec(), None).await.unwrap();
    assert_eq!(store.resend(job(7).id, at(4)).await, Err(StoreError::NotFound(job(7).id)), "it has no callback URL");
    assert!(due(store, 99).await.is_empty());
    store.resend(job(6).id, at(4)).await.unwrap();
    assert_eq!(due(store, 4).await, [job(6).id]);
    store.remove(vec![job(6).id, job(7).id], at(4)).await.unwrap();
    for (n, status) in [(0, 200), (1, 500), (2, 410), (3, 503), (4, 204)] {
        cancel(n, 5).await;
        let this = DeliveryTry { at: at(6), http_status: Some(status), error: None };
        store.record(job(n).id, delivery(n).await.tried(this, None)).await.unwrap();
    }
    assert_eq!(failing(None).await, [job(3).id, job(2).id, job(1).id]);
    assert_eq!(failing(Some("alice")).await, [job(2).id, job(1).id]);
    assert!(failing(Some("carol")).await.is_empty());
    // A delivered, a failing and a disabled one: each is due at once.
    for n in 0..3 {
        let before = delivery(n).await;
        store.resend(job(n).id, at(7)).await.unwrap();
        let resent = delivery(n).await;
        assert_eq!((resent.next_at(), resent.number, resent.resends), (Some(at(7)), before.number, 1));
        store.record(job(n).id, before).await.unwrap();
        assert_eq!(delivery(n).await, resent, "a try from before the resend changes nothing");
    }
    assert_eq!((failing(None).await, due(store, 7).await.len()), (vec![job(3).id], 3));
    store.remove(vec![job(3).id], at(9)).await.unwrap();
    assert!(failing(None).await.is_empty());
}

async fn sends_the_message_of_an_end_after_a_skipped_one(store: &impl Store) {
    let cancel = JobEvent::Cancel { at_risk: None };
    let ended = JobRecord::fresh(job(0).apply(&cancel, at(1)).unwrap(), request_with_callback(0));
    let skipped = ended.delivery.clone().map(|delivery| delivery.due(at(1)).skipped());
    store.import(vec![JobRecord { delivery: skipped, ..ended }], None).await.unwrap();
    assert!(due(store, 99).await.is_empty());
    store.transition(job(0).id, JobEvent::Requeue { run_at: at(2) }, at(2)).await.unwrap();
    store.transition(job(0).id, cancel, at(3)).await.unwrap();
    assert_eq!(due(store, 3).await, [job(0).id]);
    assert_eq!(store.get(job(0).id).await.unwrap().unwrap().delivery.unwrap().number, 2, "another message");
}

async fn keeps_jobs_whose_message_is_due(store: &impl Store) {
    for n in 0..6 {
        let request = if n < 3 { request_with_callback(n) } else { request(n) };
        store.insert(job(n), request).await.unwrap();
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(10 + n)).await.unwrap();
    }
    assert_eq!(store.prune(at(0), 1, 2).await, Ok(2), "as many as asked for, though three older ones stay");
    assert_eq!(there(store, 6).await, [0, 1, 2, 5], "by their number");
    assert_eq!(store.prune(at(99), 9, 9).await, Ok(1));
    assert_eq!(there(store, 6).await, [0, 1, 2], "by their age");
    assert_eq!(store.prune(at(99), 5, 9).await, Ok(0));

    let note = async |n, status| {
        let due = store.get(job(n).id).await.unwrap().unwrap().delivery.unwrap();
        let this = DeliveryTry { at: at(20), http_status: Some(status), error: None };
        store.record(job(n).id, due.tried(this, None)).await.unwrap();
    };
    note(0, 500).await;
    note(1, 200).await;
    note(2, 410).await;
    assert_eq!(store.prune(at(99), 1, 9).await, Ok(2), "what is settled is as any other");
    assert_eq!((there(store, 6).await, due(store, 99).await), (vec![0], vec![job(0).id]));
    // Queued again and told of another end, it is kept for that one.
    store.transition(job(0).id, JobEvent::Requeue { run_at: at(30) }, at(30)).await.unwrap();
    store.transition(job(0).id, JobEvent::Cancel { at_risk: None }, at(31)).await.unwrap();
    assert_eq!(store.prune(at(99), 5, 9).await, Ok(0));
    note(0, 200).await;
    assert_eq!(store.prune(at(99), 0, 9).await, Ok(1));
}

async fn bounds_jobs_whose_message_is_due(store: &impl Store) {
    for n in 0..8 {
        let request = if n < 5 { request_with_callback(n) } else { request(n) };
        store.insert(job(n), request).await.unwrap();
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(10 + n)).await.unwrap();
    }
    assert_eq!(store.prune(at(0), 4, 9).await, Ok(4));
    assert_eq!(there(store, 8).await, [3, 4, 6, 7], "the newest of those whose message is due, and of the others");
}

async fn prunes_oldest_ends_first(store: &impl Store) {
    add(store, (0..6).map(job)).await;
    for n in 0..5 {
        store.transition(job(n).id, JobEvent::Cancel { at_risk: None }, at(100 - n)).await.unwrap();
    }
    assert_eq!(store.prune(at(97), 100, 10).await.unwrap(), 1, "one ended before second 97");
    assert!(store.get(job(4).id).await.unwrap().is_none());
    assert_eq!(store.prune(at(0), 3, 10).await.unwrap(), 1, "one is beyond the three newest ends");
    assert!(find(store, 3).await.is_none());
    assert_eq!(store.prune(at(0), 0, 2).await.unwrap(), 2, "no more than the limit");
    assert!(find(store, 0).await.is_some() && find(store, 5).await.is_some());
}
