//! The store on PostgreSQL, for any number of nodes. The only importer of tokio-postgres.
//!
//! - `connection`: connections, and what must hold of the server; `error`: why it can't be used
//! - `schema`: the tables and their versions
//! - `seat`: which node is the dispatcher
//! - `nodes`: which nodes there are; `roster`: what their beats say; `formats`: what they can read
//! - `feed`: what other nodes changed
//! - `peers`: what all nodes must have in common; `marks`: how they compare settings
//! - `batch`: what changes make of jobs
//! - `writer`: the one task of a node that changes anything; `session`: its connection
//! - `columns`: what a batch writes
//! - `shared`: what readers and the writer share; `state`: sums over all jobs, in memory
//! - `readers`: connections for reads
//! - `listing`: looking for jobs within a bound of time
//!
//! Each statement is a file beside this one. Requests, attempts and messages are JSON; a job's life is the record that the
//! store on sled writes too.

mod batch;
mod columns;
mod connection;
mod error;
mod feed;
mod formats;
mod listing;
mod marks;
mod nodes;
mod peers;
mod readers;
mod roster;
mod schema;
mod seat;
mod session;
mod shared;
mod state;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::HashSet,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use secrecy::SecretString;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

pub(crate) use self::nodes::{KnownNodes, Phase};
#[cfg(test)]
pub(crate) use self::roster::Row;
use self::{
    batch::{Batch, Needs},
    connection::Database,
    listing::{broken, decode, record, unavailable},
    nodes::{Beats, DRAIN_TIMEOUT},
    peers::Differing,
    readers::Readers,
    schema::Schema,
    session::FORGOTTEN_KEYS,
    shared::{Reset, Shared, Standing},
    state::State,
    writer::{Answer, Command, Lanes, Writer},
};
pub use self::{
    error::OpenError, formats::Formats, marks::CommonSettings, nodes::Member, schema::Migration, seat::Seat,
};
use super::{
    change,
    new_job::NewJob,
    nodes::Nodes,
    traits::{ClaimedJob, Due, Feed, Insertion, JobHead, JobStore, Ledger, OrphanedKey, Outbox, Registry, StoreError},
};
use crate::{
    clock::{Clock, Timestamp},
    digest::ModelKey,
    job::{
        AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobPage, JobRecord, JobRequest, JobSelection, Listing,
        Owner,
        delivery::{Delivery, UNNOTIFIED_RETENTION},
    },
    ledger::{Day, DaySums, Sums},
    metrics::Metrics,
};

/// Commands of each lane that wait for the writer; further callers wait for a place. A few batches' worth.
const PLACES: usize = 4_096;

/// Jobs whose message is still to be sent may be this part of the finished jobs that stay.
const UNNOTIFIED_PART: usize = 2;

/// The store.
pub struct PostgresStore {
    shared: Arc<Shared>,
    /// `None` once the store is closed.
    lanes: Mutex<Option<Senders>>,
    nodes: Arc<KnownNodes>,
    differing: Arc<Differing>,
    tasks: Mutex<Option<Tasks>>,
}

/// All but the writer end with the store.
struct Tasks {
    writing: JoinHandle<()>,
    /// Of the seat and the peers.
    _asking: AbortOnDropHandle<()>,
    /// `None` for a command.
    beating: Option<AbortOnDropHandle<()>>,
}

#[derive(Clone)]
struct Senders {
    changes: mpsc::Sender<Command>,
    new: mpsc::Sender<Command>,
}

