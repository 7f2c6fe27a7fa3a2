//! The store on one node: sled for durability, memory for order. The only importer of sled.
//!
//! A change is a command (`commands`) in the queue of the one writer (`command_queue`, `writer`), which commits commands in
//! batches (`batch`). Reads touch memory (`shared`):
//!
//! - `index`: all jobs, in every order that is asked for; `deliveries`: their webhooks; `idempotency`: their keys
//! - `cache`: requests and attempts lately used
//! - `ledger`: costs, exact whatever a crash cuts off; `audit`: the audit log
//! - `listing`: searches within a bound of time
//!
//! On disk:
//!
//! - `keys`, `codec`: the keys and the bytes of records; `records`: reading them; `load`: reading all of them at the start
//! - `disk`: how sled is opened, and what makes a change durable; `init`: a first start that dies does not stop the next
//! - `checksum`, `commit_counter`: whether all acknowledged changes are there
//! - `log`, `salvage`: what can be read of a damaged store
//!
//! A request or an attempt that is not cached is read from sled on a blocking thread, because its page may not be in sled's
//! cache. These records are never overwritten, so what is read is always committed.

mod audit;
mod batch;
mod cache;
mod checksum;
mod codec;
mod command_queue;
mod commands;
mod commit_counter;
mod deliveries;
mod disk;
mod error;
mod idempotency;
mod index;
mod init;
mod keys;
mod ledger;
mod listing;
mod load;
mod log;
mod records;
pub mod salvage;
mod shared;
mod writer;

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    batch::Batch,
    command_queue::{Request, Size},
    commands::size_of,
    disk::Disk,
    error::Result,
    load::View,
    shared::{CLOSED, Shared},
    writer::Writer,
};
pub use self::{error::OpenError, shared::SledConfig};
use super::{
    change,
    new_job::NewJob,
    traits::{ClaimedJob, Due, Feed, Insertion, JobHead, JobStore, Ledger, OrphanedKey, Outbox, Registry, StoreError},
};
use crate::{
    clock::{Clock, Timestamp},
    digest::ModelKey,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        Owner, delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
    metrics::Metrics,
};

/// Permits of the queue for changes; who comes later waits. A few batches' worth.
const CHANGE_PERMITS: usize = 4_096;

/// Permits for new jobs, apart from the others: a settlement or a cancel waits for no new job beyond those of its own batch. A
/// job takes one permit, and a large one as many as it has parts of [`PERMIT_BYTES`].
const NEW_PERMITS: usize = 8_192;
const PERMIT_BYTES: usize = 8 << 10;

pub struct SledStore {
    shared: Arc<Shared>,
    requests: Mutex<Option<Sender<Request>>>,
    change_permits: Arc<Semaphore>,
    new_permits: Arc<Semaphore>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

impl SledStore {
    /// Opens the store, or creates it, and loads its index. Blocks for as long as that takes.
    pub fn open(config: SledConfig, clock: Clock, metrics: Metrics) -> Result<SledStore, OpenError> {
        let shared = Arc::new(Shared::new(config, clock, metrics));
        let next_seq = shared.open()?;
        let (requests, receiver) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&shared), receiver, next_seq);
        let folder = |source| OpenError::Folder { path: shared.config.path.clone(), source };
        let writer =
            thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run()).map_err(folder)?;
        Ok(SledStore {
            shared,
            requests: Mutex::new(Some(requests)),
            change_permits: Arc::new(Semaphore::new(CHANGE_PERMITS)),
            new_permits: Arc::new(Semaphore::new(NEW_PERMITS)),
            writer: Mutex::new(Some(writer)),
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        size: Size,
        command: impl FnOnce(&mut Batch<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = || StoreError::Unavailable { reason: self.shared.trouble().unwrap_or_else(|| CLOSED.to_owned()) };
        let (permits, count) = match size.is_insert {
            true => (&self.new_permits, size.jobs.max(size.bytes / PERMIT_BYTES).min(NEW_PERMITS)),
            false => (&self.change_permits, 1),
        };
        let count = u32::try_from(count).unwrap_or(1);
        let permit = Arc::clone(permits).acquire_many_owned(count).await.map_err(|_| closed())?;
        let (request, reply) = Request::new(size, permit, command);
        self.requests.lock().as_ref().ok_or_else(closed)?.send(request).map_err(|_| closed())?;
        reply.await.map_err(|_| closed())?
    }

    /// Reads records on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let disk = self.shared.working_disk()?;
        let shared = Arc::clone(&self.shared);
        let result = tokio::task::spawn_blocking(move || read(&shared, &disk)).await;
        result.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?
    }

    /// Lets the writer end once it has done all that was sent.
    fn dismiss_writer(&self) -> Option<thread::JoinHandle<()>> {
        self.requests.lock().take();
        self.writer.lock().take()
    }
}

#[async_trait]
impl JobStore for SledStore {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion> {
        Ok(self.insert_all(vec![JobRecord::fresh(job, request)]).await?[0])
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>> {
        let all = NewJob::from_records(jobs.into_iter().map(change::with_delivery))?;
        self.write(size_of(&all), |batch| batch.insert_all(all)).await
    }

    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>> {
        let all = NewJob::from_records(records)?;
        self.write(size_of(&all), |batch| batch.import(all, places)).await
    }

