//! A store in memory alone: the contract told as plainly as it can be, for tests. Nothing survives its end.
//!
//! Several queues can stand over one such store, as the nodes of a cluster stand over one database.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    change,
    traits::{
        ClaimedJob, Due, EndedCounts, Feed, Insertion, JobHead, JobStore, Ledger, MAX_AUDIT_BYTES, OrphanedKey, Outbox,
        Registry, StoreError, Totals,
    },
    watch::SettingsWatch,
};
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        Attempt, AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection,
        JobState, Listing, MAX_ATTEMPTS, Owner, Side,
        caller::Caller,
        delivery::{Delivery, UNNOTIFIED_RETENTION},
    },
    ledger::{self, Day, DaySums, Spent, Sums},
};

/// The store.
#[derive(Default)]
pub(crate) struct MemoryStore {
    state: Mutex<State>,
    feeds: Mutex<Vec<Arc<dyn Feed>>>,
    settings_watch: SettingsWatch,
    lost: CancellationToken,
}

#[derive(Default)]
struct State {
    /// By the number of their submission.
    jobs: BTreeMap<u64, JobRecord>,
    next_number: u64,
    keys: BTreeMap<[u8; 16], OrphanedKey>,
    settings: BTreeMap<String, String>,
    audit: BTreeMap<Uuid, String>,
    ledger: BTreeMap<Day, BTreeMap<String, Sums>>,
    is_closed: bool,
}

impl State {
    fn number(&self, id: JobId) -> Option<u64> {
        self.jobs.iter().find(|(_, record)| record.job.id == id).map(|(number, _)| *number)
    }

    fn record(&self, id: JobId) -> Option<&JobRecord> {
        self.jobs.values().find(|record| record.job.id == id)
    }

    /// What a job's idempotency key stands for.
    fn known(&self, job: &Job) -> Result<Option<Insertion>, StoreError> {
        let Some(key) = job.idempotency.as_deref() else { return Ok(None) };
        let known = self.keys.get(&key.key).filter(|(known, ..)| known.expires_at > job.created_at);
        known.map_or(Ok(None), |(known, id, _)| {
            if known.body == key.body { Ok(Some(Insertion::Existing(*id))) } else { Err(StoreError::KeyReused) }
        })
    }

    fn add(&mut self, record: JobRecord, place: Option<u64>) {
        if let Some(key) = record.job.idempotency.as_deref() {
            self.add_key((*key, record.job.id, record.job.caller));
        }
        let number = place.unwrap_or(self.next_number + 1);
        self.next_number = self.next_number.max(number);
        self.jobs.insert(number, record);
    }

    /// A key that was used again after its time belongs to the later job.
    fn add_key(&mut self, key: OrphanedKey) {
        if self.keys.get(&key.0.key).is_none_or(|(known, ..)| known.expires_at <= key.0.expires_at) {
            self.keys.insert(key.0.key, key);
        }
    }

    fn apply(&mut self, id: JobId, event: &JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        let number = self.number(id).ok_or(StoreError::NotFound(id))?;
        let Some(record) = self.jobs.get_mut(&number) else { return Err(StoreError::NotFound(id)) };
        let (before, after) = (record.job.clone(), record.job.apply(event, now)?);
        if let Some(attempt) = before.closed_attempt(event, now) {
            if let Some((day, model, sums)) = change::cost_of(&attempt) {
                self.ledger.entry(day).or_default().entry(model).or_default().add(&sums);
            }
            add_attempt(&mut record.attempts, attempt);
        }
        record.delivery = record.delivery.take().map(|delivery| change::delivery_after(&before, &after, delivery, now));
        record.job = after.clone();
        Ok(after)
    }

    fn remove(&mut self, numbers: &[u64]) -> usize {
        numbers.iter().filter(|number| self.jobs.remove(number).is_some()).count()
    }

