//! The store on one node: sled for durability, memory for order. The only importer of sled.
//!
//! - `book`: the ledger, exact whatever a crash cuts off
//! - `keys`: the key layout
//! - `codec`: how records are written and upgraded
//! - `commands`: what the writer is asked to do
//! - `deliveries`: what is owed to callback URLs
//! - `disk`: how sled is opened, and what makes a change durable
//! - `group`: what one sync makes durable
//! - `idempotency`: the keys that clients gave their submissions
//! - `beside`: runtime settings and the audit log
//! - `index`: all jobs in memory, in every order that is asked for
//! - `recent`: requests and attempts lately used, in memory
//! - `listing`: looking for jobs within a bound of time
//! - `load`: reading all of it at the start
//! - `log`, `salvage`: what can be read of a damaged store
//! - `making`: a first start that dies leaves nothing that stops the next
//! - `mark`: how much was acknowledged, so that a loss is noticed
//! - `stage`: what a command makes of jobs
//! - `witness`: whether all jobs are as they were
//! - `writer`: the one thread that changes anything
//!
//! Reads of a job's state touch memory alone. Its request and attempts come from memory too if they were lately used, else
//! from sled on a blocking thread, since their page may not be in its cache; those records are never overwritten, so what
//! is read is always committed.

mod beside;
mod book;
pub(super) mod codec;
mod commands;
mod deliveries;
mod disk;
mod group;
mod idempotency;
mod index;
mod keys;
mod listing;
mod load;
mod log;
mod making;
mod mark;
mod recent;
pub mod salvage;
mod stage;
mod witness;
mod writer;

use std::{
    num::NonZeroU64,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Sender},
    },
    thread,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::disk::OpenError;