    async fn claim(&self, id: JobId, owner: Owner, asks: Option<ModelKey>, now: Timestamp) -> Result<ClaimedJob> {
        let claim = JobEvent::Claim { owner, asks };
        self.write(Size::ONE, move |batch| batch.claim(id, &claim, now)).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job> {
        let size = Size::change(1, event.report().map_or(0, change::report_bytes));
        self.write(size, move |batch| batch.transition(id, &event, now)).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>> {
        let size = Size::change(1, change::report_bytes(&report));
        self.write(size, move |batch| batch.succeed(id, attempt, &report, &followers, now)).await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize> {
        let now = self.shared.clock.now();
        // Called at every sweep, and mostly there is nothing to do.
        let has_surplus = {
            let (view, keys_at) = (self.shared.view.read(), self.shared.key_time(now));
            !view.index.prunable(before, keep, 1, now).is_empty() || !view.keys.expired(keys_at, 1).is_empty()
        };
        if !has_surplus {
            return Ok(0);
        }
        self.write(Size::change(limit, 0), move |batch| batch.prune(before, keep, limit, now)).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>> {
        let found = {
            let View { index, deliveries, .. } = &*self.shared.view.read();
            index.seq(id).and_then(|seq| Some((seq, index.get(seq)?.clone(), deliveries.get(seq).cloned())))
        };
        let Some((seq, job, open)) = found else { return Ok(None) };
        self.shared.working_disk()?;
        match self.shared.cache.record(seq, &job) {
            // A settled webhook is on disk only.
            Some(record) if record.request.callback_url.is_none() => Ok(Some(record)),
            _ => self.read(move |shared, disk| shared.record(disk, seq, job, open)).await,
        }
    }

    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize> {
        self.write(Size::change(ids.len(), 0), move |batch| batch.remove(&ids, now)).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage> {
        self.shared.promote(now);
        self.read(move |shared, disk| shared.list(disk, &listing, now, listing::LOOK_TIME)).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection> {
        self.shared.promote(now);
        self.read(move |shared, disk| shared.select(disk, &listing, now)).await
    }

    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>> {
        self.read(move |shared, disk| Ok(shared.heads(disk, after, most))).await
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>> {
        let index = &self.shared.view.read().index;
        Ok(index.seq(id).and_then(|seq| index.get(seq).cloned()))
    }

    async fn newest_answer(&self, question: NonZeroU64) -> Result<Option<Job>> {
        Ok(self.shared.view.read().index.newest_answer(question).cloned())
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool> {
        Ok(self.shared.view.read().keys.find(key, self.shared.key_time(now)).is_some())
    }

    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>> {
        let View { index, keys, .. } = &*self.shared.view.read();
        Ok(keys.after(after, most, |job| index.seq(job).is_none()))
    }

    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<()> {
        self.write(Size::change(keys.len(), 0), move |batch| batch.add_keys(keys)).await
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<()> {
        let _ = self.shared.feed.set(feed);
        self.shared.reset_feed();
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    fn lost(&self) -> CancellationToken {
        self.shared.lost.clone()
    }

    async fn close(&self) {
        let writer = self.dismiss_writer();
        // It has to finish what was accepted, which takes a moment.
        let _ = tokio::task::spawn_blocking(move || writer.map(thread::JoinHandle::join)).await;
    }
}

#[async_trait]
impl Ledger for SledStore {
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<()> {
        self.write(Size::ONE, move |batch| batch.add_cost(day, model, sums)).await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>> {
        Ok(self.shared.view.read().ledger.newest(most))
    }
}

#[async_trait]
impl Outbox for SledStore {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>> {
        let View { index, deliveries, .. } = &*self.shared.view.read();
        let due = deliveries.due(now, most).into_iter();
        let due = due.filter_map(|(seq, caller, host)| Some(Due { job: index.get(seq)?.id, caller, host }));
        Ok(due.collect())
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        Ok(self.shared.view.read().deliveries.next_after(now))
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<()> {
        self.write(Size::ONE, move |batch| batch.resend(id, now)).await
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage> {
        self.read(move |shared, disk| shared.failing_deliveries(disk, &listing)).await
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<()> {
        self.write(Size::ONE, move |batch| batch.record_delivery(id, delivery)).await
    }
}

#[async_trait]
impl Registry for SledStore {
    async fn put(&self, name: String, value: String) -> Result<()> {
        self.write(Size::change(1, value.len()), |batch| batch.put_setting(name, Some(value))).await
    }

    async fn delete(&self, name: String) -> Result<()> {
        self.write(Size::ONE, |batch| batch.put_setting(name, None)).await
    }

    async fn compare_and_set(&self, name: String, expected: Option<String>, value: Option<String>) -> Result<bool> {
        let size = Size::change(1, value.as_ref().map_or(0, String::len));
        self.write(size, move |batch| batch.compare_and_set(name, expected.as_deref(), value)).await
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let settings = &self.shared.view.read().settings;
        let named = settings.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        Ok(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.shared.settings_watch.subscribe()
    }

    fn is_watch_live(&self, _: Duration) -> bool {
        true
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<()> {
        self.write(Size::change(1, entry.len()), move |batch| batch.append_audit(id, &entry, oldest)).await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>> {
        let ids = self.shared.view.read().audit.before(before, limit);
        self.read(move |_, disk| {
            let mut entries = Vec::with_capacity(ids.len());
            for id in ids {
                if let Some(bytes) = disk.tree().get(keys::audit(id))? {
                    entries.push((id, String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
            Ok(entries)
        })
        .await
    }
}

/// What was accepted is finished, and the files are free, when the store is gone.
impl Drop for SledStore {
    fn drop(&mut self) {
        if let Some(writer) = self.dismiss_writer() {
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
