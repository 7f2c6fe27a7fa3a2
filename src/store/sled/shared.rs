//! What readers and the writer share: the open database, and all of it that memory holds.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::{
    cache::{Bodies, RecordCache},
    disk::{self, Disk},
    error::{Fault, OpenError, Result},
    idempotency,
    keys::Seq,
    load::{View, load},
};
use crate::{
    clock::{Clock, Timestamp},
    job::{Job, JobId, JobRecord, JobRequest, delivery::Delivery},
    metrics::Metrics,
    store::{
        traits::{Feed, StoreError},
        watch::SettingsWatch,
    },
};

pub(super) const CLOSED: &str = "the job store is closed";

#[derive(Clone, Debug)]
pub struct SledConfig {
    /// The folder, created if need be. Its parent must allow that.
    pub path: PathBuf,
    /// Most bytes of pages that sled caches.
    pub cache_bytes: u64,
    /// Whether answers can be found by their question, at some 35 bytes of memory each.
    pub keep_answers: bool,
}

pub(super) struct Shared {
    pub(super) config: SledConfig,
    pub(super) clock: Clock,
    pub(super) view: RwLock<View>,
    pub(super) cache: RecordCache,
    /// None while the store is unavailable.
    disk: RwLock<Option<Arc<Disk>>>,
    trouble: Mutex<Option<String>>,
    /// Cancelled once the writer has given up.
    pub(super) lost: CancellationToken,
    pub(super) feed: OnceLock<Arc<dyn Feed>>,
    pub(super) settings_watch: SettingsWatch,
    pub(super) metrics: Metrics,
}

impl Shared {
    pub(super) fn new(config: SledConfig, clock: Clock, metrics: Metrics) -> Shared {
        Shared {
            config,
            clock,
            view: RwLock::default(),
            cache: RecordCache::default(),
            disk: RwLock::default(),
            trouble: Mutex::default(),
            lost: CancellationToken::new(),
            feed: OnceLock::new(),
            settings_watch: SettingsWatch::default(),
            metrics,
        }
    }

    /// Opens the database and loads what memory holds of it. Returns the first free number.
    pub(super) fn open(&self) -> Result<Seq, OpenError> {
        self.load().map_err(disk::or_disk_fault)
    }

    fn load(&self) -> Result<Seq, OpenError> {
        let disk = Disk::open(&self.config.path, self.config.cache_bytes)?;
        let unreadable = |Fault(reason)| OpenError::Unreadable { path: self.config.path.clone(), reason };
        let (view, next_seq) = load(&disk, self.config.keep_answers, &self.clock).map_err(unreadable)?;
        *self.view.write() = view;
        *self.disk.write() = Some(Arc::new(disk));
        *self.trouble.lock() = None;
        self.reset_feed();
        self.settings_watch.any_changed();
        Ok(next_seq)
    }

    /// As [`Shared::open`], after a fault. The kernel's cache is not trusted, because after a failed sync it may show what
    /// never reached the disk: the disk itself is read, with all checks of a start.
    pub(super) fn reopen(&self) -> Result<Seq, OpenError> {
        Disk::drop_cache(&self.config.path)
            .map_err(|source| OpenError::Folder { path: self.config.path.clone(), source })?;
        self.open()
    }

    pub(super) fn close(&self, reason: &str) {
        *self.trouble.lock() = Some(reason.to_owned());
        // Dropped outside of the lock: sled's drop syncs, and panics if that fails.
        let disk = self.disk.write().take();
        drop(disk);
    }

    pub(super) fn reset_feed(&self) {
        if let Some(feed) = self.feed.get() {
            let (pending, totals) = {
                let view = self.view.read();
                (view.index.pending(), view.totals())
            };
            feed.reset(pending, totals);
        }
    }

    pub(super) fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.read().clone()
    }

    /// The open database, or the reason why it is not open.
    pub(super) fn working_disk(&self) -> Result<Arc<Disk>> {
        let reason = || self.trouble().unwrap_or_else(|| "it is being opened".to_owned());
        self.disk().ok_or_else(|| StoreError::Unavailable { reason: reason() })
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// A job with its records; none if it was pruned since the index was read. `open` is its webhook at that moment, if that
    /// was not settled. May block.
    pub(super) fn record(&self, disk: &Disk, seq: Seq, job: Job, open: Option<Delivery>) -> Result<Option<JobRecord>> {
        let id = job.id;
        let Some(mut record) = self.bodies(disk, seq, job)? else { return Ok(None) };
        if record.request.callback_url.is_some() {
            let unreadable = |Fault(reason)| StoreError::Corrupt { id, reason };
            record.delivery =
                open.map_or_else(|| disk.settled_delivery(seq), |open| Ok(Some(open))).map_err(unreadable)?;
        }
        Ok(Some(record))
    }

    /// As [`Shared::record`], but without the webhook.
    pub(super) fn bodies(&self, disk: &Disk, seq: Seq, job: Job) -> Result<Option<JobRecord>> {
        if let Some(record) = self.cache.record(seq, &job) {
            return Ok(Some(record));
        }
        let Some((request, bytes)) = disk.request(seq, job.id)? else { return Ok(None) };
        let mut bodies = Bodies { request, attempts: Vec::new(), bytes };
        // A later attempt was never committed.
        for number in disk.attempts(seq)?.into_iter().filter(|number| *number <= job.closed_attempts()) {
            if let Some((attempt, bytes)) = disk.attempt(seq, number, job.id)? {
                // Both are there if a crash came between.
                bodies.attempts.retain(|before| !attempt.stands_for(before.number));
                bodies.attempts.push(attempt);
                bodies.bytes += bytes;
            }
        }
        self.cache.insert(seq, bodies.clone());
        Ok(Some(JobRecord { job, request: bodies.request, attempts: bodies.attempts, delivery: None }))
    }

    /// A job's request, if there is a record of it. May block.
    pub(super) fn request(&self, disk: &Disk, seq: Seq, id: JobId) -> Result<Option<Arc<JobRequest>>> {
        match self.cache.request(seq) {
            Some(request) => Ok(Some(request)),
            None => Ok(disk.request(seq, id)?.map(|(request, _)| request)),
        }
    }

    /// Lists as queued what was scheduled for a moment that has come.
    pub(super) fn promote(&self, now: Timestamp) {
        let lead = self.clock.lead();
        // A statement of its own: the lock for reading must be gone before that for writing is taken.
        let is_due = self.view.read().index.has_due(now, lead);
        if is_due {
            self.view.write().index.promote(now, lead);
        }
    }

    pub(super) fn key_time(&self, now: Timestamp) -> Timestamp {
        idempotency::key_time(&self.clock, now)
    }
}
