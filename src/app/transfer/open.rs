//! A store that no service uses: opening, marking, comparing.

use std::{sync::Arc, time::Duration};

use tokio::{task, time::sleep};

use super::{error::TransferError, place::Place};
use crate::{
    app::{parts, secrets},
    clock::{Clock, Timestamp},
    job::{IdempotencyKey, Job},
    metrics::Metrics,
    store::{
        Feed, Store, StoreError, Totals,
        archive::{self, Merged, Reader, Scope, Tally},
        postgres::{self, Member, PostgresStore},
        sled::SledStore,
    },
};

/// How often to look for other nodes of a database: the server needs a moment to notice that one has ended.
const NODE_TRIES: u32 = 25;
const NODE_PAUSE: Duration = Duration::from_millis(200);

/// What the mark of an import begins with.
const ARCHIVE: &str = "the archive ";

struct NoFeed;

impl Feed for NoFeed {
    fn reset(&self, _: Vec<Arc<Job>>, _: Totals) {}

    fn changed(&self, _: &[Arc<Job>], _: Totals) {}
}

pub(super) struct Open {
    pub(super) place: Place,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    /// The same store, if it is a database.
    database: Option<Arc<PostgresStore>>,
}

impl Open {
    pub(super) async fn source(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        if let Place::Folder(path) = place
            && !parts::has_store(path)
        {
            return Err(TransferError::NoStore { path: path.clone() });
        }
        let open = Open::open(place, clock).await?;
        if let Some(origin) = open.mark().await? {
            return Err(TransferError::Half(place.clone(), origin));
        }
        if open.is_empty().await? {
            return Err(TransferError::Nothing(place.clone()));
        }
        Ok(open)
    }

    pub(super) async fn target(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        if let Place::Folder(path) = place {
            secrets::guard_folder(path);
        }
        Open::open(place, clock).await
    }

    async fn open(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        let (store, database): (Arc<dyn Store>, _) = match place {
            Place::Folder(path) => {
                let (config, clock) = (parts::store(path, false), clock.clone());
                (Arc::new(task::spawn_blocking(move || SledStore::open(config, clock, Metrics::new())).await??), None)
            }
            Place::Database(url) => {
                let failed = |error| match error {
                    postgres::OpenError::Connect(reason) => TransferError::Unreachable(place.clone(), reason),
                    error => TransferError::Database(place.clone(), error),
                };
                let store =
                    PostgresStore::open(url, &Member::COMMAND, clock.clone(), Metrics::new()).await.map_err(failed)?;
                let store = Arc::new(store);
                (store.clone(), Some(store))
            }
        };
        let open = Open { place: place.clone(), store, clock: clock.clone(), database };
        // First: a node of a database knows all sums only from then on.
        open.store.subscribe(Arc::new(NoFeed)).await.map_err(|error| open.failed(error))?;
        open.check_alone(NODE_TRIES).await?;
        Ok(open)
    }

    /// Another process has no folder at the same time, but it may have started to use a database.
    pub(super) async fn check_alone(&self, tries: u32) -> Result<(), TransferError> {
        let Some(database) = &self.database else { return Ok(()) };
        for left in (0..tries).rev() {
            if database.is_alone().await.map_err(|error| self.failed(error))? {
                return Ok(());
            }
            if left > 0 {
                sleep(NODE_PAUSE).await;
            }
        }
        Err(TransferError::InUse(self.place.clone()))
    }

    pub(super) fn failed(&self, error: StoreError) -> TransferError {
        TransferError::Store(self.place.clone(), error)
    }

    /// Keys that expire before are left out: the store may have forgotten them or not.
    pub(super) fn keys_from(&self) -> Timestamp {
        self.clock.now().minus(self.clock.skipped(IdempotencyKey::WINDOW))
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.store), Scope::Everything, self.keys_from())
    }

    pub(super) async fn outline(&self, keys_from: Timestamp) -> Result<Tally, TransferError> {
        let outline = archive::outline(&self.store, keys_from).await;
        outline.map_err(|error| TransferError::of_merge(error, &self.place, &self.place))
    }

    async fn mark(&self) -> Result<Option<String>, TransferError> {
        archive::marked(&*self.store).await.map_err(|error| self.failed(error))
    }

    async fn is_empty(&self) -> Result<bool, TransferError> {
        let mut reader = self.reader();
        while let Some(records) = reader.next().await.map_err(|error| self.failed(error))? {
            if !records.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks a target, so that no node starts with it. A move can continue any other one, because it makes both sides equal.
    /// False if the target has records and no mark: then nothing may be written.
    pub(super) async fn begin(&self, origin: &str) -> Result<bool, TransferError> {
        let known = self.mark().await?;
        let is_import = |origin: &str| origin.starts_with(ARCHIVE);
        match &known {
            Some(known) if known != origin && (is_import(known) || is_import(origin)) => {
                return Err(TransferError::Half(self.place.clone(), known.clone()));
            }
            None if !self.is_empty().await? => return Ok(false),
            Some(_) | None => {}
        }
        archive::mark(&*self.store, origin).await.map_err(|error| self.failed(error))?;
        // A node that started since the first look may not have seen the mark.
        if let Err(error) = self.check_alone(1).await {
            if known.is_none() {
                archive::unmark(&*self.store).await.map_err(|error| self.failed(error))?;
            }
            return Err(error);
        }
        Ok(true)
    }

    /// The mark of an import.
    pub(super) fn archive(id: uuid::Uuid) -> String {
        format!("{ARCHIVE}{id}")
    }

    /// Opens a target again, to read what is durable, and compares the texts of jobs that were copied.
    pub(super) async fn again(self, merged: &mut Merged) -> Result<Open, TransferError> {
        let Open { place, store, clock, database } = self;
        store.close().await;
        drop((store, database));
        let again = Open::open(&place, &clock).await?;
        let copied = std::mem::take(&mut merged.copied);
        match archive::first_difference(&*again.store, copied).await.map_err(|error| again.failed(error))? {
            Some(id) => Err(TransferError::Texts { place, id }),
            None => Ok(again),
        }
    }

    /// Compares what a target has durably with the source and, if both are equal, removes the mark.
    pub(super) async fn end(
        self,
        mut merged: Merged,
        was_done: bool,
        keys_from: Timestamp,
    ) -> Result<Transferred, TransferError> {
        let copied = merged.copied.len();
        let again = self.again(&mut merged).await?;
        let Merged { source, removed, unreadable, .. } = merged;
        let target = again.outline(keys_from).await?;
        again.check_alone(1).await?;
        let is_equal = source.differing(&target).is_empty();
        if was_done && !is_equal {
            return Err(TransferError::NotEmpty(again.place));
        }
        if is_equal && !was_done {
            archive::unmark(&*again.store).await.map_err(|error| again.failed(error))?;
        }
        again.store.close().await;
        Ok(Transferred { source, target, was_done, copied, removed, unreadable, is_partial: false })
    }
}

/// What was transferred: what the source had, and what the target has.
#[derive(Debug)]
pub struct Transferred {
    pub source: Tally,
    pub target: Tally,
    /// The target had all of it before.
    pub was_done: bool,
    /// Jobs that the target lacked, and jobs that only the target had.
    pub copied: usize,
    pub removed: usize,
    /// Jobs that the source of an archive could not read.
    pub unreadable: usize,
    /// The archive has no settings, API keys and sessions.
    pub is_partial: bool,
}