impl PostgresStore {
    /// Opens the store, registers the node and asks for the seat from now on.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        url: &SecretString,
        member: &Member<'_>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<PostgresStore, OpenError> {
        let database = Arc::new(Database::open(url, member.common).await?);
        let shared = Arc::new(Shared {
            database: Arc::clone(&database),
            readers: Readers::new(database),
            formats: member.formats,
            format: AtomicU8::new(member.formats.oldest),
            clock,
            metrics,
            state: RwLock::new(State::default()),
            feed: Mutex::default(),
            trouble: Mutex::default(),
            full: Mutex::default(),
            lost: CancellationToken::new(),
            leaving: CancellationToken::new(),
            standing: watch::Sender::new(Standing::Unknown),
            newest: watch::Sender::new(0),
            unread: Mutex::default(),
            beat_at: Mutex::new(Instant::now()),
        });
        let nodes = Arc::new(KnownNodes::new(member));
        let beats = match member.name {
            Some(_) => Some(Beats::open(Arc::clone(&shared), Arc::clone(&nodes)).await?),
            None => {
                let rows = shared.readers.read(include_str!("postgres/format.sql"), &[]).await?;
                let found = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
                shared.format.store(member.formats.check(found)?, Ordering::Relaxed);
                None
            }
        };
        let (changes, changes_lane) = mpsc::channel(PLACES);
        let (new, new_lane) = mpsc::channel(PLACES);
        let lanes = Lanes { changes: changes_lane, new: new_lane };
        let writer = Writer::open(Arc::clone(&shared), lanes).await?;
        *shared.beat_at.lock() = Instant::now();
        let writing = tokio::spawn({
            // A writer that panics leaves no store.
            let guard = shared.lost.clone().drop_guard();
            async move {
                writer.run().await;
                guard.disarm();
            }
        });
        let differing = Arc::<Differing>::default();
        let asking = AbortOnDropHandle::new(tokio::spawn({
            let seat = seat::run(Arc::clone(&shared), changes.downgrade());
            let watching = peers::watch(Arc::clone(&shared), Arc::clone(&differing));
            async move { _ = tokio::join!(seat, watching) }
        }));
        let beating = beats.map(|beats| AbortOnDropHandle::new(tokio::spawn(beats.run())));
        Ok(PostgresStore {
            shared,
            lanes: Mutex::new(Some(Senders { changes, new })),
            nodes,
            differing,
            tasks: Mutex::new(Some(Tasks { writing, _asking: asking, beating })),
        })
    }

    /// Makes the schema of a database, or upgrades it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn migrate(url: &SecretString) -> Result<Migration, OpenError> {
        Database::migrate(url, Schema::OF_THIS_PROGRAM).await
    }

    /// The nodes of the database.
    pub fn nodes(&self) -> Arc<dyn Nodes> {
        Arc::clone(&self.nodes) as _
    }

    /// The names of settings that all nodes must have in common and that have another value on another live node.
    pub fn differing_settings(&self) -> Vec<&'static str> {
        self.differing.names()
    }

    /// Lets the dispatcher give calls to this node, as long as it is fit for them.
    pub fn accept_calls(&self, is_fit: bool) {
        let wanted = if is_fit { Phase::Ready } else { Phase::Starting };
        let change = |phase: &mut Phase| *phase != Phase::Leaving && std::mem::replace(phase, wanted) != wanted;
        self.nodes.phase.send_if_modified(change);
    }

    /// Has the other nodes give no more calls to this one, and leaves the seat to one of them. What this node runs may end
    /// until the store is closed. The dispatcher must have ended.
    pub async fn drain(&self) {
        tokio::join!(self.nodes.drain(), self.leave_seat());
    }

    async fn leave_seat(&self) {
        self.shared.leaving.cancel();
        let mut standing = self.shared.standing.subscribe();
        let left = standing.wait_for(|standing| *standing != Standing::Seated);
        tokio::select! {
            _ = timeout(DRAIN_TIMEOUT, left) => {}
            () = self.shared.lost.cancelled() => {}
        }
    }

    /// Sends a text of at most 8,000 bytes to all nodes, this one too. It is not stored and may be lost.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn send_hint(&self, text: &str) -> Result<(), StoreError> {
        self.read(include_str!("postgres/send_hint.sql"), &[&text]).await.map(drop)
    }

    /// The texts that nodes send.
    pub fn hints(&self) -> broadcast::Receiver<String> {
        self.shared.database.hints.subscribe()
    }

    /// The seat of the database.
    pub fn seat(&self) -> Seat {
        Seat(self.shared.standing.subscribe())
    }

    /// Whether this node has the seat, and no other one is connected to the database.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn is_alone(&self) -> Result<bool, StoreError> {
        if !self.seat().is_free().await {
            if *self.shared.standing.borrow() == Standing::Unknown {
                let reason = "this process could not ask for the seat; the log has the reason".to_owned();
                return Err(StoreError::Unavailable { reason });
            }
            return Ok(false);
        }
        let rows = self.read(include_str!("postgres/other_nodes.sql"), &[&self.shared.database.node]).await?;
        rows.first().map_or(Ok(false), |row| row.try_get(0).map(|others: bool| !others).map_err(broken))
    }

    fn closed(&self) -> StoreError {
        let reason = self.shared.trouble.lock().clone();
        let reason =
            reason.unwrap_or_else(|| "the connection to the database broke; the outcome is not known".to_owned());
        StoreError::Unavailable { reason }
    }

    fn lanes(&self) -> Result<Senders, StoreError> {
        let closed = || StoreError::Unavailable { reason: "the job store is closed".to_owned() };
        self.lanes.lock().clone().ok_or_else(closed)
    }

    /// Has the writer make a change.
    async fn change<T: Send + 'static>(
        &self,
        needs: Needs,
        change: impl FnOnce(&mut Batch) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let senders = self.lanes()?;
        self.send(senders.changes, needs, change).await
    }

    /// Has the writer add jobs.
    async fn bring<T: Send + 'static>(
        &self,
        needs: Needs,
        change: impl FnOnce(&mut Batch) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let senders = self.lanes()?;
        // A transaction that gets no answer would let clients wait until it is given up.
        if let Some(reason) = self.trouble() {
            return Err(StoreError::Unavailable { reason });
        }
        self.send(senders.new, needs, change).await
    }

    async fn send<T: Send + 'static>(
        &self,
        lane: mpsc::Sender<Command>,
        needs: Needs,
        change: impl FnOnce(&mut Batch) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let run = Box::new(move |batch: &mut Batch| -> Answer {
            let result = change(batch);
            // Nobody may be listening any more.
            Box::new(move || drop(reply.send(result)))
        });
        lane.send(Command::Change { needs, run }).await.map_err(|_| self.closed())?;
        // The writer ends once all senders are gone.
        drop(lane);
        answer.await.map_err(|_| self.closed())?
    }

    /// The time by which keys are in force: a jump of the clock ends none.
    fn key_time(&self, now: Timestamp) -> Timestamp {
        now.minus(self.shared.clock.skipped(IdempotencyKey::WINDOW))
    }

    async fn read(
        &self,
        sql: &'static str,
        values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, StoreError> {
        self.lanes()?;
        // At once, or every request would wait for the time limits of a connection.
        if let Some(reason) = self.shared.read_trouble() {
            return Err(StoreError::Unavailable { reason });
        }
        self.shared.readers.read(sql, values).await.map_err(unavailable)
    }
}