use self::{
    beside::{Beside, BesideChange},
    book::Book,
    codec::read_chunks,
    commands::{Command, Envelope, NewJob, Reply},
    deliveries::Deliveries,
    disk::Disk,
    idempotency::Keys,
    index::Index,
    keys::Seq,
    recent::{Bodies, Recent},
    writer::Writer,
};
use super::{ClaimedJob, Due, Feed, Insertion, JobStore, Ledger, Outbox, Registry, StoreError, Totals};
use crate::{
    clock::{Clock, Timestamp},
    job::{
        Attempt, AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection,
        Listing, Owner, delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
    metrics::Metrics,
};

/// Places in the line for changes of jobs; who comes later waits. A few groups' worth.
const CHANGE_PLACES: usize = 4_096;

/// Places in the line for new jobs, apart from the others: a settlement or a cancel waits for no submission to be written
/// beyond those of its own group. A job takes one place, and a large one as many as it has parts of [`PLACE_BYTES`].
const NEW_PLACES: usize = 8_192;
const PLACE_BYTES: usize = 8 << 10;

/// Why a store that was closed on purpose does nothing.
const CLOSED: &str = "the job store is closed";

/// Where and how the store is kept.
#[derive(Clone, Debug)]
pub struct SledConfig {
    /// The folder, made if need be. Its parent must allow that.
    pub path: PathBuf,
    /// Most bytes of pages that sled keeps in memory.
    pub cache_bytes: u64,
    /// Answers can be looked for by their question, at some 35 bytes of memory for each.
    pub keep_answers: bool,
}

/// The store.
pub struct SledStore {
    shared: Arc<Shared>,
    /// None once the store is closed.
    commands: Mutex<Option<Sender<Envelope>>>,
    change_places: Arc<Semaphore>,
    new_places: Arc<Semaphore>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What readers and the writer share.
struct Shared {
    config: SledConfig,
    clock: Clock,
    index: RwLock<Index>,
    keys: RwLock<Keys>,
    deliveries: RwLock<Deliveries>,
    beside: RwLock<Beside>,
    book: RwLock<Book>,
    recent: Recent,
    /// None while the store is unavailable.
    disk: RwLock<Option<Arc<Disk>>>,
    trouble: Mutex<Option<String>>,
    /// Cancelled once the writer has given up.
    lost: CancellationToken,
    feed: OnceLock<Arc<dyn Feed>>,
    metrics: Metrics,
}

impl SledStore {
    /// Opens the store, or creates it, and reads its index. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: SledConfig, clock: Clock, metrics: Metrics) -> Result<SledStore, OpenError> {
        let shared = Arc::new(Shared {
            config,
            clock,
            index: RwLock::default(),
            keys: RwLock::default(),
            deliveries: RwLock::default(),
            beside: RwLock::default(),
            book: RwLock::default(),
            recent: Recent::default(),
            disk: RwLock::default(),
            trouble: Mutex::default(),
            lost: CancellationToken::new(),
            feed: OnceLock::new(),
            metrics,
        });
        let next_seq = shared.open()?;
        let (commands, receiver) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&shared), receiver, next_seq);
        let folder = |source| OpenError::Folder { path: shared.config.path.clone(), source };
        let writer =
            thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run()).map_err(folder)?;
        Ok(SledStore {
            shared,
            commands: Mutex::new(Some(commands)),
            change_places: Arc::new(Semaphore::new(CHANGE_PLACES)),
            new_places: Arc::new(Semaphore::new(NEW_PLACES)),
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Sends a command to the writer and waits for its answer.
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable { reason: self.shared.trouble().unwrap_or_else(|| CLOSED.to_owned()) };
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let place = if command.brings_jobs() {
            let count = command.jobs().max(command.bytes() / PLACE_BYTES).min(NEW_PLACES);
            Arc::clone(&self.new_places).acquire_many_owned(u32::try_from(count).unwrap_or(1)).await
        } else {
            Arc::clone(&self.change_places).acquire_owned().await
        };
        let envelope = Envelope { command, _place: place.map_err(|_| closed())? };
        self.commands.lock().as_ref().ok_or_else(closed)?.send(envelope).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Panics unless every list of the index agrees with its jobs.
    #[cfg(test)]
    pub(crate) fn assert_consistent(&self) {
        let (index, deliveries) = (self.shared.index.read(), self.shared.deliveries.read());
        index.assert_consistent();
        let pending = deliveries.pending().collect();
        assert_eq!(index.untold(), pending, "the unnotified jobs disagree with the webhooks");
    }

    /// Every pending job.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> Vec<Arc<Job>> {
        self.shared.index.read().pending()
    }

    /// Loses what a job asks and damages nothing else, as a page that went bad on disk does.
    #[cfg(test)]
    pub(crate) fn lose_request(&self, id: JobId) {
        let seq = self.shared.index.read().seq(id).unwrap();
        self.shared.disk().unwrap().tree().remove(keys::chunk(&keys::request(seq), 0)).unwrap();
        self.shared.recent.remove(seq);
    }

    /// Lets the writer end once it has done all that was sent.
    fn dismiss_writer(&self) -> Option<thread::JoinHandle<()>> {
        self.commands.lock().take();
        self.writer.lock().take()
    }

    /// Reads records on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let disk = self.shared.working_disk()?;
        let shared = Arc::clone(&self.shared);
        let result = tokio::task::spawn_blocking(move || read(&shared, &disk)).await;
        result.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?
    }
}