    /// The jobs of a listing, in its order, with their numbers, and the cursors beside them.
    fn page(&self, listing: &Listing, now: Timestamp, is_wanted: impl Fn(&JobRecord) -> bool) -> JobPage {
        let Listing { filter, limit, cursor, .. } = listing;
        let takes = |record: &JobRecord| {
            let attempts = || record.attempts.iter().map(|attempt| &**attempt);
            filter.takes(&record.job, now)
                && filter.takes_request(&record.request)
                && filter.takes_model(&record.request).unwrap_or_else(|| filter.takes_answers(attempts()))
        };
        let is_ahead = |number: u64| {
            cursor.is_none_or(|cursor| match cursor.side {
                Side::Older => number < cursor.from,
                Side::Newer => number > cursor.from,
            })
        };
        let all = self.jobs.iter().filter(|(number, record)| is_ahead(**number) && takes(record) && is_wanted(record));
        let mut found: Vec<(u64, JobRecord)> = all.map(|(number, record)| (*number, record.clone())).collect();
        if listing.side() == Side::Older {
            found.reverse();
        }
        let end = (found.len() > *limit).then(|| found[limit - 1].0);
        found.truncate(*limit);
        let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
        let (next, prev) = listing.neighbours(&numbers, end);
        let mut jobs: Vec<JobRecord> = found.into_iter().map(|(_, record)| record).collect();
        if listing.side() != listing.order.onward() {
            jobs.reverse();
        }
        JobPage { jobs, next, prev, unfinished: None }
    }

    fn pending(&self) -> Vec<Arc<Job>> {
        let pending = self.jobs.values().filter(|record| !record.job.state.is_final());
        pending.map(|record| Arc::new(record.job.clone())).collect()
    }

    fn totals(&self) -> Totals {
        let mut ended = EndedCounts::default();
        for record in self.jobs.values() {
            match record.job.state {
                JobState::Succeeded => ended.succeeded += 1,
                JobState::Failed { .. } => ended.failed += 1,
                JobState::Cancelled => ended.cancelled += 1,
                JobState::Queued { .. } | JobState::Running => {}
            }
        }
        let newest = self.ledger.last_key_value();
        let spent = newest.map(|(day, models)| Spent { day: *day, sums: ledger::total(models.values()) });
        Totals { ended, spent: spent.unwrap_or_default() }
    }
}

/// Adds an attempt to a history: of releases in a row only the last stays, and of very many attempts the newest.
fn add_attempt(history: &mut Vec<Arc<Attempt>>, attempt: Attempt) {
    let attempt = match history.last() {
        Some(before) => attempt.fold(before),
        None => attempt,
    };
    history.retain(|before| !attempt.stands_for(before.number));
    history.push(Arc::new(attempt));
    let surplus = history.len().saturating_sub(MAX_ATTEMPTS);
    history.drain(..surplus);
}

impl MemoryStore {
    fn open(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock();
        let closed = StoreError::Unavailable { reason: "the store is closed".to_owned() };
        if state.is_closed { Err(closed) } else { Ok(state) }
    }

    /// Makes a change, and notifies the feeds of the jobs that it gives. Not in the first poll: a real store has to write.
    async fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<(T, Vec<Job>), StoreError>,
    ) -> Result<T, StoreError> {
        tokio::task::yield_now().await;
        // Held while the feeds are notified, so that each hears of changes in their order.
        let feeds = self.feeds.lock();
        let (result, jobs, totals) = {
            let mut state = self.open()?;
            let (result, jobs) = change(&mut state)?;
            (result, jobs.into_iter().map(Arc::new).collect::<Vec<_>>(), state.totals())
        };
        feeds.iter().for_each(|feed| feed.changed(&jobs, totals));
        Ok(result)
    }
}