#[async_trait]
impl JobStore for PostgresStore {
    async fn insert(&self, job: Job, request: Arc<JobRequest>) -> Result<Insertion, StoreError> {
        Ok(self.insert_all(vec![JobRecord::fresh(job, request)]).await?[0])
    }

    async fn insert_all(&self, jobs: Vec<JobRecord>) -> Result<Vec<Insertion>, StoreError> {
        let new = NewJob::from_records(jobs.into_iter().map(change::with_delivery))?;
        self.bring(Needs::of_new(&new), |batch| batch.insert_all(new)).await
    }

    async fn import(&self, records: Vec<JobRecord>, places: Option<Vec<u64>>) -> Result<Vec<Insertion>, StoreError> {
        let ids = records.iter().map(|record| record.job.id).collect();
        let new = NewJob::from_records(records)?;
        let needs = Needs { jobs: ids, ..Needs::of_new(&new) };
        self.bring(needs, |batch| Ok(batch.import(new, places))).await
    }

    async fn claim(
        &self,
        id: JobId,
        owner: Owner,
        asks: Option<ModelKey>,
        now: Timestamp,
    ) -> Result<ClaimedJob, StoreError> {
        let needs = Needs { requests: vec![id], ..Needs::job(id) };
        self.change(needs, move |batch| batch.claim(id, &JobEvent::Claim { owner, asks }, now)).await
    }