#[async_trait]
impl JobStore for SledStore {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        let new = NewJob::new(job, request)?;
        self.ask(|reply| Command::Insert { new, reply }).await
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        let all = jobs.into_iter().map(NewJob::with_history).collect::<Result<_, _>>()?;
        self.ask(|reply| Command::InsertAll { all, reply }).await
    }

    async fn import(&self, records: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        let all = records.into_iter().map(NewJob::of_another_store).collect::<Result<_, _>>()?;
        self.ask(|reply| Command::Import { all, reply }).await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        self.ask(|reply| Command::Claim { id, owner, lease_until, now, reply }).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        self.ask(|reply| Command::Transition { id, event, now, reply }).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        self.ask(|reply| Command::Succeed { id, attempt, report, followers, now, reply }).await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError> {
        let now = self.shared.clock.now();
        // Asked at every sweep, and mostly in vain.
        if self.shared.index.read().prunable(before, keep, 1, now).is_empty()
            && self.shared.keys.read().expired(self.shared.key_time(now), 1).is_empty()
        {
            return Ok(0);
        }
        self.ask(|reply| Command::Prune { before, keep, limit, now, reply }).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        let found = {
            // Both at one moment, or a message could seem due whose job has not ended.
            let (index, deliveries) = (self.shared.index.read(), self.shared.deliveries.read());
            index.seq(id).and_then(|seq| Some((seq, index.get(seq)?.clone(), deliveries.get(seq).cloned())))
        };
        let Some((seq, job, open)) = found else { return Ok(None) };
        self.shared.working_disk()?;
        match self.shared.recent.record(seq, &job) {
            // What came of telling its end may be on disk only.
            Some(record) if record.request.callback_url.is_none() => Ok(Some(record)),
            _ => self.read(move |shared, disk| shared.record(disk, seq, job, open)).await,
        }
    }

    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize, StoreError> {
        self.ask(|reply| Command::Remove { ids, now, reply }).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        self.shared.promote(now);
        self.read(move |shared, disk| shared.list(disk, &listing, now, listing::LOOK_TIME)).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        self.shared.promote(now);
        self.read(move |shared, disk| shared.select(disk, &listing, now)).await
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let index = self.shared.index.read();
        Ok(index.seq(id).and_then(|seq| index.get(seq).cloned()))
    }

    async fn newest_answer(&self, question: NonZeroU64) -> Result<Option<Job>, StoreError> {
        Ok(self.shared.index.read().newest_answer(question).cloned())
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError> {
        Ok(self.shared.keys.read().find(key, self.shared.key_time(now)).is_some())
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
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
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        self.ask(|reply| Command::Book { day, model, sums, reply }).await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError> {
        Ok(self.shared.book.read().newest(most))
    }
}

#[async_trait]
impl Outbox for SledStore {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError> {
        let due = self.shared.deliveries.read().due(now, most);
        let index = self.shared.index.read();
        let due = due.into_iter().filter_map(|(seq, caller, host)| Some(Due { job: index.get(seq)?.id, caller, host }));
        Ok(due.collect())
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.shared.deliveries.read().next_after(now))
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        self.ask(|reply| Command::Resend { id, now, reply }).await
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError> {
        self.read(move |shared, disk| shared.failing_deliveries(disk, &listing)).await
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        self.ask(|reply| Command::NoteDelivery { id, delivery, reply }).await
    }
}

#[async_trait]
impl Registry for SledStore {
    async fn put(&self, name: String, value: String) -> Result<(), StoreError> {
        self.ask(|reply| Command::Beside { change: BesideChange::Keep { name, value: Some(value) }, reply }).await
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        self.ask(|reply| Command::Beside { change: BesideChange::Keep { name, value: None }, reply }).await
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.shared.beside.read().kept(prefix))
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        self.ask(|reply| Command::Beside { change: BesideChange::Audit { id, entry, oldest }, reply }).await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        let ids = self.shared.beside.read().audit_before(before, limit);
        self.read(move |_, disk| {
            let failed = |error: sled::Error| StoreError::Unavailable { reason: error.to_string() };
            let mut entries = Vec::with_capacity(ids.len());
            for id in ids {
                if let Some(bytes) = disk.tree().get(keys::audit(id)).map_err(failed)? {
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

impl Shared {
    /// Opens the database and reads the index anew; tells the first free number.
    fn open(&self) -> Result<Seq, OpenError> {
        self.load().map_err(OpenError::or_disk_fault)
    }

    fn load(&self) -> Result<Seq, OpenError> {
        let disk = Disk::open(&self.config.path, self.config.cache_bytes)?;
        let unreadable = |reason| OpenError::Unreadable { path: self.config.path.clone(), reason };
        let (mut index, keys, beside, next_seq) =
            load::load(&disk, self.config.keep_answers, &self.clock).map_err(unreadable)?;
        let deliveries = disk.deliveries(&index).map_err(unreadable)?;
        deliveries.pending().for_each(|seq| index.set_untold(seq, true));
        *self.book.write() = Book::load(disk.tree(), &index).map_err(unreadable)?;
        {
            let (mut old_index, mut old_deliveries) = (self.index.write(), self.deliveries.write());
            (*old_index, *old_deliveries) = (index, deliveries);
        }
        *self.keys.write() = keys;
        *self.beside.write() = beside;
        *self.disk.write() = Some(Arc::new(disk));
        *self.trouble.lock() = None;
        self.reset_feed();
        Ok(next_seq)
    }

    /// Tells the feed of all pending jobs.
    fn reset_feed(&self) {
        if let Some(feed) = self.feed.get() {
            let (pending, ended) = {
                let index = self.index.read();
                (index.pending(), index.ended())
            };
            feed.reset(pending, Totals { ended, spent: self.book.read().spent() });
        }
    }

    /// As [`Shared::open`], after a fault. What the kernel has in its cache is not trusted: after a failed sync it may show
    /// what never reached the disk. The disk itself is read, with all checks of a start.
    fn reopen(&self) -> Result<Seq, OpenError> {
        Disk::drop_cache(&self.config.path)
            .map_err(|source| OpenError::Folder { path: self.config.path.clone(), source })?;
        self.open()
    }

    fn close(&self, reason: &str) {
        *self.trouble.lock() = Some(reason.to_owned());
        // Dropped outside of the lock: sled's drop syncs, and panics if that fails.
        let disk = self.disk.write().take();
        drop(disk);
    }

    fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.read().clone()
    }

    /// The database, or why there is none at the moment.
    fn working_disk(&self) -> Result<Arc<Disk>, StoreError> {
        let reason = || self.trouble().unwrap_or_else(|| "it is being opened".to_owned());
        self.disk().ok_or_else(|| StoreError::Unavailable { reason: reason() })
    }

    /// A job with its records, of which `open` is what was owed to its callback URL; none if it was pruned since the
    /// index was asked. May block.
    fn record(&self, disk: &Disk, seq: Seq, job: Job, open: Option<Delivery>) -> Result<Option<JobRecord>, StoreError> {
        let id = job.id;
        let Some(mut record) = self.bodies(disk, seq, job)? else { return Ok(None) };
        if record.request.callback_url.is_some() {
            record.delivery = match open {
                Some(open) => Some(open),
                None => {
                    let settled = disk.delivery(seq).map_err(|reason| StoreError::Corrupt { id, reason })?;
                    // If it is open by now, then for what became of the job since: this record owes nothing.
                    settled.map(|delivery| if delivery.is_open() { delivery.withdrawn() } else { delivery })
                }
            };
        }
        Ok(Some(record))
    }

    /// A job with its request and attempts; none if it was pruned since the index was asked. May block.
    fn bodies(&self, disk: &Disk, seq: Seq, job: Job) -> Result<Option<JobRecord>, StoreError> {
        if let Some(record) = self.recent.record(seq, &job) {
            return Ok(Some(record));
        }
        let corrupt = |reason: String| StoreError::Corrupt { id: job.id, reason };
        let failed = |error: sled::Error| StoreError::Unavailable { reason: error.to_string() };
        let Some(bytes) = read_chunks(disk.tree(), &keys::request(seq)).map_err(failed)? else { return Ok(None) };
        let request = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        let mut bodies = Bodies { request, attempts: Vec::new(), bytes: bytes.len() };
        for number in disk.attempts(seq).map_err(failed)?.into_iter().filter(|number| *number <= job.closed_attempts())
        {
            if let Some(bytes) = read_chunks(disk.tree(), &keys::attempt(seq, number)).map_err(failed)? {
                let attempt: Attempt = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
                // Both are there if a crash came between.
                bodies.attempts.retain(|before: &Arc<Attempt>| !attempt.stands_for(before.number));
                bodies.attempts.push(Arc::new(attempt));
                bodies.bytes += bytes.len();
            }
        }
        self.recent.insert(seq, bodies.clone());
        Ok(Some(JobRecord { job, request: bodies.request, attempts: bodies.attempts, delivery: None }))
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Lists as queued what was scheduled for a moment that has come.
    fn promote(&self, now: Timestamp) {
        let lead = self.clock.lead();
        // A statement of its own: the lock for reading must be gone before that for writing is asked for.
        let due = self.index.read().has_due(now, lead);
        if due {
            self.index.write().promote(now, lead);
        }
    }

    fn key_time(&self, now: Timestamp) -> Timestamp {
        idempotency::time(&self.clock, now)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