#[async_trait]
impl JobStore for MemoryStore {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        self.change(|state| {
            if let Some(existing) = state.known(&job)? {
                return Ok((existing, Vec::new()));
            }
            state.add(JobRecord::fresh(job.clone(), request), None);
            Ok((Insertion::Accepted, vec![job]))
        })
        .await
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        self.change(|state| {
            let known = jobs.iter().map(|record| state.known(&record.job)).collect::<Result<Vec<_>, _>>()?;
            if known.iter().any(Option::is_some) {
                let existing: Option<Vec<Insertion>> = known.into_iter().collect();
                return existing.map(|existing| (existing, Vec::new())).ok_or(StoreError::KeyReused);
            }
            let accepted = vec![Insertion::Accepted; jobs.len()];
            let changed = jobs.iter().map(|record| record.job.clone()).collect();
            jobs.into_iter().for_each(|record| state.add(change::with_delivery(record), None));
            Ok((accepted, changed))
        })
        .await
    }

    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>, StoreError> {
        self.change(|state| {
            let (mut insertions, mut changed) = (Vec::new(), Vec::new());
            let mut places = places.into_iter().flatten();
            for record in records {
                let place = places.next();
                let is_here = state.record(record.job.id).is_some();
                insertions.push(if is_here { Insertion::Existing(record.job.id) } else { Insertion::Accepted });
                if !is_here {
                    changed.push(record.job.clone());
                    state.add(record, place);
                }
            }
            Ok((insertions, changed))
        })
        .await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        asks: Option<ModelKey>,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        self.change(|state| {
            let job = state.apply(id, &JobEvent::Claim { owner, asks }, now)?;
            let request = state.record(id).map(|record| Arc::clone(&record.request)).unwrap_or_default();
            Ok((ClaimedJob { job: job.clone(), request }, vec![job]))
        })
        .await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        self.change(|state| {
            let job = state.apply(id, &event, now)?;
            Ok((job.clone(), vec![job]))
        })
        .await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        self.change(|state| {
            let share = JobEvent::Share { report: Arc::new(report.shared(id)) };
            let mut jobs = vec![state.apply(id, &JobEvent::Succeed { attempt, report }, now)?];
            jobs.extend(followers.into_iter().filter_map(|follower| state.apply(follower, &share, now).ok()));
            Ok((jobs.clone(), jobs))
        })
        .await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError> {
        self.change(|state| {
            let (mut told, mut untold) = (Vec::new(), Vec::new());
            for (number, record) in &state.jobs {
                let is_due = record.delivery.as_ref().is_some_and(|delivery| delivery.next_at().is_some());
                let ends = if is_due { &mut untold } else { &mut told };
                ends.extend(record.job.finished_at.map(|end| (end, *number)));
            }
            told.sort_unstable();
            untold.sort_unstable();
            let untold_surplus = untold.len().saturating_sub(keep.div_ceil(2));
            let surplus = (told.len() + untold.len() - untold_surplus).saturating_sub(keep);
            let gone = |ends: Vec<(Timestamp, u64)>, surplus: usize, before: Timestamp| {
                let ends = ends.into_iter().enumerate();
                ends.take_while(move |(place, (end, _))| *place < surplus || *end < before)
                    .map(|(_, (_, number))| number)
            };
            let numbers: Vec<u64> = gone(told, surplus, before)
                .chain(gone(untold, untold_surplus, before.minus(UNNOTIFIED_RETENTION)))
                .take(limit)
                .collect();
            Ok((state.remove(&numbers), Vec::new()))
        })
        .await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        Ok(self.open()?.record(id).cloned())
    }

    async fn remove(&self, ids: Vec<JobId>, _: Timestamp) -> Result<usize, StoreError> {
        self.change(|state| {
            let ended = state.jobs.iter().filter(|(_, record)| record.job.state.is_final());
            let numbers: Vec<u64> =
                ended.filter(|(_, record)| ids.contains(&record.job.id)).map(|(number, _)| *number).collect();
            Ok((state.remove(&numbers), Vec::new()))
        })
        .await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        Ok(self.open()?.page(&listing, now, |_| true))
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        let JobPage { jobs, next, .. } = self.open()?.page(&listing, now, |_| true);
        Ok(JobSelection { ids: jobs.into_iter().map(|record| record.job.id).collect(), next })
    }

    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>, StoreError> {
        let head = |(number, JobRecord { job, delivery, .. }): (&u64, &JobRecord)| JobHead {
            number: *number,
            id: job.id,
            life: Ok((job.clone(), delivery.clone())),
        };
        Ok(self.open()?.jobs.range(after + 1..).take(most).map(head).collect())
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        Ok(self.open()?.record(id).map(|record| record.job.clone()))
    }

    async fn newest_answer(&self, question: std::num::NonZeroU64) -> Result<Option<Job>, StoreError> {
        let state = self.open()?;
        let answers = state.jobs.values().map(|record| &record.job);
        let answers = answers.filter(|job| job.question == Some(question) && job.state == JobState::Succeeded);
        Ok(answers.max_by_key(|job| job.finished_at).cloned())
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError> {
        Ok(self.open()?.keys.get(&key.key).is_some_and(|(known, ..)| known.expires_at > now))
    }

    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>, StoreError> {
        let state = self.open()?;
        let keys = state.keys.iter().filter(|(name, _)| after.is_none_or(|after| **name > after)).map(|(_, key)| *key);
        Ok(keys.filter(|(_, job, _)| state.record(*job).is_none()).take(most).collect())
    }

    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<(), StoreError> {
        self.change(|state| {
            keys.into_iter().for_each(|key| state.add_key(key));
            Ok(((), Vec::new()))
        })
        .await
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
        let mut feeds = self.feeds.lock();
        let (pending, totals) = {
            let state = self.open()?;
            (state.pending(), state.totals())
        };
        feed.reset(pending, totals);
        if !feeds.iter().any(|other| Arc::ptr_eq(other, &feed)) {
            feeds.push(feed);
        }
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.open().err().map(|error| error.to_string())
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    async fn close(&self) {
        self.state.lock().is_closed = true;
    }
}

#[async_trait]
impl Ledger for MemoryStore {
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        self.change(|state| {
            state.ledger.entry(day).or_default().entry(model).or_default().add(&sums);
            Ok(((), Vec::new()))
        })
        .await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError> {
        let state = self.open()?;
        let days = state.ledger.iter().rev().take(most);
        Ok(days.map(|(day, models)| DaySums { day: *day, models: models.clone() }).collect())
    }
}

#[async_trait]
impl Outbox for MemoryStore {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError> {
        let state = self.open()?;
        let mut due: Vec<(Timestamp, Due)> = Vec::new();
        for JobRecord { job, delivery, .. } in state.jobs.values() {
            let Some(delivery) = delivery.as_ref() else { continue };
            let Some(next_at) = delivery.next_at().filter(|next_at| *next_at <= now) else { continue };
            due.push((next_at, Due { job: job.id, caller: job.caller, host: delivery.host.as_str().into() }));
        }
        due.sort_by_key(|(next_at, _)| *next_at);
        let mut taken: BTreeMap<(Caller, Arc<str>), usize> = BTreeMap::new();
        due.retain(|(_, due)| {
            let lane = taken.entry((due.caller, Arc::clone(&due.host))).or_default();
            *lane += 1;
            *lane <= most
        });
        Ok(due.into_iter().map(|(_, due)| due).collect())
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let state = self.open()?;
        let next = state.jobs.values().filter_map(|record| record.delivery.as_ref()?.next_at());
        Ok(next.filter(|next_at| *next_at > now).min())
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        let mut state = self.open()?;
        let number = state.number(id).ok_or(StoreError::NotFound(id))?;
        let Some(record) = state.jobs.get_mut(&number) else { return Err(StoreError::NotFound(id)) };
        let callback_url = || Ok(record.request.callback_url.clone());
        record.delivery = Some(change::resent(&record.job, record.delivery.clone(), callback_url, now)?);
        Ok(())
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError> {
        let is_failing = |record: &JobRecord| record.delivery.as_ref().is_some_and(Delivery::is_failing);
        Ok(self.open()?.page(&listing, Timestamp::from_millis(0), is_failing))
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        let mut state = self.open()?;
        let Some(number) = state.number(id) else { return Ok(()) };
        if let Some(JobRecord { delivery: Some(current), .. }) = state.jobs.get_mut(&number)
            && current.next_at().is_some()
            && current.is_same_round(&delivery)
        {
            *current = delivery;
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for MemoryStore {
    async fn put(&self, name: String, value: String) -> Result<(), StoreError> {
        // Later than the first poll, and answered later still: a real store has to write.
        tokio::task::yield_now().await;
        self.open()?.settings.insert(name.clone(), value);
        self.settings_watch.changed(&name);
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        self.open()?.settings.remove(&name);
        self.settings_watch.changed(&name);
        Ok(())
    }

    async fn compare_and_set(
        &self,
        name: String,
        expected: Option<String>,
        value: Option<String>,
    ) -> Result<bool, StoreError> {
        // Not in the first poll: a real store has to write.
        tokio::task::yield_now().await;
        {
            let settings = &mut self.open()?.settings;
            if settings.get(&name) != expected.as_ref() {
                return Ok(false);
            }
            match value {
                Some(value) => settings.insert(name.clone(), value),
                None => settings.remove(&name),
            };
        }
        self.settings_watch.changed(&name);
        Ok(true)
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        let state = self.open()?;
        let settings = state.settings.iter().filter(|(name, _)| name.starts_with(prefix));
        Ok(settings.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.settings_watch.subscribe()
    }

    fn is_watch_live(&self, _: Duration) -> bool {
        true
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        let mut state = self.open()?;
        state.audit.insert(id, entry);
        state.audit.retain(|other, _| *other >= oldest);
        while state.audit.values().map(String::len).sum::<usize>() > MAX_AUDIT_BYTES {
            state.audit.pop_first();
        }
        Ok(())
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        let state = self.open()?;
        let older = state.audit.iter().rev().filter(|(id, _)| before.is_none_or(|before| **id < before));
        Ok(older.take(limit).map(|(id, entry)| (*id, entry.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_the_contract() {
        contract::holds_for(async || MemoryStore::default()).await;
    }
}