    async fn transition(&self, id: JobId, event: JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        let bytes = event.report().map_or(0, change::report_bytes);
        let last_attempts = matches!(event, JobEvent::Release { .. }).then_some(id).into_iter().collect();
        let needs = Needs { bytes, last_attempts, ..Needs::job(id) };
        self.change(needs, move |batch| batch.apply(id, &event, now)).await
    }

    async fn succeed(
        &self,
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        let jobs = [id].into_iter().chain(followers.iter().copied()).collect();
        let needs = Needs { jobs, bytes: change::report_bytes(&report), ..Needs::job(id) };
        self.change(needs, move |batch| batch.succeed(id, attempt, &report, followers, now)).await
    }

    async fn prune(&self, before: Timestamp, keep: usize, limit: usize) -> Result<usize, StoreError> {
        let now = self.shared.clock.now();
        let (ended, unnotified) = {
            let state = self.shared.state.read();
            (state.ended(), state.counts.unnotified)
        };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let unnotified_surplus = unnotified.saturating_sub(keep.div_ceil(UNNOTIFIED_PART));
        let surplus = (ended - unnotified_surplus.min(ended)).saturating_sub(keep);
        let cutoff = before.min(now.minus(UNNOTIFIED_RETENTION));
        let keys_until = self.key_time(now);
        let bounds =
            [number(surplus), before.as_millis(), number(unnotified_surplus), cutoff.as_millis(), number(limit)];
        let [a, b, c, d, e] = &bounds;
        let rows = self.read(include_str!("postgres/prunable.sql"), &[a, b, c, d, e]).await?;
        let ended = rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?))));
        let ended: std::collections::HashMap<JobId, (Option<i64>, bool)> =
            ended.collect::<Result<_, tokio_postgres::Error>>().map_err(broken)?;
        let keys = self
            .read(include_str!("postgres/count_expired_keys.sql"), &[&keys_until.as_millis(), &FORGOTTEN_KEYS])
            .await?;
        let keys: i64 = keys.first().map_or(Ok(0), |row| row.try_get(0)).map_err(broken)?;
        if ended.is_empty() && keys == 0 {
            return Ok(0);
        }
        let ids: HashSet<JobId> = ended.keys().copied().collect();
        let needs = Needs { jobs: ids.iter().copied().collect(), count: ids.len(), ..Needs::default() };
        let pruned = self.change(needs, move |batch| {
            batch.forget_keys = (keys > 0).then_some(keys_until);
            Ok(batch.remove(&ids, |job, is_unnotified| {
                ended.get(&job.id) == Some(&(job.finished_at.map(Timestamp::as_millis), is_unnotified))
            }))
        });
        // As many as asked for: there may be more.
        if keys == FORGOTTEN_KEYS { pruned.await.map(|_| limit) } else { pruned.await }
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        let rows = self.read(include_str!("postgres/record.sql"), &[&id]).await?;
        rows.first().map_or(Ok(None), record)
    }

    async fn heads(&self, after: u64, most: usize) -> Result<Vec<JobHead>, StoreError> {
        let (after, most) = (after.cast_signed(), i64::try_from(most).unwrap_or(i64::MAX));
        self.lanes()?;
        let rows = self.shared.readers.search(include_str!("postgres/heads.sql"), &[&after, &most]).await;
        rows.map_err(unavailable)?.iter().map(|row| listing::head(row).map_err(broken)).collect()
    }

    async fn find(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let rows = self.read(include_str!("postgres/find.sql"), &[&id]).await?;
        rows.first().map(|row| decode(id, row, 0)).transpose()
    }

    async fn newest_answer(&self, question: NonZeroU64) -> Result<Option<Job>, StoreError> {
        let question = question.get().cast_signed();
        let rows = self.read(include_str!("postgres/newest_answer.sql"), &[&question]).await?;
        rows.first().map(|row| decode(JobId::nil(), row, 0)).transpose()
    }

    async fn is_key_known(&self, key: &IdempotencyKey, now: Timestamp) -> Result<bool, StoreError> {
        let now = self.key_time(now).as_millis();
        let rows = self.read(include_str!("postgres/is_key_known.sql"), &[&key.key.to_vec(), &now]).await?;
        rows.first().map_or(Ok(false), |row| row.try_get(0).map_err(broken))
    }

    async fn orphaned_keys(&self, after: Option<[u8; 16]>, most: usize) -> Result<Vec<OrphanedKey>, StoreError> {
        self.lanes()?;
        let (mut after, most) = (after.map(Vec::from).unwrap_or_default(), i64::try_from(most).unwrap_or(i64::MAX));
        loop {
            let rows = self.shared.readers.search(include_str!("postgres/orphaned_keys.sql"), &[&after, &most]).await;
            let rows = rows.map_err(unavailable)?;
            let Some(last) = rows.last() else { return Ok(Vec::new()) };
            after = last.try_get(0).map_err(broken)?;
            let orphans = rows.iter().filter_map(|row| listing::orphan(row).transpose());
            let orphans = orphans.collect::<Result<Vec<_>, _>>().map_err(broken)?;
            if !orphans.is_empty() {
                return Ok(orphans);
            }
        }
    }

    async fn add_keys(&self, keys: Vec<OrphanedKey>) -> Result<(), StoreError> {
        let names = keys.iter().map(|(key, ..)| key.key.to_vec()).collect();
        let needs = Needs { keys: names, count: keys.len(), ..Needs::default() };
        self.change(needs, move |batch| {
            keys.iter().for_each(|(key, job, caller)| batch.add_key(key, *job, *caller));
            Ok(())
        })
        .await
    }

    async fn remove(&self, ids: Vec<JobId>, _: Timestamp) -> Result<usize, StoreError> {
        let needs = Needs { count: ids.len(), jobs: ids.clone(), ..Needs::default() };
        let ids = ids.into_iter().collect();
        self.change(needs, move |batch| Ok(batch.remove(&ids, |_, _| true))).await
    }

    async fn list(&self, listing: Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        self.lanes()?;
        self.shared.search(&listing, now).await
    }

    async fn select(&self, listing: Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        self.lanes()?;
        self.shared.search_ids(&listing, now).await
    }

    async fn subscribe(&self, feed: Arc<dyn Feed>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let lane = self.lanes()?.changes;
        lane.send(Command::Reset(Reset { feed, reply })).await.map_err(|_| self.closed())?;
        answer.await.map_err(|_| self.closed())?
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble().or_else(|| self.shared.full.lock().clone())
    }

    fn lost(&self) -> CancellationToken {
        self.shared.lost.clone()
    }

    async fn close(&self) {
        // While the writer can still be asked to compare the epoch no more.
        self.leave_seat().await;
        self.lanes.lock().take();
        let tasks = self.tasks.lock().take();
        let Some(Tasks { writing, beating, .. }) = tasks else { return };
        // It has to finish what was accepted.
        let _ = writing.await;
        if let Some(beating) = beating {
            beating.abort();
            let _ = beating.await;
            Beats::remove(&self.shared, &self.nodes).await;
        }
    }
}

