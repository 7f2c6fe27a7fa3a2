//! The store that a node sees: every call goes to the [database](super::database) and back, or fails on its way.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::connection::Connection;
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        Owner, delivery::Delivery,
    },
    ledger::{Day, DaySums, Sums},
    store::{
        ClaimedJob, Due, Feed, Insertion, JobHead, JobStore, Ledger, OrphanedKey, Outbox, Registry, StoreError,
        memory::MemoryStore,
    },
};

pub(super) struct NodeStore(pub(super) Arc<Connection>);

impl NodeStore {
    fn database(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.0.database.store)
    }
}

#[async_trait]
impl JobStore for NodeStore {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        let store = self.database();
        self.0.database.journal.sent(job.id, &request);
        self.0.write(async move { store.insert(job, request).await }).await
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        let store = self.database();
        jobs.iter().for_each(|record| self.0.database.journal.sent(record.job.id, &record.request));
        self.0.write(async move { store.insert_all(jobs).await }).await
    }

    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>, StoreError> {
        let store = self.database();
        self.0.write(async move { store.import(records, places).await }).await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        asks: Option<ModelKey>,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        let store = self.database();
        self.0.write(async move { store.claim(id, owner, asks, now).await }).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        let store = self.database();
        self.0.write(async move { store.transition(id, event, now).await }).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        let store = self.database();
        self.0.write(async move { store.succeed(id, attempt, report, followers, now).await }).await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError> {
        let store = self.database();
        self.0.write(async move { store.prune(before, keep, limit).await }).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.0.read(self.database().get(id)).await
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.0.read(self.database().find(id)).await
    }

    async fn newest_answer(&self, question: NonZeroU64) -> Result<Option<Job>, StoreError> {
        self.0.read(self.database().newest_answer(question)).await
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError> {
        self.0.read(self.database().is_key_known(key, now)).await
    }

    async fn remove(&self, ids: Vec<JobId>, now: Timestamp) -> Result<usize, StoreError> {
        let store = self.database();
        self.0.write(async move { store.remove(ids, now).await }).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        self.0.read(self.database().list(listing, now)).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        self.0.read(self.database().select(listing, now)).await
    }

    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>, StoreError> {
        self.0.read(self.database().heads(after, most)).await
    }

    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>, StoreError> {
        self.0.read(self.database().orphaned_keys(after, most)).await
    }

    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.add_keys(keys).await }).await
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
        self.0.subscribe(feed).await
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }

    fn lost(&self) -> CancellationToken {
        self.0.lost.clone()
    }

    async fn close(&self) {}
}

#[async_trait]
impl Ledger for NodeStore {
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.add(day, model, sums).await }).await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError> {
        self.0.read(self.database().days(most)).await
    }
}

#[async_trait]
impl Outbox for NodeStore {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError> {
        self.0.read(self.database().due(now, most)).await
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.0.read(self.database().next_due(now)).await
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.resend(id, now).await }).await
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError> {
        self.0.read(self.database().failing(listing)).await
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.record(id, delivery).await }).await
    }
}

#[async_trait]
impl Registry for NodeStore {
    async fn put(&self, name: String, value: String) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.put(name, value).await }).await
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.delete(name).await }).await
    }

    async fn compare_and_set(
        &self,
        name: String,
        expected: Option<String>,
        value: Option<String>,
    ) -> Result<bool, StoreError> {
        let store = self.database();
        self.0.write(async move { store.compare_and_set(name, expected, value).await }).await
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        self.0.read(self.database().prefix(prefix)).await
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.database().watch()
    }

    fn is_watch_live(&self, _: Duration) -> bool {
        self.0.trouble().is_none()
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        let store = self.database();
        self.0.write(async move { store.append_audit(id, entry, oldest).await }).await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        self.0.read(self.database().read_audit(before, limit)).await
    }
}