#[async_trait]
impl Ledger for PostgresStore {
    async fn add(&self, day: Day, model: String, sums: Sums) -> Result<(), StoreError> {
        self.change(Needs { count: 1, ..Needs::default() }, move |batch| {
            batch.costs.push((day, model, sums));
            Ok(())
        })
        .await
    }

    async fn days(&self, most: usize) -> Result<Vec<DaySums>, StoreError> {
        self.lanes()?;
        Ok(self.shared.state.read().newest(most))
    }
}

#[async_trait]
impl Outbox for PostgresStore {
    async fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Due>, StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = self.read(include_str!("postgres/due.sql"), &[&now.as_millis(), &most]).await?;
        let due = rows.iter().map(|row| {
            let caller = NonZeroU64::new(row.try_get::<_, i64>(1)?.cast_unsigned());
            Ok(Due { job: row.try_get(0)?, caller, host: row.try_get::<_, &str>(2)?.into() })
        });
        due.collect::<Result<_, _>>().map_err(broken)
    }

    async fn next_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let rows = self.read(include_str!("postgres/next_due.sql"), &[&now.as_millis()]).await?;
        let next: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(broken)?;
        Ok(next.map(Timestamp::from_millis))
    }

    async fn resend(&self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        let needs = Needs { requests: vec![id], ..Needs::job(id) };
        self.change(needs, move |batch| batch.resend(id, now)).await
    }

    async fn failing(&self, listing: Listing) -> Result<JobPage, StoreError> {
        self.lanes()?;
        self.shared.search_failing(&listing).await
    }

    async fn record(&self, id: JobId, delivery: Delivery) -> Result<(), StoreError> {
        self.change(Needs::job(id), move |batch| {
            batch.record(id, delivery);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Registry for PostgresStore {
    async fn put(&self, name: String, value: String) -> Result<(), StoreError> {
        self.change(Needs { count: 1, bytes: value.len(), ..Needs::default() }, move |batch| {
            batch.settings.insert(name, Some(value));
            Ok(())
        })
        .await
    }

    async fn delete(&self, name: String) -> Result<(), StoreError> {
        self.change(Needs { count: 1, ..Needs::default() }, move |batch| {
            batch.settings.insert(name, None);
            Ok(())
        })
        .await
    }

    async fn compare_and_set(
        &self,
        name: String,
        expected: Option<String>,
        value: Option<String>,
    ) -> Result<bool, StoreError> {
        let settings = vec![name.clone().into_bytes()];
        let bytes = value.as_ref().map_or(0, String::len);
        let needs = Needs { settings, count: 1, bytes, ..Needs::default() };
        self.change(needs, move |batch| Ok(batch.compare_and_set(name, expected.as_deref(), value))).await
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        let rows = self.read(include_str!("postgres/settings.sql"), &[&prefix.as_bytes()]).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let settings = rows.iter().map(|row| Ok((text(row.try_get(0)?), text(row.try_get(1)?))));
        settings.collect::<Result<_, _>>().map_err(broken)
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.shared.database.settings_watch.subscribe()
    }

    fn is_watch_live(&self, within: Duration) -> bool {
        self.shared.hears(within)
    }

    async fn append_audit(&self, id: Uuid, entry: String, oldest: Uuid) -> Result<(), StoreError> {
        self.change(Needs { count: 1, bytes: entry.len(), ..Needs::default() }, move |batch| {
            batch.audit.push((id, entry, oldest));
            Ok(())
        })
        .await
    }

    async fn read_audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<(Uuid, String)>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.read(include_str!("postgres/read_audit.sql"), &[&before, &limit]).await?;
        let entries =
            rows.iter().map(|row| Ok((row.try_get(0)?, String::from_utf8_lossy(row.try_get(1)?).into_owned())));
        entries.collect::<Result<_, _>>().map_err(broken)
    }
}
